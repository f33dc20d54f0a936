"""The update: targets, loss, gradient steps, target network and EMA.

Free functions first; `make_learner` binds the static sizes last.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxqmix.config import LearnerConfig
from jaxqmix.distributed import total
from jaxqmix.learner.mixers import Mixer, MixerNetwork, make_mixer
from jaxqmix.learner.networks import (
    AgentApply,
    AgentNetwork,
    Parameters,
    SymmetryEnsemble,
    greedy_actions,
    hidden_state_size,
    network_settings,
    transformed,
)
from jaxqmix.learner.targets import chosen_values, lambda_returns, masked_max
from jaxqmix.policies import LearnedPolicy
from jaxqmix.types import Sequences, Symmetries, over_sequences, pytree_dataclass


@pytree_dataclass
class LearnerState:
    """Everything that learning changes."""

    parameters: Parameters  # {"agent": ..., "mixer": ...}, trained
    target: Parameters  # of the target network
    ema: Parameters  # exponential moving average over updates, for evaluation
    optimiser: Any
    updates: jax.Array  # [] int32, so far


@dataclasses.dataclass(frozen=True)
class QLearner:
    """A `Learner` of action values, with static sizes bound."""

    config: LearnerConfig
    agent: AgentApply
    mixer: MixerNetwork
    hidden_state_size: int
    init: Callable[[jax.Array], LearnerState]
    update: Callable[
        [jax.Array, LearnerState, Sequences], tuple[LearnerState, dict[str, jax.Array]]
    ]
    metrics: ClassVar[tuple[str, ...]] = ("loss", "mean_q", "gradient_norm")

    def exploring(self, learned: LearnerState, drones: int, epsilon: jax.Array) -> LearnedPolicy:
        """The policy that training flies: epsilon-greedy, without the symmetry ensemble."""
        agent = learned.parameters["agent"]
        return LearnedPolicy(self.agent, agent, drones, self.hidden_state_size, epsilon)

    def greedy(
        self, agent: Parameters, drones: int, symmetries: Symmetries | None
    ) -> LearnedPolicy:
        """The policy that evaluations fly; with symmetries, over the ensemble of them."""
        if symmetries is None:
            return LearnedPolicy(self.agent, agent, drones, self.hidden_state_size)
        size = self.hidden_state_size * symmetries.actions.shape[0]
        ensemble = SymmetryEnsemble(self.agent)
        return LearnedPolicy(ensemble, transformed(agent, symmetries), drones, size)


def compute_targets(
    learned: LearnerState,
    batch: Sequences,
    agent: AgentApply,
    mixer: MixerNetwork,
    config: LearnerConfig,
) -> jax.Array:
    """Lambda-return targets [T, S, M] of a batch of sequences.

    Bootstraps from the team's value, under the target network, of the available actions that the
    online network finds best (van Hasselt et al. 2016, "Deep Reinforcement Learning with Double
    Q-learning"), or those that the target network does.

    They hold for all gradient steps of an update: taken anew from each step's weights, without
    a target network, the values grew a thousandfold within a minute of `quick`.
    """
    observation = batch.observation
    values, _ = agent(learned.target["agent"], observation.agents, batch.hidden_state)
    best = masked_max(values, observation.available)
    # With a target network that is always a copy, both networks choose the same action.
    if config.double_q and config.target_update < 1:
        online, _ = agent(learned.parameters["agent"], observation.agents, batch.hidden_state)
        actions = greedy_actions(online, observation.available)
        chosen = chosen_values(values, actions)
    else:
        actions, chosen = greedy_actions(values, observation.available), best
    next_value = mixer(
        learned.target["mixer"], chosen[1:], best[1:], actions[1:], observation.state[1:]
    )
    return lambda_returns(
        batch.reward, batch.terminated, batch.truncated, next_value, config.gamma, config.trace
    )


def td_loss(
    parameters: Parameters,
    batch: Sequences,
    targets: jax.Array,
    agent: AgentApply,
    mixer: MixerNetwork,
    axis: str | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Half the mean squared TD error over valid steps (Rashid et al. 2018, equation 6).

    Over several devices, this one's part of the mean: the parts add up.

    Args:
      parameters: of agent and mixer.
      batch: [T, S, ...].
      targets: [T, S, M].
      agent: the network.
      mixer: the network.
      axis: of `distributed.on_each_device`, if inside.

    Returns:
      The loss, and metrics.
    """
    observation = batch.observation
    values, _ = agent(parameters["agent"], observation.agents[:-1], batch.hidden_state)
    chosen = chosen_values(values, batch.actions)
    best = masked_max(values, observation.available[:-1])
    team = mixer(parameters["mixer"], chosen, best, batch.actions, observation.state[:-1])
    weight = jnp.broadcast_to(batch.valid[..., None], team.shape).astype(jnp.float32)
    count = jnp.maximum(total(weight.sum(), axis), 1.0)
    loss = 0.5 * jnp.sum(weight * (team - targets) ** 2) / count
    return loss, {"loss": loss, "mean_q": jnp.sum(weight * team) / count}


class Anchor(NamedTuple):
    """State of `pull_to_anchor`."""

    anchor: Parameters


def pull_to_anchor(strength: float) -> optax.GradientTransformation:
    """Adds the gradient of strength / 2 x the squared distance to the anchor, at first the initial
    weights (FedProx: Li et al. 2020, "Federated Optimization in Heterogeneous Networks")."""

    def update(grads: Parameters, state: Anchor, parameters: Parameters) -> tuple:
        pulled = jax.tree.map(
            lambda g, own, anchor: g + strength * (own - anchor), grads, parameters, state.anchor
        )
        return pulled, state

    return optax.GradientTransformation(Anchor, update)


def make_optimiser(
    config: LearnerConfig, steps: int, proximal: float = 0.0
) -> optax.GradientTransformation:
    """Clipped RAdam; the learning rate holds, then falls linearly over `steps` in all.

    With `proximal`, weights are pulled to an anchor that strongly.
    """
    hold = int(config.learning_rate_hold * steps)
    rate = optax.join_schedules(
        [
            optax.constant_schedule(config.learning_rate),
            optax.linear_schedule(
                config.learning_rate,
                config.learning_rate * config.learning_rate_end,
                max(steps - hold, 1),
            ),
        ],
        [hold],
    )
    parts = [optax.clip_by_global_norm(config.max_gradient_norm), optax.radam(rate)]
    return optax.chain(*([pull_to_anchor(proximal)] if proximal else []), *parts)


def ema_step_size(updates: jax.Array, decay: float) -> jax.Array:
    """Step size of the EMA of the weights, after so many earlier updates.

    At first a polynomial decay, which soon forgets the untrained weights (Shamir and Zhang 2013,
    "Stochastic Gradient Descent for Non-smooth Optimization", section 4, with eta = 2), until the
    given decay forgets more slowly.
    """
    return jnp.maximum(1 - decay, 3 / (updates + 3))


def minibatch_orders(key: jax.Array, sequences: int, config: LearnerConfig) -> jax.Array:
    """Which of S sequences each gradient step learns from, int32 [epochs * minibatches,
    S / minibatches]; every epoch learns from each of them once."""
    orders = jax.vmap(lambda key: jax.random.permutation(key, sequences))(
        jax.random.split(key, config.epochs)
    )
    return orders.reshape(config.epochs * config.minibatches, -1)


def init_learner(
    key: jax.Array,
    agent: AgentNetwork,
    mixer: MixerNetwork,
    optimiser: optax.GradientTransformation,
) -> LearnerState:
    """The state before the first update: target network and EMA are the fresh weights."""
    agent_key, mixer_key = jax.random.split(key)
    parameters = {"agent": agent.init(agent_key), "mixer": mixer.init(mixer_key)}
    # Copies: the training state is donated, and a buffer can be donated only once.
    target, ema = (jax.tree.map(jnp.copy, parameters) for _ in range(2))
    return LearnerState(parameters, target, ema, optimiser.init(parameters), jnp.int32(0))


def update_learner(
    key: jax.Array,
    learned: LearnerState,
    batch: Sequences,
    agent: AgentApply,
    mixer: MixerNetwork,
    optimiser: optax.GradientTransformation,
    config: LearnerConfig,
    axis: str | None = None,
) -> tuple[LearnerState, dict[str, jax.Array]]:
    """One update: `epochs` passes over a batch of sequences, in `minibatches` gradient steps each.

    Args:
      key: consumed once.
      learned: before.
      batch: [T, S, ...].
      agent: the network.
      mixer: the network.
      optimiser: of `make_optimiser`.
      config: of the learner.
      axis: of `distributed.on_each_device`, where `batch` is this device's.

    Returns:
      The state after it, and metrics, means over the gradient steps.
    """
    targets = compute_targets(learned, batch, agent, mixer, config)
    gradient = jax.grad(td_loss, has_aux=True)

    def minibatch(carry: tuple, chosen: jax.Array) -> tuple[tuple, dict[str, jax.Array]]:
        parameters, state = carry
        part = over_sequences(lambda leaf, axis: jnp.take(leaf, chosen, axis), batch)
        part_targets = jnp.take(targets, chosen, axis=1)
        grads, metrics = total(gradient(parameters, part, part_targets, agent, mixer, axis), axis)
        metrics["gradient_norm"] = optax.tree.norm(grads)
        changes, state = optimiser.update(grads, state, parameters)
        return (optax.apply_updates(parameters, changes), state), metrics

    (parameters, state), metrics = jax.lax.scan(
        minibatch,
        (learned.parameters, learned.optimiser),
        minibatch_orders(key, batch.reward.shape[1], config),
    )
    learned = LearnerState(
        parameters=parameters,
        target=optax.incremental_update(parameters, learned.target, config.target_update),
        ema=optax.incremental_update(
            parameters, learned.ema, ema_step_size(learned.updates, config.average_decay)
        ),
        optimiser=state,
        updates=learned.updates + 1,
    )
    return learned, jax.tree.map(jnp.mean, metrics)


def make_learner(
    config: LearnerConfig,
    features: int,
    actions: int,
    drones: int,
    state: int,
    updates: int,
    axis: str | None = None,
    proximal: float = 0.0,
    mixer: type[Mixer] | None = None,
) -> QLearner:
    """Binds the static sizes.

    Args:
      config: of the learner; numbers of `jaxqmix.hyperparameters.TRACED` may be arrays [].
      features: D.
      actions: A.
      drones: N.
      state: S of the mixer's state.
      updates: in the run, for the learning rate.
      axis: of `distributed.on_each_device`, where `update` gets this device's sequences.
      proximal: as in `make_optimiser`.
      mixer: another one than the config names.
    """
    networks = network_settings(config)
    agent = AgentNetwork(networks, features, actions)
    mixing = make_mixer(networks, drones, actions, state, mixer)
    optimiser = make_optimiser(config, updates * config.epochs * config.minibatches, proximal)
    parts: dict[str, Any] = {"agent": agent, "mixer": mixing, "optimiser": optimiser}
    return QLearner(
        config,
        agent,
        mixing,
        hidden_state_size(config),
        init=partial(init_learner, **parts),
        update=partial(update_learner, **parts, config=config, axis=axis),
    )
