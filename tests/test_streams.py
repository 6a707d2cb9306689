"""No stream of evaluation is a stream of training, whatever seed, replicate and iteration.

Paths are compared as they count, filled with zeros to four numbers.
"""

import ast
import itertools
import json
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from rwslib import data, noise
from rwslib.experiments import AIRConfig, GMMConfig, SBNConfig, VAEConfig, air, gmm, sbn, vae
from rwslib.experiments.own_model import OwnModelConfig
from rwslib.methods import METHODS
from rwslib.noise import EpochOrder, Noise
from rwslib.training import Problem, Trainer

ROOT = Path(__file__).resolve().parent.parent
OF_TRAINING = (noise.TRAINING, noise.ORDER)
PURPOSES = {"TRAINING", "GRADIENTS", "ORDER", "CURVES", "FINALS", "SAMPLES", "GLOBALS", "METRICS"}


def filled(path):
    return (*path, 0, 0, 0, 0)[: max(4, len(path))]


def words(path):
    return tuple(np.random.SeedSequence(path).generate_state(4))


def test_zeros_fill_a_path_to_four_numbers():
    """What this file rests on."""
    paths = [path for n in range(1, 5) for path in itertools.product(range(3), repeat=n)]
    assert all(words(path) == words(filled(path)) for path in paths)
    assert len({words(path) for path in paths}) == 3**4


# -- what is written -----------------------------------------------------------------------------------


def calls(source, function="Noise"):
    """The arguments of every ``Noise(...)`` in a piece of code."""
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Call)
            and getattr(node.func, "id", getattr(node.func, "attr", "")) == function
        ):
            yield node.args


def keeps_apart(arguments):
    """Whether a path begins with 0, which no run's does, or is a run's and ends with a purpose."""
    first, last = arguments[0], arguments[-1]
    if isinstance(first, ast.Constant):
        return first.value == 0
    return len(arguments) == 4 and isinstance(last, ast.Name) and last.id in PURPOSES | {"purpose"}


def of_another_replicate(arguments):
    """Whether it is (seed, n, ...) with n above 0: replicate 0 trains without it."""
    return len(arguments) > 1 and isinstance(arguments[1], ast.Constant) and arguments[1].value > 0


def notebook(name):
    cells = nbformat.read(ROOT / f"notebooks/{name}.ipynb", as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "code")


@pytest.mark.parametrize("path", sorted((ROOT / "rwslib").rglob("*.py")), ids=lambda path: path.stem)
def test_every_path_is_a_runs_with_its_purpose_or_begins_with_0(path):
    for arguments in calls(path.read_text(encoding="utf-8")):
        assert keeps_apart(arguments), f"Noise({', '.join(map(ast.unparse, arguments))})"


def test_the_own_models_paths_begin_with_0():
    """Chapter 5 evaluates all its replicates."""
    found = list(calls(notebook("05_your_own_model")))
    assert len(found) >= 5
    assert all(map(keeps_apart, found))
    assert len({ast.unparse(call[-1]) for call in found}) == len(found)


@pytest.mark.parametrize("name", ["03_vae", "04_air"])
def test_chapters_that_look_at_replicate_0_read_paths_of_others(name):
    code = notebook(name)
    assert list(calls(code))
    assert all(keeps_apart(call) or of_another_replicate(call) for call in calls(code))
    assert {len(call) for call in calls(code, "modules")} == {1}  # the replicate is the default, 0


def test_chapter_2_measures_noise_where_no_block_of_the_published_runs_begins():
    """Its streams (seed, replicate, K) gave published numbers; two touch no network; others begin with 0."""
    paths = {tuple(map(ast.unparse, call)) for call in calls(notebook("02_gmm"))}
    assert {path for path in paths if path[0] != "0"} == {
        ("seed",),
        ("seed", "K"),
        ("seed", "replicate", "K"),
    }
    configs = [json.loads(path.read_text()) for path in ROOT.glob("book/results/gmm/*/config.json")]
    measured = [config for config in configs if config["method"] == "reinforce"]
    assert len(measured) >= 4
    for config in measured:
        trainer = Trainer(gmm.problem(GMMConfig(**config)), range(1), compiled=False)
        assert config["num_particles"] % trainer.block


