"""The contract of an environment. Rollouts, training and evaluation know nothing else of a world.

A world is one object with pure functions of ONE swarm; `jax.vmap` makes many. `UrbanGrid` is the
package's own; anything else that keeps the contract trains and evaluates in the same way.
"""

from __future__ import annotations

import abc
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jaxqmix.config import RunConfig, refuse
from jaxqmix.types import Observation, Symmetries, Timestep, pytree_dataclass


class Mission(Protocol):
    """What is counted of an episode. Its statistics are a record with a field `length`.

    When an episode is complete is the world's to say, by `Timestep.terminated`.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """Of `metrics`; `return` is one of them, which chooses a run's best checkpoint."""
        ...

    @property
    def progress(self) -> str:
        """The one of them that is drawn over the steps of an episode."""
        ...

    def init(self, timestep: Timestep) -> Any:
        """The statistics after a reset."""
        ...

    def update(
        self, statistics: Any, before: Any, after: Any, timestep: Timestep, params: Any
    ) -> Any:
        """Counts one step: from the state `before` to `after`."""
        ...

    def metrics(self, statistics: Any) -> dict[str, jax.Array]:
        """The metrics of an episode, a float32 scalar each."""
        ...

    def bounds(self, state: Any, params: Any) -> dict[str, jax.Array]:
        """What is known of an episode from its start, a float32 scalar each."""
        ...


class Recorder(Protocol):
    """Makes a recording of one episode; `Environment.recorder` says what it is."""

    def init(self, state: Any, params: Any) -> Any:
        """What is carried from step to step, after a reset."""
        ...

    def update(
        self, carry: Any, done: jax.Array, state: Any, params: Any, timestep: Timestep, actions: Any
    ) -> tuple[Any, Any]:
        """The new carry, and what to keep of a step: padding where the episode was over before."""
        ...

    def finish(self, start: Any, params: Any, carry: Any, steps: Any, length: Any) -> Any:
        """The recording.

        Args:
          start: the state after the reset.
          params: of the episode.
          carry: the last one.
          steps: what `update` kept, time [T] in front.
          length: [], steps flown.
        """
        ...


class Environment(abc.ABC):
    """A world of N agents with one team reward.

    An episode ends by `Timestep.terminated` (its mission is complete: no future reward) or by
    `truncated` (its time is over: the last observation is still of this episode). The world goes
    on afterwards, harmlessly; whoever flies it masks that and begins a new one.
    """

    agents: int
    """Agents N."""
    actions: int
    """Actions A of each."""
    horizon: int
    """The most env steps of an episode."""
    constants: tuple[str, ...] = ()
    """Fields of the state that stay as they are in an episode: loops need not carry them."""

    @abc.abstractmethod
    def reset(self, key: jax.Array, params: Any) -> tuple[Any, Timestep]:
        """Starts an episode. Consumes the key once.

        Returns:
          The state, and a timestep with reward 0: observation of agents [N, D], available actions
          [N, A] (bool, one at least) and the mixer's state [S].
        """

    @abc.abstractmethod
    def step(
        self, key: jax.Array, state: Any, actions: jax.Array, params: Any
    ) -> tuple[Any, Timestep]:
        """Flies one env step with an action per agent, int32 [N]. Consumes the key once."""

    def draw_params(self, key: jax.Array) -> Any:
        """What may vary between episodes without compiling again; nothing by default."""
        return ()

    @property
    def mission(self) -> Mission:
        """What is counted of an episode; by default its return."""
        return ReturnMission()

    @property
    def recorder(self) -> Recorder | None:
        """How an episode is recorded; None where it cannot be."""
        return None

    @property
    def name(self) -> str:
        """Of the world, as the settings of a run in it keep it."""
        return type(self).__name__

    def symmetries(self) -> Symmetries | None:
        """What leaves the world as it is but for the agents' numbers; None without any."""
        return None

    def reset_at(self, key: jax.Array, params: Any, time: jax.Array) -> tuple[Any, Timestep]:
        """Starts an episode as if so many steps were flown, so that the time limits of many swarms
        do not fall together. By default they do."""
        return self.reset(key, params)

    def settings(self, config: RunConfig) -> RunConfig:
        """The settings of a run in this world, which has the last word on what it is."""
        sizes = {"env.drones": self.agents, "env.horizon": self.horizon, "env.neighbours": 0}
        return config.replace(world=self.name, **sizes)

    def under(self, config: RunConfig) -> Environment:
        """The same world under other settings; by default it knows none."""
        return self

    def in_training(self, config: RunConfig) -> Environment:
        """The world of training, where that is not quite the one that policies are for."""
        return self

    def ending_at(self, progress: float) -> Environment:
        """The same world with missions that are complete at another progress; 1 is all of it.

        Raises:
          ConfigError: by default, for a world alone says when its missions end.
        """
        refuse("env", self.name, "this world alone says when its missions end")

    def with_domain(self, domain: Any) -> Environment:
        """The same world drawn from other ranges, `jaxqmix.env.domain.Ranges`.

        Raises:
          ConfigError: by default, for a world may draw from none.
        """
        refuse("env", self.name, "this world is drawn from no domain, by which runs could differ")

    def fixed(self, params: Any) -> Environment:
        """The same world with these params in every episode.

        Raises:
          ConfigError: by default.
        """
        refuse("env", self.name, "the params of this world cannot be chosen")

    def observation_spec(self) -> Observation:
        """Shapes and types of an observation."""
        reset = jax.eval_shape(
            lambda key: self.reset(key, self.draw_params(key)), jax.random.key(0)
        )
        return reset[1].observation

    def action_spec(self) -> jax.ShapeDtypeStruct:
        """Shape and type of the actions; each is from 0 to `actions` - 1."""
        return jax.ShapeDtypeStruct((self.agents,), jnp.int32)


@pytree_dataclass
class Return:
    """The statistics of `ReturnMission`."""

    length: jax.Array  # [] int32, steps flown
    total_reward: jax.Array  # [] float32


class ReturnMission:
    """Counts an episode's return, and no more."""

    names = ("return",)
    progress = "return"

    def init(self, timestep: Timestep) -> Return:
        """Zeros."""
        return Return(jnp.int32(0), jnp.float32(0))

    def update(
        self, statistics: Return, before: Any, after: Any, timestep: Timestep, params: Any
    ) -> Return:
        """Adds a step's reward."""
        return Return(statistics.length + 1, statistics.total_reward + timestep.reward)

    def metrics(self, statistics: Return) -> dict[str, jax.Array]:
        """The return."""
        return {"return": statistics.total_reward}

    def bounds(self, state: Any, params: Any) -> dict[str, jax.Array]:
        """Nothing."""
        return {}
