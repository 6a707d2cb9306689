"""Files: home folders, the environment, checksums, locks of others, and text that is UTF-8 everywhere."""

import ast
import errno
import hashlib
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from others import bound_by_modes, shared  # noqa: F401
from safetensors import SafetensorError
from safetensors.numpy import load, save

from rwslib import data, files, records

ROOT = Path(__file__).resolve().parent.parent


# -- paths and the environment ---------------------------------------------------------------------


def test_home_folders_are_written_out_wherever_a_path_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("RWSLIB_DATA", raising=False)
    assert data.folder() == tmp_path / ".cache/rwslib"
    for name in files.FOLDERS:
        monkeypatch.setenv(name, "~/here")
    found = [records.published_dir(), records.results_store(), data.folder()]
    assert found == [tmp_path / "here"] * 3
    assert records.results_store("~/there") == records.writable("~/there") == tmp_path / "there"


def test_a_home_that_does_not_exist_is_named(monkeypatch):
    with pytest.raises(ValueError, match="'~nobody-has-it/x' begins with a home folder that does not exist"):
        records.writable("~nobody-has-it/x")
    monkeypatch.setenv("RWSLIB_RESULTS", "~nobody-has-it")
    with pytest.raises(ValueError, match="RWSLIB_RESULTS must be a folder: '~nobody-has-it'"):
        records.results_store()


def test_without_a_home_data_say_what_to_set(tmp_path, monkeypatch):
    for name in ("HOME", "RWSLIB_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda _: {}[0])  # a container's user without a name
    with pytest.raises(data.DataError, match="set RWSLIB_DATA"):
        data.folder()
    monkeypatch.setenv("RWSLIB_DATA", str(tmp_path))
    assert data.folder() == tmp_path


@pytest.mark.parametrize("value", ["often", "30 s", "-1", "nan", "1,5"])
def test_a_number_of_seconds_that_does_not_parse_is_named(value, monkeypatch):
    monkeypatch.setenv("RWSLIB_CHECKPOINT_SECONDS", value)
    with pytest.raises(ValueError, match=f"RWSLIB_CHECKPOINT_SECONDS must be a number .*got '{value}'"):
        files.seconds_from_environment("RWSLIB_CHECKPOINT_SECONDS", 30)


@pytest.mark.parametrize(("value", "seconds"), [("", 30), ("0", 0), ("1e1", 10), ("inf", float("inf"))])
def test_a_number_of_seconds_is_read(value, seconds, monkeypatch):
    monkeypatch.setenv("RWSLIB_CHECKPOINT_SECONDS", value)
    assert files.seconds_from_environment("RWSLIB_CHECKPOINT_SECONDS", 30) == seconds


def test_child_processes_find_this_library_and_the_same_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, value in {"RWSLIB_RESULTS": "out", "RWSLIB_DATA": "~/in", "RWSLIB_PUBLISHED": ""}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["lib", str(files.ROOT)]))
    files.settle_environment()
    assert os.environ["RWSLIB_RESULTS"] == str(tmp_path / "out")
    assert os.environ["RWSLIB_DATA"] == str(tmp_path / "home/in")
    assert os.environ["RWSLIB_PUBLISHED"] == ""
    assert os.environ["PYTHONPATH"].split(os.pathsep) == [str(ROOT), str(tmp_path / "lib")]


def test_an_error_of_writing_names_the_path(tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match=r"device: '.*/here'") as caught, files.naming(tmp_path / "here"):
        raise full
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(FileNotFoundError, match="there"), files.naming(tmp_path / "here"):
        (tmp_path / "there").read_bytes()


def test_text_is_utf8_whatever_the_locale(tmp_path):
    (tmp_path / "values.yaml").write_text("text: θ é\n", encoding="utf-8")
    (tmp_path / "grid.yaml").write_text(
        "- {experiment: gmm, method: θ, num_particles: 2}\n", encoding="utf-8"
    )
    script = (
        "import locale, sys; from pathlib import Path; from rwslib import __main__ as cli\n"
        "from rwslib.commands import rerun, sweep\n"
        "assert locale.getpreferredencoding(False) == 'ANSI_X3.4-1968'\n"
        "folder = Path(sys.argv[1])\n"
        "assert rerun.read_mapping(folder / 'values.yaml') == {'text': '\\u03b8 \\xe9'}\n"
        "cli.main(['sweep', str(folder / 'grid.yaml')])\n"
    )
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env=os.environ | plain | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding="ascii",
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: method must be one of") and "got '\\u03b8'" in done.stderr


def test_no_text_is_read_or_written_in_the_locales_encoding():
    """``json`` and ``yaml`` find UTF-8 in bytes by themselves."""
    found = []
    for folder in ("benchmarks", "rwslib", "tools", "workflow"):
        for path in (ROOT / folder).rglob("*.py"):
            for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                name = getattr(call, "func", None)
                name = getattr(name, "attr", getattr(name, "id", None))
                if name not in ("open", "read_text", "write_text") or ast.unparse(call.func) == "os.open":
                    continue
                words = {word.arg for word in call.keywords}
                binary = any(isinstance(a, ast.Constant) and a.value in ("rb", "wb") for a in call.args)
                if "encoding" not in words and not (name == "open" and binary):
                    found.append(f"{path.relative_to(ROOT)}:{call.lineno}")
    assert not found


