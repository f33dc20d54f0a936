"""Which way of stamping footprints, of reading views and of drawing a city is fastest, and what do
greedy policies pay for their eight views of the world?

Variants of each hot path, side by side in one run, in microseconds per env step of one swarm (or
per city). `kept` is what the package uses. Every variant of stamping ends with the same counts of
coarse blocks; those of the views pay for what they read too, and both for keeping the counts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from common import measure, parse, parser, save, show, with_settings

from jaxqmix.compilation import jit, materialise
from jaxqmix.config import EnvConfig, RunConfig
from jaxqmix.env import sensing
from jaxqmix.env.city import footprint_radius, generate_heights, zone_density
from jaxqmix.env.features import unseen_views, views
from jaxqmix.env.urban_grid import draw_params, reset
from jaxqmix.evaluation import evaluator
from jaxqmix.presets import preset
from jaxqmix.training import make_trainer

STEPS = 50


def dense_words(unseen, position, visibility, config):
    """Every footprint against every word of the map, one OR after the other."""
    rows, words = unseen.words.shape
    row_margin, word_margin = sensing.margins(config)
    y = (jnp.arange(rows) - row_margin + 0.5) * config.cell_size
    first_cells = (jnp.arange(words) - word_margin) * sensing.WORD
    seen = jnp.zeros_like(unseen.words)
    for place in position:
        radius = footprint_radius(place[2], visibility)
        squared = radius**2 - (y - place[1]) ** 2
        half = jnp.sqrt(jnp.maximum(squared, 0.0))
        first = jnp.ceil((place[0] - half) / config.cell_size - 0.5).astype(jnp.int32)
        last = jnp.floor((place[0] + half) / config.cell_size - 0.5).astype(jnp.int32)
        last = jnp.where(squared >= 0, last, first - 1)
        below_last = sensing._low_bits(last[:, None] + 1 - first_cells)
        seen |= below_last & ~sensing._low_bits(first[:, None] - first_cells)
    new = jnp.sum(jax.lax.population_count(unseen.words & seen), dtype=jnp.int32)
    unseen = dataclasses.replace(unseen, words=materialise(unseen.words & ~seen))
    return sensing.pack_unseen(sensing.unpack_unseen(unseen, config), config), new


def dense_cells(unseen, position, visibility, config):
    """A boolean map: the distance of every cell to every drone."""
    cells = sensing.unpack_unseen(unseen, config)
    y = (jnp.arange(config.rows) + 0.5)[:, None] * config.cell_size
    x = (jnp.arange(config.columns) + 0.5)[None] * config.cell_size
    seen = jnp.zeros_like(cells)
    for place in position:
        radius = footprint_radius(place[2], visibility)
        seen |= (y - place[1]) ** 2 + (x - place[0]) ** 2 <= radius**2
    return sensing.pack_unseen(cells & ~seen, config), jnp.sum(cells & seen)


def windows(unseen, position, visibility, config):
    """Kept: one window of words after the other, and coarse counts kept up to date."""
    return sensing.look(None, unseen, position, visibility, config)[:2]


def kept_views(unseen, position, config):
    """Kept: fine blocks from the bit map, coarse ones from counts that are kept up to date."""
    place = position[:, 1::-1] / config.cell_size
    cell = jnp.floor(place).astype(jnp.int32)
    window = jax.vmap(sensing.fine_window, (None, 0, None))(unseen, cell, config)
    return jax.vmap(unseen_views, (None, 0, 0, None))(unseen, window, place, config)


def prefix_views(unseen, position, config):
    """Every block from sums over the whole map, taken anew in each step."""
    cells = sensing.unpack_unseen(unseen, config).astype(jnp.int32)
    sums = jnp.pad(jnp.cumsum(jnp.cumsum(cells, axis=0), axis=1), ((1, 0), (1, 0)))
    last = jnp.array([config.rows, config.columns])

    def around(cell):
        shares = []
        for block, side in views(config):
            edges = block * jnp.arange(side + 1) - side * block // 2
            rows, columns = (jnp.clip(cell[i] + edges, 0, last[i]) for i in range(2))
            corners = sums[rows[:, None], columns]
            counts = corners[1:, 1:] - corners[1:, :-1] - corners[:-1, 1:] + corners[:-1, :-1]
            shares.append(counts.reshape(-1) / block**2)
        return jnp.concatenate(shares)

    return jax.vmap(around)(jnp.floor(position[:, 1::-1] / config.cell_size).astype(jnp.int32))


def stamping(
    config: EnvConfig, swarms: int, look: Callable, views_of: Callable | None = None
) -> float:
    """Microseconds per env step of stamping moving drones, with the walk that moves them, and of
    reading their views."""
    domain = preset("full").domain

    def begin(key):
        params = draw_params(key, domain)
        return reset(key, params, config)[0], params.visibility

    state, visibility = jit(jax.vmap(begin))(jax.random.split(jax.random.key(0), swarms))
    limit = jnp.array([config.city_width, config.city_length, config.max_altitude]) - 1

    def fly(unseen, position):
        def body(carry, key):
            unseen, position = carry
            step = jax.random.uniform(key, position.shape, minval=-1.0) * config.cell_size
            position = jnp.clip(position + step, config.min_altitude, limit)
            unseen, new = jax.vmap(look, (0, 0, 0, None))(unseen, position, visibility, config)
            read = None
            if views_of is not None:
                read = jax.vmap(lambda u, p: views_of(u, p, config))(unseen, position).sum()
            return (unseen, position), (new, read)

        keys = jax.random.split(jax.random.key(1), STEPS)
        return jax.lax.scan(body, (unseen, position), keys)[1]

    compiled = jit(fly)
    seconds = measure(lambda: compiled(state.unseen, state.position))
    return seconds["median"] / STEPS / swarms * 1e6


def separate_draws(key, params, config):
    """Heights with one generator call per quantity and two numbers per cell, in a city without
    parks, landmarks and corridors."""
    shape = (config.rows, config.columns)
    keys = jax.random.split(key, 4)
    density, _ = zone_density(config)
    blocks = jax.random.uniform(keys[0], (-(-shape[0] // 4), -(-shape[1] // 4)))
    blocks = jnp.repeat(jnp.repeat(blocks, 4, 0), 4, 1)[: shape[0], : shape[1]]
    built = jax.random.uniform(keys[1], shape) < density * params.building_density * blocks
    height = 10 + 190 * jax.random.uniform(keys[2], shape) ** 3
    return jnp.where(built, height, 0.0).astype(jnp.uint8)


def drawing(config: EnvConfig, cities: int, draw: Callable) -> float:
    """Microseconds per city."""
    keys = jax.random.split(jax.random.key(0), cities)
    params = jax.vmap(lambda key: draw_params(key, preset("full").domain))(keys)
    compiled = jit(jax.vmap(lambda key, p: draw(key, p, config)))
    return measure(lambda: compiled(keys, params))["median"] / cities * 1e6


def evaluating(run: RunConfig, swarms: int, symmetric: bool) -> float:
    """Microseconds per env step of whole episodes under a greedy policy, on all devices."""
    trainer = make_trainer(with_settings(run, "evaluation", symmetric=symmetric))
    fly = evaluator(trainer.env, trainer.policy, swarms)
    parameters = trainer.init(0).learner.ema["agent"]
    seconds = measure(lambda: fly(parameters, 0, swarms), repeats=3)["median"]
    return seconds / run.env.horizon / swarms * 1e6


def main() -> None:
    """Measures, shows and saves; all but evaluations on one device."""
    line = parser(__doc__)
    line.add_argument("--swarms", type=int, default=64)
    line.add_argument("--cells", type=float, nargs="+", default=[50.0, 10.0], help="metres")
    arguments = parse(line)
    results = []
    for cell in arguments.cells:
        config = dataclasses.replace(preset("full").env, cell_size=cell)
        for name, look in (
            ("windows (kept)", windows),
            ("dense words", dense_words),
            ("dense cells", dense_cells),
        ):
            value = stamping(config, arguments.swarms, look)
            results.append(("stamping, us/env step", cell, name, value))
        for name, views_of in (("kept counts (kept)", kept_views), ("prefix sums", prefix_views)):
            value = stamping(config, arguments.swarms, windows, views_of)
            results.append(("stamping and views, us/env step", cell, name, value))
        variants = (("one draw (kept)", generate_heights), ("separate", separate_draws))
        for name, draw in variants:
            results.append(("city, us/city", cell, name, drawing(config, 16, draw)))
    for name, symmetric in (("eight views (kept)", True), ("one view", False)):
        value = evaluating(preset("full"), arguments.swarms, symmetric)
        results.append(("evaluation, us/env step", preset("full").env.cell_size, name, value))
    names = ("hot path", "cell (m)", "variant", "time")
    show("Variants of the hot paths", names, results)
    rows = [dict(zip(("what", "cell_size", "variant", "time"), r, strict=True)) for r in results]
    save("hot_paths", rows, arguments.out)


if __name__ == "__main__":
    main()
