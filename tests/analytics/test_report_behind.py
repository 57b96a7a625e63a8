"""The rows behind each mark of a figure, against queries over the files; and what is left of them in a sample."""

from __future__ import annotations

import re
import shutil
from html import unescape
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.analytics.report import behind
from pipeline.analytics.report.svg import distinct
from pipeline.dataset.reader import Rows
from pipeline.schema import EMOTIONS
from tests.analytics.test_report import SAID, Read, asked, evaluated, page, store, told

__all__ = ["evaluated", "page", "store"]  # fixtures
Members = dict[str, list[tuple[str, ...]]]


def members(page: str, table: str) -> Members:
    """The first cells of the rows behind each mark, by the mark's place."""
    body = page.partition(f'<table data-query="{table}">')[2].partition("</table>")[0]
    found: Members = {}
    for places, cells in re.findall(r'<tr data-in="([^"]*)">(.*?)</tr>', body, re.DOTALL):
        values = tuple(unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", cells, re.DOTALL))
        for place in places.split():
            found.setdefault(place, []).append(values)
    return found


def header_of(page: str, table: str) -> list[str]:
    """The names of a table's columns."""
    header = page.partition(f'<table data-query="{table}">')[2].partition("</thead>")[0]
    return re.findall(r">(\w+)</th>", header)


def links(page: str) -> dict[str, str]:
    """The place that each mark leads to, and the mark's title."""
    return {place: unescape(title) for place, title in re.findall(r'<a href="#([^"]+)">\s*<title>(.*?)</title>', page)}


def totals(page: str) -> dict[str, int]:
    """The number of rows behind each mark."""
    return {place: int(count) for place, count in re.findall(r' id="([^"]+)" data-behind="(\d+)"', page)}


def test_each_mark_of_a_run_lists_its_utterances(store, page):
    """Fails if an utterance is behind another mark than a query says, or behind none, or a mark has another number."""
    rows = f"read_parquet('{store.root}/utterances/**/*.parquet', hive_partitioning = true)"
    found, whole = members(page, "utterances"), totals(page)
    tables = Read(page).tables
    for name, key in {"emotion": "emotion", "confidence": "least(floor(confidence::DOUBLE * 20), 19) / 20"}.items():
        for place, row in enumerate(tables[name]):
            value = f"'{row[0]}'" if isinstance(row[0], str) else row[0]
            expected = asked(f"""SELECT recording_id, round(start_s, 2)::VARCHAR FROM {rows} WHERE {key} = {value}
                ORDER BY recording_id, segment_index""")
            listed = found[f"{name}-r{place}"]
            assert [each[0] for each in listed] == [each[0] for each in expected]
            assert [float(each[1]) for each in listed] == [float(each[1]) for each in expected]
            assert whole[f"{name}-r{place}"] == len(expected) == int(row[1])
    for name, column in {"by-0": "language", "by-1": "speaker"}.items():
        for place, row in enumerate(tables[name]):
            for number, emotion in enumerate(EMOTIONS):
                value = str(row[0]).replace("'", "''")
                expected = asked(f"""SELECT recording_id FROM {rows} WHERE {column} = '{value}' AND emotion = '{emotion}'
                    ORDER BY recording_id, segment_index""")
                cell = f"{name}-r{place}-c{4 + number}"
                assert [[each[0]] for each in found.get(cell, [])] == expected
                assert whole.get(cell, 0) == len(expected) == row[4 + number]
    assert [row[4] for row in tables["utterances"]] == [
        row[0] for row in asked(f"SELECT emotion FROM {rows} ORDER BY recording_id, segment_index")
    ]


def test_each_mark_leads_to_its_rows_or_to_a_row_of_its_table(store, page):
    """Fails if a mark of a figure is no link, leads to another row, or counts other rows than it lists."""
    leads, whole = links(page), totals(page)
    lists = {**members(page, "utterances"), **members(page, "examples"), **members(page, "parts")}
    assert {place: len(rows) for place, rows in lists.items()} == whole
    assert set(whole) <= set(leads)
    assert {place.rpartition("-")[0] for place in set(leads) - set(whole)} == {"timeline-1"}
    assert len([place for place in leads if place.startswith("timeline-1")]) == 3
    emotions = Read(page).tables["emotion"]
    assert leads["emotion-r0"] == f"{emotions[0][0]}: {100 * emotions[0][2]:.1f} % of utterances"
    reasons = [(row[0], row[1]) for row in members(page, "examples")["rejects-r0"]]
    assert reasons == [(row[0], row[1]) for row in asked(f"""SELECT reason, recording_id FROM '{store.root}/rejects/*.parquet'
        WHERE reason = (SELECT reason FROM '{store.root}/rejects/*.parquet' GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT 1)
        ORDER BY manifest, line""")]  # fmt: skip


def test_each_part_is_behind_the_intervals_in_which_it_was_in_work(page):
    """Fails if a column of the throughput lists a part that was not in work, or leaves one out."""
    table = Read(page).tables["throughput"]
    found = members(page, "parts")
    for place, (from_minute, step_s, *_) in enumerate(table):
        for shard, start, minutes, *_others in found[f"throughput-r{place}"]:
            assert float(start) <= from_minute + step_s / 60 + 0.01, shard
            assert float(start) + float(minutes) >= from_minute - 0.01, shard
    listed = {shard for rows in found.values() for shard, *_ in rows}
    assert listed == {f"{row[0]:.0f}" for row in Read(page).tables["parts"]}


def test_each_mark_of_an_evaluation_lists_its_utterances(evaluated, tmp_path):
    """Fails if a cell of the confusions, a point of the reliability or of the abstention lists other utterances."""
    page = told(["--evaluation", str(evaluated / "figures")], tmp_path / "page.html")
    found, tables = members(page, "predictions"), Read(page).tables
    predictions = f"'{evaluated}/figures/predictions.parquet'"
    for name, condition in {
        "confusion-1": lambda row: f"truth = '{row[0]}' AND predicted = '{row[1]}'",
        "reliability-1": lambda row: f"confidence > {row[0]!r} AND confidence <= {row[1]!r}",
        "abstention-1": lambda row: f"confidence >= {row[0]!r}",
        "classes-1": lambda row: f"truth = '{row[0]}'",
    }.items():
        for place, row in enumerate(tables[name]):
            expected = asked(f"SELECT utterance_id FROM {predictions} WHERE {condition(row)} ORDER BY 1")
            assert [[each[0]] for each in found.get(f"{name}-r{place}", [])] == expected
            assert totals(page).get(f"{name}-r{place}", 0) == len(expected)


def test_utterances_of_an_evaluation_have_time_speaker_and_words(evaluated, tmp_path, monkeypatch):
    """Fails if an utterance has another's time, speaker or words, or words are on a page that nobody asked for."""
    folder = evaluated / "figures"
    page = told(["--evaluation", str(folder), "--with-texts"], tmp_path / "texts.html")
    rows = f"read_parquet('{evaluated}/out/utterances/**/*.parquet', hive_partitioning = true)"
    expected = asked(f"""SELECT utterance_id, round(start_s, 2), round(end_s, 2), speaker::VARCHAR, text FROM {rows}
        WHERE utterance_id IN (SELECT utterance_id FROM '{folder}/predictions.parquet') ORDER BY 1""")
    assert [row[:5] for row in Read(page).tables["predictions"]] == expected
    assert len({row[3] for row in expected}) > 1 and all(row[4] for row in expected)
    plain = ["utterance_id", "start_s", "end_s", "speaker", "truth", "predicted", "confidence", "abstained"]
    assert header_of(told(["--evaluation", str(folder)], tmp_path / "plain.html"), "predictions") == plain
    monkeypatch.setattr(Rows, "has_words", False)
    hashes = told(["--evaluation", str(folder), "--with-texts"], tmp_path / "hashes.html")
    assert header_of(hashes, "predictions") == plain


def test_an_evaluation_of_an_earlier_version_has_a_list_without_times(evaluated, tmp_path):
    """Fails if the page of an evaluation without the later columns cannot be made, or has columns of nothing."""
    folder = tmp_path / "figures"
    shutil.copytree(evaluated / "figures", folder)
    table = pq.read_table(folder / "predictions.parquet")
    pq.write_table(table.drop_columns(["recording_id", "start_s", "end_s", "speaker"]), folder / "predictions.parquet")
    page = told(["--evaluation", str(folder)], tmp_path / "page.html")
    assert header_of(page, "predictions") == ["utterance_id", "truth", "predicted", "confidence", "abstained"]


def test_a_long_table_is_sampled_and_every_mark_keeps_rows(store, tmp_path, monkeypatch):
    """Fails if a page has all rows of a table beyond the limit, does not say so, or a mark has no row left."""
    monkeypatch.setattr(behind, "LIMIT", 4)
    page = told([store.root], tmp_path / "page.html")
    rows = Read(page).tables["utterances"]
    whole = sum(row[1] for row in Read(page).tables["emotion"])
    assert f"A sample of {len(rows)} of {whole:.0f} utterances: at least 1 behind each mark" in Read(page).text
    found = members(page, "utterances")
    for place, count in totals(page).items():
        if place.startswith(("emotion", "confidence", "by-")):
            assert 1 <= len(found[place]) <= count
    assert sum(len(found.get(place, [])) < count for place, count in totals(page).items()) > 0


@pytest.mark.parametrize("texts", ["keep", "none", "hash"])
def test_words_are_listed_if_asked_for_and_kept(tmp_path, monkeypatch, texts):
    """Fails if words are on a page that nobody asked for, are missing from one that was, or hashes pass as words."""
    from tests.analytics.test_report import output_of

    monkeypatch.setattr("tests.support.outputs.FLAGS", {"texts": texts})
    store = output_of(tmp_path)
    pages = {flags: told([store.root, *flags], tmp_path / f"{len(flags)}.html") for flags in [(), ("--with-texts",)]}
    assert SAID not in pages[()]
    header = header_of(pages["--with-texts",], "utterances")
    assert ("text" in header) == (SAID in pages["--with-texts",]) == (texts == "keep")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["short", "a name of twenty-four ch"], ["short", "a name of twenty-fo…"]),
        (["call-centre-berlin-team-north", "call-centre-berlin-team-south"], ["call-…lin-team-north", "call-…lin-team-south"]),
        (["x" * 30 + "1" + "y" * 30, "x" * 30 + "2" + "y" * 30], ["xxxxx…1yyyyyyyyyyyy…", "xxxxx…2yyyyyyyyyyyy…"]),
        (["a\x01", "a\x02"], ["a\N{REPLACEMENT CHARACTER}", "a\N{REPLACEMENT CHARACTER} #2"]),
    ],
)  # fmt: skip
def test_shortened_labels_stay_different(names, expected):
    """Fails if two groups have one label on an axis because their names begin alike."""
    assert distinct(names) == expected and len(set(expected)) == len(names)


def test_the_script_is_short_and_uses_no_markup():
    """Fails if the script grows beyond what a reader checks, or makes markup of a string."""
    script = Path(behind.__file__).with_name("explore.js").read_text(encoding="utf-8")
    assert len(script.splitlines()) < 200
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(|</script", script)
