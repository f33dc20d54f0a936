"""Policies outside of JAX act as inside, and flights keep their places in every file format."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import runpy
import xml.etree.ElementTree as ElementTree

import jax
import numpy as np
import pytest
from conftest import CITY_BLOCK

from jaxqmix import cli
from jaxqmix.config import ConfigError, EnvConfig, LearnerConfig, RunConfig, TrainingConfig
from jaxqmix.env.observation import feature_slices
from jaxqmix.export import flights, policy
from jaxqmix.export.numpy_policy import NumpyPolicy
from jaxqmix.learner.networks import greedy_actions
from jaxqmix.maps import CityMap, with_city
from jaxqmix.maps.citymap import to_degrees, to_metres
from jaxqmix.maps.geojson import read_zones
from jaxqmix.presets import PRESETS
from jaxqmix.training import make_parts
from jaxqmix.types import ACTIONS, EAST, HOVER, Episode, Events

ONNX = 'needs onnx and onnxruntime: pip install ".[test]"'
CONFIG = RunConfig(
    env=CITY_BLOCK,
    learner=LearnerConfig(hidden=12, mixing_width=4, minibatches=2),
    training=TrainingConfig(env_steps=480, swarms=8, rollout=5),
)
KINDS = {
    "eight views": (CONFIG, True),
    "one view": (CONFIG, False),
    "blind": (dataclasses.replace(
        CONFIG, env=dataclasses.replace(CITY_BLOCK, blind_to=("gain", "pose"))), True),
    "recurrent": (dataclasses.replace(
        CONFIG, learner=dataclasses.replace(CONFIG.learner, network="gru", layers=1)), True),
}  # fmt: skip


def untrained(name: str) -> tuple[RunConfig, dict]:
    """A config, and agent parameters that are all far from zero."""
    config, views = KINDS[name]
    evaluation = dataclasses.replace(config.evaluation, symmetric=views)
    config = dataclasses.replace(config, evaluation=evaluation)
    _, learner = make_parts(config, axis=None)
    agent = learner.init(jax.random.key(0)).parameters["agent"]
    draw = np.random.default_rng(1)
    move = lambda leaf: np.asarray(leaf) + 0.3 * draw.normal(size=leaf.shape)  # noqa: E731
    return config, jax.tree.map(lambda leaf: move(leaf).astype(np.float32), agent)


@pytest.fixture(scope="module", name="recorded")
def recorded_fixture(fly):
    """1,040 observations [n, D] and masks [n, A] of random flights."""
    flown = fly(CITY_BLOCK, 25, 10, seed=3, thorough=False)["timesteps"].observation
    return (flown.agents.reshape(-1, flown.agents.shape[-1]), flown.available.reshape(-1, 7))


@pytest.mark.parametrize("name", KINDS)
def test_onnx_acts_as_jax_on_recorded_observations(name, recorded, tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason=ONNX)
    onnx = pytest.importorskip("onnx", reason=ONNX)
    from jaxqmix.export.onnx_graph import write_onnx

    config, agent = untrained(name)
    plain = policy.plain_policy(config, agent)
    assert policy.compare(plain, config, agent) < 1e-5
    write_onnx(plain, tmp_path / "policy.onnx")
    observation, available = recorded
    assert len(observation) >= 1000
    hidden_state = np.tanh(
        np.random.default_rng(2).normal(size=(len(observation), plain.about["hidden_state"]))
    )
    hidden_state = hidden_state.astype(np.float32)
    expected, expected_hidden_state = jax.device_get(
        policy.jax_values(config, agent)(observation, hidden_state)
    )
    inputs = {"observation": observation, "available": available}
    inputs |= {"hidden_state": hidden_state} if hidden_state.size else {}
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(str(tmp_path / "policy.onnx"), options)
    action, values, *rest = session.run(None, inputs)
    np.testing.assert_allclose(values, expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(action, greedy_actions(expected, available))
    assert available[np.arange(len(action)), action].all() and len(set(action)) > 3
    for found in rest:
        np.testing.assert_allclose(found, expected_hidden_state, atol=1e-5)
    model = onnx.load(tmp_path / "policy.onnx")
    assert len(model.graph.node) <= (12 if name != "recurrent" else 26)
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(about["actions"]) == list(ACTIONS)
    assert json.loads(about["groups"])["pose"]["start"] == 0


@pytest.mark.parametrize("name", ["eight views", "recurrent"])
def test_numpy_and_stablehlo_act_as_jax(name, recorded, tmp_path):
    pytest.importorskip("flatbuffers", reason='needs flatbuffers: pip install ".[export]"')
    config, agent = untrained(name)
    plain = policy.plain_policy(config, agent)
    policy.write_npz(plain, tmp_path / "policy.npz")
    policy.write_stablehlo(plain.about, config, agent, tmp_path / "policy.stablehlo")
    # As a person would: the file alone, without the package.
    alone = runpy.run_path(policy.__file__.replace("policy.py", "numpy_policy.py"))["NumpyPolicy"]
    acts = alone(tmp_path / "policy.npz")
    observation, available = (array[:50] for array in recorded)
    hidden_state = np.stack([acts.initial_hidden_state()] * 50)
    data = bytearray((tmp_path / "policy.stablehlo").read_bytes())
    action, values, after = jax.export.deserialize(data).call(observation, available, hidden_state)
    for i in range(50):
        found, remembered = acts(observation[i], available[i], hidden_state[i])
        assert found == action[i]
        largest = np.abs(values).max()
        np.testing.assert_allclose(
            acts.values(observation[i], hidden_state[i])[0], values[i], atol=1e-5 * largest
        )
        np.testing.assert_allclose(remembered, after[i], atol=1e-5)
    about = json.loads((tmp_path / "policy.json").read_text())
    assert about == acts.about and about["config"]["env"]["cell_size"] == 20.0


def test_a_wrong_export_is_noticed():
    config, agent = untrained("eight views")
    plain = policy.plain_policy(config, agent)
    plain.weights["head"][3, 2] += 0.01
    with pytest.raises(ConfigError, match="out is not written: its action values differ"):
        policy.compare(plain, config, agent)


@pytest.mark.parametrize("name", PRESETS)
def test_every_group_of_the_observation_is_explained(name):
    about = policy.describe(PRESETS[name], 8)
    assert list(about["groups"]) == list(feature_slices(PRESETS[name].env))
    assert all(group["holds"] for group in about["groups"].values())
    assert json.loads(json.dumps(about)).keys() == about.keys()  # plain JSON throughout


def test_formats_are_found_by_ending():
    from pathlib import Path

    assert policy.find_format(Path("a.ONNX"), None) == "onnx"
    assert policy.find_format(Path("a.bin"), "npz") == "npz"
    with pytest.raises(ConfigError, match=r"out = a.bin .*must end in .onnx, .npz, .stablehlo"):
        policy.find_format(Path("a.bin"), None)
    with pytest.raises(ConfigError, match="format = tflite"):
        policy.find_format(Path("a.onnx"), "tflite")


ORIGIN = (52.0, 4.3)
WORLD = EnvConfig(drones=2, city_width=400.0, city_length=320.0, no_fly_zones=2, horizon=8)


def episode(length: int = 5) -> Episode:
    """Two drones that head east, rest, and climb; the second passes over a low zone."""
    x = np.array([10, 30, 50, 50.2, 49.9, 70, 0, 0, 0], float)
    first = np.stack([x, np.full(9, 50.0), np.array([60, 60, 60, 60, 60, 80, 0, 0, 0])], axis=1)
    second = first + np.array([0, 100, 0])
    positions = np.stack([first, second], axis=1).astype(np.float32)
    none = np.zeros((8, 2), bool)
    executed = np.full((8, 2), EAST)
    executed[2:4] = HOVER
    zones = np.array([[200, 150, 40, 500], [50, 160, 30, 30], [0, 0, 0, 0]], np.float32)
    return Episode(
        heights=np.zeros((16, 20), np.uint8),
        no_fly=zones,
        coverable=np.ones((16, 20), bool),
        seen_at=np.zeros((16, 20), int),
        positions=positions,
        radii=np.ones((9, 2)),
        actions=executed,
        link=np.zeros((8, 2), int),
        events=Events(executed, none, none, none, none),
        reward=np.zeros(8),
        coverage=np.zeros(9),
        length=np.int32(length),
        wind=np.zeros(2),
        visibility=np.float32(1),
    )


@pytest.fixture(name="flown")
def flown_fixture():
    """The first drone's flight, and the second's."""
    return flights.flights_of(episode(), WORLD, ORIGIN)


def assert_places(degrees, flight, indices=slice(None)):
    """Latitudes and longitudes [n, 2] lead back to the flight's metres within 0.1 m."""
    np.testing.assert_allclose(
        to_metres(np.array(degrees), ORIGIN), flight.metres[indices, :2], atol=0.01
    )


