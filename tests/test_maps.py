"""Map files become cities: hand-made files of every kind, and one line for every bad one."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Outline

from jaxqmix import cli
from jaxqmix.config import ConfigError
from jaxqmix.maps import raster
from jaxqmix.maps.buildings import Building, covers, metres, rasterise
from jaxqmix.maps.citymap import load_map, to_degrees, to_metres
from jaxqmix.maps.reading import SAMPLE, SAMPLE_ZONES, read_city, smallest_circle

CORNER = (45.0, -30.0)


def degrees(*points) -> list[list[float]]:
    """x, y in metres from `CORNER` as longitude, latitude; GeoJSON's order."""
    return to_degrees(np.array(points, float), CORNER)[:, ::-1].tolist()


def box(x: float, y: float, width: float, length: float) -> list[list[float]]:
    """A closed ring."""
    x1, y1 = x + width, y + length
    return degrees((x, y), (x1, y), (x1, y1), (x, y1), (x, y))


def feature(coordinates, kind: str = "Polygon", **properties) -> dict:
    """A feature of GeoJSON."""
    geometry = {"type": kind, "coordinates": coordinates}
    return {"type": "Feature", "properties": properties, "geometry": geometry}


def write_json(path, *features, **more):
    """A GeoJSON file."""
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features, **more}))
    return path


FRAME = [feature([box(0, 0, 8, 8)], height=5), feature([box(192, 152, 8, 8)], height=5)]
"""Two low buildings in opposite corners, so that the grid is 10 x 8 cells of 20 m."""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (12, 12.0),
        ("12", 12.0),
        ("12.5 m", 12.5),
        ("12,5", 12.5),
        ("40 ft", 12.192),
        ("39'", 11.8872),
        ("39' 4\"", 11.9888),
        (".5km", 500.0),
        ("-3", -3.0),
        ("high", None),
        ("12;15", None),
        ("~10", None),
        ("", None),
        (True, None),
        (float("nan"), None),
        (None, None),
    ],
)
def test_lengths_with_units(text, value):
    assert metres(text) == (None if value is None else pytest.approx(value))


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 60), st.floats(0, 60)), min_size=3, max_size=8))
def test_what_a_polygon_covers_equals_matplotlib(points):
    """Matplotlib fills by winding; for a ring that does not cross itself both are the same."""
    centre = np.mean(points, axis=0)
    points = sorted(points, key=lambda p: np.arctan2(p[1] - centre[1], p[0] - centre[0]))
    ring = np.array([*points, points[0]], float)
    x, y = np.arange(0.37, 60, 3.1), np.arange(0.71, 60, 2.3)
    grid = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    outline = Outline(ring)
    clear = outline.contains_points(grid, radius=1e-3) == outline.contains_points(
        grid, radius=-1e-3
    )
    expected = outline.contains_points(grid)
    np.testing.assert_array_equal(covers([ring], x, y).reshape(-1)[clear], expected[clear])


def test_a_cell_is_as_high_as_what_covers_any_part_of_it():
    square = np.array([(20, 20), (40, 20), (40, 40), (20, 40), (20, 20)], float)
    court = np.array([(0, 60), (120, 60), (120, 120), (0, 120), (0, 60)], float)
    hole = np.array([(20, 80), (100, 80), (100, 100), (20, 100), (20, 80)], float)
    sliver = np.array([(78, 20), (82, 20), (82, 40), (78, 40), (78, 20)], float)
    beyond = square - np.array([35, 0])
    buildings = [
        Building([[square]], 30.2),
        Building([[square + np.array([60, 0])]], 12.0),
        Building([[court, hole]], 18.0),
        Building([[sliver]], 300.0),
        Building([[beyond]], 7.0),
        Building([[square + 1000]], 99.0),
    ]
    heights, highest = rasterise(buildings, 6, 6, 20.0)
    expected = np.zeros((6, 6), int)
    expected[3:6] = 18
    expected[4, 1:5] = 0  # the courtyard
    expected[1] = [7, 31, 0, 255, 255, 0]  # aligned walls do not spill, slivers do
    np.testing.assert_array_equal(heights, expected)
    assert heights.dtype == np.uint8 and highest == 300.0


