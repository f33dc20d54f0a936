"""`jaxqmix demo`: a menu of commands that a person could type; each is shown before it runs."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Callable
from pathlib import Path

from jaxqmix.config import ConfigError, RunConfig, require, to_dict
from jaxqmix.federated.config import FederationConfig
from jaxqmix.presets import PRESETS, preset

RUNS = Path("runs")
SWARM = 20
"""Drones of the 20-drone test."""
FEDERATION = FederationConfig(sites=4, per_round=2, minimum=2, rounds=12, local_env_steps=5_000)
"""Settings of the federated training: half a minute of flying."""

Run = Callable[[list[str]], int]


def demo(arguments: list[str], run: Run) -> int:
    """The menu, or one choice of it without questions.

    Args:
      arguments: nothing, or the number of a choice; and --city FILE, to fly over that city.
      run: runs a command line (`jaxqmix.cli.run`).

    Returns:
      The exit code.

    Raises:
      ConfigError: when a choice given as an argument does not exist or cannot be done.
    """
    arguments, city = without_city(arguments)
    if arguments:
        given = " ".join(arguments)
        require(given in CHOICES, "choice", given, f"must be one of {', '.join(CHOICES)}")
        return CHOICES[given][1](run, city)
    while True:
        choice = ask(menu(city), tuple(CHOICES))
        if choice is None or CHOICES[choice][1] is leave:
            return 0
        try:
            if choice == "3" and newest() is None:
                answer = ask("No run is trained yet. Train a quick one first? (y/n)", ("y", "n"))
                # Who stops the training wants to be asked again, not to watch half a policy.
                if answer != "y" or train_quick(run, city) or not finished(newest()):
                    continue
            CHOICES[choice][1](run, city)
        except ConfigError as error:
            print(f"jaxqmix: {error}")


def without_city(arguments: list[str]) -> tuple[list[str], str | None]:
    """The other arguments, and the value of --city if it is among them."""
    for index, argument in enumerate(arguments):
        name, given, value = argument.partition("=")
        if name == "--city":
            rest = arguments[index + 1 :]
            require(bool(value or rest), "city", "nothing", "give a city file: --city FILE")
            value, rest = (value, rest) if given else (rest[0], rest[1:])
            return arguments[:index] + rest, value
    return arguments, None


def over_city(name: str, city: str | None, scale: str = "cpu") -> RunConfig:
    """A preset for flights over a city; raises `ConfigError` on a bad file."""
    if city is None:
        return preset(name, scale)
    from jaxqmix.maps import with_city

    return with_city(preset(name, scale), city)


def ask(question: str, allowed: tuple[str, ...]) -> str | None:
    """Asks until the answer is allowed; None at the end of the input."""
    print(question)
    while True:
        try:
            answer = input("> ").strip().lower()
        except EOFError:
            print()
            return None
        if answer in allowed:
            return answer
        print(f"please answer {', '.join(allowed[:-1])} or {allowed[-1]}")


def menu(city: str | None = None) -> str:
    """The choices, one a line."""
    lines = (f"  {number}  {describe(city)}" for number, (describe, _) in CHOICES.items())
    return "\n".join(["", "jaxqmix demo", *lines])


def show_and_run(run: Run, *arguments: str) -> int:
    """Prints a command as a person would type it, and runs it."""
    print(f"\n$ jaxqmix {shlex.join(arguments)}", flush=True)
    return run(list(arguments))


def train_quick(run: Run, city: str | None = None) -> int:
    """Choice 1."""
    return show_and_run(run, *training("quick", city))


def train_full(run: Run, city: str | None = None) -> int:
    """Choice 2."""
    return show_and_run(run, *training("full", city))


def visualise(run: Run, city: str | None = None) -> int:
    """Choice 3; raises `ConfigError` when no run is trained."""
    folder = newest()
    if folder is None:
        raise ConfigError(f"run is missing: nothing is trained in {RUNS}; jaxqmix demo 1 trains")
    replay = folder / "replay.html"
    for picture in (replay, replay.with_suffix(".gif")):
        show_and_run(run, "render", folder.as_posix(), "--out", picture.as_posix(), *over(city))
    print(f"open {replay.resolve().as_uri()} in a browser: a 3-D replay to play and turn")
    return 0


def twenty(run: Run, city: str | None = None) -> int:
    """Choice 4: evaluates a trained run with 20 drones, or trains one."""
    folder = run_for_twenty(city)
    if folder is None:
        return show_and_run(run, *training("scale20", city))
    return show_and_run(run, "evaluate", folder.as_posix(), "--drones", str(SWARM), *over(city))


def federate_quick(run: Run, city: str | None = None) -> int:
    """Choice 5."""
    return show_and_run(run, *federating(city))


def leave(run: Run, city: str | None = None) -> int:
    """Choice 6."""
    return 0


def describe_newest(city: str | None = None) -> str:
    """What choice 3 does now."""
    folder = newest()
    if folder is None:
        return f"visualisation of a trained model: none in {RUNS} yet"
    return f"visualisation of a trained model: {folder}{'' if finished(folder) else ', unfinished'}"


def describe_twenty(city: str | None = None) -> str:
    """What choice 4 does now."""
    folder = run_for_twenty(city)
    does = f"evaluates {folder} with {SWARM} drones" if folder else ""
    does = does or f"trains scale20, {city or '5 km'}"
    return f"the {SWARM}-drone test: {does}"


CHOICES: dict[str, tuple[Callable[[str | None], str], Callable[..., int]]] = {
    "1": (lambda city: f"quick training: 5 drones, {city or '1 km'}", train_quick),
    "2": (lambda city: f"full training: 10 drones, {city or '5 km'}", train_full),
    "3": (describe_newest, visualise),
    "4": (describe_twenty, twenty),
    "5": (
        lambda city: (
            f"federated training: {FEDERATION.sites} sites share no flights, {city or '1 km'}"
        ),
        federate_quick,
    ),
    "6": (lambda city: "exit", leave),
}
"""What the menu says and what it does, by number."""


def training(name: str, city: str | None = None) -> list[str]:
    """The command that trains a preset, as `in_a_folder` completes it."""
    return in_a_folder(
        ["train", name, *over(city)], name, lambda folder: unfinished(folder, name, city)
    )


def federating(city: str | None = None) -> list[str]:
    """The command that trains a federation, as `in_a_folder` completes it."""
    words = [
        word
        for item in dataclasses.fields(FEDERATION)
        if (value := getattr(FEDERATION, item.name)) != item.default
        for word in (f"--{item.name.replace('_', '-')}", str(value))
    ]
    return in_a_folder(
        ["federate", "quick", *words, *over(city)],
        "quick-federated",
        lambda folder: unfinished_federation(folder, city),
    )


def over(city: str | None) -> list[str]:
    """The part of a command that names a city."""
    return [] if city is None else ["--city", city]


def in_a_folder(words: list[str], name: str, goes_on: Callable[[Path], bool]) -> list[str]:
    """A command in its own folder, on with what is unfinished there, or else in the next free
    folder, such as runs/quick-2.

    Args:
      words: of the command; without more it works in runs/NAME.
      name: of its folder.
      goes_on: whether the command can go on in a folder.
    """
    number = 1
    while True:
        folder = RUNS / (name if number == 1 else f"{name}-{number}")
        out = [] if number == 1 else ["--out", folder.as_posix()]
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return [*words, *out]
        if goes_on(folder):
            return [*words, *out, "--resume"]
        number += 1


def unfinished(folder: Path, name: str, city: str | None = None) -> bool:
    """Whether a run stopped early, can go on, and has the settings of a preset over this city."""
    if finished(folder) or not saved(folder):
        return False
    found = settings(folder)
    scale = "gpu" if found.get("scale") == "gpu" else "cpu"  # of the device where it began
    return plain(found) == plain(to_dict(over_city(name, city, scale)))


def unfinished_federation(folder: Path, city: str | None = None) -> bool:
    """Likewise of the demo's federation, whose budget is not the preset's."""
    if finished(folder) or not saved(folder):
        return False
    wanted = dataclasses.asdict(FEDERATION)
    found, quick = plain(settings(folder)), plain(to_dict(over_city("quick", city)))
    for each in (found, quick):
        each.get("training", {}).pop("env_steps", None)
    same = all(
        found.get(part) == quick[part]
        for part in ("env", "domain", "learner", "training", "evaluation")
    )
    return same and plain(settings(folder, "federation.json")) == plain(wanted)


def plain(data: dict) -> dict:
    """Settings as JSON gives them, without the city's place: its checksum tells which it is."""
    data = json.loads(json.dumps(data))
    data.get("env", {}).pop("city", None)
    return data


