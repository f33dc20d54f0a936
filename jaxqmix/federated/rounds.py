"""Rounds: sites train in one jitted program, and their updates become the next global policy.

A round chooses sites, trains them (`local.py`), sends their updates, lets in what is fit
(`door.py`) and aggregates (`aggregate.py`). Updates are vectors of all P shared parameters here:
one array compiles sooner than a tree of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh

from jaxqmix.compilation import jit, tree_bytes
from jaxqmix.config import RunConfig
from jaxqmix.distributed import REPLICATED, make_mesh, place, shapes_at, shardings
from jaxqmix.env.domain import ranges
from jaxqmix.federated import door, privacy
from jaxqmix.federated.aggregate import (
    Aggregator,
    Moments,
    Tree,
    by_site,
    make_aggregator,
    mix_async,
    staleness_share,
)
from jaxqmix.federated.compression import Codec, make_codec, message_bytes
from jaxqmix.federated.conditions import attacked, draw_away
from jaxqmix.federated.config import ROBUST, FederationConfig, fewest
from jaxqmix.federated.local import (
    Group,
    begin_site,
    for_each,
    iterations_of_round,
    local_training,
    make_groups,
    over_sites,
    shared_parts,
)
from jaxqmix.federated.sites import Site
from jaxqmix.learner.update import LearnerState
from jaxqmix.training import TrainState
from jaxqmix.types import pytree_dataclass, replace

FEDERATION = 4
"""Stream of random numbers of a federation; training's is 1, evaluation's 2 and 3."""


@pytree_dataclass
class Server:
    """What the server keeps."""

    weights: Tree  # global {"agent": ...}, and "mixer" where it is shared
    moments: Moments  # of the rule, [P]
    history: Tree  # of fedasync: [staleness + 1, P] global weights, newest first; else ()
    clip: jax.Array  # [] float32, clipping norm of differential privacy


@pytree_dataclass
class Federation:
    """Everything that a federated run changes; saved whole, it resumes bit for bit."""

    server: Server
    groups: tuple[TrainState, ...]  # of the sites, [K, ...]
    residuals: tuple[Tree, ...]  # of error feedback, [K, P]; () without
    away: jax.Array  # [sites] bool, in the last round
    key: jax.Array  # [2] uint32, raw key data
    round: jax.Array  # [] int32, rounds so far

    @property
    def learner(self) -> LearnerState:
        """The global policy as a learner's state, for checkpoints; a mixer of its own is the
        first site's."""
        first = jax.tree.map(lambda leaf: leaf[0], self.groups[0].learner)
        return replace(first, ema=first.ema | self.server.weights)


@pytree_dataclass
class Outcome:
    """What a round reports, for each chosen site [M]."""

    site: jax.Array  # int32, which
    reached: jax.Array  # bool, it trained and sent an update
    admitted: jax.Array  # bool, the door let it in
    verdicts: door.Verdicts
    env_steps: jax.Array  # int32, flown
    metrics: dict[str, jax.Array]  # float32 [M], of `local.local_training`
    aggregated: jax.Array  # [] bool, enough were admitted
    clip: jax.Array  # [] float32, clipping norm of differential privacy
    change: jax.Array  # [] float32, norm of what changed in the global weights


@dataclasses.dataclass(frozen=True)
class Program:
    """The functions of a federation with its settings bound; `begin(seed)` and `round(state)` are
    jitted."""

    config: RunConfig
    federation: FederationConfig
    sites: tuple[Site, ...]
    groups: tuple[Group, ...]
    codec: Codec
    mesh: Mesh
    begin: Callable[[Any], Federation]
    round: Callable[[Federation], tuple[Federation, Outcome]]
    bytes_up: int
    """Of one site's message."""
    bytes_down: int
    """Of the global weights."""

    def init(self, seed: int) -> Federation:
        """The state before the first round."""
        return self.begin(np.uint32(seed))

    @property
    def state_shapes(self) -> Federation:
        """Shapes, types and places of the state, without computing anything."""
        shapes = jax.eval_shape(self.begin, jax.ShapeDtypeStruct((), np.uint32))
        return shapes_at(shapes, shardings(self.mesh, REPLICATED))

    def place(self, state: Federation) -> Federation:
        """Puts a state on the devices."""
        return place(state, self.mesh, REPLICATED)

    @property
    def round_steps(self) -> int:
        """Env steps of one site that flies a whole round."""
        return iterations_of_round(self.config, self.federation) * self.config.iteration_steps


