"""Devices and compilers: what cannot be used is said in one sentence, and training goes on without."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rwslib.experiments import GMMConfig, gmm
from rwslib.training import Trainer, acceleration

ROOT = Path(__file__).resolve().parent.parent
PROBLEM = gmm.problem(GMMConfig("ww", 2, num_iterations=4, num_runs=2, batch_size=5))


@pytest.fixture(autouse=True)
def untried():
    acceleration._compile_failure.cache_clear()
    yield
    acceleration._compile_failure.cache_clear()


@pytest.mark.parametrize(("device", "name"), [("cpu", "cpu"), (torch.device("cpu", 0), "cpu:0")])
def test_devices_are_taken_as_text_or_as_torch_has_them(device, name):
    assert acceleration.check_device(device) == name
    Trainer(replace(PROBLEM, device=name), [0]).train_block()


@pytest.mark.parametrize("device", ["gpu", "mps", "mps:0", "meta", "cpu:x", "xla", 3, None])
def test_other_devices_are_refused_before_anything_is_built(device):
    with pytest.raises(ValueError, match=r"device must be .*got '"):
        Trainer(replace(PROBLEM, device=device), [0])


def test_a_device_of_a_cluster_need_not_be_here():
    assert acceleration.check_device("cuda:7", here=False) == "cuda:7"
    with pytest.raises(ValueError, match="float64"):
        acceleration.check_device("mps", here=False)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            RuntimeError("CppCompileError: C++ compile error\n\nCommand:\ng++ x\n\nOutput:\nno space\n"),
            "no space",
        ),
        (
            RuntimeError("CppCompileError: C++ compile error\n\nOutput:\n\n\nSet TORCHDYNAMO_VERBOSE=1 for"),
            r"\(CppCompileError: C\+\+ compile error",
        ),
        (RuntimeError("input file ‘/a’ is the same as output file"), "‘/a’ is the same"),
        (OSError("main.so: failed to map segment from shared object"), "failed to map segment"),
        (KeyError("getpwuid(): uid not found: 1234"), "uid not found"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_a_compiler_that_fails_is_one_warning_and_training_goes_on(error, reason, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(torch, "compile", fail)
    monkeypatch.setattr(acceleration, "can_compile", lambda kind: True)
    with pytest.warns(UserWarning, match=rf"{reason}.*\): training uncompiled, slower") as said:
        trainer = Trainer(PROBLEM, range(2), compiled=True)
    assert len(said) == 1 and "\n" not in str(said[0].message)
    plain = Trainer(PROBLEM, range(2), compiled=False)
    for each in (trainer, plain):
        each.train_block()
    assert not trainer.compiled
    for name, value in plain.params.items():
        assert torch.equal(trainer.params[name], value)


@pytest.mark.slow
@pytest.mark.skipif(not acceleration.can_compile(), reason="no C++ compiler or Python headers")
def test_a_compiler_that_is_there_and_fails_is_found_out(tmp_path):
    name = Path(os.environ.get("CXX") or "g++").name
    for shim in (tmp_path / name, tmp_path / "clang++"):
        shim.write_text(
            '#!/bin/sh\ntest "$1" = --version && echo "g++ 12.2.0" && exit\necho broken >&2\nexit 1\n'
        )
        shim.chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if k != "CXX"}
    environment |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "CXX": name}
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from rwslib.training.acceleration import why_not_compile; print(why_not_compile())",
        ],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("a small program cannot be compiled (")
    assert done.stderr == ""
