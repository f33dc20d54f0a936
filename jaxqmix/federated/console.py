"""What a person sees of a federation in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console as Terminal
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from jaxqmix.console import Bar
from jaxqmix.federated.pictures import size, traffic
from jaxqmix.federated.rounds import Program
from jaxqmix.federated.run import Callback, read_rounds


class Console(Callback):
    """Shows a federation in the terminal."""

    def __init__(self, out: Path):
        self.out, self.terminal = out, Terminal(highlight=False)
        self.bar: Bar | None = None

    def say(self, text: str) -> None:
        """Prints a line."""
        self.terminal.print(text, soft_wrap=not self.terminal.is_terminal)

    def on_start(self, program: Program, step: int) -> None:
        """Says what is about to run, and shows the bar."""
        config, own = program.federation, program.config
        self.federation = config
        sizes = sorted({site.drones for site in program.sites})
        self.say(
            f"[bold]{own.preset}[/bold], federated: {config.sites} sites "
            f"({escape(config.population)}), {config.per_round} per round, "
            f"{config.rounds} rounds of {program.round_steps:,} env steps, {config.aggregate}; "
            f"swarms of "
            f"{', '.join(map(str, sizes))} drones, seed {own.training.seed}"
        )
        self.say(
            f"an update is {size(program.bytes_up)} up ({config.compression}) and "
            f"{size(program.bytes_down)} down"
        )
        if step:
            self.say(f"resuming after round {step}")
        self.bar = Bar(
            SpinnerColumn(),
            BarColumn(bar_width=40),
            MofNCompleteColumn(),
            TextColumn("rounds"),
            TimeElapsedColumn(),
            TextColumn("gone,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self.terminal,
            disable=not self.terminal.is_interactive,
        )
        self.bar.add_task("rounds", total=config.rounds, completed=step)
        self.bar.start()

    def on_compiling(self, programs: Sequence[str]) -> None:
        """Says what the compiler works at."""
        left = f"compiling: {', '.join(programs)}; a minute or so, once for these settings"
        self.on_activity(left if programs else "")

    def on_compiled(self, seconds: float, programs: int, cached: int) -> None:
        """Says how long that took."""
        self.say(f"compiled in {seconds:.0f} s ({cached} of {programs} programs cached)")

    def on_failure(self) -> None:
        """Takes the bar away before an error is shown."""
        self.close()

    def on_activity(self, what: str) -> None:
        """Says what takes time."""
        if self.bar is None:
            self.say(what)
        else:
            self.bar.activity = what

    def on_advance(self, step: int, report: dict[str, Any]) -> None:
        """Moves the bar, and tells of the round."""
        line = described(report)
        assert self.bar is not None
        self.bar.lines, self.bar.activity = (line,), ""
        self.bar.update(self.bar.task_ids[0], completed=step)
        if not self.terminal.is_interactive:
            self.say(line)

    def on_evaluation(self, report: dict[str, Any]) -> None:
        """Prints an evaluation."""
        words = (
            f"  {report['env_steps']:>11,} env steps: coverage {report['coverage']:.1%}, "
            f"t90 {report['t90']:.1f}, return {report['return']:.3f}"
        )
        if "t90_of_strangers" in report:
            words += f"; cities of no site: t90 {report['t90_of_strangers']:.1f}"
        self.say(words)

    def on_stopping(self) -> None:
        """Says that Ctrl-C was heard."""
        self.on_activity("finishing this round; Ctrl-C again stops at once")

    def on_stopped(self, step: int) -> None:
        """Says how to go on."""
        self.close()
        self.say(f"stopped after round {step}; go on with --resume --out {escape(str(self.out))}")

    def close(self) -> None:
        """Takes the bar away."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def on_finish(self, report: dict[str, Any]) -> None:
        """Prints what was sent, and the verdict."""
        self.close()
        table = Table("communication", "", box=None)
        for what, much in traffic(read_rounds(self.out), self.federation):
            table.add_row(what, much)
        self.terminal.print(table)
        if "t90_personalised" in report:
            self.say(
                f"fine-tuned at each site: t90 {report['t90_personalised']:.1f} on its own "
                f"cities, global {report['t90']:.1f}"
            )
        met = "met" if all(report["success"].values()) else "not met"
        self.say(f"success criteria {met}; {escape(str(self.out))} holds everything")


def described(report: dict[str, Any]) -> str:
    """A round in one line."""
    parts = [f"round {report['round']}: {report['arrived']} arrived"]
    if report["refused"]:
        parts.append(f"{report['refused']} turned away")
    if report["coverage"] is not None:
        parts.append(f"coverage {report['coverage']:.1%}")
    parts.append(f"{size(report['bytes_up'])} up, {size(report['bytes_down'])} down")
    if report["epsilon_spent"] is not None:
        parts.append(f"epsilon {report['epsilon_spent']:.1f}")
    if report["env_steps_per_second"] is not None:
        parts.append(f"{report['env_steps_per_second']:,.0f} env steps/s")
    return ", ".join(parts)
