"""The page as a browser shows it: nothing complains, nothing overlaps, the slider moves, charts answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import Page, browser_page

# Words of charts, bars and headings that overlap others of the same box, and what sticks out of the page.
OVERLAPS = """(() => {
  const found = [], boxes = (list) => [...list].map((e) => [e, e.getBoundingClientRect()]).filter(([, b]) => b.width > 0);
  for (const group of document.querySelectorAll(".plot, .times, .bar, .legend, .tile, figcaption, header")) {
    const all = boxes(group.querySelectorAll("span, b, li, p, h1, h3, button"));
    for (const [i, [a, p]] of all.entries()) for (const [b, q] of all.slice(i + 1)) {
      if (a.contains(b) || b.contains(a)) continue;
      if (Math.min(p.right, q.right) - Math.max(p.left, q.left) > 1 && Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 1)
        found.push(a.textContent + " over " + b.textContent);
    }
  }
  for (const [e, b] of boxes(document.querySelectorAll("main *"))) {
    if (!e.closest(".scroll") && (b.right > innerWidth + 1 || b.left < -1)) found.push(e.tagName + " sticks out: " + b.right);
  }
  return found;
})()"""


@pytest.fixture(scope="module")
def report(run: Path) -> Path:
    return run / "report.html"


@pytest.fixture(scope="module")
def page(report: Path) -> Iterator[Page]:
    with browser_page() as page:
        page.open(report.as_uri())
        yield page


def test_nothing_complains_and_nothing_is_fetched(page: Page, report: Path) -> None:
    assert page.errors == []
    assert {url for url in page.requests if not url.startswith("data:")} == {report.as_uri()}
    broken = "[...document.images].filter((i) => !i.naturalWidth).length"
    assert page.run(broken) == 0 and page.run("document.images.length") == 15


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1400, 390, 320])
def test_nothing_overlaps_on_any_screen(page: Page, width: int, dark: bool) -> None:
    page.dark(dark)
    page.size(width, 900)
    assert page.run(OVERLAPS) == []
    assert page.run("document.documentElement.scrollWidth") <= width
    background = page.run("getComputedStyle(document.body).backgroundColor")
    assert (int(background.split("(")[1].split(",")[0]) < 60) == dark


def test_the_slider_shows_more_of_the_photo_when_it_is_dragged(page: Page) -> None:
    page.size(1200, 900)
    page.run("document.querySelector('.compare').scrollIntoView({block: 'center'})")
    x, y, width = page.run(
        "(() => { const b = document.querySelector('.compare').getBoundingClientRect();"
        " return [b.left, b.top + b.height / 2, b.width]; })()"
    )
    shown = "getComputedStyle(document.querySelector('.compare .over')).clipPath"
    cut = "document.querySelector('.compare .cut').getBoundingClientRect().left"
    before = page.run(shown), page.run(cut)
    page.mouse(("pressed", x + width * 0.5, y), ("moved", x + width * 0.6, y), ("moved", x + width * 0.8, y))
    assert page.run(shown) != before[0] and page.run(cut) > before[1] + 0.2 * width
    page.mouse(("moved", x + width * 0.2, y), ("released", x + width * 0.2, y))
    assert page.run(cut) < before[1] - 0.2 * width
    assert page.errors == []


def test_a_chart_tells_the_values_at_the_pointer(page: Page) -> None:
    page.size(1200, 900)
    page.run("document.querySelector('.plot').scrollIntoView({block: 'center'})")
    x, y = page.run(
        "(() => { const b = document.querySelector('.plot').getBoundingClientRect();"
        " return [b.right - 5, b.top + 50]; })()"
    )
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    assert page.run("document.querySelector('.plot .tip').textContent").startswith("image 40\nloss 0.")
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=2, y=2)
    assert page.run("document.querySelector('.plot .tip').hidden")


def test_the_theme_can_be_chosen_against_the_system(page: Page) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    page.dark(False)
    light = page.run(colour)
    page.run("document.getElementById('theme').click()")
    assert page.run(colour) != light
    page.run("document.getElementById('theme').click()")
    assert page.run(colour) == light and page.errors == []
