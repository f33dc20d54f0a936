"""Pictures of a small episode: the right kind of file, size and colours."""

from __future__ import annotations

import base64
import builtins
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest

from jaxqmix.config import ConfigError
from jaxqmix.render import painting, render, replay, scene
from jaxqmix.render.animation import shown_steps
from jaxqmix.render.still import ground_image
from jaxqmix.types import DELAYED, LOST, Episode, Events, replace

CELL = 10.0
ROWS, COLUMNS, DRONES, STEPS, HORIZON = 12, 20, 2, 6, 8


def small_episode() -> Episode:
    """Two drones fly east for 6 of 8 steps; columns become seen one by one, from the west.

    The city is 12 x 20 cells of 10 m. One 200 m building stands at row 2, column 15, cell (11, 19)
    is not coverable, and one cylinder stands at x = 150 m, y = 80 m.
    """
    heights = np.zeros((ROWS, COLUMNS), np.uint8)
    heights[2, 15] = 200
    coverable = np.ones((ROWS, COLUMNS), bool)
    coverable[11, 19] = False
    seen_at = np.full((ROWS, COLUMNS), -1, np.int32)
    seen_at[:, : STEPS + 1] = np.arange(STEPS + 1)
    step = np.minimum(np.arange(HORIZON + 1), STEPS)
    positions = np.zeros((HORIZON + 1, DRONES, 3), np.float32)
    positions[..., 0] = 5 + CELL * step[:, None]
    positions[:, 0, 1], positions[:, 1, 1] = 25, 95
    positions[..., 2] = 40
    coverage = np.zeros(HORIZON + 1, np.float32)
    coverage[: STEPS + 1] = (np.arange(STEPS + 1) + 1) * ROWS / coverable.sum()
    flags = {name: np.zeros((HORIZON, DRONES), bool) for name in ("conflict", "violation")}
    flags["conflict"][2] = True
    flags["violation"][4, 1] = True
    link = np.zeros((HORIZON, DRONES), np.int32)
    link[1, 0], link[3, 1] = LOST, DELAYED
    still = np.zeros((HORIZON, DRONES), bool)
    return Episode(
        heights=heights,
        no_fly=np.array([[150, 80, 25, 120]], np.float32),
        coverable=coverable,
        seen_at=seen_at,
        positions=positions,
        radii=np.full((HORIZON + 1, DRONES), 12.0, np.float32),
        actions=np.full((HORIZON, DRONES), 3, np.int32),
        link=link,
        events=Events(np.full((HORIZON, DRONES), 3), building_hit=still, border=still, **flags),
        reward=np.zeros(HORIZON, np.float32),
        coverage=coverage,
        length=np.int32(STEPS),
        wind=np.array([3.0, 4.0], np.float32),
        visibility=np.float32(1),
    )


def opened(path):
    from PIL import Image

    return Image.open(path)


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(
        ConfigError, match=r"x\.foo is not allowed: must end in \.png, \.gif, \.mp4 or \.html"
    ):
        render(small_episode(), tmp_path / "x.foo", cell_size=CELL)
    assert not list(tmp_path.iterdir())


def test_a_batch_of_episodes_is_refused(tmp_path):
    episode = small_episode()
    batch = replace(episode, positions=episode.positions[None], heights=episode.heights[None])
    with pytest.raises(ConfigError, match="must be one episode"):
        render(batch, tmp_path / "x.png", cell_size=CELL)


def test_trim_drops_the_padding_and_figures_count_drone_steps():
    episode = scene.trim(small_episode())
    assert episode.positions.shape == (STEPS + 1, DRONES, 3)
    assert episode.events.conflict.shape == (STEPS, DRONES)
    figures = scene.running_metrics(episode)
    assert figures.conflicts.tolist() == [0, 0, 0, 2, 2, 2, 2]
    assert figures.violations.tolist() == [0, 0, 0, 0, 0, 1, 1]
    zones = np.array([[50, 60, 20, 90], [0, 0, 0, 0]], np.float32)  # the second fills up
    padded = replace(small_episode(), no_fly=zones)
    np.testing.assert_array_equal(scene.trim(padded).no_fly, zones[:1])
    expected = "coverage 35.1 % · 2 conflicts · 0 building hits · 1 violation"
    assert figures.caption(STEPS) == expected


