"""Policies over the cities of every site, and trained on at each site."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxqmix.compilation import jit
from jaxqmix.config import RunConfig
from jaxqmix.distributed import REPLICATED, make_mesh, place, shapes_at, shardings
from jaxqmix.env.domain import Ranges, ranges
from jaxqmix.env.urban_grid import mission_env
from jaxqmix.evaluation import EVALUATION
from jaxqmix.federated.aggregate import Tree
from jaxqmix.federated.local import for_each, local_training, over_sites
from jaxqmix.federated.rounds import Federation, Program, joined, take
from jaxqmix.federated.sites import Site
from jaxqmix.rollout import fly_episodes
from jaxqmix.training import TrainState, greedy_policy, make_parts


@dataclasses.dataclass(frozen=True)
class SitesEvaluator:
    """Flies agents on held-out cities of several sites, batch after batch by one program.

    `fly(agents, keys)` is that program: agents [K, ...], one for each site, and keys [batch].
    """

    fly: Callable[[Tree, jax.Array], dict[str, jax.Array]]
    mesh: Mesh
    batch: int

    def __call__(
        self, agents: Tree, seed: int, episodes: int, stream: int = EVALUATION
    ) -> dict[str, np.ndarray]:
        """Metrics [K, E] and `coverage_over_time` [K, E, T + 1].

        Args:
          agents: [K, ...], see `everywhere`.
          seed: decides the cities, for every policy.
          episodes: E, of each site.
          stream: of random numbers.
        """
        key = jax.random.fold_in(jax.random.key(np.uint32(seed)), stream)
        keys = jax.random.split(key, episodes)
        agents, flown = place(agents, self.mesh, REPLICATED), []
        for first in range(0, episodes, self.batch):
            # The last batch is filled up with the episodes in front, which are then dropped.
            chosen = place(
                keys[np.arange(first, first + self.batch) % episodes], self.mesh, REPLICATED
            )
            metrics = jax.device_get(self.fly(agents, chosen))
            flown.append({name: values[:, : episodes - first] for name, values in metrics.items()})
        return {name: np.concatenate([f[name] for f in flown], axis=1) for name in flown[0]}

    def shapes(self, agents: Tree) -> tuple[Tree, jax.ShapeDtypeStruct]:
        """The shapes that `fly` takes, to compile it ahead; of agents or their shapes."""
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), self.batch))
        return shapes_at((agents, keys), shardings(self.mesh, REPLICATED))


def everywhere(agent: Tree, count: int) -> Tree:
    """The same agent for each of so many sites, [K, ...], on the host."""
    return jax.tree.map(lambda leaf: np.broadcast_to(np.asarray(leaf), (count, *leaf.shape)), agent)


def make_evaluator(config: RunConfig, sites: Sequence[Site], batch: int) -> SitesEvaluator:
    """Binds what is flown; nothing is compiled before it is called.

    Args:
      config: of the federation; each site's swarm flies with its own number of drones.
      sites: K sites.
      batch: episodes of each site that are flown side by side.
    """
    members: dict[int, list[int]] = {}
    for number, site in enumerate(sites):
        members.setdefault(site.drones, []).append(number)
    order = np.argsort([number for numbers in members.values() for number in numbers])
    mesh = make_mesh(lambda devices: devices <= len(sites))

    def fly(agents: Tree, keys: jax.Array) -> dict[str, jax.Array]:
        flown = []
        for drones, numbers in members.items():
            local = dataclasses.replace(config, env=dataclasses.replace(config.env, drones=drones))
            env: Any = mission_env(local)
            _, learner = make_parts(local, None, env)

            def one(agent: Tree, domain: Ranges, env=env, learner=learner):
                world = dataclasses.replace(env, domain=domain)
                policy = greedy_policy(learner, agent, world, config)
                return fly_episodes(keys, world, policy)[0]

            domains = ranges([sites[number].domain for number in numbers])
            flown.append(
                over_sites(one, len(numbers), mesh)(take(agents, np.array(numbers)), domains)
            )
        return take(joined(flown), order)

    return SitesEvaluator(jit(fly), mesh, batch)


def make_tuner(
    program: Program, env_steps: int, clock: int | None = None
) -> Callable[[Federation], tuple[TrainState, ...]]:
    """A jitted function: every site trains the global policy on, by itself, on its own worlds.

    Args:
      program: of the federation.
      env_steps: of each site.
      clock: iterations after which the learning rate is taken up; by default those of the whole
        federation, where it is lowest.

    Returns:
      `tune(state)`: the sites' states, by group [K, ...]; their EMA weights are the policies.
    """
    iterations = max(1, env_steps // program.config.iteration_steps)

    def tune(state: Federation) -> tuple[TrainState, ...]:
        tuned = []
        for group, states in zip(program.groups, state.groups, strict=True):
            count = len(group.sites)
            begun = group.config.iterations if clock is None else clock

            def train(state: Any, start: Any, domain: Any, work: Any, clock: Any, group=group):
                return local_training(state, start, domain, work, clock, group)[0]

            tuned.append(
                over_sites(train, count, program.mesh)(
                    states,
                    for_each(state.server.weights, count),
                    ranges([program.sites[number].domain for number in group.sites]),
                    jnp.full(count, iterations),
                    jnp.full(count, begun),
                )
            )
        return tuple(tuned)

    return jit(tune)


def by_number(program: Program, groups: Sequence[Tree]) -> Tree:
    """Trees of the groups [K, ...] as one, in the order of the sites' numbers, on the host."""
    order = np.argsort([number for group in program.groups for number in group.sites])
    groups = jax.device_get(list(groups))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[order], *groups)