def test_make_works_in_a_folder_whose_path_has_a_space(tmp_path):
    folder = tmp_path / "a folder"
    for name in (".venv/.stamp", ".venv/.stamp-sweep", "requirements.txt", "notebooks/x.ipynb", "show"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    for name in ("_build/html", "book", "rwslib", "tools"):
        (folder / name).mkdir(parents=True)
    (folder / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    (folder / "show").write_text('#!/bin/sh\nprintf "[%s]" "$RWSLIB_RESULTS" "$RWSLIB_PUBLISHED" "$@"\n')
    (folder / "show").chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RWSLIB", "MAKE", "MFLAGS"))}
    said = ""
    given = ["PARAMS=my values.yaml", "NOTEBOOK=a book.ipynb"]
    for target in ("reproduce", "notebooks", "book", "rerun"):
        make = ["make", "-s", "-C", folder, "PY=./show", target, *given]
        for stamp in (".venv/.stamp", ".venv/.stamp-sweep"):
            make += ["-o", stamp]
        said += subprocess.run(make, env=environment, capture_output=True, text=True, check=True).stdout
    store = folder / "results/reproduce-quick"
    assert f"[][{store}/none][-m][rwslib][sweep][workflow/grids/reproduce-quick.yaml]" in said
    assert f"[--results-dir][{store}]" in said
    assert f"[{folder}/_build/no-results][][-m][jupyter]" in said
    assert "[][][tools/build_book.py][--params][my values.yaml]" in said
    assert "[][][-m][rwslib][run][a book.ipynb]" in said


def test_every_argument_that_is_a_path_may_begin_with_a_home_folder():
    commands = [path for name in ("benchmarks", "rwslib", "tools") for path in (ROOT / name).rglob("*.py")]
    commands += (ROOT / "tests").glob("drill*.py")
    texts = {path.name: path.read_text(encoding="utf-8") for path in commands}
    assert "type=files.expanded" in texts["build_book.py"]
    assert not [name for name, text in texts.items() if re.search(r"add_argument\([^)]*type=Path", text)]


# -- checksums -------------------------------------------------------------------------------------


def test_every_byte_of_a_sealed_file_counts(tmp_path):
    arrays = {"a": np.arange(3.0), "b": np.ones((2, 2), np.float32)}
    path = tmp_path / "file"
    files.write_sealed(path, save(arrays, {"iteration": "7"} | files.UNSEALED))
    whole = path.read_bytes()
    assert files.metadata(path)["iteration"] == "7"
    assert load(files.read_sealed(path)).keys() == arrays.keys()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        try:
            found = load(files.read_sealed(path))
        except (ValueError, SafetensorError):
            continue
        # the name of the checksum has changed, and nothing else
        assert b'"sha256"' not in path.read_bytes()
        assert all(np.array_equal(found[name], value) for name, value in arrays.items())


def test_the_checksum_is_that_of_the_file_without_it(tmp_path):
    files.write_sealed(tmp_path / "file", save({"a": np.zeros(100, np.uint8)}, files.UNSEALED))
    seal = files.metadata(tmp_path / "file")["sha256"]
    content = (tmp_path / "file").read_bytes().replace(seal.encode(), b"0" * 64)
    assert hashlib.sha256(content).hexdigest() == seal


def test_files_without_a_checksum_are_read(tmp_path):
    (tmp_path / "old").write_bytes(save({"a": np.ones(2)}))
    np.testing.assert_array_equal(load(files.read_sealed(tmp_path / "old"))["a"], np.ones(2))
    with pytest.raises(ValueError, match="no metadata"):
        files.metadata(tmp_path / "old")


# -- locks -----------------------------------------------------------------------------------------


def test_another_users_lock_that_may_be_read_is_respected(shared):  # noqa: F811
    path = shared / "key.lock"
    with files.locked(path):
        path.chmod(0o444)
        with bound_by_modes(), files.locked(path, wait=False) as held:
            assert not held
    path.touch(mode=0o444)  # left by one who died
    with bound_by_modes(), files.locked(path) as held:
        assert held
    assert not path.exists()


def test_another_users_lock_that_may_not_be_read_is_waited_for(shared, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(files, "WAIT_SECONDS", 0.01)
    path = shared / "key.lock"
    path.touch(mode=0o000)
    with bound_by_modes():
        with files.locked(path, wait=False) as held:
            assert not held
        threading.Timer(0.1, path.unlink).start()
        with files.locked(path) as held:
            assert held
    assert capsys.readouterr().err == f"waiting until another user's {path} is gone\n"


def test_where_only_its_owner_can_lock_a_file_it_counts_as_locked(tmp_path, monkeypatch):
    """So NFS answers who may read a file only."""

    def refuse(*_):
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with files.locked(tmp_path / "key.lock", wait=False) as held:
        assert not held


def test_a_folder_that_is_not_ours_is_no_lock_to_wait_for(shared):  # noqa: F811
    shared.chmod(0o555)
    lock = files.locked(shared / "key.lock")
    with bound_by_modes(), pytest.raises(PermissionError, match=r"key\.lock"):
        lock.__enter__()
