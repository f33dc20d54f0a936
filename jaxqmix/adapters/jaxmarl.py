"""JaxMARL both ways: its worlds for our learner, and our world for its algorithms.

    from jaxmarl import make
    world = JaxMarlWorld(make("MPE_simple_spread_v3"))
    jaxqmix.train(config, "runs/spread", env=world)

    env = JaxMarlSwarm(jaxqmix.make(jaxqmix.preset("quick")))
    manager = RolloutManager(env, batch_size=8)

Rutherford et al. 2024, "JaxMARL: Multi-Agent RL Environments and Algorithms in JAX".
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxqmix.config import ConfigError
from jaxqmix.env.base import Environment
from jaxqmix.types import Observation, Timestep, pytree_dataclass

try:
    from jaxmarl.environments.multi_agent_env import MultiAgentEnv
    from jaxmarl.environments.spaces import Box, Discrete
    from jaxmarl.wrappers.baselines import CTRolloutManager
except ImportError as error:
    raise ConfigError(
        f'adapter = jaxmarl is not allowed: it needs pip install ".[jaxmarl]" ({error})'
    ) from None

SHARED_REWARD = ("smax", "overcooked", "hanabi")
"""Worlds that give every agent the whole team's reward, as JaxMARL's own rollout manager has it."""


@pytree_dataclass
class MarlState:
    """State of a `JaxMarlWorld`."""

    inner: Any  # its own
    time: jax.Array  # [] int32, env steps flown


@dataclasses.dataclass(frozen=True, eq=False)
class JaxMarlWorld(Environment):
    """A cooperative world of JaxMARL with discrete actions, as its own rollout manager shows it.

    Agents observe their vector, filled up with zeros to the longest, and which agent they are; the
    mixer's state is the world's own where there is one, else all vectors. The reward is the sum
    over agents, or the team's where each is given all of it. An episode that ends at the time limit
    is truncated: its future still counts in targets. Dead agents stay, with what the world leaves
    available to them.
    """

    inner: MultiAgentEnv
    """Of `jaxmarl.make`."""
    most_steps: int | None = None
    """The time limit in env steps; None: its `max_steps`."""

    def __post_init__(self) -> None:
        """Raises `ConfigError` when there is no time limit, or actions are not discrete."""
        name = self.inner.name
        if self.most_steps is None and not hasattr(self.inner, "max_steps"):
            raise ConfigError(
                f"most_steps = None is not allowed: {name} says no max_steps; give them"
            )
        if not all(hasattr(self.inner.action_space(agent), "n") for agent in self.inner.agents):
            raise ConfigError(f"env = {name} is not allowed: its actions are not discrete")

    @property
    def name(self) -> str:
        """The world's own."""
        return self.inner.name

    @property
    def agents(self) -> int:  # type: ignore[override]
        """Agents N."""
        return len(self.inner.agents)

    @property
    def actions(self) -> int:  # type: ignore[override]
        """The most actions A of an agent."""
        return max(self.inner.action_space(agent).n for agent in self.inner.agents)

    @property
    def horizon(self) -> int:  # type: ignore[override]
        """The time limit; its own and one step, for some worlds look at the clock before they
        step."""
        return self.most_steps or self.inner.max_steps + 1

    @property
    def last(self) -> int:
        """The env step from which an end is one of time: its own limit's, or the one given."""
        own = getattr(self.inner, "max_steps", self.horizon)
        return min(own, self.most_steps or own)

    def reset(self, key: jax.Array, params: Any) -> tuple[MarlState, Timestep]:
        """Starts an episode. Consumes the key once."""
        seen, inner = self.inner.reset(key)
        state = MarlState(inner, jnp.int32(0))
        return state, self._timestep(seen, state, jnp.float32(0), jnp.bool_(False))

    def step(
        self, key: jax.Array, state: MarlState, actions: jax.Array, params: Any
    ) -> tuple[MarlState, Timestep]:
        """Steps without its reset at the end of an episode: our rollouts begin the next one."""
        chosen = {agent: actions[index] for index, agent in enumerate(self.inner.agents)}
        seen, inner, rewards, dones, _ = self.inner.step_env(key, state.inner, chosen)
        state = MarlState(inner, state.time + 1)
        each = jnp.stack([rewards[agent] for agent in self.inner.agents])
        shared = any(kind in self.inner.name.lower() for kind in SHARED_REWARD)
        reward = (each[0] if shared else jnp.sum(each)).astype(jnp.float32)
        return state, self._timestep(seen, state, reward, jnp.asarray(dones["__all__"], bool))

    def _timestep(
        self, seen: dict[str, jax.Array], state: MarlState, reward: jax.Array, over: jax.Array
    ) -> Timestep:
        vectors = [seen[agent].reshape(-1).astype(jnp.float32) for agent in self.inner.agents]
        size = max(len(vector) for vector in vectors)
        padded = jnp.stack([jnp.pad(vector, (0, size - len(vector))) for vector in vectors])
        observation = Observation(
            agents=jnp.concatenate([padded, jnp.eye(self.agents, dtype=jnp.float32)], axis=1),
            available=self._available(state),
            state=jnp.asarray(seen.get("world_state", jnp.concatenate(vectors)), jnp.float32),
        )
        # An end at its own time limit is one of time.
        late = state.time >= self.last
        truncated = (over & late) | (state.time >= self.horizon)
        return Timestep(observation, reward, over & ~late, truncated, {})

    def _available(self, state: MarlState) -> jax.Array:
        """Actions that agents may choose, [N, A]; what is beyond an agent's own number is not."""
        counts = np.array([self.inner.action_space(agent).n for agent in self.inner.agents])
        own = jnp.asarray(np.arange(self.actions) < counts[:, None])
        legal = getattr(self.inner, "get_legal_moves", self.inner.get_avail_actions)  # Hanabi
        try:
            told = legal(state.inner)
        except NotImplementedError:  # all of them
            return own
        masks = [told[agent].astype(bool) for agent in self.inner.agents]
        return own & jnp.stack([jnp.pad(mask, (0, self.actions - len(mask))) for mask in masks])


