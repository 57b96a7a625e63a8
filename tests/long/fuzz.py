"""Damages files and manifests at random and checks that each costs itself alone. Every trial follows from the seed.

    python -m tests.long.fuzz audio --count 20000 --seed 1 --json audio.json
    python -m tests.long.fuzz manifest --count 100000 --seed 1

audio: each mutant goes through the sandboxed decoder and must be a waveform within decode's bounds or a reject with a
reason that is not INTERNAL; good files between them must sound as ever. manifest: of each mutated file every line must be
a row or a reject, once, with its number, and the good lines what they are alone. Anything else is a violation: it is
listed, what caused it is kept, and the exit status is 1. So is what crashed, hung or exhausted a decoder, which is no
violation.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from pipeline.audio.decode import MAX_PEAK, decode
from pipeline.audio.limits import AudioLimits
from pipeline.audio.sandbox import Sandbox
from pipeline.errors import Reason, RejectedRow, Stage
from pipeline.manifest.read import read_manifest
from pipeline.manifest.records import RAW_CHARACTERS
from pipeline.schema import ROW_SCHEMA
from tests.hostile import make_audio as make
from tests.hostile.make_manifests import good
from tests.hostile.mutate_audio import mutate
from tests.hostile.mutate_manifest import mutate_bytes, mutate_json

LIMITS = AudioLimits(max_duration_s=3600, timeout_s=20)
_CONTAINED = (Reason.DECODER_CRASH, Reason.TIMEOUT, Reason.OUT_OF_MEMORY)
_ARGUMENTS: tuple[dict[str, object], ...] = (
    {}, {}, {}, {"duration_s": 3.0}, {"offset_s": 0.5, "duration_s": 0.5}, {"offset_s": 1.0}, {"channel": 0},
)  # fmt: skip
_CONTROL_EVERY = 200
_FILE_LINES = 2_000
_MUTATED_SHARE = 0.2
_MUTATED_FIRST = 0.3
_CSV_SHARE = 0.3
_HEADER = ["id", "audio", "text", "duration", "take"]


@dataclass
class Report:
    """What a run found.

    Attributes:
        outcomes: how many trials ended how.
        violations: what may not be; what it takes to see it again is in `kept`.
        contained: what crashed, hung or exhausted a decoder and cost no more than itself.
        peak_mib, peak_child_mib: largest resident size of this process and of any decoder.
    """

    kind: str
    seed: int
    trials: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    contained: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    slowest: str = ""
    peak_mib: float = 0.0
    peak_child_mib: float = 0.0
    wall_s: float = 0.0
    kept: str | None = None

    def count(self, outcome: str, times: int = 1) -> None:
        """One more of an outcome."""
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + times

    def timed(self, name: str, seconds: float) -> None:
        """Remember the slowest."""
        if seconds > self.slowest_s:
            self.slowest_s, self.slowest = round(seconds, 3), name

    def violated(self, name: str, what: str, content: bytes, keep: Path) -> None:
        """List a violation and keep its cause."""
        self.violations.append(f"{name}: {what}")
        self.keep(name, content, keep)

    def keep(self, name: str, content: bytes, folder: Path) -> None:
        """Write what caused it to a file."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name.replace(" ", "_").replace("/", "_")[:100]).write_bytes(content)
        self.kept = str(folder)


# Audio


@cache
def audio_seeds() -> dict[str, bytes]:
    """Whole files to damage: what libsndfile and FFmpeg write, and the shorter real clips."""
    seeds = make.complete()
    wave = make.voice(2.0, 44_100, 2)
    seeds["stereo wav 24 bit"] = make.snd(wave, 44_100, "WAV", "PCM_24")
    seeds["stereo flac"] = make.snd(wave, 44_100, "FLAC", "PCM_16")
    seeds["stereo mp3"] = make.snd(wave, 44_100, "MP3", "MPEG_LAYER_III")
    seeds["stereo vorbis"] = make.snd(wave, 44_100, "OGG", "VORBIS")
    seeds["mp3 without header"] = make.mp3_without_header(seeds["mp3"])
    seeds["two tracks"] = make.ffmpeg(make.voice(), "mp4", "aac", tracks=2)
    seeds["7.1 aac"] = make.many_channels(8, "mp4", "aac")
    seeds["12 channels"] = make.many_channels(12, "matroska", "pcm_s16le")
    seeds["mkv pcm"] = make.ffmpeg(make.voice(1.0), "matroska", "pcm_s16le")
    for clip in sorted((Path(__file__).parents[1] / "parity" / "audio").iterdir()):
        if clip.stat().st_size < 1 << 18:
            seeds[clip.name] = clip.read_bytes()
    return seeds


