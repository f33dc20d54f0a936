"""Every rule of the world in slow, plain NumPy; the fast versions must equal these.

Written from the rules, one drone, one cell and one block at a time, in float64. A row is y and a
column x; lengths are in metres. `unseen` is a bool map [H, W] of coverable cells not yet seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

NORTH, SOUTH, WEST, EAST, ASCEND, DESCEND, HOVER = range(7)
FREE, BUILDING, NO_FLY, BORDER = range(4)
RECEIVED, LOST, DELAYED = range(3)

CLOSE_CALL = 1e-3
"""Metres within which float32 and float64 may decide differently."""


@dataclass
class Weather:
    """What varies between swarms, as plain numbers."""

    wind: np.ndarray
    turbulence: float
    visibility: float
    packet_loss: float
    delay: float
    sensor_noise: float


@dataclass
class World:
    """One swarm."""

    heights: np.ndarray  # [H, W] m
    no_fly: np.ndarray  # [K, 4] x, y, radius, ceiling
    coverable: np.ndarray  # [H, W] bool
    unseen: np.ndarray  # [H, W] bool
    position: np.ndarray  # [N, 3] m
    last_action: np.ndarray  # [N]
    link: np.ndarray  # [N]
    time: int

    @property
    def seen(self) -> int:
        """Coverable cells seen so far."""
        return int(self.coverable.sum() - self.unseen.sum())

    @property
    def coverage(self) -> float:
        """Seen coverable cells / coverable cells."""
        return self.seen / max(int(self.coverable.sum()), 1)


def weather_of(params) -> Weather:
    """The weather in one swarm's parameters."""
    return Weather(
        wind=np.asarray(params.wind, float),
        turbulence=float(params.turbulence),
        visibility=float(params.visibility),
        packet_loss=float(params.packet_loss),
        delay=float(params.delay),
        sensor_noise=float(params.sensor_noise),
    )


def world_of(state, unseen: np.ndarray, coverable: np.ndarray) -> World:
    """The world in one swarm's state, with its maps of unseen and of coverable cells [H, W]."""
    return World(
        heights=np.asarray(state.city.heights, float),
        no_fly=np.asarray(state.city.no_fly, float),
        coverable=coverable,
        unseen=np.asarray(unseen, bool),
        position=np.asarray(state.position, float),
        last_action=np.asarray(state.last_action),
        link=np.asarray(state.link),
        time=int(state.time),
    )


# Grid.


def grid_shape(config) -> tuple[int, int]:
    """Rows and columns of the city."""
    return round(config.city_length / config.cell_size), round(config.city_width / config.cell_size)


def cell_of(x: float, y: float, config) -> tuple[int, int]:
    """Row and column of a place."""
    return math.floor(y / config.cell_size), math.floor(x / config.cell_size)


def near_cell_edge(x: float, y: float, config) -> bool:
    """Whether a place is too close to the edge of its cell to tell which cell it is in."""
    edges = [abs(v - round(v / config.cell_size) * config.cell_size) for v in (x, y)]
    return min(edges) < CLOSE_CALL


def distances(x: float, y: float, config) -> np.ndarray:
    """Distance from a place to the centre of every cell [H, W]."""
    rows, columns = grid_shape(config)
    result = np.zeros((rows, columns))
    for row in range(rows):
        centre_y = (row + 0.5) * config.cell_size
        centre_x = (np.arange(columns) + 0.5) * config.cell_size
        result[row] = np.sqrt((centre_x - x) ** 2 + (centre_y - y) ** 2)
    return result


def footprint_radius(altitude: float, visibility: float) -> float:
    """100 m at the ground, twice that at 500 m, less in poor visibility."""
    return 100.0 * (1 + altitude / 500.0) * math.sqrt(visibility)


def top_altitude(config) -> float:
    """Where a drone ends that climbs from the lowest altitude as long as it may."""
    altitude = config.min_altitude
    while altitude + config.climb <= config.max_altitude + 0.01:
        altitude += config.climb
    return altitude


