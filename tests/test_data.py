"""Loading by checksum, downloads that leave nothing half-written, and binarisation."""

import errno
import gzip
import hashlib
import io
import itertools
import math
import urllib.error
import urllib.request
from fractions import Fraction
from http.client import IncompleteRead
from pathlib import Path

import numpy as np
import pytest
import torch

from rwslib import data
from rwslib.data import DataError, binarize
from rwslib.noise import Noise

# -- a small stand-in for the four files of MNIST ----------------------------------------------------

FILES = list(data.CHECKSUMS)
MIRRORS = ("https://one.invalid/", "https://two.invalid/")


def idx(values):
    """An array of bytes as an IDX file."""
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
    return header + values.tobytes()


ARRAYS = [
    np.random.default_rng(i).integers(0, 256, size=shape, dtype=np.uint8)
    for i, shape in enumerate([(5, 28, 28), (5,), (3, 28, 28), (3,)])
]
CONTENTS = dict(zip(FILES, map(idx, ARRAYS), strict=True))
PACKED = {file: gzip.compress(content) for file, content in CONTENTS.items()}
OTHER = gzip.compress(idx(ARRAYS[0][::-1]))  # whole, but not what the checksums say


@pytest.fixture
def target(monkeypatch, tmp_path):
    """The folder in which MNIST is looked for; its checksums are those of the stand-in."""
    checksums = {file: hashlib.sha256(content).hexdigest() for file, content in CONTENTS.items()}
    monkeypatch.setattr(data, "CHECKSUMS", checksums)
    monkeypatch.setattr(data, "MIRRORS", MIRRORS)
    monkeypatch.setenv("RWSLIB_DATA", str(tmp_path / "data"))
    return tmp_path / "data" / "mnist"


def put(target, files=PACKED):
    target.mkdir(parents=True)
    for file, content in files.items():
        (target / f"{file}.gz").write_bytes(content)


def refusal(function, *arguments):
    """The one sentence with which a call is refused."""
    with pytest.raises(DataError) as error:
        function(*arguments)
    message = str(error.value)
    assert message
    assert "\n" not in message
    return message


def assert_loads(found):
    for actual, expected in zip(found, ARRAYS, strict=True):
        assert actual.dtype == torch.uint8
        np.testing.assert_array_equal(actual.numpy(), expected)


# -- reading -------------------------------------------------------------------------------------------


def test_packed_files_are_read(target):
    put(target)
    assert_loads(data.load("mnist"))
    assert data.status() == {str(target / f"{file}.gz"): "ok" for file in FILES}


def test_unpacked_files_are_read(target):
    target.mkdir(parents=True)
    for file, content in CONTENTS.items():
        (target / file).write_bytes(content)
    assert_loads(data.load("mnist"))


