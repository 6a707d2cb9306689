"""Which device computes, and what makes small models fast: compiled steps, graphs of many steps on a GPU."""

import ctypes
import gc
import importlib.util
import os
import re
import shutil
import sys
import sysconfig
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


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
        return f"a small program cannot be compiled ({_in_short(error)})"
    return None


def _in_short(error: Exception) -> str:
    """The line of a compiler's error that says what is wrong."""
    message, _, output = str(error).partition("\nSet TORCHDYNAMO_VERBOSE")[0].partition("Output:")
    lines = [line.strip() for line in (*output.splitlines(), *message.splitlines()) if line.strip()]
    telling = [line for line in lines if "error:" in line]
    return (telling or lines or [type(error).__name__])[0]


def _not_compiled() -> tuple[type[Exception], ...]:
    """What PyTorch's compiler raises, by the name that its version gives it."""
    from torch._dynamo import exc  # when it is loaded anyway

    found = [exc.TorchDynamoException, getattr(exc, "FailOnRecompileLimitHit", None)]
    return tuple(filter(None, found))


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


UNROLL = 2  # optimiser steps in one compiled call; more is hardly faster and compiles longer

Steps = Callable[..., tuple[dict, tuple[dict, ...]]]


def compile_or_keep(function: Callable, failed: Callable[[str], None] = warnings.warn) -> Callable:
    """The same function, compiled at its first call; as it is, and ``failed(reason)``, where that fails.

    A library that a killed process left unfinished in the compiler's cache is made again.
    """
    compiled, again = torch.compile(function, fullgraph=True), True

    def call(*given: Any) -> Any:
        nonlocal compiled, again
        try:
            return compiled(*given)
        except _not_compiled() as error:
            unfinished = re.search(r"(/\S+\.so): file too short", str(error))
            if unfinished and again:
                Path(unfinished[1]).unlink(missing_ok=True)
                torch.compiler.reset()
                again = False
                return call(*given)
            failed(f"the steps cannot be compiled ({_in_short(error)}): training uncompiled, slower")
            compiled = function
        return function(*given)

    return call


def accelerate(steps: Steps, device: str, length: int, failed: Callable[[str], None]) -> Steps:
    """The same optimiser steps, faster: compiled, and on a GPU recorded as one graph.

    Args:
        steps: ``(params, moments, iteration, *tensors [R, steps, ...]) -> (params, moments)``.
        length: how many steps a call usually takes.
        failed: called with the reason if the steps cannot be compiled; they then run as they are.
    """
    on_gpu = torch.device(device).type == "cuda"
    at_once = 1 if on_gpu else largest_divisor(length, UNROLL)
    compiled = compile_or_keep(steps, failed)

    def in_pieces(params: dict, moments: tuple, iteration: Tensor, *tensors: Tensor):
        for start in range(0, tensors[0].shape[1], at_once):
            pieces = [tensor[:, start : start + at_once] for tensor in tensors]
            params, moments = compiled(params, moments, iteration + start, *pieces)
        return params, moments

    return Captured(in_pieces, length) if on_gpu else in_pieces


def largest_divisor(number: int, at_most: int) -> int:
    """The largest divisor of a number that is not above a limit (at least 1)."""
    return next(d for d in range(max(1, min(number, at_most)), 0, -1) if number % d == 0)


def graph_length(number: int, at_most: int) -> int:
    """A length near a limit that leaves as little of a number of steps over as possible.

    Even where the number is a prime: a graph pays only if it holds many steps, the few left over go without.
    """
    at_most = min(number, at_most)
    return min(range(at_most, at_most // 2, -1), key=lambda length: number % length)


class Captured:
    """A function of the state and some tensors, recorded at the first call and then replayed.

    The kernels of a small model take less time than starting them one by one from Python does.  A
    recorded CUDA graph starts them all at once.  It reads and writes fixed places in memory: the state
    is kept there, inputs are copied there, and the state that a call returns is overwritten by the next.

    Args:
        function: ``(params, moments, *tensors) -> (params, moments)``, on a CUDA device; its operations
            and shapes may not depend on the values of its tensors.
        length: size of the last tensor's second axis in the calls that are recorded and replayed; others go
            to the function itself.
    """

    def __init__(self, function: Callable, length: int):
        self.function, self.length = function, length
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, params: dict, moments: tuple[dict, ...], *tensors: Tensor) -> tuple[dict, tuple]:
        if tensors[-1].shape[1] != self.length:
            return self.function(params, moments, *tensors)
        with torch.cuda.device(tensors[0].device):  # streams and graphs are those of the current one
            if self.graph is None:
                copies = [{name: t.clone() for name, t in part.items()} for part in (params, *moments)]
                self.state, self.tensors = (copies[0], tuple(copies[1:])), [t.clone() for t in tensors]
                self.graph = self._record()
            self._keep((params, moments))
            for fixed, given in zip(self.tensors, tensors, strict=True):
                fixed.copy_(given)
            self.graph.replay()
        params, moments = self.state
        return dict(params), tuple(map(dict, moments))  # a caller may replace entries of its own

    def _record(self):
        gc.collect()  # graphs of trainers that are no longer used, and their memory
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):  # compiles, loads and allocates, which a recording must not do
            self.function(*self.state, *self.tensors)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=beside):
            self._keep(self.function(*self.state, *self.tensors))
        return graph

    def _keep(self, new: tuple[dict, tuple[dict, ...]]) -> None:
        """Copy a state to its place."""
        for fixed, given in zip((self.state[0], *self.state[1]), (new[0], *new[1]), strict=True):
            for name, value in fixed.items():
                if value is not given[name]:
                    value.copy_(given[name])
