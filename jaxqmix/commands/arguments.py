"""Words of the command line: settings of a run among them, settings files, and what was meant."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxqmix.config import (
    ConfigError,
    RunConfig,
    refuse,
    require,
    setting_names,
    shown,
    similar_setting,
)
from jaxqmix.presets import preset

WORLD = ("--env.", "--domain.")
"""How settings begin that may differ between training and flying."""
ALIASES = {
    "lr": "learner.learning_rate",
    "learning_rate": "learner.learning_rate",
    "batch": "replay.batch",
    "batch_size": "replay.batch",
    "steps": "training.env_steps",
    "num_envs": "training.swarms",
    "wind": "domain.wind_speed",
    "loss": "domain.packet_loss",
    "width": "learner.hidden",
}
"""What people call settings elsewhere."""


PLACE_FLAGS = ("--coordinator", "--processes", "--process")
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
"""Of the environment, as JAX has them: what flags leave out."""
SLURM = ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_STEP_NODELIST")
"""What `srun` sets; JAX finds the rest."""


@dataclasses.dataclass(frozen=True)
class Place:
    """A process among those of a run."""

    coordinator: str | None
    """host:port where the first process listens; None: as SLURM says."""
    count: int
    number: int


def find_place(
    coordinator: str | None = None,
    processes: str | int | None = None,
    process: str | int | None = None,
    *,
    environment: Mapping[str, str] = os.environ,
) -> Place | None:
    """Which process this one is, by flags or by JAX's variables; None: the only one. With the
    coordinator `slurm`, srun says it.

    Raises:
      ConfigError: when only a part is said, or what is said does not fit.
    """
    flags = ("coordinator", coordinator), ("processes", processes), ("process", process)
    given: list[Any] = [
        environment.get(variable) if flag is None else flag
        for (_, flag), variable in zip(flags, VARIABLES, strict=True)
    ]
    if all(value is None for value in given):
        return None
    if given[0] == "slurm":
        told = [environment.get(name, "") for name in SLURM]
        require(all(told), "coordinator", "slurm", f"srun sets {', '.join(SLURM)}: begin it so")
        return Place(None, int(told[0]), int(told[1])) if int(told[0]) > 1 else None
    for (name, _), variable, value in zip(flags, VARIABLES, given, strict=True):
        require(value is not None, name, value, f"give all of --coordinator, --processes and "
                f"--process, or {variable}")  # fmt: skip
    address = str(given[0])
    count, number = _whole("processes", given[1]), _whole("process", given[2])
    host, _, port = address.rpartition(":")
    known = bool(host) and port.isdecimal() and 1 <= int(port[:6]) <= 65535
    require(known, "coordinator", address, "must be HOST:PORT, a port from 1 to 65535")
    require(count >= 1, "processes", count, "must be at least 1")
    require(0 <= number < count, "process", number, f"must be a number from 0 to {count - 1}")
    return Place(address, count, number) if count > 1 else None


def _whole(name: str, value: Any) -> int:
    try:
        return int(str(value))
    except ValueError:
        refuse(name, shown(value), "must be a whole number")


def ranges(config: Any, prefix: str = "--") -> set[str]:
    """Names, as on the command line, of settings that take two numbers."""
    found = set()
    for item in dataclasses.fields(config):
        name, value = f"{prefix}{item.name}", getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            found |= ranges(value, f"{name}.")
        elif isinstance(value, tuple) and len(value) == 2:
            found.add(name.replace("_", "-"))
    return found


def is_number(word: str) -> bool:
    """Whether a word can be read as a number."""
    try:
        float(word)
    except ValueError:
        return False
    return True


def swept_values(words: Sequence[str]) -> dict[str, list[float | tuple[float, float]]]:
    """What --sweep names: values by the name of a setting, of ranges pairs of numbers.

    Raises:
      ConfigError: on words of another form, or a setting that is named twice.
    """
    found: dict[str, list[float | tuple[float, float]]] = {}
    for word in words:
        name, _, listed = word.partition("=")
        values = [value.split(":") for value in listed.split(",")]
        numbers = all(len(ends) <= 2 and all(map(is_number, ends)) for ends in values)
        allowed = "give SETTING=NUMBER,NUMBER, as in learner.gamma=0.95,0.97; a range is LOW:HIGH"
        require(bool(name and listed), "sweep", word, allowed)
        name = name.removeprefix("--").replace("-", "_")
        known = setting_names(RunConfig())
        hint = f"did you mean {meant(name)}?" if meant(name) else "there is no such setting"
        require(name in known, "sweep", word, hint)
        require(name not in found, "sweep", word, f"{name} is named twice")
        require(numbers, "sweep", word, allowed)
        found[name] = [
            float(ends[0]) if len(ends) == 1 else (float(ends[0]), float(ends[1]))
            for ends in values
        ]
    return found


def with_both_ends(arguments: Sequence[str]) -> list[str]:
    """The arguments with one number given for a range, as in --domain.packet-loss 0.3, twice."""
    known, words, found = ranges(RunConfig()), list(arguments), []
    while words:
        name, equals, value = words.pop(0).partition("=")
        found.append(name + equals + value)
        if name.replace("_", "-") not in known:
            continue
        if equals:
            found[-1:] = [name, value]
        elif words and is_number(words[0]):
            value = words.pop(0)
            found.append(value)
        else:
            continue
        if is_number(value) and not (words and is_number(words[0])):
            found.append(value)
    return found


def split_world(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Settings of the world among the arguments, with their values; and the other arguments."""
    world, rest = [], []
    words = with_both_ends(arguments)
    double = ranges(RunConfig())
    while words:
        word = words.pop(0)
        if not word.startswith(WORLD):
            rest.append(word)
            continue
        world.append(word)
        for _ in range(0 if "=" in word else 2 if word.replace("_", "-") in double else 1):
            if words and (not words[0].startswith("-") or is_number(words[0])):
                world.append(words.pop(0))
    return world, rest


