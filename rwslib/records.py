"""The run store: what was run, on what, and what came out, in plain open files.

A record is a folder ``<store>/<experiment>/<key>/`` with ``config.json``, ``provenance.json``,
``metrics.npz`` and, where a page needs it, ``weights.safetensors``.  The key is a hash of the
configuration.  A record appears whole or not at all: it is written beside its place and renamed.

Two stores are read and one is written.  The published records (``book/results``) are only read; new
ones go to ``results_dir``, by default ``$RWSLIB_RESULTS`` or ``results/``.
"""

import hashlib
import io
import json
import os
import platform
import secrets
import shutil
import subprocess
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from rwslib import __version__, files

FORMAT = 1
WEIGHTS = "weights.safetensors"
# Set where a hook of git runs this, these variables would lead to the hook's repository.
_OTHERS_REPOSITORY = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR")


@dataclass(frozen=True)
class RunRecord:
    """A finished run.

    Attributes:
        config: its configuration, plain JSON values.
        provenance: versions, hardware, wall time in seconds, date, commit and whether it was modified.
        metrics: named float arrays; ``iteration [T]``, curves ``[R, T, ...]``, final values ``[R]``.
        path: its folder.
    """

    config: dict[str, Any]
    provenance: dict[str, Any]
    metrics: dict[str, np.ndarray]
    path: Path

    @property
    def key(self) -> str:
        """Hash of the configuration, the folder's name."""
        return self.path.name

    def weights(self) -> dict[str, np.ndarray]:
        """Final parameters of the replicates, ``[R, ...]`` each, where the record keeps them.

        Raises:
            FileNotFoundError: it keeps none.
            ValueError: they are not what was written.
        """
        path = self.path / WEIGHTS
        try:
            return safetensors.numpy.load(files.read_sealed(path))
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error})") from error


def published_dir() -> Path:
    """Folder of the published records, only read: ``$RWSLIB_PUBLISHED`` or ``book/results``."""
    return files.from_environment("RWSLIB_PUBLISHED") or files.ROOT / "book" / "results"


def results_store(results_dir: str | Path | None = None) -> Path:
    """Folder of new records, which may not be there yet.

    The one given, else ``$RWSLIB_RESULTS``, or ``results`` in the checkout, else where we are.
    """
    beside = files.ROOT if files.IS_CHECKOUT else Path()
    given = files.expanded(results_dir) if results_dir else files.from_environment("RWSLIB_RESULTS")
    return given or beside / "results"


def plain(config: Any) -> dict[str, Any]:
    """A configuration dataclass as plain JSON values.

    A field whose metadata say what was done ``before`` it existed is left out at that value, so that
    the records of then keep their keys.
    """
    later = {f.name: f.metadata["before"] for f in fields(config) if "before" in f.metadata}
    values = {k: v for k, v in asdict(config).items() if k not in later or v != later[k]}
    return json.loads(json.dumps(values))


