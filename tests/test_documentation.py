"""What `help()` says of the public classes: every field, with its shape and unit."""

from __future__ import annotations

import dataclasses
import pydoc
import re
from pathlib import Path

import pytest

import jaxqmix
from jaxqmix import types
from jaxqmix.documentation import documented
from jaxqmix.env.urban_grid import UrbanGrid
from jaxqmix.types import Observation

WORDS = {
    jaxqmix.EnvConfig: ["city_width: Extent of the city along x, metres.", "15", "m/s"],
    jaxqmix.DomainConfig: [
        "wind_speed: Steady wind, m/s",
        "metres",
        "reward: Weights of the reward terms",
    ],
    jaxqmix.RunConfig: ["preset: Name of the preset", "env: What decides the shapes of"],
    types.EnvParams: ["wind: [2] steady wind along x and y, m/s", "packet_loss: [] probability"],
    types.State: ["position: [N, 3] float32, x, y, altitude, m", "[N, A]"],
    types.Observation: ["agents: [N, D] float32", "available: [N, A] bool"],
    types.Timestep: [
        "terminated: [] bool, the mission is complete",
        "metrics: of the world; `UrbanGrid`: see `UrbanGrid.step`",
    ],
    types.Episode: ["positions: [T + 1, N, 3] float32, m", "wind: [2] float32, m/s"],
    UrbanGrid: ["actions: [N] whole numbers", "metres", "agents [N, D]"],
}


@pytest.mark.parametrize("kind", WORDS, ids=lambda kind: kind.__name__)
def test_help_tells_shapes_and_units(kind):
    text = pydoc.render_doc(kind, renderer=pydoc.plaintext)
    for words in WORDS[kind]:
        assert words in text
    if kind is not UrbanGrid:
        for field in dataclasses.fields(kind):
            assert re.search(rf"^ \|    {field.name}: \S", text, re.MULTILINE), field.name


def test_words_come_from_below_or_beside_a_field():
    @documented
    class Thing:
        """A thing."""

        below: int = 1
        """A number,
        in metres."""
        beside: float = 2.0  # [] float32, m
        record: Observation = "#"
        bare: bytes | None = None

        def method(self):
            """No field."""

    assert Thing.__doc__ == "\n".join(
        (
            "A thing.",
            "",
            "Attributes:",
            "  below: A number, in metres.",
            "  beside: [] float32, m",
            "  record: What the agents and the mixer see.",
            "  bare: bytes | None",
        )
    )
    assert Thing().__doc__ == Thing.__doc__


def test_a_class_without_source_keeps_its_docstring():
    names = {"documented": documented}
    exec('@documented\nclass Thing:\n    """A thing."""\n    x: int = 1', names)
    assert names["Thing"].__doc__ == "A thing."


def test_the_package_names_everything_public():
    for name in jaxqmix.__all__:
        assert re.search(rf"\b{name}\b", jaxqmix.__doc__), name


def test_advice_to_install_works_from_a_checkout():
    """As long as no release is published, `pip install "jaxqmix[wandb]"` finds nothing."""
    files = sorted(Path(jaxqmix.__file__).parent.rglob("*.py"))
    assert [file.name for file in files if "jaxqmix[" in file.read_text(encoding="utf-8")] == []
