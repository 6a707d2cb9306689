"""Latents and batches with structure: tuples, NamedTuples and dicts of tensors, nested at will."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

Tree = Any  # a tensor, or a tuple, NamedTuple or dict of trees


def tree_map(function: Callable[..., Tensor], *trees: Tree) -> Tree:
    """Apply a function to the tensors of one tree, or to those at the same place of several.

    Raises:
        ValueError: a leaf is not a tensor, or the trees differ in structure.

    >>> import torch
    >>> tree_map(torch.add, {"a": (torch.ones(2),)}, {"a": (torch.ones(2),)})
    {'a': (tensor([2., 2.]),)}
    """
    first, kind = trees[0], type(trees[0])
    if all(isinstance(tree, Tensor) for tree in trees):
        return function(*trees)
    for tree in trees[1:]:
        if type(tree) is not kind or len(tree) != len(first):
            raise ValueError(
                f"latents and data must have one structure, got {kind.__name__} and {type(tree).__name__}"
            )
    if not isinstance(first, dict | tuple):
        raise ValueError(
            f"latents and data must be tensors, or tuples, NamedTuples and dicts of them, got {kind.__name__}"
        )
    if isinstance(first, dict):
        return {name: tree_map(function, *[tree[name] for tree in trees]) for name in first}
    parts = [tree_map(function, *[tree[i] for tree in trees]) for i in range(len(first))]
    return kind(*parts) if hasattr(first, "_fields") else tuple(parts)


def leaves(tree: Tree) -> list[Any]:
    """What a tree holds, in order: its tensors, and whatever is neither tuple nor dict.

    >>> leaves({"a": (1, 2), "b": 3})
    [1, 2, 3]
    """
    if isinstance(tree, dict):
        return [leaf for part in tree.values() for leaf in leaves(part)]
    if isinstance(tree, tuple):
        return [leaf for part in tree for leaf in leaves(part)]
    return [tree]


def batch_size(x: Tree) -> int:
    """Number of data in a batch: the length of its first leaf.

    >>> import torch
    >>> batch_size({"words": torch.zeros(5, 7), "lengths": torch.zeros(5)})
    5
    """
    return len(leaves(x)[0])


def split(x: Tree, size: int) -> list[Tree]:
    """A batch in pieces of so many data, the last perhaps of fewer."""
    return [tree_map(lambda t, i=i: t[i : i + size], x) for i in range(0, batch_size(x), size)]
