"""What every picture needs of an episode: its trimmed arrays, its metrics and its colours."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxqmix.config import require
from jaxqmix.types import Array, Episode, replace

# Okabe and Ito's colours for colour-blind readers, without the yellow that light ground swallows.
HUES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5B4B8A")
TONES = (0.0, -0.38, 0.32)
"""Darker (towards black) and lighter (towards white) rounds of the hues, for larger swarms."""
COLOURS = len(HUES) * len(TONES)
"""Of drones, and of lines, before they repeat."""

UNSEEN, SEEN, LOOKED_AT, HIDDEN = "#66707F", "#F2EDE1", "#FFE680", "#2F333B"
"""Ground not yet seen, seen, inside a footprint now, and not coverable."""
INK, PAPER = "#20242B", "#FFFFFF"
CONFLICT, BUILDING_HIT, VIOLATION, NO_FLY = "#C2003A", "#6F3FA0", "#E07B00", "#B3123B"

TALLEST = 250.0
"""Height in metres that is drawn darkest."""

CALM = 0.05
"""Wind below this many m/s is not drawn."""


def in_our_style(draw: Callable) -> Callable:
    """Draws with Matplotlib's defaults: a user's settings, such as LaTeX for all text, are not
    for pictures that are laid out here."""

    @functools.wraps(draw)
    def drawn(*given: Any, **named: Any) -> Any:
        import matplotlib

        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            return draw(*given, **named)

    return drawn


def rgb(colour: str) -> np.ndarray:
    """A colour like #0072B2 as float32 [3], 0 to 255."""
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], np.float32)


def drone_colours(drones: int) -> np.ndarray:
    """One colour per drone, uint8 [N, 3]; they repeat after 21 drones."""
    colours = []
    for number in range(drones):
        hue, tone = rgb(HUES[number % len(HUES)]), TONES[number // len(HUES) % len(TONES)]
        colours.append(hue + abs(tone) * ((255.0 if tone > 0 else 0.0) - hue))
    return np.stack(colours).round().astype(np.uint8)


def is_light(colour: np.ndarray) -> bool:
    """Whether dark letters read better than white ones on a colour [3], 0 to 255."""
    return float(np.asarray(colour, float) @ (0.3, 0.6, 0.1)) > 150


def shade(colour: np.ndarray, heights: Array) -> np.ndarray:
    """Ground of a colour [3] below buildings of heights [...] in metres: uint8 [..., 3].

    The higher the building, the darker; open ground keeps the colour.
    """
    share = np.minimum(np.asarray(heights, np.float32) / TALLEST, 1.0)
    # Low buildings still differ from open ground.
    light = np.where(share > 0, 0.86 - 0.5 * np.sqrt(share), 1.0)
    return (colour * light[..., None]).round().astype(np.uint8)


def trim(episode: Episode) -> Episode:
    """The episode in NumPy arrays, without the padding after its end."""
    episode = jax.tree.map(np.asarray, episode)
    require(
        episode.heights.ndim == 2 and episode.positions.ndim == 3,
        "episode",
        f"positions {episode.positions.shape}",
        "must be one episode, positions [T + 1, N, 3], not a batch of them",
    )
    length = int(episode.length)
    return replace(
        episode,
        positions=episode.positions[: length + 1],
        radii=episode.radii[: length + 1],
        no_fly=episode.no_fly[episode.no_fly[:, 2] > 0],  # others fill up a folder's cities
        coverage=episode.coverage[: length + 1],
        **{
            name: jax.tree.map(lambda leaf: leaf[:length], getattr(episode, name))
            for name in ("actions", "link", "events", "reward")
        },
    )


def coarser(episode: Episode, every: int) -> Episode:
    """The episode with a map of every n-th row and column."""
    maps = ("heights", "coverable", "seen_at")
    return replace(episode, **{name: getattr(episode, name)[::every, ::every] for name in maps})


@dataclass(frozen=True)
class RunningMetrics:
    """What has happened by each step, [T + 1]; counts are drone steps, since the start."""

    coverage: Array  # 0 to 1
    conflicts: np.ndarray
    building_hits: np.ndarray
    violations: np.ndarray

    def caption(self, step: int) -> str:
        """The metrics after `step` steps, in one line."""
        counts = (
            (self.conflicts[step], "conflict"),
            (self.building_hits[step], "building hit"),
            (self.violations[step], "violation"),
        )
        words = [f"{count} {name}{'' if count == 1 else 's'}" for count, name in counts]
        return " · ".join([f"coverage {100 * self.coverage[step]:.1f} %", *words])


def running_metrics(episode: Episode) -> RunningMetrics:
    """The running metrics of a trimmed episode."""

    def running(flags: Array) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(flags.sum(axis=1))])

    events = episode.events
    return RunningMetrics(
        coverage=episode.coverage,
        conflicts=running(events.conflict),
        building_hits=running(events.building_hit),
        violations=running(events.violation),
    )


def wind_words(wind: Array) -> str:
    """Speed of a wind [2] (m/s along x and y) and where it blows to."""
    speed = float(np.hypot(*wind))
    if speed < CALM:
        return "no wind"
    names = ("E", "SE", "S", "SW", "W", "NW", "N", "NE")
    octant = round(float(np.arctan2(wind[1], wind[0]) / (np.pi / 4))) % 8
    return f"wind {speed:.1f} m/s to {names[octant]}"
