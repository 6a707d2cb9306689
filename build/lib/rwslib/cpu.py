"""What makes small models fast and repeatable on a processor."""

import ctypes
import importlib.util
import os
import shutil
import sys
import sysconfig
from contextlib import contextmanager
from pathlib import Path

import torch


def can_compile(device: str = "cpu") -> bool:
    """Whether ``torch.compile`` finds what it needs: a compiler, Python's headers and, on a GPU, Triton."""
    on_cpu = torch.device(device).type == "cpu"
    names = (os.environ.get("CXX", "g++"), "clang++") if on_cpu else (os.environ.get("CC", "gcc"), "clang")
    headers = Path(sysconfig.get_paths()["include"], "Python.h").exists()
    return any(map(shutil.which, names)) and headers and (on_cpu or bool(importlib.util.find_spec("triton")))


@contextmanager
def single_thread(device: str):
    """One thread and no denormals on the CPU: faster for small models, and the same numbers every time."""
    threads = torch.get_num_threads()
    if device == "cpu":
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
