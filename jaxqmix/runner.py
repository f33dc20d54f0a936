"""The host loop: trains, reports, evaluates, saves, and stops when asked."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxqmix import checkpoints
from jaxqmix.config import ConfigError, RunConfig, from_dict, require, to_dict
from jaxqmix.distributed import device_memory
from jaxqmix.evaluation import (
    METRICS,
    SELECTION,
    coverage_over_time,
    evaluator,
    success,
    summarise,
)
from jaxqmix.metrics import (
    FINAL,
    SETTINGS,
    Board,
    MetricsWriter,
    TensorBoard,
    WeightsAndBiases,
    check_writable,
    import_wandb,
    read,
)
from jaxqmix.training import (
    Trainer,
    TrainState,
    make_trainer,
    memory_needed,
    require_memory,
)

REPORTS = 100
"""Training reports in a whole run."""
AHEAD = 4
"""Rollouts sent to the devices before the host waits. Unbounded, CPU devices may wait for each
other's sums for ever: those of many programs share one pool of threads."""

Report = dict[str, Any]


class Listener:
    """Hears of a run's progress; the command line overrides what it shows."""

    def begun(self, config: RunConfig, step: int, memory: dict[str, int]) -> None:
        """The run starts at this rollout (0, or where it resumes) and takes so many bytes."""

    def advanced(self, step: int) -> None:
        """One more rollout was dispatched."""

    def trained(self, report: Report) -> None:
        """A training report was written."""

    def doing(self, what: str) -> None:
        """Something other than training begins, and may take seconds."""

    def evaluated(self, report: Report) -> None:
        """An evaluation was written."""

    def stopping(self) -> None:
        """A signal handler heard the wish to stop; training does after this rollout."""

    def stopped(self, step: int) -> None:
        """The run stopped as asked, and is saved."""

    def finished(self) -> None:
        """Everything is written."""

    def failed(self) -> None:
        """The run ends with an error."""


def interval(episodes: int, config: RunConfig) -> int:
    """Rollouts of all swarms in so many episodes of full length, at least 1."""
    return max(1, round(episodes * config.env.horizon / config.chunk_steps))


def check_folder(run: Path, resume: bool) -> None:
    """Raises `ConfigError` when a folder holds another run, holds none to resume, or cannot be."""
    if resume:
        checkpoints.require_found((run / SETTINGS).is_file(), run)
        return
    require(not run.is_file(), "out", run, "it is a file, and must be a folder")
    check_writable("out", run)
    require(
        not run.exists() or not any(run.iterdir()),
        "out",
        run,
        "it is not empty; add --resume to continue the run there, or choose another --out",
    )


def make_folder(run: Path, config: RunConfig) -> None:
    """Creates a run's folder with its settings; raises `ConfigError` when that cannot be."""
    text = json.dumps(to_dict(config), indent=2) + "\n"
    try:
        run.mkdir(parents=True, exist_ok=True)
        (run / SETTINGS).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"out = {run} is not allowed: {error.strerror}") from None


def restore(run: Path, trainer: Trainer) -> tuple[int, TrainState | None]:
    """The step and state of a run's newest checkpoint; 0 and None when it had saved none yet.

    Raises:
      CheckpointError: when the run has other settings, or no checkpoint can be read.
    """
    if any(checkpoints.steps_of(run, kind) for kind in checkpoints.KINDS):
        return checkpoints.restore(run, trainer)
    try:
        saved = to_dict(from_dict(json.loads((run / SETTINGS).read_text(encoding="utf-8"))))
    except (ValueError, TypeError, AttributeError):
        checkpoints.require_found(False, run)
    checkpoints.check_settings(run, saved, to_dict(trainer.config))
    return 0, None