def test_geojson(tmp_path):
    path = write_json(
        tmp_path / "a.geojson",
        *FRAME,
        feature([box(42, 42, 16, 16)], height="33 m", **{"building:levels": 2}),
        feature([box(82, 42, 16, 16)], **{"building:levels": "4"}),
        feature([box(122, 42, 16, 16)], building="yes"),
        feature([box(42, 82, 16, 16)], building="yes", height="tall"),
        feature([[box(82, 82, 16, 16)], [box(122, 82, 16, 16)]], "MultiPolygon", height=50),
        feature([box(160, 20, 16, 16)], building="no"),
        feature([box(160, 60, 16, 16)], landuse="grass"),
        # As tables write it: a column for each tag of any feature.
        feature([box(20, 120, 60, 16)], building=None, height=None, levels=None, landuse="grass"),
        feature([box(20, 60, 16, 16)], building=False, height=""),
        feature([box(20, 20, 16, 16)], building="yes", height=0),
        feature(degrees((5, 5))[0], "Point", height=99),
        {"type": "Feature", "properties": {"building": "yes"}, "geometry": None},
    )
    reading = read_city(path, cell_size=20.0, default_height=7.0)
    expected = np.zeros((8, 10), int)
    expected[0, 0] = expected[7, 9] = 5
    expected[2, 2], expected[2, 4], expected[2, 6] = 33, 12, 7
    expected[4, 2], expected[4, 4], expected[4, 6] = 7, 50, 50
    np.testing.assert_array_equal(reading.city.heights, expected)
    assert reading.city.origin == pytest.approx(CORNER, abs=1e-9)
    assert reading.notes == [
        "2 of 8 buildings tell no height: they are taken as 7 m",
        "1 heights were not understood, the first: feature 6: height = tall",
    ]


def test_polygons_without_any_tags_are_buildings(tmp_path):
    path = write_json(tmp_path / "a.json", feature([box(0, 0, 100, 100)], name="block"))
    assert (read_city(path, cell_size=20.0).city.heights == 9).all()


def test_a_square_is_cut_out_around_a_center(tmp_path):
    path = write_json(tmp_path / "a.geojson", *FRAME, feature([box(82, 62, 36, 16)], height=40))
    middle = tuple(to_degrees((100.0, 80.0), CORNER).tolist())
    city = read_city(path, cell_size=20.0, center=middle, size=120.0).city
    assert city.size == (120.0, 120.0)
    expected = np.zeros((6, 6), int)
    expected[2, 2:4] = 40
    np.testing.assert_array_equal(city.heights, expected)
    # The same ground, measured from this corner.
    x, y = to_metres(to_degrees((40.0, 20.0), CORNER), city.origin)
    assert (x, y) == (pytest.approx(0, abs=0.01), pytest.approx(0, abs=0.01))


BAD_GEOJSON = [
    ([feature([box(0, 0, 9, 9)[:3]], height=1)], "feature 1: a ring must have at least 4 points"),
    ([*FRAME, feature([[1, 2], [3, 4]], height=1)], "feature 3: its coordinates are no polygon"),
    ([*FRAME, feature([[[1, "x"]] * 4], height=1)], "feature 3: its coordinates are no polygon"),
    ([feature([[[1, 2, 3], [1], [1, 2], [1, 2]]], height=1)], "feature 1: its coordinates"),
    ([feature([[[155000, 463000]] * 4], name="Tower")], r"feature 1 \(Tower\): 155000, 463000 is"),
    ([feature([[[1, float("nan")]] * 4])], "feature 1: its coordinates are not finite"),
    ([FRAME[0], 7], "feature 2 is no object"),
    ([{"type": "Feature", "geometry": 3}], "feature 1: its geometry is no object"),
    ([feature(degrees((0, 0))[0], "Point")], "there is no building"),
    ([FRAME[0]], "fewer than 4 x 4"),
]


