"""Sides of effects, verdicts of claims, and the reasons that they give, on made-up effects and records."""

import json
import math

import numpy as np
import pytest

from rwslib import records
from rwslib.experiments import GMMConfig, VAEConfig
from rwslib.report.claims import (
    Claim,
    Effect,
    Evidence,
    Rule,
    export,
    finding,
    in_words,
    judge,
    listed,
    show_claims,
    vae_claims,
    verdict,
    verdicts_table,
)
from rwslib.report.claims.effects import QUANTITIES, number, with_interval
from rwslib.report.claims.export import claims_table
from rwslib.report.claims.reasons import needed


def effect(value, low, high, smallest=0.0, setting="here", replicates=4.0):
    return Effect(setting, "error of p", (), value, low, high, smallest, (value,), replicates)


@pytest.mark.parametrize(
    ("ends", "side"),
    [
        ((1, 0.5, 2), "agrees"),
        ((-1, -2, -0.5), "contradicts"),
        ((0, -1, 1), "open"),
        ((8, -math.inf, math.inf), "open"),
        ((0, 0, 0), "open"),
        ((1, 0.5, 2, 3.0), "tie"),
        ((-1, -2, -0.5, 3.0), "tie"),
        ((0, 0, 0, 3.0), "tie"),
        ((2, 0.5, 4, 3.0), "agrees"),  # larger than what matters, perhaps
        ((2, -0.5, 4, 3.0), "open"),
        ((math.nan, math.nan, math.nan, 3.0), "not run"),
    ],
)
def test_an_effect_is_on_one_side(ends, side):
    assert effect(*ends).side == side


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        (["agrees", "agrees"], "holds"),
        (["agrees", "not run"], "holds"),
        (["agrees", "open", "tie"], "holds where decided"),
        (["agrees", "contradicts", "open"], "split"),
        (["contradicts", "contradicts"], "fails"),
        (["contradicts", "open", "tie"], "fails"),
        (["open", "tie"], "open"),
        (["tie"], "open"),
        (["not run"], "not run"),
        ([], "not run"),
    ],
)
def test_a_verdict_follows_from_the_sides(sides, expected):
    assert verdict(sides) == expected


@pytest.mark.parametrize(
    ("intervals", "expected"),
    [
        ([(1, 0.5, 2), (3, 0.1, 4)], "holds"),
        ([(1, 0.5, 2), (math.nan, math.nan, math.nan)], "holds"),
        ([(-1, -2, -0.5), (-3, -4, -0.1)], "does not hold"),
        ([(-1, -2, -0.5), (0, 0, 0)], "mixed"),
        ([(1, -0.5, 2)], "mixed"),
        ([(1, 0.5, 2), (-1, -2, -0.5)], "mixed"),
        ([(math.nan, math.nan, math.nan)], "not run"),
        ([], "not run"),
    ],
)
def test_the_stricter_rule_asks_it_of_every_effect(intervals, expected):
    effects = {str(i): effect(*ends) for i, ends in enumerate(intervals)}
    assert Claim(Rule("X-1", "text", "", "", (), rises), effects).strict == expected


def test_a_claim_that_holds_says_if_it_could_not_fail():
    rule = Rule("X-1", "text", "", "", (), rises, certain="theorem")
    true, false = (Claim(rule, {"here": effect(*ends)}) for ends in ((1, 0.5, 2), (-1, -2, -0.5)))
    assert (true.certain, false.certain) == ("theorem", "")
    table = claims_table({"X-1": true, "X-2": false})
    assert "**holds** (could not fail: theorem) |" in table and "**fails** |" in table
    assert json.loads(export({"X-1": true}))["claims"]["X-1"]["certain"] == "theorem"


@pytest.mark.parametrize("pooled", [False, True])
def test_an_interval_covers_the_truth_as_often_as_it_says(pooled):
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        given = {"bias": {"cell": generator.normal(size=40)}}
        found = Evidence({}, pooled, given).effect("here", "bias", "cell", combine=lambda a: a)
        covered += found.low <= 0 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


@pytest.mark.parametrize(
    ("effects", "words"),
    [
        ([], "not run"),
        ([(1, 0.5, 2)], "its one effect agrees with the paper"),
        ([(0, -1, 1)] * 3, "all 3 effects are open"),
        ([(1, 0.5, 2)] * 2 + [(0, 0, 0, 1.0)], "of 3 effects 2 agree with the paper and 1 is a tie"),
        (
            [(1, 0.5, 2)] * 6 + [(-1, -2, -0.5)] * 2 + [(0, -1, 1)] * 2,
            "of 10 effects 6 agree with the paper, 2 are open and 2 contradict it",
        ),
    ],
)
def test_sides_in_words(effects, words):
    assert in_words({str(i): effect(*ends) for i, ends in enumerate(effects)}) == words


