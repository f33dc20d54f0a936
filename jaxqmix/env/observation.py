"""What each drone sees: one flat vector of named groups, the same size for every swarm.

`groups` is the one table that says which slice is what; `observe` fills it. Everything spatial is
egocentric, so that a policy carries over to other swarms and cities.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxqmix.city import footprint_radius
from jaxqmix.compilation import materialise
from jaxqmix.config import EnvConfig, require
from jaxqmix.env.dynamics import (
    available_actions,
    collision_free_actions,
    displacements,
    safe_repeats,
)
from jaxqmix.env.mission import coverage
from jaxqmix.env.sensing import (
    FINE_SIDE,
    coarse_blocks,
    coarse_margin,
    coarse_view,
    fine_view,
    fine_window,
    view_side,
    window_gain,
)
from jaxqmix.types import (
    ACTIONS,
    DELAYED,
    HEADINGS,
    HOVER,
    LOST,
    City,
    EnvParams,
    Observation,
    State,
    Unseen,
)

WIND_SCALE = 15.0
"""Wind is observed in units of this, m/s."""
HEIGHT_SCALE = 100.0
"""Heights are observed in units of this, metres."""
TIE_BREAK = (0.05, 0.031, 0.021)
"""Metres for x, y and altitude: added to an offset's square times the offset, they decide which of
two equally distant teammates is the nearer, by where it is and not by its number. A start pad along
any axis outweighs float32 rounding at 2 km; only drones whose distances differ by less than 0.07 m
change places."""
UNKNOWN = 1e6
"""Metres: as good as infinitely far, for a teammate out of radio range."""
LOOKAHEAD_MOVES = (2, 4, 8)
"""Moves along each heading after which the gain is observed too."""
MAX_STATE_CELLS = 64
"""The mixer sees the finest coarse map with at most this many blocks."""


def fine_blocks(config: EnvConfig) -> tuple[int, ...]:
    """Block sides, in cells, of the views read from the bit map.

    Odd, so that the drone's own cell is in their middle. The finest resolves about half a
    footprint's radius; smaller blocks would always be seen.
    """
    return (3,) if 3 * config.cell_size <= config.max_footprint / 2 else (1, 3)


def views(config: EnvConfig) -> tuple[tuple[int, int], ...]:
    """Block side in cells and blocks along the side of every view, finest first."""
    fine = tuple((block, FINE_SIDE) for block in fine_blocks(config))
    return fine + tuple((block, view_side(block, config)) for block in coarse_blocks(config))


def shared_views(config: EnvConfig) -> tuple[tuple[int, int], ...]:
    """The two views that also tell what is nearer to the drone than to any teammate."""
    sides = views(config)
    return sides[len(sides) // 2 - 1 : len(sides) // 2 + 1]


def team_view(config: EnvConfig) -> tuple[int, int]:
    """Block side in cells and side in blocks of the density of teammates: the middle view."""
    sides = views(config)
    return sides[len(sides) // 2]


def groups(config: EnvConfig) -> dict[str, slice]:
    """Which part of the agents' vector [D] is what.

    pose: x, y (share of the city), altitude (share of the highest), footprint radius and the place
    inside the own cell (in cells); weather: wind x, y, turbulence, visibility; link: probability of
    loss and delay, and whether the last command was lost or late; mission: time left, coverage;
    last_action: one-hot; available: the action mask; repeat: which moves strike nothing when made
    twice; obstacles: altitude a drone must exceed in the cells around, less its own; gain: what a
    look would newly see after each action, and `LOOKAHEAD_MOVES` moves along each heading; growth:
    of the unseen area's perimeter, by the same looks; unseen_B: unseen share of blocks of B cells
    around; own_B: the same, less what is nearer to a teammate; teammates: for each of the nearest,
    offset x, y, altitude, 1 and heading x, y (zeros where there is none); team_density:
    teammates per block of the middle view.
    """
    sizes = {
        "pose": 6,
        "weather": 4,
        "link": 4,
        "mission": 2,
        "last_action": len(ACTIONS),
        "available": len(ACTIONS),
        "repeat": HOVER,
        "obstacles": config.patch**2,
        "gain": len(ACTIONS) + len(LOOKAHEAD_MOVES) * HEADINGS,
        "growth": len(ACTIONS) + len(LOOKAHEAD_MOVES) * HEADINGS,
    }
    sizes |= {f"unseen_{block}": side**2 for block, side in views(config)}
    sizes |= {f"own_{block}": side**2 for block, side in shared_views(config)}
    sizes["teammates"] = 6 * config.neighbours
    sizes["team_density"] = team_view(config)[1] ** 2
    table, start = {}, 0
    for name, size in sizes.items():
        table[name] = slice(start, start + size)
        start += size
    return table


def seen_features(config: EnvConfig) -> np.ndarray:
    """Which of the features [D] the drones see; those of `config.blind_to` are False.

    Raises:
      ConfigError: a group of that name does not exist.
    """
    table = groups(config)
    seen = np.ones(agent_features(config), bool)
    for name in config.blind_to:
        require(name in table, "env.blind_to", name, f"must be among {', '.join(table)}")
        seen[table[name]] = False
    return seen


def agent_features(config: EnvConfig) -> int:
    """Length D of an agent's vector."""
    return list(groups(config).values())[-1].stop


