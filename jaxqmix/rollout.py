"""Many swarms flown side by side: `jax.vmap` over swarms, `jax.lax.scan` over time.

The policy is an argument. Episodes end inside a rollout, but new ones begin only between
rollouts (`auto_reset`), so that no reset is ever computed inside a step.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxqmix.city import coverable_cells, footprint_radius
from jaxqmix.config import COVERAGE_SUCCESS, EnvConfig
from jaxqmix.env.reward import perimeter_term
from jaxqmix.env.sensing import unpack_unseen
from jaxqmix.env.urban_grid import UrbanGrid
from jaxqmix.types import (
    EnvParams,
    Episode,
    Policy,
    RewardWeights,
    Sequences,
    State,
    Timestep,
    pytree_dataclass,
    replace,
)

MISSION_SUCCESS = 0.95
"""Coverage that makes a mission a success, unless it ends earlier."""
NO_CITY: Any = None
"""In the place of what does not change, and need not be carried from step to step."""


@pytree_dataclass
class EpisodeStatistics:
    """One swarm's episode so far."""

    length: jax.Array  # [] int32, steps flown
    total_reward: jax.Array  # [] float32
    collisions: jax.Array  # [] int32, drone steps in conflict or against a building
    collided: jax.Array  # [N] bool, drones with at least one such step
    violations: jax.Array  # [] int32, drone steps against a no-fly zone
    coverage: jax.Array  # [] float32
    t90: jax.Array  # [] int32, steps until 90 % coverage; the horizon until then
    perimeter_cost: jax.Array  # [] float32, what the perimeter took off the reward


@pytree_dataclass
class Swarms:
    """Swarms side by side; every leaf has the axis B in front."""

    state: State
    params: EnvParams
    timestep: Timestep
    hidden_state: Any  # the policy's
    done: jax.Array  # [B] bool, the episode is over and the swarm waits
    statistics: EpisodeStatistics


def begin(keys: jax.Array, env: UrbanGrid, policy: Policy) -> Swarms:
    """Draws worlds and starts an episode for each key [B]. Consumes the keys once."""

    def one(key: jax.Array) -> Swarms:
        params_key, reset_key = jax.random.split(key)
        params = env.draw_params(params_key)
        state, timestep = env.reset(reset_key, params)
        statistics = init_statistics(timestep, env.config)
        return Swarms(
            state, params, timestep, policy.initial_hidden_state(), jnp.bool_(False), statistics
        )

    return jax.vmap(one)(keys)


def init_statistics(timestep: Timestep, config: EnvConfig) -> EpisodeStatistics:
    """The statistics of an episode after its reset."""
    reached = timestep.coverage >= COVERAGE_SUCCESS
    return EpisodeStatistics(
        length=jnp.int32(0),
        total_reward=jnp.float32(0),
        collisions=jnp.int32(0),
        collided=jnp.zeros(config.drones, bool),
        violations=jnp.int32(0),
        coverage=timestep.coverage,
        t90=jnp.where(reached, 0, jnp.int32(config.horizon)),
        perimeter_cost=jnp.float32(0),
    )


def perimeter_cost(
    before: State, after: State, weights: RewardWeights, config: EnvConfig
) -> jax.Array:
    """What the perimeter takes off the reward of one step (see `urban_grid.step`), float32 []."""
    growth = after.perimeter - jnp.where(before.time == 0, 0, before.perimeter)
    return weights.perimeter * perimeter_term(growth, after.city.coverable, config)


def update_statistics(
    statistics: EpisodeStatistics, timestep: Timestep, perimeter_cost: jax.Array, config: EnvConfig
) -> EpisodeStatistics:
    """Adds one step of one swarm."""
    events = timestep.events
    collision = events.conflict | events.building_hit
    length = statistics.length + 1
    first = (timestep.coverage >= COVERAGE_SUCCESS) & (statistics.t90 >= config.horizon)
    return EpisodeStatistics(
        length=length,
        total_reward=statistics.total_reward + timestep.reward,
        collisions=statistics.collisions + jnp.sum(collision, dtype=jnp.int32),
        collided=statistics.collided | collision,
        violations=statistics.violations + jnp.sum(events.violation, dtype=jnp.int32),
        coverage=timestep.coverage,
        t90=jnp.where(first, length, statistics.t90),
        perimeter_cost=statistics.perimeter_cost + perimeter_cost,
    )