@pytest.mark.parametrize(("features", "words"), BAD_GEOJSON)
def test_bad_geojson_names_the_feature(features, words, tmp_path):
    path = write_json(tmp_path / "bad.geojson", *features)
    with pytest.raises(ConfigError, match=rf"^file = .*bad.geojson is not allowed: .*{words}"):
        read_city(path, cell_size=20.0)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.geojson", "{", "it is no JSON: .*line 1"),
        ("a.json", "[1]", "neither GeoJSON nor CityJSON"),
        ("a.json", '{"type": "FeatureCollection", "features": 3}', "features must be a list"),
        ("a.osm", "<osm><node", "it is no XML"),
        ("a.osm", '<osm><node id="7" lat="x" lon="2"/></osm>', "node 7: lat = x, lon = 2"),
        ("a.osm", '<osm><node id="7" lat="91" lon="2"/></osm>', "node 7"),
        ("a.osm", "<osm/>", "there is no building"),
        ("a.npy", "text", "no array of NumPy"),
        ("a.npz", "text", "no city file"),
        ("a.tif", "text", "cannot be read as TIFF"),
        ("a.shp", "text", "must end in .geojson"),
        ("a.json", '{"type": "CityJSON", "version": "0.9"}', "version 0.9 must be"),
        ("a.json", '{"type": "CityJSON", "version": "2.0", "vertices": [[1]]}', "its vertices"),
        ("a.json", '{"type": "CityJSON", "version": "2.0", "vertices": []}', "no CityObjects"),
        (
            "a.json",
            '{"type": "CityJSON", "version": "2.0", "CityObjects": {}, '
            '"vertices": [[NaN, 0, 1e999]]}',
            "its vertices must be finite",
        ),
        (
            "a.json",
            '{"type": "FeatureCollection", "features": [], "crs": "EPSG:1"}',
            "no attribute",
        ),
        ("a.json", '{"type": "Feature", "properties": [1]}', "is not as its format asks"),
        (
            "a.json",
            '{"type": "Feature", "geometry": {"type": "GeometryCollection", "geometries": 3}}',
            "is not as its format asks",
        ),
        ("a.json", "[" * 100_000, "it is no JSON"),
    ],
)
def test_other_bad_files_get_one_line(name, text, words, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=words) as error:
        read_city(tmp_path / name)
    assert "\n" not in str(error.value)


def test_bad_settings(tmp_path):
    for changes, words in [
        ({"cell_size": 0.0}, "cell_size = 0"),
        ({"default_height": float("nan")}, "default_height = nan"),
        ({"center": (45.0, -30.0)}, "size = None .*give center and size"),
        ({"size": 100.0}, "size = 100.0 .*give center and size"),
        ({"size": 30.0, "center": (45.0, -30.0)}, "size = 30.0 .*at least 4 cells"),
        ({"size": 300.0, "center": (95.0, -30.0)}, r"center = \(95.0"),
        ({"size": 300.0, "center": (0.0, 0.0)}, "no building within size of center"),
        ({"cell_size": 0.05}, "are too many"),
        ({"size": float("inf"), "center": (0.0, 0.0)}, "size = inf .*at least 4 cells"),
    ]:
        with pytest.raises(ConfigError, match=words):
            read_city(SAMPLE, **changes)
    with pytest.raises(ConfigError, match="there is no such file"):
        read_city(tmp_path / "gone.geojson")


def osm(*elements: str) -> str:
    """An OpenStreetMap file with nodes on a lattice of 20 m: `node 100 r + c`."""
    nodes = []
    for row in range(9):
        for column in range(11):
            (longitude, latitude), *_ = degrees((20 * column, 20 * row))
            place = f'lat="{latitude}" lon="{longitude}"'
            nodes.append(f'<node id="{100 * row + column}" {place}/>')
    return f'<?xml version="1.0"?><osm version="0.6">{"".join(nodes)}{"".join(elements)}</osm>'


def way(key: int, nodes: list[int], **tags: str) -> str:
    """A way."""
    inside = "".join(f'<nd ref="{node}"/>' for node in nodes)
    inside += "".join(f'<tag k="{k.replace("_", ":")}" v="{v}"/>' for k, v in tags.items())
    return f'<way id="{key}">{inside}</way>'


