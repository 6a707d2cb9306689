"""Multi-digit scenes: how many digits, where they are, and where they come from."""

import hashlib
import math

import pytest
import torch

from rwslib import data

NUM = 3000
SPLITS = ("train", "test")
every_split = pytest.mark.parametrize("split", SPLITS)


def made(split, num=NUM, seed=0):
    return data.scenes("digits", split, num, seed)


def ink_of(digit):
    """The tight box of a digit's ink: its pixels alone."""
    rows, columns = (digit > 0).any(dim=1).nonzero(), (digit > 0).any(dim=0).nonzero()
    return digit[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def overlap(a, b):
    """Whether two boxes (left, top, width, height) share a pixel."""
    return all(a[i] < b[i] + b[i + 2] and b[i] < a[i] + a[i + 2] for i in range(2))


# -- the form ------------------------------------------------------------------------------------------


@every_split
def test_scenes_have_their_form(split):
    found = made(split)
    shapes = {"images": (NUM, 50, 50), "counts": (NUM,), "boxes": (NUM, 2, 4), "digits": (NUM, 2)}
    assert {name: tuple(part.shape) for name, part in found._asdict().items()} == shapes
    assert found.images.dtype == torch.uint8
    assert {found.counts.dtype, found.boxes.dtype, found.digits.dtype} == {torch.int64}
    absent = torch.arange(2) >= found.counts[:, None]
    assert (found.boxes[absent] == 0).all()
    assert (found.digits[absent] == -1).all()
    assert (found.digits[~absent] >= 0).all()
    assert (found.images[found.counts == 0] == 0).all()


@every_split
def test_a_third_of_the_scenes_has_each_count(split):
    """Five standard errors."""
    counts = made(split).counts.bincount(minlength=3)
    assert len(counts) == 3
    assert ((counts - NUM / 3).abs() < 5 * math.sqrt(NUM * 2 / 9)).all()


def test_the_default_numbers_are_the_papers():
    assert {split: len(data.scenes("digits", split).counts) for split in SPLITS} == data.NUM_SCENES
    assert data.NUM_SCENES == {"train": 60_000, "test": 10_000}


# -- where the digits are ------------------------------------------------------------------------------


@every_split
def test_an_image_holds_its_digits_in_their_boxes_and_nothing_else(split):
    """Each is an image of the split, at its own size, cut to the box of its ink."""
    source, found = getattr(data.load("digits"), split), made(split, 300)
    for image, count, boxes, digits in zip(*found, strict=True):
        canvas = torch.zeros(50, 50, dtype=torch.uint8)
        for (left, top, wide, high), digit in zip(boxes[:count].tolist(), digits, strict=False):
            ink = ink_of(source[digit])
            assert ink.shape == (high, wide)
            canvas[top : top + high, left : left + wide] += ink
        assert torch.equal(image, canvas)


@every_split
def test_boxes_are_inside_the_canvas_and_tight_around_their_ink(split):
    found = made(split)
    there = torch.arange(2) < found.counts[:, None]
    boxes = found.boxes[there]
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] > 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= 50).all()
    for image, (left, top, wide, high) in zip(
        found.images[there.nonzero()[:500, 0]], boxes[:500].tolist(), strict=True
    ):
        inside = image[top : top + high, left : left + wide] > 0
        assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))


@every_split
def test_two_digits_are_different_images_that_do_not_overlap(split):
    found = made(split)
    pairs = found.counts == 2
    assert (found.digits[pairs, 0] != found.digits[pairs, 1]).all()
    assert not any(overlap(*boxes) for boxes in found.boxes[pairs].tolist())


