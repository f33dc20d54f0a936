"""The 3-D replay in a real browser, without a network."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from test_render import CELL, STEPS, large_episode, small_episode

from jaxqmix.render import render, replay
from jaxqmix.render.notebook import show
from jaxqmix.types import replace

playwright = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright (pip install playwright)"
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on the path")

SWITCHES = (
    "--no-sandbox",
    "--disable-gpu",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=SWITCHES)
        yield running
        running.close()


@pytest.fixture
def visit(browser, tmp_path):
    """Opens a replay offline; at the end there must have been no error and no request."""
    contexts, troubles = [], []

    def note(message):
        if message.type == "error":
            troubles.append(message.text)

    def refuse(route):
        troubles.append(f"request to {route.request.url}")
        route.abort()

    def visit(
        episode=None, size=(800, 500), phone=False, notebook=False, large=False, part="", **options
    ):
        out = tmp_path / "replay.html"
        if notebook:
            shown = show(small_episode(), cell_size=CELL, **options)
            out.write_text(shown.data["text/html"], encoding="utf-8")
        else:
            flown, cell_size = (large_episode(), 50.0) if large else (small_episode(), CELL)
            render(episode or flown, out, cell_size=cell_size, **options)
        viewport = {"width": size[0], "height": size[1]}
        context = browser.new_context(
            viewport=viewport, has_touch=phone, offline=True, color_scheme="dark"
        )
        contexts.append(context)
        context.route("http*://**", refuse)
        page = context.new_page()
        page.on("console", note)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.goto(out.as_uri() + part)
        page = page.frames[1] if notebook else page
        assert page.evaluate("replay.ready"), "the browser draws no WebGL"
        return page

    yield visit
    for context in contexts:
        context.close()
    assert troubles == []


def figure(page, name, view=0):
    cell = page.locator(f'[data-figure="{name}"][data-view="{view}"]')
    return words(cell)


def words(place):
    """The text of a place, with usual spaces."""
    return place.inner_text().replace("\xa0", " ")


def pixels(page):
    """What the picture looks like now."""
    page.wait_for_timeout(400)
    return page.locator("#stage").screenshot()


def test_the_slider_moves_the_swarm_and_the_figures(visit):
    page = visit(title="Policy")
    assert page.title() == "Policy"
    assert page.locator("#clock").inner_text() == f"step 0 of {STEPS}"
    assert figure(page, "coverage") == "5.0 %" and figure(page, "conflicts") == "0"
    before = pixels(page)
    page.locator("#slider").fill("4")
    assert page.evaluate("replay.step") == 4
    assert figure(page, "coverage") == "25.1 %"
    assert figure(page, "conflicts") == "2" and figure(page, "violations") == "0"
    assert pixels(page) != before
    page.locator("#slider").press("ArrowRight")
    assert page.evaluate("replay.step") == 5 and figure(page, "violations") == "1"
    page.evaluate("replay.setStep(99)")
    assert page.evaluate("replay.step") == STEPS


def test_play_advances_to_the_end_and_starts_again(visit):
    page = visit()
    page.locator("#speed").select_option("20")
    page.locator("#play").click()
    # The page forbids evaluating text, which waiting for an expression would need.
    playwright.expect(page.locator("#clock")).to_have_text(f"step {STEPS} of {STEPS}")
    playwright.expect(page.locator("#play")).to_have_attribute("aria-label", "Play")
    assert figure(page, "coverage") == "35.1 %"
    page.locator("#speed").select_option("2")
    page.locator("#play").click()
    assert page.evaluate("replay.playing && replay.step") in (0, 1)
    page.evaluate("replay.pause()")
    assert not page.evaluate("replay.playing")


def test_twenty_drones_and_400_steps_play(visit):
    page = visit(large=True, size=(480, 320))
    steps = page.evaluate(
        """() => new Promise((resolve) => {
          const request = window.requestAnimationFrame.bind(window), steps = [];
          window.requestAnimationFrame = (callback) => request((now) => {
            callback(now);
            steps.push(replay.step);
            if (steps.length === 20) resolve(steps);
          });
          replay.play();
        })"""
    )
    assert steps == sorted(steps) and 0 < steps[-1] < 400


def test_following_and_turning_change_the_picture(visit):
    page = visit()
    whole = pixels(page)
    page.locator("#follow").select_option("1")
    assert pixels(page) != whole
    assert words(page.locator("#more")) == "Drone 2: 40 m up, command received."
    page.locator("#follow").select_option("")
    box = page.locator("#canvas").bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 120, middle[1], steps=5)
    page.mouse.up()
    assert pixels(page) != whole
    assert page.locator(".north").get_attribute("transform") != "rotate(0)"


def test_two_episodes_share_one_slider(visit):
    shorter = replace(small_episode(), length=np.int32(3))
    page = visit(title="Policy", other=shorter, other_title="Planner")
    assert page.evaluate("replay.views") == 2
    page.locator("#slider").fill("5")
    assert figure(page, "violations", view=0) == "1"
    assert figure(page, "violations", view=1) == "0"
    assert figure(page, "coverage", view=1) == "20.1 %"
    assert "over after 3 steps" in words(page.locator(".view h2").nth(1))


def test_the_sooner_of_two_is_named_at_the_top_and_at_the_end(visit):
    first, second = small_episode(), small_episode()
    first.coverage[4:], second.coverage[5:] = 0.92, 0.93
    for other, title, said in (
        (second, "Planner", "is 1 step (20 %) sooner: it has seen 90 % after 4 steps"),
        (small_episode(), "Planner", "has seen 90 % after 4 steps; Planner never, with 35.1 %"),
        (first, "Policy", "Both have seen 90 % after 4 steps."),
    ):
        page = visit(first, title="Policy", other=other, other_title=title)
        assert said in words(page.locator("#verdict"))
        assert page.locator("#outcome").is_hidden()
        page.keyboard.press("End")
        assert words(page.locator("#outcome")) == words(page.locator("#verdict"))
        assert figure(page, "at90") == "4"


def test_keys_buttons_and_links_go_to_a_step(visit):
    page = visit(part="#step=3&follow=2&trail=whole")
    assert page.evaluate("replay.step") == 3
    assert page.locator("#follow").input_value() == "1"
    assert page.locator("#trail").input_value() == "whole"
    page.locator("#play").focus()
    for key, step in (("End", STEPS), ("ArrowLeft", STEPS - 1), ("Home", 0), ("ArrowRight", 1)):
        page.keyboard.press(key)
        assert page.evaluate("replay.step") == step, key
    page.keyboard.press("PageDown")
    page.keyboard.press("r")
    assert page.evaluate("replay.step") == STEPS and page.locator("#follow").input_value() == ""
    for name, step in (("first", 0), ("forward10", STEPS), ("back", STEPS - 1), ("back10", 0)):
        page.locator(f"#{name}").click()
        assert page.evaluate("replay.step") == step, name
    page.locator("#last").click()
    page.locator("#link").click()
    assert page.url.endswith(f"#step={STEPS}&trail=whole")
    page.keyboard.press("?")
    assert page.locator("#keys dl").is_visible()
    with page.expect_download() as download:
        page.keyboard.press("s")
    assert download.value.suggested_filename == f"replay-step-{STEPS}.png"


def test_the_timeline_tells_the_step_under_the_pointer(visit):
    page = visit(title="Policy")
    rows = page.locator("#chart .word").all_text_contents()
    assert rows == ["95 %", "90 %", "seen", "lost", "conflicts", "no-fly"]
    assert page.locator("#chart .level").count() == 2
    box = page.locator("#slider").bounding_box()
    page.mouse.move(box["x"] + 8 + (box["width"] - 16) * 3 / STEPS, box["y"] + 20)
    lines = page.locator("#tip p").all_text_contents()
    assert [line.replace("\xa0", " ") for line in lines] == ["step 3", "20.1 % seen, 2 conflicts"]


def test_a_title_never_becomes_markup(visit):
    title = '<img src=x onerror="document.title=1"><b>Policy</b> & "Co"'
    page = visit(title=title, other=small_episode(), other_title=title)
    assert page.locator("#title").inner_text() == f"{title} (left) and {title} (right)"
    assert page.locator("#stage img, #stage b b, #panel img, #panel h1 b").count() == 0


def test_the_page_follows_the_systems_theme(visit):
    page = visit()
    dark = pixels(page)
    page.emulate_media(color_scheme="light")
    assert pixels(page) != dark
    assert page.evaluate("theme.ink") == replay.LIGHT["ink"]


def test_more_drones_are_no_more_draw_calls(visit):
    calls = []
    for large in (False, True):
        page = visit(large=large, size=(480, 320))
        pixels(page)
        calls.append(page.evaluate("replay.calls"))
    assert calls[1] <= calls[0] <= 16


@pytest.mark.parametrize("size", [(390, 844), (844, 390)])
def test_a_phone_shows_everything_without_scrolling(visit, size):
    page = visit(size=size, phone=True, title="A rather long title of a learned policy")
    for name in ("#play", "#slider", "#clock", "#speed", "#follow", "#trail", "#verdict", "#help"):
        box = page.locator(name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= size[0], name
        assert box["y"] >= 0 and box["y"] + box["height"] <= size[1], name
    stage = page.locator(".window").bounding_box()
    assert stage["height"] > 0.4 * size[1]
    assert page.locator("#legend").is_hidden()
    page.locator("#help").tap()
    assert page.locator("#legend").is_visible()
    page.locator("#play").tap()
    assert page.evaluate("replay.playing")


def test_a_replay_runs_inside_a_notebook(visit):
    frame = visit(notebook=True, title="Policy")
    frame.locator("#slider").fill("4")
    assert frame.locator("#clock").inner_text() == f"step 4 of {STEPS}"
    assert figure(frame, "coverage") == "25.1 %"
