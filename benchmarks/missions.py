"""Are the missions won? Seeds of each preset against the scripted planners, on unseen cities.

Trains every preset and seed, evaluates the final policy and every planner on the same 256 cities,
and writes means over seeds with 95 % bootstrap intervals.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import save
from rich.console import Console
from rich.table import Table

from jaxqmix import api
from jaxqmix.config import RunConfig
from jaxqmix.evaluation import METRICS
from jaxqmix.planners import PLANNERS
from jaxqmix.presets import PRESETS, preset
from jaxqmix.runner import train


def with_training(config: RunConfig, **changes: Any) -> RunConfig:
    """The config with other training settings."""
    return dataclasses.replace(config, training=dataclasses.replace(config.training, **changes))


def train_seed(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Trains one seed; its final evaluation, and seconds with everything included."""
    started = time.perf_counter()
    report = train(config, folder)
    report["seconds"] = time.perf_counter() - started
    print(f"{config.preset} seed {config.training.seed}: coverage {report['coverage']:.3f}, "
          f"t90 {report['t90']:.1f}, {report['seconds']:.0f} s", flush=True)  # fmt: skip
    return report


def over_seeds(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds with bootstrap intervals, and how many met every criterion."""
    generator = np.random.default_rng(0)
    chosen = generator.integers(0, len(reports), (2000, len(reports)))
    summary: dict[str, Any] = {"seeds": len(reports)}
    for name in (*METRICS, "seconds"):
        values = np.array([report[name] for report in reports])
        summary[name] = float(values.mean())
        interval = np.quantile(values[chosen].mean(axis=1), [0.025, 0.975])
        summary[f"{name}_ci95"] = [float(bound) for bound in interval]
        summary[f"{name}_worst"] = [float(values.min()), float(values.max())]
    summary["met"] = sum(all(report["success"].values()) for report in reports)
    return summary


def show(rows: list[tuple[str, str, dict[str, Any]]]) -> None:
    """Prints the table."""
    table = Table("mission", "policy", "coverage", "t90", "collisions", "violations", "return",
                  "success")  # fmt: skip
    for mission, policy, row in rows:
        table.add_row(
            mission, policy, f"{row['coverage']:.1%}", f"{row['t90']:.1f}",
            f"{row['collision_rate']:.3%}", f"{row['violation_rate']:.3%}",
            f"{row['return']:.3f}", f"{row['mission_success']:.1%}",
        )  # fmt: skip
    Console().print(table)


def main() -> None:
    """Trains, evaluates, shows and saves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", nargs="+", default=["quick"], choices=list(PRESETS))
    parser.add_argument("--modes", nargs="+", default=["online"], choices=["online", "replay"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=int, help="env steps; the preset's by default")
    parser.add_argument("--name", default="missions", help="of the result file")
    arguments = parser.parse_args()
    rows, results = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.presets:
            for planner in PLANNERS:
                report, _ = api.evaluate(api.scripted(planner, preset(name)))
                rows.append((name, planner, report))
                results.append({"preset": name, "policy": planner, **report})
            for mode in arguments.modes:
                reports = []
                for seed in range(arguments.seeds):
                    config = with_training(preset(name), mode=mode, seed=seed)
                    if arguments.budget:
                        config = with_training(config, env_steps=arguments.budget, episodes=None)
                    run = Path(folder) / f"{name}-{mode}-{seed}"
                    reports.append(train_seed(config, run))
                summary = over_seeds(reports)
                rows.append((name, f"qmix {mode}", summary))
                results.append({"preset": name, "policy": f"qmix {mode}", **summary})
    show(rows)
    save(arguments.name, results)


if __name__ == "__main__":
    main()
