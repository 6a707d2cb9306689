"""The API reference: every public name is in it."""

import importlib
import re
from io import StringIO
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace

import pytest
import yaml
from reference import claim_links, entry_of
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent


PAGES = "\n".join(path.read_text() for path in (ROOT / "book/api").glob("*.md"))
MODULES = re.findall(r"^\.\. automodule:: (\S+)$", PAGES, re.MULTILINE)


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    """Full names of what the reference documents, built alone with the book's settings for it."""
    settings = yaml.safe_load((ROOT / "_config.yml").read_text())["sphinx"]["config"]
    settings = {name: value for name, value in settings.items() if name.startswith(("autodoc", "napoleon"))}
    extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "reference"]
    folder, warnings = tmp_path_factory.mktemp("reference"), StringIO()
    source = copytree(ROOT / "book/api", folder / "source", ignore=lambda *_: ["index.md"])
    settings |= {"extensions": extensions, "root_doc": "estimators"}
    places = (source, None, folder / "out", folder / "doctrees")
    app = Sphinx(*places, "dummy", settings, status=None, warning=warnings)
    app.build()
    assert "docstring" not in warnings.getvalue(), warnings.getvalue()
    return app.env.get_domain("py").objects.keys()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Sphinx and docutils
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
@pytest.mark.parametrize("name", sorted({"rwslib.estimators", "rwslib.methods", *MODULES}))
def test_every_public_name_has_an_entry(entries, name):
    module = importlib.import_module(name)
    exported = getattr(module, "__all__", ())
    public = {  # a package may show what its modules define
        key: {f"{name}.{key}", f"{value.__module__}.{key}"}
        for key, value in vars(module).items()
        if not key.startswith("_")
        and (getattr(value, "__module__", None) == name or (key in exported and hasattr(value, "__module__")))
    }
    if name == "rwslib.methods":
        public["METHODS"] = {f"{name}.METHODS"}
    assert public
    missing = sorted(key for key, places in public.items() if not places & entries)
    assert not missing, f"without a docstring, or {name} has no page in book/api: {missing}"


ENTRIES = {
    full: SimpleNamespace(objtype=kind)
    for full, kind in {
        "rwslib.training": "module",
        "rwslib.training.Trainer": "class",
        "rwslib.training.Trainer.loss": "method",
        "rwslib.estimators.vimco_loss": "function",
        "rwslib.methods.wake_wake": "function",
        "rwslib.experiments.run": "function",
        "rwslib.records.load": "function",
        "rwslib.data": "module",
        "rwslib.data.load": "function",
        "rwslib.models.gmm.GMM.sample": "method",
    }.items()
}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("vimco_loss", "rwslib.estimators.vimco_loss"),
        ("estimators.vimco_loss(log_p, log_q)", "rwslib.estimators.vimco_loss"),
        ("rwslib.training.Trainer", "rwslib.training.Trainer"),
        ("rwslib/data.py", "rwslib.data"),
        ("data.py", "rwslib.data"),
        ("ww", "rwslib.methods.wake_wake"),  # a name of the table of methods
        ("data.load", "rwslib.data.load"),
        ("load", None),  # two have it
        ("run", None),  # also a command
        ("loss", None),  # only a part of a class
        ("q.sample(x)", None),
        ("training", None),
        ("mco_loss", None),
        ("tests/test_data.py", None),
        ("[K, B]", None),
    ],
)
def test_inline_code_leads_to_the_entry_that_it_names(text, name):
    assert entry_of(text, ENTRIES) == name


def test_names_of_claims_lead_to_them_and_a_split_one_to_its_first_part():
    known = {"gmm-1": (), "gmm-3a": (), "gmm-3b": ()}
    assert claim_links("GMM-1 and GMM-3, not GMM-3c.", known) == [
        ("GMM-1", "gmm-1"),
        (" and ", None),
        ("GMM-3", "gmm-3a"),
        (", not ", None),
        ("GMM-3c", None),
        (".", None),
    ]
    assert claim_links("GMM-3b", known) == [("GMM-3b", "gmm-3b")]
    assert claim_links("AMD-1", known) == [("AMD-1", None)]
