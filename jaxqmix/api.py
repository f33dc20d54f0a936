"""What a notebook needs beside `train`: environments, policies, evaluation, recording."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxqmix import checkpoints
from jaxqmix.compilation import jit
from jaxqmix.config import COVERAGE_SUCCESS, DomainConfig, EnvConfig, RunConfig, require
from jaxqmix.env.observation import groups
from jaxqmix.env.urban_grid import UrbanGrid
from jaxqmix.evaluation import EVALUATION, coverage_over_time, evaluator, success, summarise
from jaxqmix.maps import CityMap, stack, with_city, without_city
from jaxqmix.planners import planner
from jaxqmix.rollout import fly_episodes
from jaxqmix.training import greedy_policy, make_parts
from jaxqmix.types import EnvParams, Episode, Policy


def make(
    config: RunConfig | EnvConfig,
    domain: DomainConfig | None = None,
    city: str | Path | CityMap | None = None,
) -> UrbanGrid:
    """An environment.

    Args:
      config: a run's config, or an `EnvConfig` alone.
      domain: the ranges worlds are drawn from; by default the run's, or the defaults.
      city: flies over this city file, over those of this folder, or over this `CityMap`, whose
        sizes replace the config's; see `jaxqmix.with_city`.

    Raises:
      ConfigError: when the city cannot be read, or cannot be flown over.
    """
    config = with_city(config, city)
    env, ranges = (config.env, config.domain) if isinstance(config, RunConfig) else (config, None)
    cities = stack([city], env) if isinstance(city, CityMap) else None
    return UrbanGrid(env, domain or ranges or DomainConfig(), cities)


@dataclasses.dataclass(frozen=True)
class Flyer:
    """A policy with the config that it flies under.

    `make_policy(parameters)` is the policy. Programs take the parameters as an argument, so that
    policies that differ by nothing else share one compiled program.
    """

    name: str
    config: RunConfig
    make_policy: Callable[[Any], Policy]
    parameters: Any = ()

    @functools.cached_property
    def policy(self) -> Policy:
        """The policy with its parameters."""
        return self.make_policy(self.parameters)

    @property
    def env(self) -> UrbanGrid:
        """The world that the policy flies in."""
        return make(self.config)


def load_policy(
    path: str | Path, drones: int | None = None, city: str | Path | None = None
) -> Flyer:
    """A trained policy.

    Args:
      path: a run's folder or one of its checkpoints.
      drones: fly with so many instead; the policy is the same for every swarm.
      city: fly over this city file, or the cities of this folder, instead.

    Raises:
      CheckpointError: when it is missing, damaged or foreign.
      ConfigError: when the city cannot be read, or the policy cannot observe it.
    """
    trained, parameters, _ = checkpoints.load(Path(path))
    config = with_city(with_drones(trained, drones), city)
    check_observation(config, trained, city)
    _, learner = make_parts(without_city(trained), axis=None)
    make_policy = functools.partial(greedy_policy, config, learner)
    return Flyer(trained.learner.mixer, config, make_policy, parameters["agent"])


def check_observation(config: RunConfig, trained: RunConfig, city: str | Path | None) -> None:
    """Raises `ConfigError` when drones over a city observe other numbers than those trained."""
    now, before = groups(config.env), groups(trained.env)
    changed = next((name for name in now | before if now.get(name) != before.get(name)), None)
    require(
        changed is None,
        "city",
        city,
        f"the policy was trained over {trained.env.columns} x {trained.env.rows} cells of "
        f"{trained.env.cell_size:g} m, and over {config.env.columns} x {config.env.rows} of "
        f"{config.env.cell_size:g} m `{changed}` of its observation is another; train with --city",
    )


def scripted(
    name: str, config: RunConfig, drones: int | None = None, city: str | Path | None = None
) -> Flyer:
    """A scripted planner under a run's config, with other drones or over a city if given."""
    config = with_city(with_drones(config, drones), city)
    # A planner knows the true state, whatever a trained policy was blind to.
    config = dataclasses.replace(config, env=dataclasses.replace(config.env, blind_to=()))
    policy = planner(name, config.env)
    return Flyer(name, config, lambda _: policy)


def with_drones(config: RunConfig, drones: int | None) -> RunConfig:
    """The config with another number of drones; raises `ConfigError` when they do not fit."""
    if drones is None:
        return config
    return dataclasses.replace(config, env=dataclasses.replace(config.env, drones=drones))


