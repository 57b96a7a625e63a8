"""Python interface: label recordings in this process without Ray, run the job, and read, verify and search its outputs.

Use it as `pipeline.Annotator`, `pipeline.annotate` and so on; the names are loaded at first use. The examples run from the
root of the source tree, with the small models in `demo/models`, which are only good for trying the pipeline.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import JobConfig, load_config
from pipeline.config.settings import SCHEMA_VERSION, Settings
from pipeline.dataset.compatibility import claim_dataset, settle_types
from pipeline.dataset.packing import ShardSize
from pipeline.dataset.parts import committed_parts
from pipeline.dataset.plan import Plan, write_plan
from pipeline.dataset.publish import publish
from pipeline.dataset.reader import Rows, finished_rows, reading
from pipeline.dataset.records import Record, Records
from pipeline.dataset.row_checks import check_rows, check_turns_column
from pipeline.dataset.verify.audit import audit
from pipeline.dataset.verify.invariants import Audit
from pipeline.errors import ConfigError, Reason, RejectedRow, Stage, did_you_mean
from pipeline.manifest.fields import ALIASES
from pipeline.manifest.hash_buckets import id_keys
from pipeline.manifest.staging import Staging
from pipeline.models import roles
from pipeline.pins import ModelPin, Role
from pipeline.shard.commit import finish
from pipeline.shard.context import Work
from pipeline.shard.prepare import prepare
from pipeline.shard.recognise import recognise
from pipeline.shard.transcribe import transcribe
from pipeline.storage.access import AudioRoots
from pipeline.storage.store import open_store
from pipeline.storage.temporary import naming_full_disk, temporary_folder

__all__ = ["Annotations", "Annotator", "Record", "Records", "annotate", "open_dataset", "search", "verify"]

Source = str | os.PathLike[str] | bytes | Mapping[str, object]
"""One recording: a path or URI, the content of an audio file, or a dict of manifest columns (audio, text, language, ...)."""

_SHARD = ShardSize(rows=256, audio_s=600.0)
"""Bounds the audio in memory during a call."""
_OPTIONS = (
    *("models", "allowed_languages", "segmentation", "beam_size", "calibration", "label_map", "also", "min_confidence"),
    *("max_segment_s", "min_segment_s", "window_s", "hop_s", "words", "no_sound_quality"),
    *("embeddings", "embedding_dtype", "device", "precision", "asr_compute_type", "asr_window", "max_batch_s"),
    *("max_duration_s", "max_bytes", "audio_root", "shard_rows", "shard_audio_s"),
)
"""Options of the job that an `Annotator` accepts besides its named arguments."""
_SPAN = ("offset", "duration", "channel")


class Annotations(Records):
    """The utterances of a call of `Annotator.annotate`; a recording that was cut at pauses has several.

    Attributes:
        rejects: the sources that have no utterance, each with `reason`, `detail` and its number, from 1, as `line`.

    >>> annotator = pipeline.Annotator(mode="audio", emotion_model="demo/models/audio-en")
    >>> annotations = annotator.annotate(["demo/corpus/audio/ada-prizes.wav", "demo/missing.wav"])
    >>> [utterance.emotion for utterance in annotations]
    ['joy']
    >>> [(reject.line, str(reject.reason)) for reject in annotations.rejects]
    [(2, 'NOT_FOUND')]
    """

    def __init__(self, utterances: pa.Table, rejects: pa.Table) -> None:
        super().__init__(utterances)
        self.rejects = Records(rejects)


class Annotator:
    """Models that stay loaded between calls, in this process. Results equal those of the job, which needs Ray.

    Args:
        mode: how voice and words are combined: mean, concat, multihead, or audio or text alone.
        language: language of every recording; `auto` detects it (default: the source's own, else en).
        emotion_model, sentence_encoder, asr_model: a model id or folder, or a dict of them by language; without one, the
            published model of the mode and language.
        options: of the job, by the same names: models, allowed_languages, segmentation, beam_size, calibration,
            label_map, also, max_segment_s, min_segment_s, window_s, hop_s, words, min_confidence, no_sound_quality,
            embeddings, embedding_dtype, device, precision, asr_compute_type, asr_window, max_batch_s, max_duration_s,
            max_bytes, audio_root, shard_rows, shard_audio_s. Only local files may be opened without an `audio_root`.
    Raises: ConfigError naming the option that is wrong. Models are checked and loaded at the first call that needs them.

    An annotator is for one thread at a time.

    >>> annotator = pipeline.Annotator(
    ...     mode="mean", emotion_model="demo/models/mean-en", sentence_encoder="demo/models/sentence-encoder"
    ... )
    >>> [utterance] = annotator.annotate("demo/corpus/audio/ada-prizes.wav", "We won two prizes in the hotel on Friday!")
    >>> utterance.emotion, utterance.text_source, len(utterance.audio_embedding)
    ('joy', 'manifest', 128)
    """

    def __init__(
        self,
        *,
        mode: str = "mean",
        language: str | None = None,
        emotion_model: str | Mapping[str, str] | None = None,
        sentence_encoder: str | Mapping[str, str] | None = None,
        asr_model: str | Mapping[str, str] | None = None,
        **options: object,
    ) -> None:
        for name in options:
            if name not in _OPTIONS:
                raise ConfigError(f"an Annotator has no option {name!r}{did_you_mean(name, _OPTIONS)}")
        named = {"emotion_model": emotion_model, "sentence_encoder": sentence_encoder, "asr_model": asr_model}
        flags = {"manifest": "sources", "output": "memory", "mode": mode, "language": language, **named, **options}
        self._config = load_config(None, flags)
        self._prepared = roles.prepared_models(self._config)
        self._pins: dict[Role, ModelPin] = {}
        self._widths: dict[str, int] = {}
        self._loaded: roles.Loaded | None = None

    @overload
    def annotate(self, source: Source, texts: str | None = None) -> Annotations: ...

    @overload
    def annotate(self, source: Sequence[Source], texts: Sequence[str | None] | None = None) -> Annotations: ...

    def annotate(
        self, source: Source | Sequence[Source], texts: str | Sequence[str | None] | None = None
    ) -> Annotations:
        """Label one source or a list of them. What has no text is transcribed, except in mode audio.

        Args:
            source: a path or URI, the content of an audio file, a dict of manifest columns, or a list of these. Equal
                sources count once, as equal rows of a manifest do.
            texts: what is said: a text for one source, a list of the same length for a list.
        Returns: the utterances, with the columns of the job's output, and, for a list, `rejects`.
        Raises: RejectedRow for one source that cannot be labelled; ConfigError for a model that cannot be used.

        >>> annotator = pipeline.Annotator(mode="audio", emotion_model="demo/models/audio-en")
        >>> content = Path("demo/corpus/audio/ada-prizes.wav").read_bytes()
        >>> [utterance.emotion for utterance in annotator.annotate(content)]
        ['joy']
        >>> rows = [{"audio": "demo/corpus/audio/ada-prizes.wav", "id": "ada-1", "speaker": "Ada"}]
        >>> [(utterance.recording_id, utterance.speaker) for utterance in annotator.annotate(rows)]
        [('ada-1', 'Ada')]
        """
        if isinstance(source, str | bytes | os.PathLike | Mapping):
            if texts is not None and not isinstance(texts, str):
                raise ConfigError("one source has one text: give texts as a string, or both as lists")
            annotations = self._annotate([source], [texts])
            for reject in annotations.rejects:
                raise RejectedRow(Reason(reject.reason), reject.detail, Stage(reject.stage), reject.attempts)
            return annotations
        if isinstance(texts, str) or (texts is not None and len(texts) != len(source)):
            raise ConfigError(f"a list of {len(source)} sources needs a list of as many texts, or none")
        return self._annotate(source, texts or [None] * len(source))

    def _annotate(self, sources: Sequence[Source], texts: Sequence[str | None]) -> Annotations:
        with temporary_folder("sources-") as folder:
            manifest = folder / "sources.jsonl"
            rows = [_row(*each, folder) for each in zip(sources, texts, strict=True)]
            with naming_full_disk(manifest):
                manifest.write_text("".join(json.dumps(row, default=_plain) + "\n" for row in rows), encoding="utf-8")
            prefixes = self._config.audio_root
            roots = AudioRoots.parse((*prefixes, str(folder)) if prefixes else (), [str(manifest)])
            plan = self._plan(folder, manifest, roots)
            self._run(Work(str(folder / "out"), plan, roots))
            finished = finished_rows(open_store(str(folder / "out")))
            with reading():
                utterances, rejects = finished.utterances().to_table(), finished.rejects().to_table()
            return Annotations(_without_folder(utterances, folder), _without_folder(rejects, folder))

    def _plan(self, folder: Path, manifest: Path, roots: AudioRoots) -> Plan:
        """Plan the sources as the job plans a manifest, with models that are pinned at their first use."""
        config, store = self._config, open_store(str(folder / "out"))
        known = set(roles.known_languages(config, self._prepared))
        check = partial(check_rows, config, version=SCHEMA_VERSION, roots=roots, known=known)
        staging = Staging(folder / "staging")
        staging.read([str(manifest)], check, audio_optional=config.mode == "text")
        staging.extra = settle_types(staging.inferred, [])
        check_turns_column(config, staging.extra)
        selection = staging.select([], id_keys([]))
        models = self._pinned(roles.needs_of(selection.tables(), config, self._prepared))
        settings = self._settings()
        claim_dataset(store, settings)
        plan = write_plan(
            store,
            1,
            selection,
            settings=settings,
            models=models,
            embedding_widths={name: width for name, width in self._widths.items() if name in config.embeddings},
            manifests=[str(manifest)],
            size=ShardSize(config.shard_rows or _SHARD.rows, config.shard_audio_s or _SHARD.audio_s),
            needs_text=config.mode != "audio",
        )
        if plan is None:
            raise FileExistsError(folder / "out")  # the folder is new, and nobody else writes to it
        return plan

    def _pinned(self, needs: roles.Needs) -> dict[Role, ModelPin]:
        """Resolve and check the models that no call has needed before. Raises: ConfigError."""
        chosen = roles.choose(self._config, needs.languages, needs_asr=needs.asr, prepared=self._prepared)
        missing = {role: spec for role, spec in chosen.items() if role not in self._pins}
        if missing:
            find = self._prepared.checkpoint if self._prepared else None
            rules = self._config.label_rules(SCHEMA_VERSION, self._settings().precision)
            pinned, widths = roles.pin(missing, self._config.mode, find, rules=rules)
            if widths and self._widths and widths != self._widths:
                raise ConfigError(
                    f"the models of the languages have embeddings of different widths: {self._widths} and {widths}; "
                    "make an Annotator for each"
                )
            roles.require_calibration(pinned, self._settings())
            self._pins |= pinned
            self._widths = widths or self._widths
        return {role: self._pins[role] for role in chosen}

    def _settings(self) -> Settings:
        return self._config.resolved(self._device())

    def _device(self) -> str:
        if self._config.device != "auto":
            return self._config.device
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    def _run(self, work: Work) -> None:
        """Run every shard and publish, as the stages of the job do; no share of rejects stops it."""
        if self._loaded is None:
            self._loaded = roles.Loaded(
                self._pins, settings=work.plan.settings, device=self._device(), max_batch_s=self._config.max_batch_s
            )
        for shard in work.plan.shards():
            table = prepare(work, shard, unreachable=None)
            if work.plan.needs_asr:
                table = transcribe(work, shard, table, self._loaded.transcriber_for)
            finish(work, shard, recognise(work, shard, table, self._loaded.recogniser_for), {}, max_denied=1.0)
        parts = committed_parts(work.store, [work.plan])[work.plan.plan]
        publish(work.store, work.plan, parts, {"run_id": work.plan.plan, "config_hash": work.plan.config_hash})


def _row(source: Source, text: str | None, folder: Path) -> dict[str, object]:
    """Return the manifest row of a source; content is written to a file below `folder`."""
    if not isinstance(source, str | bytes | os.PathLike | Mapping):
        kind = type(source).__name__
        raise ConfigError(f"a source is a path, the bytes of an audio file or a dict of manifest columns, not {kind}")
    row: dict[str, object] = dict(source) if isinstance(source, Mapping) else {"audio": source}
    if text is not None:
        row["text"] = text
    for name in row.keys() & set(ALIASES["audio"]):
        value = row[name]
        if isinstance(value, bytes):
            digest = hashlib.sha256(value)
            path = folder / f"{digest.hexdigest()}.audio"
            with naming_full_disk(path):
                path.write_bytes(value)
            row[name] = str(path)
            digest.update(repr([row.get(key) for key in _SPAN]).encode())
            row.setdefault("id", f"bytes-{digest.hexdigest()[:20]}")
        elif isinstance(value, str | os.PathLike) and "://" not in (path_name := os.fspath(value)):
            row[name] = str(Path.cwd() / path_name) if path_name else path_name
    return row


def _plain(value: object) -> object:
    """Return the JSON form of a value that `json` does not know."""
    return value.item() if isinstance(value, np.generic) else str(value)


def _without_folder(table: pa.Table, folder: Path) -> pa.Table:
    """Remove the temporary folder from paths and messages; `audio` is null where the source was bytes."""
    for name in {"audio", "detail", "manifest", "raw"} & set(table.column_names):
        column, prefix = table[name], f"{folder}/"
        if name == "audio":
            column = pc.if_else(pc.starts_with(column, prefix), None, column)
        else:
            column = pc.replace_substring(column, prefix, "")
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)
    return table


def annotate(
    manifest: str | os.PathLike[str] | Sequence[str], output: str | os.PathLike[str], **options: object
) -> list[dict[str, Any]]:
    """Run the job on Ray, here or on the cluster of `RAY_ADDRESS`: `jobs.annotate` without its command line.

    Args:
        manifest, output: as `--manifest` and `--output`.
        options: those of `jobs.annotate`, with underscores; `config` names a file of them.
    Returns: the report of each run that was finished; none when nothing is new. With `dry_run`, what would be done.
    Raises: ConfigError, JobError. What was committed stays; the same call continues from there.

    >>> models = {"emotion_model": "en=demo/models/mean-en", "sentence_encoder": "en=demo/models/sentence-encoder"}
    >>> [report] = pipeline.annotate(manifest, output, **models)
    >>> report["rows"], report["utterances"], report["rejected"]
    (2, 2, 0)
    >>> pipeline.annotate(manifest, output, **models)
    []
    """
    from pipeline.engine.destination import require_lasting
    from pipeline.engine.job_log import job_log
    from pipeline.engine.run import Driver

    file = options.pop("config", None)
    manifests = [os.fspath(manifest)] if isinstance(manifest, str | os.PathLike) else [*map(os.fspath, manifest)]
    flags = {"manifest": manifests, "output": os.fspath(output), **options}
    config: JobConfig = load_config(None if file is None else str(file), flags)
    require_lasting(config.output)
    with job_log(config.log_format) as out:
        driver = Driver(config, out)
        return [driver.describe()] if config.dry_run else driver.run()


def open_dataset(output: str | os.PathLike[str]) -> Rows:
    """Open the finished runs of an output; `utterances()` and `rejects()` of the result are Arrow datasets.

    Raises: ConfigError when there is no output.

    >>> rows = pipeline.open_dataset(output)
    >>> rows.utterances().to_table(columns=["recording_id", "emotion"]).sort_by("recording_id").to_pylist()
    [{'recording_id': 'cheese', 'emotion': 'disgust'}, {'recording_id': 'prizes', 'emotion': 'joy'}]
    >>> rows.rejects().count_rows()
    0
    """
    return finished_rows(open_store(os.fspath(output)))


def verify(output: str | os.PathLike[str], *, deep: bool = False) -> Audit:
    """Audit an output; reads only.

    Args:
        deep: read every value, not only footers and ids.
    Returns: the audit, with a `status` (sound, unfinished or violated) and its `violations`.
    Raises: ConfigError when there is no output, or it cannot be read.

    >>> pipeline.verify(output, deep=True).status
    'sound'
    """
    return audit(open_store(os.fspath(output)), deep=deep)


def search(
    output: str | os.PathLike[str],
    *,
    text: str | None = None,
    audio: str | os.PathLike[str] | None = None,
    like: str | None = None,
    top: int = 10,
    language: str | None = None,
    embedding: str | None = None,
    where: str | None = None,
    columns: Sequence[str] | None = None,
) -> Records:
    """Find the utterances nearest to a sentence, a recording or another utterance, by the cosine of an embedding.

    Args:
        text, audio, like: a sentence, an audio file, or the `utterance_id` of an utterance; give one of them.
        language: of `text` or `audio`, where the output has models of several languages.
        embedding: the column to compare (default: that of the voice, with `text` that of the words).
        where: condition in SQL on the utterances; needs DuckDB.
        columns: to return besides `similarity`.
    Returns: at most `top` rows, the nearest first.
    Raises: ConfigError for a search that the output cannot answer.

    >>> [record] = pipeline.search(output, text="We won a prize!", top=1, columns=["recording_id"])
    >>> record.recording_id
    'prizes'
    """
    from pipeline.analytics import search as queries
    from pipeline.analytics.nearest import nearest, shown_columns

    if sum(each is not None for each in (text, audio, like)) != 1:
        raise ConfigError("search needs exactly one of text, audio and like")
    if top < 1:
        raise ConfigError("top must be 1 or more")
    rows = open_dataset(output)
    if like is not None:
        query = queries.query_by_utterance(rows, like, embedding)
    elif audio is not None:
        query = queries.query_by_audio(rows, os.fspath(audio), language, embedding)
    else:
        query = queries.query_by_text(rows, str(text), language, embedding)
    return Records(
        nearest(rows, query, top=top, where=where, columns=shown_columns(rows) if columns is None else columns)
    )
