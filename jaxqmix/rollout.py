"""Many swarms flown side by side: `jax.vmap` over swarms, `jax.lax.scan` over time.

The policy is an argument, and so is the world: whatever keeps the contract of
`jaxqmix.env.base.Environment`. Episodes end inside a rollout, but new ones begin only between
rollouts (`auto_reset`), so that no reset is ever computed inside a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxqmix.config import ConfigError
from jaxqmix.env.base import Environment, Mission, Recorder
from jaxqmix.types import Policy, Sequences, Timestep, pytree_dataclass, replace

CONSTANT: Any = None
"""In the place of what does not change, and need not be carried from step to step."""


@pytree_dataclass
class Swarms:
    """Swarms side by side; every leaf has the axis B in front."""

    state: Any  # the world's
    params: Any  # the world's
    timestep: Timestep
    hidden_state: Any  # the policy's
    done: jax.Array  # [B] bool, the episode is over and the swarm waits
    statistics: Any  # the mission's


def begin(
    keys: jax.Array, env: Environment, policy: Policy, times: jax.Array | None = None
) -> Swarms:
    """Draws worlds and starts an episode for each key [B]; with `times` [B] int32, as if so many
    steps of it were flown. Consumes the keys once."""

    def one(key: jax.Array, time: jax.Array | None) -> Swarms:
        params_key, reset_key = jax.random.split(key)
        params = env.draw_params(params_key)
        if time is None:
            state, timestep = env.reset(reset_key, params)
        else:
            state, timestep = env.reset_at(reset_key, params, time)
        statistics = env.mission.init(timestep)
        start = policy.initial_hidden_state()
        return Swarms(state, params, timestep, start, jnp.bool_(False), statistics)

    return jax.vmap(one)(keys, times)


def sums(mission: Mission) -> tuple[str, ...]:
    """What `rollout` sums: over the episodes that ended; and `flown`, the steps of all swarms that
    were not waiting for a new episode."""
    return (*mission.names, "length", "episodes", "flown")


def without_constants(state: Any, env: Environment) -> Any:
    """A state less what does not change in an episode: the compiler then need not copy it from step
    to step."""
    return replace(state, **dict.fromkeys(env.constants, CONSTANT)) if env.constants else state


def with_constants(state: Any, whole: Any, env: Environment) -> Any:
    """The state with what `without_constants` took out of the `whole` one."""
    kept = {name: getattr(whole, name) for name in env.constants}
    return replace(state, **kept) if kept else state


def fly_step(
    keys: jax.Array, swarms: Swarms, policy: Policy, env: Environment
) -> tuple[Swarms, jax.Array]:
    """One env step of every swarm, with a key each [B].

    Of swarms that are done only `statistics` and `done` stay; callers mask the rest.

    Returns:
      The swarms, and the commands [B, N].
    """

    def one(key: jax.Array, swarm: Swarms) -> tuple[Swarms, jax.Array]:
        policy_key, step_key = jax.random.split(key)
        actions, hidden_state = policy(policy_key, swarm.state, swarm.timestep, swarm.hidden_state)
        state, timestep = env.step(step_key, swarm.state, actions, swarm.params)
        counted = env.mission.update(swarm.statistics, swarm.state, state, timestep, swarm.params)
        statistics = jax.tree.map(
            lambda old, new: jnp.where(swarm.done, old, new), swarm.statistics, counted
        )
        done = swarm.done | timestep.terminated | timestep.truncated
        return Swarms(state, swarm.params, timestep, hidden_state, done, statistics), actions

    return jax.vmap(one)(keys, swarms)


def kept_of(policy: Policy) -> Callable[[Any], Any]:
    """What a policy keeps of a step for its learner, from its hidden state after it; nothing by
    default."""
    return getattr(policy, "kept", lambda hidden_state: ())


def rollout(
    key: jax.Array, swarms: Swarms, policy: Policy, env: Environment, steps: int
) -> tuple[Swarms, Sequences, dict[str, jax.Array]]:
    """Flies every swarm for `steps` env steps.

    Args:
      key: consumed once.
      swarms: B swarms.
      policy: chooses the actions.
      env: the world.
      steps: T.

    Returns:
      The swarms, the sequences for the learner (S = B), and what `sums` names.
    """
    hidden_state, whole = swarms.hidden_state, swarms.state
    keep = kept_of(policy)

    def body(swarms: Swarms, keys: jax.Array) -> tuple[Swarms, tuple]:
        swarms = replace(swarms, state=with_constants(swarms.state, whole, env))
        after, actions = fly_step(keys, swarms, policy, env)
        output = (actions, after.timestep, ~swarms.done, keep(after.hidden_state))
        return replace(after, state=without_constants(after.state, env)), output

    first = replace(swarms, state=without_constants(swarms.state, env))
    last, (actions, timestep, valid, kept) = jax.lax.scan(
        body, first, jax.random.split(key, (steps, swarms.done.shape[0]))
    )
    before, later = swarms.timestep.observation, timestep.observation
    sequences = Sequences(
        observation=jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), before, later),
        actions=actions,
        reward=timestep.reward,
        terminated=timestep.terminated,
        truncated=timestep.truncated,
        valid=valid,
        hidden_state=hidden_state,
        kept=kept,
    )
    ended = last.done & valid[0]
    metrics = jax.vmap(env.mission.metrics)(last.statistics)
    metrics |= {"episodes": jnp.ones_like(ended, jnp.float32), "length": last.statistics.length}
    totals = {name: jnp.sum(jnp.where(ended, value, 0.0)) for name, value in metrics.items()}
    totals["flown"] = jnp.sum(valid, dtype=jnp.float32)
    return replace(last, state=with_constants(last.state, whole, env)), sequences, totals


def auto_reset_count(horizon: int, swarms: int, steps: int) -> int:
    """How many swarms can begin anew between two rollouts.

    Half as many again as time limits alone would need, for episodes that end earlier.
    """
    return min(swarms, math.ceil(1.5 * swarms * steps / horizon))


def auto_reset(
    key: jax.Array, swarms: Swarms, env: Environment, policy: Policy, count: int
) -> Swarms:
    """Starts new episodes for up to `count` swarms that are done; the rest wait for the next call.

    Bounded work: exactly `count` episodes are drawn, and those not needed are dropped. Where more
    swarms wait than that, chance decides, so that none waits for ever.
    """
    chance_key, key = jax.random.split(key)
    chance = jax.random.uniform(chance_key, swarms.done.shape)
    _, chosen = jax.lax.top_k(swarms.done + chance / 2, count)
    fresh = begin(jax.random.split(key, count), env, policy)
    needed = swarms.done[chosen]

    def place(old: jax.Array, new: jax.Array) -> jax.Array:
        keep = needed.reshape(-1, *[1] * (new.ndim - 1))
        return old.at[chosen].set(jnp.where(keep, new, old[chosen]), unique_indices=True)

    return jax.tree.map(place, swarms, fresh)


def find_recorder(env: Environment) -> Recorder:
    """The world's recorder; raises `ConfigError` where there is none."""
    if env.recorder is None:
        raise ConfigError(f"env = {env.name} is not allowed: it records no episodes")
    return env.recorder


