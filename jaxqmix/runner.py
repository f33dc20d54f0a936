"""The host loop: trains, reports, evaluates, saves, and stops when asked."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import signal
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxqmix import checkpoints
from jaxqmix.background import Background
from jaxqmix.compilation import compile_ahead, jit, require_float32, require_no_fork
from jaxqmix.config import (
    LostProcessError,
    NotFiniteError,
    RunConfig,
    from_dict,
    shown,
    to_dict,
)
from jaxqmix.distributed import device_memory, dispatches_ahead
from jaxqmix.env.base import Environment
from jaxqmix.evaluation import (
    SELECTION,
    evaluator,
    metric_order,
    progress_over_time,
)
from jaxqmix.folders import (
    JOURNAL,
    Report,
    RunFolder,
    SilentFolder,
    check_folder,
    has_checkpoints,
    make_folder,
)
from jaxqmix.hyperparameters import stacked
from jaxqmix.locking import locked
from jaxqmix.memory import memory_needed, require_memory
from jaxqmix.metrics import (
    SETTINGS,
    import_wandb,
    local_path,
)
from jaxqmix.processes import (
    agree,
    all_do,
    by_first,
    fetch,
    is_first,
    is_lost_process,
    require_same,
    several,
)
from jaxqmix.provenance import Journal
from jaxqmix.training import (
    Metrics,
    Trainer,
    TrainState,
    in_world,
    make_trainer,
    report_interval,
)

DISPATCH_SECONDS = 0.5
"""Iterations sent to the devices at once take about so long: a bar moves, and Ctrl-C is heard."""


class Callback:
    """Hears of a run's progress; the command line overrides what it shows."""

    def on_start(self, config: RunConfig, step: int, memory: dict[str, int]) -> None:
        """The run starts at this iteration (0, or where it resumes) and takes so many bytes."""

    def on_compiling(self, programs: Sequence[str]) -> None:
        """These programs are still being compiled."""

    def on_compiled(self, seconds: float, programs: int, cached: int) -> None:
        """So many programs are compiled, some of them from the cache."""

    def on_advance(self, step: int) -> None:
        """Training has come to this iteration."""

    def on_training_report(self, report: Report) -> None:
        """A training report was written."""

    def on_activity(self, what: str) -> None:
        """Something other than training begins, and may take seconds."""

    def on_evaluation(self, report: Report) -> None:
        """An evaluation was written."""

    def on_stopping(self) -> None:
        """A signal handler heard the wish to stop; training does after this dispatch."""

    def on_stopped(self, step: int) -> None:
        """The run stopped as asked, and is saved."""

    def on_finish(self) -> None:
        """Everything is written."""

    def on_failure(self) -> None:
        """The run ends with an error."""


def interval(episodes: int, config: RunConfig) -> int:
    """Iterations in so many episodes of full length, at least 1."""
    return max(1, round(episodes * config.env.horizon / config.iteration_steps))


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


UNREAD = (errno.EPIPE, errno.EIO, errno.EBADF, errno.EINVAL)
"""What writing fails with when nobody reads any more: pipes, terminals, and Windows."""


