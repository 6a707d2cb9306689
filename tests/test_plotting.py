"""Every method has a style of its own, and the film is well-formed."""

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from rwslib.methods import METHODS
from rwslib.records import RunRecord
from rwslib.report import plotting


def test_every_method_has_its_own_style():
    styles = [tuple(plotting.method_style(name).values())[:2] for name in METHODS]
    assert len(set(styles)) == len(METHODS)


def test_no_colour_stands_for_two_methods_of_the_table():
    colors = [row.style[0] for row in METHODS.values() if row.style] + list(plotting._OTHER_COLORS)
    assert len(set(colors)) == len(colors)


def test_methods_of_a_reader_have_styles_of_their_own(monkeypatch):
    for i in range(16):
        monkeypatch.setitem(METHODS, f"own_{i}", replace(METHODS["ww"], title=f"own {i}"))
    styles = [plotting.method_style(name) for name in METHODS]
    assert len({(style["color"], style["linestyle"]) for style in styles}) == len(METHODS)
    assert plotting.method_style("own_3")["label"] == "own 3"
    figure, ax = plt.subplots()
    for style in styles:
        ax.plot([0, 1], **style)
    figure.canvas.draw()  # every colour and dash is one that matplotlib knows
    plt.close(figure)


def test_a_method_that_nobody_registered_has_no_style():
    with pytest.raises(ValueError, match=r"method must be one of \['ws', .*, got 'tempered'"):
        plotting.method_style("tempered")


def test_a_record_of_an_own_method_can_be_plotted(monkeypatch):
    monkeypatch.setitem(METHODS, "tempered", replace(METHODS["ww"], title="tempered WW"))
    metrics = {"iteration": np.arange(3), "prior_l2": np.ones((2, 3))}
    figure, ax = plt.subplots()
    plotting.plot_curves(ax, RunRecord({"method": "tempered"}, {}, metrics, Path("none")), "prior_l2")
    assert ax.lines[0].get_label() == "tempered WW"
    plt.close(figure)


def test_quartile_band_is_where_the_quartiles_are():
    figure, ax = plt.subplots()
    values = np.arange(12.0).reshape(4, 3)
    plotting.plot_quartiles(ax, np.arange(3), values, color="black")
    np.testing.assert_allclose(ax.lines[0].get_ydata(), np.median(values, axis=0))
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == np.percentile(values[:, 0], 25)
    assert band.max() == np.percentile(values[:, 2], 75)
    plt.close(figure)


def test_hinton_squares_have_areas_proportional_to_probability():
    figure, ax = plt.subplots()
    plotting.plot_hinton(ax, np.array([[0.25, 0.75, 0.0]]), ["only"])
    assert [round(patch.get_width() ** 2, 6) for patch in ax.patches] == [0.25, 0.75]
    plt.close(figure)


def test_a_sheet_of_images_keeps_rows_and_columns():
    figure, ax = plt.subplots()
    images = np.zeros((2, 3, 16))
    images[1, 2] = np.arange(16) / 15
    plotting.plot_images(ax, images, ["top", "bottom"])
    sheet = ax.images[0].get_array()
    assert sheet.shape == (8, 12)
    np.testing.assert_allclose(sheet[4:, 8:], images[1, 2].reshape(4, 4))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["top", "bottom"]
    plt.close(figure)


def test_the_film_is_well_formed_and_needs_no_other_host():
    frames = np.full((5, 4), 0.25)
    html = plotting.bar_film({"a": frames, "b": frames}, np.full(4, 0.25), "a caption")
    root = ET.fromstring(html)
    assert root.find("svg").get("aria-label") == "a caption"
    assert len(root.findall(".//animate")) == 2 * 4 + 1
    assert "http" not in html


def test_panels_have_a_column_for_each_number_of_particles_and_a_legend_of_all_methods():
    def record(method, K):
        metrics = {"iteration": np.arange(3), "error": np.full((2, 3), float(K))}
        return RunRecord({"method": method, "num_particles": K}, {}, metrics, Path("none"))

    cells = [("ww", 2), ("vimco", 2), ("ww", 5)]
    runs = {cell: record(*cell) for cell in cells}
    figure, axes = plotting.panels_by_particles(runs, {"error": "the error"})
    assert axes.shape == (1, 2)
    assert [ax.get_title() for ax in axes[0]] == ["K = 2", "K = 5"]
    assert [len(ax.lines) for ax in axes[0]] == [2, 1]
    assert axes[0, 1].lines[0].get_ydata().tolist() == [5.0, 5.0, 5.0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["WW", "VIMCO"]


def test_panels_of_no_runs_are_one_empty_column():
    figure, axes = plotting.panels_by_particles({}, {"error": "the error", "other": "the other"})
    assert axes.shape == (2, 1) and not figure.legends
    assert axes[0, 0].get_title() == "K = none was run" and not axes[0, 0].lines
