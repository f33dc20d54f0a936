"""The contract of a learner. Training and evaluation know nothing else of how swarms learn.

`jaxqmix.learner.update.QLearner` is the package's own.
"""

from __future__ import annotations

from typing import Any, Protocol

import jax

from jaxqmix.types import Policy, Sequences, Symmetries


class Learner(Protocol):
    """A few pure functions, and a state that is a pytree.

    Of the state only two fields are known, `parameters` and `ema`: trees of weights with an entry
    `agent`. The first must stay finite, and evaluations fly the second, which checkpoints keep as
    the policy.
    """

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of what `update` reports; `loss` is one of them."""
        ...

    def init(self, key: jax.Array) -> Any:
        """The state before the first update. Consumes the key once."""
        ...

    def exploring(self, learned: Any, drones: int, epsilon: jax.Array) -> Policy:
        """The policy that training flies.

        What it needs kept of every step it carries in its hidden state; with a method
        `kept(hidden_state)` it says what of that `Sequences.kept` holds.
        """
        ...

    def greedy(self, agent: Any, drones: int, symmetries: Symmetries | None) -> Policy:
        """The policy that evaluations fly.

        Args:
          agent: the entry of that name in the state's `ema`.
          drones: N.
          symmetries: of the world, if it is to be seen from all sides.
        """
        ...

    def update(
        self, key: jax.Array, learned: Any, batch: Sequences
    ) -> tuple[Any, dict[str, jax.Array]]:
        """Learns from a batch: the new state, and `metrics`, a float32 scalar each."""
        ...
