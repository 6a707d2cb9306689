"""The run store: whole records or none, nothing overwritten, nothing unpickled."""

import json
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from others import bound_by_modes, shared  # noqa: F401
from safetensors.numpy import load_file, save_file

from rwslib import files, records
from rwslib.commands import inspection
from rwslib.experiments import GMMConfig, gmm, run, stored
from rwslib.records import RunRecord, training_time
from rwslib.training import Trainer

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

    monkeypatch.setattr("safetensors.numpy.save", fail)
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


def test_weights_that_were_left_out_are_published_later(tmp_path):
    record = run(CONFIG, tmp_path)
    published = records.publish(record.path, weights=False)
    before = {path.name: path.read_bytes() for path in published.iterdir()}
    assert records.publish(record.path) == published
    after = {path.name: path.read_bytes() for path in published.iterdir()}
    assert after.pop(records.WEIGHTS) == (record.path / records.WEIGHTS).read_bytes()
    assert after == before
    assert records.publish(record.path, weights=False) == published  # nothing is taken away
    assert [path.name for path in published.parent.iterdir()] == [record.key]


def test_a_record_is_not_published_over_one_with_other_numbers(tmp_path):
    first, second = run(CONFIG, tmp_path / "a"), run(CONFIG, tmp_path / "b")
    published = records.publish(first.path, weights=False)
    content = (second.path / "provenance.json").read_text().replace('"seconds"', '"seconds": 0,\n "more"')
    (second.path / "provenance.json").write_text(content)
    with pytest.raises(ValueError, match="published with other numbers"):
        records.publish(second.path)
    assert records.load(published).provenance == first.provenance
    assert not (published / records.WEIGHTS).exists()


def test_what_is_no_record_is_not_published_and_not_called_damaged(tmp_path):
    run(CONFIG, tmp_path)
    for path in (tmp_path, tmp_path / "gmm", tmp_path / "nowhere", tmp_path / "gmm" / ("0" * 16)):
        with pytest.raises(ValueError, match="record must be the folder of a finished record"):
            records.publish(path)


def test_a_record_is_published_by_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(run(CONFIG, tmp_path).path)
    assert records.publish(Path()).is_relative_to(tmp_path / "published")


def test_outside_a_checkout_publishing_is_refused(tmp_path, monkeypatch):
    record = run(CONFIG, tmp_path)
    monkeypatch.setattr(files, "IS_CHECKOUT", False)
    records.publish(record.path)  # to where RWSLIB_PUBLISHED says
    monkeypatch.delenv("RWSLIB_PUBLISHED")
    with pytest.raises(ValueError, match="nowhere to publish to"):
        records.publish(record.path)


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


# -- bytes that change ---------------------------------------------------------------------------------


def flip(path, place):
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("place", [-1, -1000, 300])
def test_a_flipped_byte_in_weights_is_noticed(tmp_path, place):
    record = run(CONFIG, tmp_path)
    assert inspection.verify(tmp_path) == (1, [])
    flip(record.path / records.WEIGHTS, place)
    with pytest.raises(ValueError, match=r"weights\.safetensors is damaged .*checksum differs"):
        record.weights()
    with pytest.raises(ValueError, match="damaged"):
        records.publish(record.path)
    (fault,) = inspection.verify(tmp_path)[1]
    assert "weights.safetensors is damaged" in fault


def test_records_without_checksums_load_and_are_whole(tmp_path):
    record = run(CONFIG, tmp_path)
    arrays = load_file(record.path / records.WEIGHTS)
    save_file(arrays, record.path / records.WEIGHTS)
    provenance = json.loads((record.path / "provenance.json").read_text())
    del provenance["modified"]
    (record.path / "provenance.json").write_text(json.dumps(provenance))
    for name, value in records.load(record.path).weights().items():
        np.testing.assert_array_equal(value, arrays[name])
    assert inspection.verify(tmp_path) == (1, [])


def test_a_flipped_byte_in_metrics_is_noticed_or_changes_nothing(tmp_path):
    record = run(CONFIG, tmp_path)
    path = record.path / "metrics.npz"
    whole, noticed = path.read_bytes(), 0
    for place in range(0, len(whole), 53):
        flip(path, place)
        try:
            found = records.load(record.path).metrics
        except ValueError:
            noticed += 1
        else:  # a date, say, or a name that is another one now
            for name, value in found.items():
                np.testing.assert_array_equal(value, record.metrics.get(name, value))
        path.write_bytes(whole)
    assert noticed > 20


