"""The examples in the library's docstrings."""

import doctest
import importlib
import pkgutil

import pytest

import rwslib

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(rwslib.__path__, prefix="rwslib.")
    if not module.name.endswith("__main__")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_true(name):
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


def test_there_are_examples():
    modules = [importlib.import_module(name) for name in MODULES]
    finder = doctest.DocTestFinder()
    assert any(test.examples for module in modules for test in finder.find(module))
