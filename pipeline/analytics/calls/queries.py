"""The SQL of call metrics, over `utterances` and `planned`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from pipeline.analytics.calls.columns import CALL, LEAST_OVERLAP_S, QUARTERS, SPEAKER
from pipeline.analytics.emotion_sql import COUNT, per_emotion, transitions
from pipeline.dataset.reader import quoted
from pipeline.schema import DIMENSIONS


def sums(by: Mapping[str, str], speaker: str, run: str, columns: Collection[str]) -> str:
    """Return the query for the rows of the calls that have an utterance in a run; one row per call and one per speaker.

    Utterances without a value in a column of `by` belong to no call.

    Args:
        by: name and SQL expression of the columns that identify a call.
        speaker: SQL expression of the speaker.
        run: name of the run.
        columns: columns of `utterances`; those of later schema versions may be missing.
    """
    keys = [f"k{number}" for number in range(len(by))]
    call = ", ".join(keys)
    one = f"{call}, scope, speaker"
    given = ", ".join(f"({sql}) AS {key}" for key, sql in zip(keys, by.values(), strict=True))
    named = ", ".join(f"{key} AS {quoted(name)}" for key, name in zip(keys, by, strict=True))
    complete = " AND ".join(f"{key} IS NOT NULL" for key in keys)
    late = ", ".join(name if name in columns else f"NULL::FLOAT AS {name}" for name in ("loudness_dbfs", *DIMENSIONS))
    return f"""
    WITH keyed AS (
        SELECT {given}, coalesce(({speaker})::VARCHAR, '') AS speaker, utterance_id, recording_id, segment_index, start_s, end_s,
            duration_s, text, emotion, run_id AS run, {late}
        FROM utterances
    ), mine AS (
        SELECT * FROM keyed SEMI JOIN (SELECT {call} FROM keyed WHERE run = '{run}' AND {complete}) AS touched USING ({call})
    ), lengths AS (
        SELECT {call}, greatest(max(end_s), max(coalesce(offset_s, 0) + planned.duration_s)) AS length_s,
            count(DISTINCT run)::BIGINT AS runs
        FROM mine LEFT JOIN planned USING (recording_id) GROUP BY ALL
    ), spoken AS (
        SELECT '{SPEAKER}' AS scope, * FROM mine UNION ALL SELECT '{CALL}', * REPLACE ('' AS speaker) FROM mine
    {_talk(call, one)}
    ), cutting_in AS (
        SELECT DISTINCT {call}, later.speaker, later.utterance_id FROM mine AS earlier JOIN mine AS later USING ({call})
        WHERE earlier.speaker <> later.speaker AND later.start_s > earlier.start_s
            AND later.start_s <= earlier.end_s - {LEAST_OVERLAP_S} AND later.end_s > earlier.end_s
    ), cuts AS (
        SELECT {call}, '{SPEAKER}' AS scope, speaker, count(*)::BIGINT AS interruptions FROM cutting_in GROUP BY ALL
        UNION ALL SELECT {call}, '{CALL}', '', count(*)::BIGINT FROM cutting_in GROUP BY ALL
    ), told AS (
        SELECT *, lag(emotion) OVER (PARTITION BY {one} ORDER BY start_s, end_s, recording_id, segment_index) AS earlier,
            greatest(1, least(4, floor(2 * (start_s + end_s) / length_s) + 1)) AS quarter
        FROM spoken JOIN lengths USING ({call})
    ), counted AS (
        SELECT {one}, {", ".join(_counted())} FROM told GROUP BY ALL
    )
    SELECT {named}, scope, nullif(speaker, '') AS speaker, length_s, coalesce(talk_s, 0) AS talk_s,
        greatest(length_s - coalesce(talk_s, 0), 0) AS silence_s, coalesce(overlap_s, 0) AS overlap_s,
        coalesce(interruptions, 0) AS interruptions, counted.* EXCLUDE ({one}), runs, '{run}' AS run_id
    FROM counted JOIN lengths USING ({call}) LEFT JOIN talk USING ({one}) LEFT JOIN shared USING ({one})
        LEFT JOIN cuts USING ({one})
    ORDER BY ALL
    """


def _talk(call: str, one: str) -> str:
    """Return the subqueries `talk` and `shared`: time in which one talks, and in which somebody else does too.

    A sweep over the edges of the spans in which each speaker talks: between two edges the number of speakers is constant.

    Args:
        call, one: the columns that identify a call, and those of a row.
    """
    return f"""), edges AS (
        SELECT {one}, start_s, end_s, start_s > coalesce(max(end_s) OVER (PARTITION BY {one} ORDER BY start_s, end_s
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), -1) AS opens
        FROM spoken WHERE end_s > start_s
    ), islands AS (
        SELECT {one}, min(start_s) AS start_s, max(end_s) AS end_s FROM (
            SELECT *, sum(opens::INTEGER) OVER (PARTITION BY {one} ORDER BY start_s, end_s ROWS UNBOUNDED PRECEDING) AS island
            FROM edges
        ) GROUP BY {one}, island
    ), talk AS (
        SELECT {one}, sum(end_s - start_s) AS talk_s FROM islands GROUP BY ALL
    ), levels AS (
        SELECT {call}, edge_s, sum(change) OVER ordered AS talking, lead(edge_s) OVER ordered AS until_s FROM (
            SELECT {call}, unnest([start_s, end_s]) AS edge_s, unnest([1, -1]) AS change FROM islands WHERE scope = '{SPEAKER}'
        ) WINDOW ordered AS (PARTITION BY {call} ORDER BY edge_s, change DESC ROWS UNBOUNDED PRECEDING)
    ), shared AS (
        SELECT {one}, sum(until_s - edge_s) AS overlap_s FROM islands JOIN levels USING ({call})
        WHERE edge_s >= start_s AND edge_s < end_s AND talking > 1 GROUP BY ALL
    """


def _counted() -> Iterator[str]:
    """Yield the SQL of the columns that are counted over utterances."""
    yield "count(*)::BIGINT AS utterances"
    yield "coalesce(sum(len(regexp_extract_all(text, '\\S+'))), 0)::BIGINT AS words"
    yield "coalesce(sum(duration_s) FILTER (trim(text) <> ''), 0) AS worded_s"
    yield "coalesce(sum(duration_s * pow(10, loudness_dbfs::DOUBLE / 10)), 0) AS loudness_power_s"
    yield "coalesce(sum(duration_s) FILTER (loudness_dbfs IS NOT NULL), 0) AS loudness_s"
    yield per_emotion(COUNT.format("emotion = '$'")) + " AS by_emotion"
    yield per_emotion("coalesce(sum(duration_s) FILTER (emotion = '$'), 0)") + " AS speech_s_by_emotion"
    quarters = (
        f"{name}: " + per_emotion(COUNT.format(f"emotion = '$' AND quarter = {number}"))
        for number, name in enumerate(QUARTERS, start=1)
    )
    yield f"{{{', '.join(quarters)}}} AS by_quarter"
    ordered = "emotion ORDER BY start_s, end_s, recording_id, segment_index"
    yield f"first({ordered}) FILTER (emotion IS NOT NULL) AS first_emotion"
    yield f"last({ordered}) FILTER (emotion IS NOT NULL) AS last_emotion"
    yield transitions("earlier") + " AS transitions"
    for name in DIMENSIONS:
        yield f"coalesce(sum({name}::DOUBLE), 0) AS {name}_sum, count({name})::BIGINT AS {name}_count"
