"""`jaxqmix federate`: its settings, and what a person sees."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from jaxqmix.arguments import with_both_ends
from jaxqmix.cli import over_city, parse, prepare_jax, single
from jaxqmix.config import ConfigError, RunConfig, require
from jaxqmix.federated.config import FederationConfig
from jaxqmix.presets import PRESETS, preset

if TYPE_CHECKING:
    from jaxqmix.federated.rounds import Program


@dataclass(frozen=True)
class Federate:
    """Train one policy at sites that never share their flights, and evaluate it everywhere."""

    federation: Annotated[FederationConfig, tyro.conf.arg(name="")] = field(
        default_factory=FederationConfig
    )
    config: Annotated[RunConfig, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff] = field(
        default_factory=RunConfig
    )
    seed: int = 0
    """Short for --training.seed: of sites, weights and everything else."""
    personalise: int = 0
    """Env steps that each site trains the global policy on at the end, on its own worlds."""
    out: Annotated[
        Path | None,
        tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: runs/PRESET-federated)"),
    ] = None
    """The federation's folder."""
    flower: Annotated[
        Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: none)")
    ] = None
    """Fly nothing here: write an app for `flwr run`, with these settings, to this folder."""
    resume: bool = False
    """Continue the federation in --out from its newest checkpoint, bit for bit."""


def federate_command(arguments: list[str]) -> int:
    """`jaxqmix federate PRESET [--setting value ...]`."""
    # The values of these are free, and may be called like a preset.
    words = [w for before, w in zip(["", *arguments], arguments, strict=False)
             if before not in ("--out", "--preset", "--city", "--population")]  # fmt: skip
    name = next((word for word in words if word in PRESETS), None)
    if name is None and not {"-h", "--help"} & set(arguments):
        if arguments and not arguments[0].startswith("-"):
            preset(arguments[0])  # raises
        raise ConfigError(f"preset is missing: give one of {', '.join(PRESETS)}")
    base = over_city(preset(name or "quick"), arguments)
    default = dataclasses.replace(Federate(), config=base, seed=base.training.seed)
    seeded = [re.sub(r"^--seed(?==|$)", "--training.seed", word) for word in arguments]
    program = f"jaxqmix federate {name or 'PRESET'}"
    given, names = parse(Federate, with_both_ends(seeded), program, default)
    for found in (single(names, "preset"), given.config.preset):
        require(found == name, "preset", found, f"name one preset, once: {', '.join(PRESETS)}")
    prepare_jax()
    return run(given)


def run(given: Federate) -> int:
    """Flies a federation as the command line asks."""
    if given.flower:
        from jaxqmix.federated.nodes import write_app

        out = (given.out or Path("runs") / f"{given.config.preset}-flower").absolute()
        write_app(given.flower, given.config, given.federation, out)
        print(f"wrote {given.flower / 'pyproject.toml'}; its policy will be in {out}")
        return 0
    from jaxqmix.federated.run import federate

    out = given.out or Path("runs") / f"{given.config.preset}-federated"
    federate(given.config, given.federation, out, given.resume, show(out), given.personalise)
    return 0


def show(out: Path) -> Any:
    """A listener that shows a federation in the terminal."""
    from rich.console import Console as Terminal
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
    from jaxqmix.federated.run import Listener, read_rounds

    class Shown(Listener):
        def __init__(self) -> None:
            self.terminal = Terminal(highlight=False)
            self.bar: Bar | None = None

        def say(self, text: str) -> None:
            self.terminal.print(text, soft_wrap=not self.terminal.is_terminal)

        def begun(self, program: Program, step: int) -> None:
            config, own = program.federation, program.config
            self.federation = config
            sizes = sorted({site.drones for site in program.sites})
            self.say(
                f"[bold]{own.preset}[/bold], federated: {config.sites} sites "
                f"({config.population}), {config.per_round} per round, {config.rounds} rounds of "
                f"{program.round_steps:,} env steps, {config.aggregate}; swarms of "
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

        def compiling(self, programs: Sequence[str]) -> None:
            left = f"compiling: {', '.join(programs)}; a minute or so, once for these settings"
            self.doing(left if programs else "")

        def compiled(self, seconds: float, programs: int, cached: int) -> None:
            self.say(f"compiled in {seconds:.0f} s ({cached} of {programs} programs cached)")

        def failed(self) -> None:
            self.close()

        def doing(self, what: str) -> None:
            if self.bar is None:
                self.say(what)
            else:
                self.bar.doing = what

        def advanced(self, step: int, report: dict[str, Any]) -> None:
            line = described(report)
            self.bar.figures, self.bar.doing = (line,), ""
            self.bar.update(self.bar.task_ids[0], completed=step)
            if not self.terminal.is_interactive:
                self.say(line)

        def evaluated(self, report: dict[str, Any]) -> None:
            words = (
                f"  {report['env_steps']:>11,} env steps: coverage {report['coverage']:.1%}, "
                f"t90 {report['t90']:.1f}, return {report['return']:.3f}"
            )
            if "t90_of_strangers" in report:
                words += f"; cities of no site: t90 {report['t90_of_strangers']:.1f}"
            self.say(words)

        def stopping(self) -> None:
            self.bar.doing = "finishing this round; Ctrl-C again stops at once"

        def stopped(self, step: int) -> None:
            self.close()
            self.say(f"stopped after round {step}; go on with --resume --out {out}")

        def close(self) -> None:
            if self.bar is not None:
                self.bar.stop()
                self.bar = None

        def finished(self, report: dict[str, Any]) -> None:
            self.close()
            table = Table("communication", "", box=None)
            for what, much in traffic(read_rounds(out), self.federation):
                table.add_row(what, much)
            self.terminal.print(table)
            if "t90_personalised" in report:
                self.say(
                    f"fine-tuned at each site: t90 {report['t90_personalised']:.1f} on its own "
                    f"cities, global {report['t90']:.1f}"
                )
            met = all(report["success"].values())
            self.say(f"success criteria {'met' if met else 'not met'}; {out} holds everything")

    return Shown()


def described(report: dict[str, Any]) -> str:
    """A round in one line."""
    from jaxqmix.federated.pictures import size

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