class Audience:
    """A callback that may leave, as `head` does or a terminal that is closed: the run then stops
    as if it were asked to, as it does when a file that the callback writes cannot be written."""

    def __init__(self, callback: Any):
        self._callback = callback
        self.left: BaseException | None = None

    def __getattr__(self, name: str) -> Callable[..., None]:
        tell = getattr(self._callback, name)

        def told(*news: Any, **more: Any) -> None:
            try:
                if not self.left:
                    tell(*news, **more)
            except (OSError, SystemExit) as error:  # rich makes the first the second
                self.left = error

        return told

    def require(self) -> None:
        """Raises `BrokenPipeError` when it has left, or what it failed with."""
        if isinstance(self.left, OSError) and self.left.errno not in UNREAD:
            raise self.left
        if self.left:
            raise BrokenPipeError


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
    """A run, or runs side by side that differ by the seed and by `hyperparameters.TRACED`; `train`
    does everything."""

    def __init__(
        self,
        configs: Sequence[RunConfig],
        folders: Sequence[Path],
        callback: Callback,
        resume: bool = False,
        wandb: str | None = None,
        seeds: int | None = None,
        env: Environment | None = None,
    ):
        """Checks everything, compiles, takes memory, and creates the folders; see `train`.

        Args:
          configs: of the runs.
          folders: one each.
          callback: hears of the progress.
          resume: whether the folders hold the runs already.
          wandb: as of `train`.
          seeds: as of `make_trainer`.
          env: as of `make_trainer`.
        """
        configs = [in_world(config, env) for config in configs]
        self.config, self.callback = configs[0], callback
        told = json.dumps([[to_dict(config) for config in configs], list(map(str, folders))])
        allowed = "each must be begun with the same settings and the same --out"
        require_same("processes", told, allowed)
        began = time.perf_counter()
        self.trainer: Trainer = make_trainer(self.config, seeds, env, values=stacked(configs))
        self.step, state = 0, None
        if resume:
            self.step, state = all_do(lambda: self.restore(configs, folders))
            allowed = "they read different checkpoints: is --out a shared folder?"
            require_same("processes", str(self.step), allowed)
        callback.on_start(self.config, self.step, self._require_room(folders))
        # The final evaluation flies the same program, batch after batch, and records an episode.
        self._evaluate = evaluator(
            self.trainer.env,
            self.trainer.policy,
            self.config.evaluation.episodes,
            record="none" if self.trainer.env.recorder is None else "first",
            seeds=seeds,
            domains=self.trainer.domains,
        )
        programs = self._compile(begin=state is None)
        if state is None:
            chosen = np.array([config.training.seed for config in configs], np.uint32)
            state = programs["first state"](chosen[0] if seeds is None else chosen)
        self.state: TrainState = state
        self._iterate, self._copy = programs["training"], programs["copy"]
        self._evaluate = dataclasses.replace(self._evaluate, fly=programs["evaluation"])
        runs, devices = list(zip(configs, folders, strict=True)), self.trainer.mesh.size

        def open_folder(config: RunConfig, folder: Path) -> RunFolder:
            if not is_first():
                return SilentFolder(config, folder)
            make_folder(folder, config)
            return RunFolder(config, folder, self.step, devices, resume, wandb)

        self.runs = all_do(lambda: [open_folder(*run) for run in runs])
        self.journals = [
            Journal(folder / JOURNAL, self.env_steps, began, len(folders))
            for folder in (folders if is_first() else ())
        ]
        self.background = Background()
        self._clock = Clock(self.config.iteration_steps)

    def _require_room(self, folders: Sequence[Path]) -> dict[str, int]:
        """The memory that the runs take; raises `ConfigError` where that, or the disk, is less."""
        memory, shapes = memory_needed(self.trainer), self.trainer.state_shapes
        if several():  # A save gathers the state on every device.
            memory["checkpoint"] *= self.trainer.mesh.size
        available = device_memory(list(self.trainer.mesh.devices.flat))
        all_do(lambda: require_memory(memory, available, self.config, len(folders)))
        by_first(lambda: checkpoints.require_space(folders, self.config, shapes))
        return memory

    def restore(
        self, configs: Sequence[RunConfig], folders: Sequence[Path]
    ) -> tuple[int, TrainState | None]:
        """The step and state to resume at; see `restore`."""
        return restore(folders[0], self.trainer)

    def _compile(self, begin: bool) -> dict[str, Callable]:
        """Compiles the programs of the run side by side; `begin` for the first state too."""
        trainer, state = self.trainer, self.trainer.state_shapes
        parameters = state.learner.ema["agent"]
        copy = jit(partial(jax.tree.map, jnp.copy), once=True)
        programs: dict[str, tuple[Any, tuple]] = {
            "training": (trainer.iterate, (state, jax.ShapeDtypeStruct((), np.int32))),
            "evaluation": (self._evaluate.fly, self._evaluate.shapes(parameters)),
            "first state": (trainer.begin, (trainer.seed_shape,)),
            "copy": (copy, (state,)),
        }
        if not begin:
            del programs["first state"]
        compiled, effort = compile_ahead(programs, self.callback.on_compiling)
        self.callback.on_compiled(**effort)
        return compiled

    @property
    def env_steps(self) -> int:
        """Env steps of a run so far."""
        return self.step * self.config.iteration_steps

    def train(self, asked: Callable[[], bool]) -> list[Report] | None:
        """Trains to the budget; returns the final evaluations, or None when asked to stop."""
        reports = None
        try:
            with ExitStack() as stack:
                # The background first, for it writes to the others; the loggers last: they may be
                # slow.
                for run in self.runs:
                    stack.enter_context(closing(run.metrics))
                stack.enter_context(closing(self.background))
                if finished := self._loop(asked):
                    reports = self.finish()
                else:
                    self._save(latest=self.runs)
        except BaseException:
            self._end("failed")
            raise
        self._end("finished" if finished else "stopped")
        agree(0)  # The others wait until the first has written all.
        if finished:
            self.callback.on_finish()
        else:
            self.callback.on_stopped(self.step)
        return reports

    def _end(self, outcome: str) -> None:
        for journal in self.journals:
            journal.end(outcome, self.env_steps)

    def _loop(self, asked: Callable[[], bool]) -> bool:
        """Trains until the budget is used up or the user asks to stop; whether it came to the end.

        A GPU never waits for reports, unless several processes agree first: the next iterations
        are sent before the last ones' are written. Evaluations and saves need the state, and come
        before the next iterations.
        """
        config = self.config
        every_report = report_interval(config)
        every_save = interval(config.checkpoint.every_episodes, config)
        every_evaluation = interval(config.evaluation.every_episodes, config)
        sent: deque[Callable[[], None]] = deque()
        self._clock.start()
        while self.step < config.iterations:
            stop, at_once = self._agreed(asked())
            if stop:
                break
            until = min(n - self.step % n for n in (every_report, every_save, every_evaluation))
            count = min(until, config.iterations - self.step, at_once)
            self.state, metrics = self._iterate(self.state, np.int32(count))
            self.step += count
            report = self.step % every_report == 0 or self.step == config.iterations
            sent.append(partial(self._advance, self.step, count, metrics, report))
            evaluate, save = self.step % every_evaluation == 0, self.step % every_save == 0
            while len(sent) > (0 if evaluate or save else dispatches_ahead()):
                sent.popleft()()
            better: Sequence[RunFolder] = ()
            if evaluate:
                with self._clock.paused():
                    better = self._select()
            if better or save:
                # Runs side by side resume at a step that all have, and `best` holds one each: the
                # first save of one is everyone's, and is there before a former best goes.
                saved = checkpoints.steps_of(self.runs[0].folder, "latest")
                all_of_them = save or (len(self.runs) > 1 and not saved)
                self._save(latest=self.runs if all_of_them else (), best=better)
        while sent:
            sent.popleft()()
        return self.step >= config.iterations

    def _agreed(self, asked: bool) -> tuple[bool, int]:
        """Whether any process was asked to stop, and how many iterations to send at once."""
        at_once = self._clock.iterations_at_once()
        told = agree(-at_once if asked else at_once)
        return any(each < 0 for each in told), abs(told[0])

    def _advance(self, step: int, count: int, metrics: Metrics, report: bool) -> None:
        """Waits for iterations that were sent; checks them, and writes a report where one is due.

        Raises:
          NotFiniteError: naming what was not finite, and when.
        """
        each = self.trainer.split(fetch(metrics))
        self._clock.done(count)
        for run, own in zip(self.runs, each, strict=True):
            require_finite(own, run.config, run.folder if len(self.runs) > 1 else None)
        self.callback.on_advance(step)
        if report:
            speed = self._clock.env_steps_per_second()
            rows = [training_report(own, step, self.config, speed) for own in each]
            for run, row in zip(self.runs, rows, strict=True):
                self.background.submit(run.metrics.write, row)
            self.callback.on_training_report(together(rows))

    def _save(self, **kinds: Sequence[RunFolder]) -> None:
        """Saves the states of these runs by kind, beside what comes next: a copy of them, for
        training gives them away. There is room for one: the last must have been written."""
        self.background.wait()
        savers = [
            (self.runs.index(run), run.saver(kind, self.step))
            for kind, runs in kinds.items()
            for run in runs
        ]
        # Of several processes all take part in this, and not in a thread: their order must be one.
        copy = fetch(self.state) if several() else self._copy(self.state)

        def save() -> None:
            states = self.trainer.split(jax.device_get(copy))
            for number, saver in savers:
                saver(states[number])

        self.background.submit(save)

    def _select(self) -> list[RunFolder]:
        """Evaluates the EMA weights; the runs whose return was never as good."""
        config = self.config.evaluation
        self.callback.on_activity(f"flying {config.episodes} unseen cities")
        parameters = self.state.learner.ema["agent"]
        metrics, _ = self._evaluate(parameters, config.seed, config.episodes, SELECTION)
        reports, better = [], []
        for run, own in zip(self.runs, self.trainer.split(metrics, axis=1), strict=True):
            report = run.evaluation_report(own, self.step)
            self.background.submit(run.metrics.write, report)
            reports.append(report)
            if agree(report["return"] > run.best)[0]:  # as the first says
                run.best = report["return"]
                better.append(run)
        self.callback.on_evaluation(together(reports))
        return better

    def finish(self) -> list[Report]:
        """The final checkpoints, evaluations, pictures and replays."""
        config = self.config.evaluation
        self._save(final=self.runs)
        parameters = self.state.learner.ema["agent"]
        self.callback.on_activity(
            f"flying {config.final_episodes} unseen cities for the final evaluation"
        )
        metrics, recorded = self._evaluate(parameters, config.seed, config.final_episodes)
        each = self.trainer.split(metrics, axis=1)
        reports = [
            run.evaluation_report(own, self.step, final=True)
            for run, own in zip(self.runs, each, strict=True)
        ]
        for run, report in zip(self.runs, reports, strict=True):
            self.background.submit(run.metrics.write, report)
        self.background.wait()
        progress = self.trainer.env.mission.progress
        for run, report, own in zip(self.runs, reports, each, strict=True):
            run.write_final(report | {f"{progress}_over_time": progress_over_time(own, progress)})
        self.callback.on_evaluation(together(reports))
        self.callback.on_activity("drawing the curves and a replay")
        first = jax.tree.map(lambda leaf: leaf[0], recorded)
        episodes = self.trainer.split(first) if first is not None else [None] * len(self.runs)
        for run, episode in zip(self.runs, episodes, strict=True):
            run.draw(episode, self.step)
        return reports


