"""Golden numbers: a change of a random stream, of a method or of a step shows at once.

``golden.json`` holds short seeded runs of all experiments: the first numbers of every stream and of every
training tape (compared exactly), and metrics, gradients and steps (compared to the tolerances below, which
other processors keep; bit for bit where the same kernels run).  A changed number means that records
trained before and after are not of the same program.  Where that is meant, say so in CHANGELOG.md and
write the file anew: ``python tests/golden.py``, whose difference in git shows what has moved.
Its configurations state every field; a new field goes there with the value that changes nothing.
"""

import json

import golden
import numpy as np
import pytest

from rwslib.training import acceleration
from rwslib.training.acceleration import can_compile

KEPT = json.loads(golden.FILE.read_text())
# Relative to the length of the array.  The plainest kernels differ from those for AVX2 by 2e-7, 2e-5, 1e-3
# and 2e-3, compiled ones as much; a gradient that cancels, or a step of Adam along a tiny one, differs most.
TOLERANCES = {"before": 2e-6, "after": 1e-4, "gradients": 1e-2, "steps": 2e-2}


def assert_close(found, kept):
    for part, tolerance in TOLERANCES.items():
        assert found[part].keys() == kept[part].keys(), f"{part}: other names"
        for name, (length, projection) in kept[part].items():
            differences = np.abs(np.subtract(found[part][name], (length, projection)))
            message = f"{part}, {name}: {found[part][name]} instead of {kept[part][name]}"
            assert (differences <= tolerance * length).all(), message


@pytest.mark.parametrize("path", golden.PATHS, ids=str)
def test_streams_start_with_the_same_numbers(path):
    assert golden.stream(path) == KEPT["streams"][" ".join(map(str, path))]


@pytest.mark.parametrize("case", golden.CASES + golden.OTHER_WAY)
def test_a_short_run_gives_the_same_numbers(case):
    found, kept = golden.run(case), KEPT["cases"][case]
    assert found["config"] == kept["config"]
    assert found["streams"] == kept["streams"]
    assert_close(found, kept)
    if golden.kernels() == KEPT["kernels"]:
        assert found["bits"] == kept["bits"], "the same up to rounding, but not bit for bit"


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(), reason="there is no C++ compiler")
@pytest.mark.parametrize("case", golden.COMPILED)
def test_compiled_runs_give_the_same_numbers(case, request, monkeypatch):
    if case != golden.COMPILED[0]:  # one of them as users have it
        request.getfixturevalue("compiler")
    monkeypatch.setattr(acceleration, "UNROLL", 1)  # two steps in one call compile twice as long
    found, kept = golden.run(case), KEPT["cases"][case.removesuffix(", compiled")]
    assert found["streams"] == kept["streams"]
    assert_close(found, kept)


@pytest.mark.parametrize("case", ["gmm ww", "gmm nvil", "vae ww", "air ww", "sbn ww"])
def test_whether_replicates_are_mapped_does_not_matter(case):
    other = next(name for name in golden.OTHER_WAY if name.startswith(f"{case}, "))
    assert KEPT["cases"][case]["streams"] == KEPT["cases"][other]["streams"]
    assert_close(KEPT["cases"][other], KEPT["cases"][case])
