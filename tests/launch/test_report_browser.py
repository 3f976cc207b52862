"""The report in a real browser: it draws, it can be used, it asks for nothing, and names stay text."""

import numpy as np
import pytest
from PIL import Image

from distcnn.cli import main
from tests.needs import require

CLASSES = ("<img src=x onerror=window.hacked=1>", "\"quoted\" & 'so'", "שלום", "x" * 200)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Of a run on images whose names are as bad as a file system allows."""
    root = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for i, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for j in range(count):
                pixels = rng.integers(0, 120, (16, 16, 3)) + 40 * i
                Image.fromarray(pixels.astype(np.uint8)).save(
                    root / split / name / f"<b>{j}<svg onload=window.hacked=1>.png"
                )
    config = root / "<u>run.yaml"
    config.write_text(
        f"output_dir: {root / 'runs'}\nmodel: {{name: resnet9, args: {{width: 4}}}}\noptim: {{lr: 0.02}}\n"
        f"data: {{source: folder, root: {root}, image_size: 16, cache_dir: {root / 'cache'}}}\n"
        "train: {duration: 3ep, batch_size: 8, threads: 1}\ntracking: {wandb: disabled, console: false}\n"
    )
    assert main(["train", str(config)]) == 0
    return root / "runs" / "<u>run" / "report.html"


@pytest.fixture(scope="module")
def browser():
    require("chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as running:
        chromium = running.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_it_draws_answers_and_asks_for_nothing(browser, report, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # closed with its context
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    page.wait_for_selector("body[data-drawn]")
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
    assert page.evaluate("window.hacked") is None
    assert page.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out
    assert page.locator(".plot svg.main-svg").count() >= 6

    page.locator("#plot-loss").scroll_into_view_if_needed()
    page.locator("#plot-loss .nsewdrag").hover()
    page.wait_for_selector("#plot-loss .hoverlayer .legendtext, #plot-loss .hoverlayer text")
    drawn = page.locator("#plot-loss .scatterlayer .trace")
    before = drawn.count()
    button = page.locator("#legend-loss button").first
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "false"
    page.wait_for_function(f"document.querySelectorAll('#plot-loss .scatterlayer .trace').length < {before}")
    page.keyboard.press("Enter")
    page.wait_for_function(f"document.querySelectorAll('#plot-loss .scatterlayer .trace').length == {before}")
    for name in CLASSES:
        assert page.get_by_role("rowheader", name=name).count() == 1
    assert page.get_by_role("heading", level=1).inner_text() == "<u>run"
    page.close()


def test_the_theme_can_change_while_it_is_looked_at(browser, report):
    page = browser.new_page(color_scheme="light")
    page.goto(report.as_uri())
    page.wait_for_selector("body[data-drawn]")
    colour = "getComputedStyle(document.querySelector('#plot-lr .lines path')).stroke"
    before = page.evaluate(colour)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"{colour} != '{before}'")
    page.close()
