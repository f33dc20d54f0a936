"""The symmetries of the grid, as tables of what they do to observations and actions.

Turned or mirrored, a swarm's world is another world of the same kind: the agents see the same
numbers in other places, some with the other sign, and head elsewhere. A policy may therefore see
the world from all these sides and act on what it makes of all of them.

One thing does not turn with the world: coarse blocks begin in the north-western corner.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxqmix.config import EnvConfig
from jaxqmix.env.observation import LOOKAHEAD_MOVES, agent_features, groups, seen_features
from jaxqmix.types import ACTIONS, DIRECTIONS, HEADINGS, Symmetries

COMPASS = DIRECTIONS[:HEADINGS, :2]
"""Directions x, y of the headings."""
TURN = np.array([(0, -1), (1, 0)])
"""A quarter turn, from north to east."""
MIRROR = np.array([(-1, 0), (0, 1)])
"""West becomes east."""


def matrices() -> list[np.ndarray]:
    """Four turns, then each of them mirrored: [2, 2] each, the first changes nothing."""
    turns = [np.linalg.matrix_power(TURN, quarter) for quarter in range(4)]
    return turns + [MIRROR @ turn for turn in turns]


def symmetries(config: EnvConfig) -> Symmetries:
    """What each symmetry does to an agent's observation [D] and to the actions [A].

    A square city has eight, a longer one the four without a quarter turn.
    """
    square = config.rows == config.columns
    tables = [one_symmetry(m, config) for m in matrices() if square or m[0, 0] != 0]
    # In NumPy: programs take them as constants.
    columns: Any = (np.stack(column) for column in zip(*tables, strict=True))
    return Symmetries(*columns)


def one_symmetry(matrix: np.ndarray, config: EnvConfig) -> tuple[np.ndarray, ...]:
    """The row of `Symmetries` for a matrix [2, 2]: source, sign, offset, actions."""
    features = agent_features(config)
    source, sign, offset = np.arange(features), np.ones(features), np.zeros(features)
    headings = moved_headings(matrix)

    def turn_headings(first: int) -> None:
        source[first + headings] = first + np.arange(HEADINGS)

    def turn_vector(first: int, middle: float = 0.0) -> None:
        for axis, row in enumerate(matrix):
            (other,) = np.flatnonzero(row)
            source[first + axis], sign[first + axis] = first + other, row[other]
            offset[first + axis] = middle * (1 - row[other])

    for name, where in groups(config).items():
        first, size = where.start, where.stop - where.start
        if name == "pose":
            turn_vector(first, middle=0.5)  # the place in the city, from 0 to 1
            turn_vector(first + 4)
        elif name == "weather":
            turn_vector(first)
        elif name in ("last_action", "available", "repeat"):
            turn_headings(first)
        elif name in ("gain", "growth"):
            turn_headings(first)
            for index in range(len(LOOKAHEAD_MOVES)):
                turn_headings(first + len(ACTIONS) + index * HEADINGS)
        elif name == "teammates":
            for vector in range(first, where.stop, 6):
                turn_vector(vector)
                turn_vector(vector + 4)
        elif name == "obstacles" or name.startswith(("unseen_", "own_", "team_")):
            source[where] = first + moved_grid(matrix, round(size**0.5))
        else:
            assert name in ("link", "mission"), name
    offset[~seen_features(config)] = 0  # what is blanked stays blank
    actions = np.concatenate([headings, np.arange(HEADINGS, len(ACTIONS))])
    return source, sign.astype(np.float32), offset.astype(np.float32), actions


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