# -- other people's files ------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_records_and_checkpoints_have_the_modes_that_the_umask_says(tmp_path, umask):
    before = os.umask(umask)
    try:
        record = run(CONFIG, tmp_path / "store")
        checkpoint = tmp_path / "store/state.checkpoint"
        Trainer(gmm.problem(CONFIG), [0], compiled=False).save(checkpoint, 0)
        published = records.publish(record.path)
    finally:
        os.umask(before)
    for folder in (record.path, record.path.parent, published, published.parent):
        assert folder.stat().st_mode & 0o777 == 0o777 & ~umask
    for path in (*record.path.iterdir(), *published.iterdir(), checkpoint):
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.fixture
def others_store(shared, monkeypatch):  # noqa: F811
    """A store in which everybody may write."""
    monkeypatch.setenv("RWSLIB_PUBLISHED", str(shared / "published"))
    (shared / "store").mkdir()
    (shared / "store").chmod(0o777)
    return shared / "store"


@pytest.mark.parametrize("name", ["config.json", "metrics.npz", "provenance.json", "."])
def test_what_may_not_be_read_is_not_called_damaged(others_store, name):
    record = run(CONFIG, others_store)
    (record.path / name).chmod(0)
    with bound_by_modes():
        with pytest.raises(ValueError, match=r"cannot be read \(Permission denied") as caught:
            records.load(record.path)
        lines = [*inspection.table(others_store), *inspection.verify(others_store)[1]]
        with pytest.raises((ValueError, PermissionError)) as also:
            run(CONFIG, others_store)
    assert sum("cannot be read (Permission denied)" in line for line in lines) == 2
    assert not re.search("delete|damaged", "".join([*lines, str(caught.value), str(also.value)]))
    (record.path / name).chmod(0o755)


@pytest.mark.parametrize("name", ["gmm", "."])
def test_a_folder_that_may_not_be_read_is_said(others_store, name):
    store = run(CONFIG, others_store).path.parent.parent
    (store / name).chmod(0)
    with bound_by_modes():
        number, faults = inspection.verify(store)
        assert number == len(faults) == 1
        assert str(store / name) in faults[0] and "cannot be read (Permission denied)" in faults[0]
    (store / name).chmod(0o755)


def test_weights_and_checkpoints_that_may_not_be_read_are_not_called_damaged(others_store):
    record = run(CONFIG, others_store)
    (record.path / records.WEIGHTS).chmod(0)
    trainer = Trainer(gmm.problem(CONFIG), [0], compiled=False)
    checkpoint = record.path.with_suffix(".checkpoint")
    trainer.save(checkpoint, 0)
    checkpoint.chmod(0)
    with bound_by_modes():
        with pytest.raises(PermissionError, match="safetensors"):
            record.weights()
        with pytest.raises(PermissionError, match="checkpoint"):
            trainer.load(checkpoint)
        lines = [*inspection.table(others_store), *inspection.verify(others_store)[1]]
    assert sum("cannot be read (Permission denied)" in line for line in lines) == 2
    assert not re.search("delete|damaged", "".join(lines))


# -- the commit ----------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository that stands for this checkout."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setattr(files, "ROOT", tmp_path / "checkout")
    (files.ROOT / "rwslib").mkdir(parents=True)
    (files.ROOT / "rwslib/code.py").write_text("old")
    (files.ROOT / "notes.md").write_text("old")
    git("init", "-q")
    git("add", ".")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")
    records.source.cache_clear()
    yield files.ROOT
    records.source.cache_clear()


def git(*arguments):
    done = subprocess.run(["git", "-C", files.ROOT, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("changed", "modified"),
    [(None, False), ("notes.md", False), ("rwslib/code.py", True), ("rwslib/new.py", True)],
)
def test_the_commit_says_whether_the_library_was_modified(checkout, changed, modified, monkeypatch):
    if changed:
        (checkout / changed).write_text("new")
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as a hook of another repository sets it
    found = records.provenance(0, "cpu")
    monkeypatch.delenv("GIT_DIR")
    assert (found["commit"], found["modified"]) == (git("rev-parse", "HEAD"), modified)


def test_the_commit_of_another_repository_is_not_recorded(checkout, monkeypatch):
    monkeypatch.setattr(files, "ROOT", checkout / "rwslib")
    assert records.source() == {"commit": None, "modified": None}


def test_without_git_a_run_is_stored(tmp_path, monkeypatch):
    records.source.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    record = run(CONFIG, tmp_path)
    records.source.cache_clear()
    assert record.provenance["commit"] is record.provenance["modified"] is None
    assert inspection.verify(tmp_path) == (1, [])
