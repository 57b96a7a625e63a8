"""What is drawn, and what stands beside it in words, against the tables that test_report.py checks."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.analytics.report import plots
from pipeline.analytics.report.page import formatted
from pipeline.schema import EMOTIONS
from tests.analytics.test_report import Read, asked, evaluated, page, same, store, told
from tests.support.outputs import LONG

__all__ = ["evaluated", "page", "store"]  # fixtures
_POINT = r"(-?[\d.]+) (-?[\d.]+)"
_BOX = re.compile(rf'<path d="M {_POINT} L {_POINT} L {_POINT} L {_POINT}(?: L [-\d. ]+)? z "([^>]*)')
PIXEL = 0.01


@dataclass(frozen=True)
class Box:
    """A rectangle of a figure, in points."""

    left: float
    right: float
    height: float
    colour: str
    opacity: float


def section(page: str, name: str) -> str:
    return " ".join(page.partition(f'<section id="{name}"')[2].partition("</section>")[0].split())


def boxes(page: str, name: str) -> tuple[Box, list[Box]]:
    """The frame of a figure's first axes, and what is drawn in it; legends are left out."""
    found = []
    for match in _BOX.finditer(section(page, name)):
        points, rest = [float(number) for number in match.groups()[:8]], match[9]
        colour = re.search(r"(?:fill|stroke): (?:var\(--(\w+)\)|none)", rest)
        opacity = re.search(r"(?<!stroke-)opacity: ([\d.]+)", rest)
        if colour and (colour[1] is None or "clip-path" in rest or 'id="' in rest):
            xs, ys = points[0::2], points[1::2]
            found.append(
                Box(min(xs), max(xs), max(ys) - min(ys), colour[1] or "", float(opacity[1]) if opacity else 1.0)
            )
    _, frame, *drawn = found  # the first is the whole figure
    assert not frame.colour
    return frame, [box for box in drawn if box.colour]  # without the frames of further axes


def widths(drawn: list[Box]) -> list[float]:
    return [box.right - box.left for box in drawn]


def in_proportion(lengths: list[float], values: list[float]) -> bool:
    assert len(lengths) == len(values) > 0
    longest, largest = max(lengths), max(values)
    return lengths == pytest.approx([longest * value / largest for value in values], abs=PIXEL)


def labels(page: str, name: str) -> list[str]:
    return [
        re.sub(r"<[^>]+>", "", text).strip() for text in re.findall(r"<text.*?</text>", section(page, name), re.DOTALL)
    ]


def facts(page: str) -> dict[str, str]:
    return dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page))


@pytest.mark.parametrize(("name", "column", "form"), [("emotion", 2, "{:.1f}"), ("rejects", 2, "{:,.0f}")])
def test_bars_are_as_long_as_their_values(page, name, column, form):
    """Fails if a bar has another value's length, label or colour, or is left out."""
    rows = Read(page).tables[name]
    _, drawn = boxes(page, name)
    factor = 100 if name == "emotion" else 1
    assert in_proportion(widths(drawn), [row[column] for row in rows])
    assert [text for text in labels(page, name) if re.fullmatch(r"[\d.,]+", text)] == [
        form.format(factor * row[column]) for row in rows
    ]
    colours = [row[0] if name == "emotion" else "accent" for row in rows]
    assert [box.colour for box in drawn] == colours


@pytest.mark.parametrize(("name", "edge", "value", "bound"), [("confidence", 0, 1, 1.0), ("throughput", 0, 4, None)])
def test_columns_stand_where_they_belong(page, name, edge, value, bound):
    """Fails if a column is of another height, or stands over another interval."""
    rows = Read(page).tables[name]
    frame, drawn = boxes(page, name)
    bound = bound or rows[-1][0] + rows[0][1] / 60
    width = frame.right - frame.left
    assert in_proportion([box.height for box in drawn], [row[value] for row in rows])
    assert [box.left for box in drawn] == pytest.approx(
        [frame.left + width * row[edge] / bound for row in rows], abs=PIXEL
    )


def test_stacks_are_divided_as_the_table_says(page, evaluated, tmp_path):
    """Fails if a share of a value is drawn longer, shorter or in another emotion's colour."""
    summary = told(["--summary", str(evaluated / "groups.parquet")], tmp_path / "page.html")
    for where, name, first, counted in [
        (page, "by-0", 4, True),
        (page, "by-1", 4, True),
        (summary, "groups", 6, False),
    ]:
        rows = Read(where).tables[name]
        frame, drawn = boxes(where, name)
        parts = [[value / (row[1] if counted else 1) for value in row[first:]] for row in rows]
        by_emotion = [share for column in zip(*parts, strict=True) for share in column]
        shares = [width / (frame.right - frame.left) for width in widths(drawn)]
        assert shares == pytest.approx(by_emotion, abs=1e-4)
        assert [box.colour for box in drawn] == [emotion for emotion in EMOTIONS for _ in rows]


def test_a_conversation_has_each_utterance_in_its_time(page):
    """Fails if an utterance is drawn at another second, for longer, or in another emotion's colour, or the axis begins later."""
    rows = Read(page).tables["timeline-1"]
    frame, drawn = boxes(page, "timeline-1")
    scale = (frame.right - frame.left) / max(row[1] for row in rows)
    expected = {(row[3], round(row[0], 2), round(row[1] - row[0], 2)) for row in rows}
    assert {
        (box.colour, round((box.left - frame.left) / scale, 2), round((box.right - box.left) / scale, 2))
        for box in drawn
    } == expected
    seconds = sum(row[1] - row[0] for row in rows)
    assert f"{seconds:,.4g} s" in section(page, "timeline-1") and f"{LONG} over time" in page


