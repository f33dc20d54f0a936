"""Training as one jitted, donated program: explore, store, learn.

An iteration is one rollout of every swarm and one learner update. `Trainer.iterate` runs any number
of them in one dispatch; the host only calls it, reports, evaluates and saves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec

from jaxqmix.compilation import jit, materialise
from jaxqmix.config import RunConfig, require
from jaxqmix.distributed import (
    REPLICATED,
    SHARDED,
    SWARMS,
    make_mesh,
    on_each_device,
    own_key,
    place,
    shapes_at,
    shardings,
    total,
)
from jaxqmix.env.base import Environment
from jaxqmix.env.urban_grid import mission_env
from jaxqmix.hyperparameters import bound
from jaxqmix.learner import replay as replay_store
from jaxqmix.learner.base import Learner
from jaxqmix.learner.networks import Parameters
from jaxqmix.learner.update import make_learner
from jaxqmix.policies import exploration_rate
from jaxqmix.rollout import Swarms, auto_reset, auto_reset_count, begin, kept_of, rollout, sums
from jaxqmix.types import Policy, Sequences, pytree_dataclass, replace

TRAINING = 1
"""Stream of random numbers of training; evaluation has its own, so its cities are unseen."""


REPORTS = 100
"""Training reports in a whole run, about; at least, and fewer than twice as many."""
FINITE = ("loss", "gradient_norm", "parameters")
"""What must stay finite."""


@pytree_dataclass
class Metrics:
    """What training reports: sums over the iterations since the last report."""

    iterations: jax.Array  # [] int32
    learner: dict[str, jax.Array]  # [] float32 each, those of the learner
    episodes: dict[str, jax.Array]  # [] float32 each, over ended episodes; see `rollout.rollout`
    ended: jax.Array  # [] float32, episodes that ended in the whole run
    epsilon: jax.Array  # [] float32, of the last iteration
    not_finite: dict[str, jax.Array]  # [] int32, FINITE: the first such iteration of the run, or 0


@pytree_dataclass
class TrainState:
    """Everything that a run changes; saved whole, it resumes bit for bit."""

    learner: Any  # the learner's state
    swarms: Swarms
    replay: Any  # a `Replay`, or () in mode `online`
    key: jax.Array  # [2] uint32, raw key data, so that checkpoints hold plain arrays
    iterations: jax.Array  # [] int32, iterations so far
    metrics: Metrics  # sums since the last report, so that a resumed run reports all of them


@dataclasses.dataclass(frozen=True)
class Trainer:
    """The functions of a run with its config bound.

    `begin(seed)` and `iterate(state, iterations)` are jitted and spread the swarms over `mesh`;
    behind them are the plain functions `begin_training` and `train_iteration`. With `seeds`, every
    array of the state and of the metrics has the seeds' axis in front.
    """

    config: RunConfig
    env: Environment
    learner: Learner
    mesh: Mesh
    seeds: int | None
    domains: Any  # `Ranges` [seeds, ...] where the runs' worlds differ, or None
    begin: Callable[[Any], TrainState]
    iterate: Callable[[TrainState, Any], tuple[TrainState, Metrics]]

    def init(self, seed: Any) -> TrainState:
        """The state before the first iteration, from a seed or, with `seeds`, from as many."""
        return self.begin(np.asarray(seed, np.uint32))

    def policy(self, agent: Parameters) -> Policy:
        """The greedy policy of an agent's parameters."""
        return greedy_policy(self.learner, agent, self.env, self.config)

    def split(self, tree: Any, axis: int = 0) -> list[Any]:
        """What each run has of a tree of NumPy arrays in which the seeds' axis is this one."""
        if self.seeds is None:
            return [tree]
        before = (slice(None),) * axis
        return [
            # `asarray`, for a number of NumPy is no array.
            jax.tree.map(lambda leaf, own=(*before, seed): np.asarray(leaf[own]), tree)
            for seed in range(self.seeds)
        ]

    @property
    def seed_shape(self) -> jax.ShapeDtypeStruct:
        """Shape and type of what `begin` takes."""
        return jax.ShapeDtypeStruct(() if self.seeds is None else (self.seeds,), np.uint32)

    @property
    def state_shapes(self) -> TrainState:
        """Shapes, types and places of the state, without computing anything."""
        shapes = jax.eval_shape(self.begin, self.seed_shape)
        places = shardings(self.mesh, state_specs(self.config, self.seeds))
        return shapes_at(shapes, places)

    def place(self, state: TrainState) -> TrainState:
        """Puts a state on the devices."""
        return place(state, self.mesh, state_specs(self.config, self.seeds))


