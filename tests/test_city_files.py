"""Flights over literal cities: city files, folders of them, and what is refused in one line."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxqmix
from jaxqmix import cli, runner
from jaxqmix.checkpoints import CheckpointError, check_settings
from jaxqmix.config import ConfigError, EnvConfig, from_dict, to_dict
from jaxqmix.maps import CityMap, load_map, with_city, without_city
from jaxqmix.maps.citymap import checksum, metres_per_degree, to_degrees, to_metres
from jaxqmix.presets import preset

SMALL = EnvConfig(drones=2, horizon=10, neighbours=1)


def hand_made(tall: int = 90, zones: int = 1) -> CityMap:
    """11 x 14 cells with a low and a high building."""
    heights = np.zeros((11, 14), np.uint8)
    heights[2:4, 5:9], heights[7, 10:12] = 15, tall
    no_fly = np.array([[60, 160, 30, 500], [220, 40, 20, 80]], np.float32)[:zones]
    return CityMap(heights, 20.0, no_fly, (52.0, 4.3), "drawn")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with two cities of one size."""
    place = tmp_path / "cities"
    place.mkdir()
    hand_made(90, zones=1).save(place / "a.npz")
    hand_made(200, zones=2).save(place / "b.npz")
    return place


def test_a_file_gives_back_what_was_saved(tmp_path):
    city = hand_made()
    city.save(tmp_path / "city.npz")
    read = load_map(tmp_path / "city.npz")
    np.testing.assert_array_equal(read.heights, city.heights)
    np.testing.assert_array_equal(read.no_fly, city.no_fly)
    assert (read.cell_size, read.origin, read.source) == (20.0, (52.0, 4.3), "drawn")
    dataclasses.replace(city, origin=None).save(tmp_path / "nowhere.npz")
    assert load_map(tmp_path / "nowhere.npz").origin is None


def test_sizes_follow_from_the_city(folder):
    config = with_city(preset("quick"), folder)
    env = config.env
    assert (env.rows, env.columns, env.cell_size, env.no_fly_zones) == (11, 14, 20.0, 2)
    assert Path(env.city).is_absolute() and len(env.city_checksum) == 16
    assert from_dict(to_dict(config)) == config
    assert without_city(config).env == dataclasses.replace(env, city=None, city_checksum=None)
    assert with_city(config, None) is config


def test_checksum_tells_what_is_flown_over():
    city = hand_made()
    same = dataclasses.replace(city, source="elsewhere", origin=None)
    assert checksum([city]) == checksum([same])
    turned = dataclasses.replace(city, heights=city.heights.reshape(14, 11))
    finer = dataclasses.replace(city, cell_size=10.0)
    others = [[turned], [finer], [hand_made(91)], [hand_made(zones=2)], [city, city]]
    assert len({checksum(maps) for maps in ([city], *others)}) == 6


def test_each_episode_draws_one_city_of_a_folder(folder):
    env = jaxqmix.make(SMALL, city=folder)

    def begin(key):
        return env.reset(key, env.draw_params(jax.random.key(0)))[0].city

    begin = jax.jit(jax.vmap(begin), compiler_options={"xla_backend_optimization_level": 0})
    cities = jax.device_get(begin(jax.random.split(jax.random.key(1), 24)))
    tallest = cities.heights.max(axis=(1, 2))
    assert set(tallest) == {90, 200}
    for heights, no_fly, top in zip(cities.heights, cities.no_fly, tallest, strict=True):
        source = hand_made(top, zones=1 if top == 90 else 2)
        # Where drones start, a roof above their altitude is cleared.
        changed = heights != source.heights
        assert changed.sum() <= 2 and (heights[changed] == 0).all()
        np.testing.assert_array_equal(no_fly[: len(source.no_fly)], source.no_fly)
        np.testing.assert_array_equal(no_fly[len(source.no_fly) :, 2], 0)


def test_a_city_in_memory_is_flown_over():
    city = hand_made()
    env = jaxqmix.make(SMALL, city=city)
    assert env.config.no_fly_zones == 1 and env.config.city is None
    np.testing.assert_array_equal(env.cities.heights[0], city.heights)
    # What is drawn from it is compared by its checksum.
    assert env == jaxqmix.make(SMALL, city=hand_made())
    assert env != jaxqmix.make(SMALL, city=hand_made(91))


def test_missing_and_changed_cities_are_refused(folder):
    config = with_city(SMALL, folder / "a.npz")
    hand_made(120).save(folder / "a.npz")
    with pytest.raises(ConfigError, match=r"env.city = .*a.npz is not allowed: it differs"):
        jaxqmix.make(config)
    (folder / "a.npz").unlink()
    with pytest.raises(ConfigError, match=r"a.npz is not allowed: there is no such file.*--city"):
        jaxqmix.make(config)


