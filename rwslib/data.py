"""Data sets: MNIST by checksum, small digits that come with the library, and binarisation.

MNIST is read from ``$RWSLIB_DATA/mnist`` or, without that variable, from the user's cache folder,
where ``fetch`` puts it; files that other libraries left there are found, too.
Nothing falls back silently: a run says which data set it uses.
"""

import gzip
import hashlib
import itertools
import os
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rwslib import files
from rwslib.checks import require, require_int
from rwslib.noise import Noise

SIDE = 28  # of an image of a digit
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://azureopendatastorage.blob.core.windows.net/mnist/",
)
CHECKSUMS = {  # SHA-256 of the uncompressed files
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
LAYOUTS = ("mnist", "MNIST/raw", "MNIST", "mnist/MNIST/raw", "")  # folders; the second is torchvision's
TIMEOUT_SECONDS = 20.0
EMBEDDED = Path(__file__).with_name("digits.csv.gz")
CANVAS = 50  # side of a multi-digit scene
NUM_SCENES = {"train": 60_000, "test": 10_000}
MOST_PLACINGS = 1000  # of a pair of digits; even where one in fifty fits, that is enough


class DataError(OSError):
    """A data set is missing, damaged or cannot be fetched; the message says what to do."""


class Digits(NamedTuple):
    """Grey images of digits, uint8 ``[N, 28, 28]``, and their labels, uint8 ``[N]``."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def folder() -> Path:
    """Where data live: ``$RWSLIB_DATA``, else ``rwslib`` in the user's cache folder.

    Raises:
        DataError: there is no such folder, because the user has no home.
    """
    if given := files.from_environment("RWSLIB_DATA"):
        return given
    try:
        return files.expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "rwslib"
    except ValueError as error:
        raise DataError(f"{error}: set RWSLIB_DATA to the folder for data, or HOME") from None


class DataSet(NamedTuple):
    """A row of ``DATASETS``.

    Attributes:
        load: its images and labels.
        title: what tables and figures call it.
    """

    load: Callable[[], Digits]
    title: str


def load(name: str) -> Digits:
    """A data set by its name in ``DATASETS``.

    Raises:
        ValueError: no such data set, or its row does not give what ``Digits`` says.
        DataError: MNIST is not there, or not what its checksums say.
    """
    require(name in list(DATASETS), "dataset", f"one of {list(DATASETS)}", name)
    digits = DATASETS[name].load()
    if not isinstance(digits, Digits):
        raise ValueError(f"dataset {name!r} must be Digits, got {described(digits)}")
    for split in ("train", "test"):
        images, labels = getattr(digits, split), getattr(digits, f"{split}_labels")
        check_images(f"dataset {name!r}: {split}", images)
        whole = isinstance(labels, Tensor) and not (labels.is_floating_point() or labels.is_complex())
        if not (whole and labels.shape == images.shape[:1]):
            raise ValueError(
                f"dataset {name!r}: {split}_labels must be a tensor of whole numbers [{len(images)}], "
                f"one per image, got {described(labels)}"
            )
    return digits


def described(value: object) -> str:
    """What a tensor or array is, in words: its type, shape and range."""
    if not isinstance(value, Tensor | np.ndarray):
        return type(value).__name__
    kind = f"{'an array' if isinstance(value, np.ndarray) else 'a tensor'} of "
    kind += f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    try:
        return f"{kind} from {float(value.min()):g} to {float(value.max()):g}"
    except (RuntimeError, TypeError, ValueError):  # it is empty, or inside vmap no value can be read
        return kind


def check_images(name: str, images: Tensor) -> None:
    """Refuse what is not grey images of digits.

    Raises:
        ValueError: they are not uint8 ``[N, 28, 28]`` from 0 to 255, or no more than 0 and 1.
    """
    fits = isinstance(images, Tensor) and images.dtype == torch.uint8 and images.shape[1:] == (SIDE, SIDE)
    if not (fits and images.numel() and images.max() > 1):
        raise ValueError(
            f"{name} must be a tensor of uint8 [N, {SIDE}, {SIDE}] from 0 (background) to 255 (ink), "
            f"got {described(images)}"
        )


def _mnist() -> Digits:
    """60,000 + 10,000 images (LeCun et al. 1998)."""
    return Digits(*(torch.from_numpy(_idx(_read(file)[1])) for file in CHECKSUMS))


def _embedded_digits() -> Digits:
    """1797 real handwritten digits, of which every sixth is test data."""
    grey, labels = _enlarged()
    is_test = torch.arange(len(grey)) % 6 == 5
    return Digits(grey[~is_test], labels[~is_test], grey[is_test], labels[is_test])  # copies


@cache
def _enlarged() -> tuple[Tensor, Tensor]:
    """Digits of 8x8 pixels, as 20x20 in a frame of 28x28 like those of MNIST; their labels.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
    Repository (1998), https://doi.org/10.24432/C50P49, CC BY 4.0: its test set, as in scikit-learn.
    """
    rows = np.loadtxt(EMBEDDED, dtype=np.int64, delimiter=",")  # 64 pixels from 0 to 16, and the label
    small, labels = rows[:, :-1].reshape(-1, 8, 8), rows[:, -1]
    # Bilinear, in whole numbers, so that halves round up everywhere: pixel i reads the small one at 7i/19.
    weights = (19 - np.abs(7 * np.arange(20)[:, None] - 19 * np.arange(8))).clip(0)
    large, full = weights @ small @ weights.T, 19 * 19 * 16
    grey = np.pad((2 * 255 * large + full) // (2 * full), ((0, 0), (4, 4), (4, 4)))
    return torch.from_numpy(grey).to(torch.uint8), torch.from_numpy(labels).to(torch.uint8)


DATASETS = {  # one row per data set, read by configurations, notebooks and pages
    "mnist": DataSet(_mnist, "MNIST"),
    "digits": DataSet(_embedded_digits, "embedded digits"),
}


def _places(file: str) -> Iterator[Path]:
    """Where a file of MNIST may be, as this and other libraries and its archives leave it."""
    names = (file, file.replace("-idx", ".idx"))
    for layout, name in itertools.product(LAYOUTS, names):
        for place in (folder() / layout / name, folder() / layout / name / name):
            yield from (place, place.with_name(f"{name}.gz"))


def _find(file: str) -> tuple[Path, bytes] | None:
    """Where a file of MNIST is, and its uncompressed bytes, checked; None if it is nowhere."""
    for path in _places(file):
        try:
            return path, _unpacked(file, path.read_bytes(), path.suffix == ".gz")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            continue
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise DataError(f"{path} {error}; move it away and fetch MNIST again") from error
    return None


def _unpacked(file: str, content: bytes, packed: bool = True) -> bytes:
    """The uncompressed bytes of a file of MNIST; a ValueError says what is wrong with them."""
    try:
        content = gzip.decompress(content) if packed else content
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"cannot be unpacked ({error})") from error
    if hashlib.sha256(content).hexdigest() != CHECKSUMS[file]:
        raise ValueError("is not the MNIST file it should be (wrong SHA-256)")
    return content


def _read(file: str) -> tuple[Path, bytes]:
    """As ``_find``; what is nowhere is an error."""
    found = _find(file)
    if found is None:
        raise DataError(
            f"MNIST's {file} is not in {folder() / 'mnist'}: run `python -m rwslib data fetch mnist`, "
            "or set RWSLIB_DATA to the folder that holds mnist/, or use dataset 'digits'"
        )
    return found


def _idx(content: bytes) -> np.ndarray:
    """An IDX file of unsigned bytes as an array."""
    num_axes = content[3]
    shape = np.frombuffer(content, ">i4", num_axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * num_axes).reshape(shape).copy()


def status() -> dict[str, str]:
    """ "ok" by the path of each whole file of MNIST, and what is wrong by the name of the others."""
    states = {}
    for file in CHECKSUMS:
        try:
            states[str(_read(file)[0])] = "ok"
        except DataError as error:
            states[file] = str(error)
    return states


def fetch() -> None:
    """Download what is missing of MNIST; each file appears whole and checked, or not at all.

    Raises:
        DataError: no mirror gives the right file, a file that is there is wrong, or the folder cannot be
            written.
    """
    missing = [file for file in CHECKSUMS if _find(file) is None]
    if not missing:
        return
    target = folder() / "mnist"
    try:
        files.make_writable(target)
    except OSError as error:
        raise DataError(
            f"{target} cannot be written ({error.strerror}); set RWSLIB_DATA to another folder"
        ) from error
    for file in missing:
        _download(file, target)


def _download(file: str, target: Path) -> None:
    failures = []
    for mirror in MIRRORS:
        try:
            packed = _get(f"{mirror}{file}.gz")
            _unpacked(file, packed)
        except (OSError, ValueError, HTTPException) as error:  # URLError is an OSError
            failures.append(f"{mirror}: {error}")
            continue
        temporary = target / f".{file}.{os.getpid()}"
        try:
            temporary.write_bytes(packed)
            temporary.replace(target / f"{file}.gz")
        except OSError as error:
            raise DataError(f"{target} cannot be written ({error.strerror})") from error
        finally:
            temporary.unlink(missing_ok=True)
        return
    raise DataError(f"MNIST's {file} could not be fetched ({'; '.join(failures)})")


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
        content, size = response.read(), response.headers.get("Content-Length")
    if size and len(content) != int(size):
        raise OSError(f"connection broke after {len(content)} of {size} bytes")
    return content


class Scenes(NamedTuple):
    """Canvases with zero, one or two digits that do not overlap.

    Attributes:
        images: grey, uint8 ``[N, 50, 50]``.
        counts: int64 ``[N]``.
        boxes: (left, top, width, height) in pixels, int64 ``[N, 2, 4]``; zero where there is no digit.
        digits: which image of the split each digit is, int64 ``[N, 2]``; -1 where there is none.
    """

    images: Tensor
    counts: Tensor
    boxes: Tensor
    digits: Tensor


def scenes(name: str, split: str, num: int | None = None, seed: int = 0) -> Scenes:
    """Multi-digit scenes (Eslami et al. 2016; paper section 4.1), the same on every machine.

    A third of the scenes each has no, one and two digits (in expectation), different images of the
    split, cropped to the box of their ink and placed uniformly; two that overlap are placed again.

    Args:
        name: data set that the digits come from.
        split: "train" or "test".
        num: how many, at least 1; None is 60,000 for training and 10,000 for testing.
        seed: a whole number from 0.

    Raises:
        ValueError: an argument is none of these, or the digits do not fit: images without ink, or pairs that
            hardly ever fit side by side.
    """
    require(split in ("train", "test"), "split", "'train' or 'test'", split)
    num = NUM_SCENES[split] if num is None else num
    for argument, value, least in (("num", num, 1), ("seed", seed, 0)):
        require_int(argument, value, least)
    made = _scenes(name, split, int(num), int(seed))
    return Scenes(*(part.clone() for part in made))  # whoever writes into his own changes nobody else's


@lru_cache(maxsize=4)
def _scenes(name: str, split: str, num: int, seed: int) -> Scenes:
    images = getattr(load(name), split)
    check_images(f"dataset {name!r}: {split}", images)
    source = images.numpy()
    generator = np.random.Generator(np.random.PCG64([seed, split == "test"]))
    rows, columns = (source > 0).any(axis=2), (source > 0).any(axis=1)
    if not rows.any(axis=1).all():
        raise ValueError(
            f"dataset {name!r}: scenes need ink, pixels above 0, in every image, "
            f"got {(~rows.any(axis=1)).sum()} {split} images without"
        )
    top, left = rows.argmax(axis=1), columns.argmax(axis=1)
    sizes = np.stack(
        [SIDE - columns[:, ::-1].argmax(axis=1) - left, SIDE - rows[:, ::-1].argmax(axis=1) - top], 1
    )
    counts = generator.integers(3, size=num)
    digits = generator.integers(len(source), size=(num, 2))
    corners = np.zeros((num, 2, 2), dtype=np.int64)
    again = np.arange(num)
    for _ in range(MOST_PLACINGS):  # both digits and places anew: nearly all of MNIST's pairs fit somewhere
        digits[again] = generator.integers(len(source), size=(len(again), 2))
        free = CANVAS - sizes[digits[again]] + 1
        corners[again] = (generator.random((len(again), 2, 2)) * free).astype(np.int64)
        (a, b), (wide_a, wide_b) = corners[again].swapaxes(0, 1), sizes[digits[again]].swapaxes(0, 1)
        apart = ((a + wide_a <= b) | (b + wide_b <= a)).any(axis=1) & (digits[again, 0] != digits[again, 1])
        again = again[(counts[again] == 2) & ~apart]
        if not len(again):
            break
    else:
        width, height = np.median(sizes, axis=0)
        raise ValueError(
            f"dataset {name!r}: scenes need different images that fit side by side on {CANVAS} x {CANVAS} "
            f"pixels, got {len(source)} {split} images whose boxes of ink (pixels above 0) are mostly "
            f"{width:g} x {height:g}"
        )
    scenes = np.zeros((num, CANVAS, CANVAS), dtype=np.uint8)
    for scene, count in enumerate(counts):
        for digit, (x, y) in zip(digits[scene, :count], corners[scene], strict=False):
            wide, high = sizes[digit]
            ink = source[digit, top[digit] : top[digit] + high, left[digit] : left[digit] + wide]
            scenes[scene, y : y + high, x : x + wide] = ink
    there = np.arange(2) < counts[:, None]
    boxes = np.concatenate([corners, sizes[digits]], axis=2) * there[..., None]
    parts = (scenes, counts, boxes, np.where(there, digits, -1))
    return Scenes(*(torch.from_numpy(part) for part in parts))


def binarize(images: Tensor, noise: Noise) -> Tensor:
    """Stochastic binarisation: each pixel is 1 with the probability of its intensity.

    Args:
        images: uint8, any shape.
        noise: where the coins come from.

    Returns:
        float32 of 0 and 1, the same shape.  Done afresh at every presentation, as in Burda et al. (2016).

    Raises:
        ValueError: the images are of another type, such as floats in [0, 1].
    """
    if not (isinstance(images, Tensor) and images.dtype == torch.uint8):
        raise ValueError(f"images must be a tensor of uint8 from 0 to 255, got {described(images)}")
    return (noise.uniform(*images.shape) < images / 255).float()
