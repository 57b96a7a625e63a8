"""Reports in a real browser: on a phone, on a desktop, in the dark. `make test-browser` fetches one, and fails where none is."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.analytics.report.page import render
from pipeline.analytics.stress.page import stress_page
from tests.analytics.test_report import evaluated, page, store, told
from tests.analytics.test_stress_results import WRONG, outcome, random_truth, run_of
from tests.support.browser import PROGRAM, chromium, look
from tests.support.corpus import ROOT

if PROGRAM is None and os.environ.get("BROWSER") != "required":
    pytest.skip("no Chromium is installed; make test-browser installs one", allow_module_level=True)

__all__ = ["evaluated", "page", "store"]  # fixtures
PHONE, DESKTOP = 375, 1280
PICTURES = ROOT / "build" / "pictures"
"""Where they lie for a person to look at."""
MEASURED = """(() => {
    const style = (element) => getComputedStyle(element);
    const size = (element) => { const box = element.getBoundingClientRect(); return [box.width, box.height]; };
    return {
        wide: [document.documentElement.scrollWidth, innerWidth],
        paper: style(document.body).backgroundColor,
        ink: style(document.body).color,
        figures: [...document.querySelectorAll('figure svg')].map(size),
        letters: [...document.querySelectorAll('figure svg text')].map((text) => text.getBoundingClientRect().height),
        outside: [...document.querySelectorAll('figure svg text')].filter((text) => {
            const [box, frame] = [text, text.closest('section')].map((e) => e.getBoundingClientRect());
            return box.left < frame.left - 1 || box.right > frame.right + 1;
        }).map((text) => text.textContent),
        colours: [...new Set([...document.querySelectorAll('figure svg *')].flatMap((e) => [style(e).fill, style(e).stroke]))],
    };
})()"""


@pytest.fixture(scope="module")
def devtools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    assert PROGRAM, "no Chromium is installed"
    with chromium(tmp_path_factory.mktemp("chromium")) as address:
        yield address


@pytest.fixture(scope="module")
def pages(page: str, evaluated: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    (folder / "run.html").write_text(page, encoding="utf-8")
    told(["--evaluation", str(evaluated / "figures")], folder / "evaluation.html")
    told(["--summary", str(evaluated / "groups.parquet")], folder / "summary.html")
    truth = random_truth()
    (folder / "stress.html").write_bytes(render(stress_page(outcome(truth, run_of(truth, wrong=WRONG)))))
    return {name: folder / f"{name}.html" for name in ("run", "evaluation", "summary", "stress")}


def brightness(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)`, by WCAG 2.2."""
    parts = [int(number) / 255 for number in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("name", ["run", "evaluation", "summary", "stress"])
def test_a_page_is_readable_everywhere(name: str, pages: dict[str, Path], devtools: str) -> None:
    """Fails if a page loads anything, complains, must be scrolled sideways, leaves out a figure, lets a label leave its card or
    shrink, or stays light (or unreadable) in the dark.
    """
    path, drawn = pages[name], pages[name].read_text(encoding="utf-8").count("<figure>")
    papers = []
    for width, dark in [(PHONE, False), (PHONE, True), (DESKTOP, False), (DESKTOP, True)]:
        picture = PICTURES / f"{name}-{width}-{'dark' if dark else 'light'}.png"
        seen = look(devtools, path, width=width, dark=dark, expression=MEASURED, picture=picture)
        assert seen.requests == [path.as_uri()] and not seen.complaints
        scrolled, shown = seen.value["wide"]
        assert scrolled <= shown == width
        assert len(seen.value["figures"]) == drawn > 0
        assert all(min(size) > 50 for size in seen.value["figures"])
        assert min(seen.value["letters"]) >= 9 and not seen.value["outside"]
        light, faint = sorted((brightness(seen.value[part]) for part in ("paper", "ink")), reverse=True)
        assert (light + 0.05) / (faint + 0.05) > 7
        assert (brightness(seen.value["paper"]) < 0.2) == dark
        papers.append(seen.value["paper"])
    assert papers[0] == papers[2] != papers[1] == papers[3]
