"""The atlas of methods: sums over counts are sums over tuples, and the code measures what is stored."""

import copy
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from browser import NODE, needs_node
from torch.autograd import grad

from rwslib import estimators, evaluation
from rwslib.methods import METHODS
from rwslib.report import atlas, comparison

ROOT = Path(__file__).resolve().parent.parent
STORED = ROOT / "book/results/atlas.json"
HERE = 1.0  # the chapter's q
ON_WEIGHTS = (  # what needs no more than log-weights
    *("ww", "ww_centred", "tvo", "reinforce", "nvil", "vimco", "ovis", "ovis_gamma_1", "rloo"),
    *("vimco_no_log_k", "vimco_air2018"),
)


@pytest.fixture(scope="module")
def stored() -> dict:
    return atlas.read(STORED)


def moments(row, K, problem="choice", step=HERE):
    gradients, weights, _ = comparison.exact_gradients(row, K, problem, step)
    mean = weights @ gradients
    return mean, weights @ (gradients - mean).square()


# -- counts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_categories", "num_particles"), [(1, 3), (2, 5), (3, 4), (4, 20)])
def test_counts_stand_for_every_tuple(num_categories, num_particles):
    counts, log_ways = evaluation.particle_counts(num_categories, num_particles)
    assert counts.shape == (
        math.comb(num_particles + num_categories - 1, num_particles),
        num_categories,
    )
    assert len(counts.unique(dim=0)) == len(counts) and (counts.sum(dim=1) == num_particles).all()
    assert log_ways.exp().sum().item() == pytest.approx(num_categories**num_particles, rel=1e-12)


def test_the_bound_by_counts_is_the_bound_by_tuples():
    log_joint, logits = comparison.tables("choice", HERE)
    z = evaluation.particle_tuples(4, 4)
    log_q = torch.log_softmax(logits, dim=0)[z]
    bound = torch.logsumexp(log_joint[z] - log_q, dim=0) - math.log(4)
    by_tuples = (log_q.sum(dim=0).exp() * bound).sum()
    torch.testing.assert_close(evaluation.exact_bound(log_joint, logits, 4), by_tuples, rtol=0, atol=1e-12)


def by_tuples(row, K):
    """Moments over all tuples of a method that sees nothing but its particles' log-densities."""
    log_joint, logits = comparison.tables("choice", HERE)
    method = comparison.method_of(row).function
    bound = evaluation.exact_bound(log_joint, logits, K)
    baseline = {"control_variate": lambda x: bound[None]} if row == "nvil" else {}

    def loss(log_p, log_q):
        model = SimpleNamespace(log_joint=lambda z, x: log_p)
        network = SimpleNamespace(sample=lambda x, num_particles, noise: (None, log_q))
        return method(model, network, torch.zeros(1), K, None, **baseline)

    return evaluation.exact_moments(loss, log_joint, logits, K)


