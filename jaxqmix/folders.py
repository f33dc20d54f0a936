"""What a run leaves in its folder: settings, reports, checkpoints and pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxqmix import checkpoints
from jaxqmix.config import ConfigError, RunConfig, require, to_dict
from jaxqmix.evaluation import success, summarise
from jaxqmix.locking import LOCK
from jaxqmix.metrics import (
    FINAL,
    SETTINGS,
    Logger,
    MetricsWriter,
    TensorBoardLogger,
    WeightsAndBiasesLogger,
    check_writable,
    finite,
    not_written,
)
from jaxqmix.training import TrainState
from jaxqmix.types import Episode

JOURNAL = "run.json"
"""In a run's folder: versions, commit, device, day and wall time of each process of the run."""

LEFT = (LOCK, f".{SETTINGS}")
"""What a process may leave that was killed before it had a run's settings written."""

Report = dict[str, Any]


def check_folder(run: Path, resume: bool) -> None:
    """Raises `ConfigError` when a folder holds another run, holds none to resume, or cannot be."""
    if resume:
        begun = (run / SETTINGS).is_file() or has_checkpoints(run)
        checkpoints.require_found(begun, run)
        return
    require(not run.is_file(), "out", run, "it is a file, and must be a folder")
    check_writable("out", run)
    require(
        not run.exists() or all(each.name in LEFT for each in run.iterdir()),
        "out",
        run,
        "it is not empty; add --resume to continue the run there, or choose another --out",
    )


def has_checkpoints(run: Path) -> bool:
    """Whether a run has saved any."""
    return any(checkpoints.steps_of(run, kind) for kind in checkpoints.KINDS)


def make_folder(run: Path, config: RunConfig) -> None:
    """Creates a run's folder with its settings; raises `ConfigError` when that cannot be."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        write_json(run / SETTINGS, to_dict(config))
    except OSError as error:
        raise ConfigError(f"out = {run} is not allowed: {error.strerror}") from None


def write_json(path: Path, data: Any) -> None:
    """Writes a file of a run whole or not at all; what is not finite becomes null."""
    part = path.with_name(f".{path.name}")
    text = json.dumps(finite(data)[0], indent=2, allow_nan=False)
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(path)


class RunFolder:
    """What a run leaves in its folder: settings, reports, checkpoints and pictures."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        step: int,
        devices: int,
        resume: bool,
        wandb: str | None = None,
    ):
        """Opens the log.

        Args:
          config: of the run.
          folder: of `make_folder`.
          step: where the run begins or resumes.
          devices: how many it is spread over.
          resume: whether the folder holds the run already.
          wandb: as of `train`.
        """
        self.config, self.folder, self._begun = config, folder, step
        self.metrics = self._open_metrics(wandb, resume)
        self.checkpoints = checkpoints.Checkpoints(folder, config, step, devices)
        self.best = self._best_so_far()

    def _open_metrics(self, wandb: str | None, resume: bool) -> MetricsWriter:
        config, folder, env_steps = self.config, self.folder, self.env_steps(self._begun)
        loggers: list[Logger] = []
        try:
            if wandb is not None:
                loggers.append(WeightsAndBiasesLogger(wandb, folder, config))
        except BaseException:
            if not resume:
                (folder / SETTINGS).unlink()
            raise
        try:
            loggers.append(TensorBoardLogger(folder, config, env_steps))
            return MetricsWriter(folder, loggers, env_steps)
        except OSError as error:
            raise not_written(folder, error) from None

    def _best_so_far(self) -> float:
        """The return of the best checkpoint, from its description or else from the log."""
        steps = checkpoints.steps_of(self.folder, "best")
        if not steps:
            return -math.inf
        noted = checkpoints.notes_of(self.folder, "best", steps[0]).get("best_return")
        if noted is not None:
            return noted
        found = [r.get("return") for r in self.metrics.kept if r["kind"] == "evaluation"]
        return max((r for r in found if isinstance(r, int | float)), default=-math.inf)

    def env_steps(self, step: int) -> int:
        """Env steps in so many iterations."""
        return step * self.config.iteration_steps

    def saver(self, kind: str, step: int) -> Callable[[TrainState], None]:
        """What saves a state with what the run notes now."""
        notes = {"best_return": self.best if math.isfinite(self.best) else None}
        return partial(self.checkpoints.save, kind, step, notes=notes)

    def evaluation_report(
        self, metrics: dict[str, np.ndarray], step: int, final: bool = False
    ) -> Report:
        """The report of an evaluation's episodes [E]."""
        summary = summarise(metrics)
        return {
            "kind": "evaluation",
            "env_steps": self.env_steps(step),
            "final": final,
            "episodes": len(metrics["return"]),
            **summary,
            "success": success(summary, self.config.evaluation),
        }

    def write_final(self, report: Report) -> None:
        """Writes the final evaluation."""
        write_json(self.folder / FINAL, report)

    def draw(self, episode: Episode | None, step: int) -> None:
        """Draws the curves, and a replay of an episode if there is one."""
        from jaxqmix.render import render
        from jaxqmix.render.curves import load_runs, plot_runs

        plot_runs(load_runs([self.folder]), self.folder / "curves.png")
        if episode is None:
            return
        replay = self.folder / "replay.gif"
        title = f"{self.config.learner.mixer} in {self.config.preset}"
        render(episode, replay, cell_size=self.config.env.cell_size, title=title)
        self.metrics.write_replay(replay, self.env_steps(step))


class SilentWriter:
    """Takes the place of `MetricsWriter` where nothing is written."""

    def write(self, report: Report) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class SilentFolder(RunFolder):
    """The run's folder in a process that is not the first: nothing is written."""

    def __init__(self, config: RunConfig, folder: Path):
        """Knows the run."""
        self.config, self.folder, self.best = config, folder, -math.inf
        self.metrics = SilentWriter()  # type: ignore[assignment]

    def saver(self, kind: str, step: int) -> Callable[[TrainState], None]:
        """Nothing."""
        return lambda state: None

    def write_final(self, report: Report) -> None:
        """Nothing."""

    def draw(self, episode: Episode | None, step: int) -> None:
        """Nothing."""
