"""Training as one jitted, donated program: explore, store, learn.

An iteration is one rollout of every swarm and one learner update. `Trainer.iterate` runs any number
of them in one dispatch; the host only calls it, reports, evaluates and saves.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec

from jaxqmix.compilation import jit, materialise
from jaxqmix.config import RunConfig, TrainingConfig, require
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
from jaxqmix.env.symmetry import symmetries
from jaxqmix.env.urban_grid import UrbanGrid
from jaxqmix.learner import replay as replay_store
from jaxqmix.learner.networks import (
    AgentApply,
    Parameters,
    SymmetryEnsemble,
    epsilon_greedy,
    greedy_actions,
    transformed,
)
from jaxqmix.learner.update import Learner, LearnerState, make_learner
from jaxqmix.rollout import SUMS, Swarms, auto_reset, auto_reset_count, begin, rollout
from jaxqmix.types import Sequences, State, Timestep, pytree_dataclass, replace

TRAINING = 1
"""Stream of random numbers of training; evaluation has its own, so its cities are unseen."""


REPORTS = 100
"""Training reports in a whole run."""
MEANS = ("loss", "mean_q", "gradient_norm")
"""Metrics of the learner: a report holds their means over iterations."""
FINITE = ("loss", "gradient_norm", "parameters")
"""What must stay finite."""


@pytree_dataclass
class Metrics:
    """What training reports: sums over the iterations since the last report."""

    iterations: jax.Array  # [] int32
    learner: dict[str, jax.Array]  # [] float32 each, those of MEANS
    episodes: dict[str, jax.Array]  # [] float32 each, over ended episodes; see `rollout.rollout`
    ended: jax.Array  # [] float32, episodes that ended in the whole run
    epsilon: jax.Array  # [] float32, of the last iteration
    not_finite: dict[str, jax.Array]  # [] int32, FINITE: the first such iteration of the run, or 0


@pytree_dataclass
class TrainState:
    """Everything that a run changes; saved whole, it resumes bit for bit."""

    learner: LearnerState
    swarms: Swarms
    replay: Any  # a `Replay`, or () in mode `online`
    key: jax.Array  # [2] uint32, raw key data, so that checkpoints hold plain arrays
    iterations: jax.Array  # [] int32, iterations so far
    metrics: Metrics  # sums since the last report, so that a resumed run reports all of them


@dataclasses.dataclass(frozen=True, eq=False)
class LearnedPolicy:
    """A `Policy` that follows the agent network, greedily or exploring.

    A pytree of its parameters, and hashable: jit, vmap and scan take it as an argument, and
    `jax.jit(policy)` compiles it.
    """

    apply: AgentApply
    parameters: Parameters = dataclasses.field(repr=False)  # of the agent
    drones: int
    hidden_state_size: int
    epsilon: jax.Array | None = None

    def initial_hidden_state(self) -> jax.Array:
        """Zeros [N, M]."""
        return jnp.zeros((self.drones, self.hidden_state_size))

    def __call__(
        self, key: jax.Array, state: State, timestep: Timestep, hidden_state: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Actions [N] and the new hidden state [N, M]; only the observation is looked at."""
        observation = timestep.observation
        values, hidden_state = self.apply(self.parameters, observation.agents[None], hidden_state)
        if self.epsilon is None:
            return greedy_actions(values[0], observation.available), hidden_state
        return epsilon_greedy(key, values[0], observation.available, self.epsilon), hidden_state


jax.tree_util.register_dataclass(
    LearnedPolicy,
    data_fields=("parameters", "epsilon"),
    meta_fields=("apply", "drones", "hidden_state_size"),
)


@dataclasses.dataclass(frozen=True)
class Trainer:
    """The functions of a run with its config bound.

    `begin(seed)` and `iterate(state, iterations)` are jitted and spread the swarms over `mesh`;
    behind them are the plain functions `begin_training` and `train_iteration`. With `seeds`, every
    array of the state and of the metrics has the seeds' axis in front.
    """

    config: RunConfig
    env: UrbanGrid
    learner: Learner
    mesh: Mesh
    seeds: int | None
    begin: Callable[[Any], TrainState]
    iterate: Callable[[TrainState, Any], tuple[TrainState, Metrics]]

    def init(self, seed: Any) -> TrainState:
        """The state before the first iteration, from a seed or, with `seeds`, from as many."""
        return self.begin(np.asarray(seed, np.uint32))

    def policy(self, parameters: Parameters, epsilon: jax.Array | None = None) -> LearnedPolicy:
        """The policy of agent parameters; greedy without epsilon."""
        if epsilon is None:
            return greedy_policy(self.config, self.learner, parameters)
        return exploring_policy(self.config, self.learner, parameters, epsilon)

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


