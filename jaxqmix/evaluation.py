"""Greedy evaluation in held-out worlds, and the success criteria."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from jaxqmix.compilation import jit
from jaxqmix.config import EvaluationConfig
from jaxqmix.distributed import (
    REPLICATED,
    SHARDED,
    make_mesh,
    on_each_device,
    place,
    shapes_at,
    shardings,
)
from jaxqmix.env.base import Environment
from jaxqmix.env.domain import Ranges
from jaxqmix.env.mission import METRICS
from jaxqmix.processes import fetch
from jaxqmix.rollout import fly_episodes
from jaxqmix.types import Episode, Policy

EVALUATION, SELECTION = 2, 3
"""Streams of random numbers (training's is 1): the final evaluation flies other worlds than the
periodic ones that choose the best checkpoint, so that the choice does not flatter it."""
RESAMPLES = 2000
"""Bootstrap resamples behind a confidence interval."""
AT_ONCE = 2**24
"""Numbers that are resampled at a time."""


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Flies any number of held-out episodes by one compiled program, batch after batch.

    `fly(argument, keys)` is that program: `batch` episodes over the devices of `mesh`. Made for
    several seeds, it flies the same worlds with each of them, and results have the seeds' axis
    behind that of episodes.
    """

    fly: Callable[[Any, jax.Array], tuple[dict[str, jax.Array], Episode | None]]
    mesh: Mesh
    batch: int
    record: Literal["none", "first", "all"]

    def __call__(
        self, argument: Any, seed: int, episodes: int, stream: int = EVALUATION
    ) -> tuple[dict[str, np.ndarray], Episode | None]:
        """Flies held-out worlds.

        Args:
          argument: of `make_policy`.
          seed: decides the worlds with the number of episodes and the stream, for every policy.
          episodes: E.
          stream: of random numbers.

        Returns:
          Metrics per episode [E] and the mission's progress over time [E, T + 1]; and what `record`
          says: the episodes [E, ...], the first one [1, ...], or None.
        """
        key = jax.random.fold_in(jax.random.key(np.uint32(seed)), stream)
        keys = jax.random.split(key, episodes)
        argument = place(argument, self.mesh, REPLICATED)
        metrics, recorded = [], []
        for first in range(0, episodes, self.batch):
            # The last batch is filled up with the episodes in front, which are then dropped.
            chosen = np.arange(first, first + self.batch) % episodes
            flown = self.fly(argument, place(keys[chosen], self.mesh, SHARDED))
            flown = fetch(flown)
            metrics.append(_first(episodes - first, flown[0]))
            recorded.append(_first(episodes - first, flown[1]))
        if self.record == "first":
            return _joined(metrics), _first(1, recorded[0])
        return _joined(metrics), _joined(recorded)

    def shapes(self, argument: Any) -> tuple[Any, jax.ShapeDtypeStruct]:
        """The shapes that `fly` takes, to compile it ahead; of an argument or its shapes."""
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), self.batch))
        return shapes_at((argument, keys), shardings(self.mesh, (REPLICATED, SHARDED)))


def evaluator(
    env: Environment,
    make_policy: Callable[[Any], Policy],
    batch: int,
    record: Literal["none", "first", "all"] = "none",
    seeds: int | None = None,
    domains: Ranges | None = None,
) -> Evaluator:
    """Binds what an evaluation flies; nothing is compiled before it is called.

    Args:
      env: the world.
      make_policy: from an argument (parameters, say) to the policy.
      batch: how many episodes are flown side by side.
      record: which episodes are recorded.
      seeds: arguments have an axis of so many seeds in front; None for those without.
      domains: of the seeds' worlds, where they differ: leaves [seeds, ...].
    """
    mesh = make_mesh(lambda devices: batch % devices == 0)
    count = {"none": 0, "first": 1, "all": batch}[record]

    def fly_one(
        argument: Any, keys: jax.Array, domain: Ranges | None
    ) -> tuple[dict[str, jax.Array], Episode | None]:
        world = env if domain is None else env.with_domain(domain)
        return fly_episodes(keys, world, make_policy(argument), count)

    if seeds is not None:
        fly_one = jax.vmap(fly_one, in_axes=(0, None, 0), out_axes=1, axis_size=seeds)

    def fly(argument: Any, keys: jax.Array) -> tuple[dict[str, jax.Array], Episode | None]:
        return fly_one(argument, keys, domains)

    program = jit(on_each_device(fly, mesh, (REPLICATED, SHARDED), SHARDED))
    return Evaluator(program, mesh, batch, record)