def settings_file(path: Path) -> tuple[str, dict[str, Any]]:
    """A preset's name and the settings that differ, from a JSON or YAML file.

    A run's config.json is one. Sections may be nested, or named with dots: `env.drones: 3`.

    Raises:
      ConfigError: when it cannot be read, or names no preset.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".json":
            data = json.loads(text)
        else:
            import yaml

            data = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ConfigError(f"config = {path} is not allowed: {reason}") from None
    except Exception as error:  # JSON's and YAML's own.
        reason = " ".join(str(error).split())
        raise ConfigError(f"config = {path} is not allowed: {reason}") from None
    allowed = "must hold settings by name, such as `preset: quick` and `env.drones: 3`"
    require(
        isinstance(data, dict) and all(isinstance(n, str) for n in data), "config", path, allowed
    )
    name = data.pop("preset", "quick")
    require(isinstance(name, str), "preset", name, "must be a name")
    return name, flat(data)


def flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names."""
    found: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def from_file(path: Path) -> RunConfig:
    """The run that a file describes; raises `ConfigError` on a bad one."""
    name, settings = settings_file(path)
    try:
        return preset(name, **settings)
    except ConfigError as error:
        raise ConfigError(f"{error} (in {path})") from None


def meant(word: str) -> str | None:
    """The setting, as on the command line, that an unknown one most likely meant."""
    name = word.lstrip("-").partition("=")[0].replace("-", "_")
    known = setting_names(RunConfig())
    found = ALIASES.get(name.split(".")[-1]) or similar_setting(name, known)
    return f"--{found.replace('_', '-')}" if found else None


def flags_of(kind: type, default: Any = None) -> list[str]:
    """What a command takes, as on the command line; `default` is one of its kind."""
    names = setting_names(default) if default else [item.name for item in dataclasses.fields(kind)]
    # These two sections are not named there.
    names = [re.sub(r"^(config|federation)\.", "", name) for name in names]
    return [f"--{name.replace('_', '-')}" for name in names]


