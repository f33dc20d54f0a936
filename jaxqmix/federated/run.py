"""The host loop of a federation: rounds, reports, evaluations, checkpoints, and the sites' folders.

A federation's folder is an ordinary run's, whose policy is the global one; so are those of its
sites, `sites/NAME`, whose policy is the global one too, or their own after fine-tuning.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from operator import itemgetter
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from jaxqmix import checkpoints
from jaxqmix.compilation import compile_ahead, require_float32, require_no_fork, tree_bytes
from jaxqmix.config import ConfigError, RunConfig, refuse, require
from jaxqmix.distributed import device_memory
from jaxqmix.env.mission import METRICS
from jaxqmix.evaluation import (
    EVALUATION,
    SELECTION,
    metric_order,
    progress_over_time,
    success,
    summarise,
)
from jaxqmix.federated import config as federated_config
from jaxqmix.federated import privacy
from jaxqmix.federated.config import FederationConfig
from jaxqmix.federated.evaluate import by_number, everywhere, make_evaluator, make_tuner
from jaxqmix.federated.local import ordinary
from jaxqmix.federated.rounds import Outcome, Program, make_program
from jaxqmix.federated.sites import Site, as_dicts, find_sites
from jaxqmix.folders import check_folder, make_folder, write_json
from jaxqmix.learner.update import QLearner
from jaxqmix.locking import locked
from jaxqmix.memory import require_memory
from jaxqmix.metrics import FINAL, MetricsWriter, TensorBoardLogger, local_path, read
from jaxqmix.runner import Audience, restore, stop_requests
from jaxqmix.types import Array, replace

FEDERATION, SITES, ROUNDS = "federation.json", "sites.json", "rounds.jsonl"
"""Files of a federation's folder: its settings, its sites, and what happened in each round."""
FOLDERS = "sites"
Report = dict[str, Any]


class Callback:
    """Hears of a federation's progress; the command line overrides what it shows."""

    def on_start(self, program: Program, step: int) -> None:
        """It starts at this round: 0, or where it resumes."""

    def on_compiling(self, programs: Sequence[str]) -> None:
        """These programs are still being compiled."""

    def on_compiled(self, seconds: float, programs: int, cached: int) -> None:
        """So many programs are compiled, some of them from the cache."""

    def on_activity(self, what: str) -> None:
        """Something begins that may take seconds."""

    def on_advance(self, step: int, report: Report) -> None:
        """A round is done."""

    def on_evaluation(self, report: Report) -> None:
        """An evaluation was written."""

    def on_stopping(self) -> None:
        """A signal handler heard the wish to stop; rounds do after this one."""

    def on_stopped(self, step: int) -> None:
        """It stopped as asked, and is saved."""

    def on_finish(self, report: Report) -> None:
        """Everything is written."""

    def on_failure(self) -> None:
        """The run ends with an error."""