def audio_mutants(seed: int, first: int, count: int) -> Iterator[tuple[str, bytes, dict[str, object]]]:
    """Mutants `first` to `first + count` of a seed: name, content and what is asked of it."""
    seeds = audio_seeds()
    names, contents = sorted(seeds), [seeds[name] for name in sorted(seeds)]
    for number in range(first, first + count):
        rng = random.Random(f"{seed}/{number}")
        name = rng.choice(names)
        content, how = mutate(seeds[name], rng, contents)
        yield f"{seed}-{number} {name} {how}", content, rng.choice(_ARGUMENTS)


def fuzz_audio(count: int, seed: int, keep: Path, *, first: int = 0) -> Report:
    """Decode mutants; the children are ended before peaks are read, since only then are they counted."""
    report, started = Report("audio", seed), time.perf_counter()
    control = make.snd(make.voice(0.5, 44_100, 2), 44_100, "FLAC")
    expected = decode(control)
    with Sandbox() as sandbox:
        sandbox.decode(control)  # so that the start of the child is no trial's
        for name, content, arguments in audio_mutants(seed, first, count):
            begun = time.perf_counter()
            outcome, wrong = _decoded(sandbox, content, arguments)
            report.timed(name, time.perf_counter() - begun)
            report.trials += 1
            report.count(outcome)
            if wrong:
                report.violated(name, wrong, content, keep)
            if outcome in _CONTAINED:
                report.contained.append(f"{name}: {outcome}")
                report.keep(name, content, keep)
            if outcome in _CONTAINED or report.trials % _CONTROL_EVERY == 0:
                if not np.array_equal(sandbox.decode(control), expected):
                    report.violated(name, "the good file after it sounds otherwise", content, keep)
                report.count("good files between")
    return _closed(report, started)


def _decoded(sandbox: Sandbox, content: bytes, arguments: dict[str, object]) -> tuple[str, str | None]:
    """What became of a mutant, and what is wrong with that."""
    try:
        waveform = sandbox.decode(content, **arguments, limits=LIMITS)  # type: ignore[arg-type]
    except RejectedRow as rejected:
        wrong = str(rejected) if rejected.reason is Reason.INTERNAL or rejected.stage is not Stage.DECODE else None
        if not rejected.detail or "0x" in rejected.detail.partition("begin with")[0]:
            wrong = f"a detail that says nothing, or an address: {rejected}"
        return str(rejected.reason), wrong
    except Exception as error:  # noqa: BLE001 - what escapes is what is looked for
        return type(error).__name__, f"{type(error).__name__}: {error}"
    if waveform.dtype != np.float32 or waveform.ndim != 1 or not 560 <= len(waveform) <= 3600 * 16_000 + 1:
        return "waveform", f"{waveform.dtype} {waveform.shape}"
    peak = float(np.abs(waveform).max())
    if not peak <= MAX_PEAK:  # NaN compares false
        return "waveform", f"peak {peak}"
    return "waveform", None


# Manifests


