"""The compiled programs that several benchmarks measure: swarms begun, and flown at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from common import chained, compile_program
from jax.sharding import Mesh, PartitionSpec

from jaxqmix.distributed import SHARDED, SWARMS, make_mesh, on_each_device, place, shardings
from jaxqmix.env.urban_grid import UrbanGrid
from jaxqmix.planners.chance import Random
from jaxqmix.policies import LearnedPolicy
from jaxqmix.rollout import Swarms, begin, fly_step, with_constants, without_constants
from jaxqmix.training import Trainer
from jaxqmix.types import Sequences, replace


def over_swarms(function: Callable, mesh: Mesh) -> Callable:
    """Runs a function of one device's swarms on every device; see `jaxqmix.distributed`."""
    return on_each_device(function, mesh, SHARDED, SHARDED)


def swarm_mesh(swarms: int) -> Mesh:
    """As many devices as share the swarms evenly."""
    return make_mesh(lambda devices: swarms % devices == 0)


def swarm_keys(seed: int, swarms: int, mesh: Mesh | None = None) -> jax.Array:
    """A key for each swarm, on its device; `swarm_mesh` by default."""
    keys = jax.random.split(jax.random.key(seed), swarms)
    return place(keys, mesh or swarm_mesh(swarms), SHARDED)


def sequence_specs() -> Sequences:
    """How a rollout's sequences are spread: along the second axis, hidden states the first."""
    specs = dict.fromkeys(Sequences.__dataclass_fields__, PartitionSpec(None, SWARMS))
    return Sequences(**(specs | {"hidden_state": SHARDED}))


def begin_program(env: UrbanGrid, swarms: int) -> tuple[Callable, dict[str, float]]:
    """The compiled program from keys [B] to swarms at the start of an episode."""
    policy = Random()
    function = over_swarms(lambda keys: begin(keys, env, policy), swarm_mesh(swarms))
    return compile_program(function, swarm_keys(0, swarms))


def flight_program(
    env: UrbanGrid, swarms: Swarms, steps: int, observations: bool = True
) -> tuple[Callable[[], Any], dict[str, float]]:
    """Flies swarms (donated), where they are, for `steps` env steps at every call, under random
    available actions.

    Without observations, only the mask of actions is computed. Nothing is reset.
    """
    policy = Random()

    def fly(carry: tuple[jax.Array, Swarms]) -> tuple[jax.Array, Swarms]:
        keys, swarms = carry
        whole = swarms.state

        def body(carry: tuple, _: None) -> tuple[tuple, None]:
            keys, swarms = carry
            keys, now = next_keys(keys)
            flying = replace(swarms, state=with_constants(swarms.state, whole, env))
            after, _ = fly_step(now, flying, policy, env)
            after = after if observations else without_observation(after)
            return (keys, replace(after, state=without_constants(after.state, env))), None

        start = replace(swarms, state=without_constants(whole, env))
        (keys, last), _ = jax.lax.scan(body, (keys, start), None, steps)
        return keys, replace(last, state=with_constants(last.state, whole, env))

    mesh = swarms.done.sharding.mesh
    keys = swarm_keys(1, swarms.done.shape[0], mesh)
    carry = (keys, swarms if observations else without_observation(swarms))
    # Pinned, for the compiler takes empty arrays apart, and the program would not fit its output.
    pinned = shardings(mesh, SHARDED)
    program, needs = compile_program(
        over_swarms(fly, mesh), carry, donate_argnums=0, out_shardings=pinned
    )
    return chained(program, carry), needs


def exploring(trainer: Trainer, agent: Any) -> LearnedPolicy:
    """The policy of an agent's parameters that explores at every second step."""
    learner = trainer.learner
    size = learner.hidden_state_size
    return LearnedPolicy(learner.agent, agent, trainer.env.agents, size, jnp.float32(0.5))


def next_keys(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys [B] for later and for now."""
    return jax.vmap(jax.random.split, out_axes=1)(keys)


def without_observation(swarms: Swarms) -> Swarms:
    """Swarms that keep the mask of actions only of what they observe: nothing else is computed."""
    mask = replace(swarms.timestep.observation, agents=None, state=None)
    return replace(swarms, timestep=replace(swarms.timestep, observation=mask))