def test_openstreetmap(tmp_path):
    relation = "".join(
        [
            '<relation id="9"><member type="way" ref="3" role="outer"/>',
            '<member type="way" ref="4" role=""/><member type="way" ref="5" role="inner"/>',
            '<tag k="type" v="multipolygon"/><tag k="building" v="yes"/>',
            '<tag k="height" v="21"/></relation>',
        ]
    )
    text = osm(
        way(1, [0, 1, 101, 100, 0], building="yes", height="12"),
        way(2, [709, 710, 810, 809, 709], building_part="yes", building_levels="3"),
        # An outline of two ways, the second against the first's direction, and a hole.
        way(3, [303, 306, 606]),
        way(4, [303, 603, 606]),
        way(5, [404, 405, 505, 504, 404]),
        relation,
        way(6, [7, 8, 108, 107, 7], building="no"),
        way(7, [7, 8, 108], highway="path"),
        way(8, [7, 8, 9999, 107, 7], building="yes"),
        way(10, [7, 8, 108], building="yes"),
    )
    (tmp_path / "a.osm").write_text(text)
    reading = read_city(tmp_path / "a.osm", cell_size=20.0)
    expected = np.zeros((8, 10), int)
    expected[0, 0], expected[7, 9] = 12, 9
    expected[3:6, 3:6] = 21
    expected[4, 4] = 0
    np.testing.assert_array_equal(reading.city.heights, expected)
    assert reading.notes == ["2 buildings are not whole and left out, the first: way 8"]


def block(x: float, y: float, low: float, top: float) -> tuple[list, list]:
    """Corners of a box of 20 m, and its six surfaces as numbers of corners."""
    corners = [
        [x + dx, y + dy, z] for z in (low, top) for dx, dy in ((0, 0), (20, 0), (20, 20), (0, 20))
    ]
    walls = [[[a, (a + 1) % 4, (a + 1) % 4 + 4, a + 4]] for a in range(4)]
    return corners, [[[3, 2, 1, 0]], [[4, 5, 6, 7]], *walls]


def shifted(surfaces: list, by: int) -> list:
    """Surfaces with other numbers of corners."""
    return [[[number + by for number in ring] for ring in surface] for surface in surfaces]


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_cityjson(version, tmp_path):
    """A solid, a building of two parts on a slope, and footprints with and without a height."""
    boxes = [(0, 0, 3, 15), (60, 60, 8, 20), (80, 60, 20, 50), (180, 140, 5, 5), (120, 0, 5, 5)]
    vertices, objects = [], {}
    for number, (x, y, low, top) in enumerate(boxes):
        corners, surfaces = block(x, y, low, top)
        surfaces, kind, lod = shifted(surfaces, len(vertices)), "Building", "2"
        vertices += corners
        geometry = {"type": "Solid", "lod": lod, "boundaries": [surfaces]}
        if low == top:
            geometry = {"type": "MultiSurface", "lod": "0", "boundaries": surfaces[:1]}
        objects[f"b{number}"] = {"type": kind, "geometry": [geometry]}
    objects["b1"] |= {"type": "BuildingPart", "parents": ["whole"]}
    objects["b2"] |= {"type": "BuildingPart", "parents": ["whole"]}
    objects["whole"] = {"type": "Building", "children": ["b1", "b2"]}
    # The footprint of the whole tells less than its parts.
    corners, surfaces = block(60, 80, 8, 8)
    surfaces = shifted(surfaces[:1], len(vertices))
    vertices += corners
    objects["whole"]["geometry"] = [{"type": "MultiSurface", "lod": "0", "boundaries": surfaces}]
    objects["b3"]["attributes"] = {"measuredHeight": 33}
    objects["road"] = {"type": "Road", "geometry": objects["b0"]["geometry"]}
    objects["tree"] = {"type": "Building", "geometry": [{"type": "GeometryInstance"}]}
    # A coarser geometry is not looked at.
    objects["b0"]["geometry"].insert(0, {"type": "Solid", "lod": "1", "boundaries": [[[[9] * 3]]]})
    data = {"type": "CityJSON", "version": version, "CityObjects": objects, "vertices": vertices}
    if version == "2.0":
        data["transform"] = {"scale": [0.01, 0.01, 0.01], "translate": [85000, 446000, -5]}
        data["vertices"] = [[round(100 * v) for v in vertex] for vertex in vertices]
    (tmp_path / "a.json").write_text(json.dumps(data))
    reading = read_city(tmp_path / "a.json", cell_size=20.0)
    expected = np.zeros((8, 10), int)
    expected[7, 0] = 12  # y grows to the north in the file
    expected[4, 3], expected[4, 4] = 12, 42  # above the ground of the whole building
    expected[0, 9], expected[7, 6] = 33, 9
    np.testing.assert_array_equal(reading.city.heights, expected)
    assert reading.city.origin is None
    assert reading.notes == [
        "1 of 7 buildings tell no height: they are taken as 9 m",
        "1 buildings have no geometry of their own and are left out",
        "the file tells no place on Earth",
    ]
    with pytest.raises(ConfigError, match=r"center = .*does not tell its latitude"):
        read_city(tmp_path / "a.json", center=(52.0, 4.0), size=100.0)
    objects["b1"]["geometry"][0]["boundaries"] = [[[[0, 1, 9999]]]]
    (tmp_path / "a.json").write_text(json.dumps(data))
    with pytest.raises(ConfigError, match="object b1: its boundaries"):
        read_city(tmp_path / "a.json")


