"""Models of a job: chosen by language and mode, pinned in the plan, loaded once per process.

A plan names its models by role, `fusion/en`, `sentence_encoder/en`, `asr/en`, each with its model id, the commit it
resolved to, the sha256 of its files and, for a prepared one, their location. A worker that finds other weights
under the same name refuses to use them.

torch and transformers (4 s of a core) are imported only where a model is checked or loaded, so that CPU tasks avoid
the cost.
"""

from __future__ import annotations

import importlib.metadata
import logging
import platform
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from pipeline import __version__
from pipeline.audio.turns import lack_text
from pipeline.config import AUTO_LANGUAGE, JobConfig, ModelChoice, primary_language
from pipeline.config.labels import ANY_LANGUAGE, LabelRules
from pipeline.config.settings import Settings
from pipeline.errors import ConfigError, JobError
from pipeline.models import recognisers
from pipeline.models.checkpoints import onnx, published
from pipeline.models.checkpoints.lock import Prepared, read_prepared
from pipeline.models.memory import memory_in_use
from pipeline.models.speakers import SPEAKER, pin_speaker_model
from pipeline.models.transcription import Transcriber
from pipeline.pins import ModelPin, Pins, Role, Task, languages
from pipeline.redaction import without_query

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.models.checkpoints.weights import Checkpoint
    from pipeline.models.emotion import EmotionRecogniser

_log = logging.getLogger(__name__)
_CALLED = {
    Task.SPEAKER: "speaker model",
    Task.EMOTION: "emotion model",
    Task.SENTENCE_ENCODER: "sentence encoder",
    Task.ASR: "speech recogniser",
}
_OPTION = {
    Task.SPEAKER: "speaker_model",
    Task.EMOTION: "emotion_model",
    Task.SENTENCE_ENCODER: "sentence_encoder",
    Task.ASR: "asr_model",
}


def prepared_models(config: JobConfig) -> Prepared | None:
    """Return the prepared folder a job names with `--models`, or None. Raises: ConfigError when it has no lock."""
    if config.models is None:
        return None
    prepared = read_prepared(config.models)
    if prepared is None:
        raise ConfigError(
            f"--models {without_query(config.models)}: no lock file, so this is not a prepared folder, or "
            "its preparation did not finish; create one with python -m jobs.prepare_models --output"
        )
    return prepared


def _default(role: Role, mode: str, prepared: Prepared | None) -> str | None:
    """Return the default model id of a role: from the prepared folder if there is one, else the published one."""
    if prepared is not None:
        return prepared.spec(mode, role)
    if role.task is Task.EMOTION:
        return published.EMOTION_MODELS.get((role.language, mode))
    return (
        published.SENTENCE_ENCODERS.get(role.language) if role.task is Task.SENTENCE_ENCODER else published.DEFAULT_ASR
    )


def option(role: Role, spec: str) -> str:
    """Return the option that names a model for a role: `--emotion-model en=X`."""
    if role == SPEAKER:
        return f"--speaker-model {spec}"
    if role.name:
        return f"--also {role.name}:{role.language}={spec}"
    return f"--{_OPTION[role.task].replace('_', '-')} {role.language}={spec}"


def known_languages(config: ModelChoice, prepared: Prepared | None = None) -> list[str]:
    """Return every language for which this job has an emotion model."""
    named = {language for language in config.emotion_model if language.isalpha()}
    candidates = {*named, *(code for code, _ in published.EMOTION_MODELS), primary_language(config.language or "en")}
    candidates |= prepared.languages(config.mode) if prepared else set()
    return sorted(
        language
        for language in candidates - {AUTO_LANGUAGE}
        if config.model_for("emotion_model", language) or _default(Role(Task.EMOTION, language), config.mode, prepared)
    )


def detectable_languages(config: JobConfig, prepared: Prepared | None = None) -> list[str]:
    """Return the languages with an emotion model that `--language auto` may choose.

    Raises: ConfigError when `--allowed-languages` leaves none.
    """
    known = known_languages(config, prepared)
    allowed = [language for language in known if not config.allowed_languages or language in config.allowed_languages]
    if config.allowed_languages and not allowed:
        raise ConfigError(
            f"--allowed-languages {','.join(config.allowed_languages)}: no emotion model is known for any of them, only for "
            f"{', '.join(known) or 'no language'}; name one with {option(Role(Task.EMOTION, config.allowed_languages[0]), 'X')}"
        )
    return allowed


