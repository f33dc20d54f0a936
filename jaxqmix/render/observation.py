"""What one drone observes, drawn group by group."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxqmix.config import EnvConfig, require
from jaxqmix.env.features import HEIGHT_SCALE, LOOKS, Feature, features
from jaxqmix.env.observation import agent_features, feature_slices
from jaxqmix.render import scene

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 3


def bars_and_moves(
    config: EnvConfig, own: tuple[Feature, ...] = ()
) -> tuple[list[Feature], list[Feature]]:
    """The features drawn as bars, and those with a number for each move."""
    named = [feature for feature in (*features(config), *own) if feature.labels]
    moves = [feature for feature in named if "north" in feature.labels]
    return [feature for feature in named if feature not in moves], moves


@scene.in_our_style
def draw_observation(vector: Any, config: EnvConfig, own: tuple[Feature, ...] = ()) -> Figure:
    """Draws one drone's observation: its numbers as bars, its surroundings as maps.

    Maps have the drone in the middle and north up; their axes are metres from the drone.

    Args:
      vector: [D], one row of `Observation.agents`.
      config: the world that it was observed in.
      own: features of the world's `Parts`.

    Returns:
      A matplotlib figure, which notebooks show after `%matplotlib inline`. Raises `ConfigError`
      for a vector of another length.
    """
    from matplotlib.figure import Figure

    vector = np.asarray(vector, float)
    length = agent_features(config, own)
    require(vector.shape == (length,), "vector", vector.shape, f"must be ({length},)")
    part = {name: vector[where] for name, where in feature_slices(config, own).items()}
    maps = [feature for feature in (*features(config), *own) if feature.block]
    numbers, moves = bars_and_moves(config, own)
    rows = -(-len(maps) // COLUMNS)
    figure = Figure(figsize=(14, 6.2 + 3.3 * rows), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(6.2, 3.3 * rows))[:, 0]
    left, right = above.subplots(1, 2, width_ratios=(1, 1.35))
    _bars(left, numbers, part)
    _moves(right, moves, part)
    grid = below.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes in grid[len(maps) :]:
        axes.axis("off")
    for axes, feature in zip(grid, maps, strict=False):
        name = feature.name
        side = round(np.sqrt(part[name].size))
        cells = part[name].reshape(side, side)
        width = feature.block * config.cell_size
        reach = side * width / 2
        _map(axes, feature, cells, reach)
        words = textwrap.fill(feature.meaning, 34)
        axes.set_title(f"{name} (blocks of {width:g} m)\n{words}", fontsize=9)
        if name == "team_density":
            _teammates(axes, part["teammates"].reshape(-1, 6), reach, config)
    return figure


def _bars(axes: Axes, numbers: list[Feature], part: dict[str, np.ndarray]) -> None:
    """The drone's own numbers as bars, one colour and one heading per group."""
    place = 0.0
    ticks: list[float] = []
    names: list[str] = []
    for number, feature in enumerate(numbers):
        hue = scene.HUES[number % len(scene.HUES)]
        group, labels = feature.name, feature.labels
        heading = f"{group}: {feature.meaning}"
        axes.text(0, place, heading, fontsize=9.5, color=hue, weight="bold", va="center",
                  ha="left", transform=axes.get_yaxis_transform(),
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
        places = place + 1 + np.arange(len(labels))
        axes.barh(places, part[group], color=hue, height=0.72)
        for where, value in zip(places, part[group], strict=True):
            axes.annotate(
                f"{value:.2f}",
                (value, where),
                (4 if value >= 0 else -4, 0),
                textcoords="offset points",
                ha="left" if value >= 0 else "right",
                va="center",
                fontsize=8.5,
                color=scene.INK,
            )
        ticks += places.tolist()
        names += labels
        place = places[-1] + 1.3
    axes.set_yticks(ticks, names, fontsize=9.5)
    axes.set_ylim(place - 0.5, -0.7)
    values = np.concatenate([part[feature.name] for feature in numbers])
    reach = 1.25 * max(1.0, float(np.abs(values).max()))
    axes.set_xlim(-reach, reach)
    axes.axvline(0, color=scene.INK, linewidth=0.6)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("about itself", fontsize=11, weight="bold", loc="left")


def _moves(axes: Axes, moves: list[Feature], part: dict[str, np.ndarray]) -> None:
    """One row per move and one column per group; numbers stand in their cells."""
    from matplotlib.colors import LinearSegmentedColormap

    table = np.full((len(LOOKS), len(moves)), np.nan)
    for column, feature in enumerate(moves):
        table[: feature.size, column] = part[feature.name]
    colours = LinearSegmentedColormap.from_list("moves", [scene.HUES[4], "#FFFFFF", scene.HUES[0]])
    reach = max(1.0, float(np.nanmax(np.abs(table))))
    axes.imshow(table, cmap=colours, vmin=-1.6 * reach, vmax=1.6 * reach, aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        if not np.isnan(value):
            yes_or_no = "yes" if value else "no"
            words = f"{value:.2f}" if not moves[column].yes_or_no else yes_or_no
            axes.text(column, row, words, ha="center", va="center", fontsize=9, color=scene.INK)
    axes.set_yticks(range(len(LOOKS)), LOOKS, fontsize=9.5)
    headings = [
        f"{feature.name.replace('_', ' ')}\n{textwrap.fill(feature.meaning, 17)}"
        for feature in moves
    ]
    axes.set_xticks(range(len(moves)), headings, fontsize=8.5)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(len(moves) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(LOOKS) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#FFFFFF", linewidth=2)
    axes.tick_params(which="minor", length=0)
    axes.set_title("about its moves", fontsize=11, weight="bold", loc="left")


def _map(axes: Axes, feature: Feature, cells: np.ndarray, reach: float) -> None:
    """One group of the surroundings as a map that reaches so many metres to each side."""
    from matplotlib.colors import LinearSegmentedColormap

    low, high, label, name = 0.0, 1.0, "unseen share", feature.name
    if name == "obstacles":
        cells, low, high, label = cells * HEIGHT_SCALE, -HEIGHT_SCALE, HEIGHT_SCALE, "climb by (m)"
        ramp = ["#DCE6EE", scene.PAPER, scene.VIOLATION]
    elif name == "team_density":
        high, label = max(1.0, float(cells.max())), "teammates"
        ramp = [scene.PAPER, scene.HUES[1]]
    else:
        ramp = [scene.SEEN, scene.UNSEEN]
        if not name.startswith(("unseen_", "voronoi_share_")):  # one's own
            low, high = min(0.0, float(cells.min())), max(1.0, float(cells.max()))
            label = textwrap.shorten(feature.units, 40)
    colours = LinearSegmentedColormap.from_list(name, ramp)
    extent = (-reach, reach, reach, -reach)
    picture = axes.imshow(cells, cmap=colours, extent=extent, vmin=low, vmax=high)
    axes.plot(0, 0, "o", mfc=scene.HUES[0], mec="white", markersize=8)
    axes.locator_params(nbins=4)
    axes.tick_params(labelsize=7)
    bar = axes.figure.colorbar(picture, ax=axes, shrink=0.75)
    bar.ax.tick_params(labelsize=7)
    bar.set_label(label, fontsize=7)


def _teammates(axes: Axes, nearest: np.ndarray, reach: float, config: EnvConfig) -> None:
    """Marks the nearest teammates [K, 6] that are known and lie on the map."""
    known = nearest[nearest[:, 3] > 0, :2]
    # The observation squeezes offsets with a tanh; beyond this nobody can tell where they are.
    known = known[np.abs(known).max(axis=1, initial=0) < 0.999]
    place = np.arctanh(known) * 2 * config.max_footprint
    place = place[np.abs(place).max(axis=1, initial=0) < reach]
    axes.plot(*place.T, "o", mfc=scene.HUES[1], mec="white", markersize=7)
