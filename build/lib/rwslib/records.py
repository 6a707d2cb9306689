"""The run store: what was run, on what, and what came out, in plain open files.

A record is a folder ``<store>/<experiment>/<key>/`` with ``config.json``, ``provenance.json``,
``metrics.npz`` and, where a page needs it, ``weights.safetensors``.  The key is a hash of the
configuration.  A record appears whole or not at all: it is written beside its place and renamed.

Two stores are read and one is written.  The published records (``book/results``) are only read; new
ones go to ``results_dir``, by default ``$RWSLIB_RESULTS`` or ``results/``.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: no locks, so do not train one configuration twice at once
    fcntl = None

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rwslib import __version__

FORMAT = 1
_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class RunRecord:
    """A finished run.

    Attributes:
        config: its configuration, plain JSON values.
        provenance: versions, hardware, wall time in seconds, date, commit.
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
        """Final parameters of the replicates, ``[R, ...]`` each, where the record keeps them."""
        return load_file(self.path / "weights.safetensors")


def published_dir() -> Path:
    """Folder of the published records, only read: ``$RWSLIB_PUBLISHED`` or ``book/results``."""
    return Path(os.environ.get("RWSLIB_PUBLISHED") or _ROOT / "book" / "results")


def default_results_dir() -> Path:
    """Folder of new records: ``$RWSLIB_RESULTS``, or ``results`` in the checkout, else where we are."""
    beside = _ROOT if (_ROOT / "pyproject.toml").exists() else Path()
    return Path(os.environ.get("RWSLIB_RESULTS") or beside / "results")


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
    for store in (published_dir(), results_dir or default_results_dir()):
        path = folder(config, store)
        if path.exists():
            return load(path, only)
    return None


def load(path: Path, only: Collection[str] | None = None) -> RunRecord:
    """Read one record; of its metrics those named in ``only``, or all.

    Raises:
        ValueError: the folder does not hold one whole record of a format this version knows.
    """
    path = Path(path)
    try:
        config = json.loads((path / "config.json").read_text())
        provenance = json.loads((path / "provenance.json").read_text())
        if provenance["format"] > FORMAT:
            raise ValueError(f"its format {provenance['format']} is newer than this version's {FORMAT}")
        with (path / "metrics.npz").open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            metrics = {name: file[name] for name in file.files if only is None or name in only}
        if key(config) != path.name:
            raise ValueError("its configuration does not hash to its name")
    except (OSError, KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"record {path} is damaged ({error}); delete this folder to run its configuration again"
        ) from error
    return RunRecord(config, provenance, metrics, path)


def iterate(store: Path) -> Iterator[RunRecord]:
    """All records of a store, in the order of their paths."""
    for path in sorted(Path(store).glob("[!.]*/[!.]*/config.json")):
        yield load(path.parent)


def writable(results_dir: str | Path | None = None) -> Path:
    """The folder for new records, made if need be.

    Raises:
        ValueError: nothing can be written there.
    """
    store = Path(results_dir or default_results_dir())
    try:
        store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=store):
            pass
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
    path = place.with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("w") as file:
            if fcntl is not None:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                except BlockingIOError:
                    yield False
                    return
                if not _still_named(path, file.fileno()):
                    continue  # its last holder removed it, and others may hold a new one
                _remove_leftovers(place)
            try:
                yield True
            finally:
                path.unlink(missing_ok=True)
            return


def _still_named(path: Path, open_file: int) -> bool:
    """Whether a path names this open file, and not a later one or none."""
    try:
        return os.path.samestat(path.stat(), os.fstat(open_file))
    except FileNotFoundError:
        return False


def _remove_leftovers(place: Path) -> None:
    """Remove what a killed process left half-written; only for who holds the lock."""
    for path in place.parent.glob(f".{place.name}.*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in place.parent.glob(f"{place.name}.[0-9]*"):  # see Trainer.save
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
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        temporary.chmod(0o755)
        (temporary / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
        (temporary / "provenance.json").write_text(json.dumps(provenance, indent=1, sort_keys=True) + "\n")
        # By name, so that a resumed run stores the bytes of an uninterrupted one.
        in_order = {name: metrics[name] for name in sorted(metrics)}
        np.savez_compressed(temporary / "metrics.npz", allow_pickle=False, **in_order)
        if weights:
            save_file(dict(weights), temporary / "weights.safetensors")
        if not path.exists():  # else another process stored the same run first
            temporary.rename(path)
    except SafetensorError as error:  # a full disk, mostly
        raise OSError(f"record {path} cannot be written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return load(path)


def publish(source: Path, weights: bool = True) -> Path:
    """Copy one finished record into the published store, with or without its weights; returns where it is."""
    record = load(source)
    target = folder(record.config, published_dir())
    if not target.exists():
        temporary = target.with_name(f".{target.name}")
        ignore = None if weights else shutil.ignore_patterns("weights.safetensors")
        shutil.copytree(source, temporary, ignore=ignore, dirs_exist_ok=True)
        temporary.rename(target)
    return target


def provenance(seconds: float, device: str, **more: Any) -> dict[str, Any]:
    """What a reader needs to judge a number: versions, hardware, wall time, date, commit."""
    import torch  # here, because looking at records does not need it and loading it takes seconds

    git = subprocess.run(
        ["git", "-C", str(_ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    hardware = {"processor": _processor(), "cores": os.cpu_count(), "machine": platform.machine()}
    if torch.device(device).type == "cuda":
        hardware["accelerator"] = torch.cuda.get_device_name(device)
    return {
        "format": FORMAT,
        "commit": git.stdout.strip() or None,
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
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
