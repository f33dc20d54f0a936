"""The host loop: trains, reports, evaluates, saves, and stops when asked."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxqmix import checkpoints
from jaxqmix.config import ConfigError, RunConfig, to_dict
from jaxqmix.evaluation import METRICS, SELECTION, evaluator, success, summarise
from jaxqmix.metrics import MetricsWriter, read
from jaxqmix.training import Trainer, make_trainer

REPORTS = 100
"""Training reports in a whole run."""

Report = dict[str, Any]


class Listener:
    """Hears of a run's progress; the command line overrides what it shows."""

    def begun(self, config: RunConfig, step: int) -> None:
        """The run starts at this rollout (0, or where it resumes)."""

    def advanced(self, step: int) -> None:
        """One more rollout was dispatched."""

    def trained(self, report: Report) -> None:
        """A training report was written."""

    def evaluated(self, report: Report) -> None:
        """An evaluation was written."""

    def stopped(self, step: int) -> None:
        """The run was asked to stop, and saved."""

    def finished(self) -> None:
        """Everything is written."""

    def failed(self) -> None:
        """The run ends with an error."""


def interval(episodes: int, config: RunConfig) -> int:
    """Rollouts of all swarms in so many episodes of full length, at least 1."""
    return max(1, round(episodes * config.env.horizon / config.chunk_steps))


def open_run(config: RunConfig, run: Path, resume: bool) -> None:
    """Checks the output folder and creates it.

    Raises:
      ConfigError: when it holds another run, or holds none to resume.
    """
    used = run.exists() and (not run.is_dir() or any(run.iterdir()))
    if resume:
        checkpoints.require_found(used, run)
        return
    if used:
        raise ConfigError(
            f"out = {run} is not allowed: it is not empty; add --resume to continue the run "
            "there, or choose another --out"
        )
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.json").write_text(json.dumps(to_dict(config), indent=2) + "\n", encoding="utf-8")


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Turns Ctrl-C and SIGTERM into a flag while the block runs; a second Ctrl-C is immediate."""
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        asked.append(number)
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

    def __init__(self, config: RunConfig, run: Path, resume: bool, listener: Listener):
        self.config, self.folder, self.listener = config, run, listener
        self.trainer: Trainer = make_trainer(config)
        open_run(config, run, resume)
        if resume:
            self.step, self.state = checkpoints.restore(run, self.trainer)
        else:
            self.step, self.state = 0, self.trainer.initialise(config.training.seed)
        self.checkpoints = checkpoints.Checkpoints(run, config)
        self.metrics = MetricsWriter(run, self.env_steps)
        self.best = -np.inf
        episodes = config.evaluation.episodes
        self._evaluate = evaluator(
            self.trainer.env, self.trainer.policy, episodes, stream=SELECTION
        )

    @property
    def env_steps(self) -> int:
        """Env steps so far."""
        return self.step * self.config.chunk_steps

    def train(self) -> Report | None:
        """Trains to the budget; returns the final evaluation, or None when asked to stop."""
        self.listener.begun(self.config, self.step)
        self.best = self._best_so_far()
        report = None
        try:
            with stop_requests() as asked:
                if finished := self._loop(asked):
                    report = self.finish()
                else:
                    self.checkpoints.save("latest", self.step, self.state)
        finally:
            self.metrics.close()
            self.checkpoints.close()
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
            self.listener.advanced(self.step)
            if self.step % every_report == 0 or self.step == config.chunks:
                figures = jax.device_get(pending)
                now = time.perf_counter()
                self._report(figures, len(pending) * config.chunk_steps / (now - since))
                pending, since = [], now
            if self.step % every_evaluation == 0:
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
        metrics, _ = self._evaluate(
            self.state.learner.average["agent"], self.config.evaluation.seed
        )
        report = self._evaluation_report(metrics, self.config.evaluation.episodes, final=False)
        if report["return"] > self.best:
            self.best = report["return"]
            self.checkpoints.save("best", self.step, self.state, self.best)
        self.metrics.write(report)
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
        self.checkpoints.save("final", self.step, self.state)
        parameters = self.state.learner.average["agent"]
        evaluate = evaluator(
            self.trainer.env,
            self.trainer.policy,
            config.evaluation.final_episodes,
        )
        metrics, _ = evaluate(parameters, config.evaluation.seed)
        report = self._evaluation_report(metrics, config.evaluation.final_episodes, final=True)
        self.metrics.write(report)
        (folder / "evaluation.json").write_text(json.dumps(report, indent=2) + "\n")
        self.listener.evaluated(report)
        self._pictures(parameters)
        return report

    def _pictures(self, parameters: Any) -> None:
        from jaxqmix.render import render
        from jaxqmix.render.curves import plot_runs

        plot_runs([self.folder], self.folder / "curves.png")
        episode = record_episode(self.trainer, parameters, self.config.evaluation.seed)
        render(episode, self.folder / "replay.gif", cell_size=self.config.env.cell_size)


def record_episode(trainer: Trainer, parameters: Any, seed: int) -> Any:
    """One recorded episode of a policy over the first held-out city."""
    fly = evaluator(trainer.env, trainer.policy, 1, keep=True)
    _, episodes = fly(parameters, seed)
    return jax.tree.map(lambda leaf: leaf[0], episodes)


def train(
    config: RunConfig, out: str | Path, resume: bool = False, listener: Listener | None = None
) -> Report | None:
    """Trains a run in a folder.

    Args:
      config: the run; `jaxqmix.preset(name)` gives one.
      out: the run's folder; must be empty or new, unless `resume`.
      resume: continue from the newest checkpoint there, bit for bit.
      listener: hears of the progress.

    Returns:
      The final evaluation (see `metrics.jsonl`), or None when it was asked to stop early.

    Raises:
      ConfigError: on an output folder in use, or a checkpoint that does not fit.
    """
    listener = listener or Listener()
    try:
        return Run(config, Path(out), resume, listener).train()
    except BaseException:
        listener.failed()
        raise
