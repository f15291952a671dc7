"""The page in Debian's Chromium: pictures move, sliders act, sources go down and come back."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from edgerpn.runtime.web import routes
from tests.support import browser as browser_helpers
from tests.support import patience

Make = Callable[..., Any]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

BOXES = """
const canvas = document.querySelector(`[data-source="${arguments[0]}"] canvas`);
const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
let count = 0;
let sum = 0;
for (let i = 0; i < data.length; i += 4) {
  const [red, green, blue] = [data[i], data[i + 1], data[i + 2]];
  if (red > 140 && green > 80 && red > blue + 70 && red > green - 60) count += 1;
  sum = (sum * 31 + red + 7 * green + 13 * blue) % 1000003;
}
return [count, sum];
"""
CARD = """
const card = document.querySelector(`[data-source="${arguments[0]}"]`);
if (!card) return null;
const pill = card.querySelector(".state");
return {
  level: card.dataset.level, text: pill.textContent, live: card.dataset.live,
  border: getComputedStyle(card).borderTopColor, pictures: Number(card.dataset.pictures || 0),
  problem: card.querySelector(".problem").hidden ? "" : card.querySelector(".problem").textContent,
};
"""
IS_FILLED = """
return document.querySelectorAll(".card .pill").length === 2 && document.querySelector("#events li") !== null;
"""
SLIDE = """
const slider = document.getElementById(arguments[0]);
slider.value = arguments[1];
slider.dispatchEvent(new Event("input", { bubbles: true }));
"""
# Text that is hidden for eyes only, and what is shown inside of pictures, has no contrast of its own.
CONTRAST = """
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
function rgb(color) {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
}
function light(color) {
  const [r, g, b] = color.map((c) => c / 255).map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function ground(element) {
  for (let at = element; at; at = at.parentElement) {
    const color = rgb(getComputedStyle(at).backgroundColor);
    if (color[3] === 255) return color;
  }
  return [255, 255, 255, 255];
}
const weak = [];
for (const element of document.querySelectorAll("body *")) {
  const isText = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  if (!isText || !element.offsetParent || element.closest(".unseen, .skip, noscript")) continue;
  const pair = [light(rgb(getComputedStyle(element).color)), light(ground(element))].sort((a, b) => b - a);
  const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
  if (ratio < 4.5) weak.push(`${element.className} "${element.textContent.slice(0, 20)}" ${ratio.toFixed(2)}`);
}
return weak;
"""
UNNAMED = """
const all = [...document.querySelectorAll("input, button, a, canvas, [role=region], [tabindex]")];
const unnamed = all.filter((element) =>
  element.offsetParent && !(element.getAttribute("aria-label") || element.getAttribute("aria-labelledby")
    || element.textContent.trim() || (element.labels && element.labels.length)));
return unnamed.map((element) => element.outerHTML);
"""


@pytest.fixture(scope="module")
def browsers() -> Any:
    """The helpers beside this file; skips where there is no browser, or fails if EDGERPN_REQUIRE_BROWSER=1."""
    module: Any = browser_helpers
    missing = module.missing_programs()
    if missing and os.environ.get("EDGERPN_REQUIRE_BROWSER") == "1":
        pytest.fail(f"EDGERPN_REQUIRE_BROWSER=1, but these are missing: {missing}")
    if missing:
        pytest.skip(f"no {' and '.join(missing)} here; apt-get install {module.PACKAGES}")
    return module


@pytest.fixture(scope="module")
def browser(browsers: Any) -> Iterator[Any]:
    opened = browsers.open_browser()
    yield opened
    opened.quit()


@pytest.fixture(autouse=True)
def blank_page(browser: Any, browsers: Any) -> Iterator[None]:
    """Closes the page after the test, because it would poll a run that has ended."""
    yield
    browser.get("about:blank")
    browsers.complaints(browser)


class Page:
    """A page as its user sees it."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def card(self, name: str) -> Any:
        """State and looks of a source."""
        return self.browser.execute_script(CARD, name)

    def has_pictures(self, name: str) -> bool:
        """Returns whether pictures of a source have come."""
        return (self.card(name) or {}).get("pictures", 0) > 2

    def drawn(self, name: str) -> tuple[int, int]:
        """Pixels in the colour of boxes, and a sum over the picture."""
        count, total = self.browser.execute_script(BOXES, name)
        return count, total

    def slide(self, slider: str, value: float) -> None:
        self.browser.execute_script(SLIDE, slider, value)

    def until(self, is_it: Callable[[], Any]) -> None:
        """Waits until a condition holds."""
        patience.wait_until(is_it)


def test_the_page_shows_the_state_of_the_run(serve: Make, make_camera: Make, browser: Any, browsers: Any) -> None:
    cameras = {"door": make_camera(), "yard": make_camera()}
    # The boxes of this model are near copies of each other.
    site = serve({name: camera.url for name, camera in cameras.items()}, nms_iou=1.0)
    site.until_up("door", "yard")
    browser.get(site.page.url)
    page = Page(browser)
    for name in cameras:
        page.until(partial(page.has_pictures, name))
        assert page.card(name) | {"pictures": 0, "border": ""} == {
            "level": "good", "text": "Live", "live": "true", "problem": "", "pictures": 0, "border": "",
        }  # fmt: skip
    good_border = page.card("door")["border"]

    # The picture moves.
    first = page.drawn("door")[1]
    page.until(lambda: page.drawn("door")[1] != first)
    number = page.card("door")["pictures"]
    page.until(lambda: page.card("door")["pictures"] > number + 5)

    # Sliders act.
    many = page.drawn("door")[0]
    page.slide("nms", 0.6)
    page.until(lambda: 0 < page.drawn("door")[0] < 0.8 * many)
    assert site.hub.pictures.view.nms_iou == 0.6
    page.slide("nms", 1)
    page.until(lambda: page.drawn("door")[0] > 0.9 * many)
    page.slide("top", 1)
    page.until(lambda: 0 < page.drawn("door")[0] < 0.8 * many)
    page.slide("score", 1)
    page.until(lambda: page.drawn("door")[0] == 0 and page.drawn("yard")[0] == 0)
    assert site.hub.pictures.view.top == 1
    page.slide("score", 0)
    page.slide("top", 50)
    page.until(lambda: page.drawn("door")[0] > 0.9 * many)

    # A camera fails: its card is red and its picture marked, the other one stays as it was.
    port = int(cameras["yard"].url.rstrip("/").rpartition(":")[2])
    cameras["yard"].__exit__()
    page.until(lambda: page.card("yard")["level"] == "bad")
    page.until(lambda: page.card("yard")["live"] == "false")
    down = page.card("yard")
    assert down["text"].startswith("Down")
    assert down["problem"]
    assert down["border"] != good_border
    assert page.drawn("yard")[0] < 0.2 * many
    assert page.card("door")["level"] == "good"
    assert browser.execute_script("return document.getElementById('summary').textContent") == "1 of 2 sources up"
    assert "1 down" in browser.title

    # Back: green, and live.
    make_camera(port=port)
    page.until(lambda: page.card("yard")["level"] == "good" and page.card("yard")["live"] == "true")
    page.until(lambda: page.drawn("yard")[0] > 0.9 * many)
    kinds = browser.execute_script("return [...document.querySelectorAll('#events .kind')].map((e) => e.textContent)")
    assert {"started", "connected", "reconnecting"} <= set(kinds)

    # Paused: the page says so, and no picture arrives.
    browser.execute_script("document.getElementById('pause').click()")
    page.until(lambda: site.hub.pictures.num_viewers == 0)
    veil = "return document.querySelector('[data-source=door] .veil').textContent"
    assert browser.execute_script(veil) == "NOT LIVE: paused"
    assert browsers.complaints(browser) == []

    # The run ends: nothing on the page looks live.
    browser.execute_script("document.getElementById('pause').click()")
    site.page.close()
    page.until(lambda: "no connection" in browser.execute_script(veil))
    assert browser.execute_script("return document.getElementById('lost').hidden") is False


def test_pictures_that_stop_coming_do_not_pass_for_live_and_are_asked_for_again(
    serve: Make, make_camera: Make, browser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_file = routes._file

    def hurried(name: str) -> bytes:
        return read_file(name).replace(b"SILENT_MS = 4000", b"SILENT_MS = 1500")

    assert hurried("pictures.js") != read_file("pictures.js")
    monkeypatch.setattr(routes, "_file", hurried)
    site = serve({"door": make_camera().url})
    site.until_up("door")
    browser.get(site.page.url)
    page = Page(browser)
    page.until(partial(page.has_pictures, "door"))
    veil = "const veil = document.querySelector('.veil'); return veil.hidden ? '' : veil.textContent"
    assert browser.execute_script(veil) == ""
    # The stream stays open, but no picture comes.
    live, opened = site.page._live, []
    assert live is not None
    pictures = live._pictures

    async def silent(sources: Any) -> AsyncGenerator[bytes, None]:
        opened.append(sources)
        while True:
            await asyncio.sleep(3600)
            yield b""

    with monkeypatch.context() as patched:
        patched.setattr(live, "wake", lambda source: None)
        patched.setattr(live, "_pictures", silent)
        page.until(lambda: browser.execute_script(veil) == "NOT LIVE: no pictures arrive")
        assert page.card("door")["live"] == "false"
        # The run itself is well, and answers.
        assert page.card("door")["level"] == "good"
        page.until(lambda: len(opened) >= 2)
    assert live._pictures == pictures
    page.until(lambda: browser.execute_script(veil) == "" and page.card("door")["live"] == "true")


def test_the_page_is_readable_and_named_in_light_and_dark_and_fits_a_phone(
    serve: Make, make_camera: Make, browser: Any, browsers: Any
) -> None:
    name = "<img src=x onerror='document.title=1'> & a very long name of a camera/with/slashes"
    site = serve({name: make_camera().url, "down": "http://127.0.0.1:9/x"})
    site.until_up(name)
    for scheme in ("dark", "light"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        for width in (390, 1280):
            browsers.resize(browser, width, 844)
            browser.get(site.page.url)
            Page(browser).until(partial(browser.execute_script, IS_FILLED))
            assert browser.execute_script(CONTRAST) == []
            assert browser.execute_script(UNNAMED) == []
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert ground == "rgb(243, 245, 248)"
    names = browser.execute_script("return [...document.querySelectorAll('.name')].map((e) => e.textContent)")
    assert name in names
    assert browser.execute_script("return document.querySelectorAll('.card img, main script').length") == 0
    assert "EdgeRPN" in browser.title
    assert browsers.complaints(browser) == []


def test_a_person_logs_in(serve: Make, browser: Any, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("a-token-of-enough-characters")
    site = serve(token_file=str(file))
    browser.get(site.page.url)
    assert browser.current_url.endswith("/login")
    fill = "document.getElementById('token').value = arguments[0]; document.querySelector('form').submit();"
    browser.execute_script(fill, "guess")
    page = Page(browser)
    page.until(lambda: "Wrong token" in browser.page_source)
    browser.execute_script(fill, file.read_text())
    page.until(
        lambda: browser.execute_script("return document.getElementById('summary')?.textContent") == "0 of 0 sources up"
    )
    assert browser.execute_script("return document.cookie") == ""
    browser.execute_script("document.querySelector('#logout button').click()")
    page.until(lambda: browser.current_url.endswith("/login"))