def test_waypoints_rest_where_the_drone_does(flown):
    points = flown[0].waypoints()
    assert [hold for _, _, hold in points] == [0, 0, pytest.approx(2 * 20 / 15), 0]
    assert [altitude for _, altitude, _ in points] == [60, 60, 60, 80]
    # A fence has no ceiling: the second drone passes over the low zone, the first does not.
    assert len(flown[0].zones) == 2
    assert [len(flight.zones_kept_out()) for flight in flown] == [2, 1]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ([[-25, 54.6], [25, 54.6]], 54.6),  # on the way
        ([[-6, 8], [3, 4]], 48 / 97**0.5),
        ([[3, 4], [6, 8]], 5),  # at an end
        ([[3, 4], [3, 4]], 5),
        ([[3, 4]], 5),
    ],
)
def test_a_path_passes_as_near_as_its_legs(path, expected):
    assert flights.nearest(np.array(path, float)) == pytest.approx(expected, rel=1e-6)


def test_plan_of_qgroundcontrol(flown):
    plan = json.loads(flights.plan(flown[1]))
    assert (plan["fileType"], plan["version"]) == ("Plan", 1)
    assert plan["geoFence"]["version"] == plan["mission"]["version"] == 2
    items = plan["mission"]["items"]
    assert [item["command"] for item in items] == [22, 178, 16, 16, 16, 16, 20]
    assert [item["doJumpId"] for item in items] == list(range(1, 8))
    assert all(len(item["params"]) == 7 for item in items)
    assert items[0]["params"][:4] == [0, 0, 0, None] and items[1]["params"][:2] == [1, 15]
    flying = [item["params"] for item in items if item["command"] == 16]
    assert_places([p[4:6] for p in flying], flown[1], [0, 1, 2, 5])
    assert [p[6] for p in flying] == [60, 60, 60, 80] and flying[2][0] == pytest.approx(8 / 3)
    (zone,) = plan["geoFence"]["circles"]
    assert zone["circle"]["radius"] == 40 and zone["inclusion"] is False
    np.testing.assert_allclose(to_metres(zone["circle"]["center"], ORIGIN), (200, 150), atol=0.01)
    (border,) = plan["geoFence"]["polygons"]
    corners = to_metres(border["polygon"], ORIGIN)
    np.testing.assert_allclose(corners, [(0, 0), (400, 0), (400, 320), (0, 320)], atol=0.01)
    assert border["inclusion"] is True


