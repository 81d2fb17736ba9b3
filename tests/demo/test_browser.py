"""The page in a real browser: type, press, see the picture change; every tab, bad input, two visitors at once, two
sizes of window. With `--screenshot` the picture of the page that the README shows is written:

    pytest -n 0 tests/demo/test_browser.py -k readme --screenshot model_cards/demo.png
"""

import base64
import io
import os
import queue
import re
import shutil
import threading
import wave
from time import sleep

import numpy as np
import pytest
import tiny_pipes
from PIL import Image

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
pytest.importorskip("gradio", reason="gradio is not installed: pip install 'mezzotint[demo]'")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

from mezzotint.demo.controls import Checkpoint  # noqa: E402
from mezzotint.demo.page import launch, make_page  # noqa: E402
from mezzotint_training.networks.saved import load_pipeline  # noqa: E402

WAIT = 60_000  # milliseconds, of a busy machine
PROMPTS = ("a red boot", "a green hat")


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_api.sync_playwright() as playwright:
        if path is None and not os.path.exists(playwright.chromium.executable_path):
            pytest.skip("no Chromium is installed: playwright install chromium")
        running = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield running
        running.close()


class Served:
    """A page that is served, and what its visitors' browsers asked for and complained of."""

    def __init__(self, pipe, browser, concurrency_limit: int = 2, **about):
        self.page = make_page(Checkpoint(pipe, **{"name": "tiny", "prompts": PROMPTS} | about), concurrency_limit)
        _, self.address, _ = launch(self.page, prevent_thread_lock=True, quiet=True)
        self.browser, self.requests, self.errors = browser, [], []

    def visit(self, width: int = 1280, height: int = 800):
        visitor = self.browser.new_context(viewport={"width": width, "height": height}).new_page()
        visitor.set_default_timeout(WAIT)
        visitor.on("request", lambda request: self.requests.append(request.url))
        visitor.on("pageerror", lambda error: self.errors.append(str(error)))
        visitor.goto(self.address)
        button(visitor, "Draw").wait_for()
        return visitor


@pytest.fixture(scope="module")
def served(browser):
    """`served(pipe)`: a page of the module, closed at its end; one for each name."""
    made: dict[str, Served] = {}

    def serve(name: str, make) -> Served:
        if name not in made:
            made[name] = Served(make(), browser)
        return made[name]

    yield serve
    for each in made.values():
        each.page.close(verbose=False)


@pytest.fixture
def tiny(served, make_pipe):
    return served("text", make_pipe)


def button(visitor, name: str):
    return visitor.get_by_role("button", name=name, exact=True).filter(visible=True).first


def go_to(visitor, name: str) -> None:
    tab = visitor.get_by_role("tab", name=name, exact=True).filter(visible=True)
    if not tab.count():  # which a narrow window keeps in a menu
        visitor.locator(".overflow-menu > button").click()
        tab = visitor.locator(".overflow-dropdown button", has_text=name)
    tab.first.click()
    visitor.wait_for_timeout(300)


def fill(visitor, label: str, value) -> None:
    field = visitor.get_by_label(label, exact=True).filter(visible=True).first
    field.fill(str(value))
    field.press("Tab")


def settle(visitor, steps: int = 3, pictures: int = 1, seed: int | None = 0, number: str = "Pictures") -> None:
    fill(visitor, "number input for Steps", steps)
    fill(visitor, f"number input for {number}", pictures)
    if seed is not None:
        again = visitor.get_by_label("new each time").filter(visible=True).first
        again.uncheck()
        fill(visitor, "Seed", seed)


def paint(visitor) -> None:
    """Drag the brush over the middle of the canvas in sight."""
    canvas, brush = (
        visitor.locator("canvas:visible").first,
        visitor.get_by_role("button", name="Brush").filter(visible=True),
    )
    brush.first.click() if brush.count() else None
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    visitor.mouse.move(*middle)
    visitor.mouse.down()
    visitor.mouse.move(middle[0] + 40, middle[1] + 10, steps=3)
    visitor.mouse.up()
    visitor.wait_for_timeout(500)


def animation(visitor) -> list[np.ndarray]:
    """The frames of the animation of the tab in sight."""
    link = visitor.locator(".animation a:visible")
    data = link.get_attribute("href").partition("base64,")[2]
    with Image.open(io.BytesIO(base64.b64decode(data))) as moving:
        frames = []
        for i in range(moving.n_frames):
            moving.seek(i)
            frames.append(np.asarray(moving.convert("RGB")))
    return frames


