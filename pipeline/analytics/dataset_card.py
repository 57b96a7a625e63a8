"""The dataset card of runs published on a hub: README.md with the metadata that the hub reads.

The part between two comments is ours and is written again for each run. Everything else belongs to the owner of the
repository: metadata of an existing card is kept, and a card without the comments is not touched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import yaml

from pipeline.config.settings import Settings

_BEGIN, _END = "<!-- speech-emotion-pipeline: begin -->", "<!-- speech-emotion-pipeline: end -->"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_TEXTS = {
    "keep": "The texts are those of the manifest or transcripts.",
    "none": "The texts are left out.",
    "hash": "The column `text` is the SHA-256 of the text.",
}
_LIMITS = """- A label is a model's estimate of how somebody sounded, not of what they felt. Most models were trained on acted
  speech.
- How emotions are expressed depends on person and context. Accents, noise, overlapping speakers and wrong transcripts make
  labels worse, and models may reflect biases of their training data.
- Do not base decisions about people on these labels alone. Laws restrict the recognition of emotions, for example at work
  and in education in the European Union.
- Embeddings of a voice can be personal data."""


def run_record(report: Mapping[str, Any], left_out: Sequence[str]) -> dict[str, Any]:
    """Return what is published of a run's report: counts, settings, models and versions, without paths and manifests."""
    names = (
        *("run_id", "planned_at", "finished_at", "rows", "recordings_annotated", "rejected", "rejects_by_reason"),
        *("utterances", "audio_hours", "settings", "config_hash", "versions"),
    )
    models = {
        role: {"name": model_name(pin), "revision": pin.get("revision"), "sha256": pin.get("sha256")}
        for role, pin in report.get("models", {}).items()
    }
    return {**{name: report[name] for name in names if name in report}, "models": models, "left_out": [*left_out]}


def model_name(pin: Mapping[str, Any]) -> str:
    """Return a model's id on the hub, or the last part of its path: folders are nobody else's business."""
    spec = str(pin["spec"])
    return spec if pin.get("revision") and _HUB_ID.fullmatch(spec) else spec.rstrip("/").rpartition("/")[2]


def card(
    existing: str | None,
    *,
    title: str,
    licence: str | None,
    records: Sequence[Mapping[str, Any]],
    schema: pa.Schema,
    settings: Settings,
) -> str:
    """Return README.md with our part replaced, or a new one with metadata.

    Args:
        existing: the card in the repository, if it has one; one without our part is returned as it is.
        licence: identifier for the hub, such as cc-by-4.0, of a new card.
        records: results of `run_record`, of all published runs.
        schema: columns of the data files.
    """
    body = "\n".join([_BEGIN, *_body(title, licence, records, schema, settings), _END])
    if existing is None:
        return f"---\n{_metadata(licence)}---\n\n{body}\n"
    head, begin, rest = existing.partition(_BEGIN)
    _, end, tail = rest.partition(_END)
    return head + body + tail if begin and end else existing


def _metadata(licence: str | None) -> str:
    metadata = {
        **({"license": licence} if licence else {}),
        "task_categories": ["audio-classification"],
        "tags": ["speech", "speech-emotion-recognition"],
        "configs": [{"config_name": "default", "data_files": "data/*.parquet"}],
    }
    text: str = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    return text


def _body(
    title: str, licence: str | None, records: Sequence[Mapping[str, Any]], schema: pa.Schema, settings: Settings
) -> list[str]:
    utterances, hours = (sum(record.get(name, 0) for record in records) for name in ("utterances", "audio_hours"))
    left_out = ", ".join(sorted({name for record in records for name in record["left_out"]}))
    models = {
        (role, pin["name"], pin["revision"] or "", (pin["sha256"] or "")[:12])
        for record in records
        for role, pin in record["models"].items()
    }
    counts = ("rows", "recordings_annotated", "rejected", "utterances")
    runs = [
        (record["run_id"], record.get("finished_at", ""), *(f"{record.get(name, 0):,}" for name in counts))
        for record in records
    ]
    columns = [
        (
            f"`{field.name}`",
            f"`{_type(field)}`",
            (field.metadata or {}).get(b"description", b"").decode() or "of the manifest",
        )
        for field in schema
    ]
    return [
        f"# {title}",
        "",
        f"Emotion of {utterances:,} utterances of speech ({hours:,.1f} hours of audio), one row each, recognised by the "
        "models below.",
        f"{_TEXTS[settings.texts]}{f' Columns left out: {left_out}.' if left_out else ''}",
        *([] if licence else ["No licence was given."]),
        "",
        "    from datasets import load_dataset",
        f'    rows = load_dataset("{title}", split="train")',
        *("", "## Limits", "", _LIMITS),
        *("", "## Models", "", *_table(("task", "model", "revision", "SHA-256"), sorted(models))),
        *("", "## Runs", "", *_table(("run", "finished", "rows", "annotated", "rejected", "utterances"), runs)),
        "",
        "`runs/` has the record of each run: settings, models, counts and versions.",
        *("", "## Columns", "", *_table(("column", "type", "meaning"), columns)),
    ]


def _type(field: pa.Field) -> str:
    """Return a type in a few words; the fields of a struct are left out."""
    return "struct" if pa.types.is_struct(field.type) else str(field.type)


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [names, ["---"] * len(names), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in cells]