def test_mavlink_reads_the_waypoints(flown, tmp_path):
    reason = "needs pymavlink: pip install pymavlink"
    wp = pytest.importorskip("pymavlink.mavwp", reason=reason)
    mavlink = pytest.importorskip("pymavlink.dialects.v20.common", reason=reason)
    named = (mavlink.MAV_CMD_NAV_WAYPOINT, mavlink.MAV_CMD_NAV_RETURN_TO_LAUNCH)
    named += (mavlink.MAV_CMD_NAV_TAKEOFF, mavlink.MAV_CMD_DO_CHANGE_SPEED)
    assert named == (flights.WAYPOINT, flights.RETURN, flights.TAKEOFF, flights.SPEED)
    frames = (mavlink.MAV_FRAME_GLOBAL, mavlink.MAV_FRAME_GLOBAL_RELATIVE_ALT)
    frames += (mavlink.MAV_FRAME_MISSION,)
    assert frames == (flights.GLOBAL, flights.RELATIVE, flights.MISSION)
    (tmp_path / "a.waypoints").write_text(flights.waypoints(flown[0]))
    loader = wp.MAVWPLoader()
    assert loader.load(str(tmp_path / "a.waypoints")) == 8
    read = [loader.wp(index) for index in range(8)]
    assert [item.command for item in read] == [16, 22, 178, 16, 16, 16, 16, 20]
    assert [item.seq for item in read] == list(range(8)) and read[0].current == 1
    flying = read[3:7]
    assert_places([(item.x, item.y) for item in flying], flown[0], [0, 1, 2, 5])
    assert [item.z for item in flying] == [60, 60, 60, 80]
    assert flying[2].param1 == pytest.approx(8 / 3, rel=1e-4)
    # Every item of the plan goes into MAVLink's message for missions.
    for item in json.loads(flights.plan(flown[0]))["mission"]["items"]:
        numbers = [float("nan") if value is None else value for value in item["params"]]
        place = (round(numbers[4] * 1e7), round(numbers[5] * 1e7), numbers[6])
        message = mavlink.MAVLink_mission_item_int_message(
            1, 1, item["doJumpId"], item["frame"], item["command"], 0, 1, *numbers[:4], *place
        )
        assert message.pack(mavlink.MAVLink(None))