@pytest.mark.parametrize(
    ("wind", "words"),
    [
        ((0, 0), "no wind"),
        ((2, 0), "wind 2.0 m/s to E"),
        ((0, 3), "wind 3.0 m/s to S"),
        ((0, -3), "wind 3.0 m/s to N"),
        ((-1, -1), "wind 1.4 m/s to NW"),
    ],
)
def test_wind_words_have_north_where_y_is_small(wind, words):
    assert scene.wind_words(np.array(wind, np.float32)) == words


def test_ground_shows_seen_unseen_hidden_and_buildings():
    image = ground_image(scene.trim(small_episode()))
    assert image.shape == (ROWS, COLUMNS, 3)
    assert image[0, STEPS].tolist() == scene.rgb(scene.SEEN).tolist()
    assert image[0, STEPS + 1].tolist() == scene.rgb(scene.UNSEEN).tolist()
    assert image[11, 19].tolist() == scene.rgb(scene.HIDDEN).tolist()
    assert (image[2, 15] < image[2, 14]).all()


@pytest.mark.parametrize("other", [False, True])
def test_still(tmp_path, other):
    episode = small_episode()
    second = {"other": episode, "other_title": "Planner"} if other else {}
    calls = []
    out = render(
        episode,
        tmp_path / "new" / "still.PNG",
        cell_size=CELL,
        title="Policy",
        progress=lambda *call: calls.append(call),
        **second,
    )
    with opened(out) as image:
        assert image.format == "PNG"
        width, height = image.size
        colours = {colour for _, colour in image.convert("RGB").getcolors(2**24)}
    assert width > height and (width > 1800) == other
    for colour in (scene.SEEN, scene.UNSEEN, scene.HUES[0], scene.HUES[1], scene.CONFLICT):
        assert tuple(scene.rgb(colour).astype(int)) in colours
    assert calls == [(1, 1)]


def test_a_painted_map_shows_what_is_seen_by_then():
    episode = scene.trim(small_episode())
    panel = painting.Panel(episode, "", CELL, side=200)
    assert panel.map == (120, 200)
    first, last = panel.paint(0), panel.paint(STEPS)
    names = ("SEEN", "UNSEEN", "LOOKED_AT", "HIDDEN")
    kinds = {name: getattr(painting, f"{name}_SHADES") for name in names}
    # Row 6 lies between the drones, far from every footprint; 10 pixels are a cell.
    assert first[65, 5] == last[65, 5] == kinds["SEEN"]
    assert first[65, 35] == kinds["UNSEEN"] and last[65, 35] == kinds["SEEN"]
    assert first[65, 75] == last[65, 75] == kinds["UNSEEN"]
    assert last[119, 198] == kinds["HIDDEN"]
    assert first[33, 5] == kinds["LOOKED_AT"]  # 8 m south of the first drone
    assert kinds["UNSEEN"] < last[25, 155] < kinds["SEEN"]  # the building
    assert last[25, 70] == painting.FIRST_DRONE and last[95, 70] == painting.FIRST_DRONE + 1


def test_a_lost_and_a_late_command_look_different():
    episode = scene.trim(small_episode())
    panel = painting.Panel(episode, "", CELL, side=200)
    badges = {}
    for step in (1, 2, 4):
        frame = panel.paint(step)
        right, above = 5 + 10 * step + painting.DISC, painting.DISC
        badges[step] = [
            frame[y - above - 2 : y - above + 3, right - 2 : right + 3] for y in (25, 95)
        ]
    white_and_ink = {painting.PAPER, painting.INK}
    received, lost = badges[1][0], badges[2][0]
    assert painting.INK not in received
    assert set(np.unique(lost)) == white_and_ink and lost[2, 2] == painting.INK  # a cross
    late = badges[4][1]
    assert (late[:, :2] == painting.INK).all() and (late[:, 3:] == painting.PAPER).all()


def test_a_frame_tells_who_flies_and_which_drone_is_which():
    """The title, a number in every drone, and what cannot be seen in the key and hatched."""
    episode = scene.trim(small_episode())
    panel = painting.Panel(episode, "", CELL, side=200)
    frame = panel.paint(STEPS)
    for y, drone in ((25, 0), (95, 1)):
        disc = frame[y - 5 : y + 6, 60:71]
        assert (disc == painting.FIRST_DRONE + drone).any() and (disc == painting.PAPER).any()
    assert len(np.unique(frame[110:, 190:])) == 2
    named = painting.Panel(episode, "Policy", CELL, side=200)
    plain, titled = (painting.Sheet([item]).paint(STEPS, STEPS) for item in (panel, named))
    assert (plain != titled).any(axis=1).nonzero()[0].max() < painting.HEADER
    everywhere = painting.Panel(
        replace(episode, coverable=np.ones_like(episode.coverable)), "", CELL, side=200
    )
    key = slice(painting.HEADER + 120, None)
    without = painting.Sheet([everywhere]).blank
    assert (painting.Sheet([panel]).blank[key] != without[key]).any()


