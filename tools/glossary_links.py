"""Link the first use of every glossary term in a page or a chapter, while the book is staged.

The sources stay plain text: a word of prose that begins a term's first use becomes a `{term}` role.
"""

import re
from pathlib import Path

# Fenced blocks, formulas, roles and code, links, comments and tags; headings, options, tables and labels.
NOT_PROSE = (
    r"^(?P<fence>`{3,})[^\n]*\n.*?^(?P=fence)\s*?$",
    r"\$\$.*?\$\$(?: \([\w-]+\))?",
    r"\$[^$\n]+\$",
    r"(?:\{[\w:-]+\})?(?P<ticks>`+)[^`].*?(?P=ticks)",
    r"!?\[[^\]\n]*\](?:\([^)\n]*\)|\{[^}\n]*\})?",
    r"<[^>\n]*>",
    r"^(?:#|:|\||\(|    )[^\n]*$",
)
SPELT_OUT = {"evidence lower bound": "ELBO"}


def glossary_terms(page: Path) -> list[str]:
    """The terms of the glossary directive, as they are written there."""
    block = re.search(r"^```\{glossary\}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    return re.findall(r"^(?! )(.+)$", block[1], re.M)


def link_terms(texts: list[str], terms: list[str]) -> list[str]:
    """The texts of one page, in order, with each term's first use linked; a plural counts as a use."""
    names = {re.sub(r" \(.*", "", term).lower(): term for term in terms} | SPELT_OUT
    words = "|".join(re.escape(name).replace(r"\ ", r"\s") for name in sorted(names, key=len, reverse=True))
    word = rf"(?<![\w-])(?P<word>{words})s?(?![\w-])"
    pattern = re.compile("|".join([*NOT_PROSE, word]), re.M | re.S | re.I)
    seen: set[str] = set()

    def link(match: re.Match) -> str:
        if not match["word"]:
            return match[0]
        term = names[re.sub(r"\s", " ", match["word"]).lower()]
        if term in seen:
            return match[0]
        seen.add(term)
        return f"{{term}}`{match[0]} <{term}>`"

    return [pattern.sub(link, text) for text in texts]