def test_a_finding_is_one_sentence_of_its_effects():
    found = {name: effect(*ends, setting=name) for name, ends in {"a": (1, 0.5, 2), "b": (3, 2, 4)}.items()}
    assert finding(found) == "Both agree, +1 (a) to +3 (b)."
    found["c"] = effect(-200.4, -300, -100, setting="c")
    found["d"] = effect(math.nan, math.nan, math.nan, setting="d")
    assert finding(found) == (
        "Of 3 effects 2 agree, +1 (a) to +3 (b); 1 contradicts, −200 (c); 1 more was not run."
    )
    assert finding({"a": found["a"]}) == "a: +1 (+0.5 to +2), which agrees."
    assert finding({"d": found["d"]}) == finding({}) == "Nothing that it speaks of was run."


def test_numbers_and_lists_read_well():
    assert [number(v) for v in (0.392, -14.4, 0.00067, -2e-6, 314.2, 0, 1e-12)] == (
        ["+0.39", "−14", "+0.00067", "0", "+314", "0", "+1e−12"]
    )
    assert [listed(words) for words in ([2], [2, 5], ["a", "b", "c"])] == ["2", "2 and 5", "a, b and c"]


def test_every_quantity_says_what_matters_and_why():
    assert all(quantity.smallest >= 0 and quantity.reason for quantity in QUANTITIES.values())


