"""The command line: parse, run, report. JAX loads only when there is work for it."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import json
import logging
import os
import re
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Collection, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import tyro

from jaxqmix.arguments import (
    PLACE_FLAGS,
    explained,
    find_place,
    flags_of,
    from_file,
    similar_path,
    split_world,
    swept_values,
    train_help,
    with_both_ends,
)
from jaxqmix.config import (
    ConfigError,
    DomainConfig,
    EnvConfig,
    LostProcessError,
    NotFiniteError,
    RunConfig,
    from_dict,
    require,
    shown,
)
from jaxqmix.metrics import check_writable
from jaxqmix.planners import PLANNERS
from jaxqmix.presets import PRESETS, preset

if TYPE_CHECKING:
    Planner = str
else:
    Planner = Literal[PLANNERS]
PLANNER = f"{{{','.join(PLANNERS)}}}"
"""What --planner takes."""
PLACE = "FILE|FOLDER"
"""What --city takes: a city file, or a folder of them."""


def optional(metavar: str, otherwise: str) -> Any:
    """How --help shows a setting that is None unless given."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {otherwise})")


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a swarm, evaluate it on unseen cities, and leave checkpoints, metrics and pictures."""

    config: Annotated[RunConfig, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]
    mode: Literal["online", "replay"] = "online"
    """Short for --training.mode."""
    seed: int = 0
    """Short for --training.seed."""
    env_steps: int = 0
    """Short for --training.env-steps: the budget in env steps."""
    episodes: Annotated[int | None, optional("INT", "env steps count")] = None
    """Short for --training.episodes: the budget in episodes."""
    city: Annotated[Path | None, optional(PLACE, "generated cities")] = None
    """Fly over this city file of `jaxqmix city`, whose sizes replace the preset's, or over those of
    a folder, one an episode."""
    out: Annotated[Path | None, optional("PATH", "runs/PRESET")] = None
    """The run's folder; runs/PRESET-seeds with --seeds, runs/PRESET-sweep with --sweep."""
    resume: bool = False
    """Continue the run in --out from its newest checkpoint, bit for bit on as many devices."""
    deterministic: bool = False
    """Make a GPU repeat a run bit for bit (slower); CPUs always do."""
    seeds: Annotated[int | None, optional("INT", "one run")] = None
    """Train so many seeds from --seed on side by side in one program, each in a folder of its own
    below --out."""
    coordinator: Annotated[str | None, optional("HOST:PORT|slurm", "none")] = None
    """Train with other processes, here or on other machines, each begun with the same command:
    where the first of them listens. Or set JAX's variables; `slurm` asks srun."""
    processes: Annotated[int | None, optional("INT", "one")] = None
    """How many they are."""
    process: Annotated[int | None, optional("INT", "the only one")] = None
    """Which of them this one is, from 0 on."""
    sweep: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, optional("SETTING=VALUE,VALUE", "none")
    ] = ()
    """Train with each value side by side in one program, as in learner.gamma=0.95,0.97; a range is
    LOW:HIGH. May be given again, for all combinations, and with --seeds."""
    wandb: Annotated[str | None, optional("PROJECT", "off")] = None
    """Also log to this project of Weights & Biases; pip install ".[wandb]" first."""


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Fly held-out cities and judge them against the success criteria.

    --env.* and --domain.* change the world that was trained in: --domain.packet-loss 0.5.
    """

    episodes: int = 256
    """How many episodes."""
    drones: Annotated[int | None, optional("INT", "as trained")] = None
    """Fly with so many drones instead."""
    city: Annotated[Path | None, optional(PLACE, "as trained")] = None
    """Fly over this city file, or over those of this folder, instead."""
    seed: int = 0
    """Which held-out cities; the same for every policy."""
    planner: Annotated[Planner | None, optional(PLANNER, "the trained policy")] = None
    """Evaluate a scripted planner on the same cities instead of the trained policy."""
    to_horizon: bool = False
    """Fly on when the mission is complete: to the time limit, or 100 % coverage."""
    no_compare: bool = False
    """Leave out the best scripted planner, to compare with; planners fly the same cities once, and
    their figures are kept."""
    site: Annotated[str | None, optional("SITE", "none")] = None
    """Of a federation's run: this site's policy and cities; a number or a name."""
    json: Annotated[Path | None, optional("FILE", "none")] = None
    """Write the report here."""
    trajectories: Annotated[Path | None, optional("FILE.npz", "none")] = None
    """Write the flown episodes here, enough to recompute every metric."""


@dataclasses.dataclass(frozen=True)
class Render:
    """Draw an episode over a held-out city.

    --env.* and --domain.* change the world that was trained in: --domain.packet-loss 0.5.
    """

    out: Path
    """Where to: .png (still), .gif or .mp4 (animation), .html (3-D replay)."""
    drones: Annotated[int | None, optional("INT", "as trained")] = None
    """Fly with so many drones instead."""
    city: Annotated[Path | None, optional(PLACE, "as trained")] = None
    """Fly over this city file instead."""
    seed: int = 0
    """Which held-out city."""
    planner: Annotated[Planner | None, optional(PLANNER, "the trained policy")] = None
    """Draw a scripted planner instead of the trained policy."""
    compare: Annotated[Planner | None, optional(PLANNER, "none")] = None
    """Draw this planner beside it, over the same city."""


@dataclasses.dataclass(frozen=True)
class Plot:
    """Show final evaluations in a table, and draw training curves and coverage over time.

    Runs that differ by nothing but the seed become one line with a band.
    """

    out: Path = Path("curves.png")
    """Where to (.png, .pdf or .svg)."""
    planner: Annotated[
        tuple[Planner, ...], tyro.conf.UseAppendAction, optional(PLANNER, "none")
    ] = ()
    """Also fly this scripted planner, to compare coverage over time; may be given again."""
    episodes: Annotated[int | None, optional("INT", "as in the runs")] = None
    """How many held-out cities a planner flies; by default those of the runs' final evaluations."""


