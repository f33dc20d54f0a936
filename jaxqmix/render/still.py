"""A still of a whole episode (PNG): the map, what was seen, every trail and every mishap."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxqmix.render import scene
from jaxqmix.types import Episode

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAP_INCHES = 6.6
DOTS_PER_INCH = 150
MARKS = {
    "conflict": ("X", scene.CONFLICT),
    "building_hit": ("s", scene.BUILDING_HIT),
    "violation": ("^", scene.VIOLATION),
}
"""Marker and colour of each field of `Events` that is marked on the map."""


@scene.in_our_style
def write_still(
    episodes: list[Episode],
    titles: list[str],
    out: Path,
    cell_size: float,
    report: Callable[[int, int], None],
    side: int | None = None,
) -> None:
    """Draws one or two trimmed episodes side by side into a PNG of its own size; cell_size in
    metres."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, columns = episodes[0].heights.shape
    longest = max(rows, columns)
    width = max(MAP_INCHES * columns / longest, 4.6) * len(episodes) + 1.6
    height = max(MAP_INCHES * rows / longest, 2.4) + 1.45
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH)
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(episodes), squeeze=False)[0]
    for place, episode, title in zip(axes, episodes, titles, strict=True):
        draw_ground(place, episode, cell_size)
        draw_no_fly(place, episode)
        draw_trails(place, episode)
        draw_marks(place, episode)
        draw_caption(place, episode, title)
    add_keys(figure, list(axes), episodes)
    figure.savefig(out, format="png", facecolor=scene.PAPER)
    report(1, 1)


def ground_image(episode: Episode) -> np.ndarray:
    """The city at the end of the episode, one pixel per cell, uint8 [H, W, 3]."""
    heights = episode.heights
    image = scene.shade(scene.rgb(scene.UNSEEN), heights)
    image = np.where(
        episode.coverable[..., None], image, scene.shade(scene.rgb(scene.HIDDEN), heights)
    )
    seen = scene.shade(scene.rgb(scene.SEEN), heights)
    return np.where(episode.seen_at[..., None] >= 0, seen, image)


def draw_ground(axes: Axes, episode: Episode, cell_size: float) -> None:
    """Draws buildings and what was seen, with axes in metres and north up."""
    rows, columns = episode.heights.shape
    extent = (0, columns * cell_size, rows * cell_size, 0)
    axes.imshow(ground_image(episode), extent=extent, interpolation="nearest")
    if not episode.coverable.all():
        # Hatched, so that nobody needs the colour to tell it from what is not seen yet.
        hidden = np.ma.masked_where(episode.coverable, np.ones(episode.coverable.shape))
        x = (np.arange(columns) + 0.5) * cell_size
        y = (np.arange(rows) + 0.5) * cell_size
        hatch = axes.contourf(x, y, hidden.filled(0), [0.5, 1.5], colors="none", hatches=["////"])
        hatch.set_edgecolor("#8A8F98")
        hatch.set_linewidth(0)
    axes.set_xlim(extent[:2])
    axes.set_ylim(extent[2:])
    axes.set_xlabel("x, to the east (m)", fontsize=9)
    axes.set_ylabel("y, to the south (m)", fontsize=9)
    axes.tick_params(labelsize=8, color="#888888")
    axes.spines[:].set_color("#888888")


def draw_no_fly(axes: Axes, episode: Episode) -> None:
    """Draws each no-fly cylinder as a dashed disc that tells its ceiling."""
    from matplotlib.patches import Circle
    from matplotlib.patheffects import withStroke

    for x, y, radius, ceiling in episode.no_fly.tolist():
        face = (*scene.rgb(scene.NO_FLY) / 255, 0.14)
        disc = Circle((x, y), radius, facecolor=face, edgecolor=scene.NO_FLY, linestyle="--")
        disc.set_linewidth(1.4)
        axes.add_patch(disc)
        axes.text(
            x,
            y,
            f"no-fly\nbelow {ceiling:.0f} m",
            ha="center",
            va="center",
            fontsize=7,
            color=scene.NO_FLY,
            zorder=6,
            clip_on=True,
            path_effects=[withStroke(linewidth=2.2, foreground="white")],
        )


