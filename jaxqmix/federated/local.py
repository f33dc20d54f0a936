"""A site's part of a round: ordinary training, begun from the global weights.

Sites whose swarms have one size share a program; those of other sizes are groups of their own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh

from jaxqmix.config import RunConfig, require
from jaxqmix.distributed import SHARDED, on_each_device, suggested_scale
from jaxqmix.env.base import Environment
from jaxqmix.env.domain import Ranges
from jaxqmix.env.urban_grid import training_env
from jaxqmix.federated.aggregate import Tree
from jaxqmix.federated.config import FederationConfig
from jaxqmix.federated.sites import Site
from jaxqmix.learner.update import Anchor, LearnerState, QLearner
from jaxqmix.rollout import sums
from jaxqmix.training import (
    TrainState,
    begin_training,
    make_parts,
    no_metrics,
    train_iteration,
)
from jaxqmix.types import replace


@dataclasses.dataclass(frozen=True)
class Group:
    """Sites whose swarms have one size."""

    config: RunConfig
    learner: QLearner
    sites: tuple[int, ...]
    """Their numbers among all sites."""
    chosen: int
    """How many take part in a round."""
    work: tuple[int, ...]
    """Iterations that each site flies in a round."""

    def env(self, domain: Ranges) -> Environment:
        """The world of a site's training."""
        return training_env(self.config).with_domain(domain)


