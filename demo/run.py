"""Run the real job on the demo corpus with the small models in demo/models, and print what a person wants to see of it.

usage: python -m demo.run          (or `make demo`)

Exit status: that of the job when it fails; 1 when a manifest line is lost or a sound recording rejected; else 0.
Takes about half a minute on two cores. Replaces `demo/out`, touches nothing else; needs no network.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import wrap

import jiwer
import pyarrow as pa
import pyarrow.dataset as ds

from demo import models
from demo.picture import chart, svg, voices
from demo.table import Column, bar, clean, fill, render

MANIFEST = "demo/corpus/manifest.jsonl"
OUTPUT = "demo/out"
PICTURE = f"{OUTPUT}/picture.svg"
PAGE = f"{OUTPUT}/_runs/000001/report.html"
BROKEN = "broken-"
"""In the id of the rows that are meant to be rejected."""
HEARD = "≈"
"""Before a text that the speech recogniser wrote; the others came with the manifest."""

_NARROWEST, _WIDEST = 60, 140
_UTTERANCE_COLUMNS = [
    "recording_id",
    "audio",
    "channel",
    "start_s",
    "speaker",
    "text",
    "text_source",
    "emotion",
    "confidence",
    "scores",
    "manifest_label",
    "reference",
]
_SYNTHETIC = (
    "SYNTHETIC VOICES, SMALL MODELS: for trying the pipeline only.",
    "Nobody here feels anything: a program acts, and models that know a few hundred words listen. They never heard these "
    "voices or sentences. On a person's voice they are worth nothing; the published models are a few options away.",
)
_QUERY = (
    "select speaker, emotion, count(*) as n, round(avg(confidence), 2) as confidence "
    f"from '{OUTPUT}/utterances/**/*.parquet' group by all order by all"
)


def command(output: str, options: Iterable[str]) -> list[str]:
    """The job's command line, with this interpreter as seen from the checkout."""
    python = Path(sys.executable)
    shown = python.relative_to(models.ROOT) if python.is_relative_to(models.ROOT) else python
    return [str(shown), "-m", "jobs.annotate", "--manifest", MANIFEST, "--output", output, *options]


def shell_lines(words: Sequence[str]) -> str:
    """A command as it can be pasted: one option a line."""
    lines, current = [], ""
    for word in words:
        if word.startswith("--") and current:
            lines.append(current)
            current = ""
        current += f"{' ' if current else ''}{shlex.quote(word)}"
    return " \\\n    ".join([*lines, current])


def utterance_table(utterances: pa.Table, width: int) -> list[str]:
    """File, who, text, emotion (and what was acted, if another) and confidence, in lines of at most `width` cells."""
    rows = sorted(utterances.to_pylist(), key=lambda row: (*_whole(row), row["start_s"] or 0.0))
    count = Counter(map(_whole, rows))
    columns = (
        Column("file", least=12),
        Column("who", least=5),
        Column("text", least=8),
        Column("emotion"),
        Column("confidence"),
    )
    return render(columns, [_utterance_cells(row, several=count[_whole(row)] > 1) for row in rows], width)


def _whole(row: Mapping[str, object]) -> tuple[str, str]:
    """The file's name and the channel, which may hold several utterances."""
    channel = row["channel"]
    return Path(str(row["audio"] or "")).name, "" if channel is None else f" ch {channel}"


def _utterance_cells(row: Mapping[str, object], *, several: bool) -> list[str]:
    text = clean(str(row["text"] or ""))
    if row["text_source"] == "asr":
        text = f"{HEARD} {text}" if text else f"{HEARD} (nothing heard)"
    file = "".join(_whole(row)) + (f" {row['start_s']:.1f}s" if several and row["start_s"] is not None else "")
    acted = row.get("manifest_label")
    confidence = row["confidence"]
    sure = f"{confidence:.2f} {bar(confidence, 6)}" if isinstance(confidence, float) else "–"
    emotion = str(row["emotion"] or "–") + (f" (acted: {acted})" if acted not in (None, row["emotion"]) else "")
    return [file, str(row["speaker"] or ""), text or "(no text)", emotion, sure]


def verdict(utterances: pa.Table) -> str:
    """How often the models were right, where the manifest says what was acted and what was said."""
    rows = utterances.to_pylist()
    acted = [row["emotion"] == row["manifest_label"] for row in rows if row["manifest_label"] is not None]
    heard: dict[str, list[str]] = {}
    references: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: row["start_s"] or 0.0):
        if row["reference"] is not None:
            heard.setdefault(row["recording_id"], []).append(row["text"])
            references[row["recording_id"]] = row["reference"]
    said = [words(references[recording]) for recording in references]
    rate = jiwer.wer(said, [words(" ".join(heard[recording])) for recording in references])
    count = sum(len(text.split()) for text in said)
    return f"{sum(acted)} of {len(acted)} acted emotions recognised; {100 * rate:.0f} % of {count} words heard wrong."


