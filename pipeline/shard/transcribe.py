"""The second step of a shard: transcribe utterances without a text, and detect languages that are not given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.config import primary_language
from pipeline.config.columns import WORDS
from pipeline.config.settings import Settings
from pipeline.dataset.plan import Shard
from pipeline.errors import Reject, Stage
from pipeline.models.judgement import flag_of, judge, judge_as_whisper
from pipeline.models.transcription import Transcript
from pipeline.shard.context import Work
from pipeline.shard.crashes import UNWATCHED, Watch
from pipeline.shard.isolation import by_model, isolate
from pipeline.shard.languages import settle_languages
from pipeline.shard.work_table import WORK_SCHEMA, Waveforms, is_committed_elsewhere

if TYPE_CHECKING:
    from pipeline.models.transcription import Transcriber


_VOICE_RULES_SINCE = 3
"""Schema version from which clips without voice have no emotion, and `pipeline.models.judgement` applies."""


def needs_transcription(work: Work, line: Mapping[str, Any]) -> bool:
    """Return whether a line's text must be transcribed or its language detected."""
    return _needs_text(work, line) or line["language"] is None


def has_voice_rules(settings: Settings) -> bool:
    """Return whether a dataset has the rules for clips without voice: not before version 3, nor with whole files."""
    return settings.schema_version >= _VOICE_RULES_SINCE and settings.segmentation != "none"


def needs_voice_activity(work: Work, line: Mapping[str, Any]) -> bool:
    """Return whether the speech of a line must be counted: to transcribe it, or because it may have no voice."""
    return needs_transcription(work, line) or (line["text"] is None and has_voice_rules(work.plan.settings))


def _needs_text(work: Work, line: Mapping[str, Any]) -> bool:
    return line["text"] is None and work.mode != "audio"


def _spoken_language(line: Mapping[str, Any]) -> str | None:
    """Return the language in which to transcribe a line; None to detect it."""
    return None if line["language"] is None else primary_language(str(line["language"]))


def transcribe(
    work: Work,
    shard: Shard,
    table: pa.Table,
    transcriber_for: Callable[[str | None], Transcriber],
    watch: Watch = UNWATCHED,
) -> pa.Table:
    """Transcribe every utterance without a text, and detect languages where they are not given.

    Without speech the text is empty and no model is called, since Whisper transcribes silence as words. A recording's
    language is decided over all its segments; segments transcribed in another language are then transcribed again.

    Args:
        transcriber_for: returns the model for a language, loaded once by the caller; it gets all its lines in one call.
        watch: the crash tracker's interface, which identifies an utterance that kills this process.
    """
    if is_committed_elsewhere(table):
        return table
    deaths = watch.begin()
    waveforms = Waveforms(work, shard, table)
    lines = table.select([name for name in WORK_SCHEMA.names if name != "waveform"]).to_pylist()
    transcribers: dict[int, Transcriber] = {}
    transcripts: dict[int, Transcript] = {}
    for index, line in enumerate(lines):
        if line["reject"] is not None or not needs_transcription(work, line):
            continue
        if line["speech_s"]:
            transcribers[index] = transcriber_for(_spoken_language(line))
        else:
            transcripts[index] = Transcript("", _spoken_language(line))

    def run(transcribers: Mapping[int, Transcriber]) -> None:
        spoken = {index: _spoken_language(lines[index]) for index in transcribers}
        for transcriber, group in by_model(transcribers, table, waveforms):
            call = partial(_transcribe_lines, transcriber, waveforms, spoken)
            for part, outcome in isolate(call, group, Stage.TRANSCRIBE, deaths, watch):
                outcomes = [outcome] if isinstance(outcome, Reject) else outcome
                for index, transcript in zip(part, outcomes, strict=True):
                    if isinstance(transcript, Reject):
                        lines[index]["reject"] = transcript.document()
                        transcripts.pop(index, None)
                    else:
                        transcripts[index] = transcript

    run(transcribers)
    settle_languages(work.plan, lines, transcripts)
    run(
        {
            i: transcribers[i]
            for i, transcript in transcripts.items()
            if i in transcribers and _needs_text(work, lines[i]) and transcript.language != _spoken_language(lines[i])
        }
    )
    for index, transcript in transcripts.items():
        if _needs_text(work, lines[index]):
            lines[index].update(_text_columns(work, lines[index], transcript))
    watch.end()
    texts = pa.Table.from_pylist(lines, schema=WORK_SCHEMA.remove(WORK_SCHEMA.get_field_index("waveform")))
    return texts.append_column("waveform", table["waveform"]).select(WORK_SCHEMA.names)


def _transcribe_lines(
    transcriber: Transcriber, waveforms: Waveforms, spoken: Mapping[int, str | None], lines: list[int]
) -> list[Transcript | Reject]:
    return transcriber.transcribe_many([waveforms[line] for line in lines], [spoken[line] for line in lines])


def _text_columns(work: Work, line: Mapping[str, Any], transcript: Transcript) -> dict[str, Any]:
    speech_s, duration_s = line["speech_s"] or 0.0, line["end_s"] - line["start_s"]
    if has_voice_rules(work.plan.settings):
        transcript, flag = judge(transcript, duration_s=duration_s, speech_s=speech_s)
    else:
        transcript = judge_as_whisper(transcript, duration_s=duration_s)
        flag = flag_of(transcript, duration_s=duration_s)
    return {
        "asr_flag": str(flag),
        "text": transcript.text,
        "text_source": "asr",
        "asr_avg_logprob": transcript.avg_logprob,
        "asr_no_speech_prob": transcript.no_speech_prob,
        "asr_compression_ratio": transcript.compression_ratio,
        WORDS: _words(transcript, line) if work.plan.settings.words else None,
    }


def _words(transcript: Transcript, line: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Return the words with times in the recording, to the millisecond; none for a text that is empty."""
    if not transcript.text or transcript.words is None:
        return None if transcript.text else []
    begin_s, limit_s = line["start_s"], line["end_s"]
    times = [[min(round(begin_s + each, 3), limit_s) for each in word[1:3]] for word in transcript.words]
    return [
        {**word._asdict(), "start_s": start_s, "end_s": end_s}
        for word, (start_s, end_s) in zip(transcript.words, times, strict=True)
    ]