def coverable_cells(no_fly: np.ndarray, visibility: float, config) -> np.ndarray:
    """Cells that a drone can see from outside every cylinder that it cannot fly over."""
    reach = footprint_radius(top_altitude(config), visibility) - math.sqrt(2) * config.cell_size
    coverable = np.ones(grid_shape(config), bool)
    for x, y, radius, ceiling in no_fly:
        if ceiling > top_altitude(config):
            coverable &= radius - distances(x, y, config) <= max(reach, 0.0)
    return coverable


# Dynamics.


def displacement(action: int, config) -> np.ndarray:
    """Metres along x, y and altitude."""
    cell, climb = config.cell_size, config.climb
    return np.array(
        {
            NORTH: (0, -cell, 0),
            SOUTH: (0, cell, 0),
            WEST: (-cell, 0, 0),
            EAST: (cell, 0, 0),
            ASCEND: (0, 0, climb),
            DESCEND: (0, 0, -climb),
            HOVER: (0, 0, 0),
        }[int(action)],
        float,
    )


def obstruction(heights: np.ndarray, no_fly: np.ndarray, place: np.ndarray, config) -> int:
    """What a drone at a place would be in; the border before a building before a no-fly zone."""
    x, y, altitude = (float(v) for v in place)
    if not (0 <= x < config.city_width and 0 <= y < config.city_length):
        return BORDER
    # A centimetre for the sums of climbs in float32.
    if not config.min_altitude - 0.01 <= altitude <= config.max_altitude + 0.01:
        return BORDER
    if altitude <= heights[cell_of(x, y, config)]:
        return BUILDING
    for centre_x, centre_y, radius, ceiling in no_fly:
        if math.hypot(x - centre_x, y - centre_y) < radius and altitude < ceiling:
            return NO_FLY
    return FREE


def possible_obstructions(heights, no_fly, place, config) -> set[int]:
    """What a drone within a close call of a place could be in."""
    shifts = [(dx, dy, 0) for dx in (-1, 0, 1) for dy in (-1, 0, 1)]
    places = [place + CLOSE_CALL * np.array(shift) for shift in shifts]
    return {obstruction(heights, no_fly, candidate, config) for candidate in places}


def obstructed_actions(heights, no_fly, position: np.ndarray, config, times=1) -> np.ndarray:
    """What obstructs each action, or the last of several moves of the same, from each drone's
    place [N, A]; hovering is always free."""
    codes = np.full((len(position), 7), FREE)
    for drone, place in enumerate(position):
        for action in range(HOVER):
            target = place + times * displacement(action, config)
            codes[drone, action] = obstruction(heights, no_fly, target, config)
    return codes


def deliver(chances, commands, last_action, weather) -> tuple[np.ndarray, np.ndarray]:
    """Executed actions and link states; a loss hides a delay."""
    executed, link = [], []
    for (loss, delay), command, last in zip(chances, commands, last_action, strict=True):
        if loss < weather.packet_loss:
            executed.append(HOVER)
            link.append(LOST)
        elif delay < weather.delay:
            executed.append(last)
            link.append(DELAYED)
        else:
            executed.append(command)
            link.append(RECEIVED)
    return np.array(executed), np.array(link)


def drift(turbulence: np.ndarray, weather, config) -> np.ndarray:
    """Metres along x, y and altitude that the air moves one drone: 5 % of the wind and gusts."""
    seconds = config.cell_size / config.cruise_speed
    plane = 0.05 * weather.wind * seconds + weather.turbulence * turbulence
    return np.array([plane[0], plane[1], 0.0])


def move(heights, no_fly, position, executed, turbulence, weather, config):
    """New places [N, 3] and what obstructed each move [N]."""
    places, codes = [], []
    for place, action, gust in zip(position, executed, turbulence, strict=True):
        place = np.array(place, float)
        target = place + displacement(action, config)
        code = FREE if action == HOVER else obstruction(heights, no_fly, target, config)
        if code == FREE:
            place = target
        drifted = place + drift(gust, weather, config)
        if obstruction(heights, no_fly, drifted, config) == FREE:
            place = drifted
        places.append(place)
        codes.append(code)
    return np.array(places), np.array(codes)


