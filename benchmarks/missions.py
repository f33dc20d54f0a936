"""Are the missions won? Seeds of each preset against the scripted planners, on unseen cities.

Trains every preset, mode and seed from the command line's own loop, and flies the final policy and
every planner over the same 256 cities, once to the mission's end and once to the horizon. Writes
means over seeds with 95 % t intervals, learning curves and coverage over time. Results of
other presets and modes that the file already holds are kept; if they have other settings than these
presets have now, nothing is done.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    Stopwatch,
    good_enough,
    machine,
    over_seeds,
    parse,
    parser,
    periodic,
    save,
    show,
    with_training,
)

from jaxqmix import api, loading
from jaxqmix.compilation import enable_cache
from jaxqmix.config import RunConfig, to_dict
from jaxqmix.env.mission import EVALUATED, METRICS
from jaxqmix.planners import PLANNERS
from jaxqmix.presets import PRESETS, preset
from jaxqmix.runner import train

STABLE = 0.2
"""Over this last share of a run, no evaluation may fall below the criteria."""


def reached(evaluations: list[dict[str, Any]]) -> dict[str, Any]:
    """When the criteria were met so many times in a row, and whether they held to the end."""
    found = good_enough(evaluations) or {"seconds": None, "env_steps": None}
    met = [evaluation["met"] for evaluation in periodic(evaluations)]
    return {
        "seconds_to_criteria": found["seconds"],
        "env_steps_to_criteria": found["env_steps"],
        "stable": all(met[-max(1, round(STABLE * len(met))) :]),
    }


def to_the_horizon(loaded: loading.LoadedPolicy, episodes: int = 256) -> dict[str, Any]:
    """Flies on when the mission is complete: final coverage, and mean coverage over time."""
    report, _ = api.evaluate(loaded, episodes=episodes, to_horizon=True, curve=True)
    figures = {name: report[name] for name in METRICS}
    return figures | {"coverage_over_time": report["coverage_over_time"]["mean"]}


def fly_planner(name: str, config: RunConfig) -> dict[str, Any]:
    """A planner's evaluation, to the mission's end and to the horizon."""
    loaded = loading.scripted(name, config)
    report, _ = api.evaluate(loaded)
    return report | {"to_the_horizon": to_the_horizon(loaded)}


def train_seed(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Trains one seed; its final evaluations, learning curve and times."""
    watch = Stopwatch()
    report = train(config, folder, callback=watch)
    report["seconds"] = watch.seconds
    report |= reached(watch.evaluations)
    report["curve"] = watch.evaluations
    report["to_the_horizon"] = to_the_horizon(loading.load_policy(folder))
    print(f"{config.preset} {config.training.mode} seed {config.training.seed}: "
          f"coverage {report['coverage']:.3f}, t90 {report['t90']:.1f}, "
          f"{report['seconds']:.0f} s, criteria after {report['seconds_to_criteria']}",
          flush=True)  # fmt: skip
    return report


