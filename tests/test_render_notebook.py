"""Pictures inside a notebook, and the drawing of an observation."""

from __future__ import annotations

import builtins
import dataclasses
import html
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CITY_BLOCK, ROUGH
from test_render import CELL, small_episode

import jaxqmix
from jaxqmix.config import ConfigError, EnvConfig
from jaxqmix.env.observation import groups
from jaxqmix.render import render
from jaxqmix.render.observation import NUMBERS, draw_observation


def test_no_exported_name_is_a_module_too():
    """Importing the module would hide the name."""
    folder = Path(jaxqmix.__file__).parent
    modules = {path.stem for path in folder.iterdir()}
    assert not modules & set(jaxqmix.__all__)
    assert all(getattr(jaxqmix, name) is not None for name in jaxqmix.__all__)


def test_a_replay_is_a_page_inside_the_page(tmp_path):
    pytest.importorskip("IPython", reason="needs IPython (pip install ipykernel)")
    title = '<i>Policy "1" & Co</i>'
    shown = jaxqmix.show(small_episode(), cell_size=CELL, title=title)
    out = render(small_episode(), tmp_path / "x.html", cell_size=CELL, title=title)
    start = '<div><iframe srcdoc="'
    assert shown.data.startswith(start) and 'sandbox="allow-scripts ' in shown.data
    page = shown.data[len(start) : shown.data.index('"', len(start))]
    assert html.unescape(page) == out.read_text(encoding="utf-8")


@pytest.mark.parametrize(("kind", "first"), [("gif", b"GIF89a"), ("png", b"\x89PNG")])
def test_pictures_are_shown_as_they_are_rendered(kind, first):
    pytest.importorskip("IPython", reason="needs IPython (pip install ipykernel)")
    shown = jaxqmix.show(small_episode(), cell_size=CELL, kind=kind)
    assert shown.data.startswith(first) and shown.format == kind


def test_show_refuses_other_kinds_and_says_what_is_missing(monkeypatch):
    with pytest.raises(ConfigError, match="kind = mp4 is not allowed: must be one of html"):
        jaxqmix.show(small_episode(), cell_size=CELL, kind="mp4")
    real = builtins.__import__

    def refuse(name, *args, **options):
        if name == "IPython":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match=r'pip install "jaxqmix\[notebooks\]"'):
        jaxqmix.show(small_episode(), cell_size=CELL)


@pytest.mark.parametrize("config", [CITY_BLOCK, EnvConfig(neighbours=0)])
def test_an_observation_is_drawn_whole(config):
    table = groups(config)
    for name, labels in NUMBERS.items():
        assert table[name].stop - table[name].start == len(labels), name
    vector = np.linspace(-1, 1, list(table.values())[-1].stop)
    figure = draw_observation(vector, config)
    bars, *others = figure.axes
    widths = [bar.get_width() for bar in bars.patches]
    np.testing.assert_allclose(widths, np.concatenate([vector[table[name]] for name in NUMBERS]))
    drawn = {axes.get_title().split(" (")[0]: axes for axes in others if axes.images}
    assert set(drawn) == set(table) - set(NUMBERS) - {"teammates"}
    for name, axes in drawn.items():
        cells = np.asarray(axes.images[0].get_array()).ravel()
        scale = 100 if name == "obstacles" else 1
        np.testing.assert_allclose(cells, scale * vector[table[name]])
    with pytest.raises(ConfigError, match=r"vector = \(3,\) is not allowed"):
        draw_observation(np.zeros(3), config)


def test_teammates_are_marked_where_they_are():
    config = dataclasses.replace(CITY_BLOCK, drones=3)
    table = groups(config)
    vector = np.zeros(list(table.values())[-1].stop)
    offset = np.array([[60.0, -40.0], [-20.0, 100.0]]) / (2 * config.max_footprint)
    nearest = vector[table["teammates"]].reshape(-1, 6)  # a view
    nearest[:, :2], nearest[:, 3] = np.tanh(offset), (1, 0)
    axes = draw_observation(vector, config).axes
    density = next(part for part in axes if part.get_title().startswith("team_density"))
    here, teammates = (line.get_xydata() for line in density.lines)
    np.testing.assert_allclose(here, [[0, 0]])
    np.testing.assert_allclose(teammates, [[60, -40]], rtol=1e-5)


def test_a_recorder_flies_in_the_chosen_world():
    config = dataclasses.replace(jaxqmix.preset("quick"), env=CITY_BLOCK, domain=ROUGH)
    flyer = jaxqmix.scripted("random", config)
    fly = jaxqmix.recorder(flyer)
    params = flyer.env.draw_params(jax.random.key(0))
    perfect = dataclasses.replace(params, packet_loss=jnp.float32(0), delay=jnp.float32(0))
    broken = dataclasses.replace(params, packet_loss=jnp.float32(1), wind=jnp.array([3.0, 4.0]))
    first, second = fly(perfect, 5), fly(broken, 5)
    assert not first.link.any() and second.link[: second.length].all()
    np.testing.assert_array_equal(second.wind, [3, 4])
    np.testing.assert_array_equal(first.heights, second.heights)
    assert (first.heights != fly(perfect, 6).heights).any()
