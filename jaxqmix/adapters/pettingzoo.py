"""A swarm as PettingZoo's parallel environment, for libraries of other frameworks.

NumPy in and out, one swarm at a time: for speed, vmap `jaxqmix.make(config)` instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxqmix.compilation import jit
from jaxqmix.config import ConfigError, DomainConfig, EnvConfig, RunConfig
from jaxqmix.env.urban_grid import UrbanGrid
from jaxqmix.loading import make
from jaxqmix.maps import CityMap
from jaxqmix.types import EnvParams, State, Timestep

try:
    from gymnasium import spaces
    from pettingzoo import ParallelEnv
except ImportError:
    raise ConfigError(
        'adapter = pettingzoo is not allowed: it needs pip install ".[pettingzoo]"'
    ) from None


def parallel_env(
    config: RunConfig | EnvConfig,
    domain: DomainConfig | None = None,
    city: str | Path | CityMap | None = None,
) -> SwarmEnv:
    """PettingZoo's parallel environment of one swarm; the arguments are those of `jaxqmix.make`."""
    return SwarmEnv(make(config, domain, city))


class SwarmEnv(ParallelEnv):
    """One swarm; every drone observes `observation` float32 [D] and `action_mask` int8 [A].

    All drones get the team's reward and end together. Unavailable actions may be given all the
    same: a move into an obstacle is blocked and counted. Each reset draws a city and a world.
    """

    metadata = {"name": "jaxqmix_v0", "render_modes": [], "is_parallelizable": True}  # noqa: RUF012
    render_mode = None

    def __init__(self, env: UrbanGrid):
        """Compiles nothing before the first reset."""
        self.env = env
        self.possible_agents = [f"drone_{number}" for number in range(env.config.drones)]
        self.agents: list[str] = []
        shape = jax.eval_shape(_begin(env), jax.random.key(0))[3].observation
        self.state_space = spaces.Box(-np.inf, np.inf, shape.state.shape, np.float32)
        self.observation_spaces = {
            agent: spaces.Dict(
                {
                    "observation": spaces.Box(-np.inf, np.inf, (env.features,), np.float32),
                    "action_mask": spaces.Box(0, 1, (env.actions,), np.int8),
                }
            )
            for agent in self.possible_agents
        }
        self.action_spaces = {agent: spaces.Discrete(env.actions) for agent in self.possible_agents}
        self._begin, self._fly = jit(_begin(env)), jit(_fly(env))
        self._key: jax.Array | None = None
        # Until the first reset there is none.
        self._swarm: Any = None
        self._mixer_state: Any = None

    def observation_space(self, agent: str) -> spaces.Dict:
        """The same object each time."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Discrete:
        """The same object each time; the order is that of `jaxqmix.types.ACTIONS`."""
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        """Draws a world and a city and starts an episode.

        Args:
          seed: decides this episode and, until the next seed, all that follow; without any, they
            are new each time.
          options: none are known.

        Returns:
          Observations and infos by agent.
        """
        if seed is not None:
            self._key = jax.random.key(np.uint32(seed))
        elif self._key is None:
            self._key = jax.random.key(np.random.SeedSequence().generate_state(1)[0])
        self._key, state, params, timestep = self._begin(self._key)
        self._swarm, self.agents = (state, params), list(self.possible_agents)
        return self._observations(timestep)

    def step(self, actions: dict[str, int]) -> tuple[dict, dict, dict, dict, dict]:
        """Flies one step.

        Args:
          actions: of every drone, 0 to A - 1.

        Returns:
          Observations, rewards, terminations, truncations and infos by agent; empty when the
          episode is over.

        Raises:
          ValueError: when a drone has no action, or one that does not exist.
        """
        if not self.agents:
            return {}, {}, {}, {}, {}
        for agent in self.agents:
            if not self.action_spaces[agent].contains(actions.get(agent)):
                allowed = f"must be a whole number from 0 to {self.env.actions - 1}"
                raise ValueError(f"action of {agent} = {actions.get(agent)!r}: {allowed}")
        state, params = self._swarm
        chosen = np.array([actions[agent] for agent in self.agents], np.int32)
        self._key, state, timestep = self._fly(self._key, state, chosen, params)
        self._swarm = (state, params)
        observations, infos = self._observations(timestep)
        terminated, truncated = bool(timestep.terminated), bool(timestep.truncated)
        if terminated or truncated:
            self.agents = []
        rewards = dict.fromkeys(observations, float(timestep.reward))
        terminations = dict.fromkeys(observations, terminated)
        truncations = dict.fromkeys(observations, truncated)
        return observations, rewards, terminations, truncations, infos

    def state(self) -> np.ndarray:
        """What a mixer sees of the whole swarm, float32 [S]."""
        return self._mixer_state

    def render(self) -> None:
        """Nothing: `jaxqmix.render` draws recorded episodes."""

    def close(self) -> None:
        """Nothing is open."""

    def _observations(self, timestep: Timestep) -> tuple[dict[str, Any], dict[str, Any]]:
        seen = jax.device_get(timestep.observation)
        self._mixer_state = seen.state
        mask = seen.available.astype(np.int8)
        infos = {
            agent: {"coverage": float(timestep.metrics["coverage"])}
            for agent in self.possible_agents
        }
        observations = {
            agent: {"observation": seen.agents[i], "action_mask": mask[i]}
            for i, agent in enumerate(self.possible_agents)
        }
        return observations, infos


def _begin(env: UrbanGrid) -> Any:
    """key -> the next key, a swarm's state, its world, and the timestep of its reset."""

    def begin(key: jax.Array) -> tuple[jax.Array, State, EnvParams, Timestep]:
        key, params_key, reset_key = jax.random.split(key, 3)
        params = env.draw_params(params_key)
        state, timestep = env.reset(reset_key, params)
        return key, state, params, timestep

    return begin


def _fly(env: UrbanGrid) -> Any:
    """One step; the next key comes first of what it returns."""

    def fly(
        key: jax.Array, state: State, actions: jax.Array, params: EnvParams
    ) -> tuple[jax.Array, State, Timestep]:
        key, step_key = jax.random.split(key)
        return key, *env.step(step_key, state, actions, params)

    return fly