def too_close(one: np.ndarray, other: np.ndarray, slack: float = 0.0) -> bool:
    """Closer than 20 m horizontally and 10 m vertically."""
    horizontal = math.hypot(one[0] - other[0], one[1] - other[1])
    return horizontal < 20.0 + slack and abs(one[2] - other[2]) < 10.0


def conflicts(before: np.ndarray, after: np.ndarray, slack: float = 0.0) -> np.ndarray:
    """Drones too close to another at the end or the middle of the move [N]."""
    drones = len(after)
    middle = (np.asarray(before, float) + np.asarray(after, float)) / 2
    result = np.zeros(drones, bool)
    for one in range(drones):
        for other in range(drones):
            if one != other:
                result[one] |= too_close(after[one], after[other], slack)
                result[one] |= too_close(middle[one], middle[other], slack)
    return result


# Sensing.


def footprint(place: np.ndarray, visibility: float, config) -> np.ndarray:
    """Cells [H, W] whose centre lies inside the footprint."""
    reach = footprint_radius(place[2], visibility)
    return distances(place[0], place[1], config) <= reach


def rim(place: np.ndarray, visibility: float, config) -> np.ndarray:
    """Cells [H, W] whose centre lies within a close call of the footprint's rim."""
    reach = footprint_radius(place[2], visibility)
    return np.abs(distances(place[0], place[1], config) - reach) < CLOSE_CALL


def chance_to_see(place: np.ndarray, visibility: float, config) -> np.ndarray:
    """Probability [H, W] that one probabilistic look sees a cell."""
    reach = footprint_radius(place[2], visibility)
    return np.maximum(visibility * (1 - distances(place[0], place[1], config) / reach), 0.0)


def look(unseen: np.ndarray, position: np.ndarray, visibility: float, config) -> np.ndarray:
    """What stays unseen when all drones have looked."""
    for place in position:
        unseen = unseen & ~footprint(place, visibility, config)
    return unseen


def coarse_sides(config) -> list[int]:
    """Sides of the coarse blocks: 16 cells, then four times more until 4 reach across the city."""
    sides = [16]
    while 4 * sides[-1] < max(grid_shape(config)):
        sides.append(4 * sides[-1])
    return sides


