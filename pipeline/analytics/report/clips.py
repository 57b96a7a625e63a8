"""Playable utterances on the page of a recording: links into the audio, or copies of it inside the page."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from pipeline import SAMPLING_RATE
from pipeline.analytics.report.page import formatted
from pipeline.audio.limits import AudioLimits
from pipeline.audio.sandbox import sandbox
from pipeline.dataset.reader import Rows
from pipeline.errors import RejectedRow
from pipeline.storage.access import AudioRoots
from pipeline.storage.fetch import fetch

COPIED_S = 600.0
"""Seconds of audio that a page contains at most."""
KBIT_S = 24
Source = tuple[str | None, int | None, float, float]
"""Audio reference, channel, start and end in seconds of one utterance."""


class Audio(StrEnum):
    """How utterances become playable: by a copy in the page, or by a link that the browser opens."""

    COPY = "copy"
    LINK = "link"

    @property
    def sources(self) -> str:
        """Return the sources of audio for the page's content security policy."""
        return "data:" if self is Audio.COPY else "file: http: https:"


@dataclass(frozen=True, slots=True)
class Players:
    """The address of each utterance's audio, or None, and a sentence on what is missing."""

    addresses: Sequence[str | None]
    note: str


def players(rows: Rows, sources: Sequence[Source], audio: Audio) -> Players:
    """Return an address for each utterance.

    Copies are MP3 at 24 kbit/s, 4 kB for a second, of the first `COPIED_S` seconds of utterances. Links start and end at the
    utterance; a browser opens local files and http(s), and plays all channels.
    """
    if audio is Audio.LINK:
        links = [_link(*source) for source in sources]
        missing = links.count(None)
        note = f"{missing:,} utterances are in places that a browser cannot open." if missing else ""
        return Players(links, note)
    spent = 0.0
    kept: list[Source] = []
    for source in sources:
        spent += source[3] - source[2]
        if spent <= COPIED_S and source[0] is not None:
            kept.append(source)
    clips, troubles = _clips(rows, kept)
    addresses = [clips.get(source) for source in sources]
    missing = addresses.count(None)
    note = (
        f"{missing:,} utterances have no audio here; a page contains at most {COPIED_S / 60:g} minutes."
        if missing
        else ""
    )
    return Players(addresses, " ".join([note, *troubles]).strip())


def _link(uri: str | None, _channel: int | None, start_s: float, end_s: float) -> str | None:
    if uri is None:
        return None
    if uri.startswith("/"):
        uri = f"file://{quote(uri)}"
    return f"{uri}#t={start_s:.2f},{end_s:.2f}" if uri.startswith(("file://", "http://", "https://")) else None


def _clips(rows: Rows, sources: Sequence[Source]) -> tuple[Mapping[Source, str], list[str]]:
    """Return the clips as data URIs, and a sentence for each file that cannot be read."""
    clips: dict[Source, str] = {}
    troubles: list[str] = []
    plan = rows.plans[-1]
    roots = AudioRoots.parse(plan.audio_roots or (), plan.manifests)
    limits = AudioLimits(max_bytes=plan.settings.max_bytes, max_duration_s=plan.settings.max_duration_s)
    files = dict.fromkeys((uri, channel) for uri, channel, _, _ in sources if uri is not None)
    for uri, channel in files:
        of_file = [source for source in sources if source[:2] == (uri, channel)]
        try:
            roots.check(uri)
            content = fetch(uri, max_bytes=limits.max_bytes, allow=roots.check_opened)
            waveform = sandbox().decode(content, channel=channel, limits=limits)
        except RejectedRow as rejected:
            troubles.append(f"{formatted(uri)} cannot be read: {rejected}.")
            continue
        for source in of_file:
            first, last = (round(seconds * SAMPLING_RATE) for seconds in source[2:])
            clips[source] = _mp3(waveform[first:last])
    return clips, troubles


def _mp3(waveform: NDArray[np.float32]) -> str:
    from pipeline.analytics.stress.codecs import encoded

    content = encoded(waveform, "mp3", "libmp3lame", KBIT_S)
    return f"data:audio/mpeg;base64,{base64.b64encode(content).decode()}"