def test_settings_that_do_not_fit_are_refused(folder):
    config = dataclasses.replace(with_city(SMALL, folder / "a.npz"), city_width=400.0)
    with pytest.raises(ConfigError, match=r"env.city_width = 400.0 .*the city has 280"):
        jaxqmix.make(config)
    with pytest.raises(ConfigError, match=r"city = .*a.npz .*env.drones = 60"):
        with_city(dataclasses.replace(SMALL, city_width=2000.0, drones=60), folder / "a.npz")
    with pytest.raises(ConfigError, match="holds no city file"):
        with_city(SMALL, folder.parent)
    narrow = hand_made()
    narrow = dataclasses.replace(narrow, heights=narrow.heights[:, :8])
    narrow.save(folder / "c.npz")
    with pytest.raises(ConfigError, match=r"c.npz is 160 x 220 m .* a.npz is 280 x 220 m"):
        with_city(SMALL, folder)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, "no city file"),
        ({"heights": np.zeros((3, 3))}, "must be uint8"),
        ({"no_fly": np.zeros((2, 3))}, r"no_fly must be finite numbers \[zones, 4\]"),
        ({"no_fly": np.full((1, 4), np.nan)}, "no_fly must be finite"),
        ({"origin": np.zeros(3)}, "a latitude and a longitude"),
    ],
)
def test_damaged_city_files_are_refused(arrays, words, tmp_path):
    whole = {"heights": np.zeros((8, 8), np.uint8), "no_fly": np.zeros((0, 4))}
    whole |= {"cell_size": 20.0, "origin": np.zeros(2)}
    np.savez(tmp_path / "city.npz", **(whole | arrays if arrays else {"x": 1}))
    with pytest.raises(ConfigError, match=words):
        load_map(tmp_path / "city.npz")
    (tmp_path / "city.npz").write_text("no archive")
    with pytest.raises(ConfigError, match="no city file"):
        load_map(tmp_path / "city.npz")


def test_a_run_goes_on_over_a_city_that_moved_and_over_no_other(folder):
    saved = to_dict(with_city(preset("quick"), folder / "a.npz"))
    moved = (folder / "a.npz").rename(folder.parent / "moved.npz")
    check_settings(Path("run"), saved, to_dict(with_city(preset("quick"), moved)))
    hand_made(91).save(moved)
    with pytest.raises(CheckpointError, match=r"env\.city_checksum"):
        check_settings(Path("run"), saved, to_dict(with_city(preset("quick"), moved)))


def test_degrees_and_metres():
    origin = (52.0, 4.3)
    x, y = to_metres((51.99, 4.31), origin)
    # 0.01 degrees on the Earth's mean sphere, within half a percent.
    assert y == pytest.approx(1111.95, rel=5e-3)
    assert x == pytest.approx(1111.95 * np.cos(np.radians(52)), rel=5e-3)
    places = np.random.default_rng(0).uniform(-3000, 3000, (100, 2))
    np.testing.assert_allclose(to_metres(to_degrees(places, origin), origin), places, atol=1e-6)
    # Snyder 1987, table for the ellipsoid (Clarke 1866 is within 0.02 %): 45 degrees.
    assert metres_per_degree(45.0) == pytest.approx((111132, 78847), rel=1e-4)


def test_train_takes_a_city(folder, monkeypatch, capsys):
    taken = {}
    monkeypatch.setattr(runner, "train", lambda config, *_: taken.update(config=config))
    assert cli.run(["train", "quick", "--city", str(folder), "--env.drones", "3"]) == 0
    assert taken["config"] == with_city(
        dataclasses.replace(
            preset("quick"), env=dataclasses.replace(preset("quick").env, drones=3)
        ),
        folder,
    )
    with pytest.raises(SystemExit, match="2"):
        cli.main(["train", "quick", "--city", "gone.npz"])
    error = capsys.readouterr().err
    assert error.startswith("jaxqmix: city = gone.npz is not allowed") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"heights": np.zeros((11, 14))}, "heights must be uint8 .* not float64"),
        ({"heights": np.zeros(14, np.uint8)}, "heights must be uint8"),
        ({"no_fly": np.zeros((1, 3))}, "no_fly must be finite numbers"),
        ({"no_fly": np.array([[0, 0, -1, 5.0]])}, "at least 0"),
        ({"cell_size": 0.0}, "cell_size must be"),
        ({"no_fly": np.array([[140, 110, 900, 500.0]])}, "leave 0 places to start"),
    ],
)
def test_literal_cities_are_checked(changes, words):
    """In one line, before anything flies."""
    with pytest.raises(ConfigError, match=f"city = drawn is not allowed: .*{words}"):
        jaxqmix.make(SMALL, city=dataclasses.replace(hand_made(), **changes))
    with pytest.raises(ConfigError, match="city = 3 is not allowed"):
        jaxqmix.make(SMALL, city=3)
