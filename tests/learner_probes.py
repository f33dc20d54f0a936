"""Tiny problems with known values, as sequences for the learner."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from conftest import quick_options

from jaxqmix.config import LearnerConfig
from jaxqmix.learner.mixers import Mixer
from jaxqmix.learner.networks import Parameters
from jaxqmix.learner.update import LearnerState, QLearner, make_learner
from jaxqmix.types import Observation, Sequences


def sequences(
    states, actions, reward, terminated, truncated, drones=1, kinds=3, choices=2
) -> Sequences:
    """Sequences from state indices [T + 1, S] and per-step arrays [T, S] (actions [T, S, N]).

    Every drone observes the state and its own number, one-hot; all actions are available.
    """
    states = np.asarray(states)
    state = np.eye(kinds, dtype=np.float32)[states]
    seen = np.repeat(state[:, :, None], drones, axis=2)
    number = np.broadcast_to(np.eye(drones, dtype=np.float32), (*states.shape, drones, drones))
    observation = Observation(
        agents=jnp.asarray(np.concatenate([seen, number], axis=-1)),
        available=jnp.ones((*states.shape, drones, choices), bool),
        state=jnp.asarray(state),
    )
    reward = jnp.asarray(reward, jnp.float32)
    return Sequences(
        observation=observation,
        actions=jnp.asarray(actions, jnp.int32),
        reward=reward,
        terminated=jnp.asarray(terminated, bool),
        truncated=jnp.asarray(truncated, bool),
        valid=jnp.ones(reward.shape, bool),
        hidden_state=jnp.zeros((reward.shape[1], drones, 0)),
    )


def two_step_game() -> Sequences:
    """All 16 plays of the two-step game of the QMIX paper (Rashid et al. 2018, section 5).

    Drone 0's first action leads to state 2A (1), worth 7 whatever is done, or 2B (2), with the
    payoffs [[0, 1], [1, 8]].
    """
    payoff = np.array([[0, 1], [1, 8]])
    plays = list(itertools.product(range(2), repeat=4))
    states, actions, rewards = [], [], []
    for first, other, row, column in plays:
        states.append([0, 1 + first, 0])
        actions.append([[first, other], [row, column]])
        rewards.append([0, 7 if first == 0 else payoff[row, column]])
    last = np.array([[False], [True]]).repeat(16, axis=1)
    return sequences(
        np.array(states).T,
        np.array(actions).swapaxes(0, 1),
        np.array(rewards).T,
        terminated=last,
        truncated=np.zeros_like(last),
        drones=2,
    )


MATRIX_GAME = np.array([[8, -12, -12], [-12, 0, 0], [-12, 0, 0]])


def matrix_game() -> Sequences:
    """All 9 plays of the matrix game of the QTRAN paper (Son et al. 2019, section 4.1; QPLEX paper,
    section 4.1): the best pair of actions is worth 8, and each of them with another one -12."""
    row, column = np.indices(MATRIX_GAME.shape).reshape(2, -1)
    ends = np.ones((1, 9), bool)
    return sequences(
        np.zeros((2, 9), int),
        np.stack([row, column], axis=-1)[None],
        MATRIX_GAME[row, column][None],
        terminated=ends,
        truncated=~ends,
        drones=2,
        choices=3,
    )


def learn(
    config: LearnerConfig,
    batch: Sequences,
    calls: int,
    actions: int = 2,
    mixer: type[Mixer] | None = None,
    begun: Callable[[Parameters], Parameters] = lambda parameters: parameters,
) -> tuple[QLearner, LearnerState]:
    """Trains a learner on one batch, again and again; `begun` may change its first weights."""
    agents, state = batch.observation.agents, batch.observation.state
    sizes = (agents.shape[-1], actions, agents.shape[-2], state.shape[-1])
    learner, run = compiled_learner(config, sizes, calls, mixer)
    learned = learner.init(jax.random.key(0))
    begin = begun(learned.parameters)
    return learner, run(dataclasses.replace(learned, parameters=begin, target=begin), batch)


@functools.cache
def compiled_learner(
    config: LearnerConfig, sizes: tuple[int, ...], calls: int, mixer: type[Mixer] | None
) -> tuple[QLearner, Callable[[LearnerState, Sequences], LearnerState]]:
    """A learner and its compiled training, one program for all batches of a shape."""
    learner = make_learner(config, *sizes, calls, mixer=mixer)

    def run(learned: LearnerState, batch: Sequences) -> LearnerState:
        def body(learned, key):
            return learner.update(key, learned, batch)[0], None

        return jax.lax.scan(body, learned, jax.random.split(jax.random.key(1), calls))[0]

    return learner, jax.jit(run, compiler_options=quick_options())