def exploring_policy(
    config: RunConfig, learner: Learner, parameters: Parameters, epsilon: jax.Array
) -> LearnedPolicy:
    """The policy that training flies: epsilon-greedy, without the symmetry ensemble."""
    return LearnedPolicy(
        learner.agent, parameters, config.env.drones, learner.hidden_state_size, epsilon
    )


def greedy_policy(config: RunConfig, learner: Learner, parameters: Parameters) -> LearnedPolicy:
    """The policy that evaluations fly: greedy, over the symmetry ensemble unless
    `evaluation.symmetric` is off."""
    agent, size = learner.agent, learner.hidden_state_size
    if config.evaluation.symmetric:
        sides = symmetries(config.env)
        agent, parameters = SymmetryEnsemble(agent), transformed(parameters, sides)
        size *= sides.actions.shape[0]
    return LearnedPolicy(agent, parameters, config.env.drones, size)


def exploration_rate(env_steps: jax.Array, horizon: int, config: TrainingConfig) -> jax.Array:
    """Epsilon after so many env steps.

    Linear from start to end, or, when a rate per episode is given, geometric with one episode
    taken as `horizon` env steps.
    """
    if config.epsilon_decay_per_episode is not None:
        rate = jnp.float32(config.epsilon_decay_per_episode)
        epsilon = config.epsilon_start * rate ** (env_steps / horizon)
        return jnp.maximum(epsilon, config.epsilon_end)
    share = jnp.clip(env_steps / float(config.epsilon_decay_steps), 0.0, 1.0)
    return config.epsilon_start + share * (config.epsilon_end - config.epsilon_start)


def stagger(swarms: Swarms, horizon: int, rollout_steps: int, devices: int = 1) -> Swarms:
    """Spreads the swarms' clocks over the horizon, so that a batch mixes early and late states.

    Clocks are whole rollouts, so that time limits fall on the end of a rollout where the horizon is
    whole rollouts too. Every device's share of the swarms spans the whole horizon. In their first
    episode, swarms begun late get no credit for what their starts saw.
    """
    count = swarms.done.shape[0]
    # In NumPy, for swarms x horizon may outgrow int32.
    order = np.arange(count, dtype=np.int64).reshape(-1, devices).T.reshape(-1)
    time = order * horizon // count // rollout_steps * rollout_steps
    return replace(swarms, state=replace(swarms.state, time=jnp.asarray(time, jnp.int32)))


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


def make_trainer(config: RunConfig, seeds: int | None = None, env: Any | None = None) -> Trainer:
    """Binds a run's config; nothing is compiled before a function is called.

    Args:
      config: of the run.
      seeds: train so many runs side by side in one program; None trains one.
      env: another world than the config's; with its `config` and all that `UrbanGrid` offers.
    """
    mesh = make_mesh(lambda devices: fits(config, devices))
    mission, learner = make_parts(config, SWARMS, env)
    env = env or training_env(config)
    specs = state_specs(config, seeds)

    def begin(seed: jax.Array) -> TrainState:
        return begin_training(seed, config, env, learner, mesh.size)

    def iteration(state: TrainState) -> TrainState:
        return train_iteration(state, config, env, learner, SWARMS)

    if seeds is not None:
        begin, iteration = jax.vmap(begin), jax.vmap(iteration)

    def iterate(state: TrainState, iterations: jax.Array) -> tuple[TrainState, Metrics]:
        state = jax.lax.fori_loop(0, iterations, lambda _, state: iteration(state), state)
        return state, state.metrics

    everywhere = on_each_device(iterate, mesh, (specs, REPLICATED), (specs, REPLICATED))
    places = shardings(mesh, (specs, REPLICATED))
    return Trainer(
        config,
        mission,
        learner,
        mesh,
        seeds,
        begin=jit(begin, once=True, out_shardings=places[0]),
        # Pinned, for the compiler takes empty arrays apart, and would compile again for its output.
        iterate=jit(everywhere, donate_argnums=0, out_shardings=places),
    )