def observe(state: State, params: EnvParams, noise: jax.Array, config: EnvConfig) -> Observation:
    """Everything the agents and the mixer see.

    Args:
      state: one swarm.
      params: its world.
      noise: [N, 3], standard normal numbers: errors of the observed positions.
      config: static sizes.
    """
    true_cell = state.position[:, 1::-1] / config.cell_size
    observed = materialise(state.position + params.sensor_noise * noise)
    repeats, strike = safe_repeats(state.city, state.position, config)
    clear = jnp.bool_(True)
    if config.right_of_way:
        clear = collision_free_actions(state.position, state.last_action, config)
    available = available_actions(state.obstruction, repeats, clear)
    own = jax.vmap(own_features, (0, 0, 0, 0, 0, None, None, None))(
        state.position, observed, state.last_action, state.link, available, state, params, config,
    )  # fmt: skip
    cell = jnp.floor(true_cell).astype(jnp.int32)
    window = jax.vmap(fine_window, (None, 0, None))(state.unseen, cell, config)
    unseen = jax.vmap(unseen_views, (None, 0, 0, None))(state.unseen, window, true_cell, config)
    unseen = materialise(unseen)
    parts = [
        own,
        ~strike[:, :HOVER],
        jax.vmap(obstacle_patch, (None, 0, None))(state.city, state.position, config),
        jax.vmap(gains, (0, 0, 0, None, None))(
            window, cell, state.position, params.visibility, config
        ),
        unseen,
        own_share(unseen, observed, config),
        nearest_teammates(observed, state.last_action, config),
        team_density(observed, config),
    ]
    agents = jnp.concatenate(parts, axis=-1)
    if config.blind_to:
        agents = jnp.where(seen_features(config), agents, 0.0)
    return Observation(
        agents=agents,
        available=available,
        state=mixer_state(state, config),
    )


def own_features(
    position: jax.Array,
    observed: jax.Array,
    last_action: jax.Array,
    link: jax.Array,
    available: jax.Array,
    state: State,
    params: EnvParams,
    config: EnvConfig,
) -> jax.Array:
    """The groups pose to available of one drone."""
    radius = footprint_radius(position[2], params.visibility) / config.max_footprint
    within = position[:2] / config.cell_size % 1.0 - 0.5
    pose = jnp.array([observed[0] / config.city_width, observed[1] / config.city_length,
                      observed[2] / config.max_altitude, radius, within[0], within[1]])  # fmt: skip
    weather = jnp.stack([params.wind[0] / WIND_SCALE, params.wind[1] / WIND_SCALE,
                         params.turbulence / config.cell_size, params.visibility])  # fmt: skip
    links = jnp.stack([params.packet_loss, params.delay, link == LOST, link == DELAYED])
    mission = jnp.stack([1 - state.time / config.horizon, coverage(state)])
    one_hot = last_action == jnp.arange(len(ACTIONS))
    return jnp.concatenate([pose, weather, links, mission, one_hot, available])


