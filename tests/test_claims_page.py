"""The page of claims and the comparison of methods say what they were given."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import claims_page
import compare_methods
from claims_reasons import REASONS

from rwslib import evaluation, inspection, records
from rwslib.claims import air_claims, export, vae_claims
from rwslib.claims.general import small_mixture
from rwslib.experiments import AIRConfig, VAEConfig
from rwslib.methods import METHODS


def metrics(experiment, level, num_runs):
    """What a record of either experiment needs for its claims, all values near a level."""
    values = level + 0.01 * np.arange(num_runs)
    curve = np.linspace(-200, level, 41)[None] + np.random.default_rng(0).standard_normal((num_runs, 41))
    shared = {"log_marginal": values, "kl_q_p": -values / 20, "ess": values**2 / 100}
    return shared | {
        "train_bound": curve,
        "test_bound": curve,
        "active_units": np.full(num_runs, 25.0),
        "count_accuracy_sample": np.full(num_runs, 0.9 - level / 1000),
    }


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """A staging folder with claims of few records, and the store that these come from."""
    store = tmp_path / "published"
    monkeypatch.setenv("RWSLIB_PUBLISHED", str(store))
    monkeypatch.setenv("RWSLIB_RESULTS", str(tmp_path / "none"))

    def keep(config, level):
        plain = records.plain(config)
        return records.save(plain, metrics(config.experiment, level, config.num_runs), {"format": 1}, store)

    vae = {
        (m, K): keep(VAEConfig(m, K, num_stages=4, num_runs=2), level)
        for (m, K), level in {("iwae", 8): -91, ("iwae", 64): -90, ("ww", 8): -95, ("ww", 64): -93}.items()
    }
    keep(VAEConfig("ww", 64, num_stages=4, num_runs=1, precision="bfloat16"), -92)
    air = {
        (m, K): keep(AIRConfig(m, K, num_iterations=8000, num_runs=1), level)
        for (m, K), level in {
            ("ww", 5): -130,
            ("ww", 10): -125,
            ("vimco", 5): -120,
            ("vimco", 10): -119,
        }.items()
    }
    for name, claims in {"02_gmm": {}, "03_vae": vae_claims(vae), "04_air": air_claims(air)}.items():
        (tmp_path / "claims").mkdir(exist_ok=True)
        exported = json.loads(export(claims))
        if not claims:
            empty = {"source": "", "says": "", "measured": "", "verdict": "not run"}
            empty |= {"effects": [], "shown": [], "records": []}
            exported = {f"GMM-{i}": empty for i in range(1, 17)}
        (tmp_path / f"claims/{name}.json").write_text(json.dumps(exported))
    (tmp_path / "book").mkdir()
    (tmp_path / "_config.yml").write_text("repository: {url: 'https://example.org/rws'}")
    return tmp_path


def test_the_page_has_every_claim_with_its_effects_and_records(stage):
    page = claims_page.claims_page(stage)
    everything = json.loads((stage / "book/claims.json").read_text())
    assert len(everything) == 33
    assert page.count("::::{dropdown}") == 33
    for entry in everything.values():
        for record in entry["records"]:
            config = record["config"]
            assert f"/tree/main/book/results/{config['experiment']}/{record['key']})" in page
            assert inspection.find(record["key"]).config == config
    assert "| IWAE, K 8 to 64 | 1 (" in page
    assert "| WW, K 5 to 10 | 5 (no interval) | open |" in page
    assert "40 epochs (the paper: 3,280), MNIST; 2 replicates; K = 8 and 64." in page


def test_the_summary_counts_the_verdicts(stage):
    chapters = claims_page.read_claims(stage)
    last = claims_page.summary(chapters).splitlines()[-2]
    verdicts = [entry["verdict"] for entries in chapters.values() for entry in entries.values()]
    counts = " | ".join(f"**{verdicts.count(name)}**" for name in claims_page.VERDICTS)
    assert last == f"| **all 33** | {counts} |"
    assert chapters[claims_page.GENERAL]["GEN-3"]["verdict"] == "mixed"


def test_reasons_come_from_records_and_go_with_them(stage):
    page = claims_page.claims_page(stage)
    assert "**Length** ([VAE-3](#vae-3)" in page
    assert "WW, K = 64, in bfloat16: +1.00 nats of evidence" in page
    assert "**Replicates** ([AIR-1](#air-1)" in page
    assert "VIMCO's baseline" not in page  # no record of the mixture
    chapters = claims_page.read_claims(stage)
    assert not any(
        reason(entries, set())  # nothing is open
        for name, heading in claims_page.CHAPTERS.items()
        for reason in REASONS[name]
        if (entries := chapters[heading])
    )


def test_exact_and_sampled_comparisons_agree():
    method = METHODS["vimco"].function
    mean, variance, _ = compare_methods.enumerated(method, 2)
    gradients = compare_methods.draws(method, 2, 20_000)
    error = (variance / len(gradients)).sqrt()
    assert ((gradients.mean(dim=0) - mean).abs() < 5 * error).all()
    torch.testing.assert_close(gradients.var(dim=0), variance, rtol=0.1, atol=0)


def test_bias_is_seen_where_it_is_and_nowhere_else():
    log_joint, logits = small_mixture()
    exact = evaluation.exact_wake_phi(log_joint, logits, 2)
    torch.testing.assert_close(compare_methods.enumerated(METHODS["ww"].function, 2)[0], exact)
    unbiased = {
        name: compare_methods.bias_and_noise(name, 2, True)[0] == "0"
        for name in ("ww", "reinforce", "vimco", "vimco_no_log_k", "vimco_air2018", "nvil")
    }
    assert unbiased == {
        "ww": False,
        "reinforce": True,
        "vimco": True,
        "vimco_no_log_k": True,
        "vimco_air2018": False,
        "nvil": True,
    }