def training_env(config: RunConfig) -> UrbanGrid:
    """The world of a run's training episodes, which end later than the mission."""
    target = config.training.coverage_target
    return UrbanGrid(dataclasses.replace(config.env, coverage_target=target), config.domain)


def make_parts(
    config: RunConfig, axis: str | None, env: Any | None = None, proximal: float = 0.0
) -> tuple[UrbanGrid, Learner]:
    """The world and the learner of a run; see `make_learner` and `make_trainer`."""
    env = env or UrbanGrid(config.env, config.domain)
    example = jax.eval_shape(
        lambda key: env.reset(key, env.draw_params(key))[1], jax.random.key(0)
    ).observation
    learner = make_learner(
        config.learner,
        features=example.agents.shape[-1],
        actions=env.actions,
        drones=config.env.drones,
        state=example.state.shape[-1],
        updates=count_updates(config),
        axis=axis,
        proximal=proximal,
    )
    return env, learner


def count_updates(config: RunConfig) -> int:
    """Updates of a run that change the weights; mode `replay` first waits for its warm-up."""
    if config.training.mode == "online":
        return config.iterations
    waiting = (config.replay.warmup - 1) // config.training.swarms
    return config.iterations - waiting


def memory_needed(trainer: Trainer) -> dict[str, int]:
    """Bytes that a run will hold, by part, without allocating anything.

    `swarms`, `replay` and `learner` (on every device) stay; `rollout` is one batch of sequences,
    and `update` the activations of the targets, or those and the gradients of one minibatch,
    whichever is more; `checkpoint` is the copy of the state that is being saved.
    """
    config, seeds = trainer.config, trainer.seeds or 1
    shapes = trainer.state_shapes
    state = shapes if trainer.seeds is None else jax.tree.map(without_first_axis, shapes)
    sequences = sequence_shapes(config, state.swarms)
    drawn = 1 if config.training.mode == "online" else config.replay.batch / config.training.swarms
    rows = math.prod(sequences.observation.agents.shape[:-1]) * max(drawn, 1.0)
    # Numbers kept of each row, in layers: of one minibatch, or of the targets, which need two.
    layers = max(4 * config.learner.layers / config.learner.minibatches, 2)
    needed = {
        "swarms": tree_bytes(state.swarms),
        "replay": tree_bytes(state.replay),
        "learner": tree_bytes(state.learner) * trainer.mesh.size,
        "rollout": round(tree_bytes(sequences) * (1 + drawn)),
        "update": round(rows * layers * config.learner.hidden * 4),
        "checkpoint": tree_bytes(state),
    }
    return {part: seeds * size for part, size in needed.items()}


