"""Tables of corpora: no line of them hides another, and none ends the conversion."""

from __future__ import annotations

import random
import re

import pytest

from tests.jobs.test_make_manifest import MELD_HEADER, made, tree

MEA = "spanish-meacorpus-2023-dataset"
STRAY = [
    'He said "no"', '"No, he said', 'No" she said', 'a "b" c "d', '"""', '""', "x\x00y", "she, he", '"', "ordinary",
]  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("layout", ["meld", "meacorpus"])
def test_a_stray_quote_in_a_corpus_table_costs_its_own_line(tmp_path, capsys, layout, seed):
    """Fails if a quote swallows the lines up to the next one, or a line is lost without being counted as left out."""
    rng = random.Random(seed)
    texts = [rng.choice(STRAY) if rng.random() < 0.4 else "fine" for _ in range(30)]
    if layout == "meld":
        lines = [f'{n},{text},Chandler,joy,neutral,0,{n},8,21,"0:16,059","0:21,731"\n' for n, text in enumerate(texts)]
        table, folder, name = MELD_HEADER + "".join(lines), "train_splits/dia0_utt", "train_sent_emo.csv"
    else:
        lines = [f"{n}.mp3,joy,{text},test\n" for n, text in enumerate(texts)]
        table, folder, name = "filename,label,transcription,split\n" + "".join(lines), "seg/", f"{MEA}.csv"
    source = tree(tmp_path / "c", *(f"{folder}{n}.mp3" for n in range(len(texts))), **{name: table})
    rows = made(source, tmp_path / "m.jsonl", "--layout", layout)
    kept = {int(re.search(r"(\d+)\.mp3$", str(row["audio"]))[1]) for row in rows}
    assert kept >= {n for n, text in enumerate(texts) if text in {"fine", "ordinary"}}
    omitted = re.search(
        r"left out: (\d+), a line of a table that cannot be read: .*, line \d+: ", capsys.readouterr().out
    )
    assert len(kept) + (int(omitted[1]) if omitted else 0) == len(texts)


def test_a_table_line_without_numbers_is_left_out(tmp_path, capsys):
    """Fails if one line of MELD whose dialogue is not a number ends the conversion with a traceback."""
    line = "1,Hello,Chandler,joy,neutral,{},3,8,21,0,1\n"
    table = MELD_HEADER + line.format("zero") + line.format("") + line.format("0")
    source = tree(tmp_path / "c", "train_splits/dia0_utt3.mp4", **{"train_sent_emo.csv": table})
    assert [row["id"] for row in made(source, tmp_path / "m.jsonl", "--layout", "meld")] == ["meld-train-dia0_utt3"]
    assert "left out: 2, a line of a table that has no number" in capsys.readouterr().out