def together(reports: Sequence[Report]) -> Report:
    """The report of a run; of several, the mean of each figure, with their own under `seeds`."""
    if len(reports) == 1:
        return reports[0]
    mean: Report = {"seeds": list(reports)}
    for name, first in reports[0].items():
        # Worlds differ in a sweep, and one may lack a figure.
        values = [value for report in reports if (value := report.get(name)) is not None]
        if isinstance(first, dict):  # success
            mean[name] = {key: all(value[key] for value in values) for key in first}
        elif values and isinstance(values[0], float):
            mean[name] = sum(values) / len(values)
        elif not isinstance(first, list):  # The same for all, unless an interval.
            mean[name] = first
    return mean


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


def require_finite(metrics: Metrics, config: RunConfig, beside: Path | None = None) -> None:
    """Raises `NotFiniteError` naming the first metric that was not finite, and the env step.

    Args:
      metrics: of one run.
      config: its settings.
      beside: its folder, where others are trained beside it, which may go on without it.
    """
    found = [(int(step), name) for name, step in metrics.not_finite.items() if step]
    if found:
        step, name = min(found, key=lambda item: item[0])
        learner = config.learner
        others = f"; runs other than {beside} can be resumed one by one" if beside else ""
        raise NotFiniteError(
            f"{name.replace('_', ' ')} is not finite after {step * config.iteration_steps:,} env "
            f"steps of seed {config.training.seed}; lower learner.learning_rate = "
            f"{learner.learning_rate:g} or learner.max_gradient_norm = "
            f"{learner.max_gradient_norm:g}; the checkpoints hold the last finite states{others}"
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
    for name, total in metrics.learner.items():
        report[name] = float(total / metrics.iterations)
    report["epsilon"] = float(metrics.epsilon)
    steps = float(metrics.iterations) * config.iteration_steps
    report["valid_share"] = float(metrics.episodes["flown"]) / steps
    for name in sorted(metrics.episodes.keys() - {"episodes", "flown"}, key=metric_order):
        report[name] = float(metrics.episodes[name]) / ended if ended else None
    return report


def train(
    config: RunConfig,
    out: str | Path,
    resume: bool = False,
    callback: Callback | None = None,
    wandb: str | None = None,
    env: Environment | None = None,
) -> Report | None:
    """Trains a run in a folder.

    Args:
      config: the run; `jaxqmix.preset(name)` gives one.
      out: the run's folder; must be empty or new, unless `resume`.
      resume: continue from the newest checkpoint there; the state goes on bit for bit on the same
        machine, versions and number of devices.
      callback: hears of the progress.
      wandb: also log to this project of Weights & Biases (extra `wandb`).
      env: the world, where it is another than the config's.

    Returns:
      The final evaluation (see `metrics.jsonl`), or None when it was asked to stop early.

    Raises:
      ConfigError: on an output folder in use, or a checkpoint that does not fit.
    """
    if wandb is not None:
        by_first(lambda: import_wandb(wandb))
    folder = local_path("out", out)
    given = Path(out).expanduser()  # An error names it as it was given.
    by_first(lambda: check_folder(given, resume))
    run = partial(Run, [config], [folder], wandb=wandb, env=env)
    reports = begin(run, [folder], resume, callback or Callback())
    return reports[0] if reports else None


def hold(folder: Path, resume: bool, locks: ExitStack) -> None:
    """Locks a run's folder; raises `ConfigError` where another process has it, or another run."""
    locks.enter_context(locked(folder))
    check_folder(folder, resume)  # Once more: another may have begun there since.


def begin(
    make_run: Callable[..., Run], folders: Sequence[Path], resume: bool, callback: Callback
) -> list[Report] | None:
    """Holds the folders of runs, and trains them until they end or are asked to stop.

    Args:
      make_run: makes the runs, from `callback` and `resume`.
      folders: of the runs.
      resume: whether the folders hold the runs already.
      callback: hears of the progress.

    Returns:
      As of `Run.train`.
    """
    require_no_fork()
    require_float32()
    audience = Audience(callback)
    try:
        with ExitStack() as locks:
            for folder in folders:
                by_first(partial(hold, folder, resume, locks))
            # Until it trains there is nothing to save: signals end the process as any other.
            run = make_run(callback=cast(Callback, audience), resume=resume)
            with stop_requests(audience.on_stopping) as asked:
                reports = run.train(lambda: asked() or audience.left is not None)
        audience.require()
        return reports
    except BaseException as error:
        callback.on_failure()
        if several() and is_lost_process(error):
            raise LostProcessError(
                f"process {jax.process_index()} of this run lost another one, and ends; begin all "
                f"of them again with --resume ({shown(error)})"
            ) from None
        raise
