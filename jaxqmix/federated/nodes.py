"""A federation of real processes: what a site and the server do, whatever carries the messages.

The same functions as in the simulation (`rounds.py`). A message is a set of arrays by name, with
the env steps that its site claims; what does not fit is turned away and named.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxqmix.compilation import jit
from jaxqmix.config import RunConfig, require, to_dict
from jaxqmix.config import from_dict as run_config
from jaxqmix.env.domain import ranges
from jaxqmix.federated import door
from jaxqmix.federated.aggregate import Tree, make_aggregator
from jaxqmix.federated.compression import make_codec
from jaxqmix.federated.config import FederationConfig, from_dict
from jaxqmix.federated.local import (
    Group,
    begin_site,
    iterations_of_round,
    local_training,
    make_groups,
    ordinary,
    shared_parts,
)
from jaxqmix.federated.privacy import epsilon_spent, require_budget
from jaxqmix.federated.rounds import (
    FEDERATION,
    Server,
    begin_server,
    enough,
    receive,
    site_seeds,
    weights_of,
)
from jaxqmix.federated.sites import Site, find_sites
from jaxqmix.types import replace

Arrays = dict[str, np.ndarray]
"""A tree's arrays by name; see `door.leaves_by_name`."""


def as_text(config: RunConfig, federation: FederationConfig) -> str:
    """All settings as one line, which the server sends to the sites."""
    settings = {"config": to_dict(config), "federation": dataclasses.asdict(federation)}
    return json.dumps(settings, separators=(",", ":"))


def from_text(text: str) -> tuple[RunConfig, FederationConfig]:
    """Settings from `as_text`; raises `ConfigError` on unknown ones."""
    settings = json.loads(text)
    return run_config(settings["config"]), from_dict(settings["federation"])


def as_arrays(tree: Tree) -> Arrays:
    """A tree's arrays by name, on the host."""
    return {name: np.asarray(leaf) for name, leaf in door.leaves_by_name(tree).items()}


def require_real(federation: FederationConfig) -> None:
    """Raises `ConfigError` on what only a simulation does to its sites, and where privacy costs
    more than it may: who takes part is no secret here, so that choosing sites saves nothing."""
    for name in ("attackers", "dropout"):
        value = getattr(federation, name)
        require(not value, name, value, "over a network sites do so themselves, or not")
    rule = federation.aggregate
    require(rule != "fedasync", "aggregate", rule, "over a network all begin from the newest")
    require_budget(federation, federation.per_round, federation.per_round)


class Shared:
    """What a site and the server agree on."""

    def __init__(self, config: RunConfig, federation: FederationConfig):
        """Raises `ConfigError` on settings that do not fit."""
        self.config, self.federation = config, federation
        self.sites: Sequence[Site] = find_sites(federation, config)[0]
        self.groups = make_groups(config, federation, self.sites)
        self.parts = shared_parts(federation, self.groups)
        self.rule = make_aggregator(federation)
        self.like = jax.eval_shape(lambda: self.weights_of(self.begin(0)))
        self.codec = make_codec(federation, self.like)

    def begin(self, number: int) -> Any:
        """The state of a site before the first round."""
        seed = site_seeds(self.config.training.seed, len(self.sites))[number]
        domain = jax.tree.map(lambda leaf: leaf[0], ranges([self.sites[number].domain]))
        return begin_site(seed, domain, self.group(number))

    def group(self, number: int) -> Group:
        """The group of a site."""
        return next(group for group in self.groups if number in group.sites)

    def weights_of(self, state: Any) -> Tree:
        """What is aggregated of a site's parameters."""
        return weights_of(state.learner, self.parts)