def episode_metrics(statistics: EpisodeStatistics, config: EnvConfig) -> dict[str, jax.Array]:
    """The metrics of one episode, each a float32 scalar.

    `mission_reward` is the return without the perimeter's cost: area, bonus and penalties. A
    mission succeeds at 95 % coverage, or at its `coverage_target` where that is less.
    """
    enough = min(MISSION_SUCCESS, config.coverage_target)
    drone_steps = jnp.maximum(statistics.length * config.drones, 1)
    return {
        "collision_rate": statistics.collisions / drone_steps,
        "collided_drones": jnp.mean(statistics.collided, dtype=jnp.float32),
        "violation_rate": statistics.violations / drone_steps,
        "coverage": statistics.coverage,
        "return": statistics.total_reward,
        "mission_reward": statistics.total_reward + statistics.perimeter_cost,
        "t90": statistics.t90.astype(jnp.float32),
        "mission_success": (statistics.coverage >= enough).astype(jnp.float32),
    }


METRICS = (
    "collision_rate",
    "collided_drones",
    "violation_rate",
    "coverage",
    "return",
    "mission_reward",
    "t90",
    "mission_success",
)
"""Names of `episode_metrics`."""
EVALUATED = (*METRICS, "limit")
"""What `fly_episodes` tells of each episode: its metrics, and `fewest_steps` from its start."""
SUMS = (*METRICS, "length", "episodes")
"""What `rollout` sums over the episodes that ended."""


def fewest_steps(
    coverable: jax.Array,
    seen: jax.Array,
    visibility: jax.Array,
    packet_loss: jax.Array,
    config: EnvConfig,
) -> jax.Array:
    """The limit: env steps to 90 % coverage that no swarm can expect to go below, float32 [].

    t >= (0.9 A - area seen at the start) / (N 2 r v (1 - loss)): N drones at the highest altitude,
    each of which sees a strip of new area as wide as its footprint with every command that arrives.

    Left out, and so the limit is loose: that footprints overlap, with each other and with what is
    seen, reach over the city's edge and see what is not coverable; climbing, turning, ways around
    no-fly zones; and chance, with `probabilistic` sensing. Left out too, and a swarm may gain a
    few per cent by it: wind that carries along, a grid that counts cells by their centres, and
    luck with the link, so that the limit is one of the mean over episodes. It may lie beyond the
    horizon.

    Args:
      coverable: [], coverable cells A.
      seen: [], those seen at the start.
      visibility: [], 0 to 1; it decides the radius r.
      packet_loss: [], probability.
      config: static sizes; v is a cell per step.
    """
    cells = jnp.maximum(COVERAGE_SUCCESS * coverable - seen, 0.0)
    radius = footprint_radius(jnp.float32(config.max_altitude), visibility)
    # Finite where every command is lost.
    arrive = jnp.maximum(1 - packet_loss, 1e-3)
    return cells / (config.drones * (2 * radius / config.cell_size) * arrive)


