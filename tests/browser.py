"""The programs that tests of pages need, and the marks of tests that cannot do without."""

import shutil

import pytest

NODE = shutil.which("node")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

needs_node = pytest.mark.skipif(NODE is None, reason="needs Node.js: there is no `node` on the PATH")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium: there is no `chromium` on the PATH"
)