class SiteNode(Shared):
    """A site in a process of its own.

    Its state lies in a file, so that it goes on where it was when its process is killed. The file
    of other settings, or of later rounds, is another federation's: the site then begins anew.
    """

    def __init__(self, config: RunConfig, federation: FederationConfig, number: int, folder: Path):
        """Binds a site; raises `ConfigError` when there is none of this number."""
        super().__init__(config, federation)
        allowed = f"must lie between 0 and {len(self.sites) - 1}"
        require(0 <= number < len(self.sites), "site", number, allowed)
        self.number, self.file = number, folder / f"site-{number:02d}.npz"
        group = self.group(number)
        work = group.work[group.sites.index(number)]
        iterations = iterations_of_round(config, federation)
        self._domain = jax.tree.map(lambda leaf: leaf[0], ranges([self.sites[number].domain]))
        self._work = jnp.int32(work)
        self._settings = hashlib.sha256(as_text(config, federation).encode()).hexdigest()

        # What differs between sites is an argument: all find the same program in the cache.
        def train(key: jax.Array, state: Any, residual: Any, start: Tree, rounds: jax.Array,
                  domain: Any, work: jax.Array):  # fmt: skip
            clock = rounds * iterations
            state, update, metrics = local_training(state, start, domain, work, clock, group)
            feedback, unravel = self.codec.feedback, ravel_pytree(start)[1]
            update = update + residual if feedback else update
            message = self.codec.encode(key, unravel(update))
            if feedback:
                left = update - ravel_pytree(self.codec.decode(message))[0]
                # Of an update that the door turns away nothing is left to send.
                residual = jnp.where(jnp.all(jnp.isfinite(update)), left, residual)
            return state, residual, message, metrics

        self._train = jit(train)
        self._begin = jit(functools.partial(self.begin, number), once=True)
        self.env_steps = work * config.iteration_steps

    def train(self, start: Arrays, rounds: int) -> tuple[Arrays, dict[str, float]]:
        """Trains on from the global weights.

        Args:
          start: global weights.
          rounds: that are over.

        Returns:
          The message's arrays, and metrics with `site` and `env_steps`.
        """
        state, residual = self._load(rounds)
        key = jax.random.fold_in(jax.random.key(self.config.training.seed), FEDERATION)
        key = jax.random.fold_in(jax.random.fold_in(key, self.number), rounds)
        weights = door.check(start, self.like)
        state, residual, message, metrics = self._train(
            key, state, residual, weights, jnp.int32(rounds), self._domain, self._work
        )
        self._save((state, residual), rounds)
        told = {name: float(value) for name, value in metrics.items()}
        return as_arrays(message), told | {"site": self.number, "env_steps": self.env_steps}

    def _load(self, rounds: int) -> tuple[Any, Any]:
        """The site's state and residual after so many rounds, from its file where it has them."""
        size = sum(leaf.size for leaf in jax.tree.leaves(self.like))
        residual = np.zeros(size, np.float32) if self.codec.feedback else ()
        if not self.file.exists():
            return self._begin(), residual
        like, structure = jax.tree.flatten((jax.eval_shape(self._begin), residual))
        with np.load(self.file) as saved:
            same = str(saved.get("settings")) == self._settings
            if not same or int(saved["rounds"]) >= rounds:
                return self._begin(), residual
            found = [saved[f"leaf_{place}"] for place in range(len(like))]
        return jax.tree.unflatten(structure, found)

    def _save(self, both: tuple[Any, Any], rounds: int) -> None:
        """Writes the file whole or not at all; `rounds` were over before this one."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        part = self.file.with_suffix(".part")
        leaves: dict[str, Any] = {
            f"leaf_{n}": np.asarray(leaf) for n, leaf in enumerate(jax.tree.leaves(both))
        }
        leaves |= {"settings": np.array(self._settings), "rounds": np.int32(rounds)}
        with part.open("wb") as file:
            np.savez(file, **leaves)
        part.replace(self.file)


@dataclasses.dataclass(frozen=True)
class Reply:
    """What came from a site."""

    node: str
    """Who sent it, for messages."""
    arrays: Arrays
    env_steps: float
    """As it claims."""
    order: float = 0.0
    """Replies are added up in this order, so that results do not depend on who was first."""


class ServerNode(Shared):
    """The server: its weights, and how replies change them."""

    def __init__(self, config: RunConfig, federation: FederationConfig):
        """Begins with the weights that the simulation begins with; raises `ConfigError` as
        `require_real`."""
        require_real(federation)
        super().__init__(config, federation)
        first = self.groups[0].sites[0]
        weights = jit(lambda: self.weights_of(self.begin(first)), once=True)()
        self.server: Server = begin_server(weights, federation, self.rule)
        self.rounds = 0
        self._message = jax.eval_shape(
            self.codec.encode, jax.eval_shape(lambda: jax.random.key(0)), self.like
        )
        self._aggregate = jit(self._next)
        # The noise of privacy is secret: sites know the seed, and would take it off again.
        secret = jnp.array([secrets.randbits(32) for _ in range(2)], jnp.uint32)
        self._key = jax.random.wrap_key_data(secret)

    @property
    def weights(self) -> Arrays:
        """The global weights."""
        return as_arrays(self.server.weights)

    def _next(
        self, key: jax.Array, server: Server, messages: Any, weight: jax.Array, arrived: jax.Array
    ) -> tuple[Server, jax.Array, Any]:
        """The server after messages [M, ...]."""
        updates = jax.vmap(lambda message: ravel_pytree(self.codec.decode(message))[0])(messages)
        # All sites begin from the newest weights.
        age = jnp.zeros(arrived.shape[0], jnp.int32)
        return receive(key, server, updates, weight, arrived, age, self.federation, self.rule)

    def aggregate(self, replies: Sequence[Reply]) -> dict[str, Any]:
        """One round's replies change the weights; what does not fit is turned away.

        Returns:
          What happened: `admitted` and `refused` by node, and whether enough came.
        """
        size, refused, messages, weight = self.federation.per_round, {}, [], []
        names: list[str] = []
        nothing = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), self._message)
        for reply in sorted(replies, key=lambda reply: (reply.order, reply.node))[:size]:
            names.append(reply.node)
            try:
                messages.append(door.check(reply.arrays, self._message))
                weight.append(reply.env_steps)
            except door.UpdateRefused as error:
                refused[reply.node] = str(error)
                messages.append(nothing)
                weight.append(np.nan)  # which the door turns away
        absent = size - len(messages)
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *messages, *[nothing] * absent)
        weights = np.array([*weight, *[0.0] * absent], np.float32)
        arrived = np.arange(size) < len(messages)
        key = jax.random.fold_in(self._key, self.rounds)
        self.server, admitted, said = self._aggregate(key, self.server, stacked, weights, arrived)
        self.rounds += 1
        for place, node in enumerate(names):
            if said.infinite[place]:
                refused[node] = "its numbers are too large"
            if said.weight[place]:
                refused.setdefault(node, f"it claims {float(weights[place])} env steps")
        use = bool(enough(admitted, jnp.array(arrived), self.federation))
        report: dict[str, Any] = {
            "round": self.rounds,
            "admitted": [node for node, good in zip(names, admitted, strict=False) if good],
            "refused": refused,
            "aggregated": use,
            "capped": [n for n, cut in zip(names, said.capped, strict=False) if cut],
            "clipped": [n for n, cut in zip(names, said.clipped, strict=False) if cut],
        }
        if noise := self.federation.noise:
            report["epsilon"] = epsilon_spent(self.rounds, size, size, noise, self.federation.delta)
        return report

    def save(self, folder: Path) -> None:
        """Leaves an ordinary run's folder with the global policy."""
        from jaxqmix.checkpoints import Checkpoints
        from jaxqmix.folders import make_folder

        first = self.groups[0]
        state = jit(lambda: self.begin(first.sites[0]), once=True)()
        parameters = state.learner.parameters | self.server.weights
        learned = replace(state.learner, parameters=parameters, ema=parameters)
        make_folder(folder, first.config)
        writer = Checkpoints(folder, first.config, 0)
        writer.save("final", self.rounds, ordinary(replace(state, learner=learned)))


