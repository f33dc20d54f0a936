"""Footprints and what is kept about unseen cells, on hand-drawn maps."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref

from jaxqmix.config import EnvConfig
from jaxqmix.env import sensing
from jaxqmix.env.city import footprint_radius

CONFIG = EnvConfig(drones=2, city_width=600.0, city_length=450.0, cell_size=50.0, no_fly_zones=0)
"""9 x 12 cells of 50 m."""
EVERYTHING = np.ones((9, 12), bool)


quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""Compiles quickly, without optimisation."""


@functools.cache
def compiled_look(config):
    """The compiled look of all drones."""
    return quick_jit(functools.partial(sensing.look, config=config))


def unseen_after(places, visibility=1.0, cells=EVERYTHING, config=CONFIG, key=0):
    """The map of unseen cells after a look, the number of cells newly seen, and the record."""
    unseen = sensing.pack_unseen(jnp.asarray(cells), config)
    places = jnp.array(places, jnp.float32)
    look = compiled_look(config)
    unseen, newly, _ = look(jax.random.key(key), unseen, places, jnp.float32(visibility))
    return np.asarray(sensing.unpack_unseen(unseen, config)), int(newly), unseen


def drawing(text: str) -> np.ndarray:
    """True where a drawing has a dot."""
    return np.array([[cell == "." for cell in row] for row in text.split()])


def place(row: int, column: int, altitude: float) -> list[float]:
    """The middle of a cell."""
    return [(column + 0.5) * 50, (row + 0.5) * 50, altitude]


