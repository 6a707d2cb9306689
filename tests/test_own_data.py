"""A data set of one's own: the recipe of the book, step by step, and what is refused of its images."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from shortened import shortened

from rwslib import data
from rwslib.data import DataSet, Digits
from rwslib.evaluation import importance_estimates
from rwslib.experiments import AIRConfig, SBNConfig, VAEConfig, air, run, sbn, vae
from rwslib.models.air import GenerativeModel, InferenceNetwork
from rwslib.noise import Noise

ROOT = Path(__file__).resolve().parent.parent
NUM = 60

# -- the recipe ----------------------------------------------------------------------------------------


def blocks(language):
    """The code of the section of the book's page."""
    page = (ROOT / "book/rerun.md").read_text(encoding="utf-8")
    section = page.split("## Your own data set")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the library with the row that the page adds, and the data that the row reads."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "rwslib", folder / "rwslib", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)  # which makes it a checkout
    (folder / "notebooks").mkdir()
    for name in SMALLER:
        nbformat.write(shortened(name), folder / f"notebooks/{name}.ipynb")
    (row,) = blocks("python")
    library = (ROOT / "rwslib/data.py").read_text(encoding="utf-8")
    fewer = re.sub(r"^NUM_SCENES = .*", 'NUM_SCENES = {"train": 300, "test": 1000}', library, flags=re.M)
    assert fewer != library
    (folder / "rwslib/data.py").write_text(f"{fewer}\n\n{row}", encoding="utf-8")
    (folder / "data").mkdir()
    mine = {name: part[:NUM].numpy() for name, part in data.load("digits")._asdict().items()}
    np.savez(folder / "data/mine.npz", **mine)
    return folder