def key(config: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that name a configuration: the start of the SHA-256 of its canonical JSON."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def folder(config: Mapping[str, Any], store: Path) -> Path:
    """Where a store keeps the record of a configuration."""
    return Path(store) / config["experiment"] / key(config)


def find(
    config: Mapping[str, Any], results_dir: str | Path | None = None, only: Collection[str] | None = None
) -> RunRecord | None:
    """The record of a configuration, the published one first, or None; for ``only`` see ``load``."""
    for store in (published_dir(), results_store(results_dir)):
        path = folder(config, store)
        if path.exists():
            return load(path, only)
    return None


def load(path: Path, only: Collection[str] | None = None) -> RunRecord:
    """Read one record; of its metrics those named in ``only``, or all.

    Of a curve in ``only`` whose last values are named as well, ``NAME_final``, these alone are read.

    Raises:
        ValueError: the folder does not hold one whole record of a format this version knows, or it
            cannot be read.
    """
    path = Path(path)
    try:
        config = json.loads((path / "config.json").read_bytes())
        provenance = json.loads((path / "provenance.json").read_bytes())
        if provenance["format"] > FORMAT:
            raise ValueError(f"its format {provenance['format']} is newer than this version's {FORMAT}")
        metrics = _metrics(path / "metrics.npz", only)
        if key(config) != path.name:
            raise ValueError("its configuration does not hash to its name")
    except (FileNotFoundError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"record {path} is damaged ({error}); delete this folder to run its configuration again"
        ) from error
    except OSError as error:  # it may be whole
        raise ValueError(f"record {path} cannot be read ({error.strerror or error})") from error
    return RunRecord(config, provenance, metrics, path)


def _metrics(path: Path, only: Collection[str] | None) -> dict[str, np.ndarray]:
    content = path.read_bytes()
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            names = [name for name in file.files if only is None or name in only]
            if only is not None:  # where the last values are wanted, too, they suffice
                names = [name for name in names if f"{name}_final" not in names]
            return {name: file[name] for name in names}
    except MemoryError:
        raise
    except Exception as error:  # a wrong byte raises whatever zipfile, zlib, tokenize and struct have
        raise ValueError(str(error) or type(error).__name__) from error


def iterate(store: Path) -> Iterator[RunRecord]:
    """All records of a store, in the order of their paths."""
    for path in sorted(Path(store).glob("[!.]*/[!.]*/config.json")):
        yield load(path.parent)


def writable(results_dir: str | Path | None = None) -> Path:
    """The folder for new records, made if need be.

    Raises:
        ValueError: nothing can be written there.
    """
    store = results_store(results_dir)
    try:
        files.make_writable(store)
    except OSError as error:
        raise ValueError(
            f"results_dir must be a folder that can be written, got {str(store)!r}: {error.strerror}"
        ) from error
    return store


@contextmanager
def lock(config: Mapping[str, Any], store: Path, wait: bool = True) -> Iterator[bool]:
    """Hold a configuration's lock, so that no two processes train it at once.

    The lock dies with the process that holds it.  Yields whether it is held; with ``wait`` it
    always is.
    """
    place = folder(config, store)
    place.parent.mkdir(parents=True, exist_ok=True)
    with files.locked(place.with_suffix(".lock"), wait) as held:
        if held:
            _remove_leftovers(place)
        yield held


def _remove_leftovers(place: Path) -> None:
    """Remove what a killed process left half-written; only for who holds the lock."""
    for path in place.parent.glob(f".{place.name}.*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(PermissionError):  # another user's
                path.unlink(missing_ok=True)


def save(
    config: Mapping[str, Any],
    metrics: Mapping[str, np.ndarray],
    provenance: Mapping[str, Any],
    store: Path,
    weights: Mapping[str, np.ndarray] | None = None,
) -> RunRecord:
    """Write a record so that it appears whole or not at all; one that is already there stays."""
    path = folder(config, store)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with files.naming(path):
            temporary.mkdir(parents=True)
            for name, content in (("config", config), ("provenance", provenance)):
                text = json.dumps(content, indent=1, sort_keys=True) + "\n"
                (temporary / f"{name}.json").write_text(text, encoding="utf-8")
            # By name, so that a resumed run stores the bytes of an uninterrupted one.
            in_order = {name: metrics[name] for name in sorted(metrics)}
            np.savez_compressed(temporary / "metrics.npz", allow_pickle=False, **in_order)
            if weights:
                serialized = safetensors.numpy.save(dict(weights), files.UNSEALED)
                files.write_sealed(temporary / WEIGHTS, serialized)
            if not path.exists():  # else another process stored the same run first
                temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return load(path)


def publish(source: Path, weights: bool = True) -> Path:
    """Copy one finished record into the published store, with or without its weights; returns where it is.

    A record that was published without its weights gets them.

    Raises:
        ValueError: there is no such record, no store to publish to, or the same configuration is
            published with other numbers.
    """
    source = files.expanded(source).resolve()
    if not (files.IS_CHECKOUT or os.environ.get("RWSLIB_PUBLISHED")):
        raise ValueError("nowhere to publish to: this is no checkout, and RWSLIB_PUBLISHED is not set")
    if not (source / "config.json").is_file():
        raise ValueError(f"record must be the folder of a finished record, got {str(source)!r}")
    record = load(source)
    target = folder(record.config, published_dir())
    names = ["config.json", "provenance.json", "metrics.npz"]
    if weights and (source / WEIGHTS).exists():
        record.weights()
        names.append(WEIGHTS)
    if target.exists():
        if any((source / name).read_bytes() != (target / name).read_bytes() for name in names[1:3]):
            raise ValueError(f"record must not be published with other numbers yet, but {target} is")
        names = [name for name in names if not (target / name).exists()]
    temporary = target.with_name(f".{target.name}")
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.copyfile(source / name, temporary / name)
        if target.exists():
            for name in names:
                (temporary / name).rename(target / name)
        else:
            temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


@lru_cache
def source() -> dict[str, Any]:
    """The commit of this checkout, and whether the library is modified; None where nobody can tell.

    A checkout that is no repository, only a folder in one, or was installed has no commit.
    """
    ours = {name: value for name, value in os.environ.items() if name not in _OTHERS_REPOSITORY}

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(files.ROOT), *arguments]
        done = subprocess.run(command, capture_output=True, check=True, env=ours, timeout=60)
        return os.fsdecode(done.stdout).rstrip("\n")

    try:
        if os.path.samefile(git("rev-parse", "--show-toplevel"), files.ROOT):
            changes = git("status", "--porcelain", "--", "rwslib")
            return {"commit": git("rev-parse", "HEAD"), "modified": bool(changes)}
    except (OSError, subprocess.SubprocessError):  # no git, no repository, no commit, or not for us
        pass
    return {"commit": None, "modified": None}


def provenance(seconds: float, device: str, **more: Any) -> dict[str, Any]:
    """What a reader needs to judge a number: versions, hardware, wall time, date, commit."""
    import torch  # here, because looking at records does not need it and loading it takes seconds

    hardware = {"processor": _processor(), "cores": os.cpu_count(), "machine": platform.machine()}
    if torch.device(device).type == "cuda":
        hardware["accelerator"] = torch.cuda.get_device_name(device)
    return {
        "format": FORMAT,
        **source(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "hardware": hardware,
        "seconds": round(seconds, 1),
        "versions": {
            "numpy": np.__version__,
            "python": platform.python_version(),
            "rwslib": __version__,
            "torch": torch.__version__,
        },
        **more,
    }


def training_time(found: Iterable[RunRecord]) -> str:
    """How long training took on what, as "7.5 core-hours on a processor, 9 minutes on an accelerator"."""
    minutes: dict[tuple[bool, str], float] = {}
    for record in found:
        hardware = record.provenance["hardware"]
        on_gpu = "accelerator" in hardware
        place = on_gpu, hardware["accelerator" if on_gpu else "processor"]
        minutes[place] = minutes.get(place, 0) + record.provenance["seconds"] / 60

    def said(on_gpu: bool, name: str, taken: float) -> str:
        unit = "" if on_gpu else "core-"
        how_long = f"{taken:.0f} {unit}minutes" if taken < 60 else f"{taken / 60:.1f} {unit}hours"
        return f"{how_long} on {name}"

    return ", ".join(said(*place, taken) for place, taken in sorted(minutes.items()))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
