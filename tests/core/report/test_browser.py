"""The report in a real browser without a window: three widths, light and dark, pointer and keyboard."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import nas
from benchmarks.chromium import CHROMIUM, Browser, Page, browser

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no chromium")]

TEXTS = """
(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const pixel = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  const behind = node => {
    const box = node.closest('g.box');
    if (box) return getComputedStyle(box.querySelector('rect')).fill;
    for (let at = node; at; at = at.parentElement) { const c = getComputedStyle(at).backgroundColor; if (pixel(c)[3] === 255) return c; }
    return getComputedStyle(document.body).backgroundColor;
  };
  const out = [];
  for (const node of document.querySelectorAll('body *')) {
    if (![...node.childNodes].some(c => c.nodeType === 3 && c.textContent.trim()) || ['SCRIPT', 'STYLE', 'TITLE', 'title'].includes(node.tagName)) continue;
    const style = getComputedStyle(node), ink = pixel(node instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [light(ink), light(pixel(behind(node)))].sort((a, b) => a - b);
    out.push([node.textContent.trim().slice(0, 40), (b + 0.05) / (a + 0.05)]);
  }
  return JSON.stringify(out);
})()
"""
"""Every text of the page with the contrast of its colour against what is behind it, as WCAG 2 defines it."""

FOCUS = """
(e => e === document.body ? null : [e.tagName.toLowerCase(), e.getAttribute('aria-label') || e.textContent.trim(), getComputedStyle(e).outlineStyle])
(document.activeElement)
"""
AXES = "document.activeElement.querySelector('.axes').innerHTML"
TIP = "(t => t.classList.contains('on') ? t.textContent : '')(document.querySelector('.tip'))"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run on the small space whose data flow is known, with two eps."""
    workdir = tmp_path_factory.mktemp("runs")
    run = nas.search("tocsr_table", (0.003, 0.005), workdir=workdir, name="demo", trials=8).run
    assert run is not None
    return run / "report.html"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser(1400) as found:
        yield found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 820, 1400])
def test_a_browser_shows_the_report_without_a_complaint_a_fetch_or_a_cut_off_page(chromium: Browser, report: Path, width: int, scheme: str) -> None:
    page = Page(chromium, width, scheme)
    page.open(report)
    assert page.complaints() == []
    assert page.fetched() == [report.resolve().as_uri()]
    assert page.evaluate("document.documentElement.classList.contains('live')")  # the script ran to its end
    assert page.evaluate("document.querySelectorAll('.mark.trial').length") == 8
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    if width >= 820:  # the stage map fits without scrolling
        assert page.evaluate("[...document.querySelectorAll('.wide')].every(e => !e.querySelector('svg.map') || e.scrollWidth <= e.clientWidth)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read_against_what_is_behind_it(chromium: Browser, report: Path, scheme: str) -> None:
    page = Page(chromium, 1400, scheme)
    page.open(report)
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    texts = json.loads(page.evaluate(TEXTS))
    assert len(texts) > 100
    assert [(text, round(contrast, 1)) for text, contrast in texts if contrast < 4.5] == []


def test_the_tab_key_reaches_every_chart_table_and_button_and_shows_where_it_is(chromium: Browser, report: Path) -> None:
    page = Page(chromium, 1400)
    page.open(report)
    walked = []
    for _ in range(100):
        page.press("Tab")
        at = page.evaluate(FOCUS)
        if at is None:
            break
        walked.append(at)
    assert at is None  # the walk ends: nothing holds the focus
    assert walked[0][1] == "Skip to the result"
    assert all(outline != "none" for _, _, outline in walked)
    assert all(name for _, name, _ in walked)
    tags = [tag for tag, _, _ in walked]
    assert tags.count("svg") == page.evaluate("document.querySelectorAll('svg.chart').length") > 1
    assert tags.count("button") == page.evaluate("document.querySelectorAll('button').length")
    assert tags.count("summary") == page.evaluate("document.querySelectorAll('summary').length")
    assert sum(tag == "div" for tag in tags) >= 4  # tables and maps that may be wider than the window


def test_a_chart_is_read_zoomed_and_left_by_keys(chromium: Browser, report: Path) -> None:
    page = Page(chromium, 820, "dark")
    page.open(report)
    while (page.evaluate(FOCUS) or [""])[0] != "svg":
        page.press("Tab")
    drawn = page.evaluate(AXES)
    page.press("ArrowRight")
    first = page.evaluate(TIP)
    page.press("ArrowRight")
    assert "L" in first
    assert page.evaluate(TIP) not in ("", first)
    page.press("+")
    assert page.evaluate(AXES) != drawn
    page.press("0")
    assert page.evaluate(AXES) == drawn
    page.press("Escape")
    assert page.evaluate(TIP) == ""
    page.press("Tab")
    assert page.evaluate(FOCUS)[0] == "button"
    page.press("Enter")
    page.press("Tab", shift=True)
    assert page.evaluate(AXES) != drawn
    assert page.complaints() == []