def parse(
    kind: Any, arguments: Sequence[str], program: str, default: Any = None
) -> tuple[Any, list[str]]:
    """Typed settings, and the arguments that belong to none, such as a run's folder.

    Raises `ConfigError` with one line where tyro would print a box.
    """
    given, rest = call_tyro(kind, arguments, program, default, return_unknown_args=True)
    unknown = [argument for argument in rest if argument.startswith("-")]
    if unknown:
        # Once more without patience, for tyro then suggests similar names.
        call_tyro(kind, [a for a in arguments if a not in rest or a in unknown], program, default)
        raise ConfigError(f"setting {unknown[0]} is not known: --help lists the settings")
    return given, rest


def call_tyro(
    kind: Any, arguments: Sequence[str], program: str, default: Any, **options: Any
) -> Any:
    """`tyro.cli` with errors in one line, and help that fits the terminal."""
    errors = io.StringIO()
    asked = {"-h", "--help"} & set(arguments)
    # Errors of earlier versions are read from one long line; and tyro never ends in terminals of a
    # few columns.
    width = max(shutil.get_terminal_size().columns, 40) if asked else 2000
    options["config"] = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)
    try:
        with (
            contextlib.redirect_stderr(errors),
            _environment({"COLUMNS": str(width)}),
            refusing(lambda event: explained(event, arguments, flags_of(kind, default))),
        ):
            return tyro.cli(kind, args=list(arguments), prog=program, default=default, **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(one_line(errors.getvalue())) from None


def refusing(explain: Callable[[Any], str | None]) -> contextlib.AbstractContextManager:
    """Raises `ConfigError` with what is said of tyro's error object. Versions before 1.0.17 have
    none, and whatever is not explained is read from what tyro prints."""

    def refuse(event: Any) -> None:
        if (words := explain(event)) is not None:
            raise ConfigError(words)

    try:
        from tyro import _errors
    except ImportError:
        return contextlib.nullcontext()
    return _errors.on_parse_error(refuse)


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
    """The first line of an error that tyro prints as a box, below its title."""
    text = "".join(each if each.isprintable() or each == "\n" else " " for each in box)
    # Drawn in ASCII where the terminal knows no better.
    lines = [line.strip("│╭╮╰╯─|+- ") for line in text.splitlines()]
    return next(iter([line for line in lines if line][1:]), "arguments not understood")


def single(names: list[str], what: str) -> str | None:
    """The only positional argument, or None; raises `ConfigError` on more."""
    require(len(names) <= 1, what, " ".join(names), f"give one {what}")
    return names[0] if names else None


def train_command(arguments: list[str]) -> int:
    """`jaxqmix train PRESET [--setting value ...]`."""
    arguments, file = without_value(arguments, "--config")
    # The values of these are free, and may be called like a preset.
    words = [w for before, w in zip(["", *arguments], arguments, strict=False)
             if before not in ("--out", "--wandb", "--preset", "--city")]  # fmt: skip
    name = next((word for word in words if word in PRESETS), None)
    described = None if file is None else from_file(Path(file))
    if described is not None:
        name = name or described.preset
    everything = "--help-all" in arguments
    if {"-h", "--help"} & set(arguments) and not everything:
        print(train_help(described or preset(name or "quick"), tuple(PRESETS)), end="")
        return 0
    if name is None and not everything:
        if arguments and not arguments[0].startswith("-"):
            preset(arguments[0])  # raises
        raise ConfigError(f"preset is missing: give one of {', '.join(PRESETS)}")
    if "--deterministic" in arguments:  # Before the devices are looked at.
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
    given_flags = [word.partition("=")[0] for word in arguments]
    if not everything:
        join_others(arguments, {"--seeds", "--sweep"} & set(given_flags))
    ending = "-sweep" if "--sweep" in given_flags else "-seeds" if "--seeds" in given_flags else ""
    home = Path("runs") / f"{name or 'quick'}{ending}"
    if described is None:
        scale = find_scale(arguments, home)
        described = preset(name or "quick", scale)
    base = over_city(described, arguments)
    training = base.training
    default = Train(base, training.mode, training.seed, training.env_steps, training.episodes)
    program = f"jaxqmix train {name or 'PRESET'}"
    arguments = ["--help" if word == "--help-all" else word for word in arguments]
    given, names = parse(Train, with_both_ends(without_shortcuts(arguments)), program, default)
    config = given.config
    for found in (single(names, "preset") or name, config.preset):
        require(found == name, "preset", found, f"name one preset, once: {', '.join(PRESETS)}")
    sweep = swept_values(given.sweep)
    from jaxqmix import runner, seeds, sweeps
    from jaxqmix.console import Console, run_words
    from jaxqmix.processes import is_first
    from jaxqmix.runner import Callback

    prepare_jax()
    out = given.out or home
    several = run_words(config.training.seed, given.seeds, sweep)
    shown_by = Console(out, several) if is_first() else Callback()
    if several is None:
        runner.train(config, out, given.resume, shown_by, given.wandb)
        return 0
    allowed = "with --seeds and --sweep, runs log to TensorBoard"
    require(given.wandb is None, "wandb", given.wandb, allowed)
    if sweep:
        count = 1 if given.seeds is None else given.seeds
        sweeps.train_sweep(config, out, sweep, count, given.resume, shown_by)
    else:
        seeds.train_seeds(config, out, given.seeds, given.resume, shown_by)
    return 0


def join_others(arguments: Sequence[str], several: Collection[str]) -> None:
    """Joins the other processes of the run, if it has any: before the devices are looked at.

    Raises:
      ConfigError: where it trains several runs, named by these flags.
    """
    place = find_place(*(without_value(arguments, flag)[1] for flag in PLACE_FLAGS))
    if place is None:
        return
    allowed = f"one process trains the runs of {', '.join(several)}"
    require(not several, "processes", place.count, allowed)
    from jaxqmix.processes import join

    where = place.coordinator or "where SLURM says"
    print(f"process {place.number} of {place.count}: joining the others at {where}", flush=True)
    join(place.coordinator, place.count, place.number)


def without_value(arguments: Sequence[str], name: str) -> tuple[list[str], str | None]:
    """The other arguments, and the value of an option if it is among them."""
    words, rest, value = list(arguments), [], None
    while words:
        word = words.pop(0)
        if word == name:
            require(bool(words), "setting", name, "it misses a value")
            value = words.pop(0)
        elif word.startswith(f"{name}="):
            value = word.partition("=")[2]
        else:
            rest.append(word)
    return rest, value


def find_scale(arguments: Sequence[str], run: Path) -> str:
    """The scale of a run: as given, as it was trained, or what the device found suggests.

    Args:
      arguments: of the command.
      run: its folder unless --out is given.
    """
    if given := without_value(arguments, "--scale")[1]:
        return given
    if {"-h", "--help", "--help-all"} & set(arguments):
        return "cpu"
    if "--resume" in arguments:
        from jaxqmix.checkpoints import saved_scale

        return saved_scale(Path(without_value(arguments, "--out")[1] or run))
    from jaxqmix.distributed import suggested_scale

    prepare_jax()
    return suggested_scale()


def prepare_jax() -> None:
    """Sets JAX up for a command: compiled programs are kept, and every core is used."""
    import jax

    from jaxqmix.compilation import enable_cache
    from jaxqmix.distributed import use_all_cores

    # A command is the same run whatever the user chose for other programs.
    jax.config.update("jax_enable_x64", False)
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    enable_cache()
    use_all_cores()
    try:
        jax.devices()
    except Exception as error:  # of many kinds, with pages of text
        chosen = os.environ.get("JAX_PLATFORMS", "")
        reason = (str(error).splitlines() or ["this machine has no such device"])[0]
        raise ConfigError(
            f"JAX_PLATFORMS = {shown(chosen)} is not allowed: {shown(reason)}; unset it, or for a "
            'GPU: pip install ".[cuda]"'
        ) from None


def over_city(base: RunConfig, arguments: Sequence[str]) -> RunConfig:
    """A preset for flights over the --city among the arguments, if there is one."""
    pairs = zip(arguments, [*arguments[1:], ""], strict=False)
    given = [after for word, after in pairs if word == "--city"]
    given += [word.removeprefix("--city=") for word in arguments if word.startswith("--city=")]
    if not given or given[-1].startswith("-"):
        return base
    from jaxqmix.maps import with_city

    return with_city(base, given[-1])


def without_shortcuts(arguments: list[str]) -> list[str]:
    """The arguments with --mode, --seed, --env-steps and --episodes written as --training.*."""
    return [re.sub(r"^--(?=(mode|seed|env[-_]steps|episodes)(=|$))", "--training.", a)
            for a in arguments]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class World:
    """Settings of the world, to fly in another than the trained one."""

    env: Annotated[EnvConfig, tyro.conf.FlagConversionOff]
    domain: DomainConfig


def evaluate_command(arguments: list[str]) -> int:
    """`jaxqmix evaluate RUN_OR_CHECKPOINT`, or a preset with --planner."""
    world, arguments = split_world(arguments)
    given, names = parse(Evaluate, arguments, "jaxqmix evaluate RUN", Evaluate())
    name = single(names, "run")
    check_file("json", given.json)
    check_file("trajectories", given.trajectories, (".npz",))
    from jaxqmix import api, comparison
    from jaxqmix.console import show_report

    if given.site is not None and name is not None:
        from jaxqmix.federated.run import site_folder

        name = str(site_folder(Path(name), given.site))
    loaded = find_policy(name, given.planner, given.drones, given.city, world)
    flown = {"episodes": given.episodes, "seed": given.seed, "to_horizon": given.to_horizon}
    report, episodes = api.evaluate(
        loaded, **flown, keep=given.trajectories is not None, curve=given.json is not None
    )
    planners = {}
    if not given.no_compare and given.planner is None:
        planners = comparison.planner_reports(loaded.config, **flown, notice=flies)
    show_report(report, loaded.config, planners)
    if given.json:
        best = comparison.best_planner(planners)
        report |= {"best_planner": best} if best else {}
        write(given.json, lambda path: path.write_text(json.dumps(report, indent=2) + "\n"))
    if given.trajectories:
        import numpy as np

        from jaxqmix.env.recording import trajectories

        assert episodes is not None
        arrays = trajectories(episodes, loaded.config.env)

        # To an open file, for numpy adds `.npz` to a name that does not end so.
        def save(path: Path) -> None:
            with path.open("wb") as file:
                np.savez_compressed(file, **arrays)

        write(given.trajectories, save)
    return 0


def flies(planner: str) -> None:
    """Says that a planner flies, which takes a while the first time."""
    print(f"flying the planner {planner} over the same cities, once", flush=True)


def find_policy(
    name: str | None,
    planner: str | None,
    drones: int | None,
    city: Path | None = None,
    world: Sequence[str] = (),
) -> Any:
    """A trained policy from a run, or a planner under a run's or a preset's config.

    Args:
      name: of the run, or of a preset.
      planner: of a scripted one.
      drones: how many, if not as in the config.
      city: a city file or a folder of them.
      world: settings of the world to change, as words of the command line.
    """
    from jaxqmix import checkpoints, loading

    if name is None:
        raise ConfigError("run is missing: give a run's folder or a checkpoint")
    is_preset = name in PRESETS and not Path(name).exists()
    if is_preset and planner is None:
        trained = Path("runs") / name
        hint = f"did you mean {trained}?" if trained.exists() else f"jaxqmix train {name} makes one"
        raise ConfigError(f"run = {name} is not allowed: it is a preset; {hint}")
    if not is_preset and not Path(name).exists() and (hint := similar_path(Path(name))):
        raise ConfigError(f"run = {name} is not allowed: there is no such folder; {hint}")
    prepare_jax()
    if planner is None:
        loaded = loading.load_policy(name, drones, city)
    else:
        config = preset(name) if is_preset else checkpoints.load(Path(name))[0]
        loaded = loading.scripted(planner, config, drones, city)
    if not world:
        return loaded
    config = loaded.config
    given, _ = parse(World, list(world), "jaxqmix", World(config.env, config.domain))
    return loaded.under(dataclasses.replace(config, env=given.env, domain=given.domain))


def check_file(setting: str, path: Path | None, endings: Sequence[str] = ()) -> None:
    """Raises `ConfigError` when a file has another ending, or cannot be written."""
    if path is None:
        return
    if endings:
        allowed = f"must end in {' or '.join(endings)}"
        close = difflib.get_close_matches(path.suffix.lower(), endings, n=1)
        if close and close[0] != path.suffix.lower():
            allowed = f"did you mean {path.with_suffix(close[0]).as_posix()}? It {allowed}"
        require(path.suffix.lower() in endings, setting, path, allowed)
    require(not path.is_dir(), setting, path, "it is a folder, and must be a file")
    check_writable(setting, path)


def write(path: Path, action: Callable[[Path], Any]) -> None:
    """Writes a file whole or not at all; raises `ConfigError` when it cannot be written."""
    part = path.with_name(f".{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        action(part)
        part.replace(path)
    except OSError as error:
        raise ConfigError(f"file = {path} is not allowed: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)
    print(f"wrote {path}")


def render_command(arguments: list[str]) -> int:
    """`jaxqmix render RUN --out FILE`."""
    world, arguments = split_world(arguments)
    given, names = parse(Render, arguments, "jaxqmix render RUN")
    name = single(names, "run")
    check_file("out", given.out, (".png", ".gif", ".mp4", ".html"))
    if given.out.suffix.lower() == ".mp4" and find_spec("imageio_ffmpeg") is None:
        raise ConfigError(f'out = {given.out} needs imageio-ffmpeg: pip install ".[video]"')
    from jaxqmix import api
    from jaxqmix.console import frames, outcome
    from jaxqmix.render import render

    loaded_policies = [find_policy(name, given.planner, given.drones, given.city, world)]
    if given.compare:
        loaded_policies.append(find_policy(name, given.compare, given.drones, given.city, world))
    episodes = [api.record(loaded, seed=given.seed) for loaded in loaded_policies]
    with frames() as progress:
        write(
            given.out,
            lambda path: render(
                episodes[0],
                path,
                cell_size=loaded_policies[0].config.env.cell_size,
                title=loaded_policies[0].name,
                other=episodes[1] if given.compare else None,
                other_title=loaded_policies[1].name if given.compare else "",
                progress=progress,
            ),
        )
    for loaded, episode in zip(loaded_policies, episodes, strict=True):
        print(outcome(loaded.name, episode, loaded.config.env))
    print(f"open {given.out.resolve().as_uri()}")
    return 0


def plot_command(arguments: list[str]) -> int:
    """`jaxqmix plot RUN [RUN ...] --out FILE`."""
    given, names = parse(Plot, arguments, "jaxqmix plot RUN [RUN ...]", Plot())
    if not names:
        raise ConfigError("run is missing: give at least one run's folder")
    check_file("out", given.out, (".png", ".pdf", ".svg"))
    for name in names:
        if not Path(name).exists() and (hint := similar_path(Path(name))):
            raise ConfigError(f"run = {name} is not allowed: there is no such folder; {hint}")
    from jaxqmix.console import show_runs
    from jaxqmix.render.curves import load_runs, plot_runs

    runs = load_runs([Path(name) for name in names])
    planners = {}
    if given.planner:
        from jaxqmix.comparison import planner_reports

        prepare_jax()
        config = from_dict(runs[0].settings)
        # The cities of the runs' final evaluations.
        episodes = given.episodes
        flown = {"episodes": config.evaluation.final_episodes if episodes is None else episodes}
        flown["seed"] = config.evaluation.seed
        chosen = tuple(dict.fromkeys(given.planner))
        planners = planner_reports(config, **flown, names=chosen, notice=flies)
    show_runs(runs, planners)
    write(given.out, lambda path: plot_runs(runs, path, planners))
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
        print(f"usage: jaxqmix demo [CHOICE] [--city FILE]\n{demo.menu()}")
        return 0
    return demo.demo(arguments, run)


def later(name: str, module: str = "world_commands") -> Callable[[list[str]], int]:
    """A command of another module, imported when it is called."""
    return lambda arguments: getattr(import_module(f"jaxqmix.{module}"), f"{name}_command")(
        arguments
    )


COMMANDS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "train": ("PRESET [--setting value ...]   " + ", ".join(PRESETS), train_command),
    "federate": (
        "PRESET [--sites N ...]   one policy of sites that share no flights",
        later("federate", "federated.command"),
    ),
    "evaluate": ("RUN [--planner NAME]   fly held-out cities and judge them", evaluate_command),
    "render": ("RUN --out FILE   draw an episode: .png, .gif, .mp4 or .html", render_command),
    "plot": ("RUN [RUN ...] --out FILE   draw training curves", plot_command),
    "city": ("FILE --out CITY.npz   make a city to fly over of a map", later("city")),
    "export": ("RUN --out FILE   a policy for machines without JAX: .onnx, .npz", later("export")),
    "fly": ("RUN --city FILE   one flight for ground stations and maps", later("fly")),
    "demo": ("[CHOICE] [--city FILE]   a menu: train, watch, test, federate", demo_command),
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
    for word in arguments:
        require("\0" not in word, "argument", word, "no name holds a null character")
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        from jaxqmix import __version__

        print(f"jaxqmix {__version__}")
        return 0
    if arguments[0] not in COMMANDS:
        close = difflib.get_close_matches(arguments[0], COMMANDS, n=1, cutoff=0.7)
        hint = f"did you mean {close[0]}?" if close else f"must be one of {', '.join(COMMANDS)}"
        raise ConfigError(f"command = {arguments[0]} is not allowed: {hint}")
    return COMMANDS[arguments[0]][1](arguments[1:])


def expand_home(word: str) -> str:
    """An argument with the user's home for `~`, which shells leave alone in --out=~/runs."""
    found = re.fullmatch(r"(--[\w.-]+=)?(~(?:/.*)?)", word)
    return (found[1] or "") + os.path.expanduser(found[2]) if found else word


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; exits with 2 and one line on bad input."""
    # XLA prints a page of harmless machine features when it loads a cached program.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Figures go to files: a backend chosen for other programs may not even be there.
    os.environ["MPLBACKEND"] = "agg"
    # Names of folders need not be text in the terminal's encoding.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    # Orbax tells at length how long it waits for a save.
    logging.getLogger("absl").setLevel(logging.ERROR)
    warnings.showwarning = lambda message, *_: print(f"jaxqmix: {message}", file=sys.stderr)
    try:
        given = list(sys.argv[1:] if arguments is None else arguments)
        try:
            sys.exit(run([expand_home(word) for word in given]))
        finally:
            if sys.stdout is not None:  # as without a terminal on Windows
                sys.stdout.flush()  # Here, for at Python's end nobody answers a broken pipe.
    except (NotFiniteError, LostProcessError) as error:
        print(f"jaxqmix: {error}", file=sys.stderr)
        leave(1)
    except ConfigError as error:
        print(f"jaxqmix: {error}", file=sys.stderr)
        leave(2)
    except BrokenPipeError:
        # The reader, `head` perhaps, has seen enough; Python would complain again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        leave(141)
    except (OSError, MemoryError) as error:
        print(f"jaxqmix: {shown(error) or 'out of memory'}", file=sys.stderr)
        leave(2)
    except KeyboardInterrupt:
        # Pressed once more, Ctrl-C would end this handler in a traceback.
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("\njaxqmix: stopped", file=sys.stderr)
        leave(130)


def leave(code: int) -> NoReturn:
    """Ends after an error: as one of several processes at once, for at its end Python would wait
    for the others, and they for it."""
    if "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized():
        sys.stderr.flush()
        # The first serves the others, which a moment later know why they end too.
        time.sleep(2 if sys.modules["jax"].process_index() == 0 else 0)
        os._exit(code)
    sys.exit(code)
