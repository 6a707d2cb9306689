"""What a page of the built site weighs before the reader scrolls: itself, and what it asks for at once."""

import gzip
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

SITE = Path(__file__).resolve().parent.parent / "_build/html"
CHAPTERS = sorted((SITE / "notebooks").glob("*.html"))

pytestmark = pytest.mark.skipif(not CHAPTERS, reason="needs the built site: run `make book`")


def weight(page: Path) -> tuple[int, int]:
    """Bytes, as they are and compressed; pictures that are loaded late and formulas are left out."""
    text = page.read_text(encoding="utf-8")
    tags = re.findall(r"<(?:script|link|img)\b[^>]*>", text)
    wanted = [
        tag
        for tag in tags
        if 'loading="lazy"' not in tag
        and (not tag.startswith("<link") or re.search(r'rel="(style|preload)', tag))
    ]
    found = re.findall(r'(?:src|href)="([^"]+)"', " ".join(wanted))
    files = {page} | {
        (page.parent / unquote(urlsplit(url).path)).resolve() for url in found if ":" not in url
    }
    bodies = [path.read_bytes() for path in files if path.is_file()]
    assert len(bodies) > 10  # the theme's sheets and scripts are among them
    return sum(map(len, bodies)), sum(min(len(body), len(gzip.compress(body))) for body in bodies)


def test_the_first_page_is_light():
    whole, compressed = weight(SITE / "book/intro.html")
    assert whole < 1_000_000 and compressed < 400_000


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda page: page.stem)
def test_chapters_are_light(page):
    whole, _ = weight(page)
    assert whole < 1_500_000


def test_formulas_are_light():
    """What `formulas.js` loads on a page that has some."""
    folder = SITE / "_static/mathjax"
    parts = ["core.js", "startup.js", "input/tex.js", "output/chtml.js", "output/chtml/fonts/tex.js"]
    bodies = [(folder / part).read_bytes() for part in [*parts, "a11y/assistive-mml.js"]]
    assert sum(len(gzip.compress(body)) for body in bodies) < 200_000