LAYOUTS = {  # where other libraries and archives leave a file, from the folder of RWSLIB_DATA
    "torchvision, unpacked": lambda file: f"MNIST/raw/{file}",
    "torchvision, packed": lambda file: f"MNIST/raw/{file}.gz",
    "torchvision, in our folder": lambda file: f"mnist/MNIST/raw/{file}.gz",
    "upper case": lambda file: f"MNIST/{file}.gz",
    "the folder itself": lambda file: f"{file}.gz",
    "with a dot": lambda file: f"mnist/{file.replace('-idx', '.idx')}",
    "with a dot, packed": lambda file: f"mnist/{file.replace('-idx', '.idx')}.gz",
    "a folder per file": lambda file: f"mnist/{file}/{file}",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_that_other_libraries_left_are_read_and_not_fetched_again(layout, target, serve):
    places = {file: target.parent / LAYOUTS[layout](file) for file in FILES}
    for file, place in places.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(PACKED[file] if place.suffix == ".gz" else CONTENTS[file])
    assert_loads(data.load("mnist"))
    assert data.status() == {str(place): "ok" for place in places.values()}
    before = sorted(path for path in target.parent.rglob("*"))
    asked = serve(no_network, no_network)
    data.fetch()
    assert asked == []
    assert sorted(path for path in target.parent.rglob("*")) == before


def test_a_wrong_file_of_another_library_is_refused_with_its_path(target):
    raw = target.parent / "MNIST/raw"
    raw.mkdir(parents=True)
    for file, content in PACKED.items():
        (raw / f"{file}.gz").write_bytes(OTHER if file == FILES[3] else content)
    message = refusal(data.load, "mnist")
    assert str(raw / f"{FILES[3]}.gz") in message
    assert "wrong SHA-256" in message


def test_what_is_loaded_can_be_written_to(target):
    """A tensor on top of read-only bytes would only warn, and then change them."""
    put(target)
    data.load("mnist").train.zero_()
    assert_loads(data.load("mnist"))


@pytest.mark.parametrize("missing", FILES)
def test_a_missing_file_is_refused_with_what_to_do(target, missing):
    put(target, {file: content for file, content in PACKED.items() if file != missing})
    message = refusal(data.load, "mnist")
    for part in (missing, str(target), "python -m rwslib data fetch mnist", "RWSLIB_DATA", "'digits'"):
        assert part in message
    assert [file for file, found in data.status().items() if found != "ok"] == [missing]


DAMAGES = {
    "wrong checksum": (OTHER, "wrong SHA-256"),
    "truncated": (PACKED[FILES[2]][:-20], "cannot be unpacked"),
    "without its trailer": (PACKED[FILES[2]][:-8], "cannot be unpacked"),
    "empty": (b"", "wrong SHA-256"),
    "not packed": (CONTENTS[FILES[2]], "cannot be unpacked"),
    "a page of HTML": (b"<html>Not found</html>", "cannot be unpacked"),
    "flipped bits": (PACKED[FILES[2]][:50] + b"\xff" * 20 + PACKED[FILES[2]][70:], "cannot be unpacked"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_with_its_path(target, damage):
    content, message = DAMAGES[damage]
    put(target, PACKED | {FILES[2]: content})
    found = refusal(data.load, "mnist")
    assert message in found
    assert str(target / f"{FILES[2]}.gz") in found
    assert "move it away" in found
    assert [file for file, word in data.status().items() if word != "ok"] == [FILES[2]]


@pytest.mark.parametrize("content", [CONTENTS[FILES[0]][:-1], CONTENTS[FILES[0]] + b"\0", CONTENTS[FILES[2]]])
def test_a_damaged_unpacked_file_is_refused(target, content):
    put(target)
    (target / FILES[0]).write_bytes(content)
    assert "wrong SHA-256" in refusal(data.load, "mnist")


def test_a_folder_that_may_not_be_read_is_refused(target, monkeypatch):
    put(target)

    def forbidden(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", forbidden)
    for call in (data.load, "mnist"), (data.fetch,):
        message = refusal(*call)
        assert "Permission denied" in message
        assert "away" not in message  # what could not be read may be whole
    assert set(data.status()) == set(FILES)
    assert all("Permission denied" in state for state in data.status().values())


def test_an_unknown_data_set_is_refused_with_those_known():
    with pytest.raises(ValueError, match=r"dataset must be one of \['mnist', 'digits'\], got 'MNIST'"):
        data.load("MNIST")


def test_the_folder_is_the_variable_or_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("RWSLIB_DATA", str(tmp_path / "here"))
    assert data.folder() == tmp_path / "here"
    monkeypatch.setenv("RWSLIB_DATA", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data.folder() == tmp_path / "cache" / "rwslib"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data.folder() == tmp_path / ".cache" / "rwslib"


# -- downloading ---------------------------------------------------------------------------------------


class Response(io.BytesIO):
    """What ``urlopen`` returns."""

    def __init__(self, content, length=None):
        super().__init__(content)
        self.headers = {} if length is None else {"Content-Length": str(length)}


class Breaking(Response):
    """A connection that ends in the middle, with what ``http.client`` raises then."""

    def read(self, size=-1):
        raise IncompleteRead(b"", 100)


def whole(file):
    return Response(PACKED[file], len(PACKED[file]))


def no_network(file):
    raise urllib.error.URLError(OSError("no route to host"))


def not_there(file):
    raise urllib.error.HTTPError(file, 404, "Not Found", {}, None)


def too_slow(file):
    raise TimeoutError("timed out")


FAILURES = {  # and what the message says of each mirror
    "no network": (no_network, "no route to host"),
    "not there": (not_there, "404"),
    "too slow": (too_slow, "timed out"),
    "connection breaks": (
        lambda file: Response(PACKED[file][:-20], len(PACKED[file])),
        "connection broke after",
    ),
    "connection breaks with an error": (lambda file: Breaking(PACKED[file]), "IncompleteRead"),
    "truncated": (lambda file: Response(PACKED[file][:-20]), "ended before"),
    "wrong bytes": (lambda file: Response(OTHER, len(OTHER)), "wrong SHA-256"),
    "not packed": (lambda file: Response(b"<html>Sign in to this network</html>"), "Not a gzipped file"),
}


@pytest.fixture
def serve(monkeypatch, target):
    """Let each mirror answer with a function of the file; returns the list of what was asked for."""

    def start(*answers):
        asked = []

        def urlopen(url, timeout):
            assert 0 < timeout < 60
            mirror, file = url.rsplit("/", 1)
            asked.append((MIRRORS.index(f"{mirror}/"), file.removesuffix(".gz")))
            return answers[asked[-1][0]](asked[-1][1])

        monkeypatch.setattr(urllib.request, "urlopen", urlopen)
        return asked

    return start


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_fetched_is_whole_and_loads(target, serve):
    asked = serve(whole, no_network)
    data.fetch()
    assert asked == [(0, file) for file in FILES]
    assert names(target) == sorted(f"{file}.gz" for file in FILES)
    assert_loads(data.load("mnist"))

    data.fetch()
    assert len(asked) == len(FILES)  # nobody is asked twice


@pytest.mark.parametrize("failure", FAILURES)
def test_the_next_mirror_is_asked_when_one_fails(target, serve, failure):
    serve(FAILURES[failure][0], whole)
    data.fetch()
    assert names(target) == sorted(f"{file}.gz" for file in FILES)
    assert_loads(data.load("mnist"))


@pytest.mark.parametrize("failure", FAILURES)
def test_nothing_half_written_is_left_when_all_mirrors_fail(target, serve, failure):
    answer, reason = FAILURES[failure]
    asked = serve(answer, answer)
    message = refusal(data.fetch)
    assert asked == [(0, FILES[0]), (1, FILES[0])]
    assert FILES[0] in message
    assert all(mirror in message for mirror in MIRRORS)
    assert message.count(reason) == len(MIRRORS)
    assert names(target) == []


def test_what_is_there_already_is_kept_and_not_fetched_again(target, serve):
    def until_the_third(file):
        return whole(file) if file in FILES[:2] else no_network(file)

    serve(until_the_third, no_network)
    refusal(data.fetch)
    assert names(target) == sorted(f"{file}.gz" for file in FILES[:2])
    asked = serve(whole, no_network)
    data.fetch()
    assert asked == [(0, file) for file in FILES[2:]]
    assert_loads(data.load("mnist"))


def test_a_damaged_file_is_not_silently_replaced(target, serve):
    put(target, {FILES[0]: OTHER})
    asked = serve(whole, whole)
    assert str(target / f"{FILES[0]}.gz") in refusal(data.fetch)
    assert asked == []
    assert (target / f"{FILES[0]}.gz").read_bytes() == OTHER


def test_an_interrupted_download_leaves_nothing(target, serve, monkeypatch):
    def interrupted(path, content):
        with path.open("wb") as file:
            file.write(content[:10])
        raise KeyboardInterrupt

    serve(whole, whole)
    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        data.fetch()
    assert names(target) == []


def test_a_full_disk_leaves_nothing(target, serve, monkeypatch):
    def full(path, content):
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    asked = serve(whole, whole)
    monkeypatch.setattr(Path, "write_bytes", full)
    message = refusal(data.fetch)
    assert "No space left on device" in message
    assert str(target) in message
    assert asked == [(0, FILES[0])]  # another mirror would not help
    assert names(target) == []


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_fetched(target, serve):
    target.parent.write_text("a file where the folder should be")
    asked = serve(whole, whole)
    message = refusal(data.fetch)
    assert str(target) in message
    assert "set RWSLIB_DATA" in message
    assert asked == []


def test_a_folder_without_permission_is_refused_before_anything_is_fetched(target, serve, monkeypatch):
    def forbidden(**arguments):
        raise PermissionError(errno.EACCES, "Permission denied")

    asked = serve(whole, whole)
    monkeypatch.setattr(data.files.tempfile, "TemporaryFile", forbidden)
    assert "Permission denied" in refusal(data.fetch)
    assert asked == []
    assert names(target) == []


# -- the data sets themselves --------------------------------------------------------------------------

# how often 0, 1, ..., 9 occur; as published with MNIST
MNIST_COUNTS = {
    "train": [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
    "test": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
}


def test_mnist_is_mnist():
    if not (data.folder() / "mnist").exists():
        pytest.skip(f"MNIST is not in {data.folder()}; set RWSLIB_DATA to the folder that holds mnist/")
    found = data.load("mnist")
    for split, labels in (("train", found.train_labels), ("test", found.test_labels)):
        images = getattr(found, split)
        assert images.dtype == labels.dtype == torch.uint8
        assert images.shape == (len(labels), 28, 28)
        assert labels.bincount().tolist() == MNIST_COUNTS[split]
    assert (found.train.float().mean() / 255).item() == pytest.approx(0.1307, abs=5e-5)


def test_embedded_digits_have_the_form_of_mnist():
    found, again = data.load("digits"), data.load("digits")
    assert found.train.shape == (1498, 28, 28)
    assert found.test.shape == (299, 28, 28)
    assert found.train_labels.shape == (1498,)
    assert found.test_labels.shape == (299,)
    for value, same in zip(found, again, strict=True):
        assert value.dtype == torch.uint8
        assert torch.equal(value, same)
    for images, labels in ((found.train, found.train_labels), (found.test, found.test_labels)):
        assert (labels.bincount() > 0.08 * len(labels)).all()
        assert len(labels.unique()) == 10
        assert images.max() == 255
        frame = torch.ones(28, 28, dtype=torch.bool)
        frame[4:24, 4:24] = False
        assert (images[:, frame] == 0).all()


def test_embedded_digits_have_the_same_bytes_on_every_machine():
    sums = [hashlib.sha256(part.numpy().tobytes()).hexdigest() for part in data.load("digits")]
    assert sums == [
        "87bc2d5e132cb19aafb4d4e86e20c4b4aca26c7844547057948b27a194d08fd3",
        "765a2a78cd9f9d1cad18b105e274b82f5798862c5beffeb49d33833211eea933",
        "76f00afd92f9144b62f262269c9bf008f4501da84bd6e5628f0e1673b609844e",
        "02b7c06220a28a6d26380530a0b6c99bfba5893c2a60feec088df066558671dc",
    ]


def test_embedded_digits_are_those_that_scikit_learn_has():
    """Its file has this checksum; the repository that both come from lists so many of each class."""
    content = gzip.decompress(data.EMBEDDED.read_bytes())
    checksum = "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8"
    assert hashlib.sha256(content).hexdigest() == checksum
    found = data.load("digits")
    labels = torch.cat([found.train_labels, found.test_labels])
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_embedded_digits_are_interpolated_exactly_and_halves_round_up():
    """Against fractions, on images of which some have pixels exactly between two whole numbers."""
    found = data.load("digits").train[:, 4:24, 4:24]
    rows = np.loadtxt(data.EMBEDDED, dtype=int, delimiter=",")[:, :64]
    small = rows.reshape(-1, 8, 8)[np.arange(1797) % 6 != 5]
    halves = 0
    for digit, image in zip(found[:12].tolist(), small[:12].tolist(), strict=True):
        for row, column in itertools.product(range(20), repeat=2):
            exact = sum(
                tent(row, i) * tent(column, j) * image[i][j] * Fraction(255, 16)
                for i, j in itertools.product(near(row), near(column))
            )
            halves += exact % 1 == Fraction(1, 2)
            assert digit[row][column] == math.floor(exact + Fraction(1, 2))
    assert halves > 0


def tent(target, source):
    """Weight of one of 8 pixels at one of 20 places over the same width."""
    return max(0, 1 - abs(Fraction(7 * target, 19) - source))


def near(target):
    return range(7 * target // 19, min(7, 7 * target // 19 + 1) + 1)


def test_no_embedded_test_image_is_training_data():
    found = data.load("digits")
    train, test = ({image.numpy().tobytes() for image in images} for images in (found.train, found.test))
    assert not train & test
    assert len(train | test) == 1797


def test_embedded_labels_belong_to_their_images():
    """The nearest training image has the test image's label, nearly always."""
    found = data.load("digits")
    distances = torch.cdist(found.test.flatten(1).float(), found.train.flatten(1).float())
    nearest = found.train_labels[distances.argmin(dim=1)]
    assert (nearest == found.test_labels).float().mean() > 0.97


# -- binarisation --------------------------------------------------------------------------------------


def test_binarised_pixels_have_their_intensity_as_mean():
    """Every intensity 20 000 times, five standard errors; black is never on and white is always."""
    repeats = 20_000
    images = torch.arange(256, dtype=torch.uint8).expand(repeats, 256)
    pixels = binarize(images, Noise(1))
    assert pixels.dtype == torch.float32
    assert pixels.shape == images.shape
    assert ((pixels == 0) | (pixels == 1)).all()
    intensity = torch.arange(256) / 255
    error = (intensity * (1 - intensity) / repeats).sqrt()
    assert ((pixels.double().mean(dim=0) - intensity).abs() <= 5 * error).all()  # with no error at both ends


def test_every_pixel_of_every_image_has_its_own_coin():
    """No two pixels of an image are correlated, nor two images; five standard errors."""
    many = 5000
    pixels = binarize(torch.full((many, 8), 128, dtype=torch.uint8), Noise(2)).T
    images = binarize(torch.full((8, many), 128, dtype=torch.uint8), Noise(2))
    for table in (pixels, images):
        correlation = torch.corrcoef(table) - torch.eye(8)
        assert correlation.abs().max() < 5 / math.sqrt(many)


def test_the_same_noise_gives_the_same_pixels_and_other_noise_others():
    images = data.load("digits").test
    first, again, other = (binarize(images, Noise(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    noise = Noise(3)
    assert not torch.equal(binarize(images, noise), binarize(images, noise))
