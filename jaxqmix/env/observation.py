"""What the agents and the mixer see: the table of features as one vector, and the global state.

`own` features, in all of these functions, stand behind those of the table.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxqmix.compilation import materialise
from jaxqmix.config import EnvConfig, require
from jaxqmix.env.dynamics import available_actions, collision_free_actions, safe_repeats
from jaxqmix.env.features import Feature, Seen, features
from jaxqmix.env.mission import coverage
from jaxqmix.env.sensing import SENSORS, Sensor, coarse_blocks, coarse_margin
from jaxqmix.env.symmetry import turned_tables
from jaxqmix.types import EnvParams, Observation, State, Symmetries

MAX_STATE_CELLS = 64
"""The mixer sees the finest coarse map with at most this many blocks."""
FORMER_NAMES = {
    "gain": "information_gain",
    "growth": "perimeter_change",
    "repeat": "two_step_clearance",
    "own": "voronoi_share",
}
"""Of features, which `env.blind_to` still knows for one version."""


def feature_slices(config: EnvConfig, own: tuple[Feature, ...] = ()) -> dict[str, slice]:
    """Which part of the agents' vector [D] is what."""
    table, start = {}, 0
    for feature in (*features(config), *own):
        table[feature.name] = slice(start, start + feature.size)
        start += feature.size
    return table


def agent_features(config: EnvConfig, own: tuple[Feature, ...] = ()) -> int:
    """Length D of an agent's vector."""
    return sum(feature.size for feature in (*features(config), *own))


def seen_features(config: EnvConfig, own: tuple[Feature, ...] = ()) -> np.ndarray:
    """Which of the numbers [D] the drones see; those of `config.blind_to` are False.

    Raises:
      ConfigError: a feature of that name does not exist.
    """
    table = feature_slices(config, own)
    seen = np.ones(agent_features(config, own), bool)
    for name in config.blind_to:
        kind, _, block = name.partition("_")
        known = name if name in table else "_".join(filter(None, (FORMER_NAMES.get(kind), block)))
        require(known in table, "env.blind_to", name, f"must be among {', '.join(table)}")
        seen[table[known]] = False
    return seen


def symmetries(config: EnvConfig, own: tuple[Feature, ...] = ()) -> Symmetries:
    """What each symmetry of the grid does to an agent's vector [D] and to the actions [A].

    A square city has eight, a longer one the four without a quarter turn.
    """
    parts = [(feature.size, feature.turns) for feature in (*features(config), *own)]
    found = turned_tables(parts, square=config.rows == config.columns)
    # What is blanked stays blank.
    offset = np.where(seen_features(config, own), found.offset, 0).astype(np.float32)
    return Symmetries(found.source, found.sign, offset, found.actions)


def observe(
    state: State,
    params: EnvParams,
    noise: jax.Array,
    config: EnvConfig,
    own: tuple[Feature, ...] = (),
    sensor: Sensor | None = None,
) -> Observation:
    """Everything the agents and the mixer see.

    Args:
      state: one swarm.
      params: its world.
      noise: [N, 3], standard normal numbers: errors of the observed positions.
      config: static sizes.
      own: further features.
      sensor: of the world; None: the one of `config.sensing`.
    """
    observed = materialise(state.position + params.sensor_noise * noise)
    repeats, twice = safe_repeats(state.city, state.position, config)
    clear = jnp.bool_(True)
    if config.right_of_way:
        clear = collision_free_actions(state.position, state.last_action, config)
    available = available_actions(state.obstruction, repeats, clear)
    sensor = sensor or SENSORS[config.sensing]
    seen = Seen(state, params, observed, available, twice, config, sensor)
    parts = [numbers(feature, seen) for feature in (*features(config), *own)]
    agents = jnp.concatenate(parts, axis=-1, dtype=jnp.float32)
    if config.blind_to:
        agents = jnp.where(seen_features(config, own), agents, 0.0)
    return Observation(agents=agents, available=available, state=mixer_state(state, config))


def numbers(feature: Feature, seen: Seen) -> jax.Array:
    """A feature's numbers [N, size]; raises `ConfigError` when they are another number."""
    found, wanted = feature.compute(seen), (seen.config.drones, feature.size)
    require(found.shape == wanted, f"feature {feature.name}", found.shape, f"must be {wanted}")
    return found


def mixer_state(state: State, config: EnvConfig) -> jax.Array:
    """The global state [S]: coarse unseen map, poses, time left and coverage."""
    blocks = coarse_blocks(config)
    sizes = [-(-config.rows // b) * -(-config.columns // b) for b in blocks]
    index = next((i for i, size in enumerate(sizes) if size <= MAX_STATE_CELLS), len(blocks) - 1)
    block, margin = blocks[index], coarse_margin(blocks[index], config)
    level = state.unseen.coarse[index]
    level = level[margin : level.shape[0] - margin, margin : level.shape[1] - margin]
    scale = jnp.array([config.city_width, config.city_length, config.max_altitude])
    mission = jnp.stack([1 - state.time / config.horizon, coverage(state)])
    return jnp.concatenate(
        [level.reshape(-1) / block**2, (state.position / scale).reshape(-1), mission]
    ).astype(jnp.float32)