def choose(
    config: ModelChoice, languages: Iterable[str], *, needs_asr: bool, prepared: Prepared | None = None
) -> dict[Role, str]:
    """Choose a model for each role of the languages: the one an option names, else the prepared or published one.

    Raises: ConfigError naming the option for a role that has no model, or one that cannot be used with other options.
    """
    fused = config.mode in ("mean", "concat", "multihead")
    tasks = [Task.EMOTION, *([Task.SENTENCE_ENCODER] * fused), *([Task.ASR] * needs_asr)]
    chosen: dict[Role, str] = {}
    for language in sorted(set(languages)):
        for task in tasks:
            role = Role(task, language)
            spec = config.model_for(_OPTION[task], language) or _default(role, config.mode, prepared)
            if spec is None:
                where = f"in {without_query(prepared.uri)} for mode {config.mode}" if prepared else "is published"
                flag = option(role, "X")
                also = f", or prepare one: --mode {config.mode} --language {language}" if prepared else ""
                raise ConfigError(f"no {_CALLED[task]} {where} for {language!r}; name one with {flag}{also}")
            chosen[role] = spec
        for name, named in config.also.items() if isinstance(config, JobConfig) else ():
            if spec := named.get(language, named.get(ANY_LANGUAGE)):
                chosen[Role(Task.EMOTION, language, name)] = spec
    for role, spec in chosen.items():
        try:
            recognisers.check_choice(role, spec, config, prepared=bool(prepared and spec in prepared.lock.models))
        except ConfigError as error:
            raise ConfigError(f"{option(role, spec)}: {error}") from error
    if isinstance(config, JobConfig) and config.speakers and chosen:
        chosen[SPEAKER] = config.speaker_model
    return chosen


@dataclass(frozen=True, slots=True)
class Needs:
    """The models that some manifest rows need: an emotion model for each of `languages`, and speech recognition or not."""

    languages: frozenset[str]
    asr: bool


def needs_of(tables: Iterable[pa.Table], config: JobConfig, prepared: Prepared | None = None) -> Needs:
    """Return what manifest rows need. Costs one pass. Raises: ConfigError as `detectable_languages` does."""
    languages: set[str] = set()
    asr = False
    wants_text = config.mode != "audio"
    for table in tables:
        for tag in table["language"].unique().to_pylist():
            languages.update(detectable_languages(config, prepared) if tag is None else [primary_language(tag)])
        without_text = table["text"].null_count or config.segmentation == "vad" or config.window_s
        without_text = without_text or config.channels == "split"
        without_text = without_text or (config.turns in table.schema.names and lack_text(table[config.turns]))
        asr = asr or bool(table["language"].null_count or (wants_text and without_text))
    return Needs(frozenset(languages), asr)


def choose_known(
    config: ModelChoice, languages: Iterable[str], *, needs_asr: bool, prepared: Prepared | None = None
) -> dict[Role, str]:
    """Choose as `choose` does, but skip languages for which no model is named, prepared or published."""
    chosen: dict[Role, str] = {}
    for language in languages:
        with suppress(ConfigError):
            chosen |= choose(config, [language], needs_asr=needs_asr, prepared=prepared)
    return chosen


