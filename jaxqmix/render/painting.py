"""Frames of an animation as arrays of palette indices, painted with Pillow and NumPy.

One palette serves every frame of every episode, so that an animation needs no quantisation and
unchanged pixels stay equal from frame to frame.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxqmix.render import scene
from jaxqmix.types import DELAYED, LOST, Episode

LEVELS = 12
"""Shades of building height per kind of ground."""
GROUNDS = (scene.UNSEEN, scene.SEEN, scene.LOOKED_AT, scene.HIDDEN)
UNSEEN_SHADES, SEEN_SHADES, LOOKED_AT_SHADES, HIDDEN_SHADES = (LEVELS * kind for kind in range(4))
"""First palette index of each kind of ground."""
INKS = 12
FIRST_INK = 4 * LEVELS
"""Palette indices from paper to ink, for smooth letters."""
PAPER, GREY, INK = FIRST_INK, FIRST_INK + 4, FIRST_INK + INKS - 1
CONFLICT, BUILDING_HIT, VIOLATION, NO_FLY = range(FIRST_INK + INKS, FIRST_INK + INKS + 4)
FIRST_DRONE = NO_FLY + 1
DRONES = scene.COLOURS
COLOURS = FIRST_DRONE + DRONES
NOTHING = 255
"""Marks a pixel that an overlay leaves as it is."""

HEADER, FOOTER, MARGIN = 44, 48, 8
"""Pixels above and below the maps, and around them."""
FIGURES_WIDTH, KEY_WIDTH = 400, 484
"""Pixels that the line of metrics and the key are wide at most."""
DISC, BADGE = 7, 4
"""Radii in pixels of a drone and of the badge that tells of its link."""
RECENT = 12
"""Steps of the trail that are drawn thick, and for which a mishap stays enlarged."""


def palette() -> np.ndarray:
    """The colours of all palette indices, uint8 [COLOURS, 3]."""
    colours = np.zeros((COLOURS, 3), np.uint8)
    heights = np.linspace(0, scene.TALLEST, LEVELS)
    for kind, ground in enumerate(GROUNDS):
        colours[kind * LEVELS : (kind + 1) * LEVELS] = scene.shade(scene.rgb(ground), heights)
    share = np.linspace(0, 1, INKS)[:, None]
    inks = (1 - share) * scene.rgb(scene.PAPER) + share * scene.rgb(scene.INK)
    colours[FIRST_INK : FIRST_INK + INKS] = inks.round()
    marks = (scene.CONFLICT, scene.BUILDING_HIT, scene.VIOLATION, scene.NO_FLY)
    colours[CONFLICT : NO_FLY + 1] = [scene.rgb(mark) for mark in marks]
    colours[FIRST_DRONE:] = scene.drone_colours(DRONES)
    return colours


@functools.cache
def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


@functools.lru_cache(maxsize=512)
def _letters(words: str, size: int, ink: int) -> np.ndarray:
    """A line of text on paper as palette indices, [height, width]."""
    from PIL import Image, ImageDraw

    left, _, right, _ = _font(size).getbbox(words)
    image = Image.new("L", (max(1, round(right - left) + 1), size + 5), 0)
    ImageDraw.Draw(image).text((-left, 0), words, fill=255, font=_font(size))
    return (PAPER + np.asarray(image, np.float32) / 255 * (ink - PAPER)).round().astype(np.uint8)


def write(frame: np.ndarray, x: int, y: int, words: str, size: int = 13, ink: int = INK) -> int:
    """Writes a line of text at a pixel of a frame, cut at its right end; returns where it ends."""
    letters = _letters(words, size, ink)[:, : max(0, frame.shape[1] - x)]
    frame[y : y + letters.shape[0], x : x + letters.shape[1]] = letters
    return x + letters.shape[1]


class Panel:
    """One episode's map, header and key; `paint` must be called with growing steps."""

    def __init__(self, episode: Episode, title: str, cell_size: float, side: int) -> None:
        """Prepares what stays the same; `side` is the wished length of the longer side, pixels."""
        from PIL import Image, ImageDraw

        self.episode, self.title = episode, title
        self.metrics = scene.running_metrics(episode)
        self.length = int(episode.length)
        self.cell = max(1, side // max(episode.heights.shape))
        self.scale = self.cell / cell_size
        rows, columns = episode.heights.shape
        self.map = (rows * self.cell, columns * self.cell)
        share = np.minimum(episode.heights / scene.TALLEST, 1.0)
        # Any building is at least one level darker than open ground.
        self.level = np.ceil(share * (LEVELS - 1)).astype(np.uint8)
        self.places = np.round(episode.positions[..., :2] * self.scale).astype(int)
        # Hatched, so that nobody needs the colour to tell it from what is not seen yet.
        row, column = np.ogrid[: self.map[0], : self.map[1]]
        hidden = np.repeat(np.repeat(~episode.coverable, self.cell, axis=0), self.cell, axis=1)
        self.hatch = hidden & ((row + column) % 6 == 0)
        self.overlay = Image.new("L", self.map[::-1], NOTHING)
        self.pen = ImageDraw.Draw(self.overlay)
        self._draw_no_fly()
        self.drawn = 0

    def _draw_no_fly(self) -> None:
        from PIL import Image

        for x, y, radius, ceiling in (self.episode.no_fly * self.scale).tolist():
            box = [x - radius, y - radius, x + radius, y + radius]
            dashes = max(8, int(radius / 3))
            for dash in range(dashes):
                angle = 360 * dash / dashes
                self.pen.arc(box, angle, angle + 200 / dashes, fill=NO_FLY, width=2)
            label = Image.fromarray(_letters(f" < {ceiling / self.scale:.0f} m ", 12, INK))
            self.overlay.paste(label, (round(x) - label.width // 2, round(y) - label.height // 2))

    def paint(self, step: int) -> np.ndarray:
        """The map after `step` steps, palette indices uint8 [map height, map width]."""
        from PIL import Image, ImageDraw

        self._extend_trails(step)
        frame = self._ground(step)
        overlay = np.asarray(self.overlay)
        np.copyto(frame, overlay, where=overlay != NOTHING)
        image = Image.fromarray(frame)
        pen = ImageDraw.Draw(image)
        pen.fontmode = "1"
        self._draw_mishaps(pen, step)
        for drone in range(self.places.shape[1]):
            self._draw_drone(pen, step, drone)
        return np.array(image)

    def _ground(self, step: int) -> np.ndarray:
        seen_at = self.episode.seen_at
        kind = np.where(self.episode.coverable, UNSEEN_SHADES, HIDDEN_SHADES).astype(np.uint8)
        kind[(seen_at >= 0) & (seen_at <= step)] = SEEN_SHADES
        cells = self.level + kind
        frame = np.repeat(np.repeat(cells, self.cell, axis=0), self.cell, axis=1)
        frame[self.hatch] = GREY + 3
        for (x, y), radius in zip(
            self.places[step], self.episode.radii[step] * self.scale, strict=True
        ):
            reach = int(radius) + 1
            part = frame[
                max(0, y - reach) : max(0, y + reach + 1), max(0, x - reach) : max(0, x + reach + 1)
            ]
            top, left = max(0, y - reach) - y, max(0, x - reach) - x
            down, right = np.ogrid[top : top + part.shape[0], left : left + part.shape[1]]
            lit = (
                (down**2 + right**2 <= radius**2)
                & (part >= SEEN_SHADES)
                & (part < LOOKED_AT_SHADES)
            )
            part[lit] += LOOKED_AT_SHADES - SEEN_SHADES
        return frame

    def _extend_trails(self, step: int) -> None:
        for drone in range(self.places.shape[1]):
            trail = self.places[self.drawn : step + 1, drone]
            if len(trail) > 1:
                self.pen.line(
                    [tuple(place) for place in trail.tolist()], fill=self._colour(drone), width=1
                )
        self.drawn = step

    def _draw_mishaps(self, pen: Any, step: int) -> None:
        events = self.episode.events
        for flags, colour in (
            (events.building_hit, BUILDING_HIT),
            (events.violation, VIOLATION),
            (events.conflict, CONFLICT),
        ):
            for when, drone in np.argwhere(flags[:step]).tolist():
                x, y = self.places[when + 1, drone].tolist()
                reach = 7 if step - when <= RECENT else 3
                width = 4 if reach > 3 else 2
                pen.line([x - reach, y - reach, x + reach, y + reach], fill=colour, width=width)
                pen.line([x - reach, y + reach, x + reach, y - reach], fill=colour, width=width)

    def _draw_drone(self, pen: Any, step: int, drone: int) -> None:
        colour = self._colour(drone)
        recent = self.places[max(0, step - RECENT) : step + 1, drone]
        if len(recent) > 1:
            pen.line([tuple(place) for place in recent.tolist()], fill=colour, width=3)
        x, y = self.places[step, drone].tolist()
        radius = float(self.episode.radii[step, drone]) * self.scale
        pen.ellipse([x - radius, y - radius, x + radius, y + radius], outline=colour)
        link = int(self.episode.link[step - 1, drone]) if step else None
        draw_drone(pen, x, y, drone, link)

    def _colour(self, drone: int) -> int:
        return FIRST_DRONE + drone % DRONES


def draw_drone(pen: Any, x: float, y: float, drone: int, link: int | None) -> None:
    """A disc with the drone's number, counted from 1, and a badge when a command failed."""
    fill = scene.drone_colours(drone + 1)[drone]
    box = [x - DISC, y - DISC, x + DISC, y + DISC]
    pen.ellipse(box, fill=FIRST_DRONE + drone % DRONES, outline=PAPER)
    words = str(drone + 1)
    ink, size = INK if scene.is_light(fill) else PAPER, 11 if len(words) == 1 else 9
    pen.text((x + 0.5, y + 0.5), words, fill=ink, font=_font(size), anchor="mm")
    draw_link(pen, x + DISC, y - DISC, link)


def draw_link(pen: Any, x: float, y: float, link: int | None) -> None:
    """A white badge with a cross when the last command was lost, half dark when it was late."""
    box = [x - BADGE, y - BADGE, x + BADGE, y + BADGE]
    if link == LOST:
        pen.ellipse(box, fill=PAPER, outline=INK)
        pen.line([x - 2, y - 2, x + 2, y + 2], fill=INK)
        pen.line([x - 2, y + 2, x + 2, y - 2], fill=INK)
    elif link == DELAYED:
        pen.ellipse(box, fill=PAPER, outline=INK)
        pen.pieslice(box, 90, 270, fill=INK)


class Sheet:
    """Whole frames: header and map of every panel, and one key; sides are even numbers."""

    def __init__(self, panels: list[Panel]) -> None:
        """Lays the panels out side by side and draws what never changes."""
        self.panels = panels
        # Figures above a narrow map, and the key below all maps, need their room.
        least = max(FIGURES_WIDTH, -(-KEY_WIDTH // len(panels)))
        self.widths = [max(panel.map[1], least) for panel in panels]
        tallest = max(panel.map[0] for panel in panels)
        height = HEADER + tallest + FOOTER
        width = sum(self.widths) + MARGIN * (len(panels) + 1)
        self.blank = np.full((height + height % 2, width + width % 2), PAPER, np.uint8)
        _write_key(self.blank[HEADER + tallest :, MARGIN:], panels)

    def paint(self, step: int, last: int) -> np.ndarray:
        """The frame after `step` of `last` steps, palette indices uint8 [height, width]."""
        frame = self.blank.copy()
        left = MARGIN
        for panel, wide in zip(self.panels, self.widths, strict=True):
            now = min(step, panel.length)
            part = frame[:, left : left + wide]
            words = f"{panel.title} · " if panel.title else ""
            end = write(part, 0, 3, f"{words}step {now} of {panel.length}", 16)
            _write_right(part, 6, scene.wind_words(panel.episode.wind), 12, end + 8)
            write(part, 0, 23, panel.metrics.caption(now), 13, INK - 3)
            rows, columns = panel.map
            start = (wide - columns) // 2
            part[HEADER : HEADER + rows, start : start + columns] = panel.paint(now)
            left += wide + MARGIN
        frame[-3:, :] = GREY
        frame[-3:, : round(frame.shape[1] * step / max(last, 1))] = FIRST_DRONE
        return frame


def _write_key(strip: np.ndarray, panels: list[Panel]) -> None:
    """Writes what colours and marks mean into the strip below the maps, in place."""
    from PIL import Image, ImageDraw

    image = Image.fromarray(np.ascontiguousarray(strip))
    pen = ImageDraw.Draw(image)
    places = []

    def entry(x: int, y: int, words: str, draw: Callable[[int, int], None]) -> int:
        draw(x + 7, y + 8)
        places.append((x + 18, y, words))
        return x + 28 + _letters(words, 12, INK).shape[1]

    def swatch(colour: int, hatch: bool = False) -> Callable[[int, int], None]:
        def draw(x: int, y: int) -> None:
            pen.rectangle([x - 7, y - 5, x + 7, y + 5], fill=colour, outline=GREY)
            for left in range(x - 4, x + 6, 5) if hatch else ():
                pen.line([left - 3, y + 4, left + 3, y - 4], fill=GREY + 3)

        return draw

    def cross(colour: int) -> Callable[[int, int], None]:
        def draw(x: int, y: int) -> None:
            pen.line([x - 4, y - 4, x + 4, y + 4], fill=colour, width=3)
            pen.line([x - 4, y + 4, x + 4, y - 4], fill=colour, width=3)

        return draw

    def zone(x: int, y: int) -> None:
        for angle in range(0, 360, 60):
            pen.arc([x - 6, y - 6, x + 6, y + 6], angle, angle + 36, fill=NO_FLY, width=2)

    x, y = 0, 4
    x = entry(x, y, "seen", swatch(SEEN_SHADES))
    x = entry(x, y, "not seen", swatch(UNSEEN_SHADES))
    x = entry(x, y, "in sight", swatch(LOOKED_AT_SHADES))
    if any(panel.hatch.any() for panel in panels):
        x = entry(x, y, "cannot be seen", swatch(HIDDEN_SHADES, hatch=True))
    if any(len(panel.episode.no_fly) for panel in panels):
        entry(x, y, "no-fly zone", zone)
    x, y = 0, 24
    x = entry(x, y, "lost command", lambda x, y: draw_link(pen, x, y, LOST))
    x = entry(x, y, "late", lambda x, y: draw_link(pen, x, y, DELAYED))
    x = entry(x, y, "conflict", cross(CONFLICT))
    x = entry(x, y, "building", cross(BUILDING_HIT))
    x = entry(x, y, "violation", cross(VIOLATION))
    strip[:] = np.asarray(image)
    for start, top, words in places:
        write(strip, start, top, words, 12)


def _write_right(frame: np.ndarray, y: int, words: str, size: int, least: int) -> None:
    """Writes a line that ends at the right of a frame, unless it would begin before `least`."""
    start = frame.shape[1] - _letters(words, size, INK - 3).shape[1]
    if start > least:
        write(frame, start, y, words, size, INK - 3)
