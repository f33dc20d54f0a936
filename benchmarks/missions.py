"""Are the missions won? Seeds of each preset against the scripted planners, on unseen cities.

Trains every preset, mode and seed from the command line's own loop, and flies the final policy and
every planner over the same 256 cities, once to the mission's end and once to the horizon. Writes
means over seeds with 95 % bootstrap intervals, learning curves and coverage over time; results of
other presets and modes that the file already holds are kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, machine, save, with_training
from rich.console import Console
from rich.table import Table

from jaxqmix import api
from jaxqmix.compilation import enable_cache
from jaxqmix.config import RunConfig
from jaxqmix.distributed import use_all_cores
from jaxqmix.evaluation import METRICS, evaluator
from jaxqmix.planners import PLANNERS
from jaxqmix.presets import PRESETS, preset
from jaxqmix.runner import Listener, train

STABLE = 0.2
"""Over this last share of a run, no evaluation may fall below the criteria."""
IN_A_ROW = 3
"""Evaluations in a row that must meet the criteria before they count as reached."""


class Stopwatch(Listener):
    """Notes when each evaluation of a run came, and what it found."""

    def __init__(self) -> None:
        self.begun_at, self.evaluations = time.perf_counter(), []

    def evaluated(self, report: dict[str, Any]) -> None:
        """Keeps the evaluation with the seconds since the run began, compilation included."""
        kept = {name: report[name] for name in ("env_steps", "final", *METRICS)}
        kept["seconds"] = time.perf_counter() - self.begun_at
        self.evaluations.append(kept | {"met": all(report["success"].values())})


def reached(evaluations: list[dict[str, Any]]) -> dict[str, Any]:
    """When the criteria were first met several times in a row, and whether they held to the end."""
    periodic = [e for e in evaluations if not e["final"]]
    met = [e["met"] for e in periodic]
    first = next((i for i in range(len(met) - IN_A_ROW + 1) if all(met[i : i + IN_A_ROW])), None)
    late = periodic[-max(1, round(STABLE * len(periodic))) :]
    return {
        "seconds_to_criteria": None if first is None else periodic[first]["seconds"],
        "env_steps_to_criteria": None if first is None else periodic[first]["env_steps"],
        "stable": all(e["met"] for e in late),
    }


def to_the_horizon(flyer: api.Flyer, episodes: int = 256) -> dict[str, Any]:
    """Flies on when the mission is complete: final coverage, and mean coverage over time."""
    env = dataclasses.replace(flyer.config.env, coverage_target=1.0)
    world = dataclasses.replace(flyer.env, config=env)
    metrics, _ = evaluator(world, lambda _: flyer.policy, episodes)((), 0)
    figures = {name: float(np.mean(metrics[name])) for name in METRICS}
    over_time = np.mean(metrics["coverage_over_time"], axis=0)
    return figures | {"coverage_over_time": [round(float(c), 4) for c in over_time]}


def fly_planner(name: str, config: RunConfig) -> dict[str, Any]:
    """A planner's evaluation, to the mission's end and to the horizon."""
    flyer = api.scripted(name, config)
    report, _ = api.evaluate(flyer)
    return report | {"to_the_horizon": to_the_horizon(flyer)}


def train_seed(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Trains one seed; its final evaluations, learning curve and times."""
    watch = Stopwatch()
    report = train(config, folder, listener=watch)
    report["seconds"] = time.perf_counter() - watch.begun_at
    report |= reached(watch.evaluations)
    report["curve"] = watch.evaluations
    report["to_the_horizon"] = to_the_horizon(api.load_policy(folder))
    print(f"{config.preset} {config.training.mode} seed {config.training.seed}: "
          f"coverage {report['coverage']:.3f}, t90 {report['t90']:.1f}, "
          f"{report['seconds']:.0f} s, criteria after {report['seconds_to_criteria']}",
          flush=True)  # fmt: skip
    return report


