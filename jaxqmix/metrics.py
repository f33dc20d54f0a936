"""A run's metrics: JSON lines, CSV, TensorBoard, and Weights & Biases where asked for."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import struct
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, Protocol

from jaxqmix.config import ConfigError, RunConfig, refuse, require, to_dict

SETTINGS, LINES, FINAL = "config.json", "metrics.jsonl", "evaluation.json"
"""Files of a run: its settings, all reports, and the final evaluation with its coverage over
time."""
SWEEP = "sweep.json"
"""In the folder of a sweep: its settings, and the folders of their runs with what came out."""
KINDS = ("training", "evaluation")
"""Of reports; each has a table of its own."""
MOST_STEPS, LONGEST_LINE = 10**15, 10**6
"""Env steps and characters beyond which a line is none of ours."""
COMPARED = ("coverage", "return", "collision_rate", "violation_rate", "t90", "mission_success")
TUNED = ("preset", "env.drones", "learner.", "replay.", "training.")
"""Metrics of the evaluations, and settings by the beginnings of their names, that TensorBoard sets
beside each other to compare runs."""


class Logger(Protocol):
    """Where people look at a run."""

    def log(self, metrics: dict[str, float], env_steps: int) -> None:
        """Adds metrics, named `group/name`."""
        ...

    def replay(self, path: Path, env_steps: int) -> None:
        """Shows a GIF."""
        ...

    def close(self) -> None:
        """Writes what is left."""
        ...


def not_written(run: Path, error: OSError) -> ConfigError:
    """What to say when a run's reports cannot be written."""
    return ConfigError(
        f"metrics = {run} could not be written: {error.strerror or error}; make room, and "
        "--resume: checkpoints are whole"
    )


class MetricsWriter:
    """Appends reports to `metrics.jsonl`, `training.csv`, `evaluation.csv` and the loggers.

    One report is one JSON object with `kind` (`training` or `evaluation`), `env_steps`, and its
    figures. In the tables, the first report of a kind names the columns; None is an empty cell.
    A figure that is not finite is written as null, for JSON knows no NaN, and warned of once.
    """

    def __init__(self, run: Path, loggers: list[Logger], env_steps: int = 0):
        """Opens the files of a run.

        Args:
          run: its folder.
          loggers: closed with the writer.
          env_steps: of training so far; what was reported after them is dropped, and so is a final
            evaluation, for a run that resumes here reports it again.
        """
        self._run, self._loggers = run, loggers
        self._columns: dict[str, list[str]] = {}
        self._warned = False
        self.kept = kept = [
            report
            for report in read(run)
            if report["env_steps"] <= env_steps and not report.get("final")
        ]
        if env_steps and not kept:
            warnings.warn(f"{run / LINES} holds no reports: earlier ones are lost", stacklevel=2)
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
            file.write(json.dumps(report, allow_nan=False) + "\n")
        kind = report["kind"]
        columns = self._columns.setdefault(kind, cells(report))
        with (folder / f"{kind}.csv").open("a", newline="", encoding="utf-8") as file:
            # A run of an older version that resumes may report more than its table has room for.
            writer = csv.writer(file)
            if file.tell() == 0:
                writer.writerow([harmless(name) for name in columns])
            row = {name: report.get(name) for name in columns}
            writer.writerow([value if is_cell(value) else None for value in row.values()])

    def write(self, report: dict[str, Any]) -> None:
        """Writes one report everywhere; raises `ConfigError` when the disk is full."""
        report, lost = finite(report)
        if lost and not self._warned:
            self._warned = True
            warnings.warn(
                f"{lost} is not finite at {report['env_steps']:,} env steps, and written as null; "
                "lower learner.learning_rate, learner.reward_scale or the weights in domain.reward",
                stacklevel=2,
            )
        metrics = {
            f"{report['kind']}/{name}": value
            for name, value in numbers(report).items()
            if name not in ("env_steps", "final")
        }
        try:
            self._append(report, self._run)
            for logger in self._loggers:
                logger.log(metrics, report["env_steps"])
        except OSError as error:
            raise not_written(self._run, error) from None

    def write_replay(self, path: Path, env_steps: int) -> None:
        """Shows a GIF on the loggers."""
        for logger in self._loggers:
            logger.replay(path, env_steps)

    def close(self) -> None:
        """Writes what is left."""
        for logger in self._loggers:
            logger.close()


