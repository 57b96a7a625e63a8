"""A small corpus for end-to-end tests, from the free clips of tests/parity, and the command that annotates it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds

AUDIO = Path(__file__).parents[1] / "parity" / "audio"
ROOT = Path(__file__).parents[2]
NO_SERVERS = "TESTS_START_NO_SERVERS"
"""Environment variable that `--quick` sets: a test that starts Ray or an S3 server without requesting a fixture then fails."""
_CLIPS = ("en_16k_pcm16.wav", "en_22k05.mp3", "en_48k.opus", "en_16k_short.wav", "es_16k_pcm16.wav", "en_8k_mulaw.wav")


def rows(count: int, *, with_text: bool = True, prefix: str = "clip") -> list[dict[str, object]]:
    """Return `count` good manifest rows over six clips, each with its own id, text and pass-through columns."""
    return [
        {
            "id": f"{prefix}-{number:03d}",
            "audio": str(AUDIO / _CLIPS[number % len(_CLIPS)]),
            "language": "es" if _CLIPS[number % len(_CLIPS)].startswith("es") else "en",
            **({"text": f"This is sentence number {number}."} if with_text else {}),
            "speaker": f"s{number % 3}",
            "take": number,
            "label": "happy",
        }
        for number in range(count)
    ]


def broken_rows(folder: Path) -> list[dict[str, object]]:
    """Return rows that must be rejected; each id names the reason."""
    (folder / "text.wav").write_text("this is not audio at all, whatever the name says\n")
    (folder / "empty.wav").write_bytes(b"")
    whole = (AUDIO / "en_16k_pcm16.wav").read_bytes()
    (folder / "truncated.wav").write_bytes(whole[: len(whole) // 2])
    files = {"NOT_FOUND": "gone.wav", "NOT_AUDIO": "text.wav", "EMPTY": "empty.wav", "TRUNCATED": "truncated.wav"}
    broken: list[dict[str, object]] = [
        {"id": f"bad-{reason}", "audio": str(folder / name), "text": "x", "speaker": "s9"}
        for reason, name in files.items()
    ]
    broken.append(
        {
            "id": "bad-UNSUPPORTED_LANGUAGE",
            "audio": str(AUDIO / _CLIPS[0]),
            "text": "x",
            "language": "fr",
            "speaker": "s9",
        }
    )
    broken.append({"id": "bad-NOT_ALLOWED", "audio": "https://example.org/a.wav", "text": "x", "speaker": "s9"})
    broken.append(
        {
            "id": "bad-BAD_SPAN",
            "audio": str(AUDIO / _CLIPS[0]),
            "text": "x",
            "offset": 900,
            "duration": 1,
            "speaker": "s9",
        }
    )
    return broken


def write_manifest(path: Path, records: Sequence[Mapping[str, object] | str]) -> Path:
    """Write JSON Lines; a string is written unchanged, for lines that are not records."""
    lines = [line if isinstance(line, str) else json.dumps(line) for line in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


ONE_ACTOR = ("--asr-actors", "1", "--emotion-actors", "1")
"""Options for a job whose pools are not the subject: each actor spends five seconds of a core on its imports."""


def model_options(checkpoints: Path, asr: Path, mode: str = "mean") -> list[str]:
    """Return the options that name the small local models for both languages."""
    fusion = [f"{language}={checkpoints / f'{mode}-{language}'}" for language in ("en", "es")]
    encoder = [f"{language}={checkpoints / f'bert-{language}'}" for language in ("en", "es")]
    return ["--mode", mode, "--emotion-model", *fusion, "--sentence-encoder", *encoder, "--asr-model", str(asr)]


def require_servers() -> None:
    """Fail in a quick run: the test was selected because it requests none of the fixtures that start Ray or an S3 server."""
    assert NO_SERVERS not in os.environ, "a test that starts Ray or an S3 server must request shared_ray, own_ray or s3"


def command(manifest: Path | str, output: Path | str, *options: str) -> list[str]:
    """Return the annotate job's command line, without the page that it draws at the end, which costs three seconds."""
    require_servers()
    job = [sys.executable, "-m", "jobs.annotate", "--no-page"]
    return [*job, "--manifest", str(manifest), "--output", str(output), *options]


def annotate(
    manifest: Path | str, output: Path | str, *options: str, env: Mapping[str, str] | None = None, expect: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run the job to its end; fail with its output when the exit status differs from `expect`."""
    done = subprocess.run(
        command(manifest, output, *options),
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == expect, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def utterances(output: Path | str, filesystem: object = None) -> pa.Table:
    """Return all utterances, sorted."""
    folder = f"{output}/utterances"
    table = ds.dataset(folder, filesystem=filesystem, partitioning="hive").to_table()
    return table.sort_by("utterance_id")


def rejects(output: Path | str, filesystem: object = None) -> pa.Table:
    """Return all rejects, sorted."""
    return (
        ds.dataset(f"{output}/rejects", filesystem=filesystem)
        .to_table()
        .sort_by([("recording_id", "ascending"), ("line", "ascending")])
    )
