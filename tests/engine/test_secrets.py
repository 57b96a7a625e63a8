"""What a run leaves behind has no secret and no transcript, whichever way the run goes wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from tests.support.corpus import AUDIO, ONE_ACTOR, ROOT, annotate, model_options, rows, utterances, write_manifest
from tests.support.fault_proxy import Fault, Request, at_rate, fault_proxy
from tests.support.s3_server import S3Server

TOKEN, PHRASE = "hf_canaryTokenOfNobody", "the canary sang of marmalade"
FAULTS = [Fault.SLOW_DOWN, Fault.RESET, Fault.SHORT_BODY, Fault.LOST_ANSWER]


@pytest.fixture(scope="module")
def left_behind(
    s3: S3Server, checkpoints: Path, asr: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str], list[str]]:
    """A job through a store that fails, with pre-signed URLs and rows that are rejected, and one whose credentials expire.

    Returns: a folder with all files of both, the lines they printed, and the secrets.
    """
    folder = tmp_path_factory.mktemp("secrets")
    ray = Path("/tmp") / f"r{folder.name[-8:]}-{folder.stat().st_ino}"  # its sockets' names must be short
    ray.mkdir()
    (folder / "ray").symlink_to(ray)
    files, printed = s3.filesystem(), []
    names = [f"{n}.wav" for n in range(8)]
    for name in names:
        files.put(str(AUDIO / "en_16k_pcm16.wav"), f"{s3.bucket}/secrets/{name}")
    with fault_proxy(s3.endpoint) as proxy:
        signed = [files.sign(f"{s3.bucket}/secrets/{name}").replace(s3.endpoint, proxy.endpoint) for name in names[:4]]
        audio = [*signed, *(f"s3://{s3.bucket}/secrets/{name}" for name in names[4:])]
        records = [
            {**row, "audio": uri, "text": f"{PHRASE}, {n} times"}
            for n, (row, uri) in enumerate(zip(rows(8), audio, strict=True))
        ]
        records += [
            {"id": "refused", "audio": "https://example.org/a.wav?X-Amz-Signature=canary0000", "text": PHRASE},
            {"id": "gone", "audio": f"{signed[0].replace('/0.wav', '/gone.wav')}", "text": PHRASE},
            {"id": "bad", "audio": 5, "text": PHRASE},
            {"id": "bad-span", "audio": signed[1], "text": PHRASE, "offset": -1},
        ]
        roots = ["--audio-root", f"{proxy.endpoint}/{s3.bucket}/", f"s3://{s3.bucket}/secrets/", "--shard-rows", "4"]
        env = {"AWS_ENDPOINT_URL": proxy.endpoint, "HF_TOKEN": TOKEN, "RAY_TMPDIR": str(ray)}
        manifest = write_manifest(folder / "m.jsonl", records)

        proxy.plan = at_rate(0.1, FAULTS, seed=3)
        done = annotate(manifest, folder / "out", *model_options(checkpoints, asr), *roots, *ONE_ACTOR, env=env)
        assert len(proxy.faults) >= 3
        printed += [done.stdout, done.stderr]

        def expired(request: Request) -> Fault | None:
            return Fault.EXPIRED if "/secrets/" in request.path else None

        proxy.plan = expired
        done = annotate(
            manifest, folder / "out2", *model_options(checkpoints, asr), *roots, *ONE_ACTOR, env=env, expect=1
        )
        printed += [done.stdout, done.stderr]
        assert "ExpiredToken" in done.stderr and "run the same command again" in done.stderr
    secrets = [s3.environment["AWS_SECRET_ACCESS_KEY"], s3.environment["AWS_ACCESS_KEY_ID"], TOKEN, "canary0000"]
    secrets += [uri.partition("Signature=")[2].partition("&")[0] for uri in signed]
    assert all(len(secret) > 8 for secret in secrets)
    return folder, printed, secrets


def _said(text: str, secrets: list[str]) -> list[str]:
    return [secret for secret in [*secrets, PHRASE] if secret in text]


def test_what_is_printed(left_behind):
    """Fails if an error message or the progress shows a key, a token, a query string or a transcript."""
    _, printed, secrets = left_behind
    assert "run 000001: 12 rows" in printed[0]
    assert [_said(text, secrets) for text in printed] == [[]] * 4


def test_ray_folder(left_behind):
    """Fails if Ray's logs and job metadata hold any of them."""
    folder, _, secrets = left_behind
    logs = [file for file in (folder / "ray").resolve().rglob("*") if file.is_file()]
    assert len(logs) > 20
    found = {str(file): said for file in logs if (said := _said(file.read_text(errors="replace"), secrets))}
    assert not found


def test_plans_receipts_reports_and_rejects(left_behind):
    """Fails if anything below the output but the two columns made for it holds a transcript, or anything but the plan a query."""
    folder, _, secrets = left_behind
    output = folder / "out"
    assert utterances(output).num_rows == 8
    found = {}
    for file in output.rglob("*"):
        if file.suffix == ".parquet":
            metadata = pq.read_metadata(file)
            text = json.dumps({key.decode(): value.decode() for key, value in (metadata.metadata or {}).items()})
            kept = [column for column in pq.read_schema(file).names if column not in ("text", "raw")]
            if "_runs" not in file.parts:  # a plan keeps URIs whole, to fetch them
                text += str(ds.dataset(file).to_table(columns=kept).to_pylist())
            if "raw" in pq.read_schema(file).names:  # the line as it came, but for its queries
                text += str(pq.read_table(file, columns=["raw"]).to_pylist()).replace(PHRASE, "")
        elif file.is_file():
            text = file.read_text()
        if said := _said(text, secrets):
            found[str(file.relative_to(output))] = said
    assert not found


def test_the_canaries_would_be_seen(left_behind):
    """The control: they were there to be leaked."""
    folder, _, secrets = left_behind
    manifest = (folder / "m.jsonl").read_text()
    assert len(_said(manifest, secrets)) >= 5
    assert any(PHRASE in text for text in utterances(folder / "out")["text"].to_pylist())
    assert ROOT not in folder.parents