PUBLISHER = 'publisher = "jaxqmix"'
APP = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "jaxqmix-federation"
version = "1.0.0"
description = "Sites that share no flights train one policy"
license = "MIT"
dependencies = []

[tool.flwr.app]
publisher = "jaxqmix"

[tool.flwr.app.components]
serverapp = "jaxqmix.federated.flower:server"
clientapp = "jaxqmix.federated.flower:client"

[tool.flwr.app.config]
settings = {settings}
out = {out}
timeout = 3600
patience = 60
"""


def write_app(folder: Path, config: RunConfig, federation: FederationConfig, out: Path) -> None:
    """Writes a Flower app with these settings, for `flwr run FOLDER`.

    Raises:
      ConfigError: on settings that do not fit.
    """
    require_real(federation)
    Shared(config, federation)
    file = folder / "pyproject.toml"
    other = file.exists() and PUBLISHER not in file.read_text(encoding="utf-8", errors="replace")
    require(
        not other, "flower", folder, "its pyproject.toml is another project's: name a new folder"
    )
    folder.mkdir(parents=True, exist_ok=True)
    # A string of JSON is one of TOML.
    words = {"settings": as_text(config, federation), "out": str(out)}
    words = {name: json.dumps(text, ensure_ascii=False) for name, text in words.items()}
    text = APP.format(**words)
    file.write_text(text, encoding="utf-8")