def settings(folder: Path, name: str = "config.json") -> dict:
    """A run's settings as plain JSON; empty when they cannot be read, or are no settings."""
    try:
        data = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(data, dict):
        return {}
    parts = (data.get(part, {}) for part in ("env", "training"))
    return data if all(isinstance(part, dict) for part in parts) else {}


def finished(folder: Path | None) -> bool:
    """Whether a run is trained to its end."""
    return folder is not None and (folder / "evaluation.json").exists()


def saved(folder: Path) -> list[Path]:
    """A run's finished checkpoints."""
    return [path.parent for path in folder.glob("checkpoints/*/[0-9]*/about.json")]


def trained() -> list[Path]:
    """Folders in runs/ with a trained policy, the newest first."""
    when = {
        folder: max(path.stat().st_mtime for path in saved(folder))
        for folder in RUNS.glob("*")
        if saved(folder)
    }
    return sorted(when, key=lambda folder: when[folder], reverse=True)


def newest() -> Path | None:
    """The newest trained run."""
    return next(iter(trained()), None)


def run_for_twenty(city: str | None = None) -> Path | None:
    """The run for the 20-drone test: the newest finished one of scale20, else of full."""
    wanted = over_city("scale20", city).env.city_checksum
    whole = [folder for folder in trained() if finished(folder)]
    whole = [f for f in whole if settings(f).get("env", {}).get("city_checksum") == wanted]
    by_preset = {name: [f for f in whole if settings(f).get("preset") == name] for name in PRESETS}
    return next(iter([*by_preset["scale20"], *by_preset["full"]]), None)
