"""Configuration of the `annotate` job.

`JobConfig.settings` returns the options that determine the rows of a dataset.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pipeline.config.further import further_models
from pipeline.config.labels import LabelRules, label_maps
from pipeline.config.lists import (
    channels,
    embedding_names,
    hourly_rates,
    partition_columns,
    primary_tags,
    reject_reasons,
    run_numbers,
)
from pipeline.config.models import AUTO_LANGUAGE
from pipeline.config.option import DATA, MACHINE, MODELS, RUN, Option
from pipeline.config.segments import SegmentOptions
from pipeline.config.settings import (
    SCHEMA_VERSION,
    AsrWindow,
    EmbeddingDtype,
    Precision,
    Settings,
    Texts,
    require_precision,
)
from pipeline.schema import EMBEDDINGS

LogFormat = Literal["text", "json"]
_ASR_COMPUTE_TYPES = {"cpu": "int8", "cuda": "float16"}
"""Default CTranslate2 type of the transcription in new outputs, by device. Source: docs/performance.md, int8."""
_ASR_WINDOWS: dict[str, AsrWindow] = {"cpu": "short", "cuda": "full"}
"""Default of `asr_window`, by device. Source: docs/performance.md, asr_window; not measured on GPUs."""
_PARSERS: dict[str, Callable[[object], object]] = {
    "label_map": label_maps,
    "also": further_models,
    "embeddings": embedding_names,
    "partition_by": partition_columns,
    "allowed_languages": primary_tags,
    "exclude_channel": channels,
    "retry_rejects": reject_reasons,
    "hourly_rate": hourly_rates,
}
"""Functions that read an option given as text, by field."""


class JobConfig(SegmentOptions):
    """Options of one `annotate` job. Every field is a flag of the same name and a key of the config file."""

    manifest: Annotated[
        tuple[str, ...], Option(DATA, "JSONL, CSV, Parquet or tar: files, globs or folders", metavar="URI")
    ] = Field(min_length=1)
    limit: Annotated[
        int | None,
        Option(
            DATA,
            "plan only the first N lines of the manifests, for a first try; without it later, the others",
            metavar="N",
        ),
    ] = Field(default=None, ge=1)
    sample: Annotated[
        int | None,
        Option(DATA, "plan only N random lines of the manifests; the same command chooses the same lines", metavar="N"),
    ] = Field(default=None, ge=1)
    sample_seed: Annotated[int, Option(DATA, "seed of --sample", metavar="N")] = 0
    exclude: Annotated[
        str | None,
        Option(
            DATA,
            "plan no row for which this SQL condition on manifest columns is true; its audio is not fetched",
            metavar="SQL",
        ),
    ] = Field(default=None, min_length=1)
    only: Annotated[
        str | None,
        Option(DATA, "plan only rows for which this SQL condition is true; null is not true", metavar="SQL"),
    ] = Field(default=None, min_length=1)
    exclude_channel: Annotated[
        tuple[int, ...],
        Option(DATA, "plan no row of these channels, nor one without a channel, which uses all", metavar="N[,N]"),
    ] = ()
    output: Annotated[str, Option(DATA, "output location: a folder, s3://bucket/prefix, ...", metavar="URI")] = Field(
        min_length=1
    )
    audio_root: Annotated[
        tuple[str, ...],
        Option(DATA, "open audio only below these prefixes (default: the store the manifest is in)", metavar="PREFIX"),
    ] = ()
    partition_by: Annotated[
        tuple[str, ...], Option(DATA, "manifest columns, or language, that become folders", metavar="COL[,COL]")
    ] = ()
    embeddings: Annotated[
        tuple[str, ...], Option(DATA, "which of audio, text, fused to write (default: all)", metavar="all|none|LIST")
    ] = EMBEDDINGS
    embedding_dtype: Annotated[EmbeddingDtype, Option(DATA, "type of the embeddings in the output")] = "float32"
    texts: Annotated[
        Texts, Option(DATA, "none: use words, but write none; hash: write the SHA-256 of each text instead")
    ] = "keep"
    models: Annotated[
        str | None,
        Option(
            MODELS,
            "folder that jobs.prepare_models wrote; models that no option names come from it alone",
            metavar="URI",
        ),
    ] = Field(default=None, min_length=1)
    allowed_languages: Annotated[
        tuple[str, ...],
        Option(
            MODELS,
            "languages that --language auto may choose from (default: all that have an emotion model)",
            metavar="CODE[,CODE]",
        ),
    ] = ()
    beam_size: Annotated[
        int, Option(MODELS, "beam of the transcription; 1 is greedy, as the reference decodes", metavar="N")
    ] = Field(default=1, ge=1, le=20)
    words: Annotated[
        bool, Option(MODELS, "write the column words: start, end and probability of each word that is transcribed")
    ] = False
    calibration: Annotated[
        Mapping[str, float],
        Option(
            MODELS,
            "file of jobs.evaluate --fit-calibration: scores and confidence are calibrated, labels stay",
            metavar="URI",
        ),
    ] = Field(default_factory=dict)
    label_map: Annotated[
        Mapping[str, Mapping[str, str | None]],
        Option(
            MODELS,
            "emotions of the model's labels, as hap=joy,calm= or in a file; calm= has none (default: common spellings)",
            metavar="[LANG=]FILE|LABEL=EMOTION,...",
        ),
    ] = Field(default_factory=dict)
    also: Annotated[
        Mapping[str, Mapping[str, str]],
        Option(
            MODELS,
            "further emotion models on the same audio and text; their results are in the column by_model.NAME",
            metavar="NAME[:LANG]=X",
        ),
    ] = Field(default_factory=dict)
    min_confidence: Annotated[
        float | None,
        Option(MODELS, "below it the emotion is null and abstained is true; label and scores stay", metavar="SHARE"),
    ] = Field(default=None, ge=0, le=1)
    no_sound_quality: Annotated[
        bool, Option(MODELS, "leave loudness_dbfs, clipped_share, snr_db, bandwidth_hz and speech_share null")
    ] = False
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        Option(MACHINE, "auto: cuda if there is a GPU at the start; cuda waits for a cluster's first GPU"),
    ] = "auto"
    precision: Annotated[
        Precision | Literal["auto"],
        Option(MACHINE, "of the emotion models; int8 is for the audio encoder on CPUs (default: fp32)"),
    ] = "auto"
    asr_compute_type: Annotated[
        str,
        Option(
            MACHINE, "CTranslate2 type of the transcription (default: int8 on cpu, float16 on cuda)", metavar="TYPE"
        ),
    ] = "auto"
    asr_window: Annotated[
        AsrWindow | Literal["auto"],
        Option(
            MACHINE,
            "what Whisper encodes for an utterance of up to 30 s: short, its own length; full, 30 s; auto: as the output "
            "was made, for a new one short on cpu and full on cuda or with --segmentation none",
        ),
    ] = "auto"
    asr_actors: Annotated[
        int | None,
        Option(MACHINE, "transcription actors; on a cluster the maximum (default: as many as fit)", metavar="N"),
    ] = Field(default=None, ge=1)
    emotion_actors: Annotated[int | None, Option(MACHINE, "recognition actors, likewise", metavar="N")] = Field(
        default=None, ge=1
    )
    asr_gpus: Annotated[
        float | None, Option(MACHINE, "GPUs of one transcription actor (default: 0.5)", metavar="F")
    ] = Field(default=None, gt=0)
    emotion_gpus: Annotated[
        float | None,
        Option(MACHINE, "GPUs of one recognition actor (default: 0.5, or 1 without transcription)", metavar="F"),
    ] = Field(default=None, gt=0)
    shard_rows: Annotated[
        int | None, Option(MACHINE, "maximum rows of a shard (default: 64 on cpu, 1024 on cuda)", metavar="N")
    ] = Field(default=None, ge=1)
    shard_audio_s: Annotated[
        float | None,
        Option(MACHINE, "maximum audio seconds of a shard (default: 600 on cpu, 3600 on cuda)", metavar="S"),
    ] = Field(default=None, gt=0)
    max_batch_s: Annotated[
        float | None,
        Option(
            MACHINE,
            "padded audio seconds of one recognition batch (default: what its share of a GPU holds, at most 960)",
            metavar="S",
        ),
    ] = Field(default=None, gt=0)
    max_duration_s: Annotated[float, Option(MACHINE, "longest recording accepted, in seconds", metavar="S")] = Field(
        default=4 * 3600.0, gt=0
    )
    max_bytes: Annotated[int, Option(MACHINE, "largest audio object accepted, in bytes", metavar="N")] = Field(
        default=2 * 2**30, gt=0
    )
    max_reject_rate: Annotated[
        float | None,
        Option(
            RUN,
            "stop when more than this share of at least 100 rows is rejected, for any reason; 1: never (default: for "
            "audio that is forbidden or out of reach a half, for missing audio nine tenths, for models that fail a tenth)",
            metavar="SHARE",
        ),
    ] = Field(default=None, ge=0, le=1)
    wait_for_workers_s: Annotated[
        float,
        Option(RUN, "end the job when no worker could start or continue for this long; 0: wait for ever", metavar="S"),
    ] = Field(default=3600.0, ge=0)
    give_up: Annotated[
        tuple[str, ...],
        Option(
            RUN, "reject what is left of these unfinished runs, such as 000007, for good; then continue", metavar="RUN"
        ),
    ] = ()
    retry_rejects: Annotated[
        tuple[str, ...],
        Option(
            RUN,
            "annotate rows of the manifests again that earlier runs rejected for these reasons; transient: FETCH_FAILED, "
            "TIMEOUT, OUT_OF_MEMORY, DECODER_CRASH, NOT_FOUND; none (default: none)",
            metavar="REASON[,REASON]",
        ),
    ] = ()
    max_attempts: Annotated[
        int, Option(RUN, "number of runs that may try a row, the first included, with --retry-rejects", metavar="N")
    ] = Field(default=5, ge=2)
    no_page: Annotated[bool, Option(RUN, "do not draw report.html; jobs.report can draw it later")] = False
    log_format: Annotated[
        LogFormat,
        Option(RUN, "messages on standard error: text for people, json for log collectors, one object per line"),
    ] = "text"
    hourly_rate: Annotated[
        Mapping[str, float],
        Option(
            RUN,
            "with --dry-run, price of an hour of a machine with one card, or of one CPU core: prints what the run would cost",
            metavar="H200|L4|A10|core=PRICE[,...]",
        ),
    ] = Field(default_factory=dict)
    dry_run: Annotated[bool, Option(RUN, "print what would be done; decode nothing, write nothing")] = False

    @field_validator(*_PARSERS, mode="before")
    @classmethod
    def _parsed(cls, value: object, info: ValidationInfo) -> object:
        return _PARSERS[str(info.field_name)](value)

    @model_validator(mode="after")
    def _allowed_only_with_auto(self) -> Self:
        if self.allowed_languages and self.language != AUTO_LANGUAGE:
            raise ValueError("--allowed-languages limits what --language auto may detect; add --language auto")
        return self

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        if self.limit is not None and self.sample is not None:
            raise ValueError("--limit and --sample exclude each other: give one of them")
        if "sample_seed" in self.model_fields_set and self.sample is None:
            raise ValueError("--sample-seed needs --sample N")
        return self

    @field_validator("manifest", "audio_root", "give_up", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("give_up")
    @classmethod
    def _run_numbers(cls, runs: tuple[str, ...]) -> tuple[str, ...]:
        return run_numbers(runs)

    @model_validator(mode="after")
    def _known_precision(self) -> Self:
        if self.precision != "auto":
            require_precision(self.precision, mode=self.mode, device="cuda" if self.device == "cuda" else "cpu")
        return self

    @model_validator(mode="after")
    def _words_of_transcripts(self) -> Self:
        if self.words and self.mode == "audio":
            raise ValueError("--words: mode audio transcribes nothing; leave it out, or choose another --mode")
        if self.words and self.texts != "keep":
            raise ValueError(f"--words writes what --texts {self.texts} removes; give one of them")
        if self.turns and self.texts != "keep":
            raise ValueError(f"--turns may hold words, which plans keep; leave out --texts {self.texts}")
        return self

    @model_validator(mode="after")
    def _full_windows_without_segmentation(self) -> Self:
        if self.segmentation == "none" and self.asr_window == "short":
            raise ValueError(
                "--segmentation none encodes full windows, as the reference does; leave out --asr-window short"
            )
        return self

    def label_rules(self, version: int, precision: str) -> LabelRules:
        """Return the settings that decide which models a dataset of a schema version and precision takes."""
        return LabelRules(version, self.label_map or None, bool(self.calibration), precision, *self.bounds_s())

    def resolved(self, device: str, dataset: Settings | None = None) -> Settings:
        """Return the settings of new rows. `auto` becomes the dataset's value, in a new dataset the device's default.

        Args:
            device: cpu or cuda.
            dataset: settings of the dataset that the rows are added to; None for a new one.
        Raises: ConfigError for a precision that is not available on the device.
        """
        precision, compute_type = self.precision, self.asr_compute_type
        if precision == "auto":
            precision = dataset.precision if dataset else "fp32"
        if compute_type == "auto":
            compute_type = dataset.asr_compute_type if dataset else _ASR_COMPUTE_TYPES[device]
        require_precision(precision, mode=self.mode, device=device)
        return self.settings(
            precision=precision,
            asr_compute_type=compute_type,
            asr_window=self.resolved_window(device, dataset),
            sound_quality=not self.no_sound_quality and (dataset is None or dataset.sound_quality),
            version=dataset.schema_version if dataset else SCHEMA_VERSION,
        )

    def resolved_window(self, device: str, dataset: Settings | None = None) -> AsrWindow:
        """Return `asr_window` for new rows, as `resolved` does."""
        if self.asr_window != "auto":
            return self.asr_window
        if dataset:
            return dataset.asr_window
        return "full" if self.segmentation == "none" else _ASR_WINDOWS[device]

    def settings(
        self,
        *,
        precision: Precision,
        asr_compute_type: str,
        asr_window: AsrWindow = "full",
        sound_quality: bool = False,
        version: int = SCHEMA_VERSION,
    ) -> Settings:
        """Return the options that determine the rows of a dataset, except models and manifests: see `resolved`.

        Args:
            version: schema version: that of an existing dataset, else the newest.
        """
        return Settings(
            mode=self.mode,
            language=self.language,
            segmentation=self.segmentation,
            max_segment_s=self.max_segment_s,
            min_segment_s=self.min_segment_s,
            window_s=self.window_s,
            hop_s=self.hop_s,
            channels=self.channels,
            turns=self.turns,
            speakers=self.speakers,
            partition_by=self.partition_by,
            embeddings=self.embeddings,
            embedding_dtype=self.embedding_dtype,
            beam_size=self.beam_size,
            words=self.words,
            max_duration_s=self.max_duration_s,
            max_bytes=self.max_bytes,
            calibration=dict(self.calibration) or None,
            label_map=self.label_map or None,
            also=tuple(self.also),
            min_confidence=self.min_confidence,
            allowed_languages=tuple(sorted(self.allowed_languages)),
            texts=self.texts,
            schema_version=version,
            precision=precision,
            asr_compute_type=asr_compute_type,
            asr_window=asr_window,
            sound_quality=sound_quality,
        )