def start_times(swarms: int, horizon: int, rollout_steps: int, devices: int = 1) -> jax.Array:
    """When in their first episodes the swarms begin, int32 [swarms]: spread over the horizon, so
    that a batch mixes early and late states.

    Times are whole rollouts, so that time limits fall on the end of a rollout where the horizon is
    whole rollouts too. Every device's share of the swarms spans the whole horizon. Training reports
    count these first episodes as they are, shorter than others.
    """
    # In NumPy, for swarms x horizon may outgrow int32.
    order = np.arange(swarms, dtype=np.int64).reshape(-1, devices).T.reshape(-1)
    return jnp.asarray(order * horizon // swarms // rollout_steps * rollout_steps, jnp.int32)


def state_specs(config: RunConfig, seeds: int | None = None) -> TrainState:
    """Which parts of a training state are spread over the devices."""
    # In the places of arrays.
    spread: Any = SHARDED if seeds is None else PartitionSpec(None, *SHARDED)
    copied: Any = REPLICATED
    store = replay_store.Replay(data=spread, position=copied, size=copied)
    return TrainState(
        learner=copied,
        swarms=spread,
        replay=store if config.training.mode == "replay" else copied,
        key=copied,
        iterations=copied,
        metrics=copied,
    )


def fits(config: RunConfig, devices: int) -> bool:
    """Whether swarms, and what is stored and drawn, can be spread over so many devices."""
    training, replay = config.training, config.replay
    sequences = training.swarms if training.mode == "online" else replay.batch
    whole = [(sequences, devices * config.learner.minibatches), (training.swarms, devices)]
    if training.mode == "replay":
        whole.append((replay.capacity, devices))
    return all(size % share == 0 for size, share in whole)


def make_trainer(
    config: RunConfig,
    seeds: int | None = None,
    env: Environment | None = None,
    learner: Callable[..., Learner] = make_learner,
    values: Mapping[str, Any] | None = None,
) -> Trainer:
    """Binds a run's config; nothing is compiled before a function is called.

    Args:
      config: of the run.
      seeds: train so many runs side by side in one program; None trains one.
      env: the world of the policy, where it is another than the config's; see `in_world`.
      learner: makes the learner, from what `make_learner` takes.
      values: what differs between these runs besides the seed: `hyperparameters.stacked`.

    Raises:
      ConfigError: when domains differ, and the world draws from none.
    """
    values = dict(values or {})
    mesh = make_mesh(lambda devices: fits(config, devices))
    mission, learns = make_parts(config, SWARMS, env, learner=learner)
    env = mission.in_training(config)
    specs = state_specs(config, seeds)

    def run_with(values: Mapping[str, Any]) -> tuple[RunConfig, Environment, Learner]:
        if not values:
            return config, env, learns
        own = bound(config, values)
        world = env.with_domain(own.domain) if "domain" in values else env
        return own, *make_parts(own, SWARMS, world, learner=learner)

    def begin(seed: jax.Array, values: Mapping[str, Any]) -> TrainState:
        return begin_training(seed, *run_with(values), mesh.size)

    def iteration(state: TrainState, values: Mapping[str, Any]) -> TrainState:
        return train_iteration(state, *run_with(values), SWARMS)

    if seeds is not None:
        begin, iteration = jax.vmap(begin), jax.vmap(iteration)

    def iterate(state: TrainState, iterations: jax.Array) -> tuple[TrainState, Metrics]:
        state = jax.lax.fori_loop(0, iterations, lambda _, state: iteration(state, values), state)
        return state, state.metrics

    everywhere = on_each_device(iterate, mesh, (specs, REPLICATED), (specs, REPLICATED))
    places = shardings(mesh, (specs, REPLICATED))
    return Trainer(
        config,
        mission,
        learns,
        mesh,
        seeds,
        values.get("domain"),
        begin=jit(lambda seed: begin(seed, values), once=True, out_shardings=places[0]),
        # Pinned, for the compiler takes empty arrays apart, and would compile again for its output.
        iterate=jit(everywhere, donate_argnums=0, out_shardings=places),
    )


def in_world(config: RunConfig, env: Environment | None) -> RunConfig:
    """The settings of a run in a world, which has the last word on what it is.

    Raises:
      ConfigError: without a world, when the settings are of a run in one of somebody's own.
    """
    if env is None:
        allowed = "the run flies in a world that is not in its settings; give it in Python, as env"
        require(not config.world, "world", config.world, allowed)
        return config
    allowed = "must be an Environment, such as jaxqmix.make(config, parts=...)"
    require(isinstance(env, Environment), "env", env, allowed)
    return env.settings(config)


def greedy_policy(
    learner: Learner, agent: Parameters, env: Environment, config: RunConfig
) -> Policy:
    """The policy that a run's evaluations fly: with `evaluation.symmetric` over the ensemble of the
    world's symmetries, where it has any."""
    symmetries = env.symmetries() if config.evaluation.symmetric else None
    return learner.greedy(agent, env.agents, symmetries)


def make_parts(
    config: RunConfig,
    axis: str | None,
    env: Environment | None = None,
    proximal: float = 0.0,
    learner: Callable[..., Learner] = make_learner,
) -> tuple[Environment, Any]:
    """The world and the learner of a run; see `make_learner` and `make_trainer`."""
    env = env or mission_env(config)
    observed = env.observation_spec()
    return env, learner(
        config.learner,
        features=observed.agents.shape[-1],
        actions=env.actions,
        drones=env.agents,
        state=observed.state.shape[-1],
        updates=count_updates(config),
        axis=axis,
        proximal=proximal,
    )


def count_updates(config: RunConfig) -> int:
    """Updates of a run that change the weights; mode `replay` first waits for its warm-up."""
    if config.training.mode == "online":
        return config.iterations
    waiting = (config.replay.warmup - 1) // config.training.swarms
    return config.iterations - waiting


def begin_training(
    seed: int | jax.Array, config: RunConfig, env: Environment, learner: Learner, devices: int = 1
) -> TrainState:
    """The state before the first rollout; `devices` as in `start_times`."""
    training = config.training
    key = jax.random.fold_in(jax.random.key(seed), TRAINING)
    learner_key, swarms_key, key = jax.random.split(key, 3)
    learned = learner.init(learner_key)
    epsilon = jnp.float32(training.epsilon_start)
    policy = learner.exploring(learned, env.agents, epsilon)
    times = start_times(training.swarms, env.horizon, training.rollout, devices)
    swarms = begin(jax.random.split(swarms_key, training.swarms), env, policy, times)
    store: Any = ()
    if training.mode == "replay":
        shapes = sequence_shapes(config, swarms, kept_of(policy))
        store = replay_store.empty(shapes, config.replay.capacity)
    return TrainState(
        learner=learned,
        swarms=swarms,
        replay=store,
        key=jax.random.key_data(key),
        iterations=jnp.int32(0),
        metrics=no_metrics(learner.metrics, sums(env.mission)),
    )


def no_metrics(learner: Sequence[str], episodes: Sequence[str]) -> Metrics:
    """Metrics before the first iteration: those of a learner, and those of `rollout.sums`."""
    return Metrics(
        iterations=jnp.int32(0),
        learner={name: jnp.float32(0) for name in learner},
        episodes={name: jnp.float32(0) for name in episodes},
        ended=jnp.float32(0),
        epsilon=jnp.float32(0),
        not_finite={name: jnp.int32(0) for name in FINITE},
    )


def report_interval(config: RunConfig) -> int:
    """Iterations between two training reports."""
    return max(1, config.iterations // REPORTS)


def count_iteration(
    before: Metrics,
    iterations: jax.Array,
    learner: dict[str, jax.Array],
    episodes: dict[str, jax.Array],
    epsilon: jax.Array,
    parameters: Parameters,
    interval: int,
) -> Metrics:
    """Adds an iteration to the metrics, which begin anew after every report.

    Args:
      before: so far.
      iterations: [] int32, of the run, before this one.
      learner: means over this iteration's gradient steps.
      episodes: sums over the episodes that ended in this iteration.
      epsilon: [], of this iteration.
      parameters: after it.
      interval: of the reports.
    """
    kept = jnp.where(iterations % interval == 0, 0, 1)
    checked = {name: learner[name] for name in FINITE if name in learner}
    checked |= {"parameters": ravel_pytree(parameters)[0]}

    def first(name: str) -> jax.Array:
        found = before.not_finite[name]
        if name not in checked:  # of another learner
            return found
        broken = (found == 0) & ~jnp.all(jnp.isfinite(checked[name]))
        return jnp.where(broken, iterations + 1, found)

    return Metrics(
        iterations=kept * before.iterations + 1,
        # Chosen, for zero times NaN would stay.
        learner={
            name: jnp.where(kept, sum_before, 0.0) + learner[name]
            for name, sum_before in before.learner.items()
        },
        episodes={
            name: jnp.where(kept, before.episodes[name], 0.0) + summed
            for name, summed in episodes.items()
        },
        ended=before.ended + episodes["episodes"],
        epsilon=epsilon,
        not_finite={name: first(name) for name in FINITE},
    )


def train_iteration(
    state: TrainState,
    config: RunConfig,
    env: Environment,
    learner: Learner,
    axis: str | None = None,
) -> TrainState:
    """One rollout of the swarms and one learner update.

    Args:
      state: over several devices, this one's share.
      config: of the run.
      env: the world.
      learner: made with the same `axis`.
      axis: of `distributed.on_each_device`, if inside.
    """
    training, horizon = config.training, env.horizon
    keys = jax.random.split(jax.random.wrap_key_data(state.key))
    reset_key, rollout_key, *learner_keys = jax.random.split(own_key(keys[0], axis), 4)
    # In float32, for env steps may outgrow int32.
    flown = state.iterations.astype(jnp.float32) * config.iteration_steps
    epsilon = exploration_rate(flown, horizon, training)
    policy = learner.exploring(state.learner, env.agents, epsilon)
    fresh = auto_reset_count(horizon, state.swarms.done.shape[0], training.rollout)
    swarms = auto_reset(reset_key, state.swarms, env, policy, fresh)
    swarms, sequences, episodes = rollout(rollout_key, swarms, policy, env, training.rollout)
    scale = config.learner.reward_scale * horizon
    # Kept: otherwise every minibatch is gathered from the pieces that the rollout joins.
    sequences = materialise(replace(sequences, reward=sequences.reward * scale))
    learned, store, metrics = learn(
        learner_keys, state.learner, state.replay, sequences, learner, config, axis
    )
    episodes = total(episodes, axis)
    return TrainState(
        learner=learned,
        swarms=swarms,
        replay=store,
        key=jax.random.key_data(keys[1]),
        iterations=state.iterations + 1,
        metrics=count_iteration(
            state.metrics,
            state.iterations,
            metrics,
            episodes,
            epsilon,
            learned.parameters,
            report_interval(config),
        ),
    )


def learn(
    keys: jax.Array | Sequence[jax.Array],
    learned: Any,
    store: Any,
    sequences: Sequences,
    learner: Learner,
    config: RunConfig,
    axis: str | None = None,
) -> tuple[Any, Any, dict[str, jax.Array]]:
    """One learner update: on the fresh sequences, or on a draw from the replay store."""
    if config.training.mode == "online":
        learned, metrics = learner.update(keys[0], learned, sequences)
        return learned, store, metrics
    store = replay_store.add(store, sequences)
    # This device's share of the swarms is its share of the draw, too.
    devices = config.training.swarms // sequences.reward.shape[1]
    batch = replay_store.sample(keys[1], store, config.replay.batch // devices)
    after, metrics = learner.update(keys[0], learned, batch)
    warm = store.size * devices >= config.replay.warmup
    learned = jax.tree.map(lambda new, old: jnp.where(warm, new, old), after, learned)
    return learned, store, metrics


def sequence_shapes(
    config: RunConfig, swarms: Swarms, keep: Callable[[Any], Any] = lambda hidden_state: ()
) -> Sequences:
    """The shapes of the sequences that a rollout of these swarms (or their shapes) gives, of a
    policy that keeps this of a step."""
    steps = config.training.rollout
    drones = swarms.timestep.observation.available.shape[1]
    count = swarms.done.shape[0]

    def over_time(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct((steps + 1, *leaf.shape), leaf.dtype)

    hidden_state = jax.eval_shape(lambda leaf: leaf, swarms.hidden_state)
    kept = jax.eval_shape(keep, swarms.hidden_state)

    def each_step(dtype: Any, *more: int) -> Any:
        return jax.ShapeDtypeStruct((steps, count, *more), dtype)

    return Sequences(
        observation=jax.tree.map(over_time, swarms.timestep.observation),
        actions=each_step(jnp.int32, drones),
        reward=each_step(jnp.float32),
        terminated=each_step(bool),
        truncated=each_step(bool),
        valid=each_step(bool),
        hidden_state=hidden_state,
        kept=jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((steps, *leaf.shape), leaf.dtype), kept
        ),
    )
