"""Print the book that `make book` built into one PDF, `_build/book.pdf`, with Chromium.

The articles of all pages are put one after the other into one page, so that links between them stay links
and the page numbers go through; Sphinx's own single page does not know the notebooks' folded cells.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from urllib.parse import urldefrag, urljoin

from bs4 import BeautifulSoup, Tag
from build_book import BUILD, ROOT, SITE

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def browser() -> str:
    """The first Chromium there is: $CHROMIUM, else one of the usual names."""
    for name in (os.environ.get("CHROMIUM"), *NAMES):
        if name and (path := shutil.which(name)):
            return path
    raise SystemExit(
        f"The PDF needs Chromium or Chrome, and there is none of {', '.join(NAMES)}: install it "
        "(apt-get install chromium), or name it (CHROMIUM=/path/to/chromium make pdf)."
    )


def article(page: str, pages: list[str]) -> Tag:
    """The article of a page, its anchors made different from all others' and its links pointed at them."""
    soup = BeautifulSoup((SITE / f"{page}.html").read_text(encoding="utf-8"), "html.parser")
    (found,) = soup.select("article.bd-article")
    for unwanted in found.select("script, .prev-next-footer"):
        unwanted.decompose()
    for tag in found.find_all(True):
        if tag.name == "svg" or tag.find_parent("svg"):
            continue
        for name in ("id", "for"):
            if tag.get(name):
                tag[name] = f"{page}-{tag[name]}"
        if tag.get("src"):
            tag["src"] = f"../{urljoin(page, tag['src'])}"
        if href := tag.get("href"):
            path, anchor = urldefrag(urljoin(f"{page}.html", href))
            if path.removesuffix(".html") in pages:
                tag["href"] = f"#{path.removesuffix('.html')}-{anchor}".removesuffix("-")
            elif ":" not in path:  # pages that are not printed, such as the sources
                del tag["href"]
        if tag.name == "details":
            tag["open"] = ""
        if tag.name == "img":
            del tag["loading"]
    found["id"] = page
    return found


def whole(pages: list[str]) -> str:
    """The first page of the book with the articles of all pages."""
    soup = BeautifulSoup((SITE / f"{pages[0]}.html").read_text(encoding="utf-8"), "html.parser")
    content = soup.new_tag("div", attrs={"class": "bd-content"})
    content.extend(article(page, pages) for page in pages)
    soup.body.clear()
    soup.body.append(content)
    soup.body.append(soup.new_tag("script", string="addEventListener('load', () => setFormulas())"))
    return str(soup)


def main() -> None:
    """Make one long page of the book, and print it."""
    chromium, target = browser(), BUILD / "book.pdf"
    pages = re.findall(r"(?:root|file): (\S+)", (ROOT / "book/_toc.yml").read_text(encoding="utf-8"))
    source = SITE / "book/_whole.html"  # beside the first page, whose styles and scripts it shares
    source.write_text(whole(pages), encoding="utf-8")
    target.unlink(missing_ok=True)
    try:
        with tempfile.TemporaryDirectory() as profile:
            command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
            command += ["--allow-file-access-from-files", "--virtual-time-budget=600000"]
            command += ["--no-pdf-header-footer", "--generate-pdf-document-outline"]
            command += [f"--print-to-pdf={target}", source.as_uri()]
            printed = subprocess.run(command, capture_output=True, check=False)
    finally:
        source.unlink()
    if not target.exists():
        sys.stderr.write(printed.stderr.decode(errors="replace"))
        raise SystemExit("Chromium made no PDF: see above.")
    print(f"The book is in {target} ({target.stat().st_size / 2**20:.1f} MB).")


if __name__ == "__main__":
    main()
