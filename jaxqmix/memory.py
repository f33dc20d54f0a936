"""How much memory a run will take, before any is taken."""

from __future__ import annotations

import math

import jax

from jaxqmix.compilation import tree_bytes
from jaxqmix.config import RunConfig, require
from jaxqmix.training import Trainer, sequence_shapes


def memory_needed(trainer: Trainer) -> dict[str, int]:
    """Bytes that a run will hold, by part, without allocating anything.

    `swarms`, `replay` and `learner` (on every device) stay; `rollout` is one batch of sequences,
    and `update` the activations of the targets, or those and the gradients of one minibatch,
    whichever is more; `checkpoint` is the copy of the state that is being saved.
    """
    config, seeds = trainer.config, trainer.seeds or 1
    shapes = trainer.state_shapes
    state = shapes if trainer.seeds is None else jax.tree.map(without_first_axis, shapes)
    sequences = sequence_shapes(config, state.swarms)  # less what another learner keeps of a step
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
