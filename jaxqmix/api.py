"""What a notebook needs: training, evaluation, recording, pictures."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxqmix import runner
from jaxqmix.compilation import enable_cache, jit
from jaxqmix.config import (
    RunConfig,
    require,
)
from jaxqmix.env.base import Environment
from jaxqmix.evaluation import (
    EVALUATION,
    Evaluator,
    evaluator,
    progress_over_time,
    success,
    summarise,
)
from jaxqmix.loading import LoadedPolicy, as_loaded_policy, require_config, shown
from jaxqmix.maps import CityMap
from jaxqmix.processes import is_first
from jaxqmix.rollout import fly_episodes
from jaxqmix.runner import Callback
from jaxqmix.types import EnvParams, Episode, Policy


@functools.lru_cache(maxsize=32)
def program(env: Environment, batch: int, keep: bool) -> Evaluator:
    """The evaluation of any policy in a world; policies that differ by their arrays only are
    compiled once."""
    enable_cache()
    return evaluator(env, lambda policy: policy, batch, "all" if keep else "none")


@functools.lru_cache(maxsize=32)
def recording(env: Environment) -> Callable[[Policy, EnvParams, Any], Episode]:
    """A compiled function that records an episode of any policy in a given world."""
    enable_cache()

    @jit
    def fly(policy: Policy, params: EnvParams, seed: jax.Array) -> Episode:
        key = jax.random.fold_in(jax.random.key(seed), EVALUATION)
        _, episodes = fly_episodes(jax.random.split(key, 1), env.fixed(params), policy, record=1)
        return jax.tree.map(lambda leaf: leaf[0], episodes)

    return fly


def evaluate(
    policy: LoadedPolicy | Policy | Callable,
    config: RunConfig | None = None,
    *,
    episodes: int = 256,
    seed: int = 0,
    to_horizon: bool = False,
    keep: bool = False,
    curve: bool = False,
    city: str | Path | CityMap | None = None,
    env: Environment | None = None,
) -> tuple[dict[str, Any], Episode | None]:
    """Flies held-out cities.

    Args:
      policy: from `load_policy` or `scripted`; or, with a config, any policy or function (see
        `jaxqmix.Policy`). What differs by its arrays only is compiled once.
      config: fly under this config; by default the policy's own.
      episodes: how many.
      seed: which cities; the same for every policy.
      to_horizon: fly on when the mission is complete, to the time limit or 100 % coverage.
      keep: also return the recorded episodes [E, ...].
      curve: also report the mission's progress; see `jaxqmix.evaluation.progress_over_time`.
      city: fly over this one, as of `make`; the seed then decides starts, weather and chances.
      env: fly in this world, such as `make(config, parts=...)`, or any `Environment`.

    Returns:
      The report (metrics with 95 % confidence intervals, and `success` by criterion), and the
      episodes or None.

    Raises:
      ConfigError: on arguments that are not allowed.
    """
    require_whole("episodes", episodes, 1, 2**31 - 1)
    require_whole("seed", seed, 0, 2**32 - 1)
    loaded, env = as_loaded_policy(policy, config, city, env)
    env = env.ending_at(1.0) if to_horizon else env
    fly = program(env, min(int(episodes), loaded.config.evaluation.episodes), keep)
    metrics, recorded = fly(loaded.policy, int(seed), int(episodes))
    about = {"episodes": int(episodes), "seed": int(seed), "to_horizon": to_horizon}
    report = evaluation_report(loaded, about, metrics)
    if curve:
        progress = env.mission.progress
        report[f"{progress}_over_time"] = progress_over_time(metrics, progress)
    return report, recorded


def evaluation_report(
    loaded: LoadedPolicy, about: dict[str, Any], metrics: dict[str, np.ndarray]
) -> dict[str, Any]:
    """What `evaluate` says of flown episodes."""
    config, summary = loaded.config, summarise(metrics)
    report = {
        "preset": config.preset,
        "policy": loaded.name,
        "drones": config.env.drones,
        **about,
        "changed": loaded.changed,
        **summary,
        "success": success(summary, config.evaluation),
    }
    return report | ({"city": config.env.city} if config.env.city else {})


def require_whole(setting: str, value: Any, low: int, high: int) -> None:
    """Raises `ConfigError` unless a value is a whole number in a range."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    allowed = f"must be a whole number from {low} to {high}"
    require(whole and low <= value <= high, setting, shown(value), allowed)


def record(
    policy: LoadedPolicy | Policy | Callable,
    config: RunConfig | None = None,
    *,
    seed: int = 0,
    city: str | Path | CityMap | None = None,
    env: Environment | None = None,
) -> Episode:
    """One recorded episode, for `jaxqmix.show` and `jaxqmix.render.render`; arguments as of
    `evaluate`."""
    require_whole("seed", seed, 0, 2**32 - 1)
    loaded, env = as_loaded_policy(policy, config, city, env)
    _, episodes = program(env, 1, True)(loaded.policy, int(seed), 1)
    return jax.tree.map(lambda leaf: leaf[0], episodes)


def recorder(
    policy: LoadedPolicy | Policy | Callable,
    config: RunConfig | None = None,
    *,
    city: str | Path | CityMap | None = None,
) -> Callable[[EnvParams, int], Episode]:
    """A compiled function that records episodes in worlds of your choice.

    The world is an argument, so that another wind or another link compiles nothing anew:

        fly = recorder(loaded)
        params = loaded.env.draw_params(jax.random.key(0))
        calm, storm = fly(params, 0), fly(replace(params, wind=jnp.array([15.0, 0.0])), 0)

    Args:
      policy: as of `evaluate`.
      config: as of `evaluate`.
      city: as of `evaluate`.

    Returns:
      `fly(params, seed)`: one episode. The seed decides the city, the starts and all chances, as
      in `record`.
    """
    loaded, env = as_loaded_policy(policy, config, city)
    env.fixed(None)  # raises where that cannot be
    fly = recording(env)

    def one(params: EnvParams, seed: int = 0) -> Episode:
        return jax.device_get(fly(loaded.policy, params, np.uint32(seed)))

    return one