def make_program(config: RunConfig, federation: FederationConfig, sites: Sequence[Site]) -> Program:
    """Binds a federation; nothing is compiled before its functions are called.

    Raises:
      ConfigError: when the sites do not fit the federation.
    """
    groups = make_groups(config, federation, sites)
    parts = shared_parts(federation, groups)
    rule = make_aggregator(federation)
    mesh = make_mesh(lambda devices: devices <= federation.per_round)
    key = jax.random.key(0)
    like = jax.eval_shape(lambda: weights_of(groups[0].learner.init(key), parts))
    codec = make_codec(federation, like)

    def begin(seed: jax.Array) -> Federation:
        return begin_federation(seed, program, parts, rule)

    def fly(state: Federation) -> tuple[Federation, Outcome]:
        return fly_round(state, program, rule)

    everywhere = shardings(mesh, REPLICATED)
    program = Program(
        config,
        federation,
        tuple(sites),
        groups,
        codec,
        mesh,
        begin=jit(begin, once=True, out_shardings=everywhere),
        # Pinned, for the compiler takes empty arrays apart, and would compile again for its output.
        round=jit(fly, donate_argnums=0, out_shardings=everywhere),
        bytes_up=message_bytes(codec, like),
        bytes_down=tree_bytes(like),
    )
    return program


def weights_of(learned: LearnerState, parts: Sequence[str]) -> Tree:
    """The parameters that are aggregated."""
    return {name: learned.parameters[name] for name in parts}


def site_seeds(seed: jax.typing.ArrayLike, count: int) -> jax.Array:
    """Each site's own seed, uint32 [K]."""
    key = jax.random.fold_in(jax.random.key(seed), FEDERATION)
    return jax.random.bits(key, (count,), jnp.uint32)


def begin_federation(
    seed: jax.Array, program: Program, parts: Sequence[str], rule: Aggregator
) -> Federation:
    """The state before the first round; the first site's weights are the first global ones."""
    sites, states = program.sites, []
    for group in program.groups:
        own = site_seeds(seed, len(sites))[np.array(group.sites)]
        domains = ranges([sites[number].domain for number in group.sites])

        def begin(seed: jax.Array, domain: Any, group: Group = group) -> TrainState:
            return begin_site(seed, domain, group)

        states.append(over_sites(begin, len(group.sites), program.mesh)(own, domains))
    weights = jax.tree.map(lambda leaf: leaf[0], weights_of(states[0].learner, parts))
    size = ravel_pytree(weights)[0].size
    return Federation(
        server=begin_server(weights, program.federation, rule),
        groups=tuple(states),
        residuals=tuple(
            jnp.zeros((len(group.sites), size)) if program.codec.feedback else ()
            for group in program.groups
        ),
        away=jnp.zeros(len(sites), bool),
        key=jax.random.key_data(jax.random.fold_in(jax.random.key(seed), FEDERATION + 1)),
        round=jnp.int32(0),
    )


def begin_server(weights: Tree, federation: FederationConfig, rule: Aggregator) -> Server:
    """The server before the first round."""
    flat = ravel_pytree(weights)[0]
    asynchronous = federation.aggregate == "fedasync"
    history = for_each(flat, federation.staleness + 1) if asynchronous else ()
    return Server(weights, rule.begin(flat), history, jnp.float32(federation.clip))


@pytree_dataclass
class Flown:
    """What the chosen sites [M] come back with, before anything is sent."""

    groups: tuple[TrainState, ...]  # the states of all sites after it, [K, ...]
    chosen: tuple[jax.Array, ...]  # int32, by group: places of the chosen sites among its own
    site: jax.Array  # int32, which
    reached: jax.Array  # bool, it trained
    age: jax.Array  # int32, of `draw_ages`
    away: jax.Array  # [sites] bool
    updates: jax.Array  # float32 [M, P]
    metrics: dict[str, jax.Array]  # float32 [M], of `local.local_training`


def round_keys(state: Federation) -> jax.Array:
    """The keys of a round: the next state's, then those that its parts consume."""
    return jax.random.split(jax.random.wrap_key_data(state.key), 7)


def fly_round(state: Federation, program: Program, rule: Aggregator) -> tuple[Federation, Outcome]:
    """One round: choose, train, send, let in, aggregate."""
    return end_round(state, fly_sites(state, program), program, rule)