def obstacle_patch(city: City, position: jax.Array, config: EnvConfig) -> jax.Array:
    """Altitude that a drone must exceed in the cells around, less its own, flat [patch^2].

    In units of 100 m, clipped to -1 .. 1; outside the city it is 1.
    """
    offsets = jnp.arange(config.patch) - config.patch // 2
    rows = jnp.floor(position[1] / config.cell_size).astype(jnp.int32) + offsets[:, None]
    columns = jnp.floor(position[0] / config.cell_size).astype(jnp.int32) + offsets[None, :]
    outside = (rows < 0) | (rows >= config.rows) | (columns < 0) | (columns >= config.columns)
    inside_rows = jnp.clip(rows, 0, config.rows - 1)
    floor = city.heights[inside_rows, jnp.clip(columns, 0, config.columns - 1)].astype(jnp.float32)
    y, x = (rows + 0.5) * config.cell_size, (columns + 0.5) * config.cell_size
    for cylinder in city.no_fly:
        inside = (x - cylinder[0]) ** 2 + (y - cylinder[1]) ** 2 < cylinder[2] ** 2
        floor = jnp.where(inside, jnp.maximum(floor, cylinder[3]), floor)
    above = jnp.clip((floor - position[2]) / HEIGHT_SCALE, -1.0, 1.0)
    return jnp.where(outside, 1.0, above).reshape(-1)


def gains(
    window: jax.Array,
    cell: jax.Array,
    position: jax.Array,
    visibility: jax.Array,
    config: EnvConfig,
) -> jax.Array:
    """What a look would newly see after each action, and further along each heading, and by how
    much it would make the unseen area's perimeter grow, flat.

    Args:
      window: [32], of `fine_window` around `cell`.
      cell: [2], the drone's row and column.
      position: [3], metres.
      visibility: [], 0 to 1.
      config: static sizes.
    """
    moves = displacements(config)
    further = [moves[:HEADINGS] * count for count in LOOKAHEAD_MOVES]
    ends = position + jnp.concatenate([moves, *further])
    looks = jax.vmap(window_gain, (None, None, 0, None, None))(
        window, cell, ends, visibility, config
    )
    return jnp.concatenate(looks)


def own_share(unseen: jax.Array, observed: jax.Array, config: EnvConfig) -> jax.Array:
    """The two middle views less what is nearer to a known teammate, flat [N, sum of side^2].

    Near the border between two drones the share falls smoothly, over about a block.

    Args:
      unseen: [N, ...], of `unseen_views`.
      observed: [N, 3], metres.
      config: static sizes.
    """
    x, y = _teammates_at(observed, config)
    parts, start = [], 0
    for block, side in views(config):
        view = unseen[:, start : start + side**2]
        start += side**2
        if (block, side) not in shared_views(config):
            continue
        width = block * config.cell_size
        middles = (jnp.arange(side) - side / 2 + 0.5) * width
        along, across = (y[..., None] - middles) ** 2, (x[..., None] - middles) ** 2
        squared = [
            jnp.min(along[:, few, :, None] + across[:, few, None, :], axis=1)
            for few in _few_at_once(observed.shape[0])
        ]
        theirs = jnp.sqrt(functools.reduce(jnp.minimum, squared))
        mine = jnp.sqrt(middles[:, None] ** 2 + middles[None, :] ** 2)
        nearer = jax.nn.sigmoid(2 * (theirs - mine) / width)
        parts.append(view * nearer.reshape(observed.shape[0], -1))
    return jnp.concatenate(parts, axis=-1)


