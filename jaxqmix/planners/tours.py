"""The planner `tours`: a path over tiles for each drone, the longest made short by local search.

The city is cut into tiles as wide as a footprint. Every tile lies on the path of exactly one drone,
which starts where the drone is: an open min-max problem of several salesmen with several depots.
All paths stand in one sequence, which 2-opt, 2-opt* and Or-opt moves improve by simulated
annealing. LS-MCPP (Tang and Ma, AAAI 2024) searches coverage paths directly on the grid by local
search too, with moves of its own.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxqmix.config import EnvConfig
from jaxqmix.env.city import cell_centres
from jaxqmix.planners.pursuit import (
    FRESH,
    PursuitState,
    cells_to_see,
    goal_place,
    goal_radius,
    initial_hidden_state,
    nearest_cells,
    out_of_cylinders,
    pursue,
)
from jaxqmix.types import State, Timestep, pytree_dataclass, replace

TILE = 2.0
"""Largest side of a tile, footprint radii."""
HAZE = 0.5
"""Lowest visibility for which tiles are that small; below, they stay as they are."""
MOST_TILES = 2048
"""Tiles of a larger city are larger."""
SEEN = 0.1
"""A tile with at most this share of it unseen is left out."""
REACH = 0.75
"""Distance from a tile's centre, along x and along y, at which it is passed; cells."""
PATIENCE = 10
"""Steps beyond twice the way after which a drone leaves a tile out."""
TOUR_FRESH = 0.75
"""`pursuit.FRESH` on a path, where it only settles which of two ways is better."""
REPLAN = 25
"""Env steps between two plans."""
FIRST, LATER = 1500, 200
"""Iterations of local search at the start, and at all other plans."""
CANDIDATES = 128
"""Moves that one iteration of the search chooses from."""
LONGEST_PIECE = 8
"""Tiles that are moved at once at most."""
ACROSS = 1.15
"""Price of a cell across the lanes, cells along them: paths of few turns leave few gaps."""
NORM = 8.0
"""The search shortens this norm of the paths' lengths: nearly the longest, but a little of all."""
HEAT = 0.1
"""Temperature at the search's start, cells of the norm."""


@pytree_dataclass
class ToursState:
    """What is planned. With T tiles and N drones a node is a drone (0 .. N - 1), the start of its
    path; nobody (N), the start of the tiles that are done; or a tile (N + 1 ..)."""

    common: PursuitState
    order: jax.Array  # [N + 1 + T] int32, nodes: the paths one after the other
    places: jax.Array  # [T, 2] float32, where to fly for each tile, m
    done: jax.Array  # [T] bool, tiles that are seen, passed or given up
    head: jax.Array  # [N] int32, tile that each drone flies to; -1 for none
    deadline: jax.Array  # [N] int32, env step at which it is given up


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Tours:
    """Paths over tiles, improved by local search, then help wherever something is unseen."""

    config: EnvConfig

    def initial_hidden_state(self) -> ToursState:
        """No paths yet; they are planned at the first step."""
        drones, tiles = self.config.drones, math.prod(most_tiles(self.config))
        return ToursState(
            initial_hidden_state(self.config),
            order=jnp.arange(drones + 1 + tiles, dtype=jnp.int32),
            places=jnp.zeros((tiles, 2)),
            done=jnp.zeros(tiles, bool),
            head=jnp.full(drones, -1, jnp.int32),
            deadline=jnp.zeros(drones, jnp.int32),
        )

    def __call__(self, key: jax.Array, state: State, timestep: Timestep, hidden_state: ToursState):
        """Actions [N] int32 and the new hidden state; see `Policy`."""
        config, common = self.config, hidden_state.common
        radius = goal_radius(timestep, config)
        tiles = Tiles(config, radius)
        open_cells = cells_to_see(state, common, config)
        unseen, centroids = tiles.unseen(open_cells)
        hidden_state = tiles_done(unseen, state, hidden_state, config)
        hidden_state = plan(key, tiles, centroids, state, hidden_state)
        hidden_state = next_tiles(state, hidden_state, config)
        flying = hidden_state.head[:, None] >= 0
        place = hidden_state.places[hidden_state.head]
        goal = jnp.floor(place[:, ::-1] / config.cell_size).astype(jnp.int32)
        helped = nearest_cells(state, open_cells, common, radius, True, config)
        goal = jnp.where(flying, goal, helped)
        place = jnp.where(flying, place, goal_place(goal, config))
        fresh = jnp.where(flying, TOUR_FRESH, FRESH)
        available = timestep.observation.available
        actions, common = pursue(state, available, goal, place, common, radius, fresh, config)
        return actions, replace(hidden_state, common=common)


