"""A run's metrics: JSON lines, CSV, TensorBoard, and Weights & Biases where asked for."""

from __future__ import annotations

import csv
import json
import os
import struct
import tempfile
from pathlib import Path
from typing import Any, Protocol

from jaxqmix.config import ConfigError, RunConfig, require, to_dict

SETTINGS, LINES, FINAL = "config.json", "metrics.jsonl", "evaluation.json"
"""Files of a run: its settings, all reports, and the final evaluation with its coverage over
time."""
COMPARED = ("coverage", "return", "collision_rate", "violation_rate", "t90", "mission_success")
TUNED = ("preset", "env.drones", "learner.", "replay.", "training.")
"""Figures of the evaluations, and settings by the beginnings of their names, that TensorBoard sets
beside each other to compare runs."""


class Board(Protocol):
    """Where people look at a run."""

    def figures(self, figures: dict[str, float], env_steps: int) -> None:
        """Adds figures, named `group/name`."""
        ...

    def replay(self, path: Path, env_steps: int) -> None:
        """Shows a GIF."""
        ...

    def close(self) -> None:
        """Writes what is left."""
        ...


class MetricsWriter:
    """Appends reports to `metrics.jsonl`, `training.csv`, `evaluation.csv` and the boards.

    One report is one JSON object with `kind` (`training` or `evaluation`), `env_steps`, and its
    figures. In the tables, the first report of a kind names the columns; None is an empty cell.
    """

    def __init__(self, run: Path, boards: list[Board], env_steps: int = 0):
        """Opens the files of a run.

        Args:
          run: its folder.
          boards: closed with the writer.
          env_steps: of training so far; what was reported after them is dropped, and so is a final
            evaluation, for a run that resumes here reports it again.
        """
        self._run, self._boards = run, boards
        self._columns: dict[str, list[str]] = {}
        kept = [
            report
            for report in read(run)
            if report["env_steps"] <= env_steps and not report.get("final")
        ]
        # Written beside the old files: whoever stops this loses nothing.
        with tempfile.TemporaryDirectory(prefix=".metrics-", dir=run) as folder:
            new = Path(folder)
            for report in kept:
                self._append(report, new)
            for name in (LINES, "training.csv", "evaluation.csv"):
                (new / name).touch()
                (new / name).replace(run / name)

    def _append(self, report: dict[str, Any], folder: Path) -> None:
        with (folder / LINES).open("a", encoding="utf-8") as file:
            file.write(json.dumps(report) + "\n")
        kind = report["kind"]
        columns = self._columns.setdefault(kind, cells(report))
        with (folder / f"{kind}.csv").open("a", newline="", encoding="utf-8") as file:
            # A run of an older version that resumes may report more than its table has room for.
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(report)

    def write(self, report: dict[str, Any]) -> None:
        """Writes one report everywhere."""
        self._append(report, self._run)
        figures = {
            f"{report['kind']}/{name}": value
            for name, value in numbers(report).items()
            if name not in ("env_steps", "final")
        }
        for board in self._boards:
            board.figures(figures, report["env_steps"])

    def write_replay(self, path: Path, env_steps: int) -> None:
        """Shows a GIF on the boards."""
        for board in self._boards:
            board.replay(path, env_steps)

    def close(self) -> None:
        """Writes what is left."""
        for board in self._boards:
            board.close()