def _first(count: int, tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[:count], tree)


def _joined(batches: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)


def metric_order(name: str) -> tuple[int, str]:
    """Sorts names of metrics: those that every mission of the package has first."""
    return METRICS.index(name) if name in METRICS else len(METRICS), name


def summarise(metrics: dict[str, Any], names: Sequence[str] | None = None) -> dict[str, Any]:
    """Means over episodes (or seeds), and `METRIC_ci95: [low, high]` by bootstrap over them.

    With `t90` and `limit` among them also `t90_over_limit`, the means' quotient, unless 90 % are
    seen from the start: how near to the limit (`jaxqmix.env.mission.fewest_steps`) the swarm is.

    Args:
      metrics: [E] each.
      names: of the metrics to summarise; all by default.
    """
    if names is None:
        names = sorted((name for name in metrics if metrics[name].ndim == 1), key=metric_order)
    summary: dict[str, Any] = {}
    means = {}

    def add(name: str, value: float, resampled: np.ndarray) -> None:
        low, high = np.quantile(resampled, [0.025, 0.975])
        summary.update({name: float(value), f"{name}_ci95": [float(low), float(high)]})

    for name in names:
        values = np.asarray(metrics[name], np.float64)
        # The same draws for every metric and policy, in blocks that fit where episodes are many.
        random, count = np.random.default_rng(0), len(values)
        rows = max(1, AT_ONCE // count)
        blocks = [min(rows, RESAMPLES - first) for first in range(0, RESAMPLES, rows)]
        means[name] = np.concatenate(
            [values[random.integers(0, count, (block, count))].mean(axis=1) for block in blocks]
        )
        add(name, values.mean(), means[name])
    if {"t90", "limit"} <= means.keys() and means["limit"].min() > 0:
        add("t90_over_limit", summary["t90"] / summary["limit"], means["t90"] / means["limit"])
    return summary


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean of a few independent values, such as seeds, and half the width of its 95 % interval
    by Student's t; NaN with fewer than two."""
    from scipy.special import stdtrit

    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return mean, float("nan")
    error = np.std(values, ddof=1) / np.sqrt(count)
    return mean, float(stdtrit(count - 1, 0.975) * error)


def progress_over_time(metrics: dict[str, np.ndarray], progress: str) -> dict[str, list[float]]:
    """Progress after 0, 1, ... T env steps: its mean over episodes, and 10th and 90th percentile.

    An episode that ends early keeps its last.

    Args:
      metrics: of an `Evaluator`.
      progress: what the mission draws over time; coverage, over a city.
    """
    values = np.asarray(metrics[f"{progress}_over_time"], np.float64)
    curves = {"mean": values.mean(axis=0)}
    curves["p10"], curves["p90"] = np.quantile(values, [0.1, 0.9], axis=0)
    return {name: curve.round(5).tolist() for name, curve in curves.items()}


def success(summary: dict[str, Any], config: EvaluationConfig) -> dict[str, bool]:
    """Which success criteria are met; one boolean for each that the world has a metric of."""
    met = {
        "collision_rate": lambda rate: rate < config.max_collision_rate,
        "return": lambda value: value > config.min_return,
        "coverage": lambda share: share >= config.min_coverage,
    }
    return {name: bool(holds(summary[name])) for name, holds in met.items() if name in summary}