def show(
    episode: Episode | LoadedPolicy | Policy | Callable,
    config: RunConfig | None = None,
    *,
    cell_size: float | None = None,
    seed: int = 0,
    **options: Any,
) -> Any:
    """Shows an episode below a notebook's cell; the picture is kept in the notebook.

    Args:
      episode: from `record`; or what `record` takes, which is then flown.
      config: as of `evaluate`, to fly.
      cell_size: side of a grid cell, metres; needed with a recorded episode only.
      seed: of what is flown.
      **options: of `jaxqmix.render.notebook.show`: kind, title, other, other_title.

    Raises:
      ConfigError: on arguments that are not allowed.
    """
    from jaxqmix.render import notebook

    episode, pictured = recorded(episode, config, cell_size, seed)
    return notebook.show(episode, **(pictured | options))


def draw(
    episode: Episode | LoadedPolicy | Policy | Callable,
    out: str | Path,
    config: RunConfig | None = None,
    *,
    cell_size: float | None = None,
    seed: int = 0,
    **options: Any,
) -> Path:
    """Draws an episode into a file: .png, .gif, .mp4 or .html (a 3-D replay).

    Args:
      episode: as of `show`.
      out: the file to write.
      config: as of `show`.
      cell_size: as of `show`.
      seed: as of `show`.
      **options: of `jaxqmix.render.render`: title, other, other_title, side, progress.

    Returns:
      The path written.

    Raises:
      ConfigError: on arguments that are not allowed, and for .mp4 without the extra `video`.
    """
    from jaxqmix.render import render

    episode, pictured = recorded(episode, config, cell_size, seed)
    return render(episode, out, **(pictured | options))


def recorded(
    episode: Any, config: RunConfig | None, cell_size: float | None, seed: int
) -> tuple[Episode, dict[str, Any]]:
    """An episode, flown where it is a policy, and its cell size and title."""
    if not isinstance(episode, Episode):
        loaded, _ = as_loaded_policy(episode, config)
        about = {"cell_size": loaded.config.env.cell_size, "title": loaded.name}
        return record(loaded, seed=seed), about
    if cell_size is None and isinstance(config, RunConfig):
        cell_size = config.env.cell_size
    allowed = "give the side of a grid cell in metres, or the config"
    require(cell_size is not None, "cell_size", None, allowed)
    return episode, {"cell_size": cell_size}


def train(
    config: RunConfig,
    out: str | Path,
    resume: bool = False,
    *,
    quiet: bool = False,
    callback: Callback | None = None,
    wandb: str | None = None,
    seeds: int | None = None,
    env: Environment | None = None,
    sweep: Mapping[str, Sequence[Any]] | None = None,
) -> dict[str, Any] | list[dict[str, Any]] | None:
    """Trains a run in a folder, and shows its progress in the terminal or the notebook.

    Args:
      config: the run; `jaxqmix.preset(name)` gives one.
      out: the run's folder; must be empty or new, unless `resume`.
      resume: continue from the newest checkpoint there; the state goes on bit for bit on the same
        machine, versions and number of devices.
      quiet: show nothing.
      callback: hears of the progress, instead of showing it.
      wandb: also log to this project of Weights & Biases (extra `wandb`); not with `seeds`.
      seeds: train so many runs side by side in one program, with the config's seed and those that
        follow, in `out/seed-0` and so on; see `jaxqmix.seeds.train_seeds`.
      env: train in this world, such as `make(config, parts=...)`, or any `Environment`. Whoever
        loads the policy gives it again.
      sweep: train with each of these values, and each combination, side by side in one program, as
        in `{"learner.gamma": [0.95, 0.97]}`, in `out/gamma-0.95/seed-0` and so on; see
        `jaxqmix.sweeps.train_sweep`.

    Returns:
      The final evaluation (see `metrics.jsonl`), with `seeds` or `sweep` a list of them; or None
      when it was asked to stop early.

    Raises:
      ConfigError: on an output folder in use, or a checkpoint that does not fit.
    """
    from jaxqmix import console
    from jaxqmix.seeds import seed_configs, train_seeds
    from jaxqmix.sweeps import swept_configs, train_sweep

    require_config(config)
    path = isinstance(out, str | os.PathLike)
    require(path, "out", shown(out), "must be a folder, such as 'runs/first'")
    enable_cache()
    if seeds is not None:
        seed_configs(config, seeds)  # raises on a bad number
    if sweep is not None:
        swept_configs(config, sweep)
    if callback is None:
        several = console.run_words(config.training.seed, seeds, sweep)
        silent = quiet or not is_first()
        callback = (
            Callback() if silent else console.callback(Path(os.path.expanduser(out)), several)
        )
    if seeds is None and sweep is None:
        return runner.train(config, out, resume, callback, wandb, env)
    require(wandb is None, "wandb", wandb, "with seeds or a sweep, runs log to TensorBoard")
    count = 1 if seeds is None else seeds
    if sweep is None:
        return train_seeds(config, out, count, resume, callback, env)
    return train_sweep(config, out, sweep, count, resume, callback, env)