@contextmanager
def stop_requests(notice: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Turns Ctrl-C and SIGTERM into a flag while the block runs; a second Ctrl-C is immediate."""
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        asked.append(number)
        notice()
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # Not in the main thread, in a notebook's worker for example.
        before = {}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Run:
    """A run in its folder; `train` does everything."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        listener: Listener,
        resume: bool = False,
        wandb: str | None = None,
    ):
        """Checks everything, takes memory, and then creates the folder; see `train`."""
        self.config, self.folder, self.listener = config, folder, listener
        check_folder(folder, resume)
        self.trainer: Trainer = make_trainer(config)
        self.step, self.state = restore(folder, self.trainer) if resume else (0, None)
        memory = memory_needed(self.trainer)
        require_memory(memory, device_memory(list(self.trainer.mesh.devices.flat)), config)
        listener.begun(config, self.step, memory)
        if self.state is None:
            self.state = self.trainer.initialise(config.training.seed)
        self.metrics = self._open_metrics(wandb, resume)
        self.checkpoints = checkpoints.Checkpoints(
            folder, config, self.step, self.trainer.mesh.size
        )
        self.best = self._best_so_far()
        # The final evaluation flies the same program, batch after batch.
        self._evaluate = evaluator(
            self.trainer.env, self.trainer.policy, config.evaluation.episodes
        )

    def _open_metrics(self, wandb: str | None, resume: bool) -> MetricsWriter:
        config, folder = self.config, self.folder
        existed = folder.exists()
        make_folder(folder, config)
        boards: list[Board] = []
        try:
            if wandb is not None:
                boards.append(WeightsAndBiases(wandb, folder, config))
        except BaseException:
            if not resume:
                (folder / SETTINGS).unlink()
            if not existed:
                folder.rmdir()
            raise
        boards.append(TensorBoard(folder, config, self.env_steps))
        return MetricsWriter(folder, boards, self.env_steps)

    @property
    def env_steps(self) -> int:
        """Env steps so far."""
        return self.step * self.config.chunk_steps

    def train(self, asked: Callable[[], bool]) -> Report | None:
        """Trains to the budget; returns the final evaluation, or None when asked to stop."""
        report = None
        # The boards close last: they may be slow, and be interrupted.
        with closing(self.metrics), closing(self.checkpoints):
            if finished := self._loop(asked):
                report = self.finish()
            else:
                self.checkpoints.save("latest", self.step, self.state)
        if finished:
            self.listener.finished()
        else:
            self.listener.stopped(self.step)
        return report

    def _best_so_far(self) -> float:
        reports = (r for r in read(self.folder) if r["kind"] == "evaluation")
        return max((r["return"] for r in reports), default=-np.inf)

    def _loop(self, asked: Callable[[], bool]) -> bool:
        config = self.config
        every_report = max(1, config.chunks // REPORTS)
        every_save = interval(config.checkpoint.every_episodes, config)
        every_evaluation = interval(config.evaluation.every_episodes, config)
        pending: list[dict[str, jax.Array]] = []
        since = time.perf_counter()
        while self.step < config.chunks:
            if asked():
                return False
            self.state, metrics = self.trainer.chunk(self.state)
            self.step += 1
            pending.append(metrics)
            if len(pending) >= AHEAD:
                jax.block_until_ready(pending[-AHEAD])
            self.listener.advanced(self.step)
            if self.step % every_report == 0 or self.step == config.chunks:
                figures = jax.device_get(pending)
                now = time.perf_counter()
                self._report(figures, len(pending) * config.chunk_steps / (now - since))
                pending, since = [], now
            if self.step % every_evaluation == 0:
                jax.block_until_ready(metrics)
                started = time.perf_counter()
                self._select()
                since += time.perf_counter() - started
            if self.step % every_save == 0:
                self.checkpoints.save("latest", self.step, self.state)
        return True

    def _report(self, figures: list[dict[str, np.ndarray]], speed: float) -> None:
        """Writes the means since the last report; None where no episode ended."""
        ended = float(sum(f["episodes"] for f in figures))
        report: Report = {
            "kind": "training",
            "env_steps": self.env_steps,
            "episodes": float(self.state.episodes),
            "env_steps_per_second": round(speed, 1),
        }
        for name in ("loss", "mean_q", "gradient_norm"):
            report[name] = float(np.mean([f[name] for f in figures]))
        report["epsilon"] = float(figures[-1]["epsilon"])
        for name in (*METRICS, "length"):
            total = float(sum(f[name] for f in figures))
            report[name] = total / ended if ended else None
        self.metrics.write(report)
        self.listener.trained(report)

    def _select(self) -> None:
        """Evaluates the averaged weights; keeps the best checkpoint by return."""
        config = self.config.evaluation
        self.listener.doing(f"flying {config.episodes} unseen cities")
        parameters = self.state.learner.average["agent"]
        metrics, _ = self._evaluate(parameters, config.seed, config.episodes, SELECTION)
        report = self._evaluation_report(metrics, config.episodes, final=False)
        self.metrics.write(report)
        if report["return"] > self.best:
            self.best = report["return"]
            self.checkpoints.save("best", self.step, self.state)
        self.listener.evaluated(report)

    def _evaluation_report(
        self, metrics: dict[str, np.ndarray], episodes: int, final: bool
    ) -> Report:
        summary = summarise(metrics)
        return {
            "kind": "evaluation",
            "env_steps": self.env_steps,
            "final": final,
            "episodes": episodes,
            **summary,
            "success": success(summary, self.config.evaluation),
        }

    def finish(self) -> Report:
        """The final checkpoint, evaluation, picture and replay."""
        config, folder = self.config, self.folder
        episodes = config.evaluation.final_episodes
        self.checkpoints.save("final", self.step, self.state)
        parameters = self.state.learner.average["agent"]
        self.listener.doing(f"flying {episodes} unseen cities for the final evaluation")
        metrics, _ = self._evaluate(parameters, config.evaluation.seed, episodes)
        report = self._evaluation_report(metrics, episodes, final=True)
        self.metrics.write(report)
        whole = report | {"coverage_over_time": coverage_over_time(metrics)}
        (folder / FINAL).write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
        self.listener.evaluated(report)
        self.listener.doing("drawing the curves and a replay")
        self._pictures(parameters)
        return report

    def _pictures(self, parameters: Any) -> None:
        from jaxqmix.render import render
        from jaxqmix.render.curves import load_runs, plot_runs

        plot_runs(load_runs([self.folder]), self.folder / "curves.png")
        episode = record_episode(self.trainer, parameters, self.config.evaluation.seed)
        replay = self.folder / "replay.gif"
        title = f"{self.config.learner.mixer} in {self.config.preset}"
        render(episode, replay, cell_size=self.config.env.cell_size, title=title)
        self.metrics.write_replay(replay, self.env_steps)


def record_episode(trainer: Trainer, parameters: Any, seed: int) -> Any:
    """One recorded episode of a policy over the first held-out city."""
    fly = evaluator(trainer.env, trainer.policy, 1, keep=True)
    _, episodes = fly(parameters, seed, 1)
    return jax.tree.map(lambda leaf: leaf[0], episodes)


def train(
    config: RunConfig,
    out: str | Path,
    resume: bool = False,
    listener: Listener | None = None,
    wandb: str | None = None,
) -> Report | None:
    """Trains a run in a folder.

    Args:
      config: the run; `jaxqmix.preset(name)` gives one.
      out: the run's folder; must be empty or new, unless `resume`.
      resume: continue from the newest checkpoint there; the state goes on bit for bit on the same
        machine, versions and number of devices.
      listener: hears of the progress.
      wandb: also log to this project of Weights & Biases (extra `wandb`).

    Returns:
      The final evaluation (see `metrics.jsonl`), or None when it was asked to stop early.

    Raises:
      ConfigError: on an output folder in use, or a checkpoint that does not fit.
    """
    listener = listener or Listener()
    if wandb is not None:
        import_wandb(wandb)
    try:
        with stop_requests(listener.stopping) as asked:
            return Run(config, Path(out), listener, resume, wandb).train(asked)
    except BaseException:
        listener.failed()
        raise