def fly_sites(state: Federation, program: Program) -> Flown:
    """The first half of a round: sites are chosen, and train. No rule of aggregation matters."""
    federation, groups = program.federation, program.groups
    _, choose_key, away_key, age_key, *_ = round_keys(state)
    away = draw_away(away_key, state.away, state.round, federation)
    chosen = [
        jax.random.permutation(jax.random.fold_in(choose_key, n), len(group.sites))[: group.chosen]
        for n, group in enumerate(groups)
    ]
    site = jnp.concatenate([jnp.array(g.sites)[c] for g, c in zip(groups, chosen, strict=True)])
    reached = ~away[site]
    age = draw_ages(age_key, federation)
    starts = starts_of(state.server, age, federation)
    states, updates, metrics = train_sites(state, chosen, starts, reached, program)
    return Flown(states, tuple(chosen), site, reached, age, away, updates, metrics)


def end_round(
    state: Federation, flown: Flown, program: Program, rule: Aggregator
) -> tuple[Federation, Outcome]:
    """The second half: updates are sent, let in and aggregated."""
    federation, server, reached = program.federation, state.server, flown.reached
    next_key, *_, attack_key, send_key, noise_key = round_keys(state)
    steps = (flown.metrics["iterations"] * program.config.iteration_steps).astype(jnp.int32)
    updates, weight = flown.updates, steps.astype(jnp.float32)
    if federation.attackers:
        hostile = flown.site >= len(program.sites) - federation.attackers
        updates, weight = attacked(attack_key, updates, weight, hostile, federation.attack)
    sent, residuals = send(send_key, updates, state, flown.chosen, reached, program.codec)
    server, admitted, verdicts = receive(
        noise_key, server, sent, weight, reached, flown.age, federation, rule
    )
    moved = ravel_pytree(server.weights)[0] - ravel_pytree(state.server.weights)[0]
    outcome = Outcome(
        site=flown.site,
        reached=reached,
        admitted=admitted,
        verdicts=verdicts,
        env_steps=steps,
        metrics=flown.metrics,
        aggregated=enough(admitted, reached, federation),
        clip=server.clip,
        change=jnp.linalg.norm(moved),
    )
    key = jax.random.key_data(next_key)
    return Federation(server, flown.groups, residuals, flown.away, key, state.round + 1), outcome


def train_sites(
    state: Federation,
    chosen: Sequence[jax.Array],
    starts: Tree,
    reached: jax.Array,
    program: Program,
) -> tuple[tuple[TrainState, ...], Tree, dict[str, jax.Array]]:
    """The chosen sites train; those that are away do nothing.

    Args:
      state: of the federation.
      chosen: of each group, places of the chosen sites among its own.
      starts: global weights that each chosen site begins from, [M, ...].
      reached: [M] bool.
      program: of the federation.

    Returns:
      The groups' states [K, ...], and updates and metrics [M, ...].
    """
    clock = state.round * iterations_of_round(program.config, program.federation)
    states, updates, metrics = [], [], []
    first = 0
    for group, all_states, places in zip(program.groups, state.groups, chosen, strict=True):
        part = slice(first, first + group.chosen)
        first += group.chosen

        def train(
            state: Any, start: Tree, domain: Any, work: Any, clock: Any, group=group
        ) -> tuple:
            return local_training(state, start, domain, work, clock, group)

        domains = ranges([program.sites[number].domain for number in group.sites])
        before = take(all_states, places)
        after, update, sums = over_sites(train, group.chosen, program.mesh)(
            before,
            take(starts, part),
            take(domains, places),
            jnp.where(reached[part], jnp.array(group.work)[places], 0),
            jnp.broadcast_to(clock, group.chosen),
        )
        kept = jax.tree.map(partial(where_reached, reached[part]), after, before)
        states.append(put(all_states, places, kept))
        updates.append(update)
        metrics.append(sums)
    return tuple(states), joined(updates), joined(metrics)


def draw_ages(key: jax.Array, federation: FederationConfig) -> jax.Array:
    """How many rounds ago the weights were global that each chosen site begins from, [M] int32."""
    count = federation.per_round
    if federation.aggregate != "fedasync":
        return jnp.zeros(count, jnp.int32)
    return jax.random.randint(key, (count,), 0, federation.staleness + 1)


def starts_of(server: Server, age: jax.Array, federation: FederationConfig) -> Tree:
    """The global weights that each chosen site begins from, [M, ...]."""
    if federation.aggregate != "fedasync":
        return for_each(server.weights, federation.per_round)
    return jax.vmap(ravel_pytree(server.weights)[1])(server.history[age])