class TensorBoard:
    """Writes a run for `tensorboard --logdir runs`."""

    def __init__(self, run: Path, config: RunConfig, env_steps: int = 0):
        """Opens the run's log; a resumed run hides what it had logged after `env_steps`."""
        from tensorboardX import SummaryWriter
        from tensorboardX.summary import hparams

        log = run / "tensorboard"
        purge = env_steps + 1 if log.exists() else None
        self._writer = SummaryWriter(str(log), purge_step=purge)
        if env_steps == 0:
            compared = {f"evaluation/{name}": 0.0 for name in COMPARED}
            settings = flat_settings(config)
            tuned = {name: value for name, value in settings.items() if name.startswith(TUNED)}
            # `SummaryWriter.add_hparams` would open a second log with a time for its name.
            for summary in hparams(tuned, compared):
                self._writer.file_writer.add_summary(summary)
            self._writer.add_text("settings", as_table(settings))

    def figures(self, figures: dict[str, float], env_steps: int) -> None:
        """Adds scalars, grouped by the first part of their names."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, env_steps)
        self._writer.flush()

    def replay(self, path: Path, env_steps: int) -> None:
        """Shows a GIF, moving, among the images."""
        from tensorboardX.proto.summary_pb2 import Summary

        picture = path.read_bytes()
        width, height = struct.unpack("<HH", picture[6:10])
        image = Summary.Image(
            width=width, height=height, colorspace=3, encoded_image_string=picture
        )
        value = Summary.Value(tag="evaluation/replay", image=image)
        self._writer.file_writer.add_summary(Summary(value=[value]), env_steps)

    def close(self) -> None:
        """Flushes the log."""
        self._writer.close()


class WeightsAndBiases:
    """Sends a run to Weights & Biases (wandb.ai); needs the extra `wandb`."""

    def __init__(self, project: str, run: Path, config: RunConfig):
        """Starts the run there, or continues the one that its folder remembers.

        Raises:
          ConfigError: without the package, or when it refuses the project.
        """
        wandb = import_wandb(project)
        self._wandb, remembered = wandb, run / "wandb_id"
        known = remembered.read_text().strip() if remembered.exists() else None
        try:
            self._run = wandb.init(
                project=project,
                name=run.name,
                config=flat_settings(config),
                id=known,
                resume="allow",
            )
        except wandb.errors.Error as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"wandb = {project} is not allowed: {reason}") from None
        self._run.define_metric("*", step_metric="env_steps")
        remembered.write_text(self._run.id + "\n")

    def figures(self, figures: dict[str, float], env_steps: int) -> None:
        """Logs figures against env steps."""
        self._run.log(figures | {"env_steps": env_steps})

    def replay(self, path: Path, env_steps: int) -> None:
        """Logs a GIF."""
        video = self._wandb.Video(str(path), format="gif")
        self._run.log({"evaluation/replay": video, "env_steps": env_steps})

    def close(self) -> None:
        """Waits until everything is sent."""
        self._run.finish()


def import_wandb(project: str) -> Any:
    """The package `wandb`; raises `ConfigError` without it."""
    try:
        import wandb
    except ImportError:
        wandb = None
    # Without the package, a folder that it left in the working directory passes for it.
    if not hasattr(wandb, "init"):
        raise ConfigError(f'wandb = {project} needs Weights & Biases: pip install "jaxqmix[wandb]"')
    return wandb


def check_writable(setting: str, path: Path) -> None:
    """Raises `ConfigError` when a file or a folder cannot be created or written."""
    try:
        place = next((each for each in (path, *path.absolute().parents) if each.exists()), None)
    except OSError as error:
        raise ConfigError(f"{setting} = {path} is not allowed: {error.strerror}") from None
    require(place is not None, setting, path, "there is no such drive")
    fits = place.is_dir() or place == path
    require(fits and os.access(place, os.W_OK), setting, path, f"{place} is not open for writing")


def numbers(report: dict[str, Any]) -> dict[str, float]:
    """The figures of a report that are single numbers."""
    return {name: value for name, value in report.items() if isinstance(value, int | float)}


def cells(report: dict[str, Any]) -> list[str]:
    """The names of what a report's row in a table holds: numbers, also where one is missing."""
    return [name for name, value in report.items() if isinstance(value, int | float | None)]


def flat_settings(config: RunConfig) -> dict[str, bool | float | str]:
    """Every setting by its name on the command line, such as `env.drones`; ranges as text."""
    flat: dict[str, Any] = {}

    def add(prefix: str, values: dict[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, dict):
                add(f"{prefix}{name}.", value)
            elif isinstance(value, bool | int | float | str):
                flat[prefix + name] = value
            else:
                flat[prefix + name] = str(value)

    add("", to_dict(config))
    return flat


def as_table(settings: dict[str, Any]) -> str:
    """Settings as a table in Markdown."""
    rows = [f"| {name} | {value} |" for name, value in settings.items()]
    return "\n".join(["| setting | value |", "|---|---|", *rows])


def read(run: Path) -> list[dict[str, Any]]:
    """All reports of a run, oldest first, up to a line that a crash cut short or damaged."""
    path = run / LINES
    if not path.is_file():
        return []
    reports = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            report = json.loads(line)
        except json.JSONDecodeError:
            break
        if not isinstance(report, dict) or not {"kind", "env_steps"} <= report.keys():
            break
        reports.append(report)
    return reports
