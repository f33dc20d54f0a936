"""What runs leave behind, loaded; and drawn: training curves and coverage over time."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from jaxqmix.config import ConfigError, from_dict, printable, shown, to_dict
from jaxqmix.metrics import FINAL, SETTINGS, is_report, read, runs_in
from jaxqmix.render.scene import COLOURS, drone_colours, in_our_style

PANELS = (
    ("coverage", "coverage", "min_coverage"),
    ("return", "return", "min_return"),
    ("t90", "t90 (env steps)", None),
    ("collision_rate", "collision rate", "max_collision_rate"),
    ("violation_rate", "violation rate", None),
    ("loss", "loss", None),
)
"""Metric, title, and the success criterion that is drawn with it."""
SHARES = ("coverage", "collision_rate", "violation_rate", "over time")
"""Panels in percent."""
CURVES = ("mean", "p10", "p90")
"""What coverage over time is kept of."""
LINES = ("--", "-.", ":", (0, (1, 3)))
"""Styles of the lines of scripted planners."""


@dataclass(frozen=True)
class Record:
    """What a run wrote."""

    name: str
    settings: dict[str, Any]  # of `config.to_dict`
    reports: list[dict[str, Any]]
    final: dict[str, Any] | None  # final evaluation with its coverage over time

    @property
    def kind(self) -> str:
        """The same for runs that differ by nothing but the seed."""
        training = self.settings["training"] | {"seed": None}
        return json.dumps(self.settings | {"training": training})

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """The final evaluation, or the last one so far."""
        found = [report for report in self.reports if report["kind"] == "evaluation"]
        return self.final or (found[-1] if found else None)


def load_runs(folders: Sequence[Path]) -> list[Record]:
    """Loads runs from their folders; raises `ConfigError` where one holds no metrics.

    A folder that is named twice is one run; one that holds runs of several seeds is all of them.
    """
    records = []
    folders = [run for folder in folders for run in runs_in(folder) or [folder]]
    unique = {folder.resolve(): folder for folder in folders}
    for name, folder in zip(short_names(list(unique)), unique.values(), strict=True):
        reports = read(folder)
        if not reports:
            raise ConfigError(f"run = {shown(folder)} is not allowed: it holds no metrics")
        try:
            settings = to_dict(from_dict(read_json(folder / SETTINGS)))
        except ConfigError as error:
            raise ConfigError(f"run = {shown(folder)} is not allowed: {error}") from None
        path = folder / FINAL
        final = read_json(path) if path.exists() else None
        steps = settings["env"]["horizon"]
        whole = is_evaluation(final) and (settings["world"] or has_curves(final, steps))
        if final is not None and not whole:
            raise ConfigError(f"file = {shown(path)} is not allowed: it is no final evaluation")
        good = [each for each in reports if each["kind"] != "evaluation" or is_evaluation(each)]
        records.append(Record(name, settings, good, final))
    return records


def read_json(path: Path) -> Any:
    """What a file of a run holds; raises `ConfigError` when that cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror
    except (ValueError, RecursionError):
        reason = "it is damaged: it holds no JSON"
    raise ConfigError(f"file = {shown(path)} is not allowed: {reason}")


def is_number(value: Any) -> bool:
    """Whether a value from a file can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def has_numbers(report: dict[str, Any], names: Sequence[str]) -> bool:
    """Whether a report from a file holds numbers under all of these names."""
    return all(is_number(report.get(name)) for name in names)


def is_evaluation(report: Any) -> bool:
    """Whether something from a file holds what tables and curves show of an evaluation."""
    return (
        is_report(report)
        and report["kind"] == "evaluation"
        and isinstance(report.get("success"), dict)
        and all(report.get(name) is None or is_number(report[name]) for name, *_ in PANELS)
    )


def has_curves(final: Any, horizon: int) -> bool:
    """Whether a final evaluation holds its coverage over time: rows of a number for each step."""
    curves = final.get("coverage_over_time")
    rows = [curves.get(name) for name in CURVES] if isinstance(curves, dict) else [None]
    return all(
        isinstance(row, list) and len(row) == horizon + 1 and all(map(is_number, row))
        for row in rows
    )


def short_names(folders: Sequence[Path]) -> list[str]:
    """Each folder's name, led by as many folders above it as tell it from the others."""

    def ending(folder: Path, parts: int) -> Path:
        return Path(*folder.parts[-parts:])

    names = []
    for folder in folders:
        parts = 1
        while sum(ending(other, parts) == ending(folder, parts) for other in folders) > 1:
            parts += 1
        # Bytes that are no text in this locale cannot be drawn, or printed.
        names.append(printable(ending(folder, parts).as_posix()))
    return names