def without_first_axis(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The shape of one element along the first axis."""
    return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree, or of their shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def require_memory(
    needed: dict[str, int], available: int | None, config: RunConfig, seeds: int = 1
) -> None:
    """Raises `ConfigError` with the settings to lower when a run, or so many, cannot fit."""
    total_bytes = sum(needed.values())
    largest = max(needed, key=lambda part: needed[part])
    training, lower = config.training, {"replay": "replay.capacity", "learner": "learner.hidden"}
    if training.mode == "replay" and config.replay.batch > training.swarms:
        lower |= {"rollout": "replay.batch", "update": "replay.batch"}
    setting = "seeds or " * (seeds > 1) + lower.get(largest, "training.swarms")
    require(
        available is None or total_bytes <= available,
        "memory",
        f"{total_bytes / 1e9:.1f} GB",
        f"the devices have {(available or 0) / 1e9:.1f} GB and {largest} takes "
        f"{needed[largest] / 1e9:.1f} GB; lower {setting}",
    )


def begin_training(
    seed: int | jax.Array, config: RunConfig, env: UrbanGrid, learner: Learner, devices: int = 1
) -> TrainState:
    """The state before the first rollout; `devices` as in `stagger`."""
    training = config.training
    key = jax.random.fold_in(jax.random.key(seed), TRAINING)
    learner_key, swarms_key, key = jax.random.split(key, 3)
    learned = learner.init(learner_key)
    epsilon = jnp.float32(training.epsilon_start)
    policy = exploring_policy(config, learner, learned.parameters["agent"], epsilon)
    swarms = begin(jax.random.split(swarms_key, training.swarms), env, policy)
    store: Any = ()
    if training.mode == "replay":
        shapes = sequence_shapes(config, swarms)
        store = replay_store.empty(shapes, config.replay.capacity)
    return TrainState(
        learner=learned,
        swarms=stagger(swarms, config.env.horizon, training.rollout, devices),
        replay=store,
        key=jax.random.key_data(key),
        iterations=jnp.int32(0),
        metrics=no_metrics(),
    )


def no_metrics() -> Metrics:
    """Metrics before the first iteration."""
    return Metrics(
        iterations=jnp.int32(0),
        learner={name: jnp.float32(0) for name in MEANS},
        episodes={name: jnp.float32(0) for name in SUMS},
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
        broken = (found == 0) & ~jnp.all(jnp.isfinite(checked[name]))
        return jnp.where(broken, iterations + 1, found)

    return Metrics(
        iterations=kept * before.iterations + 1,
        # Chosen, for zero times NaN would stay.
        learner={n: jnp.where(kept, before.learner[n], 0.0) + learner[n] for n in MEANS},
        episodes={n: jnp.where(kept, before.episodes[n], 0.0) + episodes[n] for n in SUMS},
        ended=before.ended + episodes["episodes"],
        epsilon=epsilon,
        not_finite={name: first(name) for name in FINITE},
    )


def train_iteration(
    state: TrainState, config: RunConfig, env: UrbanGrid, learner: Learner, axis: str | None = None
) -> TrainState:
    """One rollout of the swarms and one learner update.

    Args:
      state: over several devices, this one's share.
      config: of the run.
      env: the world.
      learner: made with the same `axis`.
      axis: of `distributed.on_each_device`, if inside.
    """
    training, horizon = config.training, config.env.horizon
    keys = jax.random.split(jax.random.wrap_key_data(state.key))
    refresh_key, rollout_key, *learner_keys = jax.random.split(own_key(keys[0], axis), 4)
    # In float32, for env steps may outgrow int32.
    flown = state.iterations.astype(jnp.float32) * config.iteration_steps
    epsilon = exploration_rate(flown, horizon, training)
    policy = exploring_policy(config, learner, state.learner.parameters["agent"], epsilon)
    fresh = auto_reset_count(config.env, state.swarms.done.shape[0], training.rollout)
    swarms = auto_reset(refresh_key, state.swarms, env, policy, fresh)
    swarms, sequences, sums = rollout(rollout_key, swarms, policy, env, training.rollout)
    scale = config.learner.reward_scale * horizon
    # Kept: otherwise every minibatch is gathered from the pieces that the rollout joins.
    sequences = materialise(replace(sequences, reward=sequences.reward * scale))
    learned, store, metrics = learn(
        learner_keys, state.learner, state.replay, sequences, learner, config, axis
    )
    sums = total(sums, axis)
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
            sums,
            epsilon,
            learned.parameters,
            report_interval(config),
        ),
    )


def learn(
    keys: jax.Array | Sequence[jax.Array],
    learned: LearnerState,
    store: Any,
    sequences: Sequences,
    learner: Learner,
    config: RunConfig,
    axis: str | None = None,
) -> tuple[LearnerState, Any, dict[str, jax.Array]]:
    """One learner update: on the fresh sequences, or on a draw from the replay store."""
    if config.training.mode == "online":
        learned, metrics = learner.update(keys[0], learned, sequences)
        return learned, store, metrics
    store = replay_store.add(store, sequences)
    # This device's share of the swarms is its share of the draw, too.
    devices = config.training.swarms // sequences.hidden_state.shape[0]
    batch = replay_store.sample(keys[1], store, config.replay.batch // devices)
    after, metrics = learner.update(keys[0], learned, batch)
    warm = store.size * devices >= config.replay.warmup
    learned = jax.tree.map(lambda new, old: jnp.where(warm, new, old), after, learned)
    return learned, store, metrics


def sequence_shapes(config: RunConfig, swarms: Swarms) -> Sequences:
    """The shapes of the sequences that a rollout of these swarms (or their shapes) gives."""
    steps, drones = config.training.rollout, config.env.drones
    count = swarms.done.shape[0]

    def over_time(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct((steps + 1, *leaf.shape), leaf.dtype)

    hidden_state: Any = jax.ShapeDtypeStruct(swarms.hidden_state.shape, swarms.hidden_state.dtype)

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
    )