@pytree_dataclass
class SwarmState:
    """State of a `JaxMarlSwarm`."""

    inner: Any  # the world's
    params: Any  # of the episode
    timestep: Timestep  # the last one
    step: jax.Array  # [] int32, env steps flown


class JaxMarlSwarm(MultiAgentEnv):
    """Any `Environment` of ours as JaxMARL's: every episode draws its world; all drones get the
    team's reward and end together, `world_state` lies beside their observations."""

    def __init__(self, env: Environment):
        """Wraps a world, such as `jaxqmix.make(config)`."""
        super().__init__(env.agents)
        self.env, self.max_steps = env, env.horizon
        self.agents = [f"drone_{number}" for number in range(env.agents)]
        spec = env.observation_spec()
        self.state_size = spec.state.shape[-1]
        shape = spec.agents.shape[1:]
        self.observation_spaces = {agent: Box(-jnp.inf, jnp.inf, shape) for agent in self.agents}
        self.action_spaces = {agent: Discrete(env.actions) for agent in self.agents}

    @property
    def name(self) -> str:
        """Of the world."""
        return self.env.name

    @property
    def agent_classes(self) -> dict[str, list[str]]:
        """All drones are alike."""
        return {"drones": self.agents}

    @partial(jax.jit, static_argnums=0)
    def reset(self, key: jax.Array) -> tuple[dict[str, jax.Array], SwarmState]:
        """Observations by agent with `world_state`, and the state. Consumes the key once."""
        world_key, reset_key = jax.random.split(key)
        params = self.env.draw_params(world_key)
        inner, timestep = self.env.reset(reset_key, params)
        state = SwarmState(inner, params, timestep, jnp.int32(0))
        return self.get_obs(state), state

    @partial(jax.jit, static_argnums=0)
    def step_env(
        self, key: jax.Array, state: SwarmState, actions: dict[str, jax.Array]
    ) -> tuple[dict, SwarmState, dict, dict, dict]:
        """Observations, state, rewards, whether over (with `__all__`), and the step's metrics."""
        chosen = jnp.stack([actions[agent] for agent in self.agents]).astype(jnp.int32)
        inner, timestep = self.env.step(key, state.inner, chosen, state.params)
        after = SwarmState(inner, state.params, timestep, state.step + 1)
        over = timestep.terminated | timestep.truncated
        rewards = dict.fromkeys(self.agents, timestep.reward)
        dones = dict.fromkeys([*self.agents, "__all__"], over)
        return self.get_obs(after), after, rewards, dones, dict(timestep.metrics)

    def get_obs(self, state: SwarmState) -> dict[str, jax.Array]:
        """Observations [D] by agent, and `world_state` [S]."""
        seen = state.timestep.observation
        each = {agent: seen.agents[index] for index, agent in enumerate(self.agents)}
        return each | {"world_state": seen.state}

    @partial(jax.jit, static_argnums=0)
    def get_avail_actions(self, state: SwarmState) -> dict[str, jax.Array]:
        """Available actions [A] by agent, bool."""
        mask = state.timestep.observation.available
        return {agent: mask[index] for index, agent in enumerate(self.agents)}


class RolloutManager(CTRolloutManager):
    """JaxMARL's rollout manager with our mask, state and team reward.

    Its training scripts take it in place of their own: `script.CTRolloutManager = RolloutManager`.
    """

    def __init__(self, env: JaxMarlSwarm, *arguments: Any, **options: Any):
        """See `CTRolloutManager`."""
        super().__init__(env, *arguments, **options)
        self.global_state = lambda seen, state: seen["world_state"]
        self.global_reward = lambda rewards: rewards[self.training_agents[0]]
        self.get_valid_actions = lambda state: jax.vmap(env.get_avail_actions)(state)
