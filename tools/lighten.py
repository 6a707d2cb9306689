"""Make a built site light: formulas, icons, pictures and scripts weigh what a page needs of them.

A theme ships two thousand icons and two hundred kilobytes of rules for them, MathJax all that it can do, and
Matplotlib coordinates to a millionth of a point.
"""

import importlib.metadata
import re
import shutil
from pathlib import Path

from fontTools import subset
from fontTools.ttLib import TTFont

SHEET = "_static/styles/pydata-sphinx-theme.css"
FONTS = "_static/vendor/fontawesome/webfonts"
PARTS = (
    "core.js",
    "startup.js",
    "input/tex.js",
    "output/chtml.js",
    "output/chtml/fonts",
    "a11y/assistive-mml.js",
)


def lighten(site: Path) -> None:
    """All of it."""
    copy_mathjax(site)
    drop_icon_script(site)
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        page.write_text(light_page(text, is_search=page.name == "search.html"), encoding="utf-8")
    keep_icons(site)
    for picture in (site / "_images").glob("*.svg"):
        picture.write_text(rounded(picture.read_text(encoding="utf-8")), encoding="utf-8")


def copy_mathjax(site: Path) -> None:
    """Put the parts of MathJax that `formulas.js` loads into a site, and the extensions that they ask for."""
    package = importlib.metadata.distribution("sphinx-mathjax-offline")
    source = Path(str(package.locate_file("sphinx-mathjax-offline/static/mathjax")))
    for part in PARTS:
        copy = shutil.copytree if (source / part).is_dir() else shutil.copy
        target = site / "_static/mathjax" / part
        target.parent.mkdir(parents=True, exist_ok=True)
        copy(source / part, target)


def drop_icon_script(site: Path) -> None:
    """Empty the theme's script of icons: its style sheet draws them, too."""
    script = site / "_static/scripts/fontawesome.js"
    if not script.exists():
        raise SystemExit(f"The theme has no {script.relative_to(site)} any more: drop_icon_script can go.")
    script.write_text("// The icons come from the style sheet.\n", encoding="utf-8")


def light_page(text: str, is_search: bool) -> str:
    """A page whose pictures are loaded when they are near, and the index of the search where it is used."""
    text = re.sub(r"<img (?![^>]*\bloading=)", '<img loading="lazy" ', text)
    # An entry of the index leads to the heading of what unfolds, whose words the search shows.
    text = re.sub(r'<span id="(index-\d+)"></span><summary\b', r'<summary id="\1"', text)
    text = re.sub(r"(fa-\w+-\d+)\.woff2", r"\1.woff", text)
    if is_search:
        return text
    return re.sub(
        r'\s*<script src="[^"]*(?:searchtools|language_data|searchindex)\.js[^"]*"></script>', "", text
    )


def keep_icons(site: Path) -> None:
    """Leave the icons that pages use in the theme's style sheet and fonts."""
    pages = "\n".join(page.read_text(encoding="utf-8") for page in site.rglob("*.html"))
    scripts = "\n".join(p.read_text(encoding="utf-8") for p in (site / "_static").rglob("*.js"))
    used = set(re.findall(r"\bfa-[a-z0-9-]+", pages + scripts))
    sheet = site / SHEET
    rules = sheet.read_text(encoding="utf-8")
    icon = re.compile(r'((?:\.fa-[a-z0-9-]+:{1,2}before,?)+)\{content:"\\([0-9a-f]+)"\}')
    kept, dropped = icon.subn(lambda m: m[0] if used & set(re.findall(r"fa-[a-z0-9-]+", m[1])) else "", rules)
    if not dropped:
        raise SystemExit(f"{SHEET} draws its icons otherwise than before: keep_icons finds none.")
    kept = re.sub(r'(fa-\w+-\d+)\.woff2\) format\("woff2"\)', r'\1.woff) format("woff")', kept)
    sheet.write_text(kept, encoding="utf-8")
    sheets = "".join(path.read_text(encoding="utf-8") for path in (site / "_static").rglob("*.css"))
    points = {int(code, 16) for code in re.findall(r"""["']\\([0-9a-f]{4})["']""", sheets)}
    points |= {ord(character) for character in re.findall("[\ue000-\uf8ff]", sheets)}  # written as they are
    for path in (site / FONTS).glob("*.ttf"):
        font = TTFont(path)
        options = subset.Options(flavor="woff", layout_features=[], notdef_outline=True)
        tool = subset.Subsetter(options)
        tool.populate(unicodes=points & set(font.getBestCmap()))
        tool.subset(font)
        subset.save_font(font, path.with_suffix(".woff"), options)
        path.with_suffix(".woff2").unlink()


def rounded(svg: str) -> str:
    """A picture with coordinates to a hundredth of a point; scales of letters stay as they are."""

    def short(number: re.Match) -> str:
        text = number[0]
        return text if text.startswith("scale") else f"{float(text):.2f}".rstrip("0").rstrip(".")

    return re.sub(r"scale\([^)]*\)|(?<![\w#.])-?\d+\.\d{3,}", short, svg)
