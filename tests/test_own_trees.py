"""Chapter 5's grammar, taken from the notebook itself, against lists of all its trees."""

import ast
import math
import random
from collections import Counter, defaultdict
from functools import cache, partial
from itertools import product
from pathlib import Path

import nbformat
import pytest
import torch
from torch import nn
from torch.autograd import grad

from rwslib import estimators, evaluation

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks/05_your_own_model.ipynb"
LIFTED = ("own-t1", "own-t3", "own-t8")  # model, network, loop
SOURCES = {
    cell.id: cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"
}
NUM = 20_000
PLAIN, AMBIGUOUS, LONG = (
    tuple(x.split())
    for x in ("men see dogs", "men see dogs with telescopes", "men see dogs of men near dogs")
)


def code_lines(source):
    """Lines that are no docstring, no comment and not blank."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    docs = {node.body[0].lineno for node in nodes if ast.get_docstring(node)}
    lines = enumerate(source.splitlines(), start=1)
    return sum(bool(line.strip()) and n not in docs and line.strip()[0] != "#" for n, line in lines)


@pytest.fixture(scope="module")
def chapter():
    """The chapter's functions by name."""
    namespace = {"math": math, "random": random, "torch": torch, "nn": nn}
    namespace |= {"cache": cache, "partial": partial, "product": product, "defaultdict": defaultdict}
    namespace |= {name: getattr(estimators, name) for name in estimators.__all__}
    for name in (*LIFTED, "own-t5"):
        exec(SOURCES[name], namespace)
    return type("Chapter", (), {name: staticmethod(value) for name, value in namespace.items()})


@pytest.fixture
def tables(chapter):
    """theta and phi at random, with weights that matter."""
    generator = torch.Generator().manual_seed(0)
    sizes = len(chapter.RULES), len(chapter.ROWS)
    return [torch.randn(n, generator=generator, dtype=torch.float64).requires_grad_() for n in sizes]


@pytest.fixture
def probs(chapter, tables):
    """Probability of each rule."""
    logits = dict(zip(chapter.RULES, tables[0].tolist(), strict=True))
    total = {s: sum(math.exp(logits[s, b]) for b in bodies) for s, bodies in chapter.GRAMMAR.items()}
    return {(s, b): math.exp(value) / total[s] for (s, b), value in logits.items()}


@cache
def grown(chapter, size, symbol="S"):
    """All trees of the grammar with so many words."""
    found = [(symbol, b) for b in chapter.GRAMMAR[symbol] if " " not in b and size == 1]
    for pair in (b.split() for b in chapter.GRAMMAR[symbol] if " " in b):
        for k in range(1, size):
            sides = grown(chapter, k, pair[0]), grown(chapter, size - k, pair[1])
            found += [(symbol, *both) for both in product(*sides)]
    return found


def probability(tree, probs):
    """Product of a tree's rules."""
    if len(tree) == 2:
        return probs.get(tree, 0.0)
    symbol, left, right = tree
    return probs[symbol, f"{left[0]} {right[0]}"] * probability(left, probs) * probability(right, probs)


def guesses(chapter, x, symbol="S"):
    """All trees that the network can draw."""
    if len(x) == 1:
        return [(symbol, *x)]
    found = []
    for body, k in chapter.options(symbol, len(x)):
        one, two = body.split()
        found += [
            (symbol, *both) for both in product(guesses(chapter, x[:k], one), guesses(chapter, x[k:], two))
        ]
    return found


def assert_frequencies(drawn, expected):
    """Counts of NUM draws are those of the probabilities, within 5 standard deviations and a draw."""
    counts = Counter(drawn)
    assert counts.keys() <= expected.keys() and math.isclose(sum(expected.values()), 1)
    for outcome, chance in expected.items():
        assert abs(counts[outcome] - NUM * chance) < 1 + 5 * math.sqrt(NUM * chance * (1 - chance)), outcome


def test_the_example_has_eighty_lines():
    assert sum(code_lines(SOURCES[name]) for name in LIFTED) <= 80


