"""Configurations refuse bad input in one sentence, before anything runs; the command line too."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import torch
import yaml

from rwslib import __main__ as cli
from rwslib import records
from rwslib.commands import sweep
from rwslib.experiments import (
    EXPERIMENTS,
    AIRConfig,
    GMMConfig,
    SBNConfig,
    VAEConfig,
    configuration,
    gmm,
    modules,
    run,
    vae,
)
from rwslib.experiments.own_model import OwnModelConfig
from rwslib.methods import usable
from rwslib.noise import Noise
from rwslib.training.checkpoints import peek

BAD = [
    ({"method": "wake"}, "method must be one of"),
    ({"method": "iwae"}, "method must be one of .* for this model"),
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
    ({"seed": 0}, r"seed must be a whole number from 1 to 2\*\*32 - 1 .*, got 0"),
    ({"seed": -1}, "seed"),
    ({"seed": True}, "seed"),
    ({"seed": None}, "seed"),
    ({"experiment": "vae"}, "experiment must be 'gmm', got 'vae'"),
    ({"learning_rate": np.float32("nan")}, "learning_rate must be a number above 0, got nan"),
    ({"learning_rate": 10**400}, "learning_rate must be a number above 0, got inf"),
    ({"num_particles": np.float64(2)}, "num_particles must be a whole number .*, got 2.0"),
    ({"num_particles": np.array([2, 3])}, r"num_particles must be a whole number .*, got \[2, 3\]"),
    ({"init": "middle"}, "init must be 'far' or 'near', got 'middle'"),
    ({"hidden": 16}, "hidden"),
    ({"hidden": [0]}, "hidden"),
    ({"method": "dww", "delta": 0}, "delta must be a number between 0 and 1, got 0"),
    ({"method": "dww", "delta": 1.0}, "delta must be a number between 0 and 1, got 1.0"),
    ({"method": "ww", "delta": 0.2}, "delta must be None for method 'ww'"),
    ({"method": "wws", "wake_weight": 2}, "wake_weight"),
    ({"method": "concrete", "temperature": 0.5}, "temperature must be a pair"),
    ({"method": "concrete", "temperature": [3, 0]}, "temperature"),
    ({"method": "concrete_2018", "temperature": [0, 1]}, "temperature"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_values_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        GMMConfig(**({"method": "ww", "num_particles": 2} | changes))


def test_options_are_filled_in_where_they_apply():
    assert GMMConfig("dww", 2) == GMMConfig("dww", 2, delta=0.2)
    assert GMMConfig("ww", 2).delta is None
    assert GMMConfig("concrete", 2).temperature == GMMConfig("concrete_2018", 2).temperature == (3.0, 0.5)
    assert GMMConfig("ww", 2, hidden=[16]) == GMMConfig("ww", 2, hidden=(16,))


# -- equal configurations have equal keys ---------------------------------------------------------------

PUBLISHED = Path(__file__).resolve().parent.parent / "book/results"
FULL = [  # together they give every option of every experiment a value
    GMMConfig("dww", 2, hidden=(8, 16)),
    GMMConfig("wws", 2),
    GMMConfig("concrete", 2, temperature=(3, 1)),
    VAEConfig("wws", 2),
    AIRConfig("ww", 2, decay_at=(0.25, 0.5), scale_prior=(0, 1), background=-2, presence_logit=0, pixel_sd=1),
    AIRConfig("dww", 2),
    AIRConfig("wws", 2),
    SBNConfig("ww", 2, latents=(8,), hidden=(6,)),
    *(SBNConfig(method, 2) for method in ("dww", "wws", "ovis", "concrete")),
]
OWN_MODEL = OwnModelConfig(
    "ww",
    2,
    dataset="digits",
    num_latents=[2, 3],
    num_iterations=5,
    num_runs=1,
    batch_size=4,
    learning_rate=1e-2,
    eval_particles=4,
    seed=1,
)


def key(config):
    return records.key(records.plain(config))


def spelled(value):
    """Other ways to write a value that Python finds equal, those of NumPy among them."""
    if isinstance(value, bool):
        return [np.bool_(value)]
    if isinstance(value, int):
        return [np.int64(value), np.uint32(value), np.array(value)]
    if isinstance(value, float):
        whole = [int(value), np.int32(value)] if value == int(value) else []
        return [np.float64(value), np.array(value), *whole, *([-0.0] if value == 0 else [])]
    if isinstance(value, str):
        return [np.str_(value)]
    if isinstance(value, tuple):
        each = zip(*(spelled(item)[:2] for item in value), strict=True)
        return [list(value), np.array(value), *each]
    return []


def is_plain(value):
    return type(value) in (int, float, str, bool, type(None), tuple) and (
        type(value) is not tuple or all(map(is_plain, value))
    )


@pytest.mark.parametrize("config", FULL, ids=lambda config: f"{config.experiment} {config.method}")
def test_equal_configurations_have_equal_keys_in_every_field(config):
    for name, value in asdict(config).items():
        for other in spelled(value):
            again = replace(config, **{name: other})
            assert again == config, (name, other)
            assert key(again) == key(config), (name, other)
            assert is_plain(getattr(again, name)), (name, other)


def test_the_fields_of_all_configurations_were_tried():
    for experiment, row in EXPERIMENTS.items():
        full = [asdict(given) for given in FULL if given.experiment == experiment]
        assert {name for given in full for name in given if given[name] is not None} == set(
            get_type_hints(row.config)
        )


def test_a_whole_learning_rate_is_the_same_run():
    assert key(GMMConfig("ww", 2, learning_rate=1)) == key(GMMConfig("ww", 2, learning_rate=1.0))
    assert key(replace(OWN_MODEL, learning_rate=1)) == key(replace(OWN_MODEL, learning_rate=np.float64(1)))
    assert key(replace(OWN_MODEL, num_latents=np.array([2, 3]))) == key(OWN_MODEL)


def test_published_records_are_found_under_their_names():
    paths = sorted(PUBLISHED.glob("*/*/config.json"))
    assert len(paths) >= 122
    for path in paths:
        fields = json.loads(path.read_text())
        assert key(configuration(fields)) == path.parent.name


@pytest.mark.parametrize(
    ("row", "config"),
    [
        ("{experiment: gmm, method: ww, num_particles: 2, learning_rate: [1e-3, 1.0E-2]}", None),
        ("{experiment: gmm, method: dww, num_particles: 2, delta: 2e-1}", GMMConfig("dww", 2)),
        ("{experiment: vae, method: ww, num_particles: 2, learning_rate: 1e-3}", VAEConfig("ww", 2)),
        ("{experiment: air, method: ww, num_particles: 2, decay_at: [[7e-1, 0.9]]}", AIRConfig("ww", 2)),
        ("{experiment: air, method: ww, num_particles: 2, scale_prior: [[-4e-1, 1E-1]]}", AIRConfig("ww", 2)),
    ],
)
def test_rows_of_grids_take_numbers_that_yaml_reads_as_text(tmp_path, row, config):
    (tmp_path / "grid.yaml").write_text(f"- {row}\n")
    expected = [config] if config else [GMMConfig("ww", 2), GMMConfig("ww", 2, learning_rate=0.01)]
    found = list(sweep.configurations(tmp_path / "grid.yaml"))
    assert found == expected
    assert list(map(key, found)) == list(map(key, expected))


@pytest.mark.parametrize("value", ["1e-3x", "e-3", "", "nan", ".inf", "1_000", "0x10"])
def test_text_that_is_no_number_stays_text_and_is_refused(tmp_path, value):
    row = {"experiment": "gmm", "method": "ww", "num_particles": 2, "learning_rate": f"{value}"}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump([row]))
    with pytest.raises(ValueError, match="learning_rate must be a number above 0, got '"):
        list(sweep.configurations(tmp_path / "grid.yaml"))


@pytest.mark.parametrize("name", usable(*gmm.OFFERS))
def test_every_categorical_method_trains(name, tmp_path, monkeypatch):
    monkeypatch.setenv("RWSLIB_PUBLISHED", str(tmp_path / "published"))
    config = GMMConfig(name, 2, num_iterations=4, num_runs=2, batch_size=5)
    record = run(config, tmp_path)
    moved = record.metrics["posterior_l2"]
    assert (moved[:, 0] != moved[:, -1]).all()


@pytest.mark.parametrize(
    ("value", "message"),
    [(1.0, "must lead with the 2 replicates .*got 1.0"), ("x", "must be a tensor, an array or a list")],
)
def test_final_metrics_that_do_not_fit_lose_no_training(value, message, tmp_path, monkeypatch):
    monkeypatch.setenv("RWSLIB_PUBLISHED", str(tmp_path / "published"))
    config = GMMConfig("ww", 2, num_iterations=4, num_runs=2, batch_size=5)
    broken = replace(
        EXPERIMENTS["gmm"],
        problem=lambda *args: replace(gmm.problem(*args), finish=lambda networks: {"a": value}),
    )
    monkeypatch.setitem(EXPERIMENTS, "gmm", broken)
    with pytest.raises(ValueError, match=f"metric 'a' of finish {message}"):
        run(config, tmp_path)
    (checkpoint,) = tmp_path.glob("gmm/*.checkpoint")
    assert peek(checkpoint)[0] == 4


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