# -- reasons -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("true", [0.05, 0.002])
def test_as_many_replicates_as_are_said_to_be_needed_decide(true):
    """On replicates with the value and the spread that were seen, an interval is decided at that number."""

    def found(count):
        spread = 0.1 * np.sqrt(2) * np.tile([-1.0, 1.0], count // 2 + 1)[:count]
        made = {"a": spread + true, "b": spread}
        evidence = Evidence({}, pooled=True, given={"error of p": made})
        return evidence.effect("here", "error of p", "a", "b")

    first = found(8)
    assert first.side == "open"
    enough = 2 * math.ceil(needed(first) / 2)
    assert found(2 * math.ceil(1.3 * enough / 2)).side != "open"
    assert found(2 * math.floor(0.5 * enough / 2)).side == "open"


def test_without_a_spread_no_number_is_enough():
    assert needed(effect(8, -math.inf, math.inf)) == math.inf
    assert needed(effect(0, -1, 1)) == math.inf


@pytest.fixture
def keep(tmp_path, monkeypatch):
    """A function that stores a made-up record."""
    monkeypatch.setenv("RWSLIB_PUBLISHED", str(tmp_path / "published"))
    monkeypatch.setenv("RWSLIB_RESULTS", str(tmp_path / "results"))

    def keep(config, **metrics):
        return records.save(records.plain(config), metrics, {"format": 1}, tmp_path / "results")

    return keep


def why(claims, name):
    return {reason.kind: reason.says for reason in claims[name].reasons}


def rises(evidence):
    return evidence.steps("error of p", "vimco")


RISES = (Rule("X-1", "text", "VIMCO gets worse", "rise", (), rises),)


def test_a_fault_and_a_detail_are_found_by_their_records(keep):
    spread = np.linspace(-0.001, 0.001, 10)

    def stored(K, error, method="vimco", **changes):
        return keep(GMMConfig(method, K, **changes), prior_l2_final=error + spread)

    runs = {("vimco", K): stored(K, error) for K, error in {2: 0.3, 5: 0.2, 10: 0.1}.items()}
    for K, error in {2: 0.1, 5: 0.2, 10: 0.15}.items():
        stored(K, error, "vimco_no_log_k")
    for K, error in {5: 0.1, 10: 0.2}.items():
        stored(K, error, hidden=(16, 16))
    claims = judge(RISES, {"runs": Evidence(runs)})
    assert claims["X-1"].verdict == "fails"
    found = why(claims, "X-1")
    assert list(found) == ["fault of the original code", "detail not in the paper"]
    assert "log K" in found["fault of the original code"]
    assert "VIMCO, K 2 to 5, +0.1 (" in found["fault of the original code"]
    assert "K 5 to 10" not in found["fault of the original code"]
    assert "VIMCO, K 5 to 10, +0.1 (" in found["detail not in the paper"]


def test_the_order_of_the_cells_changes_no_interval():
    values = {"a": np.array([1.0, 2.0, 4.0]), "b": np.array([0.0, 0.5, 3.0]), "c": np.array([7.0, 7.5])}
    turned = dict(reversed(values.items()))
    first, second = (Evidence({}, pooled=True, given={"bias": v}) for v in (values, turned))
    assert first.effect("a minus b", "bias", "a", "b") == second.effect("a minus b", "bias", "a", "b")


def test_a_network_that_follows_its_wrong_model_is_measured_against_that_model(keep):
    spread = np.linspace(-0.001, 0.001, 10)
    errors, divergences = {2: 0.3, 5: 0.2, 10: 0.3}, {2: 0.1, 5: 0.2, 10: 0.1}
    runs = {
        ("vimco", K): keep(
            GMMConfig("vimco", K), posterior_l2_final=errors[K] + spread, kl_q_p_final=divergences[K] + spread
        )
        for K in errors
    }
    rules = (Rule("X-1", "text", "networks get worse", "rise", (), lambda e: e.steps("error of q", "vimco")),)
    claim = judge(rules, {"runs": Evidence(runs)})["X-1"]
    assert claim.verdict == "split"
    closer, farther = (reason.says for reason in claim.reasons if reason.kind == "matter of the measure")
    assert "as the paper says: VIMCO, K 2 to 5, +0.69" in closer and "K 5 to 10" not in closer
    assert "the other way round: VIMCO, K 5 to 10, −0.69" in farther and "K 2 to 5" not in farther


def test_errors_at_the_floor_and_other_ties_are_told_apart(keep):
    spread = np.linspace(-0.0001, 0.0001, 10)
    errors = {2: 0.302, 5: 0.3, 10: 0.005, 20: 0.004}
    runs = {
        ("vimco", K): keep(GMMConfig("vimco", K), prior_l2_final=error + spread)
        for K, error in errors.items()
    }
    claims = judge(RISES, {"runs": Evidence(runs)})
    found = why(claims, "X-1")
    assert "VIMCO, K 10 to 20, 0.004 and 0.005" in found["nothing left to gain"]
    assert "VIMCO, K 2 to 5, −0.002" in found["too small to matter"]
    assert "VIMCO, K 5 to 10" in found["no cause found"]


def test_lengthening_is_a_reason_where_it_brought_the_effect_closer(keep):
    spread = np.array([-0.05, 0.05])

    def stored(method, stages, level, kl):
        curve = np.random.default_rng(stages).standard_normal((2, 41))
        return keep(
            VAEConfig(method, 8, num_stages=stages, num_runs=2),
            log_marginal=level + spread,
            kl_q_p=kl + spread,
            active_units=np.full(2, 25.0),
            train_bound=curve,
        )

    stored("iwae", 4, -90, 5.0), stored("ww", 4, -94, 7.0), stored("wws", 4, -90, 5.0)
    runs = {(m, 8): stored(m, 5, -90, kl) for m, kl in {"iwae": 5.0, "ww": 6.0, "wws": 7.0}.items()}
    claims = vae_claims(runs)
    assert (
        "From 40 to 121 it moved towards the paper: IWAE above WW, K 8, −2 to −1"
        in (why(claims, "VAE-3")["run too short"])
    )
    said = why(claims, "VAE-7b")["no cause found"]
    assert "WW above WWS, K 8, −1 (with 40: +2)" in said
    assert "121 of the 3,280 epochs of the schedule that the paper follows" in said


def test_what_nothing_explains_still_says_how_short_the_runs_are(keep):
    spread = np.array([-0.05, 0.05])

    def stored(method, kl):
        metrics = {"log_marginal": spread - 90, "kl_q_p": kl + spread, "active_units": np.full(2, 25.0)}
        metrics |= {"train_bound": np.random.default_rng(0).standard_normal((2, 41))}
        return keep(VAEConfig(method, 8, num_stages=5, num_runs=2), **metrics)

    claims = vae_claims({(m, 8): stored(m, kl) for m, kl in {"ww": 6.0, "wws": 7.0}.items()})
    said = why(claims, "VAE-7b")["no cause found"]
    whose = "of the schedule that the paper follows"
    assert f"though the runs have 121 of the 3,280 epochs {whose}: WW above WWS, K 8, −1." in said


# -- what leaves the notebook ------------------------------------------------------------------------


def test_claims_leave_as_json_without_infinities(keep):
    runs = {("vimco", K): keep(GMMConfig("vimco", K, num_runs=1), prior_l2_final=np.ones(1)) for K in (2, 5)}
    claims = judge(RISES, {"runs": Evidence(runs)})
    exported = json.loads(export(claims), parse_constant=pytest.fail)
    entry = exported["claims"]["X-1"]
    assert entry["verdict"] == "open" and entry["strict"] == "mixed"
    assert entry["effects"] == [
        {
            "setting": "VIMCO, K 2 to 5",
            "quantity": "error of p",
            "unit": "",
            "value": 0,
            "low": None,
            "high": None,
            "smallest": 0.01,
            "side": "open",
        }
    ]
    assert entry["records"] == [record.key for record in runs.values()]
    assert exported["records"][entry["records"][0]] == {
        "published": False,
        "config": runs["vimco", 2].config,
    }
    show_claims(claims)
    assert verdicts_table({"now": claims, "then": claims}).endswith("| X-1 | open | open |")


def test_an_interval_is_said_where_there_is_one():
    assert with_interval(effect(8, -math.inf, math.inf)) == "+8 (no interval)"
    assert with_interval(effect(1, 1, 1)) == "+1"
    assert number(99.6) == "+100"
    assert [number(v) for v in (12.5, -7.5, 0.5, 12.4)] == ["+12.5", "−7.5", "+0.5", "+12"]
