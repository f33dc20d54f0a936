"""How well do a trained policy and a planner bear what they were not made for?

Flies both over the same unseen cities with one condition at a time set to a value: packet loss,
wind, visibility, building density, no-fly zones; everything else is drawn as in the mission.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import parse, parser, save, show

from jaxqmix import api
from jaxqmix.compilation import enable_cache, jit
from jaxqmix.distributed import COPIED, SPREAD, make_mesh, on_each_device
from jaxqmix.env.urban_grid import UrbanGrid
from jaxqmix.evaluation import EVALUATION, METRICS
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


@dataclasses.dataclass(frozen=True)
class Fixed(UrbanGrid):
    """A world with some parameters set; wind as a speed in m/s."""

    values: Any = None

    def draw_params(self, key: jax.Array) -> EnvParams:
        """Draws one swarm's world and sets the given parameters; NaN leaves one as drawn."""
        params = super().draw_params(key)
        drawn = {name: getattr(params, name) for name in SWEEPS}
        speed = jnp.linalg.norm(params.wind)
        wind = params.wind / jnp.maximum(speed, 1e-6) * self.values["wind"]
        values = self.values | {"wind": wind}
        return replace(
            params,
            **{n: jnp.where(jnp.isnan(values[n]), drawn[n], values[n]) for n in SWEEPS},
        )


def flights(
    env: UrbanGrid, policy: Policy, episodes: int
) -> Callable[[dict[str, float]], dict[str, float]]:
    """A compiled `fly(values) -> metrics`, means over the episodes."""
    mesh = make_mesh(lambda devices: episodes % devices == 0)

    def fly(values: dict[str, jax.Array], keys: jax.Array) -> dict[str, jax.Array]:
        return fly_episodes(keys, Fixed(env.config, env.domain, values), policy)[0]

    everywhere = jit(on_each_device(fly, mesh, (COPIED, SPREAD), SPREAD))
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), EVALUATION), episodes)

    def mean(values: dict[str, float]) -> dict[str, float]:
        whole = {name: np.float32(values.get(name, np.nan)) for name in SWEEPS}
        metrics = jax.device_get(everywhere(whole, keys))
        return {name: float(np.mean(metrics[name])) for name in METRICS}

    return mean


def with_zones(flyer: api.Flyer, zones: int) -> UrbanGrid:
    """The flyer's world with another number of no-fly zones."""
    config = dataclasses.replace(flyer.config.env, no_fly_zones=zones)
    return UrbanGrid(config, flyer.config.domain)


def main() -> None:
    """Flies, shows and saves."""
    line = parser(__doc__)
    line.add_argument("run", type=Path, help="folder of a trained run")
    line.add_argument("--planner", default="lanes", choices=PLANNERS)
    line.add_argument("--episodes", type=int, default=64)
    line.add_argument("--name", default="robustness", help="of the result file")
    arguments = parse(line)
    enable_cache()
    trained = api.load_policy(arguments.run)
    rows = []
    for flyer in (trained, api.scripted(arguments.planner, trained.config)):

        def add(condition: str, value: float, metrics: dict[str, float], policy=flyer.name) -> None:
            rows.append({"policy": policy, "condition": condition, "value": value, **metrics})

        fly = flights(flyer.env, flyer.policy, arguments.episodes)
        for name, values in SWEEPS.items():
            for value in values:
                add(name, value, fly({name: value}))
        for zones in ZONES:
            fly = flights(with_zones(flyer, zones), flyer.policy, arguments.episodes)
            add("no_fly_zones", zones, fly({}))
    show(
        f"{trained.config.preset}, {arguments.episodes} unseen cities for each condition",
        ("condition", "value", "policy", "coverage", "t90", "collisions", "violations"),
        [
            (row["condition"], f"{row['value']:g}", row["policy"], f"{row['coverage']:.1%}",
             f"{row['t90']:.1f}", f"{row['collision_rate']:.3%}", f"{row['violation_rate']:.3%}")
            for row in sorted(rows, key=lambda row: (row["condition"], row["value"]))
        ],
    )  # fmt: skip
    about = {"preset": trained.config.preset, "episodes": arguments.episodes}
    save(arguments.name, about | {"rows": rows}, arguments.out)


if __name__ == "__main__":
    main()
