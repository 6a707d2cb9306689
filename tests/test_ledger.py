"""The page of claims says what it was given."""

import json
import re
from pathlib import Path

import generate_pages
import nbformat
import numpy as np
import pytest

from rwslib import records
from rwslib.commands import inspection
from rwslib.experiments import AIRConfig, VAEConfig
from rwslib.report import ledger
from rwslib.report.claims import CARRIED, SUMS, VERDICTS, air_claims, export, gmm_claims, vae_claims


def metrics(experiment, level, num_runs):
    """What a record of either experiment needs for its claims, all values near a level."""
    values = level + 0.01 * np.arange(num_runs)
    curve = np.linspace(-200, level, 41)[None] + np.random.default_rng(0).standard_normal((num_runs, 41))
    shared = {"log_marginal": values, "kl_q_p": -values / 20, "elbo": 1.05 * values, "ess": values**2 / 100}
    return shared | {
        "train_bound": curve,
        "test_bound": curve,
        "active_units": np.full(num_runs, 25.0),
        "count_accuracy_sample": np.full(num_runs, 0.9 - level / 1000),
    }


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """A staging folder whose notebooks carry claims of few records, and the store of these."""
    folder = tmp_path_factory.mktemp("stage")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RWSLIB_PUBLISHED", str(folder / "published"))
        patch.setenv("RWSLIB_RESULTS", str(folder / "none"))

        def keep(config, level):
            found = metrics(config.experiment, level, config.num_runs)
            return records.save(records.plain(config), found, {"format": 1}, folder / "published")

        vae = {
            (m, K): keep(VAEConfig(m, K, num_stages=4, num_runs=2), level)
            for (m, K), level in {
                ("iwae", 8): -91,
                ("iwae", 64): -90,
                ("ww", 8): -95,
                ("ww", 64): -93,
            }.items()
        }
        air = {
            (m, K): keep(AIRConfig(m, K, num_iterations=8000), level)
            for (m, K), level in {
                ("ww", 5): -130,
                ("ww", 10): -125,
                ("vimco", 5): -120,
                ("vimco", 10): -119,
            }.items()
        }
        chapters = {
            "02_gmm": gmm_claims({}, {}, {}, np.zeros((0, 2)), {}),
            "03_vae": vae_claims(vae),
            "04_air": air_claims(air),
        }
        for name, claims in chapters.items():
            cell = nbformat.v4.new_code_cell("show_claims(claims)")
            carried = {CARRIED: export(claims)}
            cell.outputs = [nbformat.v4.new_output("display_data", {"text/plain": ""}, metadata=carried)]
            head = nbformat.v4.new_markdown_cell("# A chapter\n\n<!-- generated: verdicts -->")
            (folder / "notebooks").mkdir(exist_ok=True)
            nbformat.write(nbformat.v4.new_notebook(cells=[head, cell]), folder / f"notebooks/{name}.ipynb")
        (folder / "book").mkdir()
        (folder / "_config.yml").write_text("repository: {url: 'https://example.org/rws'}")
        yield folder


def test_the_page_has_every_claim_with_its_effects_and_records(stage):
    page = ledger.claims_page(stage)
    everything = json.loads((stage / "book/claims.json").read_text())
    assert page.count("::::::{dropdown}") == len(everything)
    assert list(everything)[: len(SUMS)] == list(SUMS)
    assert page.index("**GEN-3a**") < page.index("**GMM-1**") < page.index("**GEN-1**")
    for name, entry in everything.items():
        assert f":name: {name.lower()}\n" in page
        assert entry["verdict"] in VERDICTS and "strict" in entry
        for record in entry["records"]:
            config = record["config"]
            assert f"/tree/main/book/results/{config['experiment']}/{record['key']})" in page
            assert inspection.find(record["key"]).config == config
    assert '<th scope="row">IWAE, K 8 to 64</th>' in page
    assert "<td>+5 nats (no interval)</td><td>open</td>" in page
    assert (
        "40 epochs (the schedule that the paper follows: 3,280), MNIST; 2 replicates; K = 8 and 64." in page
    )
    assert "8,000 iterations (the paper: 2,000,000)" in page
    assert "*too few replicates*: Without two replicates" in page


def test_every_claim_that_does_not_simply_hold_says_why(stage):
    claims, _ = ledger.read_ledger(stage)
    for name, entry in claims.items():
        kinds = {reason["kind"] for reason in entry["reasons"]}
        limits = kinds <= {"depends on a detail", "matter of the measure"}  # of what holds
        assert (entry["verdict"] == "holds") == limits, name
        assert entry["verdict"] in VERDICTS


def test_the_summary_counts_the_verdicts_of_all_but_the_sums(stage):
    claims, _ = ledger.read_ledger(stage)
    (last,) = [line for line in ledger.summary(claims).splitlines() if line.startswith("| **all")]
    verdicts = [entry["verdict"] for name, entry in claims.items() if name not in {*SUMS, "AIR-7"}]
    assert f"**all {len(verdicts)}**" in last
    assert last.endswith("| " + " | ".join(str(verdicts.count(name) or "") for name in VERDICTS) + " |")
    said = ledger.answer(stage)
    assert " hold (2 of which could not fail)" in said
    total, *counts = map(int, re.findall(r"\d+", said.replace("(2 of which could not fail)", "")))
    assert total == sum(counts) == len(verdicts) and counts == [
        verdicts.count(name) for name in VERDICTS if name in verdicts
    ]


