"""The page in a real browser: no error, no request, the pointer, the keyboard, a narrow window."""

from __future__ import annotations

import shutil

import pytest
from hand_made_study import with_everything

from search.report.files import write_report
from search.report.page import report_of
from search.results.view import open_study

pytest.importorskip("playwright", reason="no playwright: pip install -e '.[browser]'")
from playwright.sync_api import sync_playwright

CHROMIUM = shutil.which("chromium")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: install Debian's package chromium"),
]
COMMAND = "prunefront export hand --trial 14 --out hand-14 --root "


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("root")
    with_everything(root)
    write_report(root / "out", report_of(open_study(root, "hand")))
    return (root / "out" / "report.html").as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    profile = tmp_path_factory.mktemp("profile")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch_persistent_context(
            str(profile), executable_path=CHROMIUM, args=QUIET, permissions=["clipboard-read", "clipboard-write"]
        )
        yield opened
        opened.close()


@pytest.fixture
def page(browser, address):
    """The page, which at the end of a test must have said and asked for nothing."""
    said: list[str] = []
    opened = browser.new_page()
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    opened.on("request", lambda one: None if one.url.startswith(("file:", "data:")) else said.append(one.url))
    opened.set_viewport_size({"width": 1100, "height": 900})
    opened.goto(address)
    yield opened
    opened.close()
    assert said == []


def clipboard(page) -> str:
    return page.evaluate("navigator.clipboard.readText()")


def test_a_point_shows_its_policy_and_a_click_copies_its_command(page):
    mark = page.locator("circle.mark[data-trial='14']").first
    mark.scroll_into_view_if_needed()
    place = mark.bounding_box()
    centre = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2
    page.mouse.move(*centre)
    tip = page.locator("#tip")
    assert "Trial 14" in tip.inner_text() and "</script><script>alert(1)</script>" in tip.inner_text()
    assert page.locator("tr[data-trial='14'].on").count() > 0
    page.mouse.click(*centre)
    page.get_by_text("Copied: ").wait_for()
    assert clipboard(page).startswith(COMMAND)
    page.mouse.move(centre[0] + 60, centre[1] - 40)
    assert tip.is_hidden() and page.locator("tr.on").count() == 0


def test_the_keyboard_alone_copies_a_command(page):
    page.evaluate("navigator.clipboard.writeText('')")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.ariaLabel") == "Copy the export command of trial 14":
            break
    assert page.locator("circle.on[data-trial='14']").count() > 0
    page.keyboard.press("Enter")
    page.get_by_text("Copied: ").wait_for()
    assert clipboard(page).startswith(COMMAND)
    page.keyboard.press("Escape")
    assert page.locator("#said").inner_text() == ""


def test_without_a_clipboard_the_command_is_shown(page):
    page.evaluate("navigator.clipboard.writeText = () => Promise.reject(); document.execCommand = () => false; 0")
    page.get_by_role("button", name="Copy the export command of trial 14").first.click()
    page.get_by_text(f"Cannot copy here; the command is: {COMMAND}").wait_for()


@pytest.mark.parametrize("width", [1100, 400, 320])
def test_a_narrow_window_cuts_nothing_off(page, width):
    """What is wider than the window scrolls in a frame of its own; no word is broken letter by letter."""
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    tallest = "Math.max(...[...document.querySelectorAll('thead th')].map((cell) => cell.offsetHeight))"
    assert page.evaluate(tallest) < 90
    images = "[...document.images].every((image) => image.complete && image.naturalWidth > 300)"
    assert page.evaluate(images) and page.evaluate("document.images.length") == 6