def block_counts(unseen: np.ndarray, block: int) -> np.ndarray:
    """Unseen cells in each block of `block` cells a side, aligned with the city's corner."""
    rows, columns = (-(-size // block) for size in unseen.shape)
    counts = np.zeros((rows, columns), int)
    for row in range(rows):
        for column in range(columns):
            corner = unseen[row * block : (row + 1) * block, column * block : (column + 1) * block]
            counts[row, column] = corner.sum()
    return counts


def perimeter(unseen: np.ndarray) -> int:
    """Sides between an unseen cell [H, W] and any other, the outside of the city included."""
    sides = 0
    for row, column in np.argwhere(unseen):
        for y, x in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            inside = 0 <= y < unseen.shape[0] and 0 <= x < unseen.shape[1]
            sides += not (inside and unseen[y, x])
    return sides


# Reward and ends.


def area_term(newly_seen: int, coverable: int) -> float:
    """Newly seen cells as a share of the coverable ones."""
    return newly_seen / max(coverable, 1)


def perimeter_term(growth: int, coverable: int, config) -> float:
    """Metres of growth times 100 m, as a share of the coverable area."""
    return growth * config.cell_size * 100.0 / (max(coverable, 1) * config.cell_size**2)


def bonus_term(seen_before: int, seen_after: int, coverable: int, time: int, config) -> float:
    """Share of the time left in the step that first reaches 90 %."""
    crossed = 10 * seen_before < 9 * coverable <= 10 * seen_after
    return 1 - time / config.horizon if crossed else 0.0


def drone_share(flags, config) -> float:
    """Flagged drones as a share of the episode's drone steps."""
    return sum(bool(flag) for flag in flags) / (config.drones * config.horizon)


def team_reward(
    newly_seen,
    growth,
    seen_before,
    seen_after,
    coverable,
    time,
    executed,
    conflict,
    code,
    weights,
    config,
) -> float:
    """The weighted terms; area and bonus are gains, all others costs.

    Args:
      newly_seen: cells credited in this step.
      growth: sides that the unseen area's perimeter grew by.
      seen_before: cells seen before the step; none before the first.
      seen_after: cells seen after it.
      coverable: coverable cells.
      time: env steps flown after it.
      executed: actions that arrived [N].
      conflict: drones in conflict [N].
      code: what obstructed each move [N].
      weights: a dictionary of weights.
      config: static sizes.
    """
    gains = weights["area"] * area_term(newly_seen, coverable)
    gains += weights["bonus"] * bonus_term(seen_before, seen_after, coverable, time, config)
    costs = weights["perimeter"] * perimeter_term(growth, coverable, config)
    costs += weights["conflict"] * drone_share(conflict, config)
    costs += weights["building_hit"] * drone_share([c == BUILDING for c in code], config)
    costs += weights["violation"] * drone_share([c == NO_FLY for c in code], config)
    costs += weights["energy"] * drone_share([a != HOVER for a in executed], config)
    return gains - costs


def fewest_steps(coverable: int, seen: int, visibility: float, loss: float, config) -> float:
    """Area that is missing to 90 % / area that the swarm can newly see in an env step, m2 each."""
    missing = max(0.9 * coverable - seen, 0) * config.cell_size**2
    width = 2 * footprint_radius(top_altitude(config), visibility)
    return missing / (config.drones * width * config.cell_size * (1 - loss))


def ends(seen: int, coverable: int, time: int, config) -> tuple[bool, bool]:
    """Whether the episode is terminated (complete) and truncated (out of time)."""
    terminated = seen / max(coverable, 1) >= config.coverage_target - 1e-9
    return terminated, time >= config.horizon and not terminated


# Observations.


def max_footprint(config) -> float:
    """Footprint radius in clear air at the highest altitude."""
    return footprint_radius(config.max_altitude, 1.0)


def view_sides(config) -> list[tuple[int, int]]:
    """Block side and blocks along the side of each view, finest first."""
    sides = [(3, 9)]
    if 3 * config.cell_size > max_footprint(config) / 2:
        sides.insert(0, (1, 9))
    for block in coarse_sides(config):
        blocks_across = math.ceil(max(grid_shape(config)) / block)
        sides.append((block, min(8, max(2, 2 * blocks_across))))
    return sides


def pose(place, observed, visibility, config) -> list[float]:
    """Observed place, own footprint radius, and the true place inside the own cell."""
    cell = config.cell_size
    return [
        observed[0] / config.city_width,
        observed[1] / config.city_length,
        observed[2] / config.max_altitude,
        footprint_radius(place[2], visibility) / max_footprint(config),
        place[0] / cell - math.floor(place[0] / cell) - 0.5,
        place[1] / cell - math.floor(place[1] / cell) - 0.5,
    ]


def weather_group(weather, config) -> list[float]:
    """Wind in units of 15 m/s, turbulence in cells, visibility."""
    turbulence = weather.turbulence / config.cell_size
    return [weather.wind[0] / 15.0, weather.wind[1] / 15.0, turbulence, weather.visibility]


def link_group(link: int, weather) -> list[float]:
    """Probabilities of loss and delay, and what happened to the last command."""
    return [weather.packet_loss, weather.delay, float(link == LOST), float(link == DELAYED)]


def mission(time: int, coverage: float, config) -> list[float]:
    """Time left and coverage."""
    return [1 - time / config.horizon, coverage]


def obstacles(heights, no_fly, place, config) -> list[float]:
    """Altitude to exceed in the cells around less the own, per 100 m, -1 .. 1; outside 1."""
    rows, columns = grid_shape(config)
    own_row, own_column = cell_of(place[0], place[1], config)
    reach = config.patch // 2
    values = []
    for row in range(own_row - reach, own_row + reach + 1):
        for column in range(own_column - reach, own_column + reach + 1):
            if not (0 <= row < rows and 0 <= column < columns):
                values.append(1.0)
                continue
            floor = float(heights[row, column])
            for x, y, radius, ceiling in no_fly:
                offset_x = (column + 0.5) * config.cell_size - x
                offset_y = (row + 0.5) * config.cell_size - y
                if offset_x**2 + offset_y**2 < radius**2:
                    floor = max(floor, float(ceiling))
            values.append(min(max((floor - place[2]) / 100.0, -1.0), 1.0))
    return values


def safe_repeats(heights, no_fly, position, config) -> np.ndarray:
    """How many repeats of each action [N, A] strike nothing, as far as buildings and zones are
    foreseen. Of the first, no building may be 4 m to the left or right, and zones are taken 4 m
    wider. Ascending and hovering strike nothing."""
    most = max(config.foresight, config.zone_foresight)
    wide = no_fly + np.array([0, 0, 4, 0])
    result = np.full((len(position), 7), most)
    for drone, place in enumerate(position):
        for action in (NORTH, SOUTH, WEST, EAST, DESCEND):
            move = displacement(action, config)
            aside = 4 * move[[1, 0, 2]] / config.cell_size if move[2] == 0 else np.zeros(3)
            for repeat in range(most):
                end = place + (2 + repeat) * move
                found = {obstruction(heights, no_fly, end, config)}
                if repeat == 0:
                    sides = (end + aside, end - aside)
                    found |= {obstruction(heights, no_fly[:0], side, config) for side in sides}
                    # Without heights, so that a zone shows below the roofs that stand in it.
                    found |= {obstruction(0 * heights, wide, end, config)}
                if (BUILDING in found and repeat < config.foresight) or (
                    NO_FLY in found and repeat < config.zone_foresight
                ):
                    result[drone, action] = repeat
                    break
    return result


def apart(start, end, other_start, other_end) -> tuple[float, float]:
    """Horizontal and vertical distance of the smallest boxes around two straight ways."""
    gaps = []
    for axis in range(3):
        mine = sorted((start[axis], end[axis]))
        theirs = sorted((other_start[axis], other_end[axis]))
        gaps.append(max(theirs[0] - mine[1], mine[0] - theirs[1], 0.0))
    return math.hypot(gaps[0], gaps[1]), gaps[2]


def meets(own, other, move, way, config) -> bool:
    """Whether a move and its repeats lead towards a teammate or towards the way on which late
    commands would keep it, and too close: to where it is, less than 30 m and a cell, and 10 m and a
    climb; to its way, less than 30 m and 10 m."""
    end = own + (1 + config.foresight) * move
    for other_end, sideways, upwards in (
        (other, 30.0 + config.cell_size, 10.0 + config.climb),
        (other + config.foresight * way, 30.0, 10.0),
    ):
        ahead = max((other - own) @ move, (other_end - own) @ move) > 0
        horizontal, vertical = apart(own, end, other, other_end)
        if ahead and horizontal < sideways and vertical < upwards:
            return True
    return False


def collision_free_actions(position, last_action, config) -> np.ndarray:
    """Whether each action [N, A] keeps clear of the teammates."""
    clear = np.ones((len(position), 7), bool)
    for drone, own in enumerate(position):
        for action in range(HOVER):
            move = displacement(action, config)
            for number, other in enumerate(position):
                way = displacement(last_action[number], config)
                if number != drone and meets(own, other, move, way, config):
                    clear[drone, action] = False
    return clear


def available_actions(obstructed, repeats, clear) -> list[bool]:
    """Free and clear actions that may be repeated as often as the best such heading; every free and
    clear one without such a heading."""
    free = [a for a in range(7) if obstructed[a] == FREE and clear[a]]
    enough = max((repeats[a] for a in free if a in (NORTH, SOUTH, WEST, EAST)), default=0)
    return [a in free and repeats[a] >= enough for a in range(7)]


def repeatable(heights, no_fly, place, config) -> list[set[bool]]:
    """Whether each move but hovering strikes nothing if made twice; both where it is too close to
    tell."""
    moves = [place + 2 * displacement(action, config) for action in range(HOVER)]
    codes = [possible_obstructions(heights, no_fly, move, config) for move in moves]
    return [{code not in (BUILDING, NO_FLY) for code in possible} for possible in codes]


def gain(looks: list[tuple], config) -> list[float]:
    """Cells newly seen by each of `looks_ahead`, in footprint diameters times a cell's side."""
    return [newly.sum() / (2 * reach / config.cell_size) for newly, reach in looks]


def growth(looks: list[tuple], unseen, place, config) -> list[float]:
    """Growth of the perimeter by each of `looks_ahead`, in fours of sides; sides on the edge of the
    32 x 32 cells around the drone do not count."""
    row, column = cell_of(place[0], place[1], config)

    def sides(cells: np.ndarray) -> int:
        window = np.pad(cells, 16)[row : row + 32, column : column + 32]
        return np.sum(window[1:] != window[:-1]) + np.sum(window[:, 1:] != window[:, :-1])

    return [(sides(unseen & ~newly) - sides(unseen)) / 4 for newly, _ in looks]


def looks_ahead(unseen, place, visibility, config, slack: float = 0.0) -> list[tuple]:
    """What a look would newly see [H, W] after each action, and after 2, 4 and 8 moves along each
    heading, within 16 cells of the drone's own; and its radius.

    `slack` widens or narrows the footprint, metres.
    """
    row, column = cell_of(place[0], place[1], config)
    near = np.zeros_like(unseen)
    near[max(row - 16, 0) : row + 16, max(column - 16, 0) : column + 16] = True
    moves = [displacement(action, config) for action in range(7)]
    moves += [count * moves[heading] for count in (2, 4, 8) for heading in range(4)]
    looks = []
    for end in (place + move for move in moves):
        reach = footprint_radius(end[2], visibility)
        near_end = distances(end[0], end[1], config) <= reach + slack
        looks.append((unseen & near & near_end, reach))
    return looks


def own_share(view: np.ndarray, block: int, observed, drone: int, config) -> np.ndarray:
    """A view [side, side], less what is nearer to a known teammate than to the drone."""
    side, width = len(view), block * config.cell_size
    others = [observed[j] - observed[drone] for j in known_teammates(observed, drone, config)]
    result = view.copy()
    for i in range(side):
        for j in range(side):
            x, y = (j + 0.5 - side / 2) * width, (i + 0.5 - side / 2) * width
            if others:
                theirs = min(math.hypot(x - other[0], y - other[1]) for other in others)
                nearer = 2 * (theirs - math.hypot(x, y)) / width
                result[i, j] *= 1 / (1 + math.exp(-nearer))
    return result


def fine_view(unseen, cell: tuple[int, int], block: int, side: int) -> np.ndarray:
    """Unseen share [side, side] of blocks around a cell, which is the middle of the middle one."""
    far = side * block
    first = (side * block - 1) // 2
    padded = np.pad(unseen, far)
    view = np.zeros((side, side))
    for i in range(side):
        for j in range(side):
            row = cell[0] - first + i * block + far
            column = cell[1] - first + j * block + far
            view[i, j] = padded[row : row + block, column : column + block].mean()
    return view


def overlap(first: float, block: int, index: int) -> float:
    """Share of a block of the view, from `first`, that lies in aligned block `index`."""
    low, high = max(first, index * block), min(first + block, (index + 1) * block)
    return max(high - low, 0.0) / block


def coarse_view(counts, place: tuple[float, float], block: int, side: int) -> np.ndarray:
    """Unseen share [side, side] of the blocks around a place (row, column in cells, real).

    Unseen cells are taken to be spread evenly over each aligned block.
    """
    rows, columns = counts.shape
    view = np.zeros((side, side))
    for i in range(side):
        for j in range(side):
            first_row = place[0] + (i - side // 2) * block
            first_column = place[1] + (j - side // 2) * block
            along_rows = [overlap(first_row, block, row) for row in range(rows)]
            along_columns = [overlap(first_column, block, column) for column in range(columns)]
            view[i, j] = np.sum(np.outer(along_rows, along_columns) * counts) / block**2
    return view


def known_teammates(observed, drone: int, config) -> list[int]:
    """Other drones within radio range, horizontally."""
    known = []
    for other in range(len(observed)):
        offset = observed[other] - observed[drone]
        if other != drone and math.hypot(offset[0], offset[1]) < config.radio_range:
            known.append(other)
    return known


def teammates(observed, last_action, drone: int, config) -> list[float]:
    """The nearest teammates, each soft-clipped offset x, y, altitude, 1 and heading x, y; zeros for
    none.

    Of two that are equally far away, the one further west counts as nearer, then north, then low.
    """
    known = known_teammates(observed, drone, config)
    leaning = np.array([0.05, 0.031, 0.021])

    def distance(other: int) -> float:
        offset = observed[other] - observed[drone]
        return float(np.sum(offset**2) + offset @ leaning)

    values = []
    for other in sorted(known, key=distance)[: config.neighbours]:
        offset = observed[other] - observed[drone]
        diameter = 2 * max_footprint(config)
        values += [math.tanh(offset[0] / diameter), math.tanh(offset[1] / diameter)]
        values += [math.tanh(offset[2] / 100.0), 1.0]
        values += list(displacement(last_action[other], config)[:2] / config.cell_size)
    return values + [0.0] * (6 * config.neighbours - len(values))


def team_density(observed, drone: int, config) -> np.ndarray:
    """Teammates per block [side, side] of the middle view, shared between nearby blocks."""
    sides = view_sides(config)
    block, side = sides[len(sides) // 2]
    width = block * config.cell_size
    density = np.zeros((side, side))
    for other in known_teammates(observed, drone, config):
        offset = observed[other] - observed[drone]
        for i in range(side):
            for j in range(side):
                middle_y = (i + 0.5 - side / 2) * width
                middle_x = (j + 0.5 - side / 2) * width
                near_y = max(1 - abs(offset[1] - middle_y) / width, 0.0)
                near_x = max(1 - abs(offset[0] - middle_x) / width, 0.0)
                density[i, j] += near_y * near_x
    return density


def observe(world: World, weather: Weather, noise, config) -> list[dict[str, np.ndarray]]:
    """Every group of every drone's observation."""
    observed = world.position + weather.sensor_noise * noise
    blocked = obstructed_actions(world.heights, world.no_fly, world.position, config)
    repeats = safe_repeats(world.heights, world.no_fly, world.position, config)
    clear = collision_free_actions(world.position, world.last_action, config)
    counts = {block: block_counts(world.unseen, block) for block in coarse_sides(config)}
    result = []
    for drone, place in enumerate(world.position):
        cell = cell_of(place[0], place[1], config)
        looks = looks_ahead(world.unseen, place, weather.visibility, config)
        real = (place[1] / config.cell_size, place[0] / config.cell_size)
        parts = {
            "pose": pose(place, observed[drone], weather.visibility, config),
            "weather": weather_group(weather, config),
            "link": link_group(world.link[drone], weather),
            "mission": mission(world.time, world.coverage, config),
            "last_action": [float(world.last_action[drone] == a) for a in range(7)],
            "available": available_actions(blocked[drone], repeats[drone], clear[drone]),
            "two_step_clearance": [
                max(p) for p in repeatable(world.heights, world.no_fly, place, config)
            ],
            "obstacles": obstacles(world.heights, world.no_fly, place, config),
            "information_gain": gain(looks, config),
            "perimeter_change": growth(looks, world.unseen, place, config),
        }
        sides = view_sides(config)
        for block, side in sides:
            if block in counts:
                parts[f"unseen_{block}"] = coarse_view(counts[block], real, block, side)
            else:
                parts[f"unseen_{block}"] = fine_view(world.unseen, cell, block, side)
        middle = len(sides) // 2
        for block, _ in sides[middle - 1 : middle + 1]:
            view = parts[f"unseen_{block}"]
            parts[f"voronoi_share_{block}"] = own_share(view, block, observed, drone, config)
        parts["teammates"] = teammates(observed, world.last_action, drone, config)
        parts["team_density"] = team_density(observed, drone, config)
        result.append({name: np.asarray(part, float).ravel() for name, part in parts.items()})
    return result


def mixer_state(world: World, config) -> np.ndarray:
    """The finest coarse map of at most 64 blocks (else the coarsest), poses, time, coverage."""
    maps = [(b, block_counts(world.unseen, b)) for b in coarse_sides(config)]
    block, counts = next(((b, c) for b, c in maps if c.size <= 64), maps[-1])
    scale = np.array([config.city_width, config.city_length, config.max_altitude])
    poses = [value for place in world.position for value in place / scale]
    unseen = [value / block**2 for value in counts.ravel()]
    return np.array(unseen + poses + mission(world.time, world.coverage, config))