@pytest.mark.parametrize("other", [False, True])
def test_gif_holds_exactly_the_painted_frames(tmp_path, other):
    episode, calls = small_episode(), []
    out = render(
        episode,
        tmp_path / "flight.gif",
        cell_size=CELL,
        other=replace(episode, length=np.int32(3)) if other else None,
        progress=lambda *call: calls.append(call),
    )
    episodes = [scene.trim(episode)]
    if other:
        episodes.append(scene.trim(replace(episode, length=np.int32(3))))
    side = 400 if other else 500
    sheet = painting.Sheet([painting.Panel(item, "", CELL, side) for item in episodes])
    colours = painting.palette()
    with opened(out) as image:
        assert image.format == "GIF" and image.n_frames == STEPS + 1
        for step in range(STEPS + 1):
            image.seek(step)
            expected = colours[sheet.paint(step, STEPS)]
            np.testing.assert_array_equal(np.asarray(image.convert("RGB")), expected)
    assert calls == [(done, STEPS + 1) for done in range(1, STEPS + 2)]


def test_the_side_of_an_animation_can_be_chosen(tmp_path):
    out = render(small_episode(), tmp_path / "flight.gif", cell_size=CELL, side=600)
    with opened(out) as image:
        assert image.size == (600 + 2 * painting.MARGIN, 360 + painting.HEADER + painting.FOOTER)
    # With fewer pixels than cells, every second cell.
    render(small_episode(), tmp_path / "flight.gif", cell_size=CELL, side=10)
    with opened(tmp_path / "flight.gif") as image:
        assert image.size[1] == 6 + painting.HEADER + painting.FOOTER
    with pytest.raises(ConfigError, match="side = 0 is not allowed"):
        render(small_episode(), tmp_path / "flight.gif", cell_size=CELL, side=0)


def test_long_episodes_skip_steps_but_keep_the_ends():
    assert shown_steps(6, 220) == list(range(7))
    steps = shown_steps(1001, 220)
    assert steps[0] == 0 and steps[-1] == 1001 and len(steps) <= 222
    assert shown_steps(0, 220) == [0]


def test_mp4(tmp_path):
    pytest.importorskip("imageio_ffmpeg", reason="the extra video is not installed")
    from imageio_ffmpeg import count_frames_and_secs

    out = render(small_episode(), tmp_path / "flight.mp4", cell_size=CELL)
    frames, seconds = count_frames_and_secs(str(out))
    assert frames >= STEPS + 1 and seconds > 2


def test_mp4_without_the_extra_names_it(tmp_path, monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **options):
        if name == "imageio_ffmpeg":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match=r'pip install "\.\[video\]"'):
        render(small_episode(), tmp_path / "flight.mp4", cell_size=CELL)


def page_data(page: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])


def test_replay_holds_the_episode_and_needs_no_network(tmp_path):
    episode = small_episode()
    title = "</script><b>Policy & Co</b>"
    out = render(episode, tmp_path / "replay.html", cell_size=CELL, title=title, other=episode)
    page = out.read_text(encoding="utf-8")
    assert "{{" + "data}}" not in page and "<title>&lt;/script&gt;" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    data = page_data(page)
    assert len(data["views"]) == 2
    view = data["views"][0]
    assert view["title"] == title
    assert (view["rows"], view["columns"]) == (ROWS, COLUMNS)
    assert (view["length"], view["drones"]) == (STEPS, DRONES)
    positions = np.frombuffer(base64.b64decode(view["positions"]), "<i2") * view["unit"]
    positions = positions.reshape(STEPS + 1, DRONES, 3)
    middle = [COLUMNS * CELL / 2, ROWS * CELL / 2, 0]
    np.testing.assert_allclose(positions + middle, episode.positions[: STEPS + 1], atol=0.051)
    seen_at = np.frombuffer(base64.b64decode(view["seenAt"]), "<i2").reshape(ROWS, COLUMNS)
    np.testing.assert_array_equal(seen_at, episode.seen_at)
    marks = np.frombuffer(base64.b64decode(view["marks"]), "u1").reshape(STEPS, DRONES)
    assert marks.tolist() == [[0, 0], [LOST, 0], [4, 4], [0, DELAYED], [0, 16], [0, 0]]


