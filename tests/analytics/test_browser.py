"""Reports in a real browser: on a phone, on a desktop, in the dark. `make test-browser` fetches one, and fails where none is."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.analytics.report.page import render
from pipeline.analytics.stress.page import stress_page
from pipeline.storage.store import Store
from tests.analytics.test_report import ROWS, Read, evaluated, output_of, page, store, told
from tests.analytics.test_report_behind import members
from tests.analytics.test_stress_results import WRONG, outcome, random_truth, run_of
from tests.support.browser import PROGRAM, Act, Seen, chromium, look
from tests.support.corpus import ROOT
from tests.support.outputs import LONG

if PROGRAM is None and os.environ.get("BROWSER") != "required":
    pytest.skip("no Chromium is installed; make test-browser installs one", allow_module_level=True)

__all__ = ["evaluated", "page", "store"]  # fixtures
PHONE, DESKTOP = 390, 1280
NAMES = ("run", "conversation", "evaluation", "summary", "stress")
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
        empty: (() => {
            const facts = document.querySelector('header .facts'), right = (element) => element.getBoundingClientRect().right;
            return right(facts) - right(facts.lastElementChild);
        })(),
        outside: [...document.querySelectorAll('figure:not(.long) svg text')].filter((text) => {
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
def pages(page: str, store: Store, evaluated: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    (folder / "run.html").write_text(page, encoding="utf-8")
    told(["--evaluation", str(evaluated / "figures")], folder / "evaluation.html")
    told(["--summary", str(evaluated / "groups.parquet")], folder / "summary.html")
    told([store.root, "--recording", LONG, "--with-texts"], folder / "conversation.html")
    truth = random_truth()
    (folder / "stress.html").write_bytes(render(stress_page(outcome(truth, run_of(truth, wrong=WRONG)))))
    return {name: folder / f"{name}.html" for name in NAMES}


def brightness(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)`, by WCAG 2.2."""
    parts = [int(number) / 255 for number in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_readable_everywhere(name: str, pages: dict[str, Path], devtools: str) -> None:
    """Fails if a page loads anything, complains, must be scrolled sideways, leaves out a figure or half a row, lets a label
    leave its card or shrink, or stays light (or unreadable) in the dark.
    """
    path, drawn = pages[name], pages[name].read_text(encoding="utf-8").count("<figure")
    papers = []
    for width, dark in [(PHONE, False), (PHONE, True), (DESKTOP, False), (DESKTOP, True)]:
        picture = PICTURES / f"{name}-{width}-{'dark' if dark else 'light'}.png"
        seen = look(devtools, path, width=width, dark=dark, expression=MEASURED, picture=picture)
        assert seen.requests == [path.as_uri()] and not seen.complaints
        scrolled, shown = seen.value["wide"]
        assert scrolled <= shown == width
        assert len(seen.value["figures"]) == drawn > 0
        assert seen.value["empty"] < 1
        assert all(min(size) > 50 for size in seen.value["figures"])
        assert min(seen.value["letters"]) >= 9 and not seen.value["outside"]
        light, faint = sorted((brightness(seen.value[part]) for part in ("paper", "ink")), reverse=True)
        assert (light + 0.05) / (faint + 0.05) > 7
        assert (brightness(seen.value["paper"]) < 0.2) == dark
        papers.append(seen.value["paper"])
    assert papers[0] == papers[2] != papers[1] == papers[3]


STATE = """(() => {
    const list = document.querySelector('.docked');
    const rows = [...document.querySelectorAll('#utterances tbody tr')];
    return {
        docked: list && list.id,
        heading: list && list.querySelector('h2').textContent,
        status: document.querySelector('#utterances [role=status]')?.textContent ?? null,
        shown: rows.filter((row) => !row.hidden).map((row) => row.cells[0].textContent),
        focus: document.activeElement.getAttribute('href') || document.activeElement.textContent,
        current: document.querySelector('[aria-current]')?.getAttribute('href') ?? null,
        open: document.querySelector('#emotion details').open,
        target: document.querySelector(':target')?.id ?? null,
        hacked: typeof hacked !== 'undefined',
        stops: [...document.querySelectorAll('#by-1 figure a')].filter((mark) => mark.tabIndex === 0).length,
        bottom: list && Math.round(list.getBoundingClientRect().bottom) === innerHeight,
    };
})()"""


def after(
    devtools: str, page: Path, acts: list[Act], picture: str, *, width: int = DESKTOP, scripts: bool = True
) -> Seen:
    shot = PICTURES / f"{picture}-{width}.png"
    seen = look(
        devtools, page, width=width, dark=False, expression=STATE, picture=shot, acts=acts, scripts=scripts, whole=False
    )
    assert seen.requests[0] == page.as_uri() and not seen.complaints
    assert not any(request.partition("#")[0] != page.as_uri() for request in seen.requests)
    return seen


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_a_click_on_a_bar_lists_the_utterances_behind_it(pages: dict[str, Path], devtools: str, width: int) -> None:
    """Fails if a click lists other utterances than those of the bar, hides them, or does not say how many there are."""
    bar: Act = ("click", "#emotion figure a path")
    seen = after(devtools, pages["run"], [bar], "listed", width=width).value
    listed = members(pages["run"].read_text(encoding="utf-8"), "utterances")["emotion-r0"]
    assert seen["docked"] == "utterances" and seen["bottom"] and seen["current"] == "#emotion-r0"
    assert seen["heading"].startswith("Utterances \N{EN DASH} ") and seen["focus"] == seen["heading"]
    assert seen["shown"] == [row[0] for row in listed] and seen["status"] == f"{len(listed)} of {len(listed)}"
    assert not seen["open"] and not seen["target"]
    seen = after(
        devtools, pages["run"], [bar, ("click", ".docked input"), ("type", "R1 ")], "filtered", width=width
    ).value
    assert seen["shown"] == [row[0] for row in listed if "r1" in " ".join(row).lower()] != []
    seen = after(devtools, pages["run"], [bar, ("key", "Escape")], "closed", width=width).value
    assert not seen["docked"] and seen["focus"] == "#emotion-r0" and not seen["current"]
    assert len(seen["shown"]) > len(listed)


def test_marks_are_reached_and_chosen_by_keyboard(pages: dict[str, Path], devtools: str) -> None:
    """Fails if a mark cannot be chosen without a mouse, or each of a hundred marks is a stop of the Tab key."""
    steps: list[Act] = [("key", "Tab"), ("key", "ArrowRight"), ("key", "Enter")]
    seen = after(devtools, pages["run"], steps, "keyboard").value
    listed = members(pages["run"].read_text(encoding="utf-8"), "utterances")["emotion-r1"]
    assert seen["docked"] == "utterances" and seen["current"] == "#emotion-r1" and seen["stops"] == 1
    assert seen["shown"] == [row[0] for row in listed]


def test_a_table_is_sorted_by_its_header(pages: dict[str, Path], devtools: str) -> None:
    """Fails if numbers are sorted as texts, or a second click does not turn the order around."""
    header = "#by-1 th:nth-child(2) button"
    values = "[...document.querySelectorAll('#by-1 tbody tr')].map((row) => Number(row.cells[1].dataset.value))"
    open_table: Act = ("click", "#by-1 summary")
    for clicks, reverse in [(1, False), (2, True)]:
        acts = [open_table, *[("click", header)] * clicks]
        picture = PICTURES / f"sorted-{clicks}.png"
        seen = look(
            devtools, pages["run"], width=DESKTOP, dark=False, expression=values, picture=picture, acts=acts
        ).value
        assert seen == sorted(seen, reverse=reverse) and len(set(seen)) > 1


def test_without_scripts_a_mark_leads_to_its_row(pages: dict[str, Path], devtools: str) -> None:
    """Fails if a page needs its script to be read: a mark leads nowhere, or the list of utterances is hidden."""
    seen = after(devtools, pages["run"], [("click", "#emotion figure a path")], "plain", scripts=False).value
    assert seen["target"] == "emotion-r0" and seen["open"] and not seen["docked"]
    assert len(seen["shown"]) == len(Read(pages["run"].read_text(encoding="utf-8")).tables["utterances"])


def test_a_mark_of_a_conversation_leads_to_its_utterance(pages: dict[str, Path], devtools: str) -> None:
    """Fails if nothing happens on a click on an utterance, or its row stays in a closed table."""
    expression = """(() => {
        const row = document.querySelector(':target');
        const box = row.getBoundingClientRect();
        return [row.id, row.closest('details').open, box.top > -5 && box.bottom < innerHeight + 5];
    })()"""
    picture = PICTURES / "conversation.png"
    acts: list[Act] = [("click", "#timeline-1 figure a path")]
    seen = look(devtools, pages["run"], width=DESKTOP, dark=False, expression=expression, picture=picture, acts=acts)
    assert seen.value == [seen.value[0], True, True] and seen.value[0].startswith("timeline-1-r")


def test_a_mark_of_a_summary_leads_to_its_cell(pages: dict[str, Path], devtools: str) -> None:
    """Fails if Enter on a mark without a list goes nowhere visible: its table stays closed, or its cell looks like the others."""
    expression = """(() => {
        const cell = document.querySelector(':target'), row = cell?.closest('tr');
        const box = cell?.getBoundingClientRect(), colour = (element) => getComputedStyle(element).backgroundColor;
        return cell && [cell.id, cell.closest('details').open, box.top > -5 && box.bottom < innerHeight + 5,
            colour(row) !== colour(row.previousElementSibling), document.activeElement === cell];
    })()"""
    steps: list[Act] = [("key", "Tab"), ("key", "ArrowRight"), ("key", "Enter")]
    for width in (PHONE, DESKTOP):
        picture = PICTURES / f"summary-cell-{width}.png"
        seen = look(
            devtools, pages["summary"], width=width, dark=False, expression=expression, picture=picture, acts=steps
        )
        assert seen.value == ["groups-r1-c6", True, True, True, True]
    focus = "document.activeElement.getAttribute('href') || document.activeElement.id"
    picture = PICTURES / "summary-back.png"
    steps = [*steps, ("key", "Escape")]
    seen = look(devtools, pages["summary"], width=DESKTOP, dark=False, expression=focus, picture=picture, acts=steps)
    assert seen.value.startswith("#groups-r")


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_a_bar_of_a_stress_test_lists_its_clips(width: int, pages: dict[str, Path], devtools: str) -> None:
    """Fails if a click on a bar lists nothing, or the clips of another condition."""
    expression = """(() => {
        const list = document.querySelector('.docked');
        const rows = [...list.querySelectorAll('tbody tr')].filter((row) => !row.hidden);
        return [list.id, rows.length, [...new Set(rows.map((row) => row.cells[1].textContent))]];
    })()"""
    picture = PICTURES / f"stress-clips-{width}.png"
    acts: list[Act] = [("click", "#opus figure a path")]
    seen = look(
        devtools,
        pages["stress"],
        width=width,
        dark=True,
        expression=expression,
        picture=picture,
        acts=acts,
        whole=False,
    )
    assert seen.value == ["clips", 60, ["opus"]]


HOSTILE = "</script><script>hacked = 1</script><img src=x onerror='hacked = 1'><svg onload='hacked = 1'>"


def test_hostile_rows_run_no_script(tmp_path: Path, devtools: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a transcript, an id or a speaker of a row runs as a script, on the page or in the list of a mark."""
    monkeypatch.setattr("tests.analytics.test_report.SAID", HOSTILE)
    rows = [{**row, "id": f"{HOSTILE}{row['id']}", "speaker": f"{HOSTILE}{row['speaker']}"} for row in ROWS]
    store = output_of(tmp_path, rows)
    told([store.root, "--with-texts"], tmp_path / "hostile.html")
    for mark in ("#by-1 figure a path", "#emotion figure a path"):
        seen = after(devtools, tmp_path / "hostile.html", [("click", mark)], "hostile").value
        assert seen["docked"] == "utterances" and seen["shown"] and seen["hacked"] is False
        assert seen["shown"][0].startswith(HOSTILE)


def test_a_printed_page_has_its_figures_and_the_chosen_rows(pages: dict[str, Path], devtools: str) -> None:
    """Fails if a list that floats above the page covers it in print, or the tools of the screen are printed."""
    expression = """(() => {
        const style = (selector) => getComputedStyle(document.querySelector(selector));
        return [style('.docked').position, style('.tools').display, document.querySelectorAll('figure svg').length];
    })()"""
    acts: list[Act] = [("click", "#emotion figure a path"), ("print", "")]
    picture = PICTURES / "printed.png"
    seen = look(
        devtools, pages["run"], width=DESKTOP, dark=False, expression=expression, picture=picture, acts=acts
    ).value
    assert seen[:2] == ["static", "none"] and seen[2] > 4


def test_what_is_drawn_above_a_mark_takes_no_clicks(pages: dict[str, Path], devtools: str) -> None:
    """Fails if a click on the number of a cell of the confusions does nothing, because the number covers the cell."""
    numbers = """(() => {
        const texts = [...document.querySelectorAll('#confusion-1 svg text')];
        return texts.filter((text) => Number(text.textContent)).map((text) => {
            text.scrollIntoView({block: 'center'});
            const box = text.getBoundingClientRect();
            const hit = document.elementFromPoint((box.left + box.right) / 2, (box.top + box.bottom) / 2);
            return Boolean(hit.closest('a'));
        });
    })()"""
    picture = PICTURES / "confusions.png"
    seen = look(devtools, pages["evaluation"], width=DESKTOP, dark=False, expression=numbers, picture=picture)
    assert len(seen.value) > 10 and all(seen.value)
