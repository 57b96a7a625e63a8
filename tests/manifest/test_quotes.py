"""Stray quotes in CSV and TSV: no line disappears into a cell, and cells of several lines stay whole."""

from __future__ import annotations

import csv
import itertools
import random

from pipeline.errors import Reason
from tests.support.cases import case
from tests.support.manifests import put, read

TEXTS = ["first", '"An open quote', "in between", "he said no", 'and she said no"', "last"]
OTHERS = [
    '"open',
    'close"',
    '"whole"',
    '""',
    '"',
    'say "x" now',
    '"a" and "b"',
    "plain",
    '"では、危険だ"と言った。',
    '""twice""',
    "",
]


def unquoted(path, texts, *, tab="\t", audio="/a/{i}.wav", order=("id", "audio", "text")):
    """A table written without any quoting."""
    lines = [tab.join(order)]
    for i, text in enumerate(texts):
        row = {"id": f"c{i}", "audio": audio.format(i=i), "text": text}
        lines.append(tab.join(row[name] for name in order))
    return put(path, "\n".join(lines) + "\n")


def test_a_quote_in_a_tsv_swallows_no_lines(tmp_path):
    """Fails if a cell that opens with a quote takes the lines up to the next quote with it, without a reject."""
    rows, rejects = read(unquoted(tmp_path / "m.tsv", TEXTS))
    assert not rejects and rows["recording_id"].to_pylist() == [f"c{i}" for i in range(6)]
    assert rows["text"].to_pylist() == TEXTS


def test_every_line_of_an_unquoted_tsv_is_a_row(tmp_path):
    """Fails if some sequence of quotes hides a row of a TSV, rejects it or changes it, in whatever column they are."""
    plain = {'"whole"': "whole", '""': None, "": None}  # quotes that close are quoting; '""twice""' is no quoting
    for seed in range(30):
        with case(seed):
            chance = random.Random(seed)
            texts = chance.choices(OTHERS, k=40)
            order = chance.choice([("id", "audio", "text"), ("text", "id", "audio"), ("id", "text", "audio")])
            rows, rejects = read(unquoted(tmp_path / "m.tsv", texts, order=order))
            assert not rejects and rows["recording_id"].to_pylist() == [f"c{i}" for i in range(40)]
            assert rows["text"].to_pylist() == [plain.get(text, text) for text in texts]


def test_a_stray_quote_in_a_csv_is_never_silent(tmp_path):
    """Fails if a line of a CSV is neither a row nor a reject of its own because a quote before it was not closed."""
    for tab, audio, seed in itertools.product([",", ";"], ["/a/{i}.wav", "clip-{i}", "s3://b/{i}.mp3"], range(10)):
        with case(tab, audio, seed):
            chance = random.Random(seed)
            texts = TEXTS if seed == 0 else chance.choices([text for text in OTHERS if "," not in text], k=30)
            rows, rejects = read(unquoted(tmp_path / "m.csv", texts, tab=tab, audio=audio))
            lines = sorted([*rows["line"].to_pylist(), *(reject.line for reject in rejects)])
            assert lines == list(range(2, len(texts) + 2))
            assert {reject.cause.reason for reject in rejects} <= {Reason.MALFORMED}
            for line, text in zip(rows["line"].to_pylist(), rows["text"].to_pylist(), strict=True):
                assert text in (texts[line - 2], texts[line - 2].strip('"') or None)
            if seed == 0:
                assert [(reject.line, "quote" in reject.cause.detail) for reject in rejects] == [(3, True)]


def test_a_stray_quote_before_delimiters_is_never_silent(tmp_path):
    """Fails if a stray quote in a text that also has delimiters hides the rows after it, without a reject."""
    for tab, audio, seed in itertools.product([",", ";"], ["/a/{i}.wav", "clip-{i}.mp3"], range(15)):
        with case(tab, audio, seed):
            chance = random.Random(seed)
            odd = [f'"No{tab} he said', f"she{tab} he", f'no{tab} she said"', f'"{tab}"']
            texts = chance.choices([*OTHERS, *odd], k=30)
            rows, rejects = read(unquoted(tmp_path / "m.csv", texts, tab=tab, audio=audio))
            lines = sorted([*rows["line"].to_pylist(), *(reject.line for reject in rejects)])
            assert lines == list(range(2, len(texts) + 2))
            found = zip(rows["line"].to_pylist(), rows["recording_id"].to_pylist(), strict=True)
            assert all(name == f"c{line - 2}" for line, name in found)


ORDERS = [("audio", "text"), ("text", "audio"), ("id", "text", "audio", "x"), ("id", "audio", "text")]


def test_cells_of_several_lines_stay_whole(tmp_path):
    """Fails if a transcript that was properly quoted over several lines is taken for a stray quote."""
    for tab, order in itertools.product(["\t", ",", ";"], ORDERS):
        with case(tab, order):
            chance = random.Random(1)
            words = ["Hello, there", "Well, yes.", "No", "", 'she said "x"', "1, 2, 3", "a; b; c", "the end."]
            rows = []
            for i in range(200):
                text = "\n".join(chance.choices(words, k=chance.randint(1, 4)))
                rows.append({"id": f"u{i}", "audio": f"clips/{i}.wav", "text": text, "x": f"{i}"})
            with (tmp_path / "m.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, delimiter=tab)
                writer.writerows([order, *([row[name] for name in order] for row in rows)])
            found, rejects = read(tmp_path / "m.csv")
            assert not rejects and found["text"].to_pylist() == [row["text"] or None for row in rows]


def test_a_record_of_several_lines_that_is_rejected_says_so(tmp_path):
    """Fails if the reject of a record over several lines does not say which lines it takes with it."""
    rows, rejects = read(put(tmp_path / "m.csv", 'audio,text\na.wav,"one\ntwo",x,y\nb.wav,fine\n'))
    assert rows["line"].to_pylist() == [4]
    assert [(reject.line, reject.cause.detail) for reject in rejects] == [
        (2, "4 cells, but the header has 2; the record spans the lines to 3")
    ]


def test_a_quote_left_open_at_the_end_of_a_tsv(tmp_path):
    """Fails if the last row is lost, or lines after an open quote are read twice."""
    rows, rejects = read(put(tmp_path / "m.tsv", 'audio\ttext\na.wav\t"x\nshort\nb.wav\t"y'))
    assert rows["text"].to_pylist() == ['"x', '"y'] and [reject.line for reject in rejects] == [3]
