"""`jaxqmix demo`: a menu of commands that a person could type; each is shown before it runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from jaxqmix.config import ConfigError, require, to_dict
from jaxqmix.presets import PRESETS, preset

RUNS = Path("runs")
SWARM = 20
"""Drones of the 20-drone test."""

Run = Callable[[list[str]], int]


def demo(arguments: list[str], run: Run) -> int:
    """The menu, or one choice of it without questions.

    Args:
      arguments: nothing, or the number of a choice.
      run: runs a command line (`jaxqmix.cli.run`).

    Returns:
      The exit code.

    Raises:
      ConfigError: when a choice given as an argument does not exist or cannot be done.
    """
    if arguments:
        given = " ".join(arguments)
        require(given in CHOICES, "choice", given, f"must be one of {', '.join(CHOICES)}")
        return CHOICES[given][1](run)
    while True:
        choice = ask(menu(), tuple(CHOICES))
        if choice is None or CHOICES[choice][1] is leave:
            return 0
        try:
            if choice == "3" and newest() is None:
                answer = ask("No run is trained yet. Train a quick one first? (y/n)", ("y", "n"))
                # Who stops the training wants to be asked again, not to watch half a policy.
                if answer != "y" or train_quick(run) or not finished(newest()):
                    continue
            CHOICES[choice][1](run)
        except ConfigError as error:
            print(f"jaxqmix: {error}")


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


def menu() -> str:
    """The choices, one a line."""
    lines = (f"  {number}  {describe()}" for number, (describe, _) in CHOICES.items())
    return "\n".join(["", "jaxqmix demo", *lines])


def show_and_run(run: Run, *arguments: str) -> int:
    """Prints a command as a person would type it, and runs it."""
    print(f"\n$ jaxqmix {' '.join(arguments)}", flush=True)
    return run(list(arguments))


def train_quick(run: Run) -> int:
    """Choice 1."""
    return show_and_run(run, *training("quick"))


def train_full(run: Run) -> int:
    """Choice 2."""
    return show_and_run(run, *training("full"))


def visualise(run: Run) -> int:
    """Choice 3; raises `ConfigError` when no run is trained."""
    folder = newest()
    if folder is None:
        raise ConfigError(f"run is missing: nothing is trained in {RUNS}; jaxqmix demo 1 trains")
    replay = folder / "replay.html"
    for picture in (replay, replay.with_suffix(".gif")):
        show_and_run(run, "render", folder.as_posix(), "--out", picture.as_posix())
    print(f"open {replay.resolve().as_uri()} in a browser: a 3-D replay to play and turn")
    return 0


def twenty(run: Run) -> int:
    """Choice 4: evaluates a trained run with 20 drones, or trains one."""
    folder = run_for_twenty()
    if folder is None:
        return show_and_run(run, *training("scale20"))
    return show_and_run(run, "evaluate", folder.as_posix(), "--drones", str(SWARM))


def leave(run: Run) -> int:
    """Choice 5."""
    return 0


def describe_newest() -> str:
    """What choice 3 does now."""
    folder = newest()
    if folder is None:
        return f"visualisation of a trained model: none in {RUNS} yet"
    return f"visualisation of a trained model: {folder}{'' if finished(folder) else ', unfinished'}"


def describe_twenty() -> str:
    """What choice 4 does now."""
    folder = run_for_twenty()
    does = f"evaluates {folder} with {SWARM} drones" if folder else "trains scale20, 5 km"
    return f"the {SWARM}-drone test: {does}"


CHOICES: dict[str, tuple[Callable[[], str], Callable[[Run], int]]] = {
    "1": (lambda: "quick training: 5 drones, 1 km", train_quick),
    "2": (lambda: "full training: 10 drones, 5 km", train_full),
    "3": (describe_newest, visualise),
    "4": (describe_twenty, twenty),
    "5": (lambda: "exit", leave),
}
"""What the menu says and what it does, by number."""


def training(name: str) -> list[str]:
    """The command that trains a preset: in its own folder, on with an unfinished run of the same
    settings there, or else in the next free folder, such as runs/quick-2."""
    number = 1
    while True:
        folder = RUNS / (name if number == 1 else f"{name}-{number}")
        out = [] if number == 1 else ["--out", folder.as_posix()]
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return ["train", name, *out]
        if unfinished(folder, name):
            return ["train", name, *out, "--resume"]
        number += 1


def unfinished(folder: Path, name: str) -> bool:
    """Whether a run stopped early, can go on, and has the settings of a preset."""
    if finished(folder) or not saved(folder):
        return False
    return settings(folder) == json.loads(json.dumps(to_dict(preset(name))))


def settings(folder: Path) -> dict:
    """A run's settings as plain JSON; empty when they cannot be read."""
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def finished(folder: Path | None) -> bool:
    """Whether a run is trained to its end."""
    return folder is not None and (folder / "evaluation.json").exists()


def saved(folder: Path) -> list[Path]:
    """A run's finished checkpoints."""
    return [path.parent for path in folder.glob("checkpoints/*/*/about")]


def trained() -> list[Path]:
    """Folders in runs/ with a trained policy, the newest first."""
    when = {
        folder: max(path.stat().st_mtime for path in saved(folder))
        for folder in RUNS.glob("*")
        if saved(folder)
    }
    return sorted(when, key=when.get, reverse=True)


def newest() -> Path | None:
    """The newest trained run."""
    return next(iter(trained()), None)


def run_for_twenty() -> Path | None:
    """The run for the 20-drone test: the newest finished one of scale20, else of full."""
    whole = [folder for folder in trained() if finished(folder)]
    by_preset = {name: [f for f in whole if settings(f).get("preset") == name] for name in PRESETS}
    return next(iter([*by_preset["scale20"], *by_preset["full"]]), None)
