"""The API reference: every public name is in it."""

import importlib
import re
from io import StringIO
from pathlib import Path
from shutil import copytree

import pytest
import yaml
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
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "tools")
        app = Sphinx(
            source,
            None,
            folder / "out",
            folder / "doctrees",
            "dummy",
            {"extensions": extensions, "root_doc": "estimators", **settings},
            status=None,
            warning=warnings,
        )
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
