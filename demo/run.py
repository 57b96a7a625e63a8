"""Run the real job on the demo corpus with the small models in demo/models, and print its tables.

usage: python -m demo.run          (or `make demo`)

Exit status: that of the job when it fails; 1 when a manifest line is lost or a sound recording rejected; else 0.
Takes about half a minute on two cores. Replaces `demo/out` and changes nothing else; needs no network.
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
from demo.table import Column, bar, clean, fill, render

MANIFEST = "demo/corpus/manifest.jsonl"
OUTPUT = "demo/out"
PAGE = f"{OUTPUT}/_runs/000001/report.html"
BROKEN = "broken-"
"""Prefix of the ids of rows that are meant to be rejected."""
HEARD = "≈"
"""Mark before a transcript; texts without it come from the manifest."""

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
    "A speech synthesiser acts the emotions. The models know a few hundred words and were not trained on these voices or "
    "sentences. They are worth nothing on a person's voice; the last command below uses the published models.",
)
_QUERY = (
    "select speaker, emotion, count(*) as n, round(avg(confidence), 2) as confidence "
    f"from '{OUTPUT}/utterances/**/*.parquet' group by all order by all"
)


def command(output: str, options: Iterable[str]) -> list[str]:
    """Return the job's command line, with the path of this interpreter relative to the source tree."""
    python = Path(sys.executable)
    program = python.relative_to(models.ROOT) if python.is_relative_to(models.ROOT) else python
    return [str(program), "-m", "jobs.annotate", "--manifest", MANIFEST, "--output", output, *options]


def shell_lines(words: Sequence[str]) -> str:
    """Return a command that can be pasted into a shell, with one option per line."""
    lines, current = [], ""
    for word in words:
        if word.startswith("--") and current:
            lines.append(current)
            current = ""
        current += f"{' ' if current else ''}{shlex.quote(word)}"
    return " \\\n    ".join([*lines, current])


def utterance_table(utterances: pa.Table, width: int) -> list[str]:
    """Return a table of utterances, at most `width` cells wide: file, speaker, text, emotion (and the acted one if it differs),
    and confidence."""
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
    """Return the names of the file and the channel."""
    channel = row["channel"]
    return Path(str(row["audio"] or "")).name, "" if channel is None else f" ch {channel}"


def _utterance_cells(row: Mapping[str, object], *, several: bool) -> list[str]:
    text = clean(str(row["text"] or ""))
    if row["text_source"] == "asr":
        text = f"{HEARD} {text}" if text else f"{HEARD} (no speech)"
    file = "".join(_whole(row)) + (f" {row['start_s']:.1f}s" if several and row["start_s"] is not None else "")
    acted = row.get("manifest_label")
    confidence = row["confidence"]
    sure = f"{confidence:.2f} {bar(confidence, 6)}" if isinstance(confidence, float) else "–"
    emotion = str(row["emotion"] or "–") + (f" (acted: {acted})" if acted not in (None, row["emotion"]) else "")
    return [file, str(row["speaker"] or ""), text or "(no text)", emotion, sure]


def verdict(utterances: pa.Table) -> str:
    """Return a sentence on the models' errors, for rows whose acted emotion or wording the manifest gives."""
    rows = utterances.to_pylist()
    acted = [row["emotion"] == row["manifest_label"] for row in rows if row["manifest_label"] is not None]
    transcripts: dict[str, list[str]] = {}
    references: dict[str, str] = {}
    for row in sorted(rows, key=lambda row: row["start_s"] or 0.0):
        if row["reference"] is not None:
            transcripts.setdefault(row["recording_id"], []).append(row["text"])
            references[row["recording_id"]] = row["reference"]
    spoken = [words(references[recording]) for recording in references]
    rate = jiwer.wer(spoken, [words(" ".join(transcripts[recording])) for recording in references])
    count = sum(len(text.split()) for text in spoken)
    return f"{sum(acted)} of {len(acted)} acted emotions recognised; {100 * rate:.0f} % of {count} words transcribed wrong."


def words(text: str) -> str:
    """Normalise a text for counting words: lower case, no punctuation."""
    return " ".join(re.findall(r"\w+", text.lower()))


def reject_table(rejects: pa.Table, width: int) -> list[str]:
    """Return a table of rejects: line of the manifest, file, speaker, reason and explanation."""
    rows = [
        [
            str(row["line"]),
            Path(row["audio"] or "").name or "(the line itself)",
            row["speaker"] or "",
            row["reason"],
            row["detail"].replace(f"{models.ROOT}/", ""),
        ]
        for row in rejects.sort_by("line").to_pylist()
    ]
    columns = (
        Column("line"),
        Column("file", least=8),
        Column("who", least=4),
        Column("reason"),
        Column("detail", least=16, wrap=True),
    )
    return render(columns, rows, width)


def banner(width: int) -> list[str]:
    """Return the warning in a box."""
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
    """Print the tables and the paths of the results. Returns: the exit status."""
    utterances, rejects = _read("utterances", _UTTERANCE_COLUMNS), _read("rejects")
    recordings = len(utterances["recording_id"].unique())
    lines = sum(1 for line in (models.ROOT / MANIFEST).read_text(encoding="utf-8").splitlines() if line.strip())
    _print(banner(width))
    _heading(f"{utterances.num_rows} utterances")
    _print(utterance_table(utterances, width))
    _print(wrap(f"{HEARD}: transcribed; the other texts come from the manifest", width))
    print(f"\n{verdict(utterances)}")

    surprising = [row for row in rejects.to_pylist() if BROKEN not in f"{row['recording_id']} {row['raw']}"]
    _heading(f"{rejects.num_rows} rejects with reasons; {rejects.num_rows - len(surprising)} were broken on purpose")
    _print(reject_table(rejects, width))

    _heading("Results")
    print(f"{lines} manifest lines = {recordings} annotated + {rejects.num_rows} rejected, in {elapsed_s:.0f} s\n")
    _print([f"utterances  {OUTPUT}/utterances/*.parquet", f"rejects     {OUTPUT}/rejects/*.parquet"])
    if (models.ROOT / PAGE).exists():
        print(f"report      {PAGE}, to open in a browser")
    print(f'\nQuery it:\n\nduckdb -c "{_QUERY}"\n\nor, without the duckdb program:\n')
    print(f"{command('', ())[0]} -c \"import duckdb; duckdb.sql('''{_QUERY} ''').show()\"")
    print("\nWithout the model options, the published models are downloaded (several GB):\n")
    print(shell_lines(command("build/demo-published", ())))
    if surprising or lines != recordings + rejects.num_rows:
        counted = recordings + rejects.num_rows
        print(
            f"\nThis is a bug: {len(surprising)} sound recordings were rejected, and {counted} of {lines} manifest lines "
            "are accounted for."
        )
        return 1
    return 0


def main() -> int:
    """Run the demo. Returns: its exit status."""
    width = min(max(shutil.get_terminal_size((100, 24)).columns, _NARROWEST), _WIDEST)
    shutil.rmtree(models.ROOT / OUTPUT, ignore_errors=True)
    words = command(OUTPUT, models.options())
    print(f"The job's command, run in {models.ROOT}:\n\n{shell_lines(words)}\n", flush=True)
    started = time.monotonic()
    status = subprocess.run([sys.executable, *words[1:]], cwd=models.ROOT, check=False).returncode
    if status != 0:
        print(f"\nThe job ended with exit status {status}; its messages are above.", file=sys.stderr)
        return max(status, 1)
    print()
    return _show(width, time.monotonic() - started)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