def most_tiles(config: EnvConfig) -> tuple[int, int]:
    """Rows and columns of the largest lattice of tiles."""
    side = TILE * config.max_footprint * math.sqrt(HAZE)
    side = max(side, math.sqrt(config.city_length * config.city_width / MOST_TILES))
    return math.ceil(config.city_length / side), math.ceil(config.city_width / side)


@dataclasses.dataclass(frozen=True)
class Tiles:
    """The lattice of tiles over one city; tile (row, column) is row * columns of `most_tiles` +
    column, and some of these are not needed."""

    config: EnvConfig
    radius: jax.Array  # [], footprint radius, m

    @property
    def counts(self) -> tuple[jax.Array, jax.Array]:
        """Rows and columns of tiles; whole float32."""
        most_rows, most_columns = most_tiles(self.config)
        rows = jnp.ceil(self.config.city_length / (TILE * self.radius))
        columns = jnp.ceil(self.config.city_width / (TILE * self.radius))
        return jnp.clip(rows, 1, most_rows), jnp.clip(columns, 1, most_columns)

    def index(self, place: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Row and column, int32 [...], of the tiles that hold places [..., 2]."""
        rows, columns = self.counts
        row = jnp.clip(jnp.floor(place[..., 1] / self.config.city_length * rows), 0, rows - 1)
        column = jnp.clip(
            jnp.floor(place[..., 0] / self.config.city_width * columns), 0, columns - 1
        )
        return row.astype(jnp.int32), column.astype(jnp.int32)

    def unseen(self, open_cells: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Open cells [T] of each tile as a share of a whole tile, and their centroids [T, 2], m."""
        rows, columns = (
            jnp.floor((jnp.arange(cells) + 0.5) * count / cells) == jnp.arange(most)[:, None]
            for cells, count, most in zip(
                open_cells.shape, self.counts, most_tiles(self.config), strict=True
            )
        )
        y, x = cell_centres(self.config)
        rows, columns = rows.astype(jnp.float32), columns.astype(jnp.float32)
        cells = open_cells.astype(jnp.float32)
        count, sum_x, sum_y = (rows @ part @ columns.T for part in (cells, cells * x, cells * y))
        centroid = jnp.stack([sum_x, sum_y], axis=-1) / jnp.maximum(count, 1.0)[..., None]
        share = count * (self.counts[0] * self.counts[1] / open_cells.size)
        return share.reshape(-1), centroid.reshape(-1, 2)


def tiles_done(
    unseen: jax.Array, state: State, hidden_state: ToursState, config: EnvConfig
) -> ToursState:
    """The hidden state with the tiles that no drone needs to fly to (any more).

    Args:
      unseen: [T], share of each tile.
      state: one swarm.
      hidden_state: of the last step.
      config: static sizes.
    """
    offset = jnp.abs(hidden_state.places[hidden_state.head] - state.position[:, :2])
    passed = jnp.all(offset <= REACH * config.cell_size, axis=1) | (
        state.time >= hidden_state.deadline
    )
    head = jnp.where(passed & (hidden_state.head >= 0), hidden_state.head, len(unseen))
    done = hidden_state.done.at[head].set(True, mode="drop")
    return replace(hidden_state, done=done | (unseen <= SEEN))


def next_tiles(state: State, hidden_state: ToursState, config: EnvConfig) -> ToursState:
    """The hidden state with the first tile of every drone's path that is not done."""
    drones = config.drones
    tile = hidden_state.order - drones - 1
    path = jnp.cumsum(hidden_state.order <= drones) - 1
    ahead = (tile >= 0) & ~hidden_state.done[tile]
    ahead = ahead & (path == jnp.arange(drones)[:, None])
    head = jnp.where(jnp.any(ahead, axis=1), tile[jnp.argmax(ahead, axis=1)], -1)
    way = (
        jnp.sum(jnp.abs(hidden_state.places[head] - state.position[:, :2]), axis=1)
        / config.cell_size
    )
    deadline = state.time + PATIENCE + jnp.ceil(2 * way).astype(jnp.int32)
    deadline = jnp.where(head == hidden_state.head, hidden_state.deadline, deadline)
    return replace(hidden_state, head=head, deadline=deadline)


def plan(
    key: jax.Array,
    tiles: Tiles,
    centroids: jax.Array,
    state: State,
    hidden_state: ToursState,
) -> ToursState:
    """The hidden state with new paths, every so many steps.

    Args:
      key: consumed once.
      tiles: the lattice.
      centroids: [T, 2], of what is unseen in each tile, metres.
      state: one swarm.
      hidden_state: knows which tiles are done.
    """
    config, drones = tiles.config, tiles.config.drones
    first = state.time == 0
    again = state.time % REPLAN == 0
    top = jnp.float32(config.top_altitude)
    places = out_of_cylinders(state.city, centroids, top, config)
    # Out of a zone at the border may be out of the city.
    most = jnp.array([config.city_width, config.city_length]) - config.cell_size / 2
    places = jnp.clip(places, config.cell_size / 2, most)
    places = jnp.where(again, places, hidden_state.places)
    order = jnp.where(first, lanes_order(tiles, state, hidden_state.done), hidden_state.order)
    tile, path = order - drones - 1, jnp.cumsum(order <= drones) - 1
    # Done tiles go to nobody; each path begins with its drone.
    path = jnp.where((tile >= 0) & hidden_state.done[tile], drones, path)
    sorted_order = order[jnp.argsort(2 * path + (tile >= 0), stable=True)]
    order = jnp.where(again, sorted_order, order)
    iterations = jnp.where(again, jnp.where(first, FIRST, LATER), 0)
    starts = state.position[:, :2]
    order = local_search(key, order, places, starts, tiles, iterations)
    return replace(hidden_state, order=order, places=places)


def lanes_order(tiles: Tiles, state: State, done: jax.Array) -> jax.Array:
    """A first order [N + 1 + T]: one boustrophedon over the open tiles, cut into equal parts, which
    the drones get in their order across the lanes."""
    drones = tiles.config.drones
    most_rows, most_columns = most_tiles(tiles.config)
    row, column = jnp.divmod(jnp.arange(most_rows * most_columns), most_columns)
    column = jnp.where(row % 2 == 0, column, most_columns - 1 - column)
    rank = jnp.argsort(jnp.argsort(jnp.where(done, len(done), row * most_columns + column)))
    part = rank * drones // jnp.maximum(jnp.sum(~done), 1)
    part = jnp.where(done, drones, part)
    drone_of = jnp.append(jnp.argsort(state.position[:, 1]), drones)
    ranks = jnp.append(jnp.full(drones + 1, -1), rank)
    paths = jnp.append(jnp.arange(drones + 1), drone_of[part])
    return jnp.lexsort((ranks, paths)).astype(jnp.int32)


@pytree_dataclass
class Paths:
    """An order of nodes [S = N + 1 + T], with what its moves need to know."""

    order: jax.Array  # [S] int32
    path: jax.Array  # [S] int32, whose path a position lies on; N for nobody's
    position: jax.Array  # [S] int32, where a node stands in the order
    begin: jax.Array  # [N + 2] int32, first position of each path, and S
    flown: jax.Array  # [S] float32, length of all paths up to a position, cells
    length: jax.Array  # [N] float32, of each path, cells


def price(offset: jax.Array) -> jax.Array:
    """Length [...] in cells of the flight over offsets [..., 2]: along one axis, then the other."""
    return jnp.abs(offset[..., 0]) + ACROSS * jnp.abs(offset[..., 1])


def measure(order: jax.Array, nodes: jax.Array, drones: int) -> Paths:
    """The paths of an order [S], over nodes at places [S, 2] in cells."""
    size = len(order)
    start = order <= drones
    place = nodes[order]
    step = price(place - jnp.roll(place, 1, axis=0))
    flown = jnp.cumsum(jnp.where(start, 0.0, step))
    position = jnp.zeros(size, jnp.int32).at[order].set(jnp.arange(size, dtype=jnp.int32))
    begin = jnp.append(position[: drones + 1], size)
    path = jnp.cumsum(start) - 1
    length = flown[begin[1:-1] - 1] - flown[begin[:-2]]
    return Paths(order, path, position, begin, flown, length)


@pytree_dataclass
class Moves:
    """Moves of the pieces A = [a, c), C = [c, b), B = [b, end) of the order; it becomes B, C, A."""

    a: jax.Array  # [K] int32
    c: jax.Array  # [K] int32
    b: jax.Array  # [K] int32
    end: jax.Array  # [K] int32
    turned: jax.Array  # [K] bool, whether A and B are reversed
    allowed: jax.Array  # [K] bool


def draw_moves(uniform: jax.Array, paths: Paths, nodes: jax.Array, tiles: Tiles) -> Moves:
    """Moves that make a random node and a tile beside it neighbours on a path.

    Half of them reconnect: within a path by 2-opt (Croes 1958), which reverses all between, and
    between two by 2-opt* (Potvin and Rousseau 1995), which exchanges their tails. The others are
    Or-opt (Or 1976): the piece of the path that begins with the node goes before or behind the
    tile, as it is or reversed.

    Args:
      uniform: [5, K], random numbers from 0 to 1.
      paths: of the order.
      nodes: [S, 2], cells.
      tiles: the lattice.
    """
    drones = tiles.config.drones
    most_columns = most_tiles(tiles.config)[1]

    def whole(uniform: jax.Array, count: jax.Array | int) -> jax.Array:
        return jnp.minimum((uniform * count).astype(jnp.int32), count - 1)

    i = whole(uniform[0], paths.begin[drones])
    node = paths.order[i]
    row, column = tiles.index(nodes[node] * tiles.config.cell_size)
    beside = whole(uniform[1], 9)
    row, column = row + beside // 3 - 1, column + beside % 3 - 1
    inside = (row >= 0) & (row < tiles.counts[0]) & (column >= 0) & (column < tiles.counts[1])
    other = jnp.where(inside, drones + 1 + row * most_columns + column, drones)
    j = paths.position[other]
    inside &= (other != node) & (paths.path[j] < drones)
    low, high = jnp.minimum(i, j), jnp.maximum(i, j)
    same = paths.path[i] == paths.path[j]
    low_end, high_end, i_end = (paths.begin[paths.path[p] + 1] for p in (low, high, i))
    # Reconnected: low is followed by high.
    after = jnp.where(same, high + 1, high)
    reconnect = (low + 1, jnp.where(same, after, low_end), after, jnp.where(same, after, high_end))
    # A piece from i on, to before or behind j.
    last = jnp.minimum(i + 1 + whole(uniform[3], LONGEST_PIECE), i_end)
    to = j + whole(uniform[4], 4) % 2
    later = to >= last
    insert = (jnp.where(later, i, to), jnp.where(later, last, to), jnp.where(later, to, i),
              jnp.where(later, to, last))  # fmt: skip
    is_insert = uniform[2] < 0.5
    a, c, b, end = (jnp.where(is_insert, x, y) for x, y in zip(insert, reconnect, strict=True))
    turned = jnp.where(is_insert, whole(uniform[4], 4) < 2, same)
    moves = ((to <= i) | later) & (node > drones)
    # A start stays where it is.
    reconnects = (paths.order[high] > drones) & (~same | (high > low + 1))
    allowed = inside & jnp.where(is_insert, moves, reconnects)
    return Moves(a, c, b, end, turned, allowed)


def lengths_after(
    moves: Moves, paths: Paths, nodes: jax.Array, drones: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The two paths [K] that each move changes, perhaps one twice, and their new lengths [K]."""
    a, c, b, end = moves.a, moves.c, moves.b, moves.end
    place = nodes[paths.order]

    def joint(left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.where(paths.order[right] <= drones, 0.0, price(place[left] - place[right]))

    def chain(first: tuple, last: tuple) -> tuple[jax.Array, jax.Array]:
        """Length up to C's head and from C's tail on, when `first` and `last` stand around it; a
        piece is its head, tail, and whether it is empty."""
        sums: list[jax.Array] = []
        at = a - 1
        for head, tail, empty in (first, (c, b - 1, c == b), last):
            # C's own length stays.
            inner = 0.0 if len(sums) == 1 else jnp.abs(paths.flown[tail] - paths.flown[head])
            sums.append(jnp.where(empty, 0.0, joint(at, head) + inner))
            at = jnp.where(empty, at, tail)
        return sums[0] + sums[1], sums[2] + joint(at, end)

    piece_a, piece_b = (a, c - 1, a == c), (b, end - 1, b == end)
    old = chain(piece_a, piece_b)
    piece_a, piece_b = (
        (jnp.where(moves.turned, tail, head), jnp.where(moves.turned, head, tail), empty)
        for head, tail, empty in (piece_a, piece_b)
    )
    new = chain(piece_b, piece_a)
    left, right = paths.path[a - 1], paths.path[end - 1]
    change_left, change_right = new[0] - old[0], new[1] - old[1]
    both = change_left + change_right
    left_length = paths.length[left] + jnp.where(left == right, both, change_left)
    right_length = paths.length[right] + jnp.where(left == right, both, change_right)
    return left, right, left_length, right_length


def norm(length: jax.Array) -> jax.Array:
    """The norm [] of paths' lengths [N], as if all were as long; cells."""
    scale = jnp.maximum(jnp.max(length), 1.0)
    return scale * jnp.mean((length / scale) ** NORM) ** (1 / NORM)


def norms_after(moves: Moves, paths: Paths, nodes: jax.Array, drones: int) -> jax.Array:
    """The norm [K] after each move; infinite for those not allowed."""
    left, right, left_length, right_length = lengths_after(moves, paths, nodes, drones)
    scale = jnp.maximum(jnp.max(paths.length), 1.0)

    def power(length: jax.Array) -> jax.Array:
        return (jnp.maximum(length, 0.0) / scale) ** NORM

    change = power(left_length) - power(paths.length[left])
    other = power(right_length) - power(paths.length[right])
    total = jnp.sum(power(paths.length)) + change + jnp.where(left == right, 0.0, other)
    after = scale * (jnp.maximum(total, 0.0) / drones) ** (1 / NORM)
    return jnp.where(moves.allowed, after, jnp.inf)


def moved(order: jax.Array, move: Moves) -> jax.Array:
    """The order [S] after one move ([] each)."""
    here = jnp.arange(len(order))
    a, c, b, end = move.a, move.c, move.b, move.end
    offset = here - a
    from_b = jnp.where(move.turned, end - 1 - offset, b + offset)
    offset -= end - b
    from_c = c + offset
    offset -= b - c
    from_a = jnp.where(move.turned, c - 1 - offset, a + offset)
    source = jnp.where(here < a + end - b, from_b, jnp.where(here < a + end - c, from_c, from_a))
    return order[jnp.where((here >= a) & (here < end), source, here)]


def local_search(
    key: jax.Array,
    order: jax.Array,
    places: jax.Array,
    starts: jax.Array,
    tiles: Tiles,
    iterations: jax.Array,
) -> jax.Array:
    """The best order found by simulated annealing.

    An iteration draws several moves and takes one of them, or none, with a probability that falls
    with the norm that it leads to. Under `vmap` it costs nothing where no swarm has iterations.

    Args:
      key: consumed once.
      order: [N + 1 + T] int32.
      places: [T, 2], of the tiles, metres.
      starts: [N, 2], of the drones, metres.
      tiles: the lattice.
      iterations: [] int32.

    Returns:
      An order [N + 1 + T] whose norm is no larger.
    """
    drones = tiles.config.drones
    nodes = jnp.concatenate([starts, jnp.zeros((1, 2)), places]) / tiles.config.cell_size

    def improve(carry: tuple) -> tuple:
        step, order, best, best_norm = carry
        paths = measure(order, nodes, drones)
        now = norm(paths.length)
        uniform = jax.random.uniform(jax.random.fold_in(key, step), (6, CANDIDATES + 1))
        moves = draw_moves(uniform[:5, 1:], paths, nodes, tiles)
        after = norms_after(moves, paths, nodes, drones)
        heat = HEAT * (1 - step / iterations) + 1e-3
        gumbel = -jnp.log(-jnp.log(uniform[5] * (1 - 2e-7) + 1e-7))
        chosen = jnp.argmax(gumbel - jnp.append(now, after) / heat)
        one = jax.tree.map(lambda leaf: leaf[jnp.maximum(chosen - 1, 0)], moves)
        order = jnp.where(chosen > 0, moved(order, one), order)
        chosen_norm = jnp.append(now, after)[chosen]
        better = chosen_norm < best_norm
        best = jnp.where(better, order, best)
        return step + 1, order, best, jnp.where(better, chosen_norm, best_norm)

    first = norm(measure(order, nodes, drones).length)
    start = (jnp.int32(0), order, order, first)
    return jax.lax.while_loop(lambda carry: carry[0] < iterations, improve, start)[2]
