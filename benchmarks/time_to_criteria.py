"""How long until a swarm is good enough? Seconds and env steps to the success criteria.

Trains presets from scratch, and stops a run at the third evaluation in a row that meets every
criterion. The clock starts before anything is compiled; evaluations and checkpoints are included.
The seconds in which JAX traced and compiled are counted apart.
"""

from __future__ import annotations

import dataclasses
import signal
import tempfile
from pathlib import Path
from typing import Any

from common import (
    COLOURS,
    IN_A_ROW,
    CompileClock,
    Stopwatch,
    figure,
    good_enough,
    parse,
    parser,
    periodic,
    save,
    save_figure,
    show,
    summary,
    with_training,
)

from jaxqmix.config import RunConfig
from jaxqmix.folders import Report
from jaxqmix.presets import PRESETS, preset
from jaxqmix.runner import train


class Race(Stopwatch):
    """Also counts compilation, and stops the run when it is good enough."""

    def __init__(self, compiling: CompileClock):
        super().__init__()
        self.compiling = compiling
        self.met: dict[str, Any] | None = None

    def on_evaluation(self, report: Report) -> None:
        """Called after every evaluation."""
        if self.met:
            return
        super().on_evaluation(report)
        self.evaluations[-1]["compile_seconds"] = self.compiling.seconds
        self.met = good_enough(self.evaluations)
        if self.met:
            signal.raise_signal(signal.SIGINT)  # the run saves itself and stops


def time_seed(config: RunConfig) -> dict[str, Any]:
    """Trains one seed until it is good enough or its budget is spent."""
    with tempfile.TemporaryDirectory() as folder:
        watch = Race(CompileClock())
        train(config, Path(folder) / "run", callback=watch)
    result = {"seed": config.training.seed, "evaluations": periodic(watch.evaluations)}
    if watch.met is None:
        return result | {"seconds": None, "compile_seconds": None, "env_steps": None}
    found = {name: watch.met[name] for name in ("seconds", "compile_seconds", "env_steps")}
    return result | found


def summarise(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One row per preset: spreads over the seeds that met the criteria."""
    row: dict[str, Any] = {"preset": name, "seeds": len(runs), "runs": runs}
    done = [run for run in runs if run["seconds"] is not None]
    row["met"] = len(done)
    if done:
        row["seconds"] = summary(run["seconds"] for run in done)
        row["compiled"] = summary(run["seconds"] - run["compile_seconds"] for run in done)
        row["env_steps"] = summary(run["env_steps"] for run in done)
    return row


def plot(rows: list[dict[str, Any]], axes: Any) -> None:
    """Coverage at every evaluation against the clock, a colour per preset."""
    for row, colour in zip(rows, COLOURS, strict=False):
        for index, run in enumerate(row["runs"]):
            seconds = [evaluation["seconds"] for evaluation in run["evaluations"]]
            coverage = [evaluation["coverage"] for evaluation in run["evaluations"]]
            label = None if index else row["preset"]
            axes.plot(seconds, coverage, marker="o", markersize=3, color=colour, label=label)
            if run["seconds"] is not None:
                axes.plot(run["seconds"], coverage[-1], "*", markersize=12, color=colour)
    axes.axhline(0.9, color="#888888", linewidth=0.8, linestyle=":")
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds, compilation included (star: criteria met)")
    axes.set_ylabel("coverage on held-out cities")
    axes.legend(frameon=False)


def main() -> None:
    """Measures, shows, draws and saves."""
    line = parser(__doc__)
    line.add_argument("--presets", nargs="+", default=["quick"], choices=list(PRESETS))
    line.add_argument("--modes", nargs="+", default=["online"], choices=["online", "replay"])
    line.add_argument("--seeds", type=int, default=1)
    line.add_argument("--every", type=int, help="episodes between evaluations; the preset's")
    line.add_argument("--env-steps", type=int, help="budget; the preset's by default")
    arguments = parse(line)
    rows = []
    for name in arguments.presets:
        for mode in arguments.modes:
            config = with_training(preset(name), mode=mode)
            if arguments.env_steps:
                config = with_training(config, env_steps=arguments.env_steps)
            if arguments.every:
                evaluation = dataclasses.replace(config.evaluation, every_episodes=arguments.every)
                config = dataclasses.replace(config, evaluation=evaluation)
            seeds = range(arguments.seeds)
            runs = [time_seed(with_training(config, seed=seed)) for seed in seeds]
            rows.append(summarise(f"{name} {mode}", runs))
    show(
        f"Until {IN_A_ROW} evaluations in a row meet the criteria (medians over seeds)",
        ("preset", "met", "seconds", "without compilation", "env steps"),
        [
            (row["preset"], f"{row['met']} of {row['seeds']}",
             *(row[key]["median"] if key in row else None
               for key in ("seconds", "compiled", "env_steps")))
            for row in rows
        ],
    )  # fmt: skip
    drawn, (axes,) = figure(1)
    plot(rows, axes)
    save_figure("time_to_criteria", drawn, arguments.out)
    save("time_to_criteria", rows, arguments.out)


if __name__ == "__main__":
    main()