class TensorBoardLogger:
    """Writes a run for `tensorboard --logdir runs`.

    Events are written where they happen: the threads of `SummaryWriter` print what goes wrong, on a
    full disk for example, and may never end.
    """

    def __init__(self, run: Path, config: RunConfig, env_steps: int = 0):
        """Opens the run's log; a resumed run hides what it had logged after `env_steps`."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog
        from tensorboardX.summary import hparams, text

        log = run / "tensorboard"
        resumed = log.exists()
        log.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(log / "events"))
        if resumed:
            self._add(env_steps + 1, session_log=SessionLog(status=SessionLog.START))
        if env_steps == 0:
            compared = {f"evaluation/{name}": 0.0 for name in COMPARED}
            settings = flat_settings(config)
            tuned = {name: value for name, value in settings.items() if name.startswith(TUNED)}
            for summary in (*hparams(tuned, compared), text("settings", as_table(settings))):
                self._add(0, summary=summary)
        self._writer.flush()

    def _add(self, env_steps: int, **what: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._writer.write_event(Event(wall_time=time.time(), step=env_steps, **what))

    def log(self, metrics: dict[str, float], env_steps: int) -> None:
        """Adds scalars, grouped by the first part of their names."""
        from tensorboardX.summary import scalar

        for name, value in metrics.items():
            self._add(env_steps, summary=scalar(name, value))
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
        self._add(env_steps, summary=Summary(value=[value]))
        self._writer.flush()

    def close(self) -> None:
        """Flushes the log."""
        self._writer.close()


class WeightsAndBiasesLogger:
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
        # Points there cannot be taken back: after a kill those until here are logged already.
        self._until = int(self._run.summary.get("env_steps") or 0) if known else 0

    def log(self, metrics: dict[str, float], env_steps: int) -> None:
        """Logs metrics against env steps, and none again that an earlier process had logged."""
        if env_steps >= self._until:
            self._run.log(metrics | {"env_steps": env_steps})

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
        raise ConfigError(f'wandb = {project} needs Weights & Biases: pip install ".[wandb]"')
    return wandb


def local_path(setting: str, path: str | Path) -> Path:
    """An absolute path in this machine's file system, with `~` for the user's home.

    Raises:
      ConfigError: on an address such as gs://bucket/run, or a home that nobody knows.
    """
    elsewhere = re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path))
    require(
        not elsewhere, setting, path, "must be in this machine's file system, not at an address"
    )
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError:
        raise ConfigError(f"{setting} = {path} is not allowed: no home folder is known") from None


def check_writable(setting: str, path: Path) -> None:
    """Raises `ConfigError` when a file or a folder cannot be created or written."""
    try:
        place = next((each for each in (path, *path.absolute().parents) if each.exists()), None)
    except OSError as error:
        raise ConfigError(f"{setting} = {path} is not allowed: {error.strerror}") from None
    if place is None:
        refuse(setting, path, "there is no such drive")
    fits = place.is_dir() or place == path
    require(fits and os.access(place, os.W_OK), setting, path, f"{place} is not open for writing")


def runs_in(folder: Path) -> list[Path]:
    """The folders of the runs of several seeds, or of a sweep, that a folder holds, in their order;
    or none."""
    if (folder / SWEEP).is_file():
        return [run for part in swept_in(folder) for run in seeds_in(part)]
    return seeds_in(folder)


def seeds_in(folder: Path) -> list[Path]:
    """The folders of the runs of several seeds that a folder holds, in their order."""
    found = folder.glob("seed-*") if folder.is_dir() else ()
    runs = {each.name.removeprefix("seed-"): each for each in found if each.is_dir()}
    return [runs[name] for name in sorted(filter(str.isdecimal, runs), key=int)]


def swept_in(folder: Path) -> list[Path]:
    """The folders of a sweep, one for each combination of values, in their order."""
    try:
        names = list(json.loads((folder / SWEEP).read_text(encoding="utf-8"))["runs"])
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        names = []
    there = {part.name: part for part in sorted(folder.iterdir()) if part.is_dir()}
    # What is there counts: the file may be damaged, or a stranger's.
    named = [there.pop(name) for name in names if isinstance(name, str) and name in there]
    return named + list(there.values())


def is_cell(value: Any) -> bool:
    """Whether a value is a number, or one that is missing."""
    return value is None or isinstance(value, int | float)


def numbers(report: dict[str, Any]) -> dict[str, float]:
    """The metrics of a report that are single numbers."""
    return {name: value for name, value in report.items() if isinstance(value, int | float)}


def cells(report: dict[str, Any]) -> list[str]:
    """The names of what a report's row in a table holds: numbers, also where one is missing."""
    return [name for name, value in report.items() if is_cell(value)]


def harmless(name: str) -> str:
    """A column's name that no spreadsheet takes for a formula."""
    return name if re.match(r"\w", name) else f"'{name}"


def finite(value: Any, name: str = "") -> tuple[Any, str]:
    """A report with None for whatever is not finite, at any depth; and the first such name."""
    if isinstance(value, float) and not math.isfinite(value):
        return None, name
    if isinstance(value, dict):
        parts = {key: finite(part, str(key)) for key, part in value.items()}
        found = {key: part for key, (part, _) in parts.items()}
        return found, next((lost for _, lost in parts.values() if lost), "")
    if isinstance(value, list | tuple):
        listed = [finite(part, name) for part in value]
        return [part for part, _ in listed], next((lost for _, lost in listed if lost), "")
    return value, ""


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


def is_report(report: Any) -> bool:
    """Whether something from a file looks like a report: a known kind, env steps, and metrics."""
    if not isinstance(report, dict) or report.get("kind") not in KINDS:
        return False
    steps = report.get("env_steps")
    if isinstance(steps, bool) or not isinstance(steps, int) or not 0 <= steps <= MOST_STEPS:
        return False
    # No whole number that no float holds.
    return not any(isinstance(each, int) and abs(each) > MOST_STEPS for each in report.values())


def read(run: Path) -> list[dict[str, Any]]:
    """All reports of a run, oldest first; lines that are none are passed over with a warning.

    Metrics that are not finite, as older versions wrote them, are None.
    """
    path = run / LINES
    if not path.is_file():
        return []
    reports, strange = [], 0
    with path.open(encoding="utf-8", errors="replace") as file:
        while line := file.readline(LONGEST_LINE):
            try:
                report = json.loads(line)
                good = is_report(report)
            except (ValueError, RecursionError):  # cut short by a crash, damaged, or a stranger's
                good = False
            if good:
                reports.append(finite(report)[0])
            else:
                strange += bool(line.strip())
    if strange:
        warnings.warn(
            f"{strange:,} lines of {path} are no reports; the other {len(reports):,} are kept",
            stacklevel=2,
        )
    return reports
