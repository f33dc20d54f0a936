"""How well do trained policies and planners bear what they were not made for?

Flies all over the same unseen cities with one condition at a time set to a value: packet loss,
wind, visibility, building density, no-fly zones, and other numbers of drones in the same and in a
larger city; everything else is as in the mission, the horizon too.
Several runs are the seeds of one preset: the table has their mean and, for t90, the range.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import over_seeds, parse, parser, save, show, with_env, with_training

from jaxqmix import loading
from jaxqmix.compilation import enable_cache, jit
from jaxqmix.config import RunConfig
from jaxqmix.distributed import REPLICATED, SHARDED, make_mesh, on_each_device
from jaxqmix.env.mission import METRICS
from jaxqmix.env.urban_grid import UrbanGrid
from jaxqmix.evaluation import EVALUATION
from jaxqmix.planners import PLANNERS
from jaxqmix.rollout import fly_episodes
from jaxqmix.types import EnvParams, Policy, replace

SWEEPS = {
    "packet_loss": (0.0, 0.1, 0.2, 0.35, 0.5),
    "wind": (0.0, 5.0, 10.0, 15.0),
    "visibility": (0.3, 0.5, 0.7, 1.0),
    "building_density": (0.5, 1.0, 1.5, 2.0),
}
ZONES = (0, 2, 4, 6)
SIZES = ((0.5, 1.0), (2, 1.0), (5, 1.0), (2, 1.28), (5, 1.28))
"""Drones and side of the city as multiples of the mission's. Up to 1.28 the presets' views keep
their sizes, which a trained policy needs."""


@dataclasses.dataclass(frozen=True)
class Fixed(UrbanGrid):
    """A world with some parameters set; wind as a speed in m/s."""

    values: Any = None

    def draw_params(self, key: jax.Array) -> EnvParams:
        """Draws one swarm's world and sets the given parameters; NaN leaves one as drawn."""
        params = super().draw_params(key)
        drawn = {name: getattr(params, name) for name in SWEEPS}
        angle = jax.random.uniform(jax.random.fold_in(key, 0), maxval=2 * jnp.pi)
        wind = self.values["wind"] * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
        values = self.values | {"wind": wind}
        return replace(
            params,
            **{n: jnp.where(jnp.isnan(values[n]), drawn[n], values[n]) for n in SWEEPS},
        )


def flights(
    env: UrbanGrid, episodes: int
) -> Callable[[dict[str, float], Policy], dict[str, float]]:
    """A compiled `fly(values, policy) -> metrics`, means over the episodes."""
    mesh = make_mesh(lambda devices: episodes % devices == 0)

    def fly(values: dict, policy: Policy, keys: jax.Array) -> dict[str, jax.Array]:
        world = Fixed(env.config, env.domain, values=values)
        return fly_episodes(keys, world, policy)[0]

    everywhere = jit(on_each_device(fly, mesh, (REPLICATED, REPLICATED, SHARDED), SHARDED))
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), EVALUATION), episodes)

    def mean(values: dict[str, float], policy: Policy) -> dict[str, float]:
        whole = {name: np.float32(values.get(name, np.nan)) for name in SWEEPS}
        metrics = jax.device_get(everywhere(whole, policy, keys))
        return {name: float(np.mean(metrics[name])) for name in METRICS}

    return mean


def conditions(loaded_policies: list[loading.LoadedPolicy], episodes: int) -> list[dict[str, Any]]:
    """One row for every condition, of policies that differ by nothing but their parameters."""
    first, seeds = loaded_policies[0], [loaded.policy for loaded in loaded_policies]
    sweeps = [(name, value) for name, values in SWEEPS.items() for value in values]
    fly = flights(first.env, episodes)
    found = [(item, [fly(dict([item]), seed) for seed in seeds]) for item in sweeps]
    for zones in ZONES:
        world = with_env(first.config, no_fly_zones=zones)
        fly = flights(loading.make(world), episodes)
        flown = [fly({}, loaded.under(world).policy) for loaded in loaded_policies]
        found.append((("no_fly_zones", zones), flown))
    for drones, side in SIZES:
        world = resized(first.config, drones, side)
        fly = flights(loading.make(world), episodes)
        flown = [fly({}, loaded.under(world).policy) for loaded in loaded_policies]
        name = f"drones, {world.env.city_width / 1000:g} km"
        found.append(((name, world.env.drones), flown))
    return [row(first.name, condition, reports) for condition, reports in found]


def row(policy: str, condition: tuple[str, float], reports: list[dict[str, float]]) -> dict:
    """A condition's means over seeds; one planner has no interval."""
    metrics = {name: [report[name] for report in reports] for name in METRICS}
    return {"policy": policy, "condition": condition[0], "value": condition[1]} | over_seeds(
        metrics
    )


def interval(row: dict) -> list[str]:
    """The ends of t90's interval, where there is one."""
    return [f"{bound:.1f}" for bound in row.get("t90_ci95", [])] or ["-", "-"]


def resized(config: RunConfig, drones: float, side: float) -> RunConfig:
    """The run with so many times the drones over a city of so many times the side."""
    env = config.env
    width, length = (round(side * size) for size in (env.city_width, env.city_length))
    return with_env(config, drones=round(drones * env.drones), city_width=width, city_length=length)


def main() -> None:
    """Flies, shows and saves."""
    line = parser(__doc__)
    line.add_argument("runs", type=Path, nargs="+", help="folders of trained runs")
    line.add_argument("--planners", nargs="*", default=["lanes", "voronoi"], choices=PLANNERS)
    line.add_argument("--episodes", type=int, default=64)
    line.add_argument("--name", default="robustness", help="of the result file")
    arguments = parse(line)
    enable_cache()
    loaded_policies = [loading.load_policy(run) for run in arguments.runs]
    trained = loaded_policies[0].config
    if len({repr(with_training(loaded.config, seed=0)) for loaded in loaded_policies}) > 1:
        line.error("runs must differ by nothing but the seed")
    policies = [
        loaded_policies,
        *([loading.scripted(name, trained)] for name in arguments.planners),
    ]
    rows = [row for those in policies for row in conditions(those, arguments.episodes)]
    show(
        f"{trained.preset}, {arguments.episodes} unseen cities for each condition",
        ("condition", "value", "policy", "coverage", "t90", "from", "to", "collisions",
         "violations"),
        [
            (row["condition"], f"{row['value']:g}", row["policy"], f"{row['coverage']:.1%}",
             f"{row['t90']:.1f}", *interval(row),
             f"{row['collision_rate']:.3%}", f"{row['violation_rate']:.3%}")
            for row in sorted(rows, key=lambda row: (row["condition"], row["value"]))
        ],
    )  # fmt: skip
    about = {"preset": trained.preset, "episodes": arguments.episodes}
    save(arguments.name, about | {"rows": rows}, arguments.out)


if __name__ == "__main__":
    main()