def draw(visitor, timeout: int = WAIT) -> list[np.ndarray]:
    """Press the button, wait for the picture to change, and give the animation's frames."""
    link = visitor.locator(".animation a:visible")
    before = link.get_attribute("href") if link.count() else None
    button(visitor, "Draw").click()
    visitor.wait_for_function(
        """before => [...document.querySelectorAll('.animation a')].some(
            a => a.offsetParent && a.href && a.href !== before)""",
        arg=before,
        timeout=timeout,
    )
    return animation(visitor)


def test_type_press_and_see_the_picture_change(tiny):
    visitor = tiny.visit()
    fill(visitor, "Prompt", "a red boot")
    settle(visitor, steps=3, pictures=2)
    first = draw(visitor)
    assert len(first) == 3
    assert visitor.locator("#text_to_image_pictures img").filter(visible=True).count() == 2
    fill(visitor, "Prompt", "something else")
    other = draw(visitor)
    assert not np.array_equal(first[-1], other[-1])
    fill(visitor, "Prompt", "a red boot")
    again = draw(visitor)
    np.testing.assert_array_equal(first[-1], again[-1])
    slider = visitor.get_by_label(re.compile("^number input for The reverse process")).filter(visible=True).first
    shown = visitor.get_by_text(re.compile("step 2 of 3, from t = "))
    shown.wait_for()
    slider.fill("1")
    slider.press("Tab")
    visitor.get_by_text(re.compile("step 1 of 3, from t = 999 on")).wait_for()
    visitor.context.close()
    assert tiny.errors == []
    assert {url.split("/")[2] for url in tiny.requests if url.startswith("http")} == {tiny.address.split("/")[2]}


def test_a_prompt_to_try_is_put_into_its_place(tiny):
    visitor = tiny.visit()
    button(visitor, "a green hat").click()
    sync_api.expect(visitor.get_by_label("Prompt", exact=True).filter(visible=True).first).to_have_value("a green hat")
    visitor.context.close()


