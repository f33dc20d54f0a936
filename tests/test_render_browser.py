"""The 3-D replay in a real browser, without a network."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from test_render import CELL, STEPS, large_episode, small_episode

from jaxqmix.render import render
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

    def visit(size=(1200, 750), phone=False, notebook=False, large=False, **options):
        out = tmp_path / "replay.html"
        if notebook:
            out.write_text(show(small_episode(), cell_size=CELL, **options).data, encoding="utf-8")
        else:
            episode, cell_size = (large_episode(), 50.0) if large else (small_episode(), CELL)
            render(episode, out, cell_size=cell_size, **options)
        viewport = {"width": size[0], "height": size[1]}
        context = browser.new_context(viewport=viewport, has_touch=phone, offline=True)
        contexts.append(context)
        context.route("http*://**", refuse)
        page = context.new_page()
        page.on("console", note)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.goto(out.as_uri())
        page = page.frames[1] if notebook else page
        assert page.evaluate("replay.ready"), "the browser draws no WebGL"
        return page

    yield visit
    for context in contexts:
        context.close()
    assert troubles == []


def figure(page, name, view=0):
    return page.locator(".view").nth(view).locator(f'[data-figure="{name}"]').inner_text()


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
            if (steps.length === 40) resolve(steps);
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
    assert "Drone 2" in page.locator(".more").inner_text()
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
    assert "over after 3 steps" in page.locator(".more").nth(1).inner_text()


@pytest.mark.parametrize("size", [(390, 844), (844, 390)])
def test_a_phone_shows_everything_without_scrolling(visit, size):
    page = visit(size=size, phone=True, title="A rather long title of a learned policy")
    for name in ("#play", "#slider", "#clock", "#speed", "#follow", "#trail", ".card", ".compass"):
        box = page.locator(name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= size[0], name
        assert box["y"] >= 0 and box["y"] + box["height"] <= size[1], name
    stage = page.locator(".window").bounding_box()
    assert stage["height"] > 0.4 * size[1]
    page.locator("#play").tap()
    assert page.evaluate("replay.playing")


def test_a_replay_runs_inside_a_notebook(visit):
    pytest.importorskip("IPython", reason="needs IPython (pip install ipykernel)")
    frame = visit(notebook=True, title="Policy")
    frame.locator("#slider").fill("4")
    assert frame.locator("#clock").inner_text() == f"step 4 of {STEPS}"
    assert figure(frame, "coverage") == "25.1 %"