def draw_trails(axes: Axes, episode: Episode) -> None:
    """Draws every drone's trail, a ring where it starts and its number where it ends."""
    positions = episode.positions
    drones = positions.shape[1]
    large = drones <= 30
    for drone, colour in enumerate(scene.drone_colours(drones) / 255):
        x, y = positions[:, drone, 0], positions[:, drone, 1]
        axes.plot(x, y, color=colour, linewidth=1.3 if large else 0.8, alpha=0.9, zorder=3)
        axes.plot(x[:1], y[:1], "o", markersize=6, zorder=4, mfc="white", mec=colour, mew=1.6)
        size = 10 if large else 7
        axes.plot(x[-1:], y[-1:], "o", markersize=size, zorder=5, mfc=colour, mec="white", mew=0.8)
        ink = scene.INK if scene.is_light(colour * 255) else "white"
        axes.annotate(
            str(drone + 1),
            (x[-1], y[-1]),
            ha="center",
            va="center_baseline",
            fontsize=6 if large else 4,
            color=ink,
            weight="bold",
            zorder=5,
        )


def draw_marks(axes: Axes, episode: Episode) -> None:
    """Marks where drones came into conflict, struck a building or tried to enter a zone."""
    for name, (marker, colour) in MARKS.items():
        step, drone = np.nonzero(getattr(episode.events, name))
        place = episode.positions[step + 1, drone]
        axes.scatter(
            place[:, 0], place[:, 1], s=48, marker=marker, c=colour, ec="white", lw=0.7, zorder=7
        )


def draw_caption(axes: Axes, episode: Episode, title: str) -> None:
    """Writes the title, the final metrics and the wind above the map."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.transforms import Affine2D, ScaledTranslation

    length = int(episode.length)
    caption = f"{scene.running_metrics(episode).caption(length)} · {length} steps"
    axes.set_title(title or " ", loc="left", fontsize=12, weight="bold", pad=21, parse_math=False)
    axes.text(0, 1.0, caption + "\n", transform=axes.transAxes, fontsize=8.5, color="#444444")
    # Points to the right of and above the corner of the map.
    corner: Any = Affine2D().scale(1 / 72) + axes.figure.dpi_scale_trans
    above: Any = axes.transAxes
    corner += ScaledTranslation(1, 1, above)
    words = scene.wind_words(episode.wind)
    axes.text(-34, 22, words, transform=corner, fontsize=8, ha="right", color=scene.HUES[0])
    speed = float(np.hypot(*episode.wind))
    if speed >= scene.CALM:
        east, south = (11 * episode.wind / speed).tolist()
        tail, head = (-14 - east, 25 + south), (-14 + east, 25 - south)
        arrow = FancyArrowPatch(tail, head, arrowstyle="-|>", mutation_scale=12, lw=1.8)
        arrow.set(transform=corner, color=scene.HUES[0], clip_on=False)
        axes.add_patch(arrow)


def add_keys(figure: Figure, axes: list[Axes], episodes: list[Episode]) -> None:
    """Adds the key of colours and marks below, and the scale of building heights at the side."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    top = max(max(int(episode.heights.max()) for episode in episodes), 10)
    ramp = scene.shade(scene.rgb(scene.SEEN), np.linspace(0, top, 256)) / 255
    scale = ScalarMappable(Normalize(0, top), ListedColormap(ramp))
    bar = figure.colorbar(scale, ax=axes, shrink=0.5, aspect=22, pad=0.015)
    bar.set_label("building height on seen ground (m)", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_edgecolor("#888888")
    dot: dict[str, Any] = {"marker": "o", "linestyle": "", "color": "#555555"}
    keys: list[Any] = [
        Patch(fc=scene.SEEN, ec="#888888", label="seen"),
        Patch(fc=scene.UNSEEN, label="not seen"),
    ]
    if not all(episode.coverable.all() for episode in episodes):
        hatched = Patch(fc=scene.HIDDEN, ec="#8A8F98", hatch="////", label="cannot be seen")
        keys.append(hatched)
    if any(len(episode.no_fly) for episode in episodes):
        face = (*scene.rgb(scene.NO_FLY) / 255, 0.14)
        keys.append(Patch(fc=face, ec=scene.NO_FLY, ls="--", label="no-fly zone"))
    keys += [
        Line2D([], [], mfc="white", mew=1.6, **dot, label="start"),
        Line2D([], [], markersize=8, **dot, label="end and number"),
    ]
    for name, (marker, colour) in MARKS.items():
        if any(getattr(episode.events, name).any() for episode in episodes):
            words = name.replace("_", " ")
            keys.append(
                Line2D([], [], ls="", marker=marker, mfc=colour, mec="white", ms=8, label=words)
            )
    places = max(4, round(figure.get_figwidth() / 1.5))
    figure.legend(
        handles=keys,
        loc="outside lower center",
        ncols=min(len(keys), places),
        fontsize=8,
        frameon=False,
    )
