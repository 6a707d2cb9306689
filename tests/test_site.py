"""The built site: every link, image and load of every page, and each page in a real browser."""

import json
import re
import subprocess
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser import CHROMIUM, NODE, needs_chromium, needs_node

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "_build/html"
CHECKS = ROOT / "tools/site_checks"
PAGES = sorted(path for path in SITE.rglob("*.html") if "_static" not in path.relative_to(SITE).parts)

pytestmark = pytest.mark.skipif(not PAGES, reason="needs the built site: run `make book`")
needs_browser = pytest.mark.skipif(
    not (CHECKS / "node_modules").exists(), reason="needs tools/site_checks/node_modules: run `make test`"
)


class Page(HTMLParser):
    """What a page defines, and what it refers to."""

    def __init__(self, path: Path):
        super().__init__()
        self.anchors, self.links, self.loads, self.images = {"", "top"}, [], [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        attributes = {name: value or "" for name, value in attributes}
        self.anchors |= {attributes.get("id"), attributes.get("name")}
        if tag == "img":
            self.images.append(attributes)
        for name in {"href", "src", "data", "poster", "xlink:href"} & attributes.keys():
            (self.links if tag in ("a", "area") else self.loads).append(attributes[name])
        if "srcset" in attributes:
            self.loads += [source.split()[0] for source in attributes["srcset"].split(",")]
        self.loads += styled(attributes.get("style", ""))
        if tag == "meta" and attributes.get("http-equiv", "").lower() == "refresh":
            self.links.append(attributes["content"].split("url=")[1])

    def handle_data(self, data):
        if self.lasttag == "style":
            self.loads += styled(data)


def styled(css: str) -> list[str]:
    """What a style sheet loads."""
    css = re.sub(r"/\*.*?\*/", "", css, flags=re.DOTALL)
    return re.findall(r"""(?:url\(|@import)\s*["']?([^"')]+)""", css)


@pytest.fixture(scope="module")
def pages() -> dict[Path, Page]:
    return {path: Page(path) for path in PAGES}


def target(url: str, source: Path) -> Path:
    """The file that an address within the site means."""
    path = unquote(urlsplit(url).path)
    return (source.parent / path).resolve() if path else source


def test_links_within_the_site_lead_somewhere(pages):
    broken = []
    for source, page in pages.items():
        for url in page.links:
            if urlsplit(url).scheme in ("http", "https", "mailto"):
                continue
            goal = target(url, source)
            known = pages[goal].anchors if goal in pages else {""}
            if not goal.is_file() or unquote(urlsplit(url).fragment) not in known:
                broken.append(f"{source.relative_to(SITE)}: {url}")
    assert not broken


def test_everything_that_pages_load_is_in_the_site(pages):
    loads = [(source, url) for source, page in pages.items() for url in page.loads]
    loads += [(sheet, url) for sheet in SITE.rglob("*.css") for url in styled(sheet.read_text())]
    missing = [
        f"{source.relative_to(SITE)}: {url}"
        for source, url in loads
        if not url.startswith(("data:", "#"))
        and (urlsplit(url).scheme or urlsplit(url).netloc or not target(url, source).is_file())
    ]
    assert not missing


def test_images_have_alternative_texts(pages):
    assert not [
        f"{source.relative_to(SITE)}: {image.get('src', '')[:100]}"
        for source, page in pages.items()
        for image in page.images
        if not image.get("alt", "").strip() and "logo__image" not in image.get("class", "")  # beside its name
    ]


# -- in a browser ------------------------------------------------------------------------------------

# Rules that the markup of the theme and of Sphinx itself breaks: two buttons whose names are not the words on
# them, a title outside all landmarks, the arrow that folds the reference's pages in the side bar; the roles
# of a bibliography and its entries; the lists of long signatures and of modules.
OF_THE_THEME = ["label-content-name-mismatch", "region", "summary-name"]
OF_THE_THEME += [
    "aria-allowed-role",
    "aria-deprecated-role",
    "aria-required-children",
    "definition-list",
    "list",
]


LISTINGS = [page for page in PAGES if page.relative_to(SITE).parts[0] == "_modules"]
CHAPTERS = [page for page in PAGES if page.relative_to(SITE).parts[0] == "notebooks"]
PARTS = {  # a browser each
    "pages": [page for page in PAGES if page not in LISTINGS + CHAPTERS],
    # And the longest listing of the library: Sphinx makes them, all alike.
    "chapters": CHAPTERS + sorted(LISTINGS, key=lambda page: page.stat().st_size)[-1:],
}


class Host(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def look():
    """A function that looks at pages, and at what each must show: of each its problems and its weight."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Host, directory=SITE))
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def look(pages: dict[str, str], views=()) -> dict:
        given = {"chromium": CHROMIUM, "site": f"http://127.0.0.1:{server.server_port}/"}
        given |= {"pages": pages, "views": views, "ignore": OF_THE_THEME}
        command = [NODE, CHECKS / "look.mjs"]
        done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    yield look
    server.shutdown()
    server.server_close()


@needs_node
@needs_chromium
@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_every_page_is_right_in_a_browser(look, part):
    """No error, no request to another host, no sideways scrolling, and nothing that axe-core objects to."""
    pages = {str(path.relative_to(SITE)): "main" for path in PARTS[part]}
    found = look(pages, ((390, "light"), (1400, "dark")))
    assert found and found.keys() == pages.keys()
    problems = [f"{page}: {problem}" for page, seen in found.items() for problem in seen["problems"]]
    assert not problems, "\n".join(problems)


@needs_node
@needs_chromium
@needs_browser
def test_the_first_page_is_light(look):
    """Below one megabyte with all that it loads, compressed as web hosts send it."""
    assert 20_000 < look({"index.html": "main"})["index.html"]["bytes"] < 1_000_000


@needs_node
@needs_chromium
@needs_browser
@pytest.mark.slow
def test_search_and_atlas_show_what_scripts_make(look):
    claim = "#search-results li:first-child a[href*='claims.html#index-']"
    pages = {f"search.html?q={name}": claim for name in ("AIR-5b", "GMM-3a", "gen-3b")}
    pages["search.html?q=zero-forcing"] = "#search-results li a[href*='02_gmm.html']"
    pages["book/methods.html"] = "#atlas-figure .atlas-display path.line[stroke='#0072B2']"
    found = look(pages)
    assert found.keys() == pages.keys()
    assert not [problem for page in pages for problem in found[page]["problems"]]
