"""Data sets: MNIST by checksum, the digits that come with scikit-learn, and binarisation.

MNIST is read from ``$RWSLIB_DATA/mnist`` or, without that variable, from the user's cache folder,
where ``fetch`` puts it.  Nothing falls back silently: a run says which data set it uses.
"""

import gzip
import hashlib
import os
import sys
import tempfile
import urllib.request
import zlib
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from rwslib.noise import Noise

DATASETS = ("mnist", "digits")
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
TIMEOUT_SECONDS = 20.0
CANVAS = 50  # side of a multi-digit scene
NUM_SCENES = {"train": 60_000, "test": 10_000}


class DataError(OSError):
    """A data set is missing, damaged or cannot be fetched; the message says what to do."""


class Digits(NamedTuple):
    """Grey images of digits, uint8 ``[N, 28, 28]``, and their labels, uint8 ``[N]``."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def folder() -> Path:
    """Where data live: ``$RWSLIB_DATA``, else ``rwslib`` in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("RWSLIB_DATA") or Path(cache) / "rwslib")


def load(name: str) -> Digits:
    """A data set by its name.

    Args:
        name: "mnist" (60 000 + 10 000 images) or "digits" (scikit-learn's 1 797 real handwritten
            digits of 8x8 pixels, enlarged to 20x20 and framed to 28x28 as MNIST's are; every sixth
            is test data).

    Raises:
        ValueError: no such data set.
        DataError: MNIST is not there, or not what its checksums say.
    """
    if name == "digits":
        return _embedded_digits()
    if name == "mnist":
        return Digits(*(torch.from_numpy(_idx(_read(file))) for file in CHECKSUMS))
    raise ValueError(f"dataset must be one of {list(DATASETS)}, got {name!r}")


def _embedded_digits() -> Digits:
    from sklearn.datasets import load_digits  # a second of imports that only this needs

    images, labels = load_digits(return_X_y=True)
    small = images.astype(np.int64).reshape(-1, 8, 8)  # 0 to 16
    # Bilinear, in whole numbers so that halves round up on every machine: pixel i of 20 reads the
    # small image at 7i/19, and weights are multiples of 1/19.
    weights = (19 - np.abs(7 * np.arange(20)[:, None] - 19 * np.arange(8))).clip(0)
    large = weights @ small @ weights.T
    full = 19 * 19 * 16
    grey = torch.from_numpy(np.pad((2 * 255 * large + full) // (2 * full), ((0, 0), (4, 4), (4, 4))))
    grey, labels = grey.to(torch.uint8), torch.from_numpy(labels).to(torch.uint8)
    is_test = torch.arange(len(grey)) % 6 == 5
    return Digits(grey[~is_test], labels[~is_test], grey[is_test], labels[is_test])


def _read(file: str) -> bytes:
    """The uncompressed bytes of one file of MNIST, checked."""
    for path in (folder() / "mnist" / file, folder() / "mnist" / f"{file}.gz"):
        try:
            if not path.exists():
                continue
            content = path.read_bytes()
            content = gzip.decompress(content) if path.suffix == ".gz" else content
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} cannot be read ({error}); delete it and fetch MNIST again") from error
        if hashlib.sha256(content).hexdigest() != CHECKSUMS[file]:
            raise DataError(
                f"{path} is not the MNIST file it should be (wrong SHA-256); delete it and fetch MNIST again"
            )
        return content
    raise DataError(
        f"MNIST's {file} is not in {folder() / 'mnist'}: run `python -m rwslib data fetch mnist`, "
        "or set RWSLIB_DATA to the folder that holds mnist/, or use dataset 'digits'"
    )


def _idx(content: bytes) -> np.ndarray:
    """An IDX file of unsigned bytes as an array."""
    num_axes = content[3]
    shape = np.frombuffer(content, ">i4", num_axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * num_axes).reshape(shape).copy()


def status() -> dict[str, str]:
    """For each file of MNIST: "ok", or what is wrong with it."""
    found = {}
    for file in CHECKSUMS:
        try:
            _read(file)
            found[file] = "ok"
        except DataError as error:
            found[file] = str(error)
    return found


def fetch() -> None:
    """Download what is missing of MNIST; each file appears whole and checked, or not at all.

    Raises:
        DataError: no mirror gives the right file, or the folder cannot be written.
    """
    target = folder() / "mnist"
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target):
            pass
    except OSError as error:
        raise DataError(
            f"{target} cannot be written ({error.strerror}); set RWSLIB_DATA to another folder"
        ) from error
    for file in CHECKSUMS:
        if not any((target / name).exists() for name in (file, f"{file}.gz")):
            _download(file, target)
        _read(file)