def test_a_single_digit_lies_anywhere_with_the_same_chance():
    """Position divided by the room that there is: uniform, five standard errors of mean and variance."""
    found = made("train")
    boxes = found.boxes[found.counts == 1, 0].double()
    free = 51 - boxes[:, 2:]
    place = (boxes[:, :2] + 0.5) / free
    n = len(place)
    assert ((place.mean(dim=0) - 0.5).abs() < 5 * math.sqrt(1 / 12 / n)).all()
    variance = (1 - 1 / free.square()).mean(dim=0) / 12
    assert ((place.var(dim=0) - variance).abs() < 5 * math.sqrt(1 / 180 / n)).all()
    assert torch.corrcoef(place.T)[0, 1].abs() < 5 / math.sqrt(n)
    for side in (boxes[:, :2].amin(dim=0), 50 - (boxes[:, :2] + boxes[:, 2:]).amax(dim=0)):
        assert (side == 0).all()  # the borders are reached


# -- where the digits come from ------------------------------------------------------------------------


def test_all_ink_comes_from_the_split_and_so_no_test_digit_is_in_a_training_scene():
    for split in SPLITS:
        found, source = made(split), getattr(data.load("digits"), split)
        inks = {(tuple(ink.shape), ink.numpy().tobytes()) for ink in map(ink_of, source)}
        assert found.digits.max() < len(source)
        there = torch.arange(2) < found.counts[:, None]
        used = set()
        for scene, which in there.nonzero().tolist():
            left, top, wide, high = found.boxes[scene, which].tolist()
            ink = found.images[scene, top : top + high, left : left + wide]
            used.add((tuple(ink.shape), ink.numpy().tobytes()))
        assert used <= inks


@every_split
def test_every_digit_of_the_split_is_as_likely_as_any_other(split):
    """Chi-squared over tens of images, five standard deviations; first and last among them."""
    found, num = made(split), len(getattr(data.load("digits"), split))
    used = found.digits[found.digits >= 0]
    tens = (used // 10).bincount(minlength=(num + 9) // 10)[: num // 10]
    expected = len(used) * 10 / num
    chi_squared = ((tens - expected).square() / expected).sum()
    assert abs(chi_squared - len(tens)) < 5 * math.sqrt(2 * len(tens))


# -- the same everywhere -------------------------------------------------------------------------------

SUMS = {
    ("train", 0): "46f6ce80383e35325c890d4ccf034eefa6d8dc387be756116e6185206911ba7b",
    ("test", 0): "a889cd64afeb19e7d5afdfbb9a6950fd69ad1e18100e59127946e961c18be1f2",
    ("train", 1): "b6998e4b10dc4e8d47717463600820047951d3bf0c68ca1945b291362d0396b2",
}


def checksum(scenes):
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in scenes)).hexdigest()


@pytest.mark.parametrize(("split", "seed"), SUMS)
def test_a_seed_gives_the_same_bytes_on_every_machine(split, seed):
    assert checksum(made(split, 200, seed)) == SUMS[split, seed]


def test_a_seed_gives_the_same_bytes_again_when_nothing_is_remembered():
    first = checksum(made("train", 200))
    data._scenes.cache_clear()
    assert checksum(made("train", 200)) == first


def test_seeds_and_splits_give_different_scenes():
    first, *others = (made(*which) for which in (("train", 300, 0), ("train", 300, 1), ("test", 300, 0)))
    for other in others:
        assert (first.counts != other.counts).float().mean() > 0.5
        single = (first.counts == 1) & (other.counts == 1)
        assert (first.boxes[single, 0] != other.boxes[single, 0]).any(dim=-1).float().mean() > 0.9


# -- bad arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize("num", [0, -1, 2.5, "10", 10.0])
def test_a_bad_number_is_refused(num):
    with pytest.raises(ValueError, match=rf"num must be a whole number of at least 1, got {num!r}"):
        data.scenes("digits", "train", num)


def test_one_scene_is_enough():
    assert len(made("test", 1).counts) == 1


def test_unknown_splits_and_data_sets_are_refused():
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'valid'"):
        data.scenes("digits", "valid")
    with pytest.raises(ValueError, match=r"dataset must be one of \['mnist', 'digits'\], got 'letters'"):
        data.scenes("letters", "train")
