"""Pictures of a run, as PNG: curves, confusion matrices, point clouds coloured by class or along a scan order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .files import atomic
from .train.csvlog import read_log

MAPS = ("tab20", "tab20b", "tab20c")  #: colours of the first classes
FIXED = {"right": (0.82, 0.82, 0.82), "wrong": (1.0, 0.0, 0.4)}  #: colours that no class and no text has
POINTS = 3000  #: drawn of a cloud
EPOCH_LOSS = "train loss, mean of the epoch"


def _figure(width: float, height: float):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure, path: Path) -> Path:
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    return path


def curves(run: Path) -> list[Path]:
    """Training loss and every validation metric over steps: `plots/loss.png` and `plots/<metric family>.png`.

    The loss is its mean over each epoch, and, thin, between the rows of the log where there are others.
    """
    families: dict[str, list[tuple[str, list[int], list[float]]]] = {}
    log = read_log(run / "metrics.csv")
    epochs = log.pop(("train", "epoch_loss"), None)
    if epochs and log[("train", "loss")][0] == epochs[0]:
        del log[("train", "loss")]  # a row for each epoch: they are the same
    for (split, name), (steps, values) in log.items():
        families.setdefault(name.split("@")[0], []).append((f"{split} {name}", steps, values))
    if epochs:
        families.setdefault("loss", []).append((EPOCH_LOSS, *epochs))
    made = []
    for family, lines in families.items():
        figure = _figure(6.4, 4.0)
        axes = figure.subplots()
        for label, steps, values in lines:
            width = 0.6 if label == "train loss" and len(lines) > 1 else 1.4
            axes.plot(steps, values, label=label, marker="o" if len(steps) < 3 else None, linewidth=width)
        axes.set(xlabel="step", ylabel=family, title=f"{run.parent.parent.name} / {run.parent.name}, {run.name}")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        made.append(_save(figure, run / "plots" / f"{family}.png"))
    return made


def confusion(path: Path, counts: np.ndarray, names: Sequence[str]) -> Path:
    """Counts (C, C) of [true, predicted] as shares of each true class."""
    size = len(names)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = _figure(max(4.0, 0.32 * size + 2), max(3.4, 0.32 * size + 1.6))
    axes = figure.subplots()
    image = axes.imshow(share, vmin=0, vmax=1, cmap="Blues")
    axes.set(xlabel="predicted", ylabel="true", xticks=range(size), yticks=range(size))
    axes.set_xticklabels(names, rotation=90, fontsize=7)
    axes.set_yticklabels(names, fontsize=7)
    if size <= 12:
        for row in range(size):
            for column in range(size):
                colour = "white" if share[row, column] > 0.6 else "black"
                axes.text(
                    column, row, f"{int(counts[row, column])}", ha="center", va="center", fontsize=7, color=colour
                )
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    return _save(figure, path)


def class_colours(names: Sequence[str]) -> list[tuple[float, float, float]]:
    """A colour for each class; "right" and "wrong" have their own."""
    from matplotlib import colormaps
    from matplotlib.colors import hsv_to_rgb

    many = list(dict.fromkeys(tuple(colour) for name in MAPS for colour in colormaps[name].colors))
    for k in range(len(names) - len(many)):  # hues a golden angle apart, ever darker
        hue, value = (0.618034 * k) % 1, 0.95 - 0.6 * k / len(names)
        many.append(tuple(hsv_to_rgb((hue, 0.75, value)).tolist()))
    return [FIXED.get(name, many[k]) for k, name in enumerate(names)]


def clouds(path: Path, rows: Sequence[Mapping[str, tuple[np.ndarray, np.ndarray]]], names: Sequence[str]) -> Path:
    """Clouds in a grid: a row per sample, a column per title, each cloud points (N, 3) and class numbers (N,).

    The legend shows the classes that occur. Colours are exact: points have no edges, shades or smoothing.
    """
    from matplotlib.lines import Line2D

    colour = class_colours(names)
    figure = _figure(3.0 * len(rows[0]) + 1.6, 2.8 * len(rows))
    seen: set[int] = set()
    for r, row in enumerate(rows):
        for c, (title, (points, classes)) in enumerate(row.items()):
            points, classes = points[:POINTS], classes[:POINTS]
            seen.update(np.unique(classes).tolist())
            _scatter(figure, (len(rows), len(row), r * len(row) + c + 1), points, title if r == 0 else "",
                     [colour[k] for k in classes.tolist()])  # fmt: skip
    shown = [Line2D([], [], marker="o", linestyle="", color=colour[k], label=names[k]) for k in sorted(seen)]
    figure.legend(handles=shown, loc="outside right upper", fontsize=7)
    return _save(figure, path)


def scan_orders(path: Path, points: np.ndarray, orders: Mapping[str, np.ndarray]) -> Path:
    """One cloud (N, 3) per order (N,), coloured from the first point of the scan to the last."""
    from matplotlib import colormaps

    wide = min(4, len(orders))
    high = -(-len(orders) // wide)
    figure = _figure(2.6 * wide + 0.8, 2.5 * high)
    for n, (name, order) in enumerate(orders.items()):
        rank = np.empty(len(order))
        rank[order] = np.linspace(0, 1, len(order))
        _scatter(figure, (high, wide, n + 1), points, name, colormaps["viridis"](rank))
    return _save(figure, path)


def _scatter(figure, place: tuple[int, int, int], points: np.ndarray, title: str, colours) -> None:
    axes = figure.add_subplot(*place, projection="3d")
    axes.scatter(*points.T, c=colours, s=3, marker="o", linewidths=0, depthshade=False, antialiased=False)
    axes.set_title(title, fontsize=8)
    span = np.ptp(points, axis=0)
    axes.set_box_aspect(np.maximum(span, 1e-3 * max(span.max(), 1e-9)))
    axes.set_axis_off()
