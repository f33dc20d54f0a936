"""Trained policies for machines without JAX: ONNX, plain NumPy arrays, and StableHLO.

One drone's observation goes in, its action comes out. The mask is applied and the best action
taken inside, and so is the symmetry ensemble, at the cost of a larger first and last layer:
turned weights stand beside each other, and the layers between see a row for each view.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxqmix import __version__
from jaxqmix.checkpoints import load
from jaxqmix.config import ConfigError, RunConfig, require, to_dict
from jaxqmix.env.features import features
from jaxqmix.env.observation import (
    agent_features,
    feature_slices,
    seen_features,
    symmetries,
)
from jaxqmix.export.numpy_policy import NumpyPolicy
from jaxqmix.learner.networks import transformed
from jaxqmix.maps import without_city
from jaxqmix.policies import LearnedPolicy
from jaxqmix.training import greedy_policy, make_parts
from jaxqmix.types import ACTIONS

FORMATS = {"onnx": ".onnx", "npz": ".npz", "stablehlo": ".stablehlo"}
"""Endings of the formats' files."""
TOLERANCE = 1e-5
"""Exported action values may differ from JAX's by this share of the largest."""


@dataclasses.dataclass(frozen=True)
class PlainPolicy:
    """A greedy policy as named arrays, and what they mean."""

    weights: dict[str, np.ndarray]  # see `NumpyPolicy.values`
    about: dict[str, Any]


def export_policy(
    run: str | Path, out: str | Path, format: str | None = None, views: bool | None = None
) -> float:
    """Writes a trained policy for other programs.

    Args:
      run: a run's folder or a checkpoint.
      out: the file to write.
      format: `onnx`, `npz` or `stablehlo`; by the file's ending when None.
      views: act on the symmetry ensemble, as evaluations do; as the run's
        `evaluation.symmetric` says when None.

    Returns:
      The largest difference of action values between the file's arrays in NumPy and JAX, as a
      share of the largest value, over random observations; at most 1e-5.

    Raises:
      ConfigError: on an unknown format, a missing extra, or a checkpoint that cannot be read.
    """
    out, format = Path(out), find_format(out, format)
    require(out.suffix != ".json", "out", out, "a policy's metadata may go there")
    config, parameters, _ = load(Path(run))
    if views is not None:
        evaluation = dataclasses.replace(config.evaluation, symmetric=views)
        config = dataclasses.replace(config, evaluation=evaluation)
    plain = plain_policy(config, parameters["agent"])
    difference = compare(plain, config, parameters["agent"])
    out.parent.mkdir(parents=True, exist_ok=True)
    if format == "onnx":
        from jaxqmix.export.onnx_graph import write_onnx

        write_onnx(plain, out)
    elif format == "npz":
        write_npz(plain, out)
    else:
        write_stablehlo(plain.about, config, parameters["agent"], out)
    return difference


def find_format(out: Path, format: str | None) -> str:
    """The format asked for, or that of a file's ending; raises `ConfigError` on another."""
    if format is None:
        endings = {ending: name for name, ending in FORMATS.items()}
        require(
            out.suffix.lower() in endings, "out", out, f"must end in {', '.join(endings)}, or "
            "give --format",
        )  # fmt: skip
        return endings[out.suffix.lower()]
    require(format in FORMATS, "format", format, f"must be one of {', '.join(FORMATS)}")
    return format


def plain_policy(config: RunConfig, agent: dict[str, Any]) -> PlainPolicy:
    """The greedy policy of agent parameters as plain arrays.

    The views stand beside each other in the first kernel [D, G x H] and bias, and below each other
    in the head [G x H, A], which also joins value, advantage and the mean over the views; all of
    that is linear.
    """
    env, learner = config.env, config.learner
    agent = jax.tree.map(jnp.asarray, agent)
    sides = symmetries(env) if config.evaluation.symmetric else None
    many = transformed(agent, sides) if sides else jax.tree.map(lambda leaf: leaf[None], agent)
    many = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), many)
    first, views = many["dense_0"], many["dense_0"]["bias"].shape[0]
    weights = {
        "kernel_0": np.concatenate(list(first["kernel"]), axis=1),
        "bias_0": first["bias"].reshape(-1),
    }
    # What drones are blind to was zero in training.
    weights["kernel_0"] = weights["kernel_0"] * seen_features(env)[:, None]
    for layer in range(learner.layers):
        norm = many[f"norm_{layer}"]
        weights |= {f"scale_{layer}": norm["scale"][0], f"shift_{layer}": norm["bias"][0]}
        if layer:
            dense = many[f"dense_{layer}"]
            weights |= {f"kernel_{layer}": dense["kernel"][0], f"bias_{layer}": dense["bias"][0]}
    if learner.network == "gru":
        cell = many["recurrent"]
        weights |= {"gru_input": cell["dense_i"]["kernel"][0]}
        weights |= {"gru_bias": cell["dense_i"]["bias"][0]}
        weights |= {"gru_hidden": cell["dense_h"]["kernel"][0]}
    value, advantage = many["value"], many["advantage"]
    joined = {
        name: value[name] + advantage[name] - advantage[name].mean(axis=-1, keepdims=True)
        for name in ("kernel", "bias")
    }
    weights["head"] = joined["kernel"].reshape(-1, len(ACTIONS)) / np.float32(views)
    weights["head_bias"] = joined["bias"].mean(axis=0)
    weights = {name: np.ascontiguousarray(array, np.float32) for name, array in weights.items()}
    return PlainPolicy(weights, describe(config, views))