def pin(
    chosen: Mapping[Role, str],
    mode: str,
    find: Callable[[str], Checkpoint | None] | None = None,
    *,
    rules: LabelRules | None = None,
    warn: Callable[[str], object] | None = None,
) -> tuple[dict[Role, ModelPin], dict[str, int]]:
    """Resolve and verify the model of every role.

    Args:
        find: looks a model id up before any other place, for example among prepared models.
        rules: settings that decide which labels and heads a dataset takes; None for a folder of models, which takes all.
        warn: called with a sentence about each model that has labels without an emotion.
    Returns: the plan's `models` and its embedding widths. Costs one read of each weight file (its hash).
    Raises: ConfigError naming the role's option and the fault.
    """
    from pipeline.models.checkpoints import weights
    from pipeline.models.checkpoints.modes import check, check_for_dataset, check_further

    pinned: dict[Role, ModelPin] = {}
    widths: dict[str, dict[str, int]] = {}
    encoders: dict[str, Checkpoint] = {}
    # encoders first, because the fusion models are checked against them
    for role, spec in sorted(chosen.items(), key=lambda item: item[0].task is not Task.SENTENCE_ENCODER):
        language, further, source_sha256 = role.language, None, None
        try:
            if role == SPEAKER:
                pinned[role] = pin_speaker_model(spec)
                continue
            checkpoint = (find and find(spec)) or weights.resolve(spec)
            if role.task is Task.ASR:
                checkpoint, source_sha256 = recognisers.checked(checkpoint, language)
            elif role.task is Task.SENTENCE_ENCODER:
                encoders[language] = checkpoint
            else:
                encoder = encoders.get(language)
                if role.name:
                    further, declaration = check_further(mode, checkpoint, encoder)
                else:
                    declaration = check(mode, checkpoint, encoder)
                    widths[language] = dict(declaration.embedding_widths)
                if rules is not None:
                    for sentence in check_for_dataset(declaration, role, spec, rules):
                        (warn or _log.warning)(sentence)
        except ConfigError as error:
            raise ConfigError(f"{option(role, spec)}: {error}") from error
        size_bytes = sum(file.stat().st_size for file in weights.files_of(checkpoint))
        source = (checkpoint.revision, checkpoint.sha256, size_bytes, checkpoint.location or None)
        pinned[role] = ModelPin(spec, *source, further, source_sha256)
    if len({tuple(sorted(w.items())) for w in widths.values()}) > 1:
        raise ConfigError(f"the models of the languages have embeddings of different widths: {widths}; run them apart")
    return pinned, next(iter(widths.values()), {})


@cache
def versions() -> dict[str, str]:
    """Return the versions of the software that computes the results, for receipts and reports.

    Includes installed packages that add emotion models.
    """
    packages = ["torch", "transformers", "faster-whisper", "ctranslate2", "pyarrow", "ray", "soxr", "soundfile", "av"]
    if onnx.is_installed():
        packages += ["onnx-asr", "onnxruntime"]
    found = {name: importlib.metadata.version(name) for name in packages}
    distributions = (entry.dist for entry in importlib.metadata.entry_points(group=published.ENTRY_POINTS))
    added = {distribution.name: distribution.version for distribution in distributions if distribution is not None}
    return {"python": platform.python_version(), "speech-emotion-pipeline": __version__, **found, **added}


def pinned_checkpoint(pin: ModelPin) -> Checkpoint:
    """Return the exact files that a plan pinned, on this node, converted if need be. Raises: ConfigError when they differ."""
    from pipeline.models.checkpoints import convert, weights

    if pin.location:
        found = weights.resolve(onnx.within(pin.spec, pin.location), expected_sha256=pin.sha256)
        return replace(found, spec=pin.spec, revision=pin.revision, location=pin.location)
    spec = f"{pin.spec.partition('@')[0]}@{pin.revision}" if pin.revision else pin.spec
    if pin.source_sha256 is None:
        return weights.resolve(spec, expected_sha256=pin.sha256)
    found = convert.converted_whisper(weights.resolve(spec, expected_sha256=pin.source_sha256))
    if found.sha256 != pin.sha256:
        raise ConfigError(
            f"{spec} converts to other files here (sha256 {found.sha256[:12]}, expected {pin.sha256[:12]}): this needs the "
            f"versions of ctranslate2 and transformers that the plan was made with; here: "
            f"{convert.versions('ctranslate2', 'transformers')}"
        )
    return found


def fingerprint(models: Pins, settings: Settings, language: str, name: str = "") -> str:
    """Return the output's `model` value: `mean-en:<12 of the weights' sha256>+<12 of the encoder's>@fp32`.

    For calibrated scores, `/T=` and the temperature follow. A further model (`name`) is never calibrated.
    """
    model = _uncalibrated(models, settings, language, name)
    if name:
        return model
    return f"{model}/T={temperature(models, settings, language):.6g}" if settings.calibration else model


def temperature(models: Pins, settings: Settings, language: str) -> float:
    """Return the calibration temperature of a language's model, the divisor of its logits; 1 without a calibration.

    Raises: ConfigError when the job has a calibration, but none for this exact model.
    """
    if not settings.calibration:
        return 1.0
    model, known = _uncalibrated(models, settings, language), settings.calibration
    if model not in known:
        raise ConfigError(f"--calibration: no temperature for {model}, only for {', '.join(sorted(known))}")
    return float(known[model])