def _download(file: str, target: Path) -> None:
    failures = []
    for mirror in MIRRORS:
        try:
            packed = _get(f"{mirror}{file}.gz")
            content = gzip.decompress(packed)
        except (OSError, EOFError, zlib.error, HTTPException) as error:  # URLError is an OSError
            failures.append(f"{mirror}: {error}")
            continue
        if hashlib.sha256(content).hexdigest() != CHECKSUMS[file]:
            failures.append(f"{mirror}: wrong SHA-256")
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
        size = int(response.headers.get("Content-Length") or 0) or None
        parts = []
        with tqdm(
            total=size,
            unit="B",
            unit_scale=True,
            desc=url.rsplit("/", 1)[1],
            leave=False,
            disable=not sys.stderr.isatty(),
        ) as bar:
            while part := response.read(2**16):
                parts.append(part)
                bar.update(len(part))
    content = b"".join(parts)
    if size is not None and len(content) != size:
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


@lru_cache(maxsize=4)
def scenes(name: str, split: str, num: int | None = None, seed: int = 0) -> Scenes:
    """Multi-digit scenes (Eslami et al. 2016; paper section 4.1), the same on every machine.

    A third of the scenes each has no, one and two digits (in expectation), different images of the
    split, cropped to the box of their ink and placed uniformly; two that overlap are placed again.

    Args:
        name: data set that the digits come from.
        split: "train" or "test".
        num: how many, at least 1; None is 60 000 for training and 10 000 for testing.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    num = NUM_SCENES[split] if num is None else num
    if not isinstance(num, int) or isinstance(num, bool) or num < 1:
        raise ValueError(f"num must be a whole number of at least 1, got {num!r}")
    source = getattr(load(name), split).numpy()
    generator = np.random.Generator(np.random.PCG64([seed, split == "test"]))
    rows, columns = (source > 0).any(axis=2), (source > 0).any(axis=1)
    top, left = rows.argmax(axis=1), columns.argmax(axis=1)
    sizes = np.stack(
        [28 - columns[:, ::-1].argmax(axis=1) - left, 28 - rows[:, ::-1].argmax(axis=1) - top], 1
    )
    counts = generator.integers(3, size=num)
    digits = generator.integers(len(source), size=(num, 2))
    corners = np.zeros((num, 2, 2), dtype=np.int64)
    again = np.arange(num)
    while len(again):  # both digits and places anew: nearly all of MNIST's pairs fit somewhere
        digits[again] = generator.integers(len(source), size=(len(again), 2))
        free = CANVAS - sizes[digits[again]] + 1
        corners[again] = (generator.random((len(again), 2, 2)) * free).astype(np.int64)
        (a, b), (wide_a, wide_b) = corners[again].swapaxes(0, 1), sizes[digits[again]].swapaxes(0, 1)
        apart = ((a + wide_a <= b) | (b + wide_b <= a)).any(axis=1) & (digits[again, 0] != digits[again, 1])
        again = again[(counts[again] == 2) & ~apart]
    images = np.zeros((num, CANVAS, CANVAS), dtype=np.uint8)
    for scene, count in enumerate(counts):
        for digit, (x, y) in zip(digits[scene, :count], corners[scene], strict=False):
            wide, high = sizes[digit]
            ink = source[digit, top[digit] : top[digit] + high, left[digit] : left[digit] + wide]
            images[scene, y : y + high, x : x + wide] = ink
    there = np.arange(2) < counts[:, None]
    boxes = np.concatenate([corners, sizes[digits]], axis=2) * there[..., None]
    parts = (images, counts, boxes, np.where(there, digits, -1))
    return Scenes(*(torch.from_numpy(part) for part in parts))


def binarize(images: Tensor, noise: Noise) -> Tensor:
    """Stochastic binarisation: each pixel is 1 with the probability of its intensity.

    Args:
        images: uint8, any shape.
        noise: where the coins come from.

    Returns:
        float32 of 0 and 1, the same shape.  Done afresh at every presentation, as in Burda et al. (2016).
    """
    return (noise.uniform(*images.shape) < images / 255).float()
