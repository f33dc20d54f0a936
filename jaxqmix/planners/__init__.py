"""Scripted baselines: they know the true state, and a learned policy has to beat them.

`greedy` heads for the nearest unseen cell by the move that sees most on the way. `voronoi` does the
same within the cells nearest to the drone, and helps elsewhere when these are done. `lanes` cuts
one long boustrophedon over the city into equal parts, one per drone, and helps elsewhere when its
part is done. `tours` gives every drone a path over tiles from where it is, makes the longest short
by local search, and does so again from time to time. `random` draws among the available actions;
the others give every drone a goal (`pursuit`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from jaxqmix.config import ConfigError, EnvConfig, require

if TYPE_CHECKING:
    from jaxqmix.types import Policy

_HOMES = {
    "greedy": ("greedy", "Greedy"),
    "voronoi": ("greedy", "voronoi"),
    "lanes": ("lanes", "Lanes"),
    "tours": ("tours", "Tours"),
    "random": ("chance", "Random"),
}
"""A planner is a file here, and an entry: its name, the file, and what in it makes a policy from an
`EnvConfig`. The command line and the benchmarks follow."""
PLANNERS = tuple(_HOMES)
RIVALS = tuple(name for name in PLANNERS if name != "random")
"""What a policy is compared with."""


def planner(name: str, config: EnvConfig) -> Policy:
    """The scripted baseline called `name`, for worlds of `config`.

    Raises:
      ConfigError: there is none of this name.
    """
    if name not in PLANNERS:
        raise ConfigError(f"planner = {name} is not allowed: must be one of {', '.join(PLANNERS)}")
    blind = name in RIVALS and "weather" in config.blind_to
    require(
        not blind, "env.blind_to", "weather", f"{name} must know the weather: jaxqmix.scripted does"
    )
    file, maker = _HOMES[name]
    return getattr(import_module(f"jaxqmix.planners.{file}"), maker)(config)