def over_seeds(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds with bootstrap intervals, the worst seeds, and how many met the criteria."""
    generator = np.random.default_rng(0)
    chosen = generator.integers(0, len(reports), (2000, len(reports)))
    summary: dict[str, Any] = {"seeds": len(reports)}

    def add(name: str, values: list[float]) -> None:
        array = np.array(values, float)
        summary[name] = float(array.mean())
        interval = np.quantile(array[chosen].mean(axis=1), [0.025, 0.975])
        summary[f"{name}_ci95"] = [float(bound) for bound in interval]
        summary[f"{name}_range"] = [float(array.min()), float(array.max())]

    for name in (*METRICS, "seconds"):
        add(name, [report[name] for report in reports])
    for name in ("coverage", "t90"):
        add(f"horizon_{name}", [report["to_the_horizon"][name] for report in reports])
    for name in ("seconds_to_criteria", "env_steps_to_criteria"):
        if all(report[name] is not None for report in reports):
            add(name, [report[name] for report in reports])
    summary["met"] = sum(all(report["success"].values()) for report in reports)
    summary["stable"] = sum(report["stable"] for report in reports)
    return summary


def show(results: list[dict[str, Any]]) -> None:
    """Prints the table."""
    table = Table("mission", "policy", "coverage", "at the horizon", "t90", "collisions",
                  "collided drones", "violations", "return", "success", "seeds met")  # fmt: skip
    for row in results:
        horizon = row.get("horizon_coverage", row.get("to_the_horizon", {}).get("coverage", 0.0))
        table.add_row(
            row["preset"], row["policy"], f"{row['coverage']:.1%}", f"{horizon:.1%}",
            f"{row['t90']:.1f}", f"{row['collision_rate']:.3%}", f"{row['collided_drones']:.2%}",
            f"{row['violation_rate']:.3%}", f"{row['return']:.3f}",
            f"{row['mission_success']:.1%}", str(row.get("met", "")),
        )  # fmt: skip
    Console(width=140).print(table)


def merged(name: str, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results with those of other presets and policies that the file already holds."""
    path = RESULTS / f"{name}.json"
    before = json.loads(path.read_text())["results"] if path.exists() else []
    new = {(row["preset"], row["policy"]) for row in results}
    return [row for row in before if (row["preset"], row["policy"]) not in new] + results


COLOURS = {
    "qmix online": "#d1495b", "qmix replay": "#edae49", "lanes": "#00798c",
    "voronoi": "#30638e", "greedy": "#7f9bb3", "random": "#9a9a9a",
}  # fmt: skip


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Learning curves with bands over seeds, and coverage over time against the planners."""
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
                curves = [[e for e in seed["curve"] if not e["final"]] for seed in seeds]
                steps = np.array([e["env_steps"] for e in curves[0]])
                band(
                    learning,
                    steps / 1e6,
                    np.array([[e["coverage"] for e in c] for c in curves]),
                    style,
                )
        learning.set(
            title=f"{name}: evaluations while training", xlabel="million env steps", ylim=(0.2, 1.0)
        )
        flying.set(
            title=f"{name}: 256 unseen cities", xlabel="env step of the episode", ylim=(0, 1.02)
        )
        for axes in (learning, flying):
            axes.axhline(0.9, color="black", linewidth=0.6, linestyle=":")
            axes.set_ylabel("coverage")
            axes.grid(alpha=0.25)
            axes.legend(frameon=False, fontsize=8, loc="lower right")
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", nargs="+", default=["quick"], choices=list(PRESETS))
    parser.add_argument("--modes", nargs="*", default=["online"], choices=["online", "replay"])
    parser.add_argument("--planners", nargs="*", default=list(PLANNERS), choices=list(PLANNERS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=int, help="env steps; the preset's by default")
    parser.add_argument("--name", default="missions", help="of the result file")
    parser.add_argument("--runs", type=Path, help="keep the runs' folders here")
    arguments = parser.parse_args()
    enable_cache()
    use_all_cores()
    machine_now = machine()
    with tempfile.TemporaryDirectory() as folder:
        runs = arguments.runs or Path(folder)
        for name in arguments.presets:
            results = [
                {"preset": name, "policy": planner, **fly_planner(planner, preset(name))}
                for planner in arguments.planners
            ]
            for mode in arguments.modes:
                reports = []
                for seed in range(arguments.seeds):
                    config = with_training(preset(name), mode=mode, seed=seed)
                    if arguments.budget:
                        config = with_training(config, env_steps=arguments.budget, episodes=None)
                    reports.append(train_seed(config, runs / f"{name}-{mode}-{seed}"))
                row = {"preset": name, "policy": f"qmix {mode}", **over_seeds(reports)}
                results.append(row | {"machine": machine_now, "per_seed": reports})
            rows = merged(arguments.name, results)
            save(arguments.name, rows)
            show(rows)
            draw(rows, RESULTS / f"{arguments.name}.png")


if __name__ == "__main__":
    main()
