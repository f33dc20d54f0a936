"""The command line: parse, run, report. JAX loads only when there is work for it."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxqmix.config import ConfigError, RunConfig, require
from jaxqmix.presets import PRESETS, preset

Planner = Literal["greedy", "voronoi", "lanes", "random"]


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a swarm, evaluate it on unseen cities, and leave checkpoints, metrics and pictures."""

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    mode: Literal["online", "replay"] | None = None
    """Short for --training.mode."""
    seed: int | None = None
    """Short for --training.seed."""
    episodes: int | None = None
    """Short for --training.episodes: the budget in episodes."""
    env_steps: int | None = None
    """Short for --training.env-steps: the budget in env steps."""
    out: Path | None = None
    """The run's folder; runs/PRESET by default."""
    resume: bool = False
    """Continue the run in --out from its newest checkpoint, bit for bit."""
    deterministic: bool = False
    """Make a GPU repeat a run bit for bit (slower); CPUs always do."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Fly held-out cities and judge them against the success criteria."""

    episodes: int = 256
    """How many episodes."""
    drones: int | None = None
    """Fly with so many drones instead."""
    seed: int = 0
    """Which held-out cities; the same for every policy."""
    planner: Planner | None = None
    """Evaluate a scripted planner on the same cities instead of the trained policy."""
    json: Path | None = None
    """Write the report here."""
    trajectories: Path | None = None
    """Write the flown episodes here (.npz), enough to recompute every metric."""


@dataclasses.dataclass(frozen=True)
class Render:
    """Draw an episode over a held-out city."""

    out: Path
    """Where to: .png (still), .gif or .mp4 (animation), .html (3-D replay)."""
    drones: int | None = None
    """Fly with so many drones instead."""
    seed: int = 0
    """Which held-out city."""
    planner: Planner | None = None
    """Draw a scripted planner instead of the trained policy."""
    compare: Planner | None = None
    """Draw this planner beside it, over the same city."""


@dataclasses.dataclass(frozen=True)
class Plot:
    """Draw training curves from the metrics of one or more runs."""

    out: Path = Path("curves.png")
    """Where to (.png)."""


def parse(kind: Any, arguments: Sequence[str], program: str, default: Any = None) -> Any:
    """Typed arguments; raises `ConfigError` with one line where tyro would print a box."""
    errors = io.StringIO()
    wide = {} if {"-h", "--help"} & set(arguments) else {"COLUMNS": "2000"}
    try:
        with contextlib.redirect_stderr(errors), _environment(wide):
            return tyro.cli(kind, args=list(arguments), prog=program, default=default)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(one_line(errors.getvalue())) from None


@contextlib.contextmanager
def _environment(changes: dict[str, str]):
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def one_line(box: str) -> str:
    """The gist of a usage error that tyro prints as a box."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", box)
    # The box is drawn in ASCII where the terminal knows no better; its first line is a title.
    lines = [line.strip("│╭╮╰╯─|+ \t") for line in text.splitlines()]
    lines = [line for line in lines if line.strip("-")][1:] or ["arguments not understood"]
    message = re.sub(r"^Error parsing config(\.\w+)*: ", "", lines[0])
    if message.startswith("Missing from"):
        named = next((line.split()[0] for line in lines if line.startswith("--")), "one")
        return f"setting {named} is missing: see --help"
    unknown = re.match(r"Unrecognized options: ([^,]+)", message)
    if unknown:
        close = [line.split()[0] for line in lines if line.startswith("--")]
        hint = f"did you mean {close[0]}?" if close else "--help lists every setting"
        return f"setting {unknown[1].strip()} is not known: {hint}"
    return message


def positionals(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Leading arguments without a dash, and the rest."""
    count = next((i for i, a in enumerate(arguments) if a.startswith("-")), len(arguments))
    return list(arguments[:count]), list(arguments[count:])


def single(names: list[str], what: str) -> str | None:
    """The only positional argument, or None; raises `ConfigError` on more."""
    require(len(names) <= 1, what, " ".join(names), f"give one {what}")
    return names[0] if names else None


def train_command(arguments: list[str]) -> int:
    """`jaxqmix train PRESET [--setting value ...]`."""
    names, rest = positionals(arguments)
    name = single(names, "preset")
    if name is None and not {"-h", "--help"} & set(rest):
        raise ConfigError(f"preset is missing: give one of {', '.join(PRESETS)}")
    base = preset(name or "quick")
    given = parse(Train, rest, f"jaxqmix train {name or 'PRESET'}", Train(base))
    config = with_shortcuts(given)
    if given.deterministic:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
    from jaxqmix.console import Console
    from jaxqmix.runner import train

    prepare_jax()
    out = given.out or Path("runs") / config.preset
    train(config, out, given.resume, Console(out))
    return 0


def prepare_jax() -> None:
    """Sets JAX up for a command: compiled programs are kept, and every core is used."""
    from jaxqmix.compilation import enable_cache
    from jaxqmix.distributed import use_all_cores

    enable_cache()
    use_all_cores()


def with_shortcuts(given: Train) -> RunConfig:
    """The config with --mode, --seed, --episodes and --env-steps put in their places."""
    names = ("mode", "seed", "episodes", "env_steps")
    changes = {n: getattr(given, n) for n in names if getattr(given, n) is not None}
    training = dataclasses.replace(given.config.training, **changes)
    return dataclasses.replace(given.config, training=training)


