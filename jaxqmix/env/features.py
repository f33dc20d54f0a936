"""The features of an agent's observation: one table, the same sizes for every swarm.

Each feature is a record: its name, how many numbers it is, what computes them, how they turn with
the world, and what they mean. Slices, symmetries, pictures and exported files follow from it.
Everything spatial is egocentric, so that a policy carries over to other swarms and cities.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxqmix.compilation import materialise
from jaxqmix.config import EnvConfig
from jaxqmix.env.dynamics import displacements
from jaxqmix.env.mission import coverage
from jaxqmix.env.sensing import (
    FINE_SIDE,
    Sensor,
    coarse_blocks,
    coarse_view,
    fine_view,
    fine_window,
    view_side,
)
from jaxqmix.env.symmetry import Grid, Headings, Turn, Vector
from jaxqmix.types import (
    ACTIONS,
    DELAYED,
    HEADINGS,
    HOVER,
    LOST,
    City,
    EnvParams,
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


@dataclasses.dataclass(frozen=True)
class Seen:
    """One swarm as its drones see it: what features are computed from. What several of them need
    is computed once."""

    state: State
    params: EnvParams
    observed: jax.Array  # [N, 3] float32, positions with the sensors' errors, m
    available: jax.Array  # [N, A] bool, actions that may be chosen
    twice: jax.Array  # [N, A] bool, which moves made twice strike something
    config: EnvConfig
    sensor: Sensor

    @functools.cached_property
    def cell(self) -> jax.Array:
        """The drones' cells [N, 2], row and column, int32."""
        return jnp.floor(self.place).astype(jnp.int32)

    @property
    def place(self) -> jax.Array:
        """The drones' true places [N, 2], row and column in cells, float32."""
        return self.state.position[:, 1::-1] / self.config.cell_size

    @functools.cached_property
    def window(self) -> jax.Array:
        """The unseen cells around each drone [N, 32]; see `sensing.fine_window`."""
        return jax.vmap(fine_window, (None, 0, None))(self.state.unseen, self.cell, self.config)

    @functools.cached_property
    def unseen(self) -> jax.Array:
        """All views of the unseen area beside each other; see `unseen_views`."""
        seen = jax.vmap(unseen_views, (None, 0, 0, None))(
            self.state.unseen, self.window, self.place, self.config
        )
        return materialise(seen)

    @functools.cached_property
    def looks(self) -> tuple[jax.Array, jax.Array]:
        """What looks after moves would change; see `gains`."""
        each = functools.partial(gains, config=self.config, sensor=self.sensor)
        places = self.window, self.cell, self.state.position
        return jax.vmap(each, (0, 0, 0, None))(*places, self.params.visibility)

    @functools.cached_property
    def mates(self) -> tuple[jax.Array, jax.Array]:
        """Where teammates are; see `teammates_at`."""
        return teammates_at(self.observed, self.config)

    def for_each(self, *shared: jax.Array) -> jax.Array:
        """Numbers that are the same for all drones, [N, numbers]."""
        return jnp.broadcast_to(jnp.stack(shared), (self.config.drones, len(shared)))


@dataclasses.dataclass(frozen=True)
class Feature:
    """A named part of the agents' vectors."""

    name: str
    size: int
    """Numbers of each drone; must not depend on how many drones there are."""
    compute: Callable[[Seen], jax.Array]
    """The numbers [N, size]."""
    meaning: str
    """In a few words, for people."""
    units: str
    """What the numbers are, for whoever reads an exported policy."""
    turns: tuple[Turn, ...] = ()
    """What of it turns and reflects with the world; nothing by default."""
    labels: tuple[str, ...] = ()
    """Of the numbers, where each has a name of its own."""
    block: int = 0
    """Of a map around the drone: the side of its blocks, cells."""
    yes_or_no: bool = False
    """Whether its numbers are 0 or 1, and nothing between."""


LOOKS = (
    *ACTIONS,
    *(f"{count} x {heading}" for count in LOOKAHEAD_MOVES for heading in ACTIONS[:HEADINGS]),
)
"""The looks of `gains`, in their order."""
LOOKS_TURN = tuple(Headings(first) for first in (0, *range(len(ACTIONS), len(LOOKS), HEADINGS)))


@functools.cache
def features(config: EnvConfig) -> tuple[Feature, ...]:
    """The table, in the order of the agents' vector."""
    return (
        *about_itself(config),
        *about_moves(config),
        *about_the_unseen(config),
        *about_the_team(config),
    )