def test_what_could_not_fail_and_what_was_run_in_part_is_counted_apart():
    def made(verdict, certain="", *sides):
        return {"verdict": verdict, "certain": certain, "effects": [{"side": side} for side in sides]}

    claims = {"A": made("holds", "identity"), "B": made("fails"), "C": made("holds", "", "agrees", "not run")}
    assert ledger.counted(claims.values()) == "2 hold (1 of which could not fail) and 1 fails"
    assert ledger.held(claims).splitlines() == [
        "Of those that hold, 1 could not fail: A (identity).",
        "Of those that hold, some settings were not run: C.",
    ]
    assert ledger.held({"B": claims["B"]}) == ""


def test_the_page_says_what_could_not_fail_and_on_what_a_claim_that_holds_depends(stage):
    claims, records = ledger.read_ledger(stage)
    shown = ledger.show_claim("GEN-1", claims["GEN-1"], claims, records, None)
    assert '{bdg-success}`holds` <span class="claim-chip">could not fail: identity</span>' in shown
    reason = {"reasons": [{"kind": "depends on a detail", "says": "From a warm-up it is not."}]}
    for verdict, words in {"holds": "What it depends on", "split": "Why not everywhere"}.items():
        entry = claims["VAE-1a"] | reason | {"verdict": verdict}
        shown = ledger.show_claim("VAE-1a", entry, claims, records, None)
        assert f"**{words}**:\n\n- *depends on a detail*" in shown and "could not fail" not in shown
    assert "GEN-1 (identity) and GEN-2 (identity)." in ledger.summary(claims)


def test_a_claim_of_the_abstract_has_the_effects_of_its_parts(stage):
    claims, _ = ledger.read_ledger(stage)
    whole = claims["GEN-3c"]
    assert set(whole["parts"]) >= {"VAE-3", "AIR-4"}
    assert len(whole["effects"]) == sum(len(claims[part]["effects"]) for part in whole["parts"])
    absent = [e["setting"] for e in claims["GEN-3a"]["effects"] if e["side"] == "not run"]
    assert absent == ["VAE-1a: WW, K 64 to 128"]
    assert claims["GEN-3a"]["finding"].endswith("; 1 more was not run.")
    assert {"VAE-3: IWAE above WW, K 8", "AIR-4: VIMCO above WW, K 5"} <= {
        effect["setting"] for effect in whole["effects"]
    }


def test_a_bar_has_its_numbers_in_words_and_in_proportion():
    bar = ledger.bar({"agrees": 3, "contradicts": 1, "open": 0})
    assert 'aria-label="Effects: 3 agree and 1 contradicts"' in bar
    assert re.findall(r'class="(\w+)" style="flex-grow:(\d)"', bar) == [("agrees", "3"), ("contradicts", "1")]
    assert ledger.bar({"not run": 2}) == ""


def test_effects_are_drawn_on_one_scale():
    def made(value, low, high, side):
        ends = {"value": value, "low": low, "high": high, "side": side}
        return ends | {"setting": "K < 5", "unit": "", "smallest": 0.1}

    effects = [made(1, 0, 2, "agrees"), made(-1, -2, 0, "contradicts"), made(0, None, None, "open")]
    shown = ledger.forest(effects)
    assert shown.count('<path class="zero" d="M50.0 0V10"/>') == 3
    assert '<path d="M50.0 5H96.3"/><path class="value" d="M73.1 2V8"/>' in shown
    assert '<path d="M0 5H100"/>' in shown and "(no interval)" in shown
    assert "K &lt; 5" in shown
    assert ledger.forest([made(None, None, None, "not run")]) == "**Not run**: K < 5."


def test_a_chapter_starts_with_its_bar(stage):
    path = stage / "notebooks/03_vae.ipynb"
    generate_pages.put(path, "verdicts", ledger.chapter_bar(path))
    head = nbformat.read(path, as_version=4).cells[0].source
    assert 'class="claim-bar"' in head and "claims <claims-vae>`" in head
    with pytest.raises(SystemExit, match="has no line"):
        generate_pages.put(path, "verdicts", "")


def test_the_first_page_says_how_long_runs_are_and_what_the_original_code_explains(stage):
    said = {name: ledger.chapter_scale(stage / f"notebooks/{name}.ipynb") for name in ("02_gmm", "03_vae")}
    assert said["02_gmm"] == "nothing was run"
    assert said["03_vae"].startswith("40 epochs (the schedule that the paper follows: 3,280), MNIST; 2 ")
    chapter = Path(__file__).parent.parent / "notebooks/02_gmm.ipynb"
    assert ledger.chapter_scale(chapter) == "100,000 iterations; 10 replicates; K = 2, 5, 10 and 20"
    dreaming = records.plain(AIRConfig("ww", 5, num_iterations=3000))
    assert ledger.scale([dreaming]).startswith(
        "3,000 iterations (the paper: 2,000,000), the first 600 of them on dreams, "
    )
    said = ledger.original_code(chapter)
    assert said.startswith("- GMM-3b says that inference networks get worse with more particles ")
    assert "lacks its log K, it is as the paper says: VIMCO, K 5 to 10, +0.12 " in said and "\n" not in said
    assert ledger.original_code(chapter, "GMM-8") == ""


def test_a_chapter_without_claims_is_an_error(tmp_path):
    nbformat.write(nbformat.v4.new_notebook(), tmp_path / "04_air.ipynb")
    with pytest.raises(SystemExit, match="carries 0 sets of claims"):
        ledger.chapter_claims(tmp_path / "04_air.ipynb")