class FederatedRun:
    """A federation in its folder; `train` does everything."""

    def __init__(
        self,
        config: RunConfig,
        federation: FederationConfig,
        folder: Path,
        callback: Callback,
        resume: bool = False,
    ):
        """Checks everything, then creates the folder; see `federate`."""
        self.federation, self.folder, self.callback = federation, folder, callback
        check_folder(folder, resume)
        sites, self.strangers = find_sites(federation, config)
        self.program = program = make_program(config, federation, sites)
        self.config = self._describe_run(config)
        self._require_privacy()
        shapes = program.state_shapes
        held = tree_bytes(shapes)
        require_memory(
            {"sites": held, "round": held}, device_memory(list(program.mesh.devices.flat)), config
        )
        self.step = 0
        self.state: Any = None
        if resume:
            check_same(folder, federation, sites)
            self.step, self.state = restore(folder, cast(Any, self))
        callback.on_start(program, self.step)
        self._compile(shapes)
        self._open(sites)

    def _describe_run(self, config: RunConfig) -> RunConfig:
        """The settings of the folder: of a run with the federation's budget, whose swarm is the
        first site's."""
        federation, first = self.federation, self.program.groups[0].config
        budget = federation.rounds * federation.per_round * self.program.round_steps
        training = dataclasses.replace(config.training, env_steps=budget, episodes=None)
        return dataclasses.replace(config, env=first.env, training=training)

    def _compile(self, shapes: Any) -> None:
        """Compiles the programs side by side, and makes the first state."""
        program, evaluate = self.program, self._evaluator()
        count = len(self.sites) + len(self.strangers)
        agents = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype),
            shapes.server.weights["agent"],
        )
        programs = {
            "rounds": (program.round, (shapes,)),
            "evaluation": (evaluate.fly, evaluate.shapes(agents)),
            "first state": (program.begin, (jax.ShapeDtypeStruct((), np.uint32),)),
        }
        if self.state is not None:
            del programs["first state"]
        compiled, effort = compile_ahead(programs, self.callback.on_compiling)
        self.callback.on_compiled(**effort)
        if self.state is None:
            self.state = compiled["first state"](np.uint32(self.config.training.seed))
        self._fly_round = compiled["rounds"]
        self.evaluate = dataclasses.replace(evaluate, fly=compiled["evaluation"])

    def _evaluator(self) -> Any:
        return make_evaluator(self.config, [*self.sites, *self.strangers], self.federation.episodes)

    def _open(self, sites: Sequence[Site]) -> None:
        """Creates the folders, and opens what is written to."""
        folder = self.folder
        make_folder(folder, self.config)
        write_json(folder / FEDERATION, dataclasses.asdict(self.federation))
        write_json(folder / SITES, as_dicts(sites))
        keep_rounds(folder, self.step)
        self.env_steps = steps = sum(line["env_steps"] for line in read_rounds(folder))
        self.metrics = MetricsWriter(folder, [TensorBoardLogger(folder, self.config, steps)], steps)
        self.site_metrics = []
        for number, site in enumerate(sites):
            own = folder / FOLDERS / site.name
            make_folder(own, self.site_config(number))
            # A site that was never chosen has reported nothing, and lost nothing.
            self.site_metrics.append(MetricsWriter(own, [], steps if read(own) else 0))
        self.checkpoints = checkpoints.Checkpoints(folder, self.config, self.step)

    # What `runner.restore` asks of a trainer.
    @property
    def state_shapes(self) -> Any:
        """Of the federation's state."""
        return self.program.state_shapes

    @property
    def mesh(self) -> Any:
        """Over which sites are spread."""
        return self.program.mesh

    def place(self, state: Any) -> Any:
        """Puts a state on the devices."""
        return self.program.place(state)

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites."""
        return self.program.sites

    def site_config(self, number: int) -> RunConfig:
        """The settings of a site's own run."""
        group = next(g for g in self.program.groups if number in g.sites)
        return dataclasses.replace(group.config, domain=self.sites[number].domain)

    def _require_privacy(self) -> None:
        for group in self.program.groups:
            privacy.require_budget(self.federation, len(group.sites), group.chosen)

    def epsilon_spent(self) -> float | None:
        """The most that any site has spent so far; None without privacy."""
        federation = self.federation
        if not federation.noise:
            return None
        return max(
            privacy.epsilon_spent(
                self.step, len(group.sites), group.chosen, federation.noise, federation.delta
            )
            for group in self.program.groups
        )

    def train(self, asked: Callable[[], bool], personalise: int = 0) -> Report | None:
        """Flies all rounds; returns the final evaluation, or None when asked to stop."""
        with closing(self.metrics):
            while self.step < self.federation.rounds:
                if asked():
                    self.checkpoints.save("latest", self.step, self.state)
                    self.callback.on_stopped(self.step)
                    return None
                self._round()
            report = self.finish(personalise)
        self.callback.on_finish(report)
        return report

    def _round(self) -> None:
        federation, since = self.federation, time.perf_counter()
        self.state, outcome = self._fly_round(self.state)
        outcome = jax.device_get(outcome)
        seconds, flown = time.perf_counter() - since, int(outcome.env_steps.sum())
        self.step += 1
        self.env_steps += flown
        line = self._describe(outcome)
        append_line(self.folder / ROUNDS, line)
        report = training_report(outcome, slice(None), self.env_steps) | {
            "env_steps_per_second": round(flown / seconds, 1),
            "round": self.step,
            "arrived": int(outcome.reached.sum()),
            "refused": int((outcome.reached & ~outcome.admitted).sum()),
            "bytes_up": line["bytes_up"],
            "bytes_down": line["bytes_down"],
            "epsilon_spent": line["epsilon_spent"],
        }
        self.metrics.write(report)
        for place, number in enumerate(outcome.site):
            if outcome.reached[place]:
                one = training_report(outcome, slice(place, place + 1), self.env_steps)
                self.site_metrics[number].write(one | {"round": self.step})
        self.callback.on_advance(self.step, report)
        if self.step % federation.evaluate_every == 0 and self.step < federation.rounds:
            self._evaluate(federation.episodes, SELECTION, final=False)
        if self.step % federation.checkpoint_every == 0:
            self.checkpoints.save("latest", self.step, self.state)

    def _describe(self, outcome: Outcome) -> Report:
        """What happened in a round, with the sites' names."""

        def names(mask: Array) -> list[str]:
            return [self.sites[n].name for n in outcome.site[mask]]

        said = outcome.verdicts
        reached = outcome.reached
        return {
            "round": self.step,
            "env_steps": int(outcome.env_steps.sum()),
            "chosen": names(np.ones_like(reached)),
            "away": names(~reached),
            "refused": {
                "not finite": names(said.infinite),
                "weight": names(said.weight),
            },
            "capped": names(said.capped),
            "clipped": names(said.clipped),
            "aggregated": bool(outcome.aggregated),
            "norms": [json_number(norm) for norm in np.where(reached, said.norm, np.nan)],
            "change": json_number(outcome.change),
            "bytes_up": int(reached.sum()) * self.program.bytes_up,
            "bytes_down": int(reached.sum()) * self.program.bytes_down,
            "epsilon_spent": self.epsilon_spent(),
            "clip": json_number(outcome.clip) if self.federation.noise else None,
        }

    def _evaluate(self, episodes: int, stream: int, final: bool) -> Report:
        """Flies every site's held-out cities and the strangers', and reports both."""
        self.callback.on_activity("flying every site's held-out cities")
        count = len(self.sites) + len(self.strangers)
        agent = everywhere(self.state.server.weights["agent"], count)
        seed = self.config.evaluation.seed
        flown = self.evaluate(agent, seed, episodes, stream)
        known = len(self.sites)
        for number, writer in enumerate(self.site_metrics):
            one = {name: values[number] for name, values in flown.items()}
            report = self._evaluation(one, final)
            writer.write(report)
            if final:
                folder = self.folder / FOLDERS / self.sites[number].name
                whole = report | {"coverage_over_time": progress_over_time(one, "coverage")}
                write_json(folder / FINAL, whole)
        merged = {name: np.concatenate(values[:known]) for name, values in flown.items()}
        report = self._evaluation(merged, final)
        if self.strangers:
            for name in METRICS:
                report[f"{name}_of_strangers"] = float(flown[name][known:].mean())
        self.metrics.write(report)
        self.callback.on_evaluation(report)
        if final:
            whole = report | {"coverage_over_time": progress_over_time(merged, "coverage")}
            whole["t90_by_site"] = {
                site.name: float(values.mean())
                for site, values in zip([*self.sites, *self.strangers], flown["t90"], strict=True)
            }
            write_json(self.folder / FINAL, whole)
        return report

    def _evaluation(self, metrics: dict[str, np.ndarray], final: bool) -> Report:
        summary = summarise(metrics)
        return {
            "kind": "evaluation",
            "env_steps": self.env_steps,
            "final": final,
            "episodes": len(metrics["t90"]),
            **summary,
            "success": success(summary, self.config.evaluation),
        }

    def finish(self, personalise: int) -> Report:
        """The final checkpoint, evaluation, sites' folders and pictures."""
        from jaxqmix.federated.pictures import draw_federation
        from jaxqmix.render.curves import load_runs, plot_runs

        self.checkpoints.save("final", self.step, self.state)
        report = self._evaluate(self.federation.final_episodes, EVALUATION, final=True)
        if personalise:
            report |= self._personalise(personalise)
        else:
            self._save_sites(self.state.groups)
        self.callback.on_activity("drawing")
        plot_runs(load_runs([self.folder]), self.folder / "curves.png")
        draw_federation(self.folder)
        return report

    def _personalise(self, env_steps: int) -> Report:
        """Every site trains the global policy on, on its own worlds, and flies its own cities."""
        self.callback.on_activity("fine-tuning at every site")
        states = make_tuner(self.program, env_steps)(self.state)
        agents = by_number(self.program, [state.learner.ema["agent"] for state in states])
        known, strangers = len(self.sites), len(self.strangers)
        others = everywhere(self.state.server.weights["agent"], strangers)
        agents = jax.tree.map(lambda *both: np.concatenate(both), agents, others)
        seed, episodes = self.config.evaluation.seed, self.federation.final_episodes
        flown = self.evaluate(agents, seed, episodes)
        flown = {name: values[:known] for name, values in flown.items()}
        report = {f"{name}_personalised": float(flown[name].mean()) for name in METRICS}
        names = [site.name for site in self.sites]
        by_site = dict(zip(names, flown["t90"].mean(axis=1).tolist(), strict=True))
        whole = report | {"env_steps": env_steps, "t90_by_site": by_site}
        write_json(self.folder / "personalised.json", whole)
        self._save_sites(states, own=True)
        return report

    def _save_sites(self, groups: Sequence[Any], own: bool = False) -> None:
        """A checkpoint in each site's folder, as of an ordinary run.

        Args:
          groups: the sites' states by group.
          own: whether their policies are their own, and not the global one.
        """
        weights = jax.device_get(self.state.server.weights)
        for group, states in zip(self.program.groups, jax.device_get(groups), strict=True):
            for place, number in enumerate(group.sites):
                state = ordinary(jax.tree.map(itemgetter(place), states))
                if not own:
                    parameters = state.learner.parameters | weights
                    learned = replace(state.learner, parameters=parameters, ema=parameters)
                    state = replace(state, learner=learned)
                folder = self.folder / FOLDERS / self.sites[number].name
                # A resumed run that was at its end comes here again.
                shutil.rmtree(folder / checkpoints.FOLDER, ignore_errors=True)
                writer = checkpoints.Checkpoints(folder, self.site_config(number), 0)
                writer.save("final", int(state.iterations), state)