def evaluate(
    flyer: Flyer, episodes: int = 256, seed: int = 0, keep: bool = False, curve: bool = False
) -> tuple[dict[str, Any], Episode | None]:
    """Flies held-out cities.

    Args:
      flyer: from `load_policy` or `scripted`.
      episodes: how many.
      seed: which cities; the same for every policy.
      keep: also return the recorded episodes [E, ...].
      curve: also report `coverage_over_time`; see `jaxqmix.evaluation.coverage_over_time`.

    Returns:
      The report (metrics with 95 % confidence intervals, and `success` by criterion), and the
      episodes or None.
    """
    require(episodes >= 1, "episodes", episodes, "must be at least 1")
    require(0 <= seed < 2**32, "seed", seed, "must lie between 0 and 2^32 - 1")
    batch = min(episodes, flyer.config.evaluation.episodes)
    fly = evaluator(flyer.env, flyer.make_policy, batch, keep)
    metrics, recorded = fly(flyer.parameters, seed, episodes)
    summary = summarise(metrics)
    report = {
        "preset": flyer.config.preset,
        "policy": flyer.name,
        "episodes": episodes,
        "drones": flyer.config.env.drones,
        "seed": seed,
        **summary,
        "success": success(summary, flyer.config.evaluation),
    }
    if curve:
        report["coverage_over_time"] = coverage_over_time(metrics)
    return report, recorded


def record(flyer: Flyer, seed: int = 0) -> Episode:
    """One recorded episode, for `jaxqmix.show` and `jaxqmix.render.render`."""
    _, episodes = evaluate(flyer, episodes=1, seed=seed, keep=True)
    return jax.tree.map(lambda leaf: leaf[0], episodes)


def recorder(flyer: Flyer) -> Callable[[EnvParams, int], Episode]:
    """A compiled function that records episodes in worlds of your choice.

    The world is an argument, so that another wind or another link compiles nothing anew:

        fly = recorder(flyer)
        params = flyer.env.draw_params(jax.random.key(0))
        calm, storm = fly(params, 0), fly(replace(params, wind=jnp.array([15.0, 0.0])), 0)

    Args:
      flyer: from `load_policy` or `scripted`.

    Returns:
      `fly(params, seed)`: one episode. The seed decides the city, the starts and all chances, as
      in `record`.
    """

    @jit
    def fly(parameters: Any, params: EnvParams, seed: jax.Array) -> Episode:
        env = ChosenWorld(flyer.env.config, flyer.env.domain, params=params)
        key = jax.random.fold_in(jax.random.key(seed), EVALUATION)
        policy = flyer.make_policy(parameters)
        _, episodes = fly_episodes(jax.random.split(key, 1), env, policy, keep=True)
        return jax.tree.map(lambda leaf: leaf[0], episodes)

    return lambda params, seed: jax.device_get(fly(flyer.parameters, params, np.uint32(seed)))


@dataclasses.dataclass(frozen=True)
class ChosenWorld(UrbanGrid):
    """An environment whose worlds are not drawn, but all the same."""

    params: EnvParams | None = None

    def draw_params(self, key: jax.Array) -> EnvParams:
        """The chosen world, whatever the key."""
        return self.params


def trajectories(episodes: Episode, flyer: Flyer) -> dict[str, np.ndarray]:
    """Recorded episodes as named arrays, E in front, enough to recompute every metric."""
    events, steps = episodes.events, np.arange(episodes.reward.shape[1])
    flown = steps < np.asarray(episodes.length)[:, None]
    reached = np.asarray(episodes.coverage) >= COVERAGE_SUCCESS
    t90 = np.where(reached.any(axis=1), reached.argmax(axis=1), flyer.config.env.horizon)
    return {
        "cell_size": np.float32(flyer.config.env.cell_size),
        "heights": episodes.heights,
        "no_fly": episodes.no_fly,
        "coverable": episodes.coverable,
        "seen": np.asarray(episodes.seen_at) >= 0,
        "seen_at": episodes.seen_at,
        "positions": episodes.positions,
        "radii": episodes.radii,
        "actions": episodes.actions,
        "executed": events.executed,
        "conflict": events.conflict,
        "building_hit": events.building_hit,
        "violation": events.violation,
        "reward": episodes.reward,
        "length": episodes.length,
        "coverage": np.asarray(episodes.coverage)[:, -1],
        "return": np.where(flown, episodes.reward, 0).sum(axis=1, dtype=np.float32),
        "t90": t90.astype(np.int32),
    }