def explained(event: Any, words: Sequence[str], flags: Sequence[str]) -> str | None:
    """What is wrong with a command line: setting, value and what is allowed.

    Args:
      event: tyro's error object.
      words: of the command line.
      flags: that it may hold.

    Returns:
      The words of an error, or None for an event that is not known here.
    """
    argument: Any = getattr(event, "argument", None)
    name = argument.display_name() if argument is not None else ""
    match type(event).__name__:
        case "MissingArgs":
            missing = event.missing_arguments[0].arg.display_name()
            return f"setting {missing} is missing: see --help"
        case "UnrecognizedArgs":
            word = event.tokens[0].partition("=")[0]
            close = [*difflib.get_close_matches(word, flags, n=1), *filter(None, [meant(word)])]
            hint = f"did you mean {close[0]}?" if close else "--help lists the settings"
            return f"setting {word} is not known: {hint}"
        case "BadValue":
            return f"setting {name} misses a value: it takes {argument.lowered.nargs}"
        case "InvalidChoice":
            allowed = ", ".join(sorted(set(event.choices) - {"None"}))
            return f"{name} = {shown(event.value)} is not allowed: must be one of {allowed}"
        case "InstantiationFailure" if argument is None:
            return str(event.message)
        case "InstantiationFailure":
            kinds = {"INT": "a whole number", "FLOAT": "a number"}
            allowed = kinds.get(argument.lowered.metavar, "numbers")
            value = shown(given_to(name, words, argument.lowered.nargs))
            return f"{name} = {value} is not allowed: must be {allowed}"
    return None


def given_to(name: str, words: Sequence[str], count: Any) -> str:
    """The words of a command line that a setting got last, which takes so many."""
    found = ""
    for place, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag.replace("_", "-") == name:
            behind = words[place + 1 : place + 1 + (count if isinstance(count, int) else 1)]
            found = value if equals else " ".join(behind)
    return found


def similar_path(path: Path) -> str:
    """Which path of nearly this name exists, as a hint; empty where there is none."""
    try:
        names = [other.name for other in path.parent.iterdir()]
    except OSError:
        return ""
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"did you mean {(path.parent / close[0]).as_posix()}?" if close else ""


TRAIN_HELP = """\
usage: jaxqmix train PRESET [--setting value ...]

Train a swarm, evaluate it on unseen cities, and leave checkpoints, metrics and pictures.

examples:
  jaxqmix train quick                                  a minute on two cores
  jaxqmix train quick --env.drones 8 --out runs/eight
  jaxqmix train full --mode replay --seed 1 --env-steps 1000000
  jaxqmix train quick --domain.packet-loss 0.3         one number fixes a range
  jaxqmix train quick --seeds 5                        five seeds at once, one table
  jaxqmix train --config runs/quick/config.json --out runs/again
  jaxqmix train quick --resume                         go on where it was stopped

presets: {presets}

settings that people use first:
{settings}

jaxqmix train PRESET --help-all explains every setting.
"""
FIRST = (
    ("--out PATH", "the run's folder", "runs/PRESET"),
    ("--resume", "continue the run in --out", ""),
    ("--config FILE", "start from a JSON or YAML file of settings, such as a run's", "none"),
    ("--mode MODE", "online (fresh rollouts) or replay", "training.mode"),
    ("--seed INT", "of everything random", "training.seed"),
    ("--seeds INT", "train so many side by side, from --seed on", "one"),
    ("--env-steps INT", "budget; or --episodes INT", "training.env_steps"),
    ("--env.drones INT", "drones in a swarm", "env.drones"),
    ("--env.city-width M", "and --env.city-length, metres", "env.city_width"),
    ("--env.horizon INT", "time limit of an episode, env steps", "env.horizon"),
    ("--env.no-fly-zones INT", "no-fly cylinders in a city", "env.no_fly_zones"),
    ("--domain.wind-speed LOW HIGH", "m/s; one number fixes it", "domain.wind_speed"),
    ("--domain.packet-loss LOW HIGH", "probability of a lost command", "domain.packet_loss"),
    ("--domain.visibility LOW HIGH", "1 is clear air", "domain.visibility"),
    ("--training.swarms INT", "swarms side by side; more on a GPU", "training.swarms"),
    ("--learner.learning-rate X", "peak", "learner.learning_rate"),
    ("--learner.mixer NAME", "qmix, qplex, vdn or iql", "learner.mixer"),
    ("--city FILE", "fly over your own city, see jaxqmix city --help", "generated cities"),
    ("--wandb PROJECT", "also log to Weights & Biases", "off"),
)
"""Setting, what it is, and its default: a setting's name, or words."""


def train_help(base: RunConfig, presets: Sequence[str]) -> str:
    """The short help of `train`, with the defaults of a preset."""
    lines = []
    for words, meaning, default in FIRST:
        if default in setting_names(base):
            value: Any = base
            for part in default.split("."):
                value = getattr(value, part)
            default = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        lines.append(f"  {words:31}{meaning}" + (f" ({default})" if default else ""))
    return TRAIN_HELP.format(presets=", ".join(presets), settings="\n".join(lines))
