"""The run store: whole records or none, nothing overwritten, nothing unpickled."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rwslib import records
from rwslib.experiments import GMMConfig, run, stored
from rwslib.records import RunRecord, training_time

CONFIG = GMMConfig("ww", 2, num_iterations=20, num_runs=2, batch_size=10)


@pytest.fixture(autouse=True)
def no_published_records(tmp_path, monkeypatch):
    monkeypatch.setenv("RWSLIB_PUBLISHED", str(tmp_path / "published"))


def test_a_run_is_stored_and_loaded_again(tmp_path):
    assert stored(CONFIG, tmp_path) is None
    record = run(CONFIG, tmp_path)
    names = {path.name for path in record.path.iterdir()}
    assert names == {"config.json", "provenance.json", "metrics.npz", "weights.safetensors"}
    assert record.key == records.key(records.plain(CONFIG))
    assert record.metrics["prior_l2"].shape == (2, len(record.metrics["iteration"]))
    assert record.metrics["prior_l2_final"].shape == (2,)
    assert {"commit", "date", "hardware", "seconds", "versions"} <= record.provenance.keys()
    before = (record.path / "metrics.npz").stat().st_mtime_ns
    again = run(CONFIG, tmp_path)
    assert (again.path / "metrics.npz").stat().st_mtime_ns == before
    np.testing.assert_array_equal(again.metrics["prior_l2"], record.metrics["prior_l2"])
    assert {path.name for path in record.path.parent.iterdir()} == {record.key}  # no lock, no checkpoint


def test_same_configuration_same_numbers(tmp_path):
    left, right = run(CONFIG, tmp_path / "a"), run(CONFIG, tmp_path / "b")
    for name, value in left.metrics.items():
        np.testing.assert_array_equal(right.metrics[name], value)
    other = run(replace(CONFIG, seed=2), tmp_path / "a")
    assert (other.metrics["posterior_l2"] != left.metrics["posterior_l2"]).any()


def test_the_key_sees_every_field_and_not_their_order():
    plain = records.plain(CONFIG)
    assert records.key(plain) == records.key(dict(reversed(plain.items())))
    assert records.key(plain) == records.key(json.loads(json.dumps(plain)))
    for changed in (replace(CONFIG, seed=2), replace(CONFIG, init="near"), replace(CONFIG, hidden=(16, 16))):
        assert records.key(records.plain(changed)) != records.key(plain)


@pytest.mark.parametrize("name", ["config.json", "provenance.json", "metrics.npz"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty"])
def test_a_damaged_record_is_refused_and_left_alone(tmp_path, name, damage):
    path = run(CONFIG, tmp_path).path / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 0 if damage == "empty" else 60])
    with pytest.raises(ValueError, match=r"is damaged .* delete this folder") as error:
        run(CONFIG, tmp_path)
    assert str(path.parent) in str(error.value)
    assert path.parent.exists()


def test_a_record_with_a_changed_configuration_is_refused(tmp_path):
    path = run(CONFIG, tmp_path).path / "config.json"
    path.write_text(path.read_text().replace('"seed": 1', '"seed": 2'))
    with pytest.raises(ValueError, match="does not hash to its name"):
        run(CONFIG, tmp_path)


def test_a_record_of_a_newer_version_is_refused(tmp_path):
    path = run(CONFIG, tmp_path).path / "provenance.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(ValueError, match="newer"):
        run(CONFIG, tmp_path)


def test_pickled_metrics_are_not_loaded(tmp_path):
    path = run(CONFIG, tmp_path).path / "metrics.npz"
    np.savez(path, iteration=np.array([{"an": "object"}], dtype=object))
    with pytest.raises(ValueError, match="damaged"):
        run(CONFIG, tmp_path)


def test_a_half_written_record_is_not_taken_for_a_whole_one(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(records, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        run(CONFIG, tmp_path)
    monkeypatch.undo()
    monkeypatch.setenv("RWSLIB_PUBLISHED", str(tmp_path / "published"))
    assert stored(CONFIG, tmp_path) is None
    assert not list(records.iterate(tmp_path))
    assert run(CONFIG, tmp_path).metrics["prior_l2_final"].shape == (2,)


def test_published_records_come_first_and_are_only_read(tmp_path):
    record = run(CONFIG, tmp_path / "results")
    published = records.publish(record.path)
    assert published.is_relative_to(tmp_path / "published")
    assert run(CONFIG, tmp_path / "elsewhere").path == published
    assert not (tmp_path / "elsewhere").exists()


def test_an_unwritable_results_dir_stops_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr("rwslib.experiments.Trainer", lambda *args: pytest.fail("training began"))
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ValueError, match="results_dir must be a folder that can be written"):
        run(CONFIG, tmp_path / "file")
    if os.getuid():  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(ValueError, match="results_dir"):
            run(CONFIG, tmp_path / "locked")


def test_the_lock_keeps_others_out_and_goes_with_its_holder(tmp_path):
    plain = records.plain(CONFIG)
    with records.lock(plain, tmp_path) as held:
        assert held
        with records.lock(plain, tmp_path, wait=False) as second:
            assert not second
    with records.lock(plain, tmp_path, wait=False) as held:
        assert held


def test_training_time_is_summed_by_what_it_ran_on():
    def record(hours, **hardware):
        return RunRecord({}, {"seconds": 3600 * hours, "hardware": hardware}, {}, Path("none"))

    found = [
        record(1.5, processor="one"),
        record(0.5, processor="two", accelerator="card"),
        record(2, processor="one"),
        record(0.25, processor="two"),
    ]
    assert training_time(found) == "3.5 core-hours on one, 15 core-minutes on two, 30 minutes on card"
    assert training_time([]) == ""
