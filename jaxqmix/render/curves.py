"""Training curves from runs' metrics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxqmix.config import ConfigError
from jaxqmix.metrics import read

PANELS = (
    ("coverage", "coverage"),
    ("return", "return"),
    ("t90", "t90 (env steps)"),
    ("collision_rate", "collision rate"),
    ("violation_rate", "violation rate"),
    ("loss", "loss"),
)


def plot_runs(runs: Sequence[Path], out: Path) -> None:
    """Draws the curves of one or more runs; runs of one preset and mode make one band.

    Args:
      runs: runs' folders.
      out: a .png file.

    Raises:
      ConfigError: when a folder holds no metrics, or the file is no .png.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if Path(out).suffix != ".png":
        raise ConfigError(f"out = {out} is not allowed: must end in .png")
    reports = []
    for run in runs:
        found = read(Path(run))
        if not found:
            raise ConfigError(f"run = {run} is not allowed: it holds no metrics")
        reports.append(found)
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, label) in zip(figure.subplots(2, 3).flat, PANELS, strict=True):
        _band(axes, [curve(r, "training", name) for r in reports], "training", "#7f9bb3")
        _band(axes, [curve(r, "evaluation", name) for r in reports], "evaluation", "#d1495b")
        axes.set_xlabel("env steps")
        axes.set_title(label)
        axes.grid(alpha=0.25)
        if name == "loss":
            axes.set_yscale("log")
    figure.axes[0].legend(frameon=False)
    figure.suptitle(", ".join(Path(run).name for run in runs))
    figure.savefig(out, dpi=110)


def curve(reports: Sequence[dict[str, Any]], kind: str, name: str) -> np.ndarray:
    """Points [2, P] of env steps and a metric, where the reports of a kind have it."""
    rows = [
        (r["env_steps"], r[name]) for r in reports if r["kind"] == kind and r.get(name) is not None
    ]
    return np.array(rows, float).reshape(-1, 2).T


def _band(axes: Any, curves: Sequence[np.ndarray], label: str, colour: str) -> None:
    """The mean of several curves and the band from lowest to highest; one curve as it is."""
    curves = [c for c in curves if c.shape[1]]
    if not curves:
        return
    steps = np.unique(np.concatenate([c[0] for c in curves]))
    values = np.stack([np.interp(steps, c[0], c[1]) for c in curves])
    style = {"marker": "o", "markersize": 3} if label == "evaluation" else {"linewidth": 1}
    axes.plot(steps, values.mean(axis=0), color=colour, label=label, **style)
    if len(curves) > 1:
        axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2)