def test_reference_systems_are_converted(tmp_path):
    """The origin of the Dutch grid, the tower of Amersfoort: 52.15517, 5.38721."""
    pytest.importorskip("pyproj", reason='needs the extra `maps`: pip install ".[maps]"')
    ring = [[155000, 463000], [155200, 463000], [155200, 462840], [155000, 462840]]
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::28992"}}
    path = write_json(tmp_path / "a.geojson", feature([[*ring, ring[0]]], height=5), crs=crs)
    city = read_city(path, cell_size=20.0).city
    assert city.origin == pytest.approx((52.15517, 5.38721), abs=2e-5)
    assert city.size == (pytest.approx(200, abs=20), pytest.approx(160, abs=20))
    crs["properties"]["name"] = "EPSG:1"
    path = write_json(tmp_path / "a.geojson", feature([[*ring, ring[0]]], height=5), crs=crs)
    with pytest.raises(ConfigError, match="EPSG:1 is not known"):
        read_city(path)


def test_an_array_of_heights(tmp_path):
    heights = np.zeros((5, 7), np.float32)
    heights[1, 2], heights[4, 6] = 12.3, 400.0
    np.save(tmp_path / "a.npy", heights)
    reading = read_city(tmp_path / "a.npy", cell_size=30.0)
    assert reading.city.size == (210.0, 150.0) and reading.highest == 400.0
    assert reading.city.heights[1, 2] == 13 and reading.city.heights[4, 6] == 255
    for wrong, words in [
        (np.zeros(4), r"float64 \[4\]"),
        (np.full((4, 4), -1.0), "row 0, column 0: -1.0"),
        (np.array([["a"] * 4] * 4), r"<U1 \[4, 4\]"),
    ]:
        np.save(tmp_path / "a.npy", wrong)
        with pytest.raises(ConfigError, match=words):
            read_city(tmp_path / "a.npy")


def write_tiff(path, heights, changes=None):
    """A GeoTIFF in degrees: 2 m pixels from `CORNER`."""
    from PIL import Image, TiffImagePlugin

    tags = TiffImagePlugin.ImageFileDirectory_v2()
    (east, south), (west, north) = degrees((2, 2))[0], degrees((0, 0))[0]
    written = {
        raster.PIXEL_SCALE: (12, (east - west, north - south, 0.0)),
        raster.TIE_POINT: (12, (0.0, 0.0, 0.0, west, north, 0.0)),
        raster.GEO_KEYS: (3, (1, 1, 0, 2, 1024, 0, 1, 2, 2048, 0, 1, 4326)),
        raster.NO_DATA: (2, "-9999"),
    } | (changes or {})
    for tag, (kind, value) in written.items():
        tags.tagtype[tag], tags[tag] = kind, value
    Image.fromarray(heights).save(path, tiffinfo=tags)
    return path