def test_utterances_that_touch_have_an_edge():
    """Fails if two utterances of one emotion, the second right after the first, look like one, or an edge covers a short one."""
    spans = [(0.0, 30.0, "a", "joy"), (30.0, 60.0, "a", "joy"), (60.0, 60.5, "b", "joy"), (60.5, 600.0, "b", "joy")]
    svg = str(plots.conversation(spans, {}, name="n"))
    edges = [
        float(width) for width in re.findall(r"fill: var\(--joy\); stroke: var\(--card\); stroke-width: ([\d.]+)", svg)
    ]
    _, drawn = boxes(f'<section id="n">{svg}</section>', "n")
    lengths = widths([box for box in drawn if box.colour == "joy"])
    assert len(edges) == len(lengths) == len(spans) and edges[0] == edges[1] >= 1
    assert all(0 < edge < length / 2 for edge, length in zip(edges, lengths, strict=True))


def test_confusions_and_reliability_are_drawn_from_their_tables(evaluated, tmp_path):
    """Fails if a cell has another's number or shade, or a point of the diagram stands elsewhere."""
    page = told(["--evaluation", str(evaluated / "figures")], tmp_path / "page.html")
    tables = Read(page).tables
    cells, (_, drawn) = tables["confusion-1"], boxes(page, "confusion-1")
    assert [text for text in labels(page, "confusion-1") if text.isdigit()] == [f"{row[2]:.0f}" for row in cells]
    assert [box.opacity for box in drawn] == pytest.approx([0.04 + 0.6 * row[3] for row in cells], abs=1e-3)
    frame, _ = boxes(page, "reliability-1")
    figure = section(page, "reliability-1")
    line = re.search(r'd="([^"]+)"[^>]*style="fill: none; stroke: var\(--accent\); stroke-width: 1.5', figure)
    assert line
    points = [(float(x), float(y)) for x, y in re.findall(_POINT, line[1])]
    width, rows = frame.right - frame.left, tables["reliability-1"]
    assert [x for x, _ in points] == pytest.approx([frame.left + width * row[3] for row in rows], abs=PIXEL)
    assert [y for _, y in points] == pytest.approx(
        [points[0][1] - frame.height * (row[4] - rows[0][4]) / 1.06 for row in rows], abs=PIXEL
    )
    assert len(re.findall(r'z " clip-path="[^"]+" style="fill: var\(--accent\)', figure)) == len(rows)
    _, bars = boxes(page, "classes-1")
    f1 = {row[0]: row[3] for row in tables["classes-1"]}
    assert in_proportion(widths(bars), list(f1.values()))
    written = json.loads((evaluated / "figures" / "metrics.json").read_text())["outputs"][0]["overall"]
    accuracy = written["metrics"]["accuracy"]
    title = f"accuracy (guessing: {max(accuracy['chance'], accuracy['majority']):.3f})"
    assert facts(page)[title] == f"{accuracy['value']:.3f}"
    _, (*bars,) = boxes(page, "figures-1")
    drawn = [row for row in tables["figures-1"] if row[0] in written["metrics"] and row[1] > 0]
    assert in_proportion(
        [box.right - box.left for box in bars if box.opacity == 0.75][: len(drawn)], [row[1] for row in drawn]
    )
    assert facts(page)["utterances compared"] == str(written["rows"])


def test_the_facts_at_the_top_are_those_of_a_query(store, page, evaluated, tmp_path):
    """Fails if a number that stands above the figures, or in the words beside them, is not what the files say."""
    rows = f"read_parquet('{store.root}/utterances/**/*.parquet')"
    ((utterances, recordings, sure, hours),) = asked(
        f"SELECT count(*), count(DISTINCT recording_id), avg((confidence >= 0.5)::INT), sum(duration_s) / 3600 FROM {rows}"
    )
    ((rejected,),) = asked(f"SELECT count(*) FROM '{store.root}/rejects/*.parquet'")
    assert facts(page) == facts(page) | {
        "utterances": str(utterances),
        "recordings annotated": str(recordings),
        "rows rejected": f"{rejected} ({100 * rejected / (rejected + recordings):.0f} %)",
    }
    assert float(facts(page)["hours of audio"]) == pytest.approx(hours, abs=1e-3)
    assert f"{100 * sure:.0f} % of utterances have a confidence of 0.5 or more" in page
    examples = asked(f"""SELECT reason, recording_id, coalesce(audio, '–'), detail, regexp_replace(manifest, '[?].*', ''), line
        FROM '{store.root}/rejects/*.parquet' ORDER BY reason, manifest, line""")
    assert same(Read(page).tables["examples"], examples)
    report = json.loads(Path(store.root, "_runs/000001/report.json").read_text())
    stages = ", ".join(f"{name} {formatted(seconds)}" for name, seconds in report["stage_seconds"].items())
    assert facts(page)["seconds in stages"] == stages and facts(page)["configuration"] == report["config_hash"]

    summary = facts(told(["--summary", str(evaluated / "groups.parquet")], tmp_path / "page.html"))
    ((groups, total, speech),) = asked(
        f"SELECT count(*), sum(utterances), sum(speech_s) / 3600 FROM '{evaluated}/groups.parquet'"
    )
    assert (summary["groups"], summary["utterances"]) == (str(groups), str(total))
    assert float(summary["hours of speech"]) == pytest.approx(speech, abs=1e-3)
