"""The picture that other sites show beside a link to the book: title, last frame of the film, finding."""

import re
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt

TITLE = "Revisiting Reweighted Wake-Sleep, executable"


def last_frame(film: str) -> dict[str, tuple[list[float], list[float]]]:
    """Heights of the bars and of the truth at the end of a film of ``plotting.bar_film``, by title."""
    frames = {}
    for panel in re.split(r"(?=<text )", film)[1:]:
        (title,) = re.findall(r"<text [^>]*>([^<]*)</text>", panel)
        bars = [float(values.split(";")[-1]) for values in re.findall(r'"height" values="([^"]*)"', panel)]
        truth = [float(y) for y in re.findall(r' y="(\d+)" width="\d+" height="2" fill="#D55E00"', panel)]
        frames[title] = bars, truth
    return frames


def draw(film: str, finding: str, target: Path) -> None:
    """Save the card, 1200 by 630 pixels, with the same bytes every time."""
    frames = last_frame(film)
    with plt.rc_context({"figure.constrained_layout.use": False}):
        figure, axes = plt.subplots(1, len(frames), figsize=(12, 6.3), dpi=100, squeeze=False)
    figure.subplots_adjust(left=0.05, right=0.95, top=0.72, bottom=0.34)
    figure.text(0.05, 0.86, TITLE, fontsize=30, weight="bold")
    figure.text(0.05, 0.06, textwrap.fill(finding, 88), fontsize=19, linespacing=1.4)
    for ax, (title, (bars, truth)) in zip(axes[0], frames.items(), strict=True):
        ax.bar(range(len(bars)), bars, color="#0072B2")
        ax.plot(range(len(truth)), truth, color="#D55E00")
        ax.set_title(title, fontsize=20, loc="left")
        ax.axis("off")
    figure.savefig(target, metadata={"Software": None})
    plt.close(figure)