def about_itself(config: EnvConfig) -> tuple[Feature, ...]:
    """The drone's own numbers."""
    return (
        Feature(
            "pose", 6, pose,
            "where the drone is, and how far it sees",
            "x, y (share of the city), altitude (share of the highest), footprint radius (share of "
            "the largest), place inside the own cell x, y (cells, from its middle)",
            turns=(Vector(0, middle=0.5), Vector(4)),
            labels=("x", "y", "altitude", "footprint radius", "x in cell", "y in cell"),
        ),
        Feature(
            "weather", 4, weather,
            "wind, turbulence and visibility around it",
            "wind x, y (15 m/s), turbulence (cells), visibility (0 to 1)",
            turns=(Vector(0),),
            labels=("wind x", "wind y", "turbulence", "visibility"),
        ),
        Feature(
            "link", 4, link,
            "how often commands fail, and whether the last did",
            "probabilities of loss and delay; last command lost, late (0 or 1)",
            labels=("loss", "delay", "last lost", "last late"),
        ),
        Feature(
            "mission", 2, mission,
            "time that is left, and what is seen already",
            "time left, coverage (0 to 1)",
            labels=("time left", "coverage"),
        ),
    )  # fmt: skip


def about_moves(config: EnvConfig) -> tuple[Feature, ...]:
    """What the drone may do, and what stands around it."""
    return (
        Feature(
            "last_action", len(ACTIONS), last_action,
            "the move that was executed last",
            "one-hot, in the order of the actions",
            turns=(Headings(0),), labels=ACTIONS, yes_or_no=True,
        ),
        Feature(
            "available", len(ACTIONS), lambda seen: seen.available,
            "moves that are allowed now",
            "0 or 1, in the order of the actions",
            turns=(Headings(0),), labels=ACTIONS, yes_or_no=True,
        ),
        Feature(
            "two_step_clearance", HOVER, lambda seen: ~seen.twice[:, :HOVER],
            "moves that strike nothing when made twice",
            "1 where the move made twice strikes nothing, without hover",
            turns=(Headings(0),), labels=ACTIONS[:HOVER], yes_or_no=True,
        ),
        Feature(
            "obstacles", config.patch**2, obstacles,
            "how far to climb over what stands in the cells around",
            "altitude to exceed less the own (100 m, -1 to 1), cells around, row by row",
            turns=(Grid(),), block=1,
        ),
    )  # fmt: skip


def about_the_unseen(config: EnvConfig) -> tuple[Feature, ...]:
    """What is left to see, and what the next moves would see of it."""
    table = [
        Feature(
            "information_gain", len(LOOKS), lambda seen: seen.looks[0],
            "what a look after a move, or after several, would newly see",
            "newly seen by each action, then 2, 4 and 8 moves along each heading",
            turns=LOOKS_TURN, labels=LOOKS,
        ),
        Feature(
            "perimeter_change", len(LOOKS), lambda seen: seen.looks[1],
            "by how much such a look lengthens the border of the unseen area",
            "of the unseen area's perimeter by the same",
            turns=LOOKS_TURN, labels=LOOKS,
        ),
    ]  # fmt: skip
    start = 0
    for block, side in views(config):
        table.append(
            Feature(
                f"unseen_{block}",
                side**2,
                functools.partial(unseen_part, start, side**2),
                "unseen share of the blocks around",
                "unseen share of blocks around, row by row; the name tells a block's side in cells",
                turns=(Grid(),),
                block=block,
            )
        )
        start += side**2
    return tuple(table)


def about_the_team(config: EnvConfig) -> tuple[Feature, ...]:
    """Where teammates are, and what is nearer to them."""
    mates = range(0, 6 * config.neighbours, 6)
    block, side = team_view(config)
    return (
        *(
            Feature(
                f"voronoi_share_{block}", side**2, functools.partial(voronoi_share, block, side),
                "the same, less what is nearer to a teammate",
                "unseen share of blocks around, less what is nearer to a teammate",
                turns=(Grid(),), block=block,
            )
            for block, side in shared_views(config)
        ),
        Feature(
            "teammates", 6 * config.neighbours,
            lambda seen: nearest_teammates(seen.observed, seen.state.last_action, seen.config),
            "offset and heading of the nearest teammates",
            "of each: offset x, y (squashed), altitude (100 m, squashed), 1, heading x, y",
            turns=tuple(Vector(first + place) for first in mates for place in (0, 4)),
        ),
        Feature(
            "team_density", side**2, team_density,
            "how many teammates fly over each block",
            "teammates in blocks around, row by row",
            turns=(Grid(),), block=block,
        ),
    )  # fmt: skip


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