def iterations_of_round(config: RunConfig, federation: FederationConfig) -> int:
    """Rollouts with their learner updates that a site flies in a round."""
    return max(1, federation.local_env_steps // config.iteration_steps)


def site_config(config: RunConfig, federation: FederationConfig, drones: int) -> RunConfig:
    """The settings of a site's training.

    Its clock is the federation's: at round r, learning rate and exploration are where they would
    be after as many rounds of its own, and exploration ends after as many env steps of all chosen
    sites together as in an ordinary run.
    """
    training = config.training
    rollouts = federation.rounds * iterations_of_round(config, federation)
    decay = max(1, training.epsilon_decay_steps // federation.per_round)
    return dataclasses.replace(
        config,
        env=dataclasses.replace(config.env, drones=drones),
        training=dataclasses.replace(
            training,
            env_steps=rollouts * config.iteration_steps,
            episodes=None,
            epsilon_decay_steps=decay,
        ),
    )


def allot(per_round: int, sizes: Sequence[int]) -> list[int]:
    """How many sites of each group take part in a round: in proportion, and one at least."""
    require(
        per_round >= len(sizes),
        "per_round",
        per_round,
        f"the swarms have {len(sizes)} sizes, and a round takes one site of each at least",
    )
    exact = [per_round * size / sum(sizes) for size in sizes]
    taken = [max(1, math.floor(share)) for share in exact]
    while sum(taken) != per_round:
        step = 1 if sum(taken) < per_round else -1
        able = [i for i, t in enumerate(taken) if (t < sizes[i] if step > 0 else t > 1)]
        taken[max(able, key=lambda i: step * (exact[i] - taken[i]))] += step
    return taken


def make_groups(
    config: RunConfig, federation: FederationConfig, sites: Sequence[Site]
) -> tuple[Group, ...]:
    """Sites by the size of their swarms."""
    by_size: dict[int, list[int]] = {}
    for number, site in enumerate(sites):
        by_size.setdefault(site.drones, []).append(number)
    whole = iterations_of_round(config, federation)
    proximal = federation.proximal if federation.aggregate == "fedprox" else 0.0
    counts = allot(federation.per_round, [len(members) for members in by_size.values()])
    groups = []
    for (drones, members), chosen in zip(by_size.items(), counts, strict=True):
        own = site_config(config, federation, drones)
        _, learner = make_parts(own, None, proximal=proximal)
        work = tuple(max(1, round(whole * sites[number].work)) for number in members)
        groups.append(Group(own, learner, tuple(members), chosen, work))
    return tuple(groups)


def shared_parts(federation: FederationConfig, groups: Sequence[Group]) -> tuple[str, ...]:
    """The parts of the parameters that are aggregated."""
    own = federation.mixer == "local" or len(groups) > 1
    return ("agent",) if own else ("agent", "mixer")


def over_sites(function: Callable, count: int, mesh: Mesh) -> Callable:
    """A function of one site, over `count` sites: all arguments and results have them in front.

    Sites are spread over the devices, and fly side by side there; on CPU one after the other, for
    one site's swarms fill a core. Where they do not come out even, the first ones fly again and
    are dropped.
    """
    filled = -(-count // mesh.size) * mesh.size

    def share(*arguments: Any) -> Any:
        if suggested_scale() == "cpu":
            return jax.lax.map(lambda each: function(*each), arguments)
        return jax.vmap(function)(*arguments)

    def everywhere(*arguments: Any) -> Any:
        spread = on_each_device(share, mesh, (SHARDED,) * len(arguments), SHARDED)
        if filled == count:
            return spread(*arguments)
        padded = jax.tree.map(lambda leaf: leaf[np.arange(filled) % count], arguments)
        return jax.tree.map(lambda leaf: leaf[:count], spread(*padded))

    return everywhere


def for_each(tree: Tree, count: int) -> Tree:
    """A tree as it is for each of so many sites."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), tree)


def begin_site(seed: jax.Array, domain: Ranges, group: Group) -> TrainState:
    """A site's state before the first round."""
    return begin_training(seed, group.config, group.env(domain), group.learner)


def begin_round(state: TrainState, start: Tree, clock: jax.Array, group: Group) -> TrainState:
    """A site's state at the start of a round: the global weights, and its own optimiser.

    Args:
      state: the site's.
      start: global weights.
      clock: [] int32, iterations of a whole site so far; the learning rate follows it.
      group: its group.
    """
    parameters = state.learner.parameters | start
    learner = group.config.learner
    optimiser = optax.tree.set(
        state.learner.optimiser,
        lambda path, _: path[-1].tuple_name == "ScaleByScheduleState",
        count=clock * learner.epochs * learner.minibatches,
    )
    if isinstance(optimiser[0], Anchor):
        optimiser = (Anchor(parameters), *optimiser[1:])
    learned = LearnerState(parameters, parameters, parameters, optimiser, jnp.int32(0))
    return replace(state, learner=learned, iterations=clock)


def local_training(
    state: TrainState,
    start: Tree,
    domain: Ranges,
    work: jax.Array,
    clock: jax.Array,
    group: Group,
) -> tuple[TrainState, jax.Array, dict[str, jax.Array]]:
    """One site's training in a round.

    Args:
      state: the site's.
      start: global weights.
      domain: of its worlds.
      work: [] int32, iterations that it flies.
      clock: as in `begin_round`.
      group: its group.

    Returns:
      Its state, which begins the round anew where training came to numbers that are not finite;
      its update, of the parts in `start`, as one vector [P], finite or not; and metrics, float32 []
      each: `iterations`, sums over them of the learner's, and sums over the ended episodes.
    """
    env = group.env(domain)
    counted = sums(env.mission)

    def iteration(_: jax.Array, carry: tuple) -> tuple:
        state, totals = carry
        state = replace(state, metrics=no_metrics(QLearner.metrics, counted))
        state = train_iteration(state, group.config, env, group.learner)
        new = state.metrics.learner | state.metrics.episodes | {"iterations": jnp.float32(1)}
        return state, jax.tree.map(jnp.add, totals, new)

    totals = {name: jnp.float32(0) for name in (*QLearner.metrics, *counted, "iterations")}
    begun = begin_round(state, start, clock, group)
    state, totals = jax.lax.fori_loop(0, work, iteration, (begun, totals))
    reached = {name: state.learner.parameters[name] for name in start}
    update = ravel_pytree(reached)[0] - ravel_pytree(start)[0]
    # The optimiser's moments would stay NaN for ever, and every later update with them.
    fit = all_finite((state.learner, state.swarms.hidden_state))
    kept = jax.tree.map(lambda after, before: jnp.where(fit, after, before), state, begun)
    return replace(kept, key=state.key), update, totals


def all_finite(tree: Any) -> jax.Array:
    """Whether all floating-point numbers of a tree are finite, bool []."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in floats]))


def ordinary(state: TrainState) -> TrainState:
    """A site's state without what only a federation adds: the anchor of fedprox."""
    learned = state.learner
    if isinstance(learned.optimiser[0], Anchor):
        learned = replace(learned, optimiser=learned.optimiser[1:])
    return replace(state, learner=learned)
