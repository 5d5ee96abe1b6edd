"""Pictures of a run, as PNG."""

from __future__ import annotations

from pathlib import Path

from .files import atomic
from .train.csvlog import read_log


def curves(run: Path) -> list[Path]:
    """Training loss and every validation metric over steps: `plots/loss.png` and `plots/<metric family>.png`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    families: dict[str, list[tuple[str, list[int], list[float]]]] = {}
    for (split, name), (steps, values) in read_log(run / "metrics.csv").items():
        families.setdefault(name.split("@")[0], []).append((f"{split} {name}", steps, values))
    made = []
    for family, lines in families.items():
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for label, steps, values in lines:
            axes.plot(steps, values, label=label, marker="o" if len(steps) < 3 else None, linewidth=1.4)
        axes.set(xlabel="step", ylabel=family, title=f"{run.parent.parent.name} / {run.parent.name}, {run.name}")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        path = run / "plots" / f"{family}.png"
        with atomic(path) as temporary:
            figure.savefig(temporary, dpi=120, format="png")
        made.append(path)
    return made
