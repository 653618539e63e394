"""Small plots as PNG, by matplotlib."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def bars(heights: Sequence[float], x: str, y: str) -> bytes:
    """Draw a bar chart with bar i at position i. x, y: names of the axes."""
    return _figure(lambda axes: axes.bar(range(len(heights)), heights, color="#3b6ea5"), x, y)


def curve(values: Sequence[float], smooth: Sequence[float], x: str, y: str) -> bytes:
    """Draw a curve over 1, 2, ... and a smoothed version of it. x, y: names of the axes."""

    def draw(axes: Any) -> None:
        steps = range(1, len(values) + 1)
        axes.plot(steps, values, color="#9db7d3", linewidth=0.8)
        axes.plot(steps, smooth, color="#1f4e79", linewidth=1.8)
        axes.set_ylim(bottom=0)

    return _figure(draw, x, y)


def lines(series: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str, diagonal: bool = False) -> bytes:
    """Draw named lines through points (x, y). x, y: names of the axes. diagonal: add the dotted line x = y."""

    def draw(axes: Any) -> None:
        if diagonal:
            ends = [value for points in series.values() for value, _ in points]
            axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color="#999999", linestyle=":", linewidth=1)
        for name, points in series.items():
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1.5, label=name)
        axes.legend(frameon=False, fontsize=8)

    return _figure(draw, x, y)


def _figure(draw: Callable[[Any], Any], x: str, y: str) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    draw(axes)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
