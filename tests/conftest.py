"""Settings shared by all tests."""

import gc
import os
from functools import partial

import pytest
import torch
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

torch.set_num_threads(1)  # the tests' tensors are small; more threads only wait for each other

# The same examples every time, and no time limit: a failure can be repeated, a busy machine causes none.
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None, max_examples=100)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(config, items):
    """Slow tests and notebooks first: what is short fills the gaps. GPU tests only where there is one."""
    items.sort(key=lambda item: item.path.suffix != ".ipynb" and item.get_closest_marker("slow") is None)
    if not torch.cuda.is_available():
        left_out = [item for item in items if item.get_closest_marker("gpu")]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)


def pytest_collection_finish():
    """Modules and tests stay to the end: to look through them for garbage takes a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)


class Scheduling(LoadScopeScheduling):
    """In the order above: a notebook as a whole, since its cells share a kernel, a test with all its cases.

    After every test the scheduler looks through all that it gave out: single cases would take it ten seconds.
    """

    def _split_scope(self, nodeid):
        file, _, test = nodeid.partition("::")
        return file if file.endswith(".ipynb") else f"{file}::{test.partition('[')[0]}"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    config.option.loadscopereorder = False
    return Scheduling(config, log)


def pytest_addoption(parser):
    parser.addoption("--write-code", action="store_true", help="PyTorch's compiler writes C++ in all tests")


@pytest.fixture
def compiler(request, monkeypatch):
    """What PyTorch's compiler reads from our code, run as it stands: no C++, a tenth of the time."""
    if not request.config.getoption("write_code"):
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Where CI is set, as services set it, a skipped test has failed: nothing goes unchecked there."""
    report = yield
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome, report.longrepr = "failed", f"In CI nothing may be skipped. {report.longrepr[2]}"
    return report
