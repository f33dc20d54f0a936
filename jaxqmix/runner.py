"""The host loop: trains, reports, evaluates, saves, and stops when asked."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxqmix import checkpoints
from jaxqmix.background import Background
from jaxqmix.compilation import compile_ahead, jit, require_float32, require_no_fork
from jaxqmix.config import ConfigError, NotFiniteError, RunConfig, from_dict, require, to_dict
from jaxqmix.distributed import device_memory, dispatches_ahead
from jaxqmix.evaluation import (
    SELECTION,
    coverage_over_time,
    evaluator,
    success,
    summarise,
)
from jaxqmix.locking import LOCK, locked
from jaxqmix.metrics import (
    FINAL,
    SETTINGS,
    Board,
    MetricsWriter,
    TensorBoard,
    WeightsAndBiases,
    check_writable,
    finite,
    import_wandb,
    local_path,
    not_written,
)
from jaxqmix.provenance import Journal
from jaxqmix.rollout import METRICS
from jaxqmix.training import (
    MEANS,
    Metrics,
    Trainer,
    TrainState,
    make_trainer,
    memory_needed,
    report_interval,
    require_memory,
)
from jaxqmix.types import Episode

DISPATCH_SECONDS = 0.5
"""Iterations sent to the devices at once take about so long: a bar moves, and Ctrl-C is heard."""

JOURNAL = "run.json"
"""In a run's folder: versions, commit, device, day and wall time of each process of the run."""

LEFT = (LOCK, f".{SETTINGS}")
"""What a process may leave that was killed before it had a run's settings written."""

Report = dict[str, Any]


class Listener:
    """Hears of a run's progress; the command line overrides what it shows."""

    def begun(self, config: RunConfig, step: int, memory: dict[str, int]) -> None:
        """The run starts at this iteration (0, or where it resumes) and takes so many bytes."""

    def compiling(self, programs: Sequence[str]) -> None:
        """These programs are still being compiled."""

    def compiled(self, seconds: float, programs: int, cached: int) -> None:
        """So many programs are compiled, some of them from the cache."""

    def advanced(self, step: int) -> None:
        """Training has come to this iteration."""

    def trained(self, report: Report) -> None:
        """A training report was written."""

    def doing(self, what: str) -> None:
        """Something other than training begins, and may take seconds."""

    def evaluated(self, report: Report) -> None:
        """An evaluation was written."""

    def stopping(self) -> None:
        """A signal handler heard the wish to stop; training does after this dispatch."""

    def stopped(self, step: int) -> None:
        """The run stopped as asked, and is saved."""

    def finished(self) -> None:
        """Everything is written."""

    def failed(self) -> None:
        """The run ends with an error."""


def interval(episodes: int, config: RunConfig) -> int:
    """Iterations in so many episodes of full length, at least 1."""
    return max(1, round(episodes * config.env.horizon / config.iteration_steps))


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


def restore(run: Path, trainer: Trainer) -> tuple[int, TrainState | None]:
    """The step and state of a run's newest checkpoint; 0 and None when it had saved none yet.

    Raises:
      CheckpointError: when the run has other settings, or no checkpoint can be read.
    """
    try:
        saved = to_dict(from_dict(json.loads((run / SETTINGS).read_text(encoding="utf-8"))))
    except (OSError, ValueError, RecursionError):  # a `ConfigError` too
        saved = None
    if has_checkpoints(run):
        if saved is None:
            warnings.warn(
                f"{run / SETTINGS} is missing or damaged: it is written anew", stacklevel=2
            )
        return checkpoints.restore(run, trainer)
    if saved is None:
        checkpoints.refuse_missing(run)
    checkpoints.check_settings(run, saved, to_dict(trainer.config))
    warnings.warn(f"{run} holds no checkpoint: training begins anew", stacklevel=2)
    return 0, None