def seeds_row(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds with t intervals, the worst seeds, and how many met the criteria."""
    figures = {
        name: [report[name] for report in reports]
        for name in (*EVALUATED, "t90_over_limit", "seconds")
    }
    for name in ("coverage", "t90"):
        figures[f"horizon_{name}"] = [report["to_the_horizon"][name] for report in reports]
    for name in ("seconds_to_criteria", "env_steps_to_criteria"):
        figures[name] = [report[name] for report in reports]
        if None in figures[name]:
            del figures[name]
    ranges = {f"{name}_range": [min(values), max(values)] for name, values in figures.items()}
    return {
        **over_seeds(figures),
        **ranges,
        "met": sum(all(report["success"].values()) for report in reports),
        "stable": sum(report["stable"] for report in reports),
    }


def show_rows(rows: list[dict[str, Any]]) -> None:
    """Prints the table."""

    def horizon(row: dict[str, Any]) -> float:
        return row["horizon_coverage"] if "seeds" in row else row["to_the_horizon"]["coverage"]

    def figure(row: dict[str, Any], name: str, form: str) -> str:
        # Files of earlier versions do not hold all.
        return f"{row[name]:{form}}" if name in row else "-"

    show(
        "256 unseen cities; QMIX is the mean over seeds",
        ("mission", "policy", "coverage", "at the horizon", "t90", "/ limit", "collisions",
         "collided drones", "violations", "return", "mission reward", "success", "seeds met"),
        [
            (row["preset"], row["policy"], f"{row['coverage']:.1%}", f"{horizon(row):.1%}",
             f"{row['t90']:.1f}", figure(row, "t90_over_limit", ".2f"),
             f"{row['collision_rate']:.3%}", f"{row['collided_drones']:.2%}",
             f"{row['violation_rate']:.3%}", f"{row['return']:.3f}",
             figure(row, "mission_reward", ".3f"), f"{row['mission_success']:.1%}",
             str(row.get("met", "")))
            for row in rows
        ],
    )  # fmt: skip


def settings(row: dict[str, Any], budget: int | None) -> dict[str, Any]:
    """What a row depends on of its preset, as JSON holds it: planners do not learn."""
    sections = to_dict(with_budget(preset(row["preset"]), budget))
    del sections["checkpoint"]
    if row["policy"] in PLANNERS:
        sections = {name: sections[name] for name in ("env", "domain", "evaluation")}
    return json.loads(json.dumps(sections))


def with_budget(config: RunConfig, budget: int | None) -> RunConfig:
    """The run with so many env steps; its own by default."""
    return config if budget is None else with_training(config, env_steps=budget, episodes=None)


def name_of(row: dict[str, Any]) -> tuple[str, str]:
    """What tells rows apart."""
    return row["preset"], row["policy"]


def kept_rows(
    path: Path, asked: set[tuple[str, str]], budget: int | None = None
) -> list[dict[str, Any]]:
    """Rows that the file holds; ends the program when one that is not asked for anew, and so would
    stay beside the new ones, has other settings or another budget."""
    rows = json.loads(path.read_text())["results"] if path.exists() else []
    for row in rows:
        if name_of(row) not in asked and row.get("settings") != settings(row, budget):
            sys.exit(f"{path} holds {' '.join(name_of(row))} with other settings: give another "
                     "--name or --out")  # fmt: skip
    return rows


def merged(before: list[dict[str, Any]], results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results in place of earlier ones of the same names, in the order of the presets."""
    new = {name_of(row) for row in results}
    rows = [row for row in before if name_of(row) not in new] + results
    return sorted(rows, key=lambda row: list(PRESETS).index(row["preset"]))


COLOURS = {
    "qmix online": "#d1495b", "qmix replay": "#edae49", "lanes": "#00798c",
    "tours": "#5b8c5a",
    "voronoi": "#30638e", "greedy": "#7f9bb3", "random": "#9a9a9a",
}  # fmt: skip


def draw_figures(rows: list[dict[str, Any]], folder: Path, name: str) -> None:
    """One figure for each kind of sensing among the presets."""
    for sensing, ending in (("footprint", ""), ("probabilistic", "_probabilistic")):
        if alike := [row for row in rows if preset(row["preset"]).env.sensing == sensing]:
            draw(alike, folder / f"{name}{ending}.png")


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Learning curves of t90 with bands over seeds, and coverage over time, against planners."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    presets = [name for name in PRESETS if any(row["preset"] == name for row in rows)]
    figure = Figure(figsize=(5 * len(presets), 7), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, len(presets), squeeze=False)
    for column, name in enumerate(presets):
        learning, flying = grid[:, column]
        for row in (row for row in rows if row["preset"] == name):
            style = {"color": COLOURS[row["policy"]], "label": row["policy"]}
            seeds = row.get("per_seed", [row])
            over_time = np.array([s["to_the_horizon"]["coverage_over_time"] for s in seeds])
            band(flying, np.arange(over_time.shape[1]), over_time, style)
            if "per_seed" in row:
                curves = [periodic(seed["curve"]) for seed in seeds]
                steps = np.array([e["env_steps"] for e in curves[0]])
                band(
                    learning,
                    steps / 1e6,
                    np.array([[e["t90"] for e in c] for c in curves]),
                    style,
                )
            if "per_seed" not in row and row["policy"] != "random":
                learning.axhline(row["t90"], linewidth=0.8, linestyle="--", color=style["color"])
        learning.set(
            title=f"{name}: evaluations while training (dashed: planners)",
            xlabel="million env steps", ylabel="t90 (env steps)",
        )  # fmt: skip
        flying.set(
            title=f"{name}: 256 unseen cities", xlabel="env step of the episode",
            ylabel="coverage", ylim=(0, 1.02),
        )  # fmt: skip
        flying.axhline(0.9, color="black", linewidth=0.6, linestyle=":")
        for axes, free in ((learning, "upper right"), (flying, "center right")):
            axes.grid(alpha=0.25)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(frameon=False, fontsize=8, loc=free)
    figure.savefig(path, dpi=110)
    print(f"wrote {path}")


def band(axes: Any, x: np.ndarray, curves: np.ndarray, style: dict[str, str]) -> None:
    """The mean of curves [seeds, points] and the band from lowest to highest."""
    axes.plot(x, curves.mean(axis=0), linewidth=1.2, **style)
    if len(curves) > 1:
        low, high = curves.min(axis=0), curves.max(axis=0)
        axes.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)


def main() -> None:
    """Trains, evaluates, shows and saves."""
    line = parser(__doc__)
    line.add_argument("--presets", nargs="+", default=["quick"], choices=list(PRESETS))
    line.add_argument("--modes", nargs="*", default=["online"], choices=["online", "replay"])
    line.add_argument("--planners", nargs="*", default=list(PLANNERS), choices=list(PLANNERS))
    line.add_argument("--seeds", type=int, default=5)
    line.add_argument("--budget", type=int, help="env steps; the preset's by default")
    line.add_argument("--name", default="missions", help="of the result file")
    line.add_argument("--runs", type=Path, help="keep the runs' folders here")
    arguments = parse(line)
    path = arguments.out / f"{arguments.name}.json"
    policies = [*arguments.planners, *(f"qmix {mode}" for mode in arguments.modes)]
    asked = {(name, policy) for name in arguments.presets for policy in policies}
    rows = kept_rows(path, asked, arguments.budget)
    enable_cache()
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.presets:
            results = [
                {"preset": name, "policy": planner, **fly_planner(planner, preset(name))}
                for planner in arguments.planners
            ]
            for mode in arguments.modes:
                config = with_budget(preset(name), arguments.budget)
                config = with_training(config, mode=mode)
                runs = (arguments.runs or Path(folder)) / f"{name}-{mode}"
                reports = [
                    train_seed(
                        with_training(config, seed=seed), runs.with_name(f"{runs.name}-{seed}")
                    )
                    for seed in range(arguments.seeds)
                ]
                row = {"preset": name, "policy": f"qmix {mode}", **seeds_row(reports)}
                results.append(row | {"machine": machine(), "per_seed": reports})
            results = [row | {"settings": settings(row, arguments.budget)} for row in results]
            rows = merged(rows, results)
            save(arguments.name, rows, arguments.out)
            show_rows(rows)
            draw_figures(rows, arguments.out, arguments.name)


if __name__ == "__main__":
    main()