def unseen_views(
    unseen: Unseen, window: jax.Array, place: jax.Array, config: EnvConfig
) -> jax.Array:
    """All views of the unseen area around a place [2] (row, column in cells), flat; `window` [32]
    is that of `fine_window` around its cell."""
    parts = [fine_view(window, block).reshape(-1) for block in fine_blocks(config)]
    for level, block in zip(unseen.coarse, coarse_blocks(config), strict=True):
        parts.append(coarse_view(level, place, block, config).reshape(-1))
    return jnp.concatenate(parts)


def _offsets(observed: jax.Array, config: EnvConfig) -> tuple[jax.Array, jax.Array]:
    """Offsets [N, N, 3] (m) from drone i to drone j, and whether j is known to i [N, N]."""
    offset = observed[None, :, :] - observed[:, None, :]
    squared = offset[..., 0] ** 2 + offset[..., 1] ** 2
    known = (squared < config.radio_range**2) & ~jnp.eye(observed.shape[0], dtype=bool)
    return offset, known


def _teammates_at(observed: jax.Array, config: EnvConfig) -> tuple[jax.Array, jax.Array]:
    """Offsets x, y [N, N] (m) from drone i to drone j; x is `UNKNOWN` where j is unknown to i."""
    offset, known = _offsets(observed, config)
    return materialise((jnp.where(known, offset[..., 0], UNKNOWN), offset[..., 1]))


def _few_at_once(drones: int) -> list[slice]:
    """Teammates in groups that XLA's CPU compiler unrolls: a sum over 50 at once takes twice as
    long as three sums over at most 20."""
    return [slice(first, first + 20) for first in range(0, drones, 20)]


def nearest_teammates(observed: jax.Array, last_action: jax.Array, config: EnvConfig) -> jax.Array:
    """The nearest teammates within radio range, nearest first, flat [N, 6 x neighbours].

    Each is offset x, y (in footprint diameters, soft-clipped), altitude (100 m) and 1, and the
    heading x, y of its last executed action (cells).
    """
    heading = displacements(config)[last_action, :2] / config.cell_size
    offset, known = _offsets(observed, config)
    squared = jnp.sum(offset * (offset + jnp.array(TIE_BREAK)), axis=-1)
    distance = materialise(jnp.where(known, squared, jnp.inf))
    scale = jnp.array([2 * config.max_footprint, 2 * config.max_footprint, HEIGHT_SCALE])
    index = jnp.arange(observed.shape[0])
    parts = []
    # A few passes for the minimum; a sort of every row costs more.
    for _ in range(config.neighbours):
        nearest = materialise(jnp.argmin(distance, axis=1))
        present = jnp.isfinite(distance[index, nearest])[:, None]
        relative = jnp.tanh((observed[nearest] - observed) / scale)
        parts += [jnp.where(present, relative, 0.0), present.astype(jnp.float32)]
        parts += [jnp.where(present, heading[nearest], 0.0)]
        distance = jnp.where(nearest[:, None] == index, jnp.inf, distance)
    empty = jnp.zeros((observed.shape[0], 0))
    return jnp.concatenate(parts, axis=-1) if parts else empty


def team_density(observed: jax.Array, config: EnvConfig) -> jax.Array:
    """Teammates within radio range per block of the middle view, flat [N, side^2].

    A teammate between the middles of blocks counts in each in proportion (a bilinear weight).
    """
    block, side = team_view(config)
    x, y = _teammates_at(observed, config)
    width = block * config.cell_size
    middles = (jnp.arange(side) - side / 2 + 0.5) * width
    near_row = jnp.maximum(1 - jnp.abs(y[..., None] - middles) / width, 0.0)
    near_column = jnp.maximum(1 - jnp.abs(x[..., None] - middles) / width, 0.0)
    parts = (
        jnp.sum(near_row[:, few, :, None] * near_column[:, few, None, :], axis=1)
        for few in _few_at_once(observed.shape[0])
    )
    density = sum(parts, jnp.float32(0))
    return density.reshape(observed.shape[0], -1)


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
