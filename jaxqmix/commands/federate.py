"""`jaxqmix federate`: its settings."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from jaxqmix.commands.arguments import with_both_ends
from jaxqmix.commands.common import over_city, parse, prepare_jax, single
from jaxqmix.config import ConfigError, RunConfig, require
from jaxqmix.federated.config import FederationConfig
from jaxqmix.presets import PRESETS, preset


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
    city: Annotated[
        Path | None,
        tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: generated cities)"),
    ] = None
    """Fly over this city file of `jaxqmix city`, or over those of a folder, at every site."""
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
    free = ("--out", "--preset", "--city", "--population", "--flower")
    pairs = zip(["", *arguments], arguments, strict=False)
    words = [word for before, word in pairs if before not in free]
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
    for setting in ("env_steps", "episodes"):
        value = getattr(given.config.training, setting)
        require(
            value == getattr(base.training, setting),
            f"training.{setting}",
            value,
            "the budget of a federation is --rounds, --per-round and --local-env-steps",
        )
    prepare_jax()
    return run(given)


def run(given: Federate) -> int:
    """Flies a federation as the command line asks."""
    if given.flower:
        for setting in ("resume", "personalise"):
            value = getattr(given, setting)
            require(not value, setting, value, "with --flower nothing is flown here")
        from jaxqmix.federated.nodes import write_app

        out = (given.out or Path("runs") / f"{given.config.preset}-flower").absolute()
        write_app(given.flower, given.config, given.federation, out)
        print(f"wrote {given.flower / 'pyproject.toml'}; its policy will be in {out}")
        return 0
    from jaxqmix.federated.console import Console
    from jaxqmix.federated.run import federate

    out = given.out or Path("runs") / f"{given.config.preset}-federated"
    federate(given.config, given.federation, out, given.resume, Console(out), given.personalise)
    return 0
