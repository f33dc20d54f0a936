"""What a person sees in the terminal: progress, evaluations and the verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console as Terminal
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from jaxqmix.config import RunConfig
from jaxqmix.runner import Listener, Report

ROWS = (
    ("coverage", "coverage", "{:.1%}"),
    ("collision_rate", "collision rate", "{:.3%}"),
    ("collided_drones", "collided drones", "{:.2%}"),
    ("violation_rate", "violation rate", "{:.3%}"),
    ("return", "return", "{:.3f}"),
    ("t90", "t90 (env steps)", "{:.1f}"),
    ("mission_success", "mission success", "{:.1%}"),
)


class Console(Listener):
    """Shows a run in the terminal."""

    def __init__(self, out: Path):
        self._out = out
        self._terminal = Terminal()
        self._progress: Progress | None = None
        self._config: RunConfig | None = None

    def begun(self, config: RunConfig, step: int) -> None:
        """Says what is about to run, and shows the bar."""
        self._config = config
        env, training = config.env, config.training
        self._terminal.print(
            f"[bold]{config.preset}[/bold]: {env.drones} drones, "
            f"{env.city_width / 1000:g} x {env.city_length / 1000:g} km of {env.cell_size:g} m "
            f"cells, horizon {env.horizon}; {config.learner.mixer}, {training.mode}, "
            f"{training.swarms} swarms, {config.budget:,} env steps, seed {training.seed}"
        )
        if step:
            self._terminal.print(f"resuming at {step * config.chunk_steps:,} env steps")
        self._progress = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[figures]}"),
            console=self._terminal,
        )
        self._progress.add_task("train", total=config.chunks, completed=step, figures="compiling")
        self._progress.start()

    def advanced(self, step: int) -> None:
        """Moves the bar."""
        self._progress.update(self._progress.task_ids[0], completed=step)

    def trained(self, report: Report) -> None:
        """Shows the figures beside the bar."""

        def show(name: str, form: str) -> str:
            return "-" if report[name] is None else form.format(report[name])

        self._progress.update(
            self._progress.task_ids[0],
            figures=f"episode {report['episodes']:,.0f}  env steps {report['env_steps']:,}  "
            f"{report['env_steps_per_second']:,.0f}/s  epsilon {report['epsilon']:.2f}  "
            f"return {show('return', '{:.2f}')}  coverage {show('coverage', '{:.0%}')}  "
            f"collisions {show('collision_rate', '{:.2%}')}  "
            f"violations {show('violation_rate', '{:.2%}')}  loss {report['loss']:.3f}",
        )

    def evaluated(self, report: Report) -> None:
        """Prints an evaluation, or the final table and verdict."""
        if report["final"]:
            self._close()
            show_report(report | {"policy": self._config.learner.mixer})
            return
        self._terminal.print(evaluation_line(report), highlight=False)

    def finished(self) -> None:
        """Says where everything is."""
        self._terminal.print(f"checkpoints, metrics, curves.png and replay.gif are in {self._out}")

    def stopped(self, step: int) -> None:
        """Says how to go on."""
        self._close()
        self._terminal.print(
            f"stopped and saved at {step * self._config.chunk_steps:,} env steps; "
            f"the same command with --resume continues"
        )

    def failed(self) -> None:
        """Takes the bar away before an error is shown."""
        self._close()

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


class Lines(Listener):
    """Prints one line per evaluation and nothing else: for notebooks and log files."""

    def evaluated(self, report: Report) -> None:
        """Prints the line."""
        print(evaluation_line(report), flush=True)


def evaluation_line(report: Report) -> str:
    """An evaluation in one line."""
    verdict = "meets the criteria" if all(report["success"].values()) else "not yet"
    return (
        f"evaluation at {report['env_steps']:,} env steps: "
        f"coverage {report['coverage']:.1%}, t90 {report['t90']:.0f}, "
        f"return {report['return']:.3f}, collision rate {report['collision_rate']:.3%}, "
        f"violation rate {report['violation_rate']:.3%}: {verdict}"
    )


def show_report(report: dict[str, Any]) -> None:
    """Prints a table of an evaluation and the verdict on the success criteria."""
    table = Table(title=f"{report['policy']} on {report['episodes']} unseen cities")
    table.add_column("metric")
    table.add_column("mean", justify="right")
    table.add_column("95 % interval", justify="right")
    table.add_column("criterion")
    for name, label, form in ROWS:
        low, high = report[f"{name}_ci95"]
        met = report["success"].get(name)
        table.add_row(
            label,
            form.format(report[name]),
            f"{form.format(low)} to {form.format(high)}",
            "" if met is None else ("met" if met else "not met"),
        )
    terminal = Terminal()
    terminal.print(table)
    passed = all(report["success"].values())
    terminal.print("[bold green]success[/]" if passed else "[bold red]criteria not met[/]")


@contextmanager
def frames() -> Iterator[Callable[[int, int], None]]:
    """A progress bar over the frames of an animation."""
    with Progress(BarColumn(), MofNCompleteColumn(), TextColumn("frames"), transient=True) as bar:
        task = bar.add_task("frames", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