@pytest.mark.parametrize("row", ON_WEIGHTS)
def test_sums_over_counts_are_sums_over_tuples(row):
    for K in (2, 4):
        for found, wanted in zip(moments(row, K), by_tuples(row, K), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_counts_that_weigh_the_same_are_found_out(monkeypatch):
    real = evaluation.particle_counts
    monkeypatch.setattr(evaluation, "particle_counts", lambda *sizes: (real(*sizes)[0], torch.zeros(())))
    gradients, weights, _ = comparison.exact_gradients("ww", 3, "choice", HERE)
    assert (weights @ gradients - by_tuples("ww", 3)[0]).abs().max() > 1e-2


def test_the_defensive_method_is_weighted_by_what_it_draws_from():
    log_joint, logits = comparison.tables("choice", HERE)
    z = evaluation.particle_tuples(4, 3)
    leaf = logits.expand(z.shape[1], -1).clone().requires_grad_()
    log_q = torch.log_softmax(leaf, dim=1).gather(1, z.T).T
    proposal = 0.8 * torch.softmax(logits, dim=0) + 0.2 / 4
    loss = estimators.wake_phi_loss(log_joint[z], log_q, proposal.log()[z])
    gradients, weights = -grad(loss.sum(), leaf)[0], proposal[z].prod(dim=0)
    mean = weights @ gradients
    found = moments("dww", 3)
    torch.testing.assert_close(found[0], mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(found[1], weights @ (gradients - mean).square(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("row", "K", "problem"),
    [
        *[(name, 2, "choice") for name in ("muprop", "straight_through", "reinmax", "dww")],
        *[("disarm", 4, "coin"), ("disarm_bound", 3, "coin")],
    ],
)
def test_exact_moments_are_those_of_draws(row, K, problem):
    mean, variance = moments(row, K, problem, 0.7)
    gradients, _ = comparison.sampled_gradients(row, K, problem, 0.7)
    assert ((gradients.mean(dim=0) - mean).abs() < 5 * (variance / len(gradients)).sqrt()).all()
    torch.testing.assert_close(gradients.var(dim=0), variance, rtol=0.1, atol=0)


def test_what_draws_more_than_its_particles_cannot_pass_for_exact():
    for row in set(comparison.SAMPLED) - {"dww_wrong_density"}:
        with pytest.raises((RuntimeError, TypeError)):
            comparison.exact_gradients(row, 2, "choice", HERE)


def test_bias_is_where_it_belongs():
    biases = {row: comparison.measure(row, 2, "coin", 0.7)["bias"] for row in comparison.rows("coin")}
    assert biases.pop("tvo") is None  # an objective of its own
    assert {row for row, bias in biases.items() if bias > 1e-9} == {
        *("ww", "dww", "straight_through", "vimco_air2018", "ww_centred", "ovis_gamma_1")
    }


def test_evaluations_of_the_model_are_counted():
    costs = {
        row: comparison.measure(row, 10, "choice", HERE)["evaluations"] for row in ("ww", "dww", "reinmax")
    }
    assert costs == {"ww": 10, "dww": 20, "reinmax": 40}
    assert comparison.measure("disarm_bound", 10, "coin", HERE)["evaluations"] == 20


# -- what is stored ----------------------------------------------------------------------------------


def test_every_method_has_its_place(stored):
    assert stored.keys() == comparison.PROBLEMS.keys()
    for problem, steps in comparison.PROBLEMS.items():
        found = {row: tuple(values["particles"]) for row, values in stored[problem]["rows"].items()}
        assert found == comparison.rows(problem)
        wrong = [comparison.wrongness(problem, step) for step in steps]
        assert stored[problem]["wrongness"] == pytest.approx(wrong, rel=1e-9)


EXACT = [(problem, row) for problem in ("choice", "coin") for row in comparison.rows(problem)]
EXACT = [(problem, row) for problem, row in EXACT if not comparison.is_sampled(row, problem)]


@pytest.mark.parametrize(("problem", "row"), EXACT)
def test_exact_numbers_are_those_of_the_code(stored, problem, row):
    found, (*_, last) = stored[problem]["rows"][row], comparison.STEPS
    for K, step in [(found["particles"][0], HERE), (10, last)]:
        at, column = comparison.STEPS.index(step), found["particles"].index(K)
        measured = comparison.measure(row, K, problem, step)
        assert found["evaluations"][column] == measured["evaluations"]
        for quantity in ("bias", "noise", "signal"):
            here, wanted = found[quantity][at][column], comparison.rounded(measured[quantity], 12)
            assert here == wanted or here == pytest.approx(wanted, rel=1e-9, abs=1e-9)


def test_a_hundred_particles_are_exact_too(stored):
    found = stored["choice"]["rows"]["vimco"]
    assert found["particles"][-1] == 100
    measured = comparison.measure("vimco", 100, "choice", 2.0)
    assert found["noise"][-1][-1] == pytest.approx(measured["noise"], rel=1e-9)


@pytest.mark.parametrize(
    ("problem", "row", "step"),
    [
        *[("choice", row, HERE) for row in ("gumbel_st", "concrete", "rebar", "dww_wrong_density")],
        *[("smooth", row, 0.9) for row in ("vae", "stl", "ww")],
    ],
)
def test_sampled_numbers_are_those_of_the_code(stored, problem, row, step):
    found, at = stored[problem]["rows"][row], comparison.PROBLEMS[problem].index(step)
    measured = comparison.measure(row, 1, problem, step)
    for quantity in ("noise", "signal"):
        error = found[f"{quantity}_error"][at][0]
        close = 4 * error if row == "rebar" else error / 100  # training lets rounding grow
        assert found[quantity][at][0] == pytest.approx(measured[quantity], abs=close)


def test_some_methods_are_measured_again_and_the_others_stay(stored, tmp_path, monkeypatch, capsys):
    file = tmp_path / "atlas.json"
    file.write_text(STORED.read_text())
    monkeypatch.setattr(comparison, "measure_row", lambda *which: {"measured": which[0]})
    monkeypatch.setattr(sys, "argv", ["comparison", "--write", str(file), "--only", "vimco"])
    comparison.main()
    found = atlas.read(file)
    assert found["choice"]["rows"].pop("vimco") == {"measured": "vimco"}
    for problem in found:
        rows = {row: v for row, v in stored[problem]["rows"].items() if row != "vimco"}
        found[problem]["rows"].pop("vimco", None)
        assert found[problem] == stored[problem] | {"rows": rows}
    monkeypatch.setattr(sys, "argv", ["comparison", "--write", str(file), "--only", "vimko"])
    with pytest.raises(ValueError, match=r"--only must be one of .*did you mean 'vimco'.*got 'vimko'"):
        comparison.main()


# -- what the page says ------------------------------------------------------------------------------


def test_a_sampled_bias_within_its_error_is_none(stored):
    changed = copy.deepcopy(stored)
    row = changed["choice"]["rows"]["concrete"]
    at = atlas.CHAPTERS_Q["choice"]
    row["bias"][at][0], row["bias_error"][at][0] = 0.039, 0.01
    assert atlas.value(changed, "choice", "concrete", "bias", 1) == 0
    row["bias"][at][0] = 0.041
    assert atlas.value(changed, "choice", "concrete", "bias", 1) == 0.041
    assert atlas.value(changed, "choice", "concrete", "bias", 3) is None


def test_findings_change_with_the_numbers(stored):
    changed = copy.deepcopy(stored)
    row = changed["choice"]["rows"]["ww"]
    at, few, many = atlas.CHAPTERS_Q["choice"], row["particles"].index(2), row["particles"].index(100)
    row["bias"][at][few] = 0.123
    assert "WW's bias falls from 12 % to " in atlas.findings(changed)
    row["bias"][at][many], row["signal"][at][few], row["signal"][at][many] = 0.2, 3.0, 3.001
    said = atlas.findings(changed)
    assert "WW's bias rises from 12 % to 20 %, and its signal-to-noise ratio stays at 3." in said
    assert "VIMCO has no bias" in said and "OVIS has no bias" in said
    changed["choice"]["rows"]["vimco"]["bias"][at][-1] = 0.05
    assert "VIMCO has a bias of up to 5 %" in atlas.findings(changed)
    changed["choice"]["rows"]["ovis"]["signal"] = [[0.0] * 11] * len(comparison.STEPS)
    assert "farthest (4.5) OVIS is ahead at 0, 0, 0, 0, 0, 0 and 0 of the 11" in atlas.findings(changed)


def test_what_to_take_has_the_most_signal_for_the_cost(stored):
    situation = ("", "choice", None, 20, "bound", False)
    taken = {row: K for _, row, K in atlas.candidates(stored, situation)}
    assert taken["vimco"] == 20 and "ovis_gamma_1" not in taken and "vimco_no_log_k" not in taken
    changed = copy.deepcopy(stored)
    last = atlas.candidates(stored, situation)[-1][1]
    values = changed["choice"]["rows"][last]
    values["signal"] = [[1e3] * len(values["particles"])] * len(comparison.STEPS)
    assert atlas.candidates(changed, situation)[0][1] == last
    assert f"| **{comparison.method_of(last).title}** | 1000, K = 20" in atlas.take_this_when(changed)


def test_methods_that_need_points_between_categories_take_part_only_where_there_are_some(stored):
    for words, *_, between in atlas.SITUATIONS:
        assert ("points" in words) == between, words
    for between in (False, True):
        coin = ("", "coin", None, 20, "ELBO", between)
        rows = {row for _, row, _ in atlas.candidates(stored, coin)}
        assert "rloo" in rows and ({"reinmax", "muprop"} <= rows) == between


def test_tables_show_what_is_stored(stored):
    shown = atlas.comparison(stored, "choice")
    (line,) = re.findall(r"^\| VIMCO \|.*$", shown, re.M)
    noise = [atlas.digits(atlas.value(stored, "choice", "vimco", "noise", K)) for K in (2, 10)]
    assert line == f"| VIMCO | bound | 0 % | 0 % | {noise[0]} | {noise[1]} | 10 |"
    assert "KL(p, q)" in shown and "| RLOO | ELBO |" in shown
    assert re.search(r"^\| REBAR \| bound \| 0 % ± \d+ % \|", shown, re.M)


@needs_node
def test_the_figure_draws_the_stored_numbers(stored):
    data = re.search(r'id="atlas-data">(.*)</script>', atlas.figure_data(stored))[1]
    program = """
        const A = require(process.argv[1]), data = JSON.parse(require("fs").readFileSync(0, "utf8"));
        const problem = data.problems.choice, start = problem.start;
        const svg = (quantity, axis, held) =>
          A.draw(problem, ["ww", "vimco"], data.quantities, quantity, axis, held, 600);
        console.log(JSON.stringify({
          byK: A.points(problem, "ww", "noise", "particles", start),
          byWrongness: A.points(problem, "dww", "bias", "wrongness", 10),
          missing: A.points(problem, "rebar", "bias", "wrongness", 3),
          bias: svg("bias", "particles", start), signal: svg("signal", "evaluations", 0),
          ticks: A.ticks(0.3, 40, 9),
          nothing: A.draw(problem, [], data.quantities, "bias", "particles", 0, 600),
        }));"""
    command = [NODE, "-e", program, ROOT / "book/_static/atlas.js"]
    done = subprocess.run(command, input=data, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    ww = stored["choice"]["rows"]["ww"]
    at = atlas.CHAPTERS_Q["choice"]
    assert [x for x, _ in found["byK"]] == ww["particles"]
    assert [y for _, y in found["byK"]] == pytest.approx(ww["noise"][at], rel=5e-3)
    assert [x for x, _ in found["byWrongness"]] == pytest.approx(stored["choice"]["wrongness"], rel=5e-3)
    assert found["missing"] == []
    assert found["ticks"] == [0.5, 1, 2, 5, 10, 20]
    assert found["signal"].count('class="line"') == 2 and "NaN" not in found["bias"] + found["signal"]
    floor = set(
        re.findall(r'cy="([\d.]+)" r="3" fill="#000000"', found["bias"])
    )  # VIMCO's zeros, all at one height
    assert len(floor) == 1
    assert "choose other methods" in found["nothing"]


def test_every_line_of_the_figure_has_a_style_of_its_own(stored):
    data = json.loads(re.search(r'id="atlas-data">(.*)</script>', atlas.figure_data(stored))[1])
    for problem in data["problems"].values():
        styles = [(row["color"], row["dash"]) for row in problem["rows"].values()]
        assert len(set(styles)) == len(styles)
    assert set(data["shown"]) <= data["problems"]["choice"]["rows"].keys() & METHODS.keys()
