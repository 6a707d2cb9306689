"""What makes the site light leaves what pages use."""

import lighten
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTFont

RULES = (
    '@font-face{src:url(../vendor/fa-solid-900.woff2) format("woff2")}'
    '.fa-moon:before,.fa-night:before{content:"\\f001"}.fa-sun:before{content:"\\f002"}'
    '.fa-bars:before{content:"\\f003"}.note:before{content:"\\f004"}.admonition{color:red;--icon:"\\f005"}'
    '.tip{--icon:"\uf006"}'  # the character itself
)


@pytest.fixture
def site(tmp_path):
    fonts = tmp_path / lighten.FONTS
    for folder in (fonts, tmp_path / "_static/styles"):
        folder.mkdir(parents=True)
    (tmp_path / lighten.SHEET).write_text(RULES)
    (tmp_path / "a.html").write_text('<i class="fa-solid fa-night"></i>')
    (tmp_path / "_static/theme.js").write_text('icon.className = "fa-bars"')
    names = [".notdef", *"abcdef"]
    builder = FontBuilder(1000)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({0xF001 + i: name for i, name in enumerate(names[1:])})
    builder.setupGlyf({name: TTGlyphPen(None).glyph() for name in names})
    builder.setupHorizontalMetrics({name: (500, 0) for name in names})
    builder.setupHorizontalHeader()
    builder.setupOS2()
    builder.setupPost()
    builder.save(fonts / "fa-solid-900.ttf")
    (fonts / "fa-solid-900.woff2").touch()
    return tmp_path


def test_icons_of_pages_and_scripts_and_of_other_rules_stay(site):
    lighten.keep_icons(site)
    rules = (site / lighten.SHEET).read_text()
    assert ".fa-moon:before,.fa-night:before" in rules and ".fa-bars" in rules and ".note" in rules
    assert ".fa-sun" not in rules and ".admonition{color:red" in rules
    assert 'fa-solid-900.woff) format("woff")' in rules
    font = TTFont(site / lighten.FONTS / "fa-solid-900.woff")
    assert font.getBestCmap().keys() == {0xF001, 0xF003, 0xF004, 0xF005, 0xF006}
    assert not (site / lighten.FONTS / "fa-solid-900.woff2").exists()


def test_a_theme_that_draws_icons_otherwise_is_an_error(site):
    (site / lighten.SHEET).write_text(".fa-moon{--fa: moon}")
    with pytest.raises(SystemExit, match="draws its icons otherwise"):
        lighten.keep_icons(site)


def test_pages_load_pictures_late_and_the_index_only_where_one_searches():
    page = (
        '<img src="a.png"><img loading="eager" src="b.png"><script src="../searchindex.js"></script><p>x</p>'
    )
    light = lighten.light_page(page, is_search=False)
    assert light == '<img loading="lazy" src="a.png"><img loading="eager" src="b.png"><p>x</p>'
    assert "searchindex.js" in lighten.light_page(page, is_search=True)


def test_coordinates_are_rounded_and_nothing_else():
    path = '<path d="M {} L 3.5 100" id="m0.123456" style="stroke-width: {}"/>'
    letter = '<use transform="scale(0.015625) translate({} 0)"/>'
    svg = path.format("12.345678 -0.000001", "1.600001") + letter.format("1.2345")
    assert lighten.rounded(svg) == path.format("12.35 -0", "1.6") + letter.format("1.23")


def test_an_entry_of_the_index_leads_to_a_heading_with_words():
    page = '<details><span id="index-3"></span><summary class="a">GMM-1</summary></details>'
    assert lighten.light_page(page, is_search=False) == (
        '<details><summary id="index-3" class="a">GMM-1</summary></details>'
    )