def describe(config: RunConfig, views: int) -> dict[str, Any]:
    """What an exported file says of itself, as plain JSON."""
    env, learner = config.env, config.learner
    gru = learner.network == "gru"
    return {
        "jaxqmix": __version__,
        "network": learner.network,
        "features": agent_features(env),
        "hidden": learner.hidden,
        "layers": learner.layers,
        "views": views,
        "hidden_state": views * learner.hidden if gru else 0,
        "actions": list(ACTIONS),
        "move": f"{env.cell_size:g} m north, south, west or east, or {env.climb:g} m up or down",
        "seconds_per_action": env.step_seconds,
        "groups": {
            feature.name: {"start": part.start, "stop": part.stop, "holds": feature.units}
            for feature, part in zip(features(env), feature_slices(env).values(), strict=True)
        },
        "config": to_dict(config),
    }


def jax_values(config: RunConfig, agent: dict[str, Any]) -> Callable:
    """JAX's own greedy policy: (observation [N, D], hidden_state [N, M]) ->
    (values [N, A], hidden_state)."""
    env, learner = make_parts(without_city(config), axis=None)
    agent = jax.tree.map(jnp.asarray, agent)
    policy = cast(LearnedPolicy, greedy_policy(learner, agent, env, config))
    seen = seen_features(config.env)

    def values(observation: jax.Array, hidden_state: jax.Array) -> tuple[jax.Array, jax.Array]:
        observation = jnp.where(seen, observation, 0.0)
        values, hidden_state = policy.apply(policy.parameters, observation[None], hidden_state)
        return values[0], hidden_state

    return values


def compare(plain: PlainPolicy, config: RunConfig, agent: dict[str, Any], count: int = 64) -> float:
    """The largest difference between plain arrays and JAX over random observations, relative.

    Raises:
      AssertionError: when it is more than `TOLERANCE`.
    """
    draw = np.random.default_rng(0)
    observation = draw.normal(size=(count, plain.about["features"])).astype(np.float32)
    hidden_state = np.tanh(draw.normal(size=(count, plain.about["hidden_state"]))).astype(
        np.float32
    )
    # Devices multiply less exactly unless told to.
    with jax.default_matmul_precision("highest"):
        expected, expected_hidden_state = jax.device_get(
            jax_values(config, agent)(observation, hidden_state)
        )
    policy = NumpyPolicy.__new__(NumpyPolicy)
    policy.weights, policy.about = plain.weights, plain.about
    found = [policy.values(*pair) for pair in zip(observation, hidden_state, strict=True)]
    values, after = (np.stack(column) for column in zip(*found, strict=True))
    largest = max(float(np.abs(expected).max()), 1e-6)
    difference = float(np.abs(values - expected).max()) / largest
    if plain.about["hidden_state"]:
        difference = max(difference, float(np.abs(after - expected_hidden_state).max()))
    if not difference <= TOLERANCE:
        raise ConfigError(
            f"out is not written: its action values differ by {difference:.1e} from the policy's"
        )
    return difference


def write_npz(plain: PlainPolicy, out: Path) -> None:
    """Writes arrays and metadata for `NumpyPolicy`."""
    weights: dict[str, Any] = dict(plain.weights)
    with out.open("wb") as file:
        np.savez(file, about=np.str_(json.dumps(plain.about)), **weights)


def write_stablehlo(
    about: dict[str, Any], config: RunConfig, agent: dict[str, Any], out: Path
) -> None:
    """Writes JAX's own program for any number of drones, and its metadata beside it (.json).

    Read it with `jax.export.deserialize(bytearray(file.read_bytes())).call`, by a jax as new as
    this one, or newer by at most half a year (JAX's promise).
    """
    values = jax_values(config, agent)

    def act(observation, available, hidden_state):
        found, hidden_state = values(observation, hidden_state)
        action = jnp.argmax(jnp.where(available, found, -jnp.inf), axis=-1).astype(jnp.int32)
        return action, found, hidden_state

    (drones,) = jax.export.symbolic_shape("drones")
    shapes = [
        jax.ShapeDtypeStruct((drones, about["features"]), jnp.float32),
        jax.ShapeDtypeStruct((drones, len(ACTIONS)), jnp.bool_),
        jax.ShapeDtypeStruct((drones, about["hidden_state"]), jnp.float32),
    ]
    exported = jax.export.export(jax.jit(act), platforms=("cpu", "cuda", "rocm", "tpu"))(*shapes)
    try:
        data = exported.serialize()
    except ImportError:
        raise ConfigError(
            'format = stablehlo is not allowed: it needs flatbuffers; pip install ".[export]"'
        ) from None
    out.write_bytes(data)
    text = json.dumps(about, indent=2) + "\n"
    out.with_suffix(".json").write_text(text, encoding="utf-8")
