"""Several seeds of a run, trained side by side in one program; each is a run in its own folder."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxqmix import checkpoints
from jaxqmix.config import ConfigError, RunConfig, require, shown
from jaxqmix.env.base import Environment
from jaxqmix.evaluation import t_interval
from jaxqmix.folders import LEFT, Report, check_folder, write_json
from jaxqmix.metrics import SETTINGS, local_path, runs_in
from jaxqmix.processes import several
from jaxqmix.runner import Callback, Run, begin, restore
from jaxqmix.training import TrainState, make_trainer

COMPARED = ("t90", "return", "coverage", "collision_rate")
"""What is told of each seed, and as a mean."""
MOST = 1000
"""Seeds in one program."""
SUMMARY = "seeds.json"
"""In the folder above the runs: each of COMPARED by seed, its mean and 95 % interval."""


def train_seeds(
    config: RunConfig,
    out: str | Path,
    seeds: int,
    resume: bool = False,
    callback: Callback | None = None,
    env: Environment | None = None,
) -> list[Report] | None:
    """Trains runs that differ by nothing but the seed side by side, in `out/seed-0` and so on.

    Each equals, up to rounding, the run of its seed alone, and its folder is that of any run:
    it can be evaluated, drawn and resumed alone.

    Args:
      config: of the first run; the others have the seeds that follow its own.
      out: the folder above theirs; must be empty or new, unless `resume`.
      seeds: how many.
      resume: continue all runs from the newest step at which each has a checkpoint.
      callback: hears of the progress; reports are means, with the runs' own under `seeds`.
      env: the world, where it is another than the config's.

    Returns:
      The final evaluations, by seed, or None when it was asked to stop early.

    Raises:
      ConfigError: on an output folder in use, or that holds other seeds.
    """
    require_one_process()
    folder = local_path("out", out)
    configs = seed_configs(config, seeds)
    names = [f"seed-{each.training.seed}" for each in configs]
    given, folders = Path(out).expanduser(), [folder / name for name in names]
    check_folders(given, [given / name for name in names], resume)  # Errors name it as given.
    run = partial(SideBySide, configs, folders, seeds=seeds, env=env)
    return begin(run, folders, resume, callback or Callback())


def require_one_process() -> None:
    """Raises `ConfigError` in one of several processes."""
    allowed = "one process trains runs side by side"
    require(not several(), "processes", jax.process_count(), allowed)


def seed_configs(config: RunConfig, seeds: int) -> list[RunConfig]:
    """The run with its own seed, the next one, and so on; raises `ConfigError` on a bad number."""
    first = config.training.seed
    whole = isinstance(seeds, int) and not isinstance(seeds, bool)
    most = min(MOST, 2**32 - first)
    require(
        whole and 1 <= seeds <= most,
        "seeds",
        shown(seeds),
        f"must be a whole number from 1 to {most}",
    )
    return [config.replace(**{"training.seed": first + number}) for number in range(seeds)]


def check_folders(out: Path, folders: Sequence[Path], resume: bool) -> None:
    """Raises `ConfigError` when a folder holds other runs, none to resume, or cannot be."""
    single = (out / SETTINGS).is_file()
    if not resume:
        names = {*LEFT, *(folder.name for folder in folders)}
        if single or not out.is_dir() or any(each.name not in names for each in out.iterdir()):
            check_folder(out, resume=False)
        for folder in folders:
            check_folder(folder, resume=False)
        return
    require(not single, "out", out, "it is the run of one seed; resume it without --seeds")
    found = runs_in(out)
    require(bool(found), "out", out, "it holds no runs of seeds to resume")
    if found != list(folders):
        asked, there = (", ".join(run.name for run in runs) for runs in (folders, found))
        raise ConfigError(
            f"seeds = {len(folders)} is not allowed: {out} holds {there}, and not {asked}; "
            f"give --seed {found[0].name.removeprefix('seed-')} --seeds {len(found)}"
        )
    for folder in folders:
        check_folder(folder, resume=True)


class SideBySide(Run):
    """Several runs in one program."""

    def __init__(self, configs: Sequence[RunConfig], *rest: Any, **more: Any):
        """As `Run`; raises `ConfigError` where a run keeps one checkpoint only: a kill between two
        runs' saves would leave them without a common one."""
        keep = configs[0].checkpoint.keep
        require(len(configs) == 1 or keep > 1, "checkpoint.keep", keep, "several runs keep 2 each")
        super().__init__(configs, *rest, **more)

    def restore(
        self, configs: Sequence[RunConfig], folders: Sequence[Path]
    ) -> tuple[int, TrainState | None]:
        """The newest step that every run can read, and the state of all of them there."""
        alone = make_trainer(self.config, env=self.trainer.env)
        trainers = [dataclasses.replace(alone, config=config) for config in configs]
        until = common_step(folders)
        while until:
            found = [
                checkpoints.read_state(folder, trainer, until)
                for folder, trainer in zip(folders, trainers, strict=True)
            ]
            lowest = min(step for step, _ in found)
            if lowest == until:
                state = jax.tree.map(lambda *leaves: np.stack(leaves), *(s for _, s in found))
                return until, self.trainer.place(state)
            until = common_step(folders, lowest)
        for folder, trainer in zip(folders, trainers, strict=True):
            if not checkpoints.saved_steps(folder):
                restore(folder, trainer)  # checks the settings, and warns
        return 0, None

    def finish(self) -> list[Report]:
        """The runs' own, and over all of them a table and curves with bands."""
        from jaxqmix.render.curves import load_runs, plot_runs

        reports = super().finish()
        self.summarise(reports)
        plot_runs(load_runs([run.folder for run in self.runs]), self.out / "curves.png")
        return reports

    @property
    def out(self) -> Path:
        """The folder above the runs'."""
        return self.runs[0].folder.parent

    def summarise(self, reports: Sequence[Report]) -> None:
        """Writes the table over the runs."""
        write_json(self.out / SUMMARY, summary(reports, [run.config for run in self.runs]))


def common_step(folders: Sequence[Path], until: int | None = None) -> int:
    """The newest step, up to `until`, of which every run has a checkpoint; 0 where the runs were
    ended in the middle of their first save.

    Raises:
      ConfigError: when there is none.
    """
    saved = [checkpoints.saved_steps(folder) for folder in folders]
    if not all(saved) and max(map(len, saved)) <= 1:
        return 0
    shared = [step for step in set.intersection(*saved) if until is None or step <= until]
    if not shared:
        each = zip(folders, saved, strict=True)
        above = Path(os.path.commonpath(folders))
        newest = ", ".join(f"{f.relative_to(above)} {max(s, default=0)}" for f, s in each)
        raise ConfigError(
            f"out = {above} is not allowed: its runs have no checkpoint of a common iteration "
            f"(newest: {newest}); resume them one by one"
        )
    for folder, steps in zip(folders, saved, strict=True):
        if max(steps) > max(shared):
            warnings.warn(
                f"{folder} goes back from iteration {max(steps)} to {max(shared)}, the newest of "
                "which every run has a checkpoint",
                stacklevel=2,
            )
    return max(shared)


def summary(reports: Sequence[Report], configs: Sequence[RunConfig]) -> dict[str, dict]:
    """Each figure by seed, its mean, and the ends of its 95 % interval by Student's t."""
    found = {}
    for name in (name for name in COMPARED if name in reports[0]):
        values = {str(c.training.seed): r[name] for c, r in zip(configs, reports, strict=True)}
        mean, half = t_interval(list(values.values()))
        found[name] = {"mean": mean, "ci95": [mean - half, mean + half], "seeds": values}
    return found
