"""Training as one jitted, donated program: explore, store, learn.

`Trainer.chunk` is the whole inner loop: every swarm flies one rollout and the learner is called
once. The host only calls it, reports, evaluates and saves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxqmix.compilation import jit
from jaxqmix.config import RunConfig, TrainingConfig
from jaxqmix.env.urban_grid import UrbanGrid
from jaxqmix.learner import replay as replay_store
from jaxqmix.learner.networks import AgentApply, Parameters, explore, greedy_actions
from jaxqmix.learner.update import Learner, LearnerState, make_learner
from jaxqmix.rollout import Swarms, begin, refresh, refreshed, rollout
from jaxqmix.types import Sequences, State, Timestep, record, replace

TRAINING = 1
"""Stream of random numbers of training; evaluation has its own, so its cities are unseen."""


@record
class TrainState:
    """Everything that a run changes; saved whole, it resumes bit for bit."""

    learner: LearnerState
    swarms: Swarms
    replay: Any  # a `Replay`, or () in mode `online`
    key: jax.Array  # [2] uint32, raw key data, so that checkpoints hold plain arrays
    chunks: jax.Array  # [] int32, rollouts so far
    episodes: jax.Array  # [] float32, episodes ended so far


@dataclasses.dataclass(frozen=True)
class LearnedPolicy:
    """A `Policy` that follows the agent network, greedily or exploring."""

    apply: AgentApply
    parameters: Parameters  # of the agent
    drones: int
    memory: int
    epsilon: jax.Array | None = None

    def initial_memory(self) -> jax.Array:
        """Zeros [N, M]."""
        return jnp.zeros((self.drones, self.memory))

    def __call__(
        self, key: jax.Array, state: State, timestep: Timestep, memory: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Actions [N] and the new memory [N, M]; only the observation is looked at."""
        observation = timestep.observation
        values, memory = self.apply(self.parameters, observation.agents[None], memory)
        if self.epsilon is None:
            return greedy_actions(values[0], observation.available), memory
        return explore(key, values[0], observation.available, self.epsilon), memory


@dataclasses.dataclass(frozen=True)
class Trainer:
    """The functions of a run with its config bound."""

    config: RunConfig
    env: UrbanGrid
    learner: Learner
    initialise: Callable[[int], TrainState]
    chunk: Callable[[TrainState], tuple[TrainState, dict[str, jax.Array]]]

    def policy(self, parameters: Parameters, epsilon: jax.Array | None = None) -> LearnedPolicy:
        """The policy of agent parameters; greedy without epsilon."""
        return LearnedPolicy(
            self.learner.agent, parameters, self.config.env.drones, self.learner.memory, epsilon
        )


def exploration_rate(env_steps: jax.Array, horizon: int, config: TrainingConfig) -> jax.Array:
    """Epsilon after so many env steps.

    Linear from start to end, or, when a rate per episode is given, geometric with one episode
    taken as `horizon` env steps.
    """
    if config.epsilon_decay_per_episode is not None:
        rate = jnp.float32(config.epsilon_decay_per_episode)
        epsilon = config.epsilon_start * rate ** (env_steps / horizon)
        return jnp.maximum(epsilon, config.epsilon_end)
    share = jnp.clip(env_steps / config.epsilon_decay_steps, 0.0, 1.0)
    return config.epsilon_start + share * (config.epsilon_end - config.epsilon_start)


def stagger(swarms: Swarms, horizon: int, rollout_steps: int) -> Swarms:
    """Spreads the swarms' clocks over the horizon, so that a batch mixes early and late states.

    Clocks are whole rollouts, so that time limits fall on the end of a rollout.
    """
    count = swarms.done.shape[0]
    time = jnp.arange(count) * horizon // count // rollout_steps * rollout_steps
    return replace(swarms, state=replace(swarms.state, time=time.astype(jnp.int32)))