def test_a_coarse_surface_model_has_no_holes(tmp_path):
    """Pixels of 2 m over cells of 1 m: each building covers all of its cells."""
    surface = np.zeros((40, 50), np.float32)
    surface[10:16, 20:30] = 30
    city = read_city(write_tiff(tmp_path / "a.tif", surface), cell_size=1.0).city
    assert city.heights.shape == (80, 100)
    np.testing.assert_array_equal(city.heights[21:31, 41:59], 30)
    assert (city.heights > 0).sum() <= 13 * 21


def test_a_tie_point_may_be_a_pixels_middle(tmp_path):
    surface = np.zeros((40, 50), np.float32)
    surface[10:16, 20:30] = 30
    keys = (1, 1, 0, 3, 1024, 0, 1, 2, 1025, 0, 1, 2, 2048, 0, 1, 4326)
    path = write_tiff(tmp_path / "a.tif", surface, {raster.GEO_KEYS: (3, keys)})
    origin = read_city(path, cell_size=4.0).city.origin
    # Half a pixel to the north and west.
    assert to_metres(np.array(origin), CORNER) == pytest.approx((-1, -1), abs=0.01)


def test_a_surface_model(tmp_path):
    """Buildings on a slope, a hedge, and a missing pixel."""
    rows, columns = 80, 100
    ground = np.broadcast_to(np.linspace(30, 40, columns, dtype=np.float32), (rows, columns)).copy()
    surface = ground.copy()
    surface[20:30, 40:50] += 25
    surface[60:62, 10:12] += 60
    surface[70:80, 90:100] += 1.5
    surface[0, 0] = -9999
    path = write_tiff(tmp_path / "a.tif", surface)
    reading = read_city(path, cell_size=20.0)
    city = reading.city
    assert city.heights.shape == (8, 10) and city.origin == pytest.approx(CORNER, abs=1e-9)
    expected = np.zeros((8, 10), bool)
    expected[2, 4] = expected[6, 1] = True
    np.testing.assert_array_equal(city.heights > 10, expected)
    assert 25 <= city.heights[2, 4] <= 36 and 60 <= city.heights[6, 1] <= 71
    for changes, words in [
        ({raster.PIXEL_SCALE: (12, (0.0, 1.0, 0.0))}, "pixels must have a size"),
        ({raster.TIE_POINT: (12, ())}, "does not tell where it lies|cannot be read"),
    ]:
        with pytest.raises(ConfigError, match=words):
            read_city(write_tiff(tmp_path / "b.tif", surface, changes))
    with pytest.raises(ConfigError, match="no building in it, or none within size of center"):
        read_city(path, cell_size=20.0, center=(10.0, 10.0), size=200.0)
    # Of a projection of one's own only the system below it is named, in degrees.
    own = (1, 1, 0, 3, 1024, 0, 1, 1, 2048, 0, 1, 4326, 3072, 0, 1, 32767)
    assert raster.system_of(own) is None
    assert raster.system_of((*own[:-1], 28992)) == "EPSG:28992"
    with pytest.raises(ConfigError, match="no pixel with a height"):
        read_city(write_tiff(tmp_path / "b.tif", np.full((9, 9), -9999, np.float32)))
    with pytest.raises(ConfigError, match="must have one band"):
        read_city(write_tiff(tmp_path / "b.tif", np.zeros((9, 9, 3), np.uint8)))