def by_settings(runs: Sequence[Record]) -> dict[str, list[Record]]:
    """Runs that differ by nothing but the seed, together, under a name."""
    kinds: dict[str, list[Record]] = {}
    for run in runs:
        kinds.setdefault(run.kind, []).append(run)
    return {
        same[0].name
        if len(same) == 1
        else f"{same[0].name} to {same[-1].name} ({len(same)} seeds)": same
        for same in kinds.values()
    }


@in_our_style
def plot_runs(
    runs: Sequence[Record], out: Path, planners: dict[str, dict[str, Any]] | None = None
) -> None:
    """Draws curves of runs; those that differ by nothing but the seed make one line and a band.

    Args:
      runs: from `load_runs`.
      out: a .png, .pdf or .svg file.
      planners: evaluations of scripted planners with `coverage_over_time`, by name.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    planners = planners or {}
    flown = bool(planners) or any("coverage_over_time" in (run.final or {}) for run in runs)
    figure = Figure(figsize=(16 if flown else 11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    drawn = [panel for panel in PANELS if is_told(panel[0], runs)]
    half = -(-len(drawn) // 2)
    shape: list[Any] = [[name for name, *_ in row] for row in (drawn[:half], drawn[half:])]
    shape[1] += ["."] * (half - len(shape[1]))
    for row in shape:
        row += ["over time"] * (2 if flown else 0)
    panels = figure.subplot_mosaic(shape)
    colours = cycle("#" + bytes(colour).hex() for colour in drone_colours(COLOURS))
    for (label, same), colour in zip(by_settings(runs).items(), colours, strict=False):
        for name, *_ in drawn:
            draw_training(panels[name], same, name, colour)
        if flown:
            draw_coverage(panels["over time"], same, label, colour)
        # Only for the legend.
        panels[drawn[0][0]].plot([], [], color=colour, label=label_of(label))
    best = min(
        planners.values(),
        key=lambda report: (report.get("t90", np.inf), -report.get("coverage", 0.0)),
        default={},
    )
    criteria = runs[0].settings["evaluation"]
    for name, title, criterion in drawn:
        if name in best:
            words = f"best planner: {best['policy']}" if name == "coverage" else None
            panels[name].axhline(best[name], color="#333333", linestyle="--", label=words)
        finish_panel(panels[name], name, title, "env steps", criteria.get(criterion))
    panels["loss"].set_yscale("log")
    if flown:
        draw_planners(panels["over time"], planners)
        title, along = "coverage over time, final evaluation", "env step of an episode"
        finish_panel(panels["over time"], "over time", title, along, criteria["min_coverage"])
        legend(panels["over time"], loc="best")
    # Names of swept values are long: what does not fit would leave the picture at both sides.
    width = 160 if flown else 100
    title = textwrap.shorten(headline(runs), width, placeholder=" ...")
    figure.suptitle(title, fontweight="bold", parse_math=False)
    handles, labels = panels[drawn[0][0]].get_legend_handles_labels()
    legend(
        figure,
        handles,
        labels,
        title=key_of(runs),
        loc="outside lower center",
        ncols=min(4, max(1, width // (max(map(len, labels)) + 8))),
    )
    figure.savefig(out, dpi=110)


def key_of(runs: Sequence[Record]) -> str:
    """What the marks mean; and, where all runs have the same, at which coverage episodes end."""
    ends = {
        None
        if run.settings.get("world")
        else tuple(run.settings[part]["coverage_target"] for part in ("training", "env"))
        for run in runs
    }
    training, mission = "", ""
    if len(ends) == 1 and (targets := ends.pop()):
        of_training, of_mission = (f"{100 * min(target, 1.0):.4g} %" for target in targets)
        training = f", and its episodes end at {of_training} coverage"
        mission = f" (end at {of_mission})"
    return (
        f"thin: training (explores{training})   dots: evaluations{mission}   star: final evaluation"
    )


def is_told(metric: str, runs: Sequence[Record]) -> bool:
    """Whether the worlds of these runs have a metric."""
    return metric in ("return", "loss") or any(
        metric in report for run in runs for report in run.reports
    )


def headline(runs: Sequence[Record]) -> str:
    """The runs and, for a single one, what its evaluation says."""
    if len(runs) > 1 or runs[0].evaluation is None:
        return ", ".join(run.name for run in runs[:4]) + (" ..." if len(runs) > 4 else "")
    report, run = runs[0].evaluation, runs[0]
    met = all(report["success"].values())
    words = f"{run.name}: criteria {'met' if met else 'not met'}"
    if is_number(report.get("t90")):
        horizon = run.settings["env"]["horizon"]
        # An episode that never sees so much counts with its time limit.
        never = report["t90"] >= horizon
        when = f"not within {horizon}" if never else f"in {report['t90']:.1f}"
        words += f", sees 90 % {when} env steps"
    if is_number(report.get("mission_success")):
        words += f", {report['mission_success']:.1%} of missions completed"
    return words + ("" if run.final else " (so far)")


def legend(place: Any, *entries: Any, **options: Any) -> None:
    """Adds a legend that shows names as they are: Matplotlib reads mathematics between `$`."""
    for text in place.legend(*entries, frameon=False, **options).get_texts():
        text.set_parse_math(False)


def label_of(name: str) -> str:
    """A name as a legend shows it: Matplotlib hides those that begin with `_`."""
    name = "".join(each if each.isprintable() else "\ufffd" for each in name)
    return f" {name}" if name.startswith("_") else name


def finish_panel(axes: Any, name: str, title: str, along: str, criterion: float | None) -> None:
    """Names a panel, and draws the success criterion into it, unless all lies far below."""
    from matplotlib.ticker import EngFormatter, PercentFormatter

    if criterion is not None and name == "collision_rate":
        highest = axes.dataLim.y1
        if np.isfinite(highest) and highest < criterion / 3:
            title, criterion = f"{title} (criterion: < {100 * criterion:.4g} %)", None
    axes.set_title(title)
    if name in SHARES:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel(along)
    axes.grid(alpha=0.25)
    if criterion is not None:
        axes.axhline(criterion, color="#888888", linewidth=1, linestyle=":", zorder=1)


def draw_training(axes: Any, runs: Sequence[Record], name: str, colour: str) -> None:
    """Draws a metric of runs that differ by the seed: training, evaluations, the final one."""
    band(
        axes,
        [curve(run.reports, "training", name) for run in runs],
        colour,
        linewidth=0.8,
        alpha=0.7,
    )
    evaluations = [curve(run.reports, "evaluation", name) for run in runs]
    band(axes, evaluations, colour, linewidth=1.6, marker="o", markersize=3.5)
    for run in runs:
        if run.final and run.final.get(name) is not None:
            place = run.final["env_steps"], run.final[name]
            axes.plot(*place, "*", color=colour, markersize=11, markeredgecolor="white", zorder=5)


def draw_coverage(axes: Any, runs: Sequence[Record], label: str, colour: str) -> None:
    """Draws coverage over time: one run with the band of its episodes, several with their own."""
    finals = [run.final or {} for run in runs]
    curves = [final["coverage_over_time"] for final in finals if "coverage_over_time" in final]
    if not curves:
        return
    means = np.array([each["mean"] for each in curves])
    low, high, what = curves[0]["p10"], curves[0]["p90"], "80 % of episodes"
    if len(curves) > 1:
        low, high, what = means.min(axis=0), means.max(axis=0), "all seeds"
    steps = np.arange(means.shape[1])
    axes.plot(steps, means.mean(axis=0), color=colour, linewidth=2, label=label_of(label))
    axes.fill_between(steps, low, high, color=colour, alpha=0.2, label=what)


def draw_planners(axes: Any, planners: dict[str, dict[str, Any]]) -> None:
    """Draws the mean coverage over time of scripted planners."""
    for (name, report), style in zip(planners.items(), LINES * len(planners), strict=False):
        mean = report["coverage_over_time"]["mean"]
        axes.plot(mean, color="#333333", linewidth=1.4, linestyle=style, label=label_of(name))


def curve(reports: Sequence[dict[str, Any]], kind: str, name: str) -> np.ndarray:
    """Points [2, P] of env steps and a metric, where the reports of a kind have it.

    The final evaluation, which flies other cities, is left out.
    """
    rows = [
        (report["env_steps"], report[name])
        for report in reports
        if report["kind"] == kind and is_number(report.get(name)) and not report.get("final")
    ]
    return np.array(rows, float).reshape(-1, 2).T


def band(axes: Any, curves: Sequence[np.ndarray], colour: str, **style: Any) -> None:
    """Draws the mean of curves and the band from lowest to highest, where all of them are."""
    curves = [points for points in curves if points.shape[1]]
    if not curves:
        return
    steps = np.unique(np.concatenate([points[0] for points in curves]))
    first, last = max(points[0, 0] for points in curves), min(points[0, -1] for points in curves)
    steps = steps[(steps >= first) & (steps <= last)]
    values = np.stack([np.interp(steps, *points) for points in curves])
    axes.plot(steps, values.mean(axis=0), color=colour, **style)
    if len(curves) > 1:
        axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2)
