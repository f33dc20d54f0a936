"""The symmetries of the grid, as tables of what they do to observations and actions.

Turned or mirrored, a swarm's world is another world of the same kind: the agents see the same
numbers in other places, some with the other sign, and head elsewhere. A policy may therefore see
the world from all these sides and act on what it makes of all of them.

What does not turn with the world: coarse blocks begin in the north-western corner; of teammates
as near, the western or northern one comes first; and where cells are smaller than 19 m, the windows
of the look-ahead reach a cell further to the north and west.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from jaxqmix.types import ACTIONS, DIRECTIONS, HEADINGS, Symmetries

COMPASS = DIRECTIONS[:HEADINGS, :2]
"""Directions x, y of the headings."""
TURN = np.array([(0, -1), (1, 0)])
"""A quarter turn, from north to east."""
MIRROR = np.array([(-1, 0), (0, 1)])
"""West becomes east."""


class Turn(Protocol):
    """How some numbers of a feature turn with the world."""

    def turn(
        self, matrix: np.ndarray, source: np.ndarray, sign: np.ndarray, offset: np.ndarray
    ) -> None:
        """Fills in what one symmetry, a matrix [2, 2], does to a feature's numbers [size]: they
        become `sign * numbers[source] + offset`. At first they stay."""
        ...


@dataclasses.dataclass(frozen=True)
class Headings:
    """Four numbers from `first` on, one for each heading."""

    first: int

    def turn(
        self, matrix: np.ndarray, source: np.ndarray, sign: np.ndarray, offset: np.ndarray
    ) -> None:
        """They change places."""
        source[self.first + moved_headings(matrix)] = self.first + np.arange(HEADINGS)


@dataclasses.dataclass(frozen=True)
class Vector:
    """Two numbers from `first` on, along x and y, around a `middle`."""

    first: int
    middle: float = 0.0

    def turn(
        self, matrix: np.ndarray, source: np.ndarray, sign: np.ndarray, offset: np.ndarray
    ) -> None:
        """They change places and signs."""
        for axis, row in enumerate(matrix):
            (other,) = np.flatnonzero(row)
            source[self.first + axis], sign[self.first + axis] = self.first + other, row[other]
            offset[self.first + axis] = self.middle * (1 - row[other])


@dataclasses.dataclass(frozen=True)
class Grid:
    """All numbers, a square map around the drone, row by row."""

    def turn(
        self, matrix: np.ndarray, source: np.ndarray, sign: np.ndarray, offset: np.ndarray
    ) -> None:
        """The map turns."""
        source[:] = moved_grid(matrix, round(len(source) ** 0.5))


def matrices() -> list[np.ndarray]:
    """Four turns, then each of them mirrored: [2, 2] each, the first changes nothing."""
    turns = [np.linalg.matrix_power(TURN, quarter) for quarter in range(4)]
    return turns + [MIRROR @ turn for turn in turns]


def turned_tables(features: Sequence[tuple[int, Sequence[Turn]]], square: bool) -> Symmetries:
    """What each symmetry does to features side by side, given as sizes and turns.

    Args:
      features: in the order of the agents' vector [D].
      square: whether a quarter turn leaves the city as it is.
    """
    tables = [one_symmetry(m, features) for m in matrices() if square or m[0, 0] != 0]
    # In NumPy: programs take them as constants.
    columns: Any = (np.stack(column) for column in zip(*tables, strict=True))
    return Symmetries(*columns)


def one_symmetry(
    matrix: np.ndarray, features: Sequence[tuple[int, Sequence[Turn]]]
) -> tuple[np.ndarray, ...]:
    """The row of `Symmetries` for a matrix [2, 2]: source, sign, offset, actions."""
    sources, signs, offsets, start = [], [], [], 0
    for size, turns in features:
        source, sign, offset = np.arange(size), np.ones(size), np.zeros(size)
        for part in turns:
            part.turn(matrix, source, sign, offset)
        sources.append(start + source)
        signs.append(sign)
        offsets.append(offset)
        start += size
    actions = np.concatenate([moved_headings(matrix), np.arange(HEADINGS, len(ACTIONS))])
    return (
        np.concatenate(sources),
        np.concatenate(signs).astype(np.float32),
        np.concatenate(offsets).astype(np.float32),
        actions,
    )


def moved_headings(matrix: np.ndarray) -> np.ndarray:
    """The heading [4] that each heading becomes."""
    moved = COMPASS @ matrix.T
    return np.argmax((moved[:, None] == COMPASS).all(axis=-1), axis=1)


def moved_grid(matrix: np.ndarray, side: int) -> np.ndarray:
    """For each place of a flat grid [side^2] of rows and columns, the place it is filled from."""
    middle = (side - 1) / 2
    y, x = np.mgrid[:side, :side] - middle
    # The inverse of an orthogonal matrix is its transpose.
    from_x, from_y = np.einsum("ji,jrc->irc", matrix, np.stack([x, y]))
    rows, columns = np.rint(from_y + middle), np.rint(from_x + middle)
    return (rows * side + columns).astype(int).reshape(-1)
