"""The book's one visual style and the few plots used more than once."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from rwslib.methods import METHODS
from rwslib.records import RunRecord

# Of methods whose row names no style, or another row's, in the order in which they were added to ``METHODS``.
_OTHER_COLORS = ("#6A3D9A", "#C51B7D", "#4D9221", "#B2182B")
_OTHER_LINES = ((0, (4, 1, 1, 1)), (0, (1, 1)), (0, (6, 2)), (0, (3, 1, 1, 1, 1, 1)))


def use_style() -> None:
    """Set the style of every figure: legible on a phone, transparent, the same bytes every time."""
    mpl.rcParams.update(
        {
            "figure.constrained_layout.use": True,
            "figure.facecolor": "none",
            "savefig.facecolor": "none",
            "axes.facecolor": "none",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": "medium",
            "font.size": 11,
            "legend.frameon": False,
            "lines.linewidth": 1.6,
            "svg.hashsalt": "rwslib",
        }
    )
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:  # outside a notebook
        return
    set_matplotlib_formats("svg", bbox_inches="tight", facecolor="none", metadata={"Date": None})


def method_style(name: str) -> dict[str, object]:
    """Colour, line style and label of a method, the same in every figure.

    A method of your own gets a style that no other method has, as long as there are at most 16 of them.

    Raises:
        ValueError: ``METHODS`` has no such method.
    """
    if name not in METHODS:
        raise ValueError(f"method must be one of {list(METHODS)}, got {name!r}")
    first = {row.style: known for known, row in reversed(METHODS.items()) if row.style}
    style = METHODS[name].style
    if style and first[style] == name:
        color, linestyle = style
    else:
        others = [other for other, row in METHODS.items() if not row.style or first[row.style] != other]
        i = others.index(name)
        color, linestyle = _OTHER_COLORS[i % 4], _OTHER_LINES[i // 4 % 4]
    return {"color": color, "linestyle": linestyle, "label": METHODS[name].title}


def plot_quartiles(ax: Axes, x: np.ndarray, values: np.ndarray, **style: Any) -> None:
    """Median and interquartile band over replicates: ``values [R, T]`` against ``x [T]``."""
    low, median, high = np.nanpercentile(values, [25, 50, 75], axis=0)
    (line,) = ax.plot(x, median, **style)
    ax.fill_between(x, low, high, color=line.get_color(), alpha=0.18, linewidth=0)


def plot_curves(ax: Axes, record: RunRecord, metric: str) -> None:
    """One metric of one record over the iterations, in the method's style."""
    style = method_style(record.config["method"])
    every = max(1, len(record.metrics["iteration"]) // 50)  # about 50 points keep the page small
    plot_quartiles(ax, record.metrics["iteration"][::every], record.metrics[metric][:, ::every], **style)


def panels_by_particles(
    runs: dict[tuple[str, int], RunRecord],
    metrics: dict[str, str],
    draw: Callable[[Axes, RunRecord, str], None] = plot_curves,
    height: float = 2.4,
) -> tuple[mpl.figure.Figure, np.ndarray]:
    """One row of panels per metric, one column per number of particles, one line per method.

    Args:
        runs: records by (method, K).
        metrics: labels of the vertical axes by metric.
        draw: draws one metric of one record in the method's style.
        height: of a row, inches.

    Returns:
        The figure and its axes, ``[len(metrics), number of K]``.
    """
    Ks: list[Any] = sorted({K for _, K in runs}) or ["none was run"]
    size = (min(1.2 + 1.6 * max(len(Ks), 2), 8.5), height * len(metrics) + 0.6)  # wider, letters get small
    figure, axes = plt.subplots(len(metrics), len(Ks), figsize=size, sharex=True, sharey="row", squeeze=False)
    for (metric, label), row in zip(metrics.items(), axes, strict=True):
        panels = dict(zip(Ks, row, strict=True))
        for (_, K), record in runs.items():
            draw(panels[K], record, metric)
        row[0].set_ylabel(label)
    for K, ax in zip(Ks, axes[0], strict=True):
        ax.set_title(f"K = {K}")
    fullest = max(axes.flat, key=lambda ax: len(ax.get_legend_handles_labels()[0]))
    shared_legend(figure, fullest)
    return figure, axes


def plot_hinton(ax: Axes, probs: np.ndarray, labels: Sequence[str] = (), threshold: float = 1e-3) -> None:
    """Hinton diagram: one row of squares per distribution, area proportional to probability.

    Args:
        probs: ``[rows, C]``.
        labels: of the rows, drawn on the left.
        threshold: probabilities below are not drawn.
    """
    rows, columns = np.nonzero(probs > threshold)
    sides = np.sqrt(probs[rows, columns])
    for row, column, side in zip(rows, columns, sides, strict=True):
        ax.add_patch(plt.Rectangle((column - side / 2, row - side / 2), side, side, color="#333333", lw=0))
    last = probs.shape[1] - 1
    ax.set(xlim=(-0.7, last + 0.7), ylim=(len(probs) - 0.4, -0.6), aspect="equal")
    ax.set_xticks(sorted({0, last // 2, last}))
    ax.set_yticks(range(len(labels)), labels)
    ax.tick_params(length=0, labelsize=7)
    ax.spines[:].set(visible=True, color="#bbbbbb", linewidth=0.6)


def plot_images(ax: Axes, images: np.ndarray, labels: Sequence[str] = ()) -> None:
    """A sheet of square images, dark ink on white.

    Args:
        images: ``[rows, columns, pixels]`` in [0, 1].
        labels: of the rows, drawn on the left.
    """
    rows, columns, num_pixels = images.shape
    side = math.isqrt(num_pixels)
    sheet = images.reshape(rows, columns, side, side).swapaxes(1, 2).reshape(rows * side, columns * side)
    ax.imshow(sheet, cmap="gray_r", vmin=0, vmax=1, interpolation="none")
    ax.set(xticks=[], yticks=[])
    ax.set_yticks((np.arange(len(labels)) + 0.5) * side, labels)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def shared_legend(figure: mpl.figure.Figure, ax: Axes, **options: object) -> None:
    """One legend below the figure, from the lines of one of its axes."""
    handles, labels = ax.get_legend_handles_labels()
    if not handles:
        return
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4), **options)


def bar_film(films: dict[str, np.ndarray], truth: np.ndarray, caption: str, seconds: float = 15) -> str:
    """Distributions over time as an SVG film, one panel each: no script to load, no server, no network.

    Args:
        films: ``[T, C]`` by title, over the same T frames.
        truth: ``[C]``, drawn as a line across each bar.
        caption: what is shown; also the alternative text.
        seconds: length of one loop.

    Returns:
        HTML.  Heights are square roots of probabilities; a click stops and starts the film.
    """
    bar, height, columns = 8, 70, 3
    width = bar * len(truth)
    timing = f'dur="{seconds}s" repeatCount="indefinite"'
    parts = []
    for i, (title, frames) in enumerate(films.items()):
        x, y = i % columns * (width + 24), i // columns * (height + 42)
        parts.append(f'<text x="{x}" y="{y + 14}" font-size="13" fill="currentColor">{title}</text>')
        parts.append(f'<g transform="translate({x} {y + height + 22}) scale(1 -1)">')
        for c, goal in enumerate(truth):
            values = ";".join(f"{height * value**0.5:.0f}" for value in frames[:, c].astype(float))
            parts.append(f'<rect x="{c * bar}" width="{bar - 1}" height="0" fill="#0072B2">')
            parts.append(f'<animate attributeName="height" values="{values}" {timing}/></rect>')
            line = f'x="{c * bar}" y="{height * goal**0.5:.0f}" width="{bar - 1}" height="2"'
            parts.append(f'<rect {line} fill="#D55E00"/>')
        parts.append("</g>")
    total_width = min(columns, len(films)) * (width + 24) - 24
    total_height = -(-len(films) // columns) * (height + 42) + 8
    parts.append(f'<rect y="{total_height - 4}" height="4" width="0" fill="currentColor" opacity="0.5">')
    parts.append(f'<animate attributeName="width" values="0;{total_width}" {timing}/></rect>')
    toggle = (
        "const s = this.querySelector('svg');"
        " s.animationsPaused() ? s.unpauseAnimations() : s.pauseAnimations()"
    )
    still = (
        "if (matchMedia('(prefers-reduced-motion: reduce)').matches)"
        f" {{ this.setCurrentTime({seconds - 0.1}); this.pauseAnimations() }}"
    )
    return (
        f'<figure style="margin:0;cursor:pointer" tabindex="0" onclick="{toggle}"'
        f" onkeydown=\"if (event.key === 'Enter') {{ {toggle} }}\">"
        f'<svg viewBox="0 0 {total_width} {total_height}" role="img" aria-label="{caption}" onload="{still}"'
        f' style="width:100%;max-width:{1.4 * total_width:.0f}px">{"".join(parts)}</svg>'
        f"<figcaption>{caption}. <span class='film-how'>Bar heights are square roots of probabilities;"
        " orange lines are the truth. Click, or press Enter, to stop or go on.</span></figcaption></figure>"
    )