def fly_episodes(
    keys: jax.Array, env: Environment, policy: Policy, record: int = 0
) -> tuple[dict[str, jax.Array], Any]:
    """Flies whole episodes from reset to end.

    Args:
      keys: [E], one for each episode; it decides the world, the starts and everything random in
        flight; the world and the starts do not depend on the policy.
      env: the world.
      policy: chooses the actions.
      record: how many episodes to record, from the first on; at most E.

    Returns:
      The metrics and bounds of the mission for every episode [E], and how its `progress` metric
      went, its progress `..._over_time` [E, T + 1], which stays as it is after the end; and what
      `env.recorder` makes of min(record, E) episodes (an `Episode` each), or None without any.
    """
    begin_keys, fly_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    swarms = begin(begin_keys, env, policy)
    mission, whole = env.mission, swarms.state
    watched = _first(swarms, record)
    recorder = find_recorder(env) if record else None
    carry = jax.vmap(recorder.init)(watched.state, watched.params) if recorder else None

    def progress(swarms: Swarms) -> jax.Array:
        return jax.vmap(mission.metrics)(swarms.statistics)[mission.progress]

    def body(carried: tuple, time: jax.Array) -> tuple[tuple, tuple]:
        before, carry = carried
        before = replace(before, state=with_constants(before.state, whole, env))
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(fly_keys, time)
        swarms, actions = fly_step(step_keys, before, policy, env)
        kept = None
        if recorder:
            now, done = _first(swarms, record), before.done[:record]
            carry, kept = jax.vmap(recorder.update)(
                carry, done, now.state, now.params, now.timestep, actions[:record]
            )
        output = (progress(swarms), kept)
        return (replace(swarms, state=without_constants(swarms.state, env)), carry), output

    start = replace(swarms, state=without_constants(swarms.state, env))
    (last, carry), (later, kept) = jax.lax.scan(body, (start, carry), jnp.arange(env.horizon))
    over_time = jnp.concatenate([progress(swarms)[None], later]).T
    metrics = jax.vmap(mission.metrics)(last.statistics)
    metrics |= jax.vmap(mission.bounds)(swarms.state, swarms.params)
    metrics |= {f"{mission.progress}_over_time": over_time}
    if not recorder:
        return metrics, None
    recorded = jax.vmap(recorder.finish, (0, 0, 0, 1, 0))(
        watched.state, watched.params, carry, kept, last.statistics.length[:record]
    )
    return metrics, recorded


def _first(swarms: Swarms, count: int) -> Swarms:
    return jax.tree.map(lambda leaf: leaf[:count], swarms)
