"""What makes small models fast on a GPU: a graph of many steps, which the GPU runs without the processor."""

import gc
from collections.abc import Callable

import torch
from torch import Tensor


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
    """

    def __init__(self, function: Callable):
        self.function, self.graph = function, None

    def __call__(self, params: dict, moments: tuple[dict, ...], *tensors: Tensor) -> tuple[dict, tuple]:
        with torch.cuda.device(tensors[0].device):  # streams and graphs are those of the current one
            if self.graph is None:
                copies = [
                    {name: value.clone() for name, value in part.items()} for part in (params, *moments)
                ]
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