def test_the_inside_algorithm_sums_over_all_trees(chapter, probs):
    of = defaultdict(list)
    for size in (1, 2, 3, 4, 5, 7):
        for tree in grown(chapter, size):
            of[chapter.words(tree)].append(tree)
    sentences = [x for x in of if len(x) < 7] + [x for x in of if len(x) == 7][::50]
    assert {len(of[x]) for x in sentences} == {1, 2, 5}
    for x in sentences:
        total = sum(probability(tree, probs) for tree in of[x])
        assert chapter.inside(probs, x) == pytest.approx(total, rel=1e-12)
        assert sorted(map(str, chapter.parses(x))) == sorted(map(str, of[x]))
    strings = [x for size in (1, 2, 3) for x in product(chapter.WORDS, repeat=size) if x not in of]
    assert len(strings) > 500 and not any(chapter.inside(probs, x) for x in strings)


def test_the_network_knows_lengths_and_no_words(chapter):
    for symbol, size in product(chapter.GRAMMAR, range(2, 8)):
        roots = {
            (f"{left[0]} {right[0]}", len(chapter.words(left)))
            for _, left, right in grown(chapter, size, symbol)
        }
        assert set(chapter.options(symbol, size)) == roots
    fitting = [x for tree in guesses(chapter, LONG) for x in [tree] if tree in chapter.parses(LONG)]
    assert len(fitting) == 5 < len(guesses(chapter, LONG))


@torch.no_grad()
@pytest.mark.parametrize("x", [PLAIN, AMBIGUOUS, LONG], ids=len)
def test_densities_and_importance_weights_by_enumeration(chapter, tables, probs, x):
    trees = guesses(chapter, x)
    log_p, log_q = chapter.log_densities(*tables, trees)
    assert log_p.exp().tolist() == pytest.approx([probability(tree, probs) for tree in trees], rel=1e-12)
    assert log_q.exp().sum().item() == pytest.approx(1, abs=1e-12)
    evidence = (log_q.exp() * (log_p - log_q).exp()).sum()
    assert evidence.item() == pytest.approx(chapter.inside(probs, x), rel=1e-9)


@torch.no_grad()
def test_the_samplers_draw_what_the_densities_say(chapter, tables, probs):
    rng, odds = random.Random(1), tables[1].exp().tolist()
    trees = guesses(chapter, LONG)
    drawn = [chapter.parse(odds, rng, LONG) for _ in range(NUM)]
    log_q = chapter.log_densities(*tables, trees)[1]
    assert_frequencies(drawn, dict(zip(trees, log_q.exp().tolist(), strict=True)))
    log_p, log_q = chapter.log_densities(*tables, drawn)
    w = (log_p - log_q).exp()
    assert abs(w.mean() - chapter.inside(probs, LONG)) < 5 * w.std() / math.sqrt(NUM)

    limit = 5
    chances = {tree: probability(tree, probs) for size in (3, 5) for tree in grown(chapter, size)}
    chances[False] = 1 - sum(chances.values())  # more words than that
    assert_frequencies([chapter.dream(probs, rng, limit=limit) for _ in range(NUM)], chances)


# -- gradients, by enumeration over all tuples of three guesses --------------------------------------------


def expected_gradients(chapter, tables, method, floor=-math.inf, K=3):
    """Of the chapter's losses awake: minus their gradients in theta and phi, as the loop takes them."""
    log_p, log_q = chapter.log_densities(*tables, guesses(chapter, AMBIGUOUS))
    tuples = evaluation.particle_tuples(len(log_p), K)
    log_p, log_q = log_p[tuples].clamp(min=floor), log_q[tuples]
    ok = log_p.isfinite().any(dim=0)
    chance = log_q.sum(dim=0).exp().detach()[ok]
    total = sum((chance * loss(log_p[:, ok], log_q[:, ok])).sum() for loss in chapter.AWAKE[method])
    return [-g for g in grad(total, tables)]


def of_the_bound(chapter, tables, K=3):
    """Gradients of the bound with 0 in place of minus infinity."""
    trees = guesses(chapter, AMBIGUOUS)
    log_p, log_q = chapter.log_densities(*tables, trees)
    possible = [i for i, tree in enumerate(trees) if tree in chapter.parses(AMBIGUOUS)]
    assert 0 < len(possible) < len(trees)
    objective = 0
    for particles in product(range(len(trees)), repeat=K):
        w = [(log_p[i] - log_q[i]).exp() for i in particles if i in possible]
        if w:
            objective = objective + log_q[list(particles)].sum().exp() * (sum(w) / K).log()
    return grad(objective, tables)