def make_trainer(config: RunConfig) -> Trainer:
    """Binds a run's config; nothing is compiled before `chunk` is called."""
    env = UrbanGrid(config.env, config.domain)
    example = jax.eval_shape(
        lambda key: env.reset(key, env.draw_params(key))[1], jax.random.key(0)
    ).observation
    learner = make_learner(
        config.learner,
        features=example.agents.shape[-1],
        actions=env.actions,
        drones=config.env.drones,
        state=example.state.shape[-1],
        calls=config.chunks,
    )
    trainer = Trainer(config, env, learner, None, None)
    training = config.training
    fresh = refreshed(config.env, training.swarms, training.rollout)

    def initialise(seed: int) -> TrainState:
        key = jax.random.fold_in(jax.random.key(seed), TRAINING)
        learner_key, swarms_key, key = jax.random.split(key, 3)
        learned = learner.initialise(learner_key)
        policy = trainer.policy(learned.parameters["agent"])
        swarms = begin(swarms_key, env, policy, training.swarms)
        return TrainState(
            learner=learned,
            swarms=stagger(swarms, config.env.horizon, training.rollout),
            replay=_empty_replay(trainer, swarms) if training.mode == "replay" else (),
            key=jax.random.key_data(key),
            chunks=jnp.int32(0),
            episodes=jnp.float32(0),
        )

    def chunk(state: TrainState) -> tuple[TrainState, dict[str, jax.Array]]:
        keys = jax.random.split(jax.random.wrap_key_data(state.key), 5)
        env_steps = state.chunks * config.chunk_steps
        epsilon = exploration_rate(env_steps, config.env.horizon, training)
        policy = trainer.policy(state.learner.parameters["agent"], epsilon)
        swarms = refresh(keys[0], state.swarms, env, policy, fresh)
        swarms, sequences, sums = rollout(keys[1], swarms, policy, env, training.rollout)
        scale = config.learner.reward_scale * config.env.horizon
        sequences = replace(sequences, reward=sequences.reward * scale)
        learned, store, metrics = learn(
            keys[2:4], state.learner, state.replay, sequences, learner, config
        )
        episodes = state.episodes + sums["episodes"]
        state = TrainState(
            learned, swarms, store, jax.random.key_data(keys[4]), state.chunks + 1, episodes
        )
        return state, metrics | sums | {"epsilon": epsilon}

    return dataclasses.replace(
        trainer, initialise=jit(initialise, static_argnums=()), chunk=jit(chunk, donate_argnums=0)
    )


def learn(
    keys: jax.Array,
    learned: LearnerState,
    store: Any,
    sequences: Sequences,
    learner: Learner,
    config: RunConfig,
) -> tuple[LearnerState, Any, dict[str, jax.Array]]:
    """One learner call: on the fresh sequences, or on a draw from the replay store."""
    if config.training.mode == "online":
        learned, metrics = learner.update(keys[0], learned, sequences)
        return learned, store, metrics
    store = replay_store.add(store, sequences)
    batch = replay_store.sample(keys[1], store, config.replay.batch)
    after, metrics = learner.update(keys[0], learned, batch)
    warm = store.size >= config.replay.warmup
    learned = jax.tree.map(lambda new, old: jnp.where(warm, new, old), after, learned)
    return learned, store, metrics


def _empty_replay(trainer: Trainer, swarms: Swarms) -> replay_store.Replay:
    return replay_store.empty(sequence_shapes(trainer, swarms), trainer.config.replay.capacity)


def sequence_shapes(trainer: Trainer, swarms: Swarms) -> Sequences:
    """The shapes of a rollout's sequences, without flying it."""

    def fly(swarms: Swarms) -> Sequences:
        policy = _Still(trainer.config.env.drones, trainer.learner.memory)
        return rollout(
            jax.random.key(0), swarms, policy, trainer.env, trainer.config.training.rollout
        )[1]

    return jax.eval_shape(fly, swarms)


@dataclasses.dataclass(frozen=True)
class _Still:
    """A policy with the learned policy's shapes, for tracing."""

    drones: int
    memory: int

    def initial_memory(self) -> jax.Array:
        return jnp.zeros((self.drones, self.memory))

    def __call__(self, key, state, timestep, memory):
        return jnp.zeros(self.drones, jnp.int32), memory