def send(
    key: jax.Array,
    updates: jax.Array,
    state: Federation,
    chosen: Sequence[jax.Array],
    reached: jax.Array,
    codec: Codec,
) -> tuple[jax.Array, tuple[Tree, ...]]:
    """What arrives of updates [M, P], and the groups' residuals [K, P] after it."""
    unravel = ravel_pytree(state.server.weights)[1]

    def through(key: jax.Array, update: jax.Array) -> jax.Array:
        return ravel_pytree(codec.decode(codec.encode(key, unravel(update))))[0]

    keys = jax.random.split(key, reached.shape[0])
    if not codec.feedback:
        return jax.vmap(through)(keys, updates), state.residuals
    before = joined([take(r, c) for r, c in zip(state.residuals, chosen, strict=True)])
    updates += before
    arrived = jax.vmap(through)(keys, updates)
    sent = reached & jnp.all(jnp.isfinite(updates), axis=1)
    kept = jnp.where(sent[:, None], updates - arrived, before)
    after, first = [], 0
    for residual, places in zip(state.residuals, chosen, strict=True):
        after.append(residual.at[places].set(kept[first : first + len(places)]))
        first += len(places)
    return arrived, tuple(after)


def receive(
    key: jax.Array,
    server: Server,
    updates: jax.Array,
    weight: jax.Array,
    arrived: jax.Array,
    age: jax.Array,
    federation: FederationConfig,
    rule: Aggregator,
) -> tuple[Server, jax.Array, door.Verdicts]:
    """The server after a round; as it was when there are not `enough` updates.

    Args:
      key: consumed once.
      server: before.
      updates: [M, P].
      weight: [M], env steps as claimed.
      arrived: [M] bool.
      age: [M] int32, of `draw_ages`.
      federation: its settings.
      rule: of the aggregation.

    Returns:
      The server, who was let in [M], and the verdicts of the door.
    """
    # With privacy, norms are clipped by a bound that no single update moves.
    norm_cap = jnp.inf if federation.noise else federation.norm_cap
    updates, weight, admitted, verdicts = door.admit(
        updates, weight, arrived, federation.weight_cap, norm_cap
    )
    clip, moments, history = server.clip, server.moments, server.history
    weights, unravel = ravel_pytree(server.weights)
    if federation.aggregate == "fedasync":
        share = staleness_share(age, federation.alpha)
        weights = mix_async(weights, history[age] + updates, admitted, share)
        history = jnp.concatenate([weights[None], history[:-1]])
    else:
        if federation.noise:
            update, clip = privacy.private_mean(key, updates, admitted, clip, federation.noise)
        else:
            update = rule.combine(updates, weight, admitted)
        weights, moments = rule.step(weights, update, moments)
    after = Server(unravel(weights), moments, history, clip)
    use = enough(admitted, arrived, federation)
    after = jax.tree.map(lambda new, old: jnp.where(use, new, old), after, server)
    return after, admitted, verdicts


def enough(admitted: jax.Array, arrived: jax.Array, federation: FederationConfig) -> jax.Array:
    """Whether a round's updates are aggregated, bool []: those of `minimum` sites, and as many as
    a robust rule needs for the hostile ones that the door has not turned away.

    Args:
      admitted: [M] bool.
      arrived: [M] bool.
      federation: its settings.
    """
    turned_away = (arrived & ~admitted).sum()
    # With noise, whether a round counts must not depend on anyone's data: that would show.
    count = (arrived if federation.noise else admitted).sum()
    needed = jnp.int32(federation.minimum)
    if federation.aggregate in ROBUST:
        hostile = jnp.maximum(federation.hostile - turned_away, 0)
        needed = jnp.maximum(needed, fewest(federation.aggregate, hostile))
    return count >= needed


def where_reached(reached: jax.Array, after: jax.Array, before: jax.Array) -> jax.Array:
    """Leaves [M, ...] of the sites that were reached, and as before of the others."""
    return jnp.where(by_site(reached, after), after, before)


def take(stacked: Tree, places: Any) -> Tree:
    """Some of stacked trees."""
    return jax.tree.map(lambda leaf: leaf[places], stacked)


def put(stacked: Tree, places: jax.Array, new: Tree) -> Tree:
    """Stacked trees with some replaced."""
    return jax.tree.map(lambda old, leaf: old.at[places].set(leaf), stacked, new)


def joined(parts: Sequence[Tree]) -> Tree:
    """Trees of several groups, one after the other along the first axis."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