def write_json(path: Path, data: Any) -> None:
    """Writes a file of a run whole or not at all; what is not finite becomes null."""
    part = path.with_name(f".{path.name}")
    text = json.dumps(finite(data)[0], indent=2, allow_nan=False)
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(path)


class Audience:
    """A listener that may leave, as `head` does or a terminal that is closed: the run then stops
    as if it were asked to."""

    def __init__(self, listener: Any):
        self._listener, self.left = listener, False

    def __getattr__(self, name: str) -> Callable[..., None]:
        tell = getattr(self._listener, name)

        def told(*news: Any, **more: Any) -> None:
            try:
                if not self.left:
                    tell(*news, **more)
            except (OSError, SystemExit):  # rich makes the first the second
                self.left = True

        return told


@contextmanager
def stop_requests(notice: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Turns Ctrl-C, SIGTERM and SIGHUP into a flag while the block runs; a second Ctrl-C or
    SIGTERM is immediate."""
    numbers = [signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)]
    at_once: dict[int, Any] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
    }
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        asked.append(number)
        notice()
        if number in at_once:
            signal.signal(number, at_once[number])

    try:
        before = {number: signal.signal(number, ask) for number in dict.fromkeys(numbers)}
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
        """Checks everything, compiles, takes memory, and creates the folder; see `train`."""
        self.config, self.folder, self.listener = config, folder, listener
        began = time.perf_counter()
        check_folder(folder, resume)
        self.trainer: Trainer = make_trainer(config)
        self.step, state = restore(folder, self.trainer) if resume else (0, None)
        memory = memory_needed(self.trainer)
        require_memory(memory, device_memory(list(self.trainer.mesh.devices.flat)), config)
        checkpoints.require_space(folder, config, self.trainer.state_shapes)
        listener.begun(config, self.step, memory)
        # The final evaluation flies the same program, batch after batch, and records an episode.
        self._evaluate = evaluator(
            self.trainer.env, self.trainer.policy, config.evaluation.episodes, record="first"
        )
        programs = self._compile(begin=state is None)
        if state is None:
            state = programs["first state"](np.uint32(config.training.seed))
        self.state: TrainState = state
        self._iterate, self._copy = programs["training"], programs["copy"]
        self._evaluate = dataclasses.replace(self._evaluate, fly=programs["evaluation"])
        self.metrics = self._open_metrics(wandb, resume)
        self.journal = Journal(folder / JOURNAL, self.env_steps, began)
        self.checkpoints = checkpoints.Checkpoints(
            folder, config, self.step, self.trainer.mesh.size
        )
        self.best = self._best_so_far()
        self.background = Background()
        self._clock = Clock(config.iteration_steps)

    def _compile(self, begin: bool) -> dict[str, Callable]:
        """Compiles the programs of the run side by side; `begin` for the first state too."""
        trainer, state = self.trainer, self.trainer.state_shapes
        parameters = state.learner.average["agent"]
        copy = jit(partial(jax.tree.map, jnp.copy), once=True)
        programs: dict[str, tuple[Any, tuple]] = {
            "training": (trainer.iterate, (state, jax.ShapeDtypeStruct((), np.int32))),
            "evaluation": (self._evaluate.fly, self._evaluate.shapes(parameters)),
            "first state": (trainer.begin, (jax.ShapeDtypeStruct((), np.uint32),)),
            "copy": (copy, (state,)),
        }
        if not begin:
            del programs["first state"]
        compiled, effort = compile_ahead(programs, self.listener.compiling)
        self.listener.compiled(**effort)
        return compiled

    def _open_metrics(self, wandb: str | None, resume: bool) -> MetricsWriter:
        config, folder = self.config, self.folder
        make_folder(folder, config)
        boards: list[Board] = []
        try:
            if wandb is not None:
                boards.append(WeightsAndBiases(wandb, folder, config))
        except BaseException:
            if not resume:
                (folder / SETTINGS).unlink()
            raise
        try:
            boards.append(TensorBoard(folder, config, self.env_steps))
            return MetricsWriter(folder, boards, self.env_steps)
        except OSError as error:
            raise not_written(folder, error) from None

    @property
    def env_steps(self) -> int:
        """Env steps so far."""
        return self.step * self.config.iteration_steps

    def train(self, asked: Callable[[], bool]) -> Report | None:
        """Trains to the budget; returns the final evaluation, or None when asked to stop."""
        report = None
        try:
            # The background first, for it writes to the others; the boards last: they may be slow.
            with closing(self.metrics), closing(self.background):
                if finished := self._loop(asked):
                    report = self.finish()
                else:
                    self._save("latest")
        except BaseException:
            self.journal.end("failed", self.env_steps)
            raise
        self.journal.end("finished" if finished else "stopped", self.env_steps)
        if finished:
            self.listener.finished()
        else:
            self.listener.stopped(self.step)
        return report

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

    def _loop(self, asked: Callable[[], bool]) -> bool:
        """Trains until the budget is used up or the user asks to stop; whether it came to the end.

        A GPU never waits for reports: the next iterations are sent before the last ones' are
        written. Evaluations and saves need the state, and come before the next iterations.
        """
        config = self.config
        every_report = report_interval(config)
        every_save = interval(config.checkpoint.every_episodes, config)
        every_evaluation = interval(config.evaluation.every_episodes, config)
        sent: deque[Callable[[], None]] = deque()
        self._clock.start()
        while self.step < config.iterations and not asked():
            until = min(n - self.step % n for n in (every_report, every_save, every_evaluation))
            count = min(until, config.iterations - self.step, self._clock.iterations_at_once())
            self.state, metrics = self._iterate(self.state, np.int32(count))
            self.step += count
            report = self.step % every_report == 0 or self.step == config.iterations
            sent.append(partial(self._advance, self.step, count, metrics, report))
            evaluate, save = self.step % every_evaluation == 0, self.step % every_save == 0
            while len(sent) > (0 if evaluate or save else dispatches_ahead()):
                sent.popleft()()
            if evaluate:
                with self._clock.paused():
                    self._select()
            if save:
                self._save("latest")
        while sent:
            sent.popleft()()
        return self.step >= config.iterations

    def _advance(self, step: int, count: int, metrics: Metrics, report: bool) -> None:
        """Waits for iterations that were sent; checks them, and writes a report where one is due.

        Raises:
          NotFiniteError: naming what was not finite, and when.
        """
        metrics = jax.device_get(metrics)
        self._clock.done(count)
        require_finite(metrics, self.config)
        self.listener.advanced(step)
        if report:
            row = training_report(metrics, step, self.config, self._clock.env_steps_per_second())
            self.background.submit(self.metrics.write, row)
            self.listener.trained(row)

    def _save(self, kind: str) -> None:
        """Saves the state, beside what comes next: a copy of it, for training gives it away."""
        notes = {"best_return": self.best if math.isfinite(self.best) else None}
        copy = self._copy(self.state)
        self.background.submit(self.checkpoints.save, kind, self.step, copy, notes)

    def _select(self) -> None:
        """Evaluates the averaged weights; keeps the best checkpoint by return."""
        config = self.config.evaluation
        self.listener.doing(f"flying {config.episodes} unseen cities")
        parameters = self.state.learner.average["agent"]
        metrics, _ = self._evaluate(parameters, config.seed, config.episodes, SELECTION)
        report = self._evaluation_report(metrics, config.episodes, final=False)
        self.background.submit(self.metrics.write, report)
        if report["return"] > self.best:
            self.best = report["return"]
            self._save("best")
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
        self._save("final")
        parameters = self.state.learner.average["agent"]
        self.listener.doing(f"flying {episodes} unseen cities for the final evaluation")
        metrics, recorded = self._evaluate(parameters, config.evaluation.seed, episodes)
        report = self._evaluation_report(metrics, episodes, final=True)
        self.background.submit(self.metrics.write, report)
        self.background.wait()
        whole = report | {"coverage_over_time": coverage_over_time(metrics)}
        write_json(folder / FINAL, whole)
        self.listener.evaluated(report)
        self.listener.doing("drawing the curves and a replay")
        self._pictures(jax.tree.map(lambda leaf: leaf[0], recorded))
        return report

    def _pictures(self, episode: Episode) -> None:
        from jaxqmix.render import render
        from jaxqmix.render.curves import load_runs, plot_runs

        plot_runs(load_runs([self.folder]), self.folder / "curves.png")
        replay = self.folder / "replay.gif"
        title = f"{self.config.learner.mixer} in {self.config.preset}"
        render(episode, replay, cell_size=self.config.env.cell_size, title=title)
        self.metrics.write_replay(replay, self.env_steps)


class Clock:
    """How fast training goes: wall time between what the devices finish, less evaluations."""

    def __init__(self, iteration_steps: int):
        self._iteration_steps = iteration_steps
        self._pace = math.inf  # seconds of an iteration

    def start(self) -> None:
        """Training begins."""
        self._last = self._reported = time.perf_counter()
        self._iterations = 0

    def done(self, iterations: int) -> None:
        """So many more iterations are computed."""
        now = time.perf_counter()
        self._pace, self._last = (now - self._last) / iterations, now
        self._iterations += iterations

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What the block takes is not training."""
        started = time.perf_counter()
        yield
        took = time.perf_counter() - started
        self._last, self._reported = self._last + took, self._reported + took

    def iterations_at_once(self) -> int:
        """Iterations that take about `DISPATCH_SECONDS`; one before any is done."""
        return max(1, int(DISPATCH_SECONDS / max(self._pace, 1e-6)))

    def env_steps_per_second(self) -> float:
        """Since this was last asked."""
        speed = self._iterations * self._iteration_steps / (self._last - self._reported)
        self._reported, self._iterations = self._last, 0
        return speed


def require_finite(metrics: Metrics, config: RunConfig) -> None:
    """Raises `NotFiniteError` naming the first metric that was not finite, and the env step."""
    found = [(int(step), name) for name, step in metrics.not_finite.items() if step]
    if found:
        step, name = min(found, key=lambda item: item[0])
        learner = config.learner
        raise NotFiniteError(
            f"{name.replace('_', ' ')} is not finite after {step * config.iteration_steps:,} env "
            f"steps; lower learner.learning_rate = {learner.learning_rate:g} or "
            f"learner.max_gradient_norm = {learner.max_gradient_norm:g}; the checkpoints hold the "
            "last finite states"
        )


def training_report(metrics: Metrics, step: int, config: RunConfig, speed: float) -> Report:
    """The report of the iterations since the last one; None where no episode ended."""
    ended = float(metrics.episodes["episodes"])
    report: Report = {
        "kind": "training",
        "env_steps": step * config.iteration_steps,
        "episodes": float(metrics.ended),
        "env_steps_per_second": round(speed, 1),
    }
    for name in MEANS:
        report[name] = float(metrics.learner[name] / metrics.iterations)
    report["epsilon"] = float(metrics.epsilon)
    for name in (*METRICS, "length"):
        report[name] = float(metrics.episodes[name]) / ended if ended else None
    return report


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
    require_no_fork()
    require_float32()
    folder, audience = local_path("out", out), Audience(listener)
    check_folder(Path(out).expanduser(), resume)  # An error names it as it was given.
    try:
        with locked(folder):
            # Until it trains there is nothing to save: signals end the process as any other.
            run = Run(config, folder, cast(Listener, audience), resume, wandb)
            with stop_requests(audience.stopping) as asked:
                report = run.train(lambda: asked() or audience.left)
        if audience.left:
            raise BrokenPipeError
        return report
    except BaseException:
        listener.failed()
        raise
