"""What one drone observes, drawn group by group."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jaxqmix.config import EnvConfig, require
from jaxqmix.env.observation import (
    AHEAD,
    HEADINGS,
    HEIGHT_SCALE,
    agent_features,
    groups,
    shared_views,
    team_view,
    views,
)
from jaxqmix.render import scene
from jaxqmix.types import ACTIONS, HOVER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOOKS = (*ACTIONS, *(f"{count} x {heading}" for count in AHEAD for heading in ACTIONS[:HEADINGS]))
NUMBERS = {
    "pose": ("x", "y", "altitude", "footprint radius", "x in cell", "y in cell"),
    "weather": ("wind x", "wind y", "turbulence", "visibility"),
    "link": ("loss", "delay", "last lost", "last late"),
    "mission": ("time left", "coverage"),
    "last_action": tuple(f"last: {action}" for action in ACTIONS),
    "available": tuple(f"free: {action}" for action in ACTIONS),
    "repeat": tuple(f"free twice: {action}" for action in ACTIONS[:HOVER]),
    "gain": tuple(f"gain: {look}" for look in LOOKS),
    "growth": tuple(f"growth: {look}" for look in LOOKS),
}
"""Groups that are no maps, and the names of their numbers."""
COLUMNS = 4


def draw_observation(vector: Any, config: EnvConfig) -> Figure:
    """Draws one drone's observation: its numbers as bars, its surroundings as maps.

    Maps have the drone in the middle and north up; their axes are metres from the drone.

    Args:
      vector: [D], one row of `Observation.agents`.
      config: the world that it was observed in.

    Returns:
      A matplotlib figure, which notebooks show after `%matplotlib inline`. Raises `ConfigError`
      for a vector of another length.
    """
    from matplotlib.figure import Figure

    vector = np.asarray(vector, float)
    features = agent_features(config)
    require(vector.shape == (features,), "vector", vector.shape, f"must be ({features},)")
    part = {name: vector[where] for name, where in groups(config).items()}
    blocks = {"obstacles": 1} | {f"unseen_{block}": block for block, _ in views(config)}
    blocks |= {f"own_{block}": block for block, _ in shared_views(config)}
    blocks["team_density"] = team_view(config)[0]
    rows = -(-len(blocks) // (COLUMNS - 1))
    figure = Figure(figsize=(12.5, 3.3 * rows), layout="constrained")
    grid = figure.add_gridspec(rows, COLUMNS)
    _bars(figure.add_subplot(grid[:, 0]), part)
    for number, (name, block) in enumerate(blocks.items()):
        axes = figure.add_subplot(grid[number // (COLUMNS - 1), 1 + number % (COLUMNS - 1)])
        side = round(np.sqrt(part[name].size))
        cells = part[name].reshape(side, side)
        block *= config.cell_size
        reach = side * block / 2
        _map(axes, name, cells, reach)
        axes.set_title(f"{name} (blocks of {block:g} m)", fontsize=9)
        if name == "team_density":
            _teammates(axes, part["teammates"].reshape(-1, 6), reach, config)
    return figure


def _bars(axes: Axes, part: dict[str, np.ndarray]) -> None:
    """The numbers as horizontal bars, coloured by group."""
    names, values, colours = [], [], []
    for number, (group, labels) in enumerate(NUMBERS.items()):
        names += labels
        values += part[group].tolist()
        colours += [scene.HUES[number % len(scene.HUES)]] * len(labels)
    axes.barh(range(len(names)), values, color=colours)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_ylim(len(names) - 0.4, -0.6)
    reach = 1.05 * max(1.0, float(np.abs(values).max()))
    axes.set_xlim(-reach, reach)
    axes.axvline(0, color=scene.INK, linewidth=0.6)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_title("numbers", fontsize=9)


def _map(axes: Axes, name: str, cells: np.ndarray, reach: float) -> None:
    """One group of the surroundings as a map that reaches so many metres to each side."""
    from matplotlib.colors import LinearSegmentedColormap

    colours, low, high, label = LinearSegmentedColormap.from_list, 0.0, 1.0, "unseen share"
    if name == "obstacles":
        cells, low, high, label = cells * HEIGHT_SCALE, -HEIGHT_SCALE, HEIGHT_SCALE, "climb by (m)"
        colours = colours(name, ["#DCE6EE", scene.PAPER, scene.VIOLATION])
    elif name == "team_density":
        high, label = max(1.0, float(cells.max())), "teammates"
        colours = colours(name, [scene.PAPER, scene.HUES[1]])
    else:
        colours = colours(name, [scene.SEEN, scene.UNSEEN])
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
    # The observation squeezes offsets with a tanh, so that far teammates stay below 1.
    place = np.arctanh(np.clip(known, -0.999, 0.999)) * 2 * config.max_footprint
    place = place[np.abs(place).max(axis=1, initial=0) < reach]
    axes.plot(*place.T, "o", mfc=scene.HUES[1], mec="white", markersize=7)