def pose(seen: Seen) -> jax.Array:
    """Place in the city, altitude, footprint and place in the own cell [N, 6]."""
    config, position, observed = seen.config, seen.state.position, seen.observed
    scale = jnp.array([config.city_width, config.city_length, config.max_altitude])
    radius = seen.sensor.radius(position[:, 2:], seen.params.visibility) / config.max_footprint
    within = position[:, :2] / config.cell_size % 1.0 - 0.5
    return jnp.concatenate([observed / scale, radius, within], axis=1)


def weather(seen: Seen) -> jax.Array:
    """Wind, turbulence and visibility [N, 4]."""
    params = seen.params
    turbulence = params.turbulence / seen.config.cell_size
    wind = params.wind / WIND_SCALE
    return seen.for_each(wind[0], wind[1], turbulence, params.visibility)


def link(seen: Seen) -> jax.Array:
    """How the link is, and what became of the last command [N, 4]."""
    rates = seen.for_each(seen.params.packet_loss, seen.params.delay)
    last = seen.state.link[:, None] == jnp.array([LOST, DELAYED])
    return jnp.concatenate([rates, last], axis=1)


def mission(seen: Seen) -> jax.Array:
    """Time left and coverage [N, 2]."""
    return seen.for_each(1 - seen.state.time / seen.config.horizon, coverage(seen.state))


def last_action(seen: Seen) -> jax.Array:
    """One-hot [N, A]."""
    return seen.state.last_action[:, None] == jnp.arange(len(ACTIONS))


def obstacles(seen: Seen) -> jax.Array:
    """The patch around each drone; see `obstacle_patch`."""
    return jax.vmap(obstacle_patch, (None, 0, None))(
        seen.state.city, seen.state.position, seen.config
    )


def unseen_part(start: int, size: int, seen: Seen) -> jax.Array:
    """One of the views of the unseen area, by its place among all."""
    return seen.unseen[:, start : start + size]


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
    sensor: Sensor,
) -> tuple[jax.Array, jax.Array]:
    """What a look would newly see after each action, and further along each heading, [looks]; and
    by how much it would make the unseen area's perimeter grow, [looks].

    Args:
      window: [32], of `fine_window` around `cell`.
      cell: [2], the drone's row and column.
      position: [3], metres.
      visibility: [], 0 to 1.
      config: static sizes.
      sensor: what looks.
    """
    moves = displacements(config)
    further = [moves[:HEADINGS] * count for count in LOOKAHEAD_MOVES]
    ends = position + jnp.concatenate([moves, *further])
    reach = sensor.radius(ends[:, 2], visibility)
    return jax.vmap(sensor.gain, (None, None, 0, 0, None))(window, cell, ends, reach, config)


def voronoi_share(block: int, side: int, seen: Seen) -> jax.Array:
    """A view less what is nearer to a known teammate, flat [N, side^2].

    Near the border between two drones the share falls smoothly, over about a block.
    """
    config, observed = seen.config, seen.observed
    start = 0
    for other, length in views(config):
        if other == block:
            break
        start += length**2
    x, y = seen.mates
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
    return unseen_part(start, side**2, seen) * nearer.reshape(observed.shape[0], -1)


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


def teammates_at(observed: jax.Array, config: EnvConfig) -> tuple[jax.Array, jax.Array]:
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


def team_density(seen: Seen) -> jax.Array:
    """Teammates within radio range per block of the middle view, flat [N, side^2].

    A teammate between the middles of blocks counts in each in proportion (a bilinear weight).
    """
    config, drones = seen.config, seen.observed.shape[0]
    block, side = team_view(config)
    x, y = seen.mates
    width = block * config.cell_size
    middles = (jnp.arange(side) - side / 2 + 0.5) * width
    near_row = jnp.maximum(1 - jnp.abs(y[..., None] - middles) / width, 0.0)
    near_column = jnp.maximum(1 - jnp.abs(x[..., None] - middles) / width, 0.0)
    parts = (
        jnp.sum(near_row[:, few, :, None] * near_column[:, few, None, :], axis=1)
        for few in _few_at_once(drones)
    )
    density = sum(parts, jnp.float32(0))
    return density.reshape(drones, -1)