def test_no_fly_zones(tmp_path):
    path = write_json(tmp_path / "a.geojson", *FRAME)
    square = feature([box(40, 40, 60, 60)], ceiling="120 m")
    disc = feature(degrees((150, 100))[0], "Point", radius="30")
    far = feature(degrees((900, 900))[0], "Point", radius=100)
    zones = write_json(tmp_path / "zones.geojson", square, disc, far)
    reading = read_city(path, cell_size=20.0, zones=zones)
    expected = [[70, 70, 30 * np.sqrt(2), 120], [150, 100, 30, 500]]
    np.testing.assert_allclose(reading.city.no_fly, expected, atol=0.02)
    assert reading.notes == ["zone feature 3 lies outside the city and is left out"]
    reading.city.save(tmp_path / "city.npz")
    more = write_json(tmp_path / "more.geojson", disc)
    again = read_city(tmp_path / "city.npz", zones=more).city
    assert len(again.no_fly) == 3
    for bad, words in [
        (feature(degrees((9, 9))[0], "Point"), "radius = missing must be metres"),
        (feature(degrees((9, 9))[0], "Point", radius="wide"), "radius = wide"),
        (feature([box(0, 0, 9, 9)], ceiling=-1), "ceiling = -1 must be"),
        (feature([box(0, 0, 9, 9)[:2]]), "at least 4 points"),
        (feature([], "Point", radius=4), "no point's"),
        (feature(degrees((9, 9)), "LineString"), "a zone must be a Polygon"),
    ]:
        write_json(zones, bad)
        with pytest.raises(ConfigError, match=rf"zones.geojson .* feature 1: .*{words}"):
            read_city(path, cell_size=20.0, zones=zones)
    write_json(zones, *[disc] * 17)
    with pytest.raises(ConfigError, match="17 zones lie in the city: at most 16"):
        read_city(path, cell_size=20.0, zones=zones)
    np.save(tmp_path / "a.npy", np.zeros((4, 4)))
    with pytest.raises(ConfigError, match="need a map that tells its latitude"):
        read_city(tmp_path / "a.npy", zones=zones)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=1, max_size=9))
def test_the_smallest_circle(points):
    points = np.array(points, float)
    centre, radius = smallest_circle(points)
    distance = np.hypot(*(points - centre).T)
    assert (distance <= radius + 1e-6).all()
    # No circle is smaller: the points on its border lie on no half of it without the middle.
    border = np.unique(points[distance > radius - 1e-6], axis=0) - centre
    if radius > 0:
        angles = np.sort(np.arctan2(border[:, 1], border[:, 0]))
        gaps = np.diff([*angles, angles[0] + 2 * np.pi])
        assert len(border) >= 2 and gaps.max() <= np.pi + 1e-6


def test_the_command_makes_a_city_file(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.run(["city", "sample", "--out", "city.npz", "--cell-size", "20"]) == 0
    said = capsys.readouterr().out
    for words in (
        "sample.geojson: 900 x 680 m of 20 m cells, 45 x 34 cells",
        "highest roof 120.0 m",
        "north-western corner at latitude 44.999",
        "no-fly zone at x 91, y 364 m: radius 70, below 500 m",
        "note: 4 of 54 buildings tell no height: they are taken as 9 m",
        "wrote city.npz",
        "wrote city.png",
    ):
        assert words in said
    made = load_map(tmp_path / "city.npz")
    again = read_city(SAMPLE, cell_size=20.0, zones=SAMPLE_ZONES).city
    np.testing.assert_array_equal(made.heights, again.heights)
    np.testing.assert_array_equal(made.no_fly, again.no_fly)
    assert (tmp_path / "city.png").stat().st_size > 10_000
    # Towers of 260 ft, 28 storeys and 61,5 m are among the roofs, and the courtyard is open.
    assert {80, 84, 62, 36} <= set(made.heights.flat)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["city"], "--out is missing"),
        (["city", "--out", "a.npz"], "file is missing"),
        (["city", "gone.osm", "--out", "a.npz"], "file = gone.osm .*no such file"),
        (["city", "sample", "--out", "a.zip"], "out = a.zip .*npz"),
        (["city", "sample", "--out", "a.npz", "--center", "45"], "--center = 45 is not allowed"),
        (["city", "sample", "--out", "a.npz", "--cell-size", "0"], "cell_size = 0"),
    ],
)
def test_the_command_refuses_in_one_line(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=words):
        cli.run(arguments)
