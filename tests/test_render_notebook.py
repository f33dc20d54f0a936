"""Pictures inside a notebook, and the drawing of an observation."""

from __future__ import annotations

import base64
import dataclasses
import html
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CITY_BLOCK, ROUGH
from test_render import CELL, small_episode

import jaxqmix
from jaxqmix.config import ConfigError, EnvConfig
from jaxqmix.env.features import Feature
from jaxqmix.env.observation import feature_slices
from jaxqmix.render import render
from jaxqmix.render.observation import bars_and_moves, draw_observation


def test_no_exported_name_is_a_module_too():
    """Importing the module would hide the name."""
    folder = Path(jaxqmix.__file__).parent
    modules = {path.stem for path in folder.iterdir()}
    assert not modules & set(jaxqmix.__all__)
    assert all(getattr(jaxqmix, name) is not None for name in jaxqmix.__all__)


def test_a_replay_is_a_page_inside_the_page(tmp_path):
    title = '<i>Policy "1" & Co</i>'
    shown = jaxqmix.show(small_episode(), cell_size=CELL, title=title)
    out = render(small_episode(), tmp_path / "x.html", cell_size=CELL, title=title)
    start = '<div><iframe srcdoc="'
    content = shown.data["text/html"]
    assert content.startswith(start) and 'sandbox="allow-scripts ' in content
    page = content[len(start) : content.index('"', len(start))]
    assert html.unescape(page) == out.read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["html", "gif", "png"])
def test_every_kind_has_a_picture_for_readers_without_scripts(kind):
    """Static pages show HTML with the whole GIF in it; everything else shows the PNG."""
    title = '"><b>Policy</b>'
    shown = jaxqmix.show(small_episode(), cell_size=CELL, kind=kind, title=title)
    bundle = shown._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    assert set(bundle) == ({"image/png"} if kind == "png" else {"image/png", "text/html"})
    assert len(bundle["image/png"]) < 20_000 or kind == "png"
    if kind == "gif":
        content = re.fullmatch(
            r'<img src="data:image/gif;base64,([\w+/=]+)" alt="([^"<>]+)">', bundle["text/html"]
        )
        assert base64.b64decode(content[1]).startswith(b"GIF89a")
        assert html.unescape(content[2]) == title


def test_show_refuses_other_kinds():
    with pytest.raises(ConfigError, match="kind = mp4 is not allowed: must be one of html"):
        jaxqmix.show(small_episode(), cell_size=CELL, kind="mp4")


@pytest.mark.parametrize("config", [CITY_BLOCK, EnvConfig(neighbours=0)])
def test_an_observation_is_drawn_whole(config):
    table = feature_slices(config)
    about_itself, about_moves = bars_and_moves(config)
    labels = {feature.name for feature in (*about_itself, *about_moves)}
    vector = np.linspace(-1, 1, list(table.values())[-1].stop)
    figure = draw_observation(vector, config)
    bars, moves, *others = figure.axes
    widths = [bar.get_width() for bar in bars.patches]
    np.testing.assert_allclose(
        widths, np.concatenate([vector[table[f.name]] for f in about_itself])
    )
    columns = np.asarray(moves.images[0].get_array()).T
    for column, feature in zip(columns, about_moves, strict=True):
        np.testing.assert_allclose(column[: feature.size], vector[table[feature.name]])
    smallest = min(text.get_fontsize() for axes in (bars, moves) for text in axes.get_yticklabels())
    assert smallest >= 9
    drawn = {axes.get_title().split(" (")[0]: axes for axes in others if axes.images}
    assert set(drawn) == set(table) - labels - {"teammates"}
    for name, axes in drawn.items():
        cells = np.asarray(axes.images[0].get_array()).ravel()
        scale = 100 if name == "obstacles" else 1
        np.testing.assert_allclose(cells, scale * vector[table[name]])
    with pytest.raises(ConfigError, match=r"vector = \(3,\) is not allowed"):
        draw_observation(np.zeros(3), config)


def test_teammates_are_marked_where_they_are():
    config = dataclasses.replace(CITY_BLOCK, drones=3)
    table = feature_slices(config)
    vector = np.zeros(list(table.values())[-1].stop)
    offset = np.array([[60.0, -40.0], [-20.0, 100.0]]) / (2 * config.max_footprint)
    nearest = vector[table["teammates"]].reshape(-1, 6)  # a view
    nearest[:, :2], nearest[:, 3] = np.tanh(offset), (1, 0)
    axes = draw_observation(vector, config).axes
    density = next(part for part in axes if part.get_title().startswith("team_density"))
    here, teammates = (line.get_xydata() for line in density.lines)
    np.testing.assert_allclose(here, [[0, 0]])
    np.testing.assert_allclose(teammates, [[60, -40]], rtol=1e-5)


def test_far_teammates_are_not_marked_in_a_false_place():
    config = dataclasses.replace(CITY_BLOCK, drones=3)
    table = feature_slices(config)
    vector = np.zeros(list(table.values())[-1].stop)
    nearest = vector[table["teammates"]].reshape(-1, 6)  # a view
    nearest[0] = (1.0, 0.1, 0, 1, 0, 0)  # somewhere far in the east
    axes = draw_observation(vector, config).axes
    density = next(part for part in axes if part.get_title().startswith("team_density"))
    assert len(density.lines[1].get_xydata()) == 0


def test_features_of_ones_own_are_drawn_with_their_own_units():
    own = [Feature(f"own_{n}", 1, lambda seen: 0, "mine", "m", labels=("a",)) for n in range(6)]
    grid = Feature("own_map", 9, lambda seen: 0, "mine", "apples", block=3)
    size = list(feature_slices(CITY_BLOCK).values())[-1].stop
    vector = np.concatenate([np.zeros(size + 6), np.linspace(-3, 5, 9)])
    figure = draw_observation(vector, CITY_BLOCK, (*own, grid))
    assert "apples" in [axes.get_ylabel() for axes in figure.axes]


def test_a_recorder_flies_in_the_chosen_world():
    config = dataclasses.replace(jaxqmix.preset("quick"), env=CITY_BLOCK, domain=ROUGH)
    loaded = jaxqmix.scripted("random", config)
    fly = jaxqmix.recorder(loaded)
    params = loaded.env.draw_params(jax.random.key(0))
    perfect = dataclasses.replace(params, packet_loss=jnp.float32(0), delay=jnp.float32(0))
    broken = dataclasses.replace(params, packet_loss=jnp.float32(1), wind=jnp.array([3.0, 4.0]))
    first, second = fly(perfect, 5), fly(broken, 5)
    assert not first.link.any() and second.link[: second.length].all()
    np.testing.assert_array_equal(second.wind, [3, 4])
    np.testing.assert_array_equal(first.heights, second.heights)
    assert (first.heights != fly(perfect, 6).heights).any()