def test_vimco_climbs_the_bound_without_what_is_lost(chapter, tables):
    for found, exact in zip(
        expected_gradients(chapter, tables, "vimco"), of_the_bound(chapter, tables), strict=True
    ):
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-9)


def test_vimco_with_a_floor_climbs_the_bound_of_a_grammar_with_one(chapter, tables):
    log_p, log_q = chapter.log_densities(*tables, guesses(chapter, AMBIGUOUS))
    exact = grad(evaluation.exact_bound(log_p.clamp(min=-20), log_q, 3), tables)
    for a, b in zip(expected_gradients(chapter, tables, "vimco", floor=-20), exact, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_ww_follows_the_weights_and_ws_shares_its_theta(chapter, tables):
    log_p, log_q = chapter.log_densities(*tables, guesses(chapter, AMBIGUOUS))
    chances, weights = log_q.exp().tolist(), (log_p - log_q).exp().tolist()
    scores = [grad(value, tables[1], retain_graph=True)[0] for value in log_q]
    exact = torch.zeros_like(tables[1])
    for particles in product(range(len(chances)), repeat=3):
        total = sum(weights[i] for i in particles)
        for i in particles if total else ():
            exact += math.prod(chances[j] for j in particles) * weights[i] / total * scores[i]
    theta, phi = expected_gradients(chapter, tables, "ww")
    torch.testing.assert_close(phi, exact, rtol=0, atol=1e-9)
    bound, _ = of_the_bound(chapter, tables)
    torch.testing.assert_close(theta, bound, rtol=0, atol=1e-9)
    log_p, log_q = chapter.log_densities(*tables, guesses(chapter, PLAIN))
    for loss in chapter.AWAKE["ws"]:
        assert grad(loss(log_p[None], log_q[None]).sum(), tables[1], allow_unused=True) == (None,)
    assert torch.equal(expected_gradients(chapter, [*tables], "ww")[0], theta)


def test_the_sleep_phase_descends_the_divergence_from_the_posterior(chapter, tables):
    dreams = [tree for size in (3, 5) for tree in grown(chapter, size)]
    log_p, log_q = chapter.log_densities(*tables, dreams)
    found = grad((log_p.exp().detach() * estimators.sleep_phi_loss(log_q[None])).sum(), tables[1])[0]
    divergence = 0
    for x in sorted({chapter.words(tree) for tree in dreams}):
        log_p = chapter.log_densities(*tables, chapter.parses(x))[0].detach()
        log_q = chapter.log_densities(*tables, guesses(chapter, x))[1].log_softmax(dim=0)
        log_q = log_q[[guesses(chapter, x).index(tree) for tree in chapter.parses(x)]]
        evidence = log_p.logsumexp(dim=0)
        divergence = divergence + evidence.exp() * evaluation.exact_kl(log_p - evidence, log_q)
    torch.testing.assert_close(found, grad(divergence, tables[1])[0], rtol=0, atol=1e-9)


# -- the loop ----------------------------------------------------------------------------------------------


def shares(chapter, method, sentences, steps=80, seed=1, **options):
    """Share of impossible particles in the first and in the last twenty steps, and what was trained."""
    chapter.fit.__globals__.update(corpus=sentences, num_iterations=steps)
    theta, phi, dead = chapter.fit(method, seed, **options)
    assert torch.isfinite(theta).all() and torch.isfinite(phi).all() and len(dead) == steps
    return sum(dead[:20]) / 20, sum(dead[-20:]) / 20, (theta, phi)


MIXED = 5 * [PLAIN, AMBIGUOUS, LONG]


@pytest.mark.parametrize("method", ["ww", "ws"])
def test_impossible_trees_are_unlearned(chapter, method):
    first, last, trained = shares(chapter, method, MIXED)
    assert last < first / 3
    again = shares(chapter, method, MIXED)[2]
    assert all(map(torch.equal, trained, again))
    other = shares(chapter, method, MIXED, seed=2)[2]
    assert not any(map(torch.equal, trained, other))


def test_vimco_needs_a_floor(chapter):
    first, last, _ = shares(chapter, "vimco", 10 * [AMBIGUOUS], steps=120)
    assert last > 0.95 > first  # whole batches are lost, and the loop goes on
    first, last, _ = shares(chapter, "vimco", 10 * [AMBIGUOUS], floor=-20)
    assert last < first / 2
