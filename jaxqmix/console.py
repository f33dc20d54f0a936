"""What a person sees in the terminal: progress, evaluations and the verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console as Terminal
from rich.console import RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from jaxqmix.config import RunConfig
from jaxqmix.render.curves import Record, groups
from jaxqmix.runner import REPORTS, Listener, Report

LOGGED = REPORTS // 10
"""In a pipe or a log, where no bar can move, one report in so many is printed."""
ROWS = (
    ("coverage", "coverage", "{:.1%}"),
    ("collision_rate", "collision rate", "{:.3%}"),
    ("collided_drones", "collided drones", "{:.2%}"),
    ("violation_rate", "violation rate", "{:.3%}"),
    ("return", "return", "{:.3f}"),
    ("t90", "t90 (env steps)", "{:.1f}"),
    ("mission_success", "mission success", "{:.1%}"),
)


class Bar(Progress):
    """A progress bar with lines of figures below, readable from 80 columns on."""

    figures: tuple[str, ...] = ()
    doing: str = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar, the figures, and what takes time now."""
        yield self.make_tasks_table(self.tasks)
        yield from self.figures
        if self.doing:
            yield self.doing


class Console(Listener):
    """Shows a run in the terminal."""

    def __init__(self, out: Path):
        self._out = out
        self._terminal = Terminal(highlight=False)
        self._bar: Bar | None = None
        self._config: RunConfig | None = None
        self._reports = 0

    def begun(self, config: RunConfig, step: int, memory: dict[str, int]) -> None:
        """Says what is about to run, and shows the bar."""
        self._config = config
        env, training = config.env, config.training
        self._say(
            f"[bold]{escape(config.preset)}[/bold]: {env.drones} drones, "
            f"{env.city_width / 1000:g} x {env.city_length / 1000:g} km of {env.cell_size:g} m "
            f"cells, horizon {env.horizon}; {config.learner.mixer}, {training.mode}, "
            f"{training.swarms} swarms, {config.budget:,} env steps, seed {training.seed}"
        )
        parts = [f"{name} {size / 1e6:,.1f} MB" for name, size in memory.items() if size]
        self._say(f"memory: {', '.join(parts)}")
        if step:
            self._say(f"resuming at {step * config.chunk_steps:,} env steps")
        self._bar = Bar(
            SpinnerColumn(),
            BarColumn(bar_width=40),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("gone,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self._terminal,
            disable=not self._terminal.is_interactive,
        )
        self._bar.add_task("train", total=config.chunks, completed=step)
        self._bar.start()
        self.doing("compiling")

    def advanced(self, step: int) -> None:
        """Moves the bar."""
        self._bar.update(self._bar.task_ids[0], completed=step)

    def trained(self, report: Report) -> None:
        """Shows the figures below the bar, or some of them as lines of a log."""
        self._bar.figures, self._bar.doing = figures(report), ""
        self._reports += 1
        if not self._terminal.is_interactive and self._reports % LOGGED == 0:
            self._say("   ".join(figures(report)))

    def doing(self, what: str) -> None:
        """Says what takes time: below the bar, or in a line of its own once the bar is gone."""
        if self._bar is None:
            self._say(what)
        else:
            self._bar.doing = what

    def stopping(self) -> None:
        """Says that the wish to stop was heard."""
        if self._bar is not None:
            self._bar.doing = "finishing what is begun; Ctrl-C again stops at once"

    def _say(self, text: str) -> None:
        """Prints a line; a log keeps it whole."""
        self._terminal.print(text, soft_wrap=not self._terminal.is_interactive)

    def evaluated(self, report: Report) -> None:
        """Prints an evaluation, or the final table and verdict."""
        if report["final"]:
            self._close()
            more = {"policy": self._config.learner.mixer, "city": self._config.env.city}
            show_report(report | more)
            return
        self._say(evaluation_line(report))

    def finished(self) -> None:
        """Says where everything is."""
        self._say(
            f"checkpoints, metrics, curves.png and replay.gif are in {escape(str(self._out))}"
        )

    def stopped(self, step: int) -> None:
        """Says how to go on."""
        self._close()
        self._say(
            f"stopped and saved at {step * self._config.chunk_steps:,} env steps; "
            "the same command with --resume continues"
        )

    def failed(self) -> None:
        """Takes the bar away before an error is shown."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.doing = ""
            self._bar.stop()
            self._bar = None


def figures(report: Report) -> tuple[str, str]:
    """A training report in two lines of less than 80 columns."""

    def show(name: str, form: str) -> str:
        return "-" if report[name] is None else form.format(report[name])

    return (
        f"episode {report['episodes']:,.0f}   env steps {report['env_steps']:,}   "
        f"{report['env_steps_per_second']:,.0f} env steps/s   epsilon {report['epsilon']:.2f}",
        f"return {show('return', '{:.2f}')}   coverage {show('coverage', '{:.0%}')}   "
        f"collisions {show('collision_rate', '{:.2%}')}   "
        f"violations {show('violation_rate', '{:.2%}')}   loss {report['loss']:.3g}",
    )


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
    city = report.get("city")
    place = f"flights over {Path(city).name}" if city else "unseen cities"
    table = Table(title=escape(f"{report['policy']} on {report['episodes']} {place}"))
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


def show_runs(runs: Sequence[Record], planners: dict[str, dict[str, Any]]) -> None:
    """Prints evaluations of runs, means over seeds, and evaluations of planners, one a row."""
    columns = ("coverage", "t90", "return", "collision_rate", "violation_rate")
    forms = dict(zip(columns, ("{:.1%}", "{:.0f}", "{:.3f}", "{:.2%}", "{:.2%}"), strict=True))
    table = Table(title="final evaluations" + ("" if all(r.final for r in runs) else " (* so far)"))
    table.add_column("run", overflow="fold")
    for header in (*columns, "success"):
        table.add_column(header.replace("_", " "), justify="right")

    def add(name: str, report: dict[str, Any] | None) -> None:
        figures = [form.format(report[metric]) if report else "-" for metric, form in forms.items()]
        passed = report is not None and all(report["success"].values())
        table.add_row(escape(name), *figures, "yes" if passed else "no")

    for label, same in groups(runs).items():
        for run in same:
            add(run.name + ("" if run.final else " *"), run.evaluation)
        if len(same) > 1 and all(run.final for run in same):
            means = {metric: mean(run.final[metric] for run in same) for metric in columns}
            successes = {str(i): all(run.final["success"].values()) for i, run in enumerate(same)}
            add(label, means | {"success": successes})
    for name, report in planners.items():
        add(name, report)
    Terminal().print(table)


@contextmanager
def frames() -> Iterator[Callable[[int, int], None]]:
    """A progress bar over the frames of an animation."""
    with Progress(BarColumn(), MofNCompleteColumn(), TextColumn("frames"), transient=True) as bar:
        task = bar.add_task("frames", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