def fuzz_manifest(count: int, seed: int, keep: Path) -> Report:
    """Read files of some thousand lines, a fifth of them mutated, JSON Lines or CSV."""
    report, started = Report("manifest", seed), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(-(-count // _FILE_LINES)):
            rng = random.Random(f"{seed}/{number}")
            from_csv = rng.random() < _CSV_SHARE
            lines, mutated = _manifest(rng, from_csv, min(_FILE_LINES, count - number * _FILE_LINES))
            path = Path(folder) / ("m.csv" if from_csv else "m.jsonl")
            path.write_bytes(b"\n".join(lines) + b"\n")
            name = f"{seed}-{number}{path.suffix}"
            begun = time.perf_counter()
            wrong = _read(path, lines, mutated, report, from_csv=from_csv)
            report.timed(name, time.perf_counter() - begun)
            report.trials += len(lines) - from_csv
            for what in wrong[:20]:
                report.violated(name, what, path.read_bytes(), keep)
    return _closed(report, started)


def _manifest(rng: random.Random, from_csv: bool, count: int) -> tuple[list[bytes], dict[int, str]]:
    """Lines, and the numbers of those that are mutated with what was done to them."""
    lines: list[bytes] = [",".join(_HEADER).encode()] if from_csv else []
    mutated = {}
    for i in range(count):
        row = good(i)
        line = _csv_line(row) if from_csv else json.dumps(row, ensure_ascii=False).encode()
        if rng.random() < _MUTATED_SHARE or (i == 0 and rng.random() < _MUTATED_FIRST):
            line, how = mutate_bytes(line, rng) if from_csv else mutate_json(row, rng)
            mutated[len(lines) + 1] = how
        lines.append(line)
    return lines, mutated


def _csv_line(row: dict[str, object]) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow([row[name] for name in _HEADER])
    return out.getvalue().encode()


def _read(path: Path, lines: list[bytes], mutated: dict[int, str], report: Report, *, from_csv: bool) -> list[str]:
    """Count what became of every line. Returns: what is wrong."""
    rows: dict[int, dict[str, object]] = {}
    seen: Counter[int] = Counter()
    wrong: list[str] = []
    try:
        for chunk in read_manifest(str(path), chunk_rows=500):
            for row in chunk.rows.to_pylist():
                rows[row["line"]] = row
                seen[row["line"]] += 1
            for reject in chunk.rejects:
                seen[reject.line] += 1
                report.count(str(reject.cause.reason))
                said = f"{reject.cause.detail}{reject.raw}{reject.recording_id}{reject.audio}"
                said.encode()  # raises for half a surrogate pair, which no output can hold
                if reject.line not in mutated:
                    wrong.append(f"good line {reject.line} is rejected: {reject.cause.reason} {reject.cause.detail}")
                if not reject.cause.detail or len(reject.raw or "") > RAW_CHARACTERS:
                    wrong.append(f"line {reject.line}: an empty detail or an endless one")
    except Exception as error:  # noqa: BLE001 - what escapes is what is looked for
        return [f"{type(error).__name__}: {error}"]
    report.count("row", len(rows))
    wrong += [f"line {line} counts {times} times" for line, times in seen.items() if times > 1]
    inside = _inside_records(rows, lines, mutated) if from_csv else set()
    for number, line in enumerate(lines[from_csv:], 1 + from_csv):
        if number in seen:
            if number in rows and number not in mutated and (what := _changed(rows[number], number, from_csv)):
                wrong.append(f"good line {number}: {what}")
        elif number in inside:
            report.count("inside a quoted cell")
        elif line.strip(b" \t\r"):
            wrong.append(f"line {number} ({mutated.get(number, 'good')}) is lost: {line[:80]!r}")
        else:
            report.count("blank")
    return wrong


def _inside_records(rows: dict[int, dict[str, object]], lines: list[bytes], mutated: dict[int, str]) -> set[int]:
    """Lines within a cell that a mutated line opened and a later mutated one closed: documented, and no other may."""
    inside: set[int] = set()
    for number, row in rows.items():
        newlines = sum(str(value).count("\n") for value in row.values())
        if number in mutated and number + newlines in mutated:
            inside |= set(range(number + 1, number + newlines + 1))
    return inside


def _changed(row: dict[str, object], number: int, from_csv: bool) -> str | None:
    """How a good line's row differs from what the line says; a column of mixed types is JSON text, as documented."""
    wanted = good(number - 1 - from_csv)
    known = {"recording_id": wanted["id"], "text": wanted["text"], "duration_s": wanted["duration"], "line": number}
    known |= dict.fromkeys(("offset_s", "language", "channel"))
    for name, value in known.items():
        if row[name] != value:
            return f"{name} is {row[name]!r}, not {value!r}"
    if not str(row["audio"]).endswith(f"/{wanted['audio']}"):
        return f"audio is {row['audio']!r}"
    others = {name: value for name, value in row.items() if value is not None and name not in ROW_SCHEMA.names}
    if [name.lower() for name in others] != ["take"]:
        return f"has values in {list(others)}"
    (take,) = others.values()
    return f"take is {take!r}" if take not in (wanted["take"], str(wanted["take"])) else None


# The command line


def _closed(report: Report, started: float) -> Report:
    report.wall_s = round(time.perf_counter() - started, 1)
    for name, who in (("peak_mib", resource.RUSAGE_SELF), ("peak_child_mib", resource.RUSAGE_CHILDREN)):
        setattr(report, name, round(resource.getrusage(who).ru_maxrss / 1024, 1))
    return report


def main(arguments: list[str]) -> int:
    """Run and print the report."""
    parser = argparse.ArgumentParser(prog="python -m tests.long.fuzz", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kind", choices=["audio", "manifest"])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first audio mutant")
    parser.add_argument("--json", type=Path, help="also write the report here")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "fuzz", help="folder for causes")
    asked = parser.parse_args(arguments)
    if asked.kind == "audio":
        report = fuzz_audio(asked.count, asked.seed, asked.keep, first=asked.first)
    else:
        report = fuzz_manifest(asked.count, asked.seed, asked.keep)
    found = json.dumps(asdict(report), indent=1)
    print(found)
    if asked.json:
        asked.json.write_text(found + "\n")
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
