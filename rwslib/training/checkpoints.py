"""The state of training, and the file that keeps it."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError

from rwslib import files
from rwslib.training.optimizers import Tensors


@dataclass(frozen=True)
class State:
    """All that training needs to go on.

    Attributes:
        iteration: optimiser steps taken.
        seconds: of training so far.
        params: parameters and changing buffers of the replicates, ``[R, ...]`` each.
        moments: those of the optimiser, ``[R, ...]`` each.
        curves: metrics by name, one array for each log.
    """

    iteration: int
    seconds: float
    params: Tensors
    moments: tuple[Tensors, ...]
    curves: dict[str, list[np.ndarray]]

    def save(self, path: Path, asked: int, identity: dict[str, str]) -> None:
        """Write the state atomically (safetensors; nothing is pickled).

        Args:
            asked: iterations of the whole run.
            identity: what this run is, in words; another one will not go on from it.
        """
        content = {f"params/{name}": value for name, value in self.params.items()}
        for i, moment in enumerate(self.moments):
            content |= {f"moment{i}/{name}": value for name, value in moment.items()}
        for name, values in self.curves.items():
            content[f"curve/{name}"] = torch.from_numpy(np.stack(values))
        about = {"iteration": self.iteration, "asked": asked, "seconds": self.seconds}
        metadata = {name: str(value) for name, value in about.items()} | {"identity": json.dumps(identity)}
        content = {name: value.contiguous().cpu() for name, value in content.items()}
        serialized = safetensors.torch.save(content, metadata | files.UNSEALED)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            files.write_sealed(temporary, serialized)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def load(self, path: Path, device: str, identity: dict[str, str]) -> "State":
        """Read a state that has the names of this one.

        Raises:
            ValueError: the file is not a whole checkpoint, or one of another run.
        """
        try:
            stored = json.loads(files.metadata(path).get("identity", "{}"))
            content = safetensors.torch.load(files.read_sealed(path))
            # copied: from an unaligned address matrix products round otherwise
            content = {name: value.to(device, copy=True) for name, value in content.items()}
            iteration, _, seconds = peek(path)
            shapes = {name: list(value.shape) for name, value in content.items()}
            identity = identity | {f"shape of {name}": str(list(v.shape)) for name, v in self.params.items()}
            stored |= {f"shape of {name}": str(shapes.get(f"params/{name}")) for name in self.params}
            differs = [name for name, value in identity.items() if stored.get(name, value) != value]
            if not differs:
                params = {name: content[f"params/{name}"] for name in self.params}
                moments = [
                    {name: content[f"moment{i}/{name}"] for name in moment}
                    for i, moment in enumerate(self.moments)
                ]
                curves = {k: list(v.cpu().numpy()) for k, v in content.items() if k.startswith("curve/")}
                curves = {name.removeprefix("curve/"): values for name, values in curves.items()}
                return State(iteration, seconds, params, tuple(moments), curves)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"checkpoint {path} is damaged ({error}); delete it to start this run again"
            ) from error
        raise ValueError(
            f"checkpoint {path} is of another run: its {differs[0]} is {stored[differs[0]]}, here it "
            f"is {identity[differs[0]]}; give each run a file of its own"
        )


def peek(path: Path) -> tuple[int, int | None, float]:
    """How far a checkpoint is, of which no more is read: its iteration, that of the end, the seconds it took.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    metadata = files.metadata(path)
    asked = metadata.get("asked")
    return int(metadata["iteration"]), None if asked is None else int(asked), float(metadata["seconds"])
