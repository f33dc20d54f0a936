"""`jaxqmix train`: one run, several seeds or a sweep, in one process or in several."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxqmix.commands.arguments import (
    PLACE_FLAGS,
    find_place,
    from_file,
    swept_values,
    train_help,
    with_both_ends,
)
from jaxqmix.commands.common import (
    PLACE,
    optional,
    over_city,
    parse,
    prepare_jax,
    single,
    without_value,
)
from jaxqmix.config import ConfigError, RunConfig, require
from jaxqmix.presets import PRESETS, preset


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
    out = Path(os.path.expanduser(given.out or home))
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


def without_shortcuts(arguments: list[str]) -> list[str]:
    """The arguments with --mode, --seed, --env-steps and --episodes written as --training.*."""
    return [re.sub(r"^--(?=(mode|seed|env[-_]steps|episodes)(=|$))", "--training.", a)
            for a in arguments]  # fmt: skip
