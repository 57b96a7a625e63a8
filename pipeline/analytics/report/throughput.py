"""Throughput of a run: audio time over wall time, overall and by interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.analytics.report import plots
from pipeline.analytics.report.behind import Listing, rows_marks
from pipeline.analytics.report.page import Section, ask
from pipeline.dataset.parts import read_receipts
from pipeline.dataset.plan import Plan
from pipeline.dataset.reader import Rows
from pipeline.layout import UTTERANCES
from pipeline.storage.cleanup import walk

if TYPE_CHECKING:
    import duckdb

_INTERVALS = 40
_LEAST_WORK_S = 1.0

_SPREAD = f"""WITH axis AS (
    SELECT least(min(planned_s), min(start_s)) AS first,
        greatest((max(written_s) - least(min(planned_s), min(start_s))) / {_INTERVALS}, 1.0) AS step_s FROM parts),
steps AS (
    SELECT number, step_s, first, first + number * step_s AS from_s FROM axis, range({_INTERVALS}) AS steps(number)),
spread AS (
    SELECT shard, number, step_s, number = least(floor((written_s - first) / step_s), {_INTERVALS - 1}) AS ends_here,
        audio_s * greatest(least(written_s, from_s + step_s) - greatest(start_s, from_s), 0) / (written_s - start_s) AS audio_s
    FROM steps JOIN parts ON start_s <= from_s + step_s AND written_s >= from_s)"""

THROUGHPUT = f"""{_SPREAD}
SELECT number * step_s / 60 AS from_minute, step_s, count(*) FILTER (ends_here) AS parts,
    sum(audio_s) / 3600 AS audio_hours, sum(audio_s) / step_s AS times_real_time,
    count(*) FILTER (ends_here OR audio_s > 0) AS parts_in_work
FROM spread GROUP BY number, step_s HAVING sum(audio_s) > 0 OR bool_or(ends_here) ORDER BY number"""

_IN_WORK = f"""({_SPREAD}
SELECT list(number * step_s / 60) FROM spread WHERE spread.shard = parts.shard AND (ends_here OR audio_s > 0))"""

PARTS = Listing(
    name="parts",
    title="Parts",
    source="parts",
    identity="shard",
    columns="""shard, round((start_s - planned_s) / 60, 2) AS from_minute, round((written_s - start_s) / 60, 2) AS minutes,
    round(audio_s / 60, 2) AS audio_minutes, part""",
    order="shard",
    noun="parts",
)


def parts_table(rows: Rows, plan: Plan) -> pa.Table:
    """Return a row for each part: its audio, the start of work on its shard, and its modification time in the store.

    The work on a shard lasts from its first stage to its commit: the seconds of its stages and of the waits between
    them. Receipts without timings count as one second, which is also the resolution of object stores.
    """
    keys = rows.parts[plan.plan]
    written = {file.key: file.modified_s for file in walk(rows.store, UTTERANCES)}
    planned_s = datetime.fromisoformat(plan.created_at).timestamp()
    shards, starts, ends, audio = sorted(keys), [], [], []
    for shard, receipt in zip(shards, read_receipts(rows.store, keys), strict=True):
        waited_s = sum(figures.get("waited_s", 0.0) for figures in receipt.figures.values())
        worked_s = max(sum(receipt.stage_s.values()) + waited_s, _LEAST_WORK_S)
        end_s = written[keys[shard]]
        start_s = max(end_s - worked_s, planned_s)
        starts.append(start_s if start_s < end_s else end_s - _LEAST_WORK_S)  # clock of the store behind the driver's
        ends.append(end_s)
        audio.append(receipt.audio_s)
    names = pa.array([keys[shard] for shard in shards], pa.string())
    columns = {"planned_s": [planned_s] * len(shards), "start_s": starts, "written_s": ends, "audio_s": audio}
    numbers = {name: pa.array(values, pa.float64()) for name, values in columns.items()}
    return pa.table({"shard": pa.array(shards, pa.int64()), "part": names, **numbers})


@dataclass(frozen=True, slots=True)
class Speed:
    """Throughput of the last start of a run, the one that finished it.

    Attributes:
        audio_s: audio of the parts that were missing at that start, whichever process wrote them.
        wall_s: seconds from that start to its last part, including the loading of models.
        earlier_parts: number of parts from earlier starts, whose wall time is not recorded.
    """

    audio_s: float
    wall_s: float
    earlier_parts: int

    @property
    def times_real_time(self) -> float:
        """Return the seconds of audio per second of wall time."""
        return self.audio_s / self.wall_s


def speed_of(report: Mapping[str, Any], parts: pa.Table) -> Speed | None:
    """Return the throughput, or None if the report has no wall time or the last start annotated nothing."""
    wall_s, new = report.get("wall_seconds"), report.get("shards_run")
    if not wall_s or not new:
        return None
    audio_s = parts.sort_by("written_s")["audio_s"].to_pylist()
    return Speed(sum(audio_s[-new:]), wall_s, max(len(audio_s) - new, 0))


def throughput(connection: duckdb.DuckDBPyConnection, speed: Speed | None) -> Section:
    """Return the section. Needs the table `parts`."""
    names, rows = ask(connection, THROUGHPUT)
    svg, alt = None, "no part"
    if rows:
        width = rows[0][1] / 60
        svg = plots.columns(
            [row[0] for row in rows],
            width,
            [row[4] for row in rows],
            x="minutes since the run was planned",
            y="audio time / wall time",
            bounds=(0, rows[-1][0] + width),
            name="throughput",
        )
        alt = f"{sum(row[3] for row in rows):,.3g} hours of audio in {len(rows)} intervals"
    if speed is None:
        overall = "The report has no wall time of a start that wrote parts."
    else:
        overall = (
            f"{speed.audio_s / 3600:,.3g} hours of audio in {speed.wall_s / 60:,.3g} minutes of wall time: "
            f"{speed.times_real_time:,.3g} times real time."
        )
        alt = f"{overall[:-1]}; {alt}"
        if speed.earlier_parts:
            overall += (
                f" This is the last start of the run; {speed.earlier_parts:,} parts were written before it, in an unrecorded "
                "time."
            )
    note = (
        f"{overall} Columns: the audio of each part, spread evenly over the time from the first work on its shard to its "
        "commit; pauses between two starts show as gaps."
    )
    marks = rows_marks("parts", _IN_WORK, [row[0] for row in rows], [row[5] for row in rows])
    return Section("throughput", "Throughput", names, rows, THROUGHPUT, note, svg, alt, marks=marks)