def test_replay_of_a_very_wide_city_keeps_positions_in_16_bits(tmp_path):
    out = render(small_episode(), tmp_path / "wide.html", cell_size=5000.0)
    view = page_data(out.read_text(encoding="utf-8"))["views"][0]
    positions = np.frombuffer(base64.b64decode(view["positions"]), "<i2") * view["unit"]
    assert positions[0] + COLUMNS * 2500 == pytest.approx(5, abs=view["unit"])


def large_episode() -> Episode:
    """Twenty drones anywhere for 400 steps, in a city of 5 km with a fifth of its cells built."""
    random = np.random.default_rng(0)
    shape = (400, 20)
    flags = Events(*(random.random(shape) < 0.1 for _ in range(5)))
    return replace(
        small_episode(),
        heights=np.where(random.random((100, 100)) < 0.2, 100, 0).astype(np.uint8),
        coverable=np.ones((100, 100), bool),
        seen_at=random.integers(-1, 400, (100, 100)),
        positions=random.random((401, 20, 3)) * 5000,
        radii=np.full((401, 20), 120.0),
        actions=np.zeros(shape, int),
        link=random.integers(0, 3, shape),
        events=flags,
        reward=np.zeros(400),
        coverage=np.linspace(0, 1, 401),
        length=np.int32(400),
    )


def test_a_replay_of_twenty_drones_and_400_steps_is_below_five_megabytes(tmp_path):
    out = render(large_episode(), tmp_path / "large.html", cell_size=50.0)
    assert out.stat().st_size < 1.5e6


# Machado, Oliveira and Fernandes (2009), severity 1, on linear light; and Ottosson's OKLab (2020).
SIGHT = {
    "usual": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
CONES = [
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
]
OPPONENTS = [
    [0.2104542553, 0.7936177850, -0.0040720468],
    [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
]


def seen_distance(first: str, second: str, sight: str) -> float:
    """How far apart two colours look: 100 is from black to white, 2 is just noticed."""

    def look(colour):
        value = scene.rgb(colour) / 255
        light = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
        light = np.clip(np.array(SIGHT[sight]) @ light, 0, 1)
        return np.array(OPPONENTS) @ np.cbrt(np.array(CONES) @ light)

    return 100 * float(np.linalg.norm(look(first) - look(second)))


PICTURE = {"unseen": scene.UNSEEN, "seen": scene.SEEN, "hidden": scene.HIDDEN}
GROUND = ("unseen", "seen", "fresh", "hidden", "zone")


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize(
    "colours",
    [PICTURE, *({name: theme[name] for name in GROUND} for theme in (replay.DARK, replay.LIGHT))],
    ids=["picture", "dark", "light"],
)
def test_ground_and_zones_look_different_to_everybody(colours, sight):
    for one, other in itertools.combinations(colours, 2):
        assert seen_distance(colours[one], colours[other], sight) > 8, (one, other)


def test_drones_of_one_hue_differ_by_another_mark():
    """Tone and shape of a number: 3 and 4 repeat together after 12 rounds of the hues."""
    drones, hues = 80, len(scene.HUES)
    assert f"const HUES = {hues};" in replay.asset("flight.js")
    colours = scene.drone_colours(drones)
    marks = {(*colours[drone], drone // hues % 4) for drone in range(drones)}
    assert len(marks) == drones


def test_every_colour_that_the_page_uses_has_a_value_in_both_themes():
    used = set(re.findall(r"var\(--([a-z-]+)\)", replay.asset("replay.css")))
    assert used - {"colour", "left", "right"} <= set(replay.DARK)
    assert set(replay.DARK) == set(replay.LIGHT)


GALLERY = sorted((Path(__file__).parents[1] / "benchmarks/results/gallery").glob("*.html"))


@pytest.mark.parametrize("path", GALLERY, ids=[path.stem for path in GALLERY])
def test_the_gallery_is_small_and_needs_no_network(path):
    assert len(GALLERY) == 3 and path.stat().st_size < 1.5e6
    page = path.read_text(encoding="utf-8")
    assert page_data(page)["views"] and not re.search(r'(src|href)="(?!data:)', page)