def require_calibration(models: Pins, settings: Settings) -> None:
    """Reject a calibration that lacks a model of the plan. Raises: ConfigError naming it."""
    for language in languages(models):
        temperature(models, settings, language)


def _uncalibrated(models: Pins, settings: Settings, language: str, name: str = "") -> str:
    role, encoder = Role(Task.EMOTION, language, name), Role(Task.SENTENCE_ENCODER, language)
    mode = models[role].mode if name else settings.mode
    roles = (role, encoder) if mode == settings.mode else (role,)
    hashes = "+".join(models[role].sha256[:12] for role in roles if role in models)
    return f"{mode}-{language}:{hashes}@{settings.precision}"


class Loaded:
    """The models of one process, each loaded at first use and kept.

    Args:
        models: the plan's `models`.
        settings: the plan's settings (mode, precision, asr_compute_type, asr_window, beam_size, words).
        device: cpu or cuda.
        num_threads: CPU threads a model may use; None keeps the library's default.
        max_batch_s: padded audio seconds in one batch; None for as many as the device holds.
        gpu_share: this process's fraction of the card.
    """

    def __init__(
        self,
        models: Pins,
        *,
        settings: Settings,
        device: str,
        num_threads: int | None = None,
        max_batch_s: float | None = None,
        gpu_share: float = 1.0,
    ) -> None:
        self._models, self._settings = models, settings
        self._device, self._num_threads = device, num_threads
        self._max_batch_s, self._gpu_share = max_batch_s, gpu_share
        self._recognisers: dict[Role, EmotionRecogniser] = {}
        self._transcribers: dict[str, Transcriber] = {}

    def load_recognisers(self) -> None:
        """Load every emotion model of the plan now."""
        for role in self._models:
            if role.task is Task.EMOTION:
                self.recogniser_for(role.language, role.name)

    def load_transcribers(self) -> None:
        """Load every speech recogniser of the plan now."""
        for language in languages(self._models, Task.ASR):
            self.transcriber_for(language)

    def take_figures(self) -> dict[str, float]:
        """Return the loaded models' counts since the last call: see `pipeline.stats`."""
        models: list[EmotionRecogniser | Transcriber] = [*self._recognisers.values(), *self._transcribers.values()]
        counted = [asdict(model.take_figures()) for model in models]
        if not counted:
            return {}
        used_bytes = memory_in_use(self._device)
        used = {} if used_bytes is None else {"gpu_bytes": used_bytes}
        return {**{name: sum(each[name] for each in counted) for name in counted[0]}, **used}

    def _checkpoint(self, role: Role) -> Checkpoint:
        try:
            return pinned_checkpoint(self._models[role])
        except ConfigError as error:
            raise JobError(f"{role}: {error}") from error

    def recogniser_for(self, language: str, name: str = "") -> EmotionRecogniser:
        """Return the emotion model of a language, or its further model of a name."""
        role = Role(Task.EMOTION, language, name)
        if role not in self._recognisers:
            from pipeline.models.emotion import EmotionRecogniser

            encoder = Role(Task.SENTENCE_ENCODER, language)
            self._recognisers[role] = EmotionRecogniser(
                self._models[role].mode or self._settings.mode,
                self._checkpoint(role),
                self._checkpoint(encoder) if encoder in self._models else None,
                device=self._device,
                precision=self._settings.precision,
                num_threads=self._num_threads,
                max_batch_s=self._max_batch_s,
                gpu_share=self._gpu_share,
                temperature=1.0 if name else temperature(self._models, self._settings, language),
                language=language,
                label_map=self._settings.label_map,
            )
        return self._recognisers[role]

    def transcriber_for(self, language: str | None) -> Transcriber:
        """Return the speech recogniser of a language; for None, the plan's first, which then detects the language."""
        roles = sorted(role for role in self._models if role.task is Task.ASR)
        role = Role(Task.ASR, language) if language and Role(Task.ASR, language) in roles else roles[0]
        sha256 = self._models[role].sha256
        if sha256 not in self._transcribers:
            self._transcribers[sha256] = recognisers.load(
                self._checkpoint(role), self._settings, device=self._device, num_threads=self._num_threads or 0
            )
        return self._transcribers[sha256]