def evaluate_command(arguments: list[str]) -> int:
    """`jaxqmix evaluate RUN_OR_CHECKPOINT`, or a preset with --planner."""
    names, rest = positionals(arguments)
    given = parse(Evaluate, rest, "jaxqmix evaluate RUN", Evaluate())
    from jaxqmix import api
    from jaxqmix.console import show_report

    flyer = find_flyer(single(names, "run"), given.planner, given.drones)
    report, episodes = api.evaluate(
        flyer, given.episodes, given.seed, keep=given.trajectories is not None
    )
    show_report(report)
    if given.json:
        write(given.json, lambda path: path.write_text(json.dumps(report, indent=2) + "\n"))
    if given.trajectories:
        import numpy as np

        arrays = api.trajectories(episodes, flyer)
        write(given.trajectories, lambda path: np.savez_compressed(path, **arrays))
    return 0


def find_flyer(name: str | None, planner: str | None, drones: int | None) -> Any:
    """A trained policy from a run, or a planner under a run's or a preset's config."""
    from jaxqmix import api, checkpoints

    prepare_jax()
    if name is None:
        raise ConfigError("run is missing: give a run's folder or a checkpoint")
    if planner is None:
        return api.load_policy(name, drones)
    if name in PRESETS and not Path(name).exists():
        return api.scripted(planner, preset(name), drones)
    return api.scripted(planner, checkpoints.load(Path(name))[0], drones)


def write(path: Path, action: Callable[[Path], Any]) -> None:
    """Writes a file, creating its folder; raises `ConfigError` when it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        action(path)
    except OSError as error:
        raise ConfigError(f"file = {path} is not allowed: {error.strerror}") from None
    print(f"wrote {path}")


def render_command(arguments: list[str]) -> int:
    """`jaxqmix render RUN --out FILE`."""
    names, rest = positionals(arguments)
    given = parse(Render, rest, "jaxqmix render RUN")
    allowed = (".png", ".gif", ".mp4", ".html")
    require(given.out.suffix.lower() in allowed, "out", given.out, f"must end in one of {allowed}")
    from jaxqmix import api
    from jaxqmix.console import frames
    from jaxqmix.render import render

    name = single(names, "run")
    flyer = find_flyer(name, given.planner, given.drones)
    other = find_flyer(name, given.compare, given.drones) if given.compare else None
    with frames() as progress:
        write(
            given.out,
            lambda path: render(
                api.record(flyer, given.seed),
                path,
                cell_size=flyer.config.env.cell_size,
                title=flyer.name,
                other=api.record(other, given.seed) if other else None,
                other_title=other.name if other else "",
                progress=progress,
            ),
        )
    return 0


def plot_command(arguments: list[str]) -> int:
    """`jaxqmix plot RUN [RUN ...] --out FILE`."""
    names, rest = positionals(arguments)
    given = parse(Plot, rest, "jaxqmix plot RUN [RUN ...]", Plot())
    require(bool(names), "run", "", "give at least one run's folder")
    from jaxqmix.render.curves import plot_runs

    write(given.out, lambda path: plot_runs([Path(name) for name in names], path))
    return 0


def validate_command(arguments: list[str]) -> int:
    """`jaxqmix validate`."""
    if {"-h", "--help"} & set(arguments):
        print("usage: jaxqmix validate\n\nChecks that everything works on this machine.")
        return 0
    require(not arguments, "argument", " ".join(arguments), "validate takes none")
    prepare_jax()
    from jaxqmix.validate import validate

    return validate()


def demo_command(arguments: list[str]) -> int:
    """`jaxqmix demo [CHOICE]`."""
    from jaxqmix import demo

    if {"-h", "--help"} & set(arguments):
        print(f"usage: jaxqmix demo [CHOICE]\n{demo.menu()}")
        return 0
    return demo.demo(arguments, run)


COMMANDS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "train": ("PRESET [--setting value ...]   " + ", ".join(PRESETS), train_command),
    "evaluate": ("RUN [--planner NAME]   fly held-out cities and judge them", evaluate_command),
    "render": ("RUN --out FILE   draw an episode: .png, .gif, .mp4 or .html", render_command),
    "plot": ("RUN [RUN ...] --out FILE   draw training curves", plot_command),
    "demo": ("[CHOICE]   a menu: train, watch, the 20-drone test", demo_command),
    "validate": ("check that everything works on this machine", validate_command),
}


def usage() -> str:
    """The text of `jaxqmix --help`."""
    lines = [f"  {name:10}{text}" for name, (text, _) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: jaxqmix COMMAND ...",
            "",
            "Drone swarms learn to see a city, with QMIX on JAX.",
            "",
            *lines,
            "",
            "jaxqmix COMMAND --help explains a command and every setting.",
        ]
    )


def run(arguments: list[str]) -> int:
    """Runs one command; raises `ConfigError` on bad input."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"jaxqmix {version('jaxqmix')}")
        return 0
    if arguments[0] not in COMMANDS:
        close = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"must be one of {', '.join(COMMANDS)}"
        raise ConfigError(f"command = {arguments[0]} is not allowed: {hint}")
    return COMMANDS[arguments[0]][1](arguments[1:])


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; exits with 2 and one line on bad input."""
    # XLA prints a page of harmless machine features when it loads a cached program.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.showwarning = lambda message, *_: print(f"jaxqmix: {message}", file=sys.stderr)
    try:
        sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))
    except ConfigError as error:
        print(f"jaxqmix: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\njaxqmix: stopped", file=sys.stderr)
        sys.exit(130)
