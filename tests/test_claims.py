"""Verdicts follow the numbers they are given."""

from pathlib import Path

import numpy as np
import pytest

from rwslib.claims import claims_table, gmm_claims
from rwslib.records import RunRecord

METHODS = ("concrete", "relax", "reinforce", "vimco", "ws", "ww", "dww")


def record(prior, support=20, std=1.0):
    """Ten replicates around the given values."""
    jitter = np.linspace(0.98, 1.02, 10)
    curve = np.stack([np.full(10, 0.6), prior * jitter], axis=1)
    metrics = {
        "iteration": np.array([0, 1000]),
        "prior_l2": curve,
        "prior_l2_final": curve[:, -1],
        "posterior_l2_final": curve[:, -1],
        "support_size_final": np.full(10, support),
        "phi_gradient_std": std * jitter[:, None] * np.ones(2),
    }
    return RunRecord({}, {}, metrics, Path("none"))


def as_the_paper_says():
    """Runs of a world in which every claim is true."""
    runs = {}
    for i, K in enumerate((2, 5, 10, 20)):
        for method in METHODS:
            runs[method, K] = record(0.2 + 0.05 * i, 17, std=2.0)
        runs["concrete", K] = record(0.4 + 0.05 * i, std=0.5)
        runs["ws", K] = record(0.8 - 0.1 * i, 10, std=0.1)
        runs["ww", K] = record(0.3 / 2 ** (3 * i), 15 if K == 2 else 20, std=0.1)
        runs["dww", K] = record(0.01 / (1 + i), std=0.1)
    return runs


def judge(runs):
    sweep = {(delta, K): record(0.02) for delta in (0.05, 0.2, 0.6) for K in (2, 20)}
    term_std = {K: np.linspace(0.9, 1.1, 10)[:, None] * [[10.0 * K, 1.0]] for K in (2, 5, 10, 20)}
    term_std = {K: value / [[1.0, 1.05]] for K, value in term_std.items()}
    slopes = np.array([[0.5, -0.5], [0.49, -0.51], [0.51, -0.49]])
    return gmm_claims(runs, sweep, term_std, slopes, {1: 3.0, 2: 2.0, 3: 1.0})


def test_all_claims_hold_where_they_are_true():
    claims = judge(as_the_paper_says())
    assert list(claims) == [f"GMM-{i}" for i in range(1, 17)]
    assert {name: claim.verdict for name, claim in claims.items()} == dict.fromkeys(claims, "holds")


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({("ww", 20): record(0.5)}, {"GMM-1", "GMM-3", "GMM-6", "GMM-7", "GMM-12"}),
        ({("vimco", 20): record(0.001)}, {"GMM-2", "GMM-3", "GMM-7", "GMM-12"}),
        ({("ww", 2): record(0.3, 20, std=0.1)}, {"GMM-8"}),
        ({("ww", 5): record(0.0375, std=9.0)}, {"GMM-4"}),
        ({("concrete", 5): record(0.45, std=9.0)}, {"GMM-5"}),
        ({("ws", 20): record(0.5, 20, std=0.1)}, {"GMM-10", "GMM-12"}),
        ({("dww", 2): record(0.01, 19, std=0.1)}, {"GMM-9"}),
        ({("vimco", 2): record(0.2, 20, std=2.0)}, {"GMM-11"}),
    ],
)
def test_a_claim_breaks_where_it_is_false(changes, broken):
    claims = judge(as_the_paper_says() | changes)
    assert {name for name, claim in claims.items() if claim.verdict != "holds"} == broken


def test_what_was_not_run_is_not_judged():
    runs = {cell: value for cell, value in as_the_paper_says().items() if cell[0] in ("ww", "ws")}
    claims = gmm_claims(runs, {(0.2, 2): None}, {}, np.full((3, 2), 0.5), {1: 3.0, 2: 2.0})
    verdicts = {name: claim.verdict for name, claim in claims.items()}
    assert verdicts["GMM-1"] == "holds"
    for name in ("GMM-2", "GMM-7", "GMM-9", "GMM-13", "GMM-14"):
        assert verdicts[name] == "not run"
    assert claims_table(claims).count("\n") == 17