def test_purposes_are_different():
    assert len({getattr(noise, name) for name in PURPOSES}) == len(PURPOSES)


# -- what is drawn -------------------------------------------------------------------------------------

CONFIGS = {
    "gmm": lambda: gmm.problem(GMMConfig("ww", 2, num_iterations=2, num_runs=2, batch_size=4)),
    "vae": lambda: vae.problem(VAEConfig("iwae", 2, "digits", 1, batch_size=30, eval_particles=2)),
    "air": lambda: air.problem(
        AIRConfig(
            "ww",
            2,
            "digits",
            num_iterations=3,
            dream_iterations=1,
            batch_size=4,
            eval_particles=2,
            eval_scenes=6,
        )
    ),
    "sbn": lambda: sbn.problem(
        SBNConfig(
            "ww",
            2,
            "digits",
            latents=(4,),
            num_iterations=2,
            num_runs=2,
            batch_size=30,
            eval_particles=2,
            eval_images=6,
        )
    ),
}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(data, "NUM_SCENES", {"train": 40, "test": 20})
    for module in (vae, sbn):
        monkeypatch.setattr(module, "CURVE_IMAGES", 10)
    few = data.Digits(*(part[:60] for part in data.load("digits")))
    monkeypatch.setattr(data, "load", lambda name: few)
    for name, value in {"LEAST_BETWEEN_LOGS": 1, "CURVE_SCENES": 6, "WEIGHTED_PARTICLES": 4}.items():
        monkeypatch.setattr(air, name, value)
    data._scenes.cache_clear()
    yield
    data._scenes.cache_clear()


@pytest.mark.parametrize("experiment", CONFIGS)
def test_a_run_reads_no_stream_twice_for_training_and_evaluation(experiment, small, monkeypatch):
    drawn, training = {True: set(), False: set()}, []
    start, draw, rows = Noise.__init__, Trainer.draw, EpochOrder.rows

    def recorded(self, *path, device="cpu"):
        drawn[bool(training)].add(filled(path))
        start(self, *path, device=device)

    def in_training(function):
        def called(*arguments):
            training.append(True)
            try:
                return function(*arguments)
            finally:
                training.pop()

        return called

    monkeypatch.setattr(Noise, "__init__", recorded)
    monkeypatch.setattr(Trainer, "draw", in_training(draw))
    monkeypatch.setattr(EpochOrder, "rows", in_training(rows))
    trainer = Trainer(CONFIGS[experiment](), range(2))
    trainer.train()
    trainer.problem.finish(trainer.networks)
    learned, judged = drawn[True], drawn[False]
    assert len(learned) >= 4
    assert len(judged) >= 2
    assert all(seed >= 1 and purpose in OF_TRAINING for seed, _, _, purpose in learned)
    assert all(path[0] == 0 or path[3] not in OF_TRAINING for path in judged)
    assert not learned & judged


def test_test_points_share_nothing_with_any_first_batch():
    """As a run of seed 0 did: its first batch had the categories of all test points."""
    points = gmm.test_points()
    for seed in (1, 2, 3):
        batch = gmm.GMM("true").sample(100, Noise(seed, 0, 0, noise.TRAINING))[1].detach()
        assert abs(torch.corrcoef(torch.stack([points, batch]))[0, 1]) < 0.5
    batch = gmm.GMM("true").sample(100, Noise(0, 0, 0, noise.TRAINING))[1].detach()
    assert torch.equal(points, batch)


# -- who is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, -1, 2**32, 1.0, True, None, "1"])
def test_a_seed_that_is_no_runs_own_is_refused_by_every_way_to_train(seed):
    sentence = r"seed must be a whole number from 1 to 2\*\*32 - 1 \(0 draws what all runs share\), got "
    for configuration in (GMMConfig, VAEConfig, AIRConfig, SBNConfig):
        with pytest.raises(ValueError, match=sentence):
            configuration("ww", 2, seed=seed)
    with pytest.raises(ValueError, match=sentence):
        OwnModelConfig("ww", 2, 1, 4, 0.01, seed, "digits", [2, 3], 5, 4)
    problem = Problem(METHODS["ww"], None, None, None, 2, 10, 1, 1e-3, seed)
    with pytest.raises(ValueError, match=sentence):
        Trainer(problem, range(1))