FAR = place(4, 5, 40)
DRAWINGS = {
    "108 m": (
        [FAR, FAR],
        1.0,
        """
        ............
        ............
        .....#......
        ....###.....
        ...#####....
        ....###.....
        .....#......
        ............
        ............
        """,
    ),
    "120 m from higher up": (
        [place(4, 5, 100), FAR],
        1.0,
        """
        ............
        ............
        ....###.....
        ...#####....
        ...#####....
        ...#####....
        ....###.....
        ............
        ............
        """,
    ),
    "54 m in poor visibility": (
        [FAR, place(7, 1, 40)],
        0.25,
        """
        ............
        ............
        ............
        .....#......
        ....###.....
        .....#......
        .#..........
        ###.........
        .#..........
        """,
    ),
    "beyond the corners": (
        [place(0, 0, 40), place(8, 11, 40)],
        1.0,
        """
        ###.........
        ##..........
        #...........
        ............
        ............
        ............
        ...........#
        ..........##
        .........###
        """,
    ),
    "away from the middle of a cell": (
        [[300.0, 225.0, 20.0], [300.0, 225.0, 20.0]],
        1.0,
        """
        ............
        ............
        .....##.....
        ....####....
        ....####....
        ....####....
        .....##.....
        ............
        ............
        """,
    ),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_footprints(name):
    """Cells are seen whose centres lie inside the circle; overlaps are counted once."""
    places, visibility, text = DRAWINGS[name]
    expected = drawing(text)
    unseen, newly, _ = unseen_after(places, visibility)
    np.testing.assert_array_equal(unseen, expected)
    assert newly == np.sum(~expected)


def test_only_coverable_unseen_cells_count():
    """Cells that were seen before or cannot be covered are not newly seen, and stay as they are."""
    cells = EVERYTHING.copy()
    cells[4, 3:6] = False
    unseen, newly, _ = unseen_after([FAR, FAR], cells=cells)
    assert newly == 13 - 3
    assert unseen.sum() == cells.sum() - newly
    again, none, _ = unseen_after([FAR, FAR], cells=unseen)
    np.testing.assert_array_equal(again, unseen)
    assert none == 0


def test_footprint_radius():
    """100 m at the ground, twice that at 500 m, and half of it at a quarter of the visibility."""
    for altitude, visibility, expected in (
        (0, 1, 100),
        (500, 1, 200),
        (120, 1, 124),
        (0, 0.25, 50),
    ):
        radius = footprint_radius(jnp.float32(altitude), jnp.float32(visibility))
        assert float(radius) == pytest.approx(expected)


def test_probabilistic_frequency():
    """Over many looks, each cell is seen about as often as its probability says."""
    config = dataclasses.replace(CONFIG, sensing="probabilistic", drones=1)
    looks, visibility = 4000, 0.8
    position = jnp.array([[260.0, 210.0, 60.0]])
    full = sensing.pack_unseen(jnp.asarray(EVERYTHING), config)

    @quick_jit
    @jax.vmap
    def one_look(key):
        unseen, newly, _ = sensing.look(key, full, position, jnp.float32(visibility), config)
        return ~sensing.unpack_unseen(unseen, config), newly

    seen, newly = map(np.asarray, one_look(jax.random.split(jax.random.key(1), looks)))
    np.testing.assert_array_equal(seen.sum(axis=(1, 2)), newly)
    chance = ref.chance_to_see(np.asarray(position[0], float), visibility, config)
    deviation = np.sqrt(chance * (1 - chance) / looks)
    assert np.all(np.abs(seen.mean(axis=0) - chance) <= 4.5 * deviation)
    assert not np.any(seen[:, chance == 0])
    # Cells are seen independently of one another.
    spread = np.sum(chance * (1 - chance))
    assert newly.var() == pytest.approx(spread, rel=0.15)


def test_drones_look_independently():
    """Two drones in one place see more by chance than one does."""
    config = dataclasses.replace(CONFIG, sensing="probabilistic")
    chance = ref.chance_to_see(np.array(FAR), 0.8, config)
    both = [unseen_after([FAR, FAR], 0.8, config=config, key=key)[1] for key in range(200)]
    expected, variance = np.sum(1 - (1 - chance) ** 2), np.sum((1 - chance) ** 2)
    assert abs(np.mean(both) - expected) < 4.5 * math.sqrt(variance / 200)


@pytest.mark.parametrize("shape", [(9, 12), (33, 70), (64, 32)])
def test_bits_and_blocks(shape):
    """One bit per cell, least significant first, zeros around, and counts of every block."""
    rows, columns = shape
    config = EnvConfig(city_width=columns * 20.0, city_length=rows * 20.0, drones=1)
    cells = np.random.default_rng(0).random(shape) < 0.5
    unseen = sensing.pack_unseen(jnp.asarray(cells), config)
    np.testing.assert_array_equal(sensing.unpack_unseen(unseen, config), cells)
    words = np.asarray(unseen.words)
    assert words.dtype == np.uint32
    row_margin, word_margin = sensing.margins(config)
    assert words.shape == (rows + 2 * row_margin, -(-columns // 32) + 2 * word_margin + 1)
    for row, column in ((0, 0), (rows - 1, columns - 1), (rows // 2, columns // 3)):
        word = int(words[row_margin + row, word_margin + column // 32])
        assert (word >> column % 32) & 1 == cells[row, column]
    assert np.bitwise_count(words).sum() == cells.sum()
    assert sensing.perimeter(unseen.words) == ref.perimeter(cells)
    assert len(unseen.coarse) == len(ref.coarse_sides(config))
    for level, block in zip(unseen.coarse, ref.coarse_sides(config), strict=True):
        margin = sensing.coarse_margin(block, config)
        np.testing.assert_array_equal(level, np.pad(ref.block_counts(cells, block), margin))


@pytest.mark.parametrize(
    ("columns", "rows", "cell_size", "max_altitude"),
    [
        (50, 20, 20.0, 120.0),
        (70, 24, 50.0, 500.0),
        (33, 40, 8.0, 120.0),
        (200, 20, 5.0, 120.0),
        (32, 20, 7.5, 120.0),
        (64, 20, 5.0, 120.0),
        (124, 20, 4.0, 500.0),
    ],
)
def test_looks_near_every_border(columns, rows, cell_size, max_altitude):
    """Large footprints at corners and sides see the right cells and keep the counts right."""
    width, length = columns * cell_size, rows * cell_size
    config = EnvConfig(
        drones=1,
        city_width=width,
        city_length=length,
        cell_size=cell_size,
        max_altitude=max_altitude,
        no_fly_zones=0,
    )
    full = np.ones((rows, columns), bool)
    for x in (0.3, width * 0.62, width - 4.3 * cell_size, width - 0.3):
        for y in (0.4, length - 0.4):
            spot = [x, y, max_altitude]
            unseen, newly, record = unseen_after([spot], cells=full, config=config)
            clear = ~ref.rim(np.array(spot), 1.0, config)
            expected = ref.look(full, [np.array(spot)], 1.0, config)
            np.testing.assert_array_equal(unseen[clear], expected[clear])
            assert newly == np.sum(~unseen)
            for level, block in zip(record.coarse, ref.coarse_sides(config), strict=True):
                counts = ref.block_counts(unseen, block)
                margin = sensing.coarse_margin(block, config)
                np.testing.assert_array_equal(level, np.pad(counts, margin))


def test_fine_view_by_hand():
    """A view of single cells around a drone is a crop of the map."""
    config = EnvConfig(city_width=880.0, city_length=600.0)
    cells = np.random.default_rng(1).random((30, 44)) < 0.5
    unseen = sensing.pack_unseen(jnp.asarray(cells), config)
    for row, column in ((10, 20), (0, 0), (29, 43), (15, 31), (15, 16)):
        window = sensing.fine_window(unseen, jnp.array([row, column]), config)
        crop = np.pad(cells, 16)[row + 12 : row + 21, column + 12 : column + 21]
        np.testing.assert_array_equal(sensing.fine_view(window, 1), crop)
        crop = np.pad(cells, 16)[row + 3 : row + 30, column + 3 : column + 30]
        shares = crop.reshape(9, 3, 9, 3).mean(axis=(1, 3))
        np.testing.assert_allclose(sensing.fine_view(window, 3), shares, rtol=1e-6)


def test_coarse_view_by_hand():
    """Between two aligned blocks, a view's block sees both in proportion."""
    config = EnvConfig(city_width=1280.0, city_length=1280.0)
    cells = np.zeros((64, 64), bool)
    cells[16:32, 32:48] = True
    level = sensing.pack_unseen(jnp.asarray(cells), config).coarse[0]
    exact = np.asarray(sensing.coarse_view(level, jnp.array([16.0, 32.0]), 16, config))
    assert exact[4, 4] == 1 and exact.sum() == 1
    quarter = np.asarray(sensing.coarse_view(level, jnp.array([20.0, 32.0]), 16, config))
    assert quarter[4, 4] == 0.75 and quarter[3, 4] == 0.25 and quarter.sum() == 1
    both = np.asarray(sensing.coarse_view(level, jnp.array([20.0, 24.0]), 16, config))
    np.testing.assert_allclose(both[3:5, 4:6], [[0.125, 0.125], [0.375, 0.375]])
    assert both.sum() == 1


PERIMETERS = {
    "a lone cell": ("# .", 4),
    "two that touch along a side": ("## ..", 6),
    "two that touch at a corner": ("#. .#", 8),
    "a hole in a block": ("### #.# ###", 16),
    "the whole city": (" ".join(["#" * 12] * 9), 42),
}


@pytest.mark.parametrize("name", PERIMETERS)
def test_perimeter(name):
    """Sides between unseen cells (#) and others, the city's border included."""
    text, sides = PERIMETERS[name]
    cells = np.zeros_like(EVERYTHING)
    for row, line in enumerate(text.split()):
        cells[row, : len(line)] = [cell == "#" for cell in line]
    assert ref.perimeter(cells) == sides
    assert sensing.perimeter(sensing.pack_unseen(jnp.asarray(cells), CONFIG).words) == sides


@pytest.mark.parametrize(("x", "y"), [(30.0, 30.0), (1590.0, 210.0), (3470.0, 430.0)])
def test_looks_by_chance_cross_words_and_borders(x, y):
    """After 400 looks every cell but those seen with a tiny chance has been seen, and no other."""
    config = dataclasses.replace(CONFIG, sensing="probabilistic", drones=1, city_width=3500.0)
    cells = jnp.ones((config.rows, config.columns), bool)
    full, position = sensing.pack_unseen(cells, config), jnp.array([[x, y, 60.0]])
    look = jax.vmap(lambda key: sensing.look(key, full, position, jnp.float32(1), config)[0])
    unseen = jax.jit(look)(jax.random.split(jax.random.key(0), 400))
    ever = ~np.asarray(sensing.unpack_unseen(unseen, config)).all(axis=0)
    chance = ref.chance_to_see(np.array([x, y, 60.0]), 1.0, config)
    assert ever[chance > 0.1].all() and not ever[chance == 0].any()
