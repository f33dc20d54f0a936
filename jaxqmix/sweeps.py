"""Sweeps: values of settings, and seeds of each, trained side by side in one program."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jaxqmix.config import RunConfig, refuse, require, setting_names, shown
from jaxqmix.env.base import Environment
from jaxqmix.folders import LEFT, Report, check_folder, write_json
from jaxqmix.hyperparameters import TRACED, differing, value_of
from jaxqmix.metrics import SETTINGS, SWEEP, local_path, runs_in
from jaxqmix.runner import Callback, begin
from jaxqmix.seeds import MOST, SideBySide, require_one_process, seed_configs, summary

Sweep = Mapping[str, Sequence[Any]]
"""Values by the name of a setting, such as `{"learner.gamma": [0.95, 0.97]}`; a range as a pair."""


def train_sweep(
    config: RunConfig,
    out: str | Path,
    sweep: Sweep,
    seeds: int = 1,
    resume: bool = False,
    callback: Callback | None = None,
    env: Environment | None = None,
) -> list[Report] | None:
    """Trains a run of every combination of values and every seed side by side, in folders such as
    `out/gamma-0.95/seed-0`.

    Each equals, up to rounding, the run of its settings alone, and its folder is that of any run.

    Args:
      config: what the runs share.
      out: the folder above theirs; must be empty or new, unless `resume`.
      sweep: the values; the last setting changes fastest, and seeds faster still.
      seeds: how many of each combination, from the config's own on.
      resume: continue all runs from the newest step at which each has a checkpoint.
      callback: hears of the progress; reports are means, with the runs' own under `seeds`.
      env: the world, where it is another than the config's.

    Returns:
      The final evaluations, in that order, or None when it was asked to stop early.

    Raises:
      ConfigError: on a setting that decides the program, a value that is not allowed, an output
        folder in use, or one that holds another sweep.
    """
    require_one_process()
    folder = local_path("out", out)
    in_own_world = env is not None and any(name.startswith("domain.") for name in sweep)
    require(not in_own_world, "sweep", ", ".join(sweep), "a world that is given has its own domain")
    runs = {
        Path(name, f"seed-{each.training.seed}"): each
        for name, one in swept_configs(config, sweep).items()
        for each in seed_configs(one, seeds)
    }
    require(len(runs) <= MOST, "sweep", f"{len(runs)} runs", f"at most {MOST} runs side by side")
    check_sweep(Path(out).expanduser(), list(runs), resume)  # Errors name it as given.
    folders = [folder / each for each in runs]
    run = partial(SweptRuns, list(runs.values()), folders, seeds=len(runs), env=env)
    return begin(run, folders, resume, callback or Callback())


def swept_configs(config: RunConfig, sweep: Sweep) -> dict[str, RunConfig]:
    """The config with every combination of values, by a name for its folder.

    Raises:
      ConfigError: as `train_sweep`.
    """
    require(
        isinstance(sweep, Mapping) and bool(sweep), "sweep", shown(sweep), "must name a setting"
    )
    names = [str(name).replace("-", "_") for name in sweep]
    for name, values in zip(names, sweep.values(), strict=True):
        several = isinstance(values, Sequence) and not isinstance(values, str) and len(values) > 0
        require(several, f"sweep.{name}", shown(values), "must be a list of values")
        if name in setting_names(config) and name not in TRACED:
            allowed = f"it decides the program; sweep {', '.join(TRACED)}"
            refuse("sweep", name, allowed)
        config.replace(**{name: values[0]})  # raises when there is no such setting
    found: dict[str, RunConfig] = {}
    for values in itertools.product(*sweep.values()):
        one = config.replace(**dict(zip(names, values, strict=True)))
        found.setdefault("_".join(map(partial(_words, one), names)), one)
    differing(list(found.values()))
    return found


def _words(config: RunConfig, name: str) -> str:
    """A setting and its value, for the name of a folder."""
    value = value_of(config, name)
    numbers = value if isinstance(value, tuple) else (value,)
    return "-".join([name.split(".")[-1], *map(_number, dict.fromkeys(numbers))])


def _number(value: float) -> str:
    """A number that no other has the words of."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def check_sweep(out: Path, runs: Sequence[Path], resume: bool) -> None:
    """Raises `ConfigError` when a folder holds other runs, none to resume, or cannot be."""
    if not resume:
        names = {*LEFT, SWEEP, *(run.parent.name for run in runs)}
        if not out.is_dir() or any(each.name not in names for each in out.iterdir()):
            check_folder(out, resume=False)
    else:
        single = (out / SETTINGS).is_file()
        require(not single, "out", out, "it is a single run; resume it without a sweep")
        found = [run.relative_to(out) for run in runs_in(out)]
        require((out / SWEEP).is_file() and bool(found), "out", out, "it holds no sweep to resume")
        if found != list(runs):
            asked, there = (", ".join(run.as_posix() for run in each) for each in (runs, found))
            refuse("sweep", asked, f"{out} holds {there}; give the same values and seeds")
    for run in runs:
        check_folder(out / run, resume)


class SweptRuns(SideBySide):
    """The runs of a sweep."""

    def __init__(
        self, configs: Sequence[RunConfig], folders: Sequence[Path], *rest: Any, **more: Any
    ):
        """As `Run`; says in `out` what is swept, so that the runs are found there."""
        self._configs = configs
        self._names = [folder.parent.name for folder in folders]
        self._out = folders[0].parent.parent
        new = not more.get("resume")
        if new:
            write_json(self._out / SWEEP, self._described({}))
        try:
            super().__init__(configs, folders, *rest, **more)
        except BaseException:
            if new and not any(folder.joinpath(SETTINGS).is_file() for folder in folders):
                (self._out / SWEEP).unlink()
            raise

    @property
    def out(self) -> Path:
        """The folder above all runs."""
        return self._out

    def _described(self, results: Mapping[str, Any]) -> dict[str, Any]:
        names = differing(self._configs)
        settings = {name: [value_of(config, name) for config in self._configs] for name in names}
        swept = {name: list(dict.fromkeys(values)) for name, values in settings.items()}
        runs = {name: results.get(name) for name in dict.fromkeys(self._names)}
        return {"settings": swept, "runs": runs}

    def summarise(self, reports: Sequence[Report]) -> None:
        """Writes the metrics of each combination, as means over its seeds."""
        results = {}
        for name in dict.fromkeys(self._names):
            own = [number for number, each in enumerate(self._names) if each == name]
            results[name] = summary([reports[n] for n in own], [self._configs[n] for n in own])
        write_json(self.out / SWEEP, self._described(results))
