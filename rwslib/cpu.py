"""Which device computes, and what makes small models fast and repeatable on a processor."""

import ctypes
import importlib.util
import os
import shutil
import sys
import sysconfig
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch


def check_device(device: str | torch.device, here: bool = True) -> str:
    """The name of a device that can train.

    Args:
        device: "cpu" or a CUDA device.
        here: it must be in this machine.

    Raises:
        ValueError: it is another kind of device, or not here.
    """
    name = str(device)
    if name.partition(":")[0] == "mps":
        raise ValueError(f"device must be 'cpu' or a CUDA device, got {name!r}: Apple's GPUs have no float64")
    try:
        kind = torch.device(name).type
    except RuntimeError:
        kind = None
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cpu' or a CUDA device such as 'cuda' or 'cuda:1', got {name!r}")
    try:
        if here:
            torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(
            f"device must be one that PyTorch has here, such as 'cpu', got {name!r} ({reason})"
        ) from None
    return name


def can_compile(device: str = "cpu") -> bool:
    """Whether ``torch.compile`` finds what it needs: a compiler, Python's headers and, on a GPU, Triton."""
    on_cpu = torch.device(device).type == "cpu"
    names = (os.environ.get("CXX", "g++"), "clang++") if on_cpu else (os.environ.get("CC", "gcc"), "clang")
    headers = Path(sysconfig.get_paths()["include"], "Python.h").exists()
    return any(map(shutil.which, names)) and headers and (on_cpu or bool(importlib.util.find_spec("triton")))


def why_not_compile(device: str = "cpu") -> str | None:
    """Why ``torch.compile`` does not work here, if it does not; tried once, on a small program."""
    return _compile_failure(torch.device(device).type)


@lru_cache
def _compile_failure(kind: str) -> str | None:
    if not can_compile(kind):
        needed = "C++ compiler or Python headers" if kind == "cpu" else "compiler, Python headers or Triton"
        return f"no {needed} found"
    try:
        torch.compile(lambda x: x.sin() + 1, fullgraph=True)(torch.ones(8, device=kind))
    except Exception as error:  # the compiler fails, or nothing may run from its folder
        message, _, output = str(error).partition("Output:")
        lines = [line.strip() for line in (*output.splitlines(), *message.splitlines()) if line.strip()]
        return f"a small program cannot be compiled ({lines[0] if lines else type(error).__name__})"
    return None


@contextmanager
def single_thread(device: str):
    """One thread and no denormals on the CPU: faster for small models, and the same numbers every time."""
    threads = torch.get_num_threads()
    if torch.device(device).type == "cpu":
        torch.set_num_threads(1)
        torch.set_flush_denormal(True)
        _keep_freed_memory()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)


def _keep_freed_memory() -> None:
    """Let glibc keep freed blocks: mapping large tensors anew every step costs a quarter of its time."""
    if sys.platform == "linux":
        libc, trim_threshold, mmap_threshold = ctypes.CDLL(None), -1, -3  # names in malloc.h
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(mmap_threshold, 2**25)