SMALLER = {  # than the page's commands, and what they leave
    "03_vae": (
        {"num_particles": "[2]", "eval_particles": "10"},
        {"dataset": "mine", "num_stages": 1, "precision": "float32"},
        "my digits, 1 epoch",
    ),
    "04_air": (
        {"num_particles": "[2]", "num_iterations": "10", "dream_iterations": "0", "eval_particles": "4"}
        | {"eval_scenes": "20"},
        {"dataset": "mine", "num_iterations": 10},
        "my digits scenes, 10 iterations",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLER)
def test_the_recipe_of_the_page_works(name, checkout):
    (command,) = (line for text in blocks("bash") for line in text.splitlines() if name in line)
    smaller, expected, shows = SMALLER[name]
    smaller |= {"methods": "[ww]", "num_runs": "1", "batch_size": "8"}
    command = command.replace("python", sys.executable, 1).replace("'", "").split()
    command += [word for parameter in smaller.items() for word in ("-p", *parameter)]
    places = {"RWSLIB_DATA": "data", "RWSLIB_RESULTS": "results", "RWSLIB_PUBLISHED": "published"}
    environment = os.environ | {key: str(checkout / value) for key, value in places.items()}
    environment |= {"PYTHONPATH": str(checkout), "IPYTHONDIR": str(checkout / "ipython")}
    subprocess.run(command, cwd=checkout, env=environment, check=True)
    (executed,) = (checkout / "results/notebooks").glob(f"{name}-*.ipynb")
    cells = nbformat.read(executed, as_version=4).cells
    assert shows in "\n".join(json.dumps(cell.get("outputs", [])) for cell in cells)
    (config,) = (checkout / "results" / name.partition("_")[2]).glob("*/config.json")
    assert json.loads(config.read_text()).items() >= expected.items()


# -- what is refused -----------------------------------------------------------------------------------

IMAGES = data.load("digits")
FORMS = {  # of 28 x 28 uint8 images, as other libraries hand them out, and what the sentence says of them
    "floats in [0, 1]": (lambda x: x / 255, r"a tensor of float32 \[1498, 28, 28\] from 0 to 1"),
    "floats to 255": (lambda x: x.float(), r"a tensor of float32 \[1498, 28, 28\] from 0 to 255"),
    "doubles": (lambda x: x.double() / 255, r"a tensor of float64 \[1498, 28, 28\] from 0 to 1"),
    "whole numbers": (lambda x: x.long(), r"a tensor of int64 \[1498, 28, 28\] from 0 to 255"),
    "standardised": (lambda x: (x / 255 - 0.13) / 0.31, r"a tensor of float32 .* from -0.4\d* to 2.8\d*"),
    "bits": (lambda x: (x > 127).to(torch.uint8), r"a tensor of uint8 \[1498, 28, 28\] from 0 to 1"),
    "booleans": (lambda x: x > 127, r"a tensor of bool \[1498, 28, 28\] from 0 to 1"),
    "vectors": (lambda x: x.flatten(1), r"a tensor of uint8 \[1498, 784\] from 0 to 255"),
    "channels": (lambda x: x[:, None], r"a tensor of uint8 \[1498, 1, 28, 28\] from 0 to 255"),
    "another size": (lambda x: x[:, :, 2:], r"a tensor of uint8 \[1498, 28, 26\] from 0 to 255"),
    "an array": (lambda x: x.numpy(), r"an array of uint8 \[1498, 28, 28\] from 0 to 255"),
    "no image": (lambda x: x[:0], r"a tensor of uint8 \[0, 28, 28\]$"),
    "a list": (lambda x: [x], "list$"),
}
TINY_VAE = {"num_stages": 1, "num_runs": 1, "eval_particles": 4}


@pytest.fixture
def mine(monkeypatch, tmp_path):
    """Makes a data set "mine" of these parts, the rest as they should be."""
    monkeypatch.setenv("RWSLIB_PUBLISHED", str(tmp_path / "published"))
    monkeypatch.setenv("RWSLIB_RESULTS", str(tmp_path / "results"))

    def make(**parts):
        digits = IMAGES._replace(**parts)
        monkeypatch.setitem(data.DATASETS, "mine", DataSet(lambda: digits, "my digits"))

    yield make
    data._scenes.cache_clear()
    assert not (tmp_path / "results").exists() or not list(tmp_path.glob("results/*/*/config.json"))


@pytest.mark.parametrize("form", FORMS)
def test_images_of_another_form_are_refused_before_anything_runs(form, mine):
    change, got = FORMS[form]
    mine(train=change(IMAGES.train))
    sentence = (
        rf"dataset 'mine': train must be a tensor of uint8 \[N, 28, 28\] from 0 .* to 255 .*, got {got}"
    )
    for call in (
        lambda: data.load("mine"),
        lambda: data.scenes("mine", "train"),
        lambda: run(VAEConfig("ww", 8, dataset="mine", **TINY_VAE)),
        lambda: run(AIRConfig("ww", 2, dataset="mine", num_iterations=1000)),
        lambda: run(SBNConfig("ww", 2, dataset="mine", num_iterations=10)),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()


def test_test_images_and_labels_are_looked_at_too(mine):
    mine(test=IMAGES.test / 255)
    with pytest.raises(ValueError, match=r"dataset 'mine': test must be .*, got a tensor of float32"):
        data.load("mine")
    for labels in (IMAGES.train_labels[1:], IMAGES.train_labels.float(), IMAGES.train_labels.numpy(), None):
        mine(train_labels=labels)
        with pytest.raises(ValueError, match=r"train_labels must be a tensor of whole numbers .*1498.*, got"):
            data.load("mine")
    mine(train_labels=IMAGES.train_labels.long())
    assert isinstance(data.load("mine"), Digits)


def test_a_function_that_returns_something_else_is_refused(monkeypatch):
    for other in (tuple(IMAGES), None, IMAGES.train):
        monkeypatch.setitem(data.DATASETS, "mine", DataSet(lambda other=other: other, ""))
        with pytest.raises(ValueError, match="dataset 'mine' must be Digits, got"):
            data.load("mine")


def test_an_experiment_refuses_floats_whatever_load_returns(monkeypatch):
    """As in a notebook that puts its own function in the place of ``data.load``."""
    floats = IMAGES._replace(train=IMAGES.train / 255, test=IMAGES.test / 255)
    monkeypatch.setattr(data, "load", lambda name: floats)
    with pytest.raises(
        ValueError, match=r"must be a tensor of uint8 .*, got a tensor of float32 .* from 0 to 1"
    ):
        vae.problem(VAEConfig("ww", 8, dataset="digits"))
    with pytest.raises(
        ValueError, match=r"must be a tensor of uint8 .*, got a tensor of float32 .* from 0 to 1"
    ):
        air.problem(AIRConfig("ww", 2, dataset="digits", seed=77))
    with pytest.raises(
        ValueError, match=r"must be a tensor of uint8 .*, got a tensor of float32 .* from 0 to 1"
    ):
        sbn.problem(SBNConfig("ww", 2, dataset="digits"))


@pytest.mark.parametrize(
    "form", ["floats in [0, 1]", "doubles", "whole numbers", "booleans", "an array", "a list"]
)
def test_what_binarisation_cannot_take_is_refused(form):
    change, got = FORMS[form]
    with pytest.raises(ValueError, match=rf"images must be a tensor of uint8 from 0 to 255, got {got}"):
        data.binarize(change(IMAGES.train), Noise(1))


def test_binarisation_says_what_it_can_inside_vmap():
    with pytest.raises(
        ValueError, match=r"images must be a tensor of uint8 from 0 to 255, got a tensor of float32"
    ):
        torch.func.vmap(lambda x: data.binarize(x, Noise(1)))(IMAGES.test / 255)


# -- pixels of the densities ---------------------------------------------------------------------------

VAE_PIXELS = IMAGES.test[:3].flatten(1) / 255
AIR_PIXELS = torch.zeros(3, 2500)
WRONG = {
    "to 255": (lambda x: x * 0 + 255.0, "float32 .* from 255 to 255"),
    "uint8": (lambda x: (255 * x).to(torch.uint8), "uint8 "),
    "standardised": (lambda x: x - 0.13, "float32 .* from -0.13 to"),
    "unknown": (lambda x: x * torch.nan, "float32 .* from nan to nan"),
    "another size": (lambda x: x[:, 1:], r"float32 \[3, (783|2499)\]"),
}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("wrong", WRONG)
def test_importance_estimates_refuse_pixels_that_are_none(wrong, compiled, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda *arguments, **settings: None)  # refused before
    change, got = WRONG[wrong]
    networks = {"VAE": vae.build().values()}
    if not compiled:
        networks["SBN"] = sbn.build(SBNConfig("ww", 2, latents=(3,))).values()
        networks["AIR"] = GenerativeModel(), InferenceNetwork()
    for (name, (p, q)), x in zip(networks.items(), (VAE_PIXELS, VAE_PIXELS, AIR_PIXELS), strict=False):
        with pytest.raises(
            ValueError, match=rf"x must be pixels from 0 to 1 .*, float \[B, \d+\], got {got}"
        ):
            importance_estimates(p, q, change(x), 2, Noise(1), compiled=compiled)
        assert importance_estimates(p, q, x.round(), 2, Noise(1))["ess"].isfinite().all(), name


def test_dreams_of_a_normal_likelihood_are_pixels_too():
    """They are beyond 0 and 1; images of 0 to 255 are not."""
    p, q = GenerativeModel(pixel_sd=0.3), InferenceNetwork()
    z, dreams = p.sample(5, Noise(1))
    assert dreams.min() < 0
    latents = z._replace(**{name: part[None] for name, part in z._asdict().items()})
    assert p.log_joint(latents, dreams).isfinite().all()
    assert q.log_prob(latents, dreams).isfinite().all()
    with pytest.raises(ValueError, match="x must be pixels"):
        p.log_joint(latents, dreams * 255)


# -- scenes --------------------------------------------------------------------------------------------


def test_scenes_of_images_that_do_not_fit_end_with_a_sentence(mine):
    mine(train=255 - IMAGES.train)  # black on white
    with pytest.raises(ValueError, match=r"'mine': scenes need different images that fit .* mostly 28 x 28"):
        data.scenes("mine", "train", 50)
    mine(train=IMAGES.train[:1], train_labels=IMAGES.train_labels[:1])  # no two that differ
    data._scenes.cache_clear()
    with pytest.raises(ValueError, match=r"'mine': scenes need different images .*, got 1 train images"):
        data.scenes("mine", "train", 50)


def test_scenes_of_images_without_ink_are_refused(mine):
    blank = IMAGES.train.clone()
    blank[:2] = 0
    mine(train=blank)
    with pytest.raises(
        ValueError, match=r"'mine': scenes need ink, .* in every image, got 2 train images without"
    ):
        data.scenes("mine", "train", 50)


def test_scenes_of_ones_own_images_are_made(mine):
    mine(test=IMAGES.test[:2], test_labels=IMAGES.test_labels[:2])
    found = data.scenes("mine", "test", 50)
    assert set(found.digits.flatten().tolist()) == {-1, 0, 1}


def test_what_is_written_into_scenes_changes_no_later_ones():
    first = data.scenes("digits", "test", 20)
    kept = [part.clone() for part in first]
    for part in first:
        part.zero_()
    again = data.scenes("digits", "test", 20)
    assert all(torch.equal(part, as_it_was) for part, as_it_was in zip(again, kept, strict=True))
    data.load("digits").test.zero_()
    assert torch.equal(data.load("digits").test, IMAGES.test)


def test_scenes_take_numpys_numbers():
    assert len(data.scenes("digits", "test", np.int64(3), np.int64(1)).counts) == 3
    for seed in (-1, 1.0, None):
        with pytest.raises(ValueError, match="seed must be a whole number of at least 0"):
            data.scenes("digits", "test", 3, seed)