def words(text: str) -> str:
    """A text as words are counted: lower case, no punctuation."""
    return " ".join(re.findall(r"\w+", text.lower()))


def reject_table(rejects: pa.Table, width: int) -> list[str]:
    """Line of the manifest, file, reason and the sentence that explains it."""
    rows = [
        [str(row["line"]), Path(row["audio"] or "").name or "(the line itself)", row["speaker"] or "", row["reason"],
         row["detail"].replace(f"{models.ROOT}/", "")]
        for row in rejects.sort_by("line").to_pylist()
    ]  # fmt: skip
    columns = (Column("line"), Column("file", least=8), Column("who", least=4), Column("reason"),
               Column("detail", least=16, wrap=True))  # fmt: skip
    return render(columns, rows, width)


def banner(width: int) -> list[str]:
    """The warning in a box."""
    inner = [line for sentence in _SYNTHETIC for line in wrap(sentence, width - 4)]
    return [f"┏{'━' * (width - 2)}┓", *(f"┃ {fill(line, width - 4)} ┃" for line in inner), f"┗{'━' * (width - 2)}┛"]


def _read(folder: str, columns: list[str] | None = None) -> pa.Table:
    return ds.dataset(models.ROOT / OUTPUT / folder, format="parquet").to_table(columns=columns)


def _heading(words: str) -> None:
    print(f"\n\x1b[1m{words}\x1b[0m\n" if sys.stdout.isatty() else f"\n{words}\n")


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)


def _show(width: int, elapsed_s: float) -> int:
    """Print tables, picture and where everything lies."""
    utterances, rejects = _read("utterances", _UTTERANCE_COLUMNS), _read("rejects")
    recordings = len(utterances["recording_id"].unique())
    lines = sum(1 for line in (models.ROOT / MANIFEST).read_text(encoding="utf-8").splitlines() if line.strip())
    _print(banner(width))
    _heading(f"Who sounded how: {utterances.num_rows} utterances")
    _print(utterance_table(utterances, width))
    _print(wrap(f"{HEARD}: written by the speech recogniser; the other texts came with the manifest", width))
    print(f"\n{verdict(utterances)}")

    _heading("Mean score per speaker in percent (n: utterances; a full bar would be 100)")
    shown = voices(utterances)
    _print(chart(shown, width))
    print("–: the language's model does not know this emotion")
    (models.ROOT / PICTURE).write_text(
        svg(shown, "Synthetic voices, small models: for trying the pipeline only."), encoding="utf-8"
    )

    surprising = [row for row in rejects.to_pylist() if BROKEN not in f"{row['recording_id']} {row['raw']}"]
    _heading(f"{rejects.num_rows} rejects and why; {rejects.num_rows - len(surprising)} were broken on purpose")
    _print(reject_table(rejects, width))

    _heading("Where it lies")
    print(f"{lines} manifest lines = {recordings} annotated + {rejects.num_rows} rejected, in {elapsed_s:.0f} s\n")
    _print([f"utterances  {OUTPUT}/utterances/*.parquet", f"rejects     {OUTPUT}/rejects/*.parquet"])
    print(f"picture     {PICTURE}")
    if (models.ROOT / PAGE).exists():
        print(f"report      {PAGE}, to open in a browser")
    print(f'\nQuery it:\n\nduckdb -c "{_QUERY}"\n\nor, without the duckdb program:\n')
    print(f"{command('', ())[0]} -c \"import duckdb; duckdb.sql('''{_QUERY} ''').show()\"")
    print("\nYour own recordings: leave out the model options, and the published models are fetched (several GB):\n")
    print(shell_lines(command("build/demo-published", ())))
    if surprising or lines != recordings + rejects.num_rows:
        print(f"\nThis is a bug: {len(surprising)} sound recordings were rejected, and of {lines} manifest lines "
              f"{recordings + rejects.num_rows} are accounted for.")  # fmt: skip
        return 1
    return 0


def main() -> int:
    """Run the demo; returns its exit status."""
    width = min(max(shutil.get_terminal_size((100, 24)).columns, _NARROWEST), _WIDEST)
    shutil.rmtree(models.ROOT / OUTPUT, ignore_errors=True)
    words = command(OUTPUT, models.options())
    print(f"The job, as you would start it from {models.ROOT}:\n\n{shell_lines(words)}\n", flush=True)
    started = time.monotonic()
    status = subprocess.run([sys.executable, *words[1:]], cwd=models.ROOT, check=False).returncode
    if status != 0:
        print(f"\nThe job ended with exit status {status}; what it said stands above.", file=sys.stderr)
        return max(status, 1)
    print()
    return _show(width, time.monotonic() - started)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
