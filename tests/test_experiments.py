"""Configurations refuse bad input in one sentence, before anything runs; the command line too."""

import pytest
import torch

from rwslib import __main__ as cli
from rwslib import records, sweep
from rwslib.experiments import GMMConfig, VAEConfig, modules, run, vae
from rwslib.methods import METHODS
from rwslib.noise import Noise

BAD = [
    ({"method": "wake"}, "method must be one of"),
    ({"method": "iwae"}, "method must be one of .* for categorical latents"),
    ({"method": 3}, "method must be one of"),
    ({"method": "vimco", "num_particles": 1}, "num_particles must be at least 2 for method 'vimco', got 1"),
    ({"num_particles": 0}, "num_particles must be a whole number of at least 1, got 0"),
    ({"num_particles": "ten"}, "num_particles must be a whole number .*, got 'ten'"),
    ({"num_particles": 2.5}, "num_particles"),
    ({"num_particles": True}, "num_particles"),
    ({"num_iterations": 0}, "num_iterations"),
    ({"num_iterations": "100"}, "num_iterations must be a whole number .*, got '100'"),
    ({"num_runs": -1}, "num_runs"),
    ({"batch_size": 0}, "batch_size"),
    ({"learning_rate": -1e-3}, "learning_rate must be a number above 0, got -0.001"),
    ({"learning_rate": "3e-3"}, "learning_rate"),
    ({"learning_rate": float("nan")}, "learning_rate"),
    ({"seed": -1}, "seed"),
    ({"seed": None}, "seed"),
    ({"init": "middle"}, "init must be 'far' or 'near', got 'middle'"),
    ({"hidden": 16}, "hidden"),
    ({"hidden": [0]}, "hidden"),
    ({"method": "dww", "delta": 0}, "delta must be a number between 0 and 1, got 0"),
    ({"method": "dww", "delta": 1.0}, "delta must be a number between 0 and 1, got 1.0"),
    ({"method": "ww", "delta": 0.2}, "delta must be None for method 'ww'"),
    ({"method": "wws", "wake_weight": 2}, "wake_weight"),
    ({"method": "concrete", "temperature": 0.5}, "temperature must be a pair"),
    ({"method": "concrete", "temperature": [3, 0]}, "temperature"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_values_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        GMMConfig(**({"method": "ww", "num_particles": 2} | changes))


def test_options_are_filled_in_where_they_apply():
    assert GMMConfig("dww", 2) == GMMConfig("dww", 2, delta=0.2)
    assert GMMConfig("ww", 2).delta is None
    assert GMMConfig("concrete", 2).temperature == (3.0, 0.5)
    assert GMMConfig("ww", 2, hidden=[16]) == GMMConfig("ww", 2, hidden=(16,))


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.latent != "reparameterisable"])
def test_every_categorical_method_trains(name, tmp_path, monkeypatch):
    monkeypatch.setenv("RWSLIB_PUBLISHED", str(tmp_path / "published"))
    config = GMMConfig(name, 2, num_iterations=4, num_runs=2, batch_size=5)
    record = run(config, tmp_path)
    moved = record.metrics["posterior_l2"]
    assert (moved[:, 0] != moved[:, -1]).all()


def test_grids_expand_to_configurations(tmp_path):
    grid = tmp_path / "grid.yaml"
    grid.write_text(
        "- {experiment: gmm, method: [ww, vimco], num_particles: [2, 5]}\n"
        "- {experiment: gmm, method: dww, num_particles: 2, delta: [0.1, 0.3], hidden: [[16, 16]]}\n"
    )
    configs = list(sweep.configurations(grid))
    assert len(configs) == 6
    assert configs[0] == GMMConfig("ww", 2)
    assert configs[-1] == GMMConfig("dww", 2, delta=0.3, hidden=(16, 16))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method: ww", "list of mappings"),
        ("- {experiment: gnn, method: ww, num_particles: 2}", "experiment must be one of"),
        ("- {experiment: gmm, method: ww, num_particle: 2}", "field must be one of .*'num_particle'"),
    ],
)
def test_bad_grids_are_refused(tmp_path, text, message):
    grid = tmp_path / "grid.yaml"
    grid.write_text(text)
    with pytest.raises(ValueError, match=message):
        list(sweep.configurations(grid))


def test_the_command_line_trains_lists_and_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RWSLIB_PUBLISHED", str(tmp_path / "published"))
    monkeypatch.setenv("RWSLIB_RESULTS", str(tmp_path / "results"))
    grid = tmp_path / "grid.yaml"
    grid.write_text("- {experiment: gmm, method: [ww], num_particles: [2], num_iterations: 4, num_runs: 2}")

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["rwslib", *map(str, arguments)])
        cli.main()
        return capsys.readouterr().out

    assert "ww K=2" in call("train", grid)
    assert call("train", grid) == ""  # there already
    (record,) = records.iterate(tmp_path / "results")
    assert record.key in call("list")
    assert '"method": "ww"' in call("show", record.key[:6])
    call("publish", record.path)
    assert len(list(records.iterate(tmp_path / "published"))) == 1
    with pytest.raises(SystemExit, match="key must name a stored record"):
        call("show", "nothing")


def test_the_modules_of_a_record_are_those_that_were_evaluated(tmp_path, monkeypatch):
    monkeypatch.setenv("RWSLIB_PUBLISHED", str(tmp_path / "published"))
    monkeypatch.setattr(vae, "CURVE_IMAGES", 20)
    config = VAEConfig("iwae", 2, dataset="digits", num_stages=1, batch_size=500, eval_particles=2)
    record = run(config, tmp_path)
    for replicate in range(2):
        parts = modules(record, replicate)
        with torch.no_grad():
            variance = parts["q"].moments(vae.test_images("digits"))[0].var(dim=0, correction=0)
        torch.testing.assert_close(variance, torch.from_numpy(record.metrics["unit_variance"][replicate]))
        assert (parts["p"].sample(3, Noise(1))[1] <= 1).all()
    (record.path / "weights.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        modules(record)
