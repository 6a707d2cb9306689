"""Files and folders whoever owns them: paths, locks, checksums, and what the environment says of them."""

import errno
import hashlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: no locks, so do not train one configuration twice at once
    fcntl = None  # type: ignore[assignment]

ROOT = Path(__file__).resolve().parent.parent
IS_CHECKOUT = (ROOT / "pyproject.toml").exists()  # else the library is installed without its book
FOLDERS = ("RWSLIB_RESULTS", "RWSLIB_PUBLISHED", "RWSLIB_DATA")
UNSEALED = {"sha256": 64 * "0"}  # metadata of a safetensors file that is to carry its own checksum
LARGEST_HEADER = 10**8  # bytes, the format's own limit
_SEAL = re.compile(rb'"sha256":"([^"]{64})"')
WAIT_SECONDS = 1.0


# -- paths and the environment ---------------------------------------------------------------------


def expanded(path: str | Path) -> Path:
    """A path with ``~`` written out.

    Raises:
        ValueError: there is no such home.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{str(path)!r} begins with a home folder that does not exist here") from None


def from_environment(name: str) -> Path | None:
    """The folder that a variable of the environment names; None where it is not set."""
    value = os.environ.get(name)
    try:
        return expanded(value) if value else None
    except ValueError as error:
        raise ValueError(f"{name} must be a folder: {error}") from None


def seconds_from_environment(name: str, default: float) -> float:
    """The seconds that a variable of the environment holds.

    Raises:
        ValueError: it holds something else.
    """
    value = os.environ.get(name) or str(default)
    with suppress(ValueError):
        if (seconds := float(value)) >= 0:
            return seconds
    raise ValueError(f"{name} must be a number of seconds of at least 0, got {value!r}")


def settle_environment() -> None:
    """Let child processes find this library and these folders, whatever folder they work in."""
    for name in FOLDERS:
        if folder := from_environment(name):
            os.environ[name] = str(folder.absolute())
    paths = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if IS_CHECKOUT:  # another one may be installed
        paths = [str(ROOT), *(path for path in paths if path != str(ROOT))]
    if paths:
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)


def make_writable(folder: Path) -> None:
    """Make a folder if need be; an OSError says why nothing can be written there."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name a path in errors of writing that name none, as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


# -- checksums -------------------------------------------------------------------------------------


def write_sealed(path: Path, content: bytes) -> None:
    """Write a safetensors file, and into it the SHA-256 of all its bytes.

    Args:
        path: where to.
        content: the file, made with ``UNSEALED`` among its metadata, for which the checksum is put in.
    """
    place = _SEAL.search(content)
    assert place, "content was made without UNSEALED"
    start, end = place.span(1)
    with naming(path), path.open("wb") as file:
        file.write(content[:start] + hashlib.sha256(content).hexdigest().encode())
        file.write(memoryview(content)[end:])


def read_sealed(path: Path) -> bytes:
    """Read a safetensors file and check it against its checksum, if it has one.

    Raises:
        ValueError: some byte is not what was written.
    """
    content = path.read_bytes()
    found = _SEAL.search(content[: 8 + min(int.from_bytes(content[:8], "little"), LARGEST_HEADER)])
    if found:
        start, end = found.span(1)
        digest = hashlib.sha256(content[:start])
        digest.update(UNSEALED["sha256"].encode())
        digest.update(memoryview(content)[end:])
        if digest.hexdigest().encode() != found[1]:
            raise ValueError("its bytes are not those that were written: the checksum differs")
    return content


def metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, of which no more is read.

    Raises:
        ValueError: there are none.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = file.read(min(size, LARGEST_HEADER))
    try:
        return json.loads(header)["__metadata__"]
    except (KeyError, TypeError) as error:
        raise ValueError("it has no metadata") from error


# -- locks -----------------------------------------------------------------------------------------


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a lock file, which lives no longer than the process that holds it.

    Yields whether it is held; with ``wait`` it always is.  Another user's lock is waited for, too,
    even where nothing else may be done with it.
    """
    said = False
    while True:
        file = _open_lock(path)
        try:
            held = file is not None and _lock(file, wait)
            if held and file is not None and not _still_named(path, file):
                continue  # its last holder removed it, and others may hold a new one
            if held or not wait:
                try:
                    yield held
                finally:
                    if held:
                        with suppress(PermissionError):  # another user's, in a folder that protects them
                            path.unlink(missing_ok=True)
                return
        finally:
            if file is not None:
                os.close(file)
        if not said:
            print(f"waiting until another user's {path} is gone", file=sys.stderr, flush=True)
            said = True
        time.sleep(WAIT_SECONDS)


def _open_lock(path: Path) -> int | None:
    """A lock file, made if need be; another user's for reading only, or None where that is not allowed."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        if not path.exists():  # the folder forbids it, or the lock has gone at this moment
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    with suppress(PermissionError, FileNotFoundError):
        return os.open(path, os.O_RDONLY)
    return None


def _lock(file: int, wait: bool) -> bool:
    """Lock an open file, waiting if so asked; False where it is not to be had."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:  # NFS locks for writing only what is open for writing
        if not isinstance(error, BlockingIOError) and error.errno != errno.EBADF:
            raise
        return False
    return True


def _still_named(path: Path, open_file: int) -> bool:
    """Whether a path names this open file, and not a later one or none."""
    try:
        return os.path.samestat(path.stat(), os.fstat(open_file))
    except FileNotFoundError:
        return False