def fly_step(
    keys: jax.Array, swarms: Swarms, policy: Policy, env: UrbanGrid
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
        cost = perimeter_cost(swarm.state, state, swarm.params.reward, env.config)
        statistics = update_statistics(swarm.statistics, timestep, cost, env.config)
        statistics = jax.tree.map(
            lambda old, new: jnp.where(swarm.done, old, new), swarm.statistics, statistics
        )
        done = swarm.done | timestep.terminated | timestep.truncated
        return Swarms(state, swarm.params, timestep, hidden_state, done, statistics), actions

    return jax.vmap(one)(keys, swarms)


def rollout(
    key: jax.Array, swarms: Swarms, policy: Policy, env: UrbanGrid, steps: int
) -> tuple[Swarms, Sequences, dict[str, jax.Array]]:
    """Flies every swarm for `steps` env steps.

    Args:
      key: consumed once.
      swarms: B swarms.
      policy: chooses the actions.
      env: the world.
      steps: T.

    Returns:
      The swarms, the sequences for the learner (S = B), and sums over the episodes that ended:
      each metric of `episode_metrics`, `episodes` and `length`.
    """
    # The city does not change: kept out of the carry, the compiler need not copy it.
    city = swarms.state.city
    hidden_state = swarms.hidden_state

    def body(swarms: Swarms, keys: jax.Array) -> tuple[Swarms, tuple]:
        swarms = replace(swarms, state=replace(swarms.state, city=city))
        after, actions = fly_step(keys, swarms, policy, env)
        output = (actions, after.timestep, ~swarms.done)
        return replace(after, state=replace(after.state, city=NO_CITY)), output

    first = replace(swarms, state=replace(swarms.state, city=NO_CITY))
    last, (actions, timestep, valid) = jax.lax.scan(
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
    )
    ended = last.done & valid[0]
    metrics = jax.vmap(episode_metrics, (0, None))(last.statistics, env.config)
    metrics |= {"episodes": jnp.ones_like(ended, jnp.float32), "length": last.statistics.length}
    sums = {name: jnp.sum(jnp.where(ended, value, 0.0)) for name, value in metrics.items()}
    return replace(last, state=replace(last.state, city=city)), sequences, sums


def auto_reset_count(config: EnvConfig, swarms: int, steps: int) -> int:
    """How many swarms can begin anew between two rollouts.

    Half as many again as time limits alone would need, for episodes that end earlier.
    """
    return min(swarms, math.ceil(1.5 * swarms * steps / config.horizon))


def auto_reset(
    key: jax.Array, swarms: Swarms, env: UrbanGrid, policy: Policy, count: int
) -> Swarms:
    """Starts new episodes for up to `count` swarms that are done; the rest wait for the next call.

    Bounded work: exactly `count` episodes are drawn, and those not needed are dropped.
    """
    waiting = swarms.done.astype(jnp.int32)
    _, chosen = jax.lax.top_k(waiting, count)
    fresh = begin(jax.random.split(key, count), env, policy)
    needed = swarms.done[chosen]

    def place(old: jax.Array, new: jax.Array) -> jax.Array:
        keep = needed.reshape(-1, *[1] * (new.ndim - 1))
        return old.at[chosen].set(jnp.where(keep, new, old[chosen]), unique_indices=True)

    return jax.tree.map(place, swarms, fresh)


def fly_episodes(
    keys: jax.Array, env: UrbanGrid, policy: Policy, record: int = 0
) -> tuple[dict[str, jax.Array], Episode | None]:
    """Flies whole episodes from reset to end.

    Args:
      keys: [E], one for each episode; it decides the city, the starts and everything random in
        flight; the city and the starts do not depend on the policy.
      env: the world.
      policy: chooses the actions.
      record: how many episodes to record, from the first on; at most E.

    Returns:
      `EVALUATED` of every episode [E] and its `coverage_over_time` [E, T + 1], which stays as it is
      after the end; and the recorded `Episode`s [min(record, E), ...], or None without any.
    """
    begin_keys, fly_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    swarms = begin(begin_keys, env, policy)
    city, config = swarms.state.city, env.config
    limit = jax.vmap(fewest_steps, (0, 0, 0, 0, None))(
        city.coverable, swarms.state.seen, swarms.params.visibility, swarms.params.packet_loss,
        config,
    )  # fmt: skip
    seen_at = None
    if record:
        watched = _first(swarms, record)
        coverable = _coverable(watched, config)
        seen_at = jnp.where(coverable & ~unpack_unseen(watched.state.unseen, config), 0, -1)

    def body(carry: tuple, time: jax.Array) -> tuple[tuple, tuple]:
        swarms, seen_at = carry
        swarms = replace(swarms, state=replace(swarms.state, city=city))
        before = swarms
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(fly_keys, time)
        swarms, actions = fly_step(step_keys, swarms, policy, env)
        swarms = _hold(before, swarms)
        recorded = None
        if record:
            done, after = before.done[:record], _first(swarms, record)
            seen = coverable & ~unpack_unseen(after.state.unseen, config) & (seen_at < 0)
            seen &= ~done[:, None, None]
            seen_at = jnp.where(seen, after.state.time[:, None, None], seen_at)
            recorded = _output(done, after, actions[:record])
        output = (swarms.timestep.coverage, recorded)
        return (replace(swarms, state=replace(swarms.state, city=NO_CITY)), seen_at), output

    start = replace(swarms, state=replace(swarms.state, city=NO_CITY))
    (last, seen_at), (coverage, recorded) = jax.lax.scan(
        body, (start, seen_at), jnp.arange(config.horizon)
    )
    metrics = jax.vmap(episode_metrics, (0, None))(last.statistics, config)
    coverage = jnp.concatenate([swarms.timestep.coverage[None], coverage]).T
    metrics |= {"limit": limit, "coverage_over_time": coverage}
    if seen_at is None:
        return metrics, None
    length = last.statistics.length[:record]
    return metrics, _episodes(watched, coverable, seen_at, coverage[:record], length, recorded)


def _first(swarms: Swarms, count: int) -> Swarms:
    return jax.tree.map(lambda leaf: leaf[:count], swarms)


def _coverable(swarms: Swarms, config: EnvConfig) -> jax.Array:
    """Coverable cells [B, H, W]."""
    city, visibility = swarms.state.city, swarms.params.visibility
    return jax.vmap(coverable_cells, (0, 0, None))(city.no_fly, visibility, config)


def _hold(before: Swarms, after: Swarms) -> Swarms:
    """Swarms whose episode was over before the step stay where they were."""

    def choose(old: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.where(before.done.reshape(-1, *[1] * (new.ndim - 1)), old, new)

    small = (before.state.position, before.state.time, before.timestep.coverage)
    new = (after.state.position, after.state.time, after.timestep.coverage)
    position, time, coverage = jax.tree.map(choose, small, new)
    return replace(
        after,
        state=replace(after.state, position=position, time=time),
        timestep=replace(after.timestep, coverage=coverage),
    )


def _output(done: jax.Array, swarms: Swarms, actions: jax.Array) -> tuple:
    """What a recorded step adds to the `Episode`s; zeros for swarms that were done."""
    radius = footprint_radius(swarms.state.position[..., 2], swarms.params.visibility[:, None])
    flown = (actions, swarms.state.link, swarms.timestep.events, swarms.timestep.reward)
    flown = jax.tree.map(
        lambda value: jnp.where(done.reshape(-1, *[1] * (value.ndim - 1)), 0, value).astype(
            value.dtype
        ),
        flown,
    )
    return swarms.state.position, radius, *flown


def _episodes(
    first: Swarms,
    coverable: jax.Array,
    seen_at: jax.Array,
    coverage: jax.Array,
    length: jax.Array,
    recorded: tuple,
) -> Episode:
    """Recorded episodes from what `_output` gave (time in front)."""
    position, radius, actions, link, events, reward = jax.tree.map(
        lambda value: jnp.swapaxes(value, 0, 1), recorded
    )
    state, visibility = first.state, first.params.visibility
    radius_0 = footprint_radius(state.position[..., 2], visibility[:, None])
    return Episode(
        heights=state.city.heights,
        no_fly=state.city.no_fly,
        coverable=coverable,
        seen_at=seen_at,
        positions=jnp.concatenate([state.position[:, None], position], axis=1),
        radii=jnp.concatenate([radius_0[:, None], radius], axis=1),
        actions=actions,
        link=link,
        events=events,
        reward=reward,
        coverage=coverage,
        length=length,
        wind=first.params.wind,
        visibility=visibility,
    )