def json_number(value: Any) -> float | None:
    """A number for JSON; None when it is infinite or NaN."""
    return float(value) if np.isfinite(value) else None


def training_report(outcome: Outcome, chosen: slice, env_steps: int) -> Report:
    """Means over a round's iterations and ended episodes, of chosen sites."""
    sums = {name: values[chosen] for name, values in outcome.metrics.items()}
    ended = float(sums["episodes"].sum())
    report: Report = {"kind": "training", "env_steps": env_steps, "episodes": ended}
    trained = outcome.reached[chosen] & np.isfinite(sums["loss"])
    for name in QLearner.metrics:
        count = float(sums["iterations"][trained].sum())
        report[name] = float(sums[name][trained].sum()) / count if count else None
    for name in sorted(
        sums.keys() - {"iterations", "episodes", "flown", *QLearner.metrics}, key=metric_order
    ):
        report[name] = float(sums[name].sum()) / ended if ended else None
    return report


def append_line(path: Path, value: Any) -> None:
    """Adds a line of JSON to a file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value) + "\n")


def read_rounds(folder: Path) -> list[Report]:
    """What happened in each round so far."""
    path = folder / ROUNDS
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError):  # A process that was killed may leave half a line.
            found.append(json.loads(line))
    return found


def read_file(folder: Path, name: str, kind: type = dict) -> Any:
    """What a file of a federation holds, a dict or a list; raises `ConfigError` when it cannot be
    read."""
    path = folder / name
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "it is damaged: it holds no JSON"
        raise ConfigError(f"file = {path} is not allowed: {reason}") from None
    if not isinstance(data, kind):
        raise ConfigError(
            f"file = {path} is not allowed: it is damaged: it holds no {kind.__name__}"
        )
    return data


def keep_rounds(folder: Path, step: int) -> None:
    """Drops what was written after the round at which a run resumes."""
    kept = [line for line in read_rounds(folder) if line["round"] <= step]
    part = folder / f".{ROUNDS}"
    part.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    part.replace(folder / ROUNDS)


def check_same(folder: Path, federation: FederationConfig, sites: Sequence[Site]) -> None:
    """Raises `ConfigError` naming the first setting or site that resuming would change."""
    path = folder / FEDERATION
    require(path.is_file(), "out", folder, "it holds no federation to resume")
    before = dataclasses.asdict(federated_config.from_dict(read_file(folder, FEDERATION)))
    for name, value in dataclasses.asdict(federation).items():
        if name not in ("evaluate_every", "checkpoint_every", "episodes", "final_episodes"):
            require(
                before[name] == value,
                name,
                value,
                f"{folder} was begun with {before[name]}, and --resume changes nothing",
            )
    same = json.loads(json.dumps(as_dicts(sites)))
    require(
        read_file(folder, SITES, list) == same,
        "population",
        federation.population,
        f"{folder} was begun with other sites",
    )


def federate(
    config: RunConfig,
    federation: FederationConfig,
    out: str | Path,
    resume: bool = False,
    callback: Callback | None = None,
    personalise: int = 0,
) -> Report | None:
    """Trains one policy at sites that never share their flights.

    Args:
      config: of each site's training; its budget is the federation's.
      federation: the sites, the rounds and the rule.
      out: the folder; must be empty or new, unless `resume`.
      resume: go on from the newest checkpoint there, bit for bit.
      callback: hears of the progress.
      personalise: env steps that each site trains on at the end, on its own worlds.

    Returns:
      The final evaluation, or None when it was asked to stop early.

    Raises:
      ConfigError: on settings that do not fit, or a folder in use.
    """
    require(personalise >= 0, "personalise", personalise, "must be at least 0")
    require_no_fork()
    require_float32()
    callback = callback or Callback()
    folder, audience = local_path("out", out), Audience(callback)
    check_folder(Path(out).expanduser(), resume)  # An error names it as it was given.
    try:
        with locked(folder):
            # Until it trains there is nothing to save: signals end the process as any other.
            run = FederatedRun(config, federation, folder, cast(Callback, audience), resume)
            with stop_requests(audience.on_stopping) as asked:
                report = run.train(lambda: asked() or audience.left is not None, personalise)
        audience.require()
        return report
    except BaseException:
        callback.on_failure()
        raise


def site_folder(run: Path, site: str | int) -> Path:
    """The folder of a site of a federation, by name or number; raises `ConfigError` when there is
    none."""
    folders = sorted(path.name for path in (run / FOLDERS).glob("*") if path.is_dir())
    if not folders:
        raise ConfigError(f"site = {site} is not allowed: {run} is no federation's folder")
    name = next((n for n in folders if n == str(site)), None)
    if name is None and str(site).isdecimal():
        listed = [each["name"] for each in read_file(run, SITES, list)]
        name = listed[int(site)] if int(site) < len(listed) else None
        name = name if name in folders else None
    if name is None:
        refuse("site", site, f"must be one of {', '.join(folders)}")
    return run / FOLDERS / name