def test_kml_geojson_and_csv(flown, tmp_path):
    space = {"k": "http://www.opengis.net/kml/2.2", "gx": "http://www.google.com/kml/ext/2.2"}
    tree = ElementTree.fromstring(flights.kml(flown[0]))
    coords = [node.text.split() for node in tree.iterfind(".//gx:coord", space)]
    whens = [node.text for node in tree.iterfind(".//k:when", space)]
    assert len(coords) == len(whens) == 6
    assert whens[:2] == ["2000-01-01T00:00:00.000Z", "2000-01-01T00:00:01.333Z"]
    assert_places([(float(lat), float(lon)) for lon, lat, _ in coords], flown[0])
    ring = tree.find(".//k:coordinates", space).text.split()
    ring = np.array([place.split(",") for place in ring], float)
    reach = to_metres(ring[:, 1::-1], ORIGIN) - (200, 150)
    np.testing.assert_allclose(np.hypot(*reach.T), 40, atol=0.05)

    data = json.loads(flights.geojson(flown[0]))
    line = np.array(data["features"][0]["geometry"]["coordinates"])
    assert_places(line[:, 1::-1], flown[0])
    np.testing.assert_allclose(line[:, 2], flown[0].metres[:, 2])
    assert len(data["features"][0]["properties"]["seconds"]) == 6
    # Its zones are those that `jaxqmix city --zones` reads.
    zones = read_zones({"type": "FeatureCollection", "features": data["features"][1:]}, tmp_path)
    assert [zone[2:] for zone in zones] == [(40, 500), (30, 30)]

    rows = list(csv.DictReader(io.StringIO(flights.table(flown[0]))))
    assert_places([(float(r["latitude"]), float(r["longitude"])) for r in rows], flown[0])
    assert [row["action"] for row in rows] == ["east", "east", "hover", "hover", "east", ""]