def test_two_visitors_at_once_get_their_own(tiny):
    one, two = tiny.visit(), tiny.visit()
    for visitor, seed in ((one, 3), (two, 4)):
        settle(visitor, steps=40, seed=seed)
    alone = [draw(one), draw(two)]
    for visitor in (one, two):
        fill(visitor, "Seed", 9)
        draw(visitor)
    fill(one, "Seed", 3), fill(two, "Seed", 4)
    befores = [visitor.locator(".animation a:visible").get_attribute("href") for visitor in (one, two)]
    button(one, "Draw").click()
    button(two, "Draw").click()  # while the first one is drawn
    for visitor, before, expected in zip((one, two), befores, alone, strict=True):
        visitor.wait_for_function("before => document.querySelector('.animation a').href !== before", arg=before)
        for found, wanted in zip(animation(visitor), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
        visitor.context.close()
    assert not np.array_equal(alone[0][-1], alone[1][-1])


def test_bad_input_shows_a_line_of_ours_and_then_goes_on(tiny, tmp_path):
    visitor = tiny.visit()
    go_to(visitor, "Image to image")
    button(visitor, "Draw").click()
    visitor.get_by_text("a picture must be dropped in: got none").wait_for()
    (tmp_path / "no.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    visitor.locator("input[type=file]:below(:text('Picture'))").first.set_input_files(str(tmp_path / "no.png"))
    visitor.wait_for_timeout(500)
    button(visitor, "Draw").click()
    visitor.get_by_text("the file must be a picture that can be opened: got another").wait_for()
    go_to(visitor, "Text to image")
    settle(visitor, steps=2)
    assert len(draw(visitor)) == 2
    visitor.context.close()


def test_stop_ends_ones_own_drawing_between_steps_and_nobody_elses(served, make_pipe):
    taken = queue.SimpleQueue()  # evaluations of the network, each with the thread that it is in

    def slow():
        def wait(*_):
            taken.put(threading.get_ident())
            sleep(0.05)

        pipe = make_pipe()
        pipe.unet.register_forward_pre_hook(wait)
        return pipe

    one, two = (served("slow", slow).visit() for _ in range(2))
    settle(two, steps=4)
    expected = draw(two)
    settle(two, steps=20, seed=1)
    settle(one, steps=100)
    while not taken.empty():
        taken.get()
    before = two.locator(".animation a:visible").get_attribute("href")
    button(one, "Draw").click()
    ones = [taken.get(timeout=WAIT / 1000) for _ in range(3)]
    button(two, "Draw").click()
    button(one, "Stop").click()
    two.wait_for_function("before => document.querySelector('.animation a').href !== before", arg=before, timeout=WAIT)
    assert len(animation(two)) == 20
    one.wait_for_timeout(300)
    ones += [taken.get() for _ in range(taken.qsize())]
    assert 20 + 3 <= len(ones) < 20 + 90  # of hundred steps
    one.wait_for_timeout(300)
    assert taken.empty()  # nothing is drawn any more
    assert one.locator("#text_to_image_pictures img").filter(visible=True).count() == 0
    settle(one, steps=4)
    np.testing.assert_array_equal(draw(one)[-1], expected[-1])
    for visitor in (one, two):
        visitor.context.close()


def gallery(visitor, task: str) -> list[np.ndarray]:
    """The pictures that are shown, as they came from the server."""
    found = visitor.locator(f"#{task}_pictures button img").filter(visible=True)
    pictures = [visitor.request.get(found.nth(i).get_attribute("src")).body() for i in range(found.count())]
    return [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in pictures]


GIVEN = {"task": "upscale", "scale": 2}, {"task": "segment", "num_classes": 2}


@pytest.mark.parametrize("size", [(1280, 800), (400, 800)])
@pytest.mark.parametrize(
    ("condition", "channels", "number"), [(GIVEN[0], (7, 3), "Pictures"), (GIVEN[1], (5, 1), "Drawings")]
)
def test_a_picture_that_is_dropped_in_is_enlarged_or_divided(
    served, make_pipe, tmp_path, condition, channels, number, size
):
    task, (inside, out) = condition["task"], channels
    page = served(task, lambda: make_pipe(in_channels=inside, out_channels=out, condition=condition))
    visitor, drawn = page.visit(*size), []
    assert visitor.evaluate("document.documentElement.scrollWidth") <= size[0]
    for colour in ("red", "navy"):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{colour}.png")
        visitor.locator("input[type=file]").first.set_input_files(str(tmp_path / f"{colour}.png"))
        visitor.locator("img[alt='']:visible, .image-frame img:visible").first.wait_for()
        settle(visitor, steps=2, pictures=2, number=number)
        assert len(draw(visitor)) == 2
        drawn.append(gallery(visitor, task))
        if colour == "red":
            button(visitor, "Clear").click() if button(visitor, "Clear").count() else None
    assert [len(pictures) for pictures in drawn] == [2, 2]
    assert not np.array_equal(drawn[0][0], drawn[1][0])
    assert {pictures[0].shape for pictures in drawn} == {(8, 8, 3)}
    visitor.context.close()
    assert page.errors == []


@pytest.mark.parametrize("size", [(1280, 800), (400, 800)])
def test_a_layout_is_painted_and_drawn(served, make_pipe, size):
    page = served("layout", lambda: make_pipe(in_channels=5, condition={"task": "layout", "num_classes": 2}))
    visitor = page.visit(*size)
    settle(visitor, steps=2)
    empty = draw(visitor)
    paint(visitor)
    painted = draw(visitor)
    assert len(painted) == 2 and not np.array_equal(empty[-1], painted[-1])
    visitor.context.close()
    assert page.errors == []


@pytest.mark.parametrize("size", [(1280, 800), (400, 800)])
def test_every_tab_at_every_size_of_window(tiny, tmp_path, size):
    """A picture is drawn, taken to the other tabs, changed, painted over, and dissolved."""
    visitor = tiny.visit(*size)
    for width in visitor.evaluate("[document.documentElement.scrollWidth, innerWidth]"):
        assert width <= size[0]
    settle(visitor, steps=2)
    # what is opened changes nothing of what is drawn: a number there that nobody touched
    first = draw(visitor)
    visitor.get_by_role("button", name="More").filter(visible=True).last.click()
    visitor.get_by_label("and up to").filter(visible=True).first.wait_for()
    fill(visitor, "Seed", 1)
    assert not np.array_equal(draw(visitor)[-1], first[-1])
    fill(visitor, "Seed", 0)
    np.testing.assert_array_equal(draw(visitor)[-1], first[-1])
    button(visitor, "→ image to image").click()
    visitor.get_by_text("Drop in a picture and write what is to become of it.").wait_for()
    settle(visitor, steps=4)
    changed = draw(visitor)
    assert len(changed) == 3  # of four steps the last 0.8
    assert not np.array_equal(first[-1], changed[-1])

    go_to(visitor, "Text to image")
    button(visitor, "→ inpaint").click()
    visitor.locator("canvas:visible").first.wait_for()
    settle(visitor, steps=2)
    visitor.wait_for_timeout(1000)
    paint(visitor)
    inpainted = draw(visitor)
    assert len(inpainted) == 2

    go_to(visitor, "Text to image")
    button(visitor, "→ watch it dissolve").click()
    before = visitor.locator("p", has_text="signal-to-noise ratio").inner_text()
    slider = visitor.get_by_label("number input for Timestep t", exact=True)
    slider.fill("900")
    slider.press("Tab")
    said = "[...document.querySelectorAll('p')].map(p => p.innerText).find(text => text.includes('signal-to-noise'))"
    visitor.wait_for_function(f"before => {said} !== before", arg=before)
    visitor.context.close()
    assert tiny.errors == []


def test_a_sound_is_drawn_and_can_be_played(served):
    page = served("sound", lambda: tiny_pipes.sound(rate=8000))  # browsers play from 3,000 Hz on
    visitor = page.visit()
    settle(visitor, steps=2, pictures=2, number="Sounds")
    fill(visitor, "Seconds", 0.03)
    assert len(draw(visitor)) == 2
    players = visitor.locator("audio[src]")
    sync_api.expect(players).to_have_count(2)
    for player in players.all():
        content = player.evaluate("async one => [...new Uint8Array(await (await fetch(one.src)).arrayBuffer())]")
        with wave.open(io.BytesIO(bytes(content))) as sound:
            assert sound.getnframes() == 240 and sound.getframerate() == 8000
    visitor.locator(".play-pause-button").filter(visible=True).first.click()
    played = players.first.evaluate(
        """async one => {
            for (let i = 0; i < 200 && !one.played.length; i++) await new Promise(go => setTimeout(go, 50))
            return one.played.length
        }"""
    )
    assert played == 1
    assert len(gallery(visitor, "text_to_sound")) == 2
    visitor.context.close()
    assert page.errors == []
    assert {url.split("/")[2] for url in page.requests if url.startswith("http")} == {page.address.split("/")[2]}


def test_a_video_moves_in_the_gallery(served):
    page = served("video", tiny_pipes.video)
    visitor = page.visit()
    settle(visitor, steps=2, pictures=2, number="Videos")
    assert len(draw(visitor)) == 2
    shown = visitor.locator("#text_to_video_pictures button img").filter(visible=True)
    assert shown.count() == 2
    data = visitor.request.get(shown.first.get_attribute("src")).body()
    with Image.open(io.BytesIO(data)) as moving:
        assert moving.format == "WEBP" and moving.n_frames == 3 and moving.size == (12, 8)
    visitor.context.close()
    assert page.errors == []


def test_the_readme_shows_the_page(request, browser):
    path = request.config.getoption("--screenshot")
    if path is None:
        pytest.skip("--screenshot FILE writes the picture")
    checkpoint = request.config.getoption("--screenshot-checkpoint")
    about = Checkpoint.of(load_pipeline(checkpoint), checkpoint, os.path.basename(checkpoint))
    shown = Served(about.pipe, browser, prompts=about.prompts, name=about.name, defaults=about.defaults)
    visitor = shown.visit(1280, 800)
    settle(visitor, steps=20, pictures=4)
    visitor.set_default_timeout(10 * WAIT)
    draw(visitor, 10 * WAIT)
    visitor.mouse.move(0, 0)
    visitor.wait_for_timeout(1000)
    picture = Image.open(io.BytesIO(visitor.screenshot()))
    picture.convert("RGB").quantize(192, dither=Image.Dither.NONE).save(path, optimize=True)
    shown.page.close(verbose=False)
    assert os.path.getsize(path) < 200_000
