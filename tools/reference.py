"""Sphinx extension for the book's API reference: its entries, and the links that lead to them.

tools/build_book.py names it to Jupyter Book.
"""

import gc
import re
from collections.abc import Mapping
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import make_refnode

from rwslib import __main__ as commands
from rwslib.methods import METHODS

# Where a name is new again, or no link is wanted.
STOPS = (nodes.section, nodes.entry, nodes.title, nodes.reference, nodes.document)

NO_CLAIMS = (nodes.title, nodes.reference, nodes.literal, nodes.literal_block, nodes.raw)


def entry_of(text: str, entries: Mapping[str, Any]) -> str | None:
    """The full name of the one entry that inline code names, with or without arguments, or None.

    A word that is also a command, or only a part of a class, is left alone.
    """
    if text.endswith(".py"):
        full = "rwslib." + text.removesuffix(".py").removeprefix("rwslib/").replace("/", ".")
        return full if full in entries else None
    if not (match := re.fullmatch(r"(\w[\w.]*)(\(.*\))?", text)) or hasattr(commands, match[1]):
        return None
    if match[1] in METHODS:
        return f"rwslib.methods.{METHODS[match[1]].function.__name__}"
    wanted = ("function", "class", "exception", "data") if "." not in match[1] else None
    found = [
        full
        for full, entry in entries.items()
        if f".{full}".endswith(f".{match[1]}") and (wanted is None or entry.objtype in wanted)
    ]
    return found[0] if len(found) == 1 else None


class LinkNames(SphinxPostTransform):
    """Names of the library in inline code lead to the reference, at their first use in a section or cell."""

    default_priority = 900  # after other links are made

    def run(self, **kwargs: Any) -> None:
        """Make the links of one page."""
        entries, seen = self.env.get_domain("py").objects, set()
        if self.env.docname.startswith("book/api/"):
            return  # docstrings say themselves what they link to
        for code in list(self.document.findall(nodes.literal)):
            above = code
            while not isinstance(above, STOPS):
                above = above.parent
            name, use = entry_of(code.astext(), entries), (code.astext(), id(above))
            if name is None or isinstance(above, nodes.title | nodes.reference) or use in seen:
                continue
            seen.add(use)
            page, anchor = entries[name].docname, entries[name].node_id
            link = make_refnode(self.app.builder, self.env.docname, page, anchor, code.deepcopy(), name)
            code.replace_self(link)


def claim_links(text: str, known: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    """A text in pieces, each with the label of the claim that it names, or None.

    A claim that is split, such as GMM-3 into GMM-3a and GMM-3b, is found at its first part.
    """
    pieces: list[tuple[str, str | None]] = []
    for piece in re.split(r"\b((?:GMM|VAE|AIR|GEN)-\d+[a-z]?)\b", text):
        labels = [name for name in (piece.lower(), piece.lower() + "a") if name in known]
        pieces.append((piece, labels[0] if labels else None))
    return [piece for piece in pieces if piece[0]]


def takes_links(text: nodes.Text) -> bool:
    """Whether a text is neither code nor part of a title, of what opens a claim, or of a link."""
    above = text.parent
    while above is not None:
        if isinstance(above, NO_CLAIMS) or "sd-summary-title" in above.get("classes", ()):
            return False
        above = above.parent
    return True


class LinkClaims(SphinxPostTransform):
    """Names of claims lead to the page of claims."""

    default_priority = 900

    def run(self, **kwargs: Any) -> None:
        """Make the links of one page."""
        known = self.env.get_domain("std").anonlabels
        here = self.app.builder, self.env.docname

        def node(piece: str, label: str | None) -> nodes.Node:
            plain = nodes.Text(piece)
            return make_refnode(*here, *known[label], plain, piece) if label else plain

        for text in list(self.document.findall(nodes.Text)):
            pieces = claim_links(text.astext(), known)
            if any(label for _, label in pieces) and takes_links(text):
                text.parent.replace(text, [node(*piece) for piece in pieces])


def link_code(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """In highlighted code, link names that are imported or come with their module, and estimators' calls."""
    if not page.startswith(("notebooks/", "book/architecture", "book/mistakes")):
        return
    entries, plain = app.env.get_domain("py").objects, re.sub(r"<.*?>", "", context["body"])
    lines = re.findall(r"^from rwslib.* import (.*)$", plain, re.MULTILINE)
    imported = set(re.findall(r"\w+", " ".join(lines)))

    def link(match: re.Match[str]) -> str:
        text = re.sub(r"<.*?>", "", match[0])
        name = entry_of(text, entries) or ""
        called = match.string.startswith('<span class="p">(', match.end())
        estimator = called and name.startswith(("rwslib.estimators.", "rwslib.methods."))
        if not name or not ("." in text or text in imported or estimator):
            return match[0]  # a variable can have the same name
        target = app.builder.get_relative_uri(page, entries[name].docname)
        return f'<a class="reference internal" href="{target}#{entries[name].node_id}">{match[0]}</a>'

    word = r'<span class="n">\w+</span>'
    context["body"] = re.sub(rf'{word}(<span class="o">\.</span>{word})*', link, context["body"])


def skip_repetitions(app: Sphinx, kind: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leave out second names of a method (`forward = log_joint`) and the fields of named tuples.

    The fields are documented with their class.
    """
    repeated = getattr(member, "__name__", name) != name or type(member).__name__ == "_tuplegetter"
    return True if repeated else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect to the build."""
    gc.set_threshold(200_000)  # pages are many objects, little of them garbage: looking for it takes a while
    app.connect("autodoc-skip-member", skip_repetitions)
    app.add_post_transform(LinkNames)
    app.add_post_transform(LinkClaims)
    app.connect("html-page-context", link_code)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