@pytest.mark.parametrize("format", flights.FORMATS)
def test_one_file_for_each_drone(format, tmp_path):
    files = flights.export_flights(episode(), WORLD, tmp_path / "out", format, ORIGIN)
    assert [file.stem for file in files] == ["drone-1", "drone-2"]
    assert all(file.read_text() for file in files)
    # Another flight takes the place of the last one, whatever its drones.
    (tmp_path / "out" / "drone-9").with_suffix(files[0].suffix).write_text("of another flight")
    mine = (tmp_path / "out" / "drone-1-notes").with_suffix(files[0].suffix)
    mine.write_text("not of a flight")
    again = flights.export_flights(episode(), WORLD, tmp_path / "out", format, ORIGIN)
    assert {*(tmp_path / "out").iterdir()} == {*again, mine}
    # The shortest flight there is.
    assert flights.export_flights(episode(length=0), WORLD, tmp_path, format, ORIGIN)


def test_the_city_tells_where_flights_are(tmp_path):
    heights = np.zeros((16, 20), np.uint8)
    city = CityMap(heights, 20.0, np.zeros((2, 4), np.float32), ORIGIN)
    city.save(tmp_path / "a.npz")
    heights = heights + np.uint8(7)
    far = dataclasses.replace(city, heights=heights, origin=(10.0, 20.0))
    far.save(tmp_path / "b.npz")
    config = with_city(WORLD, tmp_path)
    flights.require_origin(config, "plan", None)
    assert flights.origin_of(episode(), config) == ORIGIN
    flown = dataclasses.replace(episode(), heights=heights)
    assert flights.origin_of(flown, config) == (10.0, 20.0)
    dataclasses.replace(city, origin=None).save(tmp_path / "a.npz")
    with pytest.raises(ConfigError, match="origin is missing"):
        flights.require_origin(config, "plan", None)
    with pytest.raises(ConfigError, match="origin is missing"):
        flights.export_flights(episode(), WORLD, tmp_path, "kml")
    (file, _) = flights.export_flights(episode(), WORLD, tmp_path, "csv")
    assert file.read_text().splitlines()[0] == "seconds,x,y,altitude,action"
    with pytest.raises(ConfigError, match="format = gpx"):
        flights.require_origin(WORLD, "gpx", ORIGIN)
    with pytest.raises(ConfigError, match=r"origin = \(95"):
        flights.require_origin(WORLD, "plan", (95.0, 0.0))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export"], "--out is missing"),
        (["export", "--out", "a.onnx"], "run is missing"),
        (["export", "nowhere", "--out", "a.tflite"], "out = a.tflite .*must end in"),
        (["export", "nowhere", "--out", "a.onnx"], "checkpoint = nowhere"),
        (["export", "nowhere", "--out", "a", "--format", "x"], "format = x"),
        (["fly"], "run is missing"),
        (["fly", "nowhere"], "checkpoint = nowhere"),
        (["fly", "quick", "--planner", "random"], "origin is missing.*--origin LAT"),
        (["fly", "quick", "--planner", "random", "--format", "gpx"], "format = gpx"),
        (["fly", "quick", "--planner", "random", "--origin", "95", "-4"], r"origin = \(95"),
    ],
)
def test_commands_refuse_in_one_line(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=words) as error:
        cli.run(arguments)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_degrees_of_files_are_fine_enough():
    """Eight decimals of a degree are a millimetre."""
    places = to_degrees(np.random.default_rng(0).uniform(0, 5000, (50, 2)), ORIGIN)
    np.testing.assert_allclose(
        to_metres(places.round(8), ORIGIN), to_metres(places, ORIGIN), atol=2e-3
    )


def test_policy_without_memory_keeps_none(tmp_path):
    config, agent = untrained("one view")
    policy.write_npz(policy.plain_policy(config, agent), tmp_path / "policy.npz")
    acts = NumpyPolicy(tmp_path / "policy.npz")
    observation = np.zeros(acts.about["features"], np.float32)
    only = np.arange(7) == 4
    action, hidden_state = acts(observation, only, acts.initial_hidden_state())
    assert action == 4 and hidden_state.shape == (0,)
