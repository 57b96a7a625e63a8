"""Sums of finished runs by speaker, day or any column, in files that can be added up.

    summaries/<names>/_summary.json     definition of the groups
    summaries/<names>/<plan>.parquet    one row per group: sums over the utterances of that plan

Each finished plan is summarized once, into one file named after it, with put-if-absent: a second writer finds the file
of the first. Every utterance is counted in one file only, so a reader can add up the rows of a group over all files
without counting any twice. `merged` does so, and computes shares and means from the sums.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.analytics.emotion_sql import COUNT, per_emotion, transitions
from pipeline.analytics.summary_columns import MERGED_COLUMNS, SUMMARY_COLUMNS
from pipeline.config.further import BY_MODEL
from pipeline.dataset.compatibility import read_columns
from pipeline.dataset.plan import Plan, parquet_bytes
from pipeline.dataset.reader import TIME_ZONE, Rows, asking, dataset, quoted
from pipeline.errors import ConfigError, did_you_mean
from pipeline.layout import SUMMARY, summary_folder, summary_key
from pipeline.schema import DIMENSIONS, EMOTIONS, NULL_REASONS, Column, described
from pipeline.storage.documents import FORMAT, read_document
from pipeline.storage.store import Store

SUMS = (
    "recordings",
    "utterances",
    "speech_s",
    "length_s",
    "by_emotion",
    "speech_s_by_emotion",
    "transitions",
    "first_emotion",
    "last_emotion",
    "confidence_sum",
    "confidence_min",
    "confidence_max",
)
TIMED = ("timed_speech_s", "timed_length_s")
"""Sums over only those recordings whose duration the manifest gives; files of earlier versions lack them."""
COUNTED = "confidence_count"
"""Number of utterances with a confidence; in files of earlier versions, which lack it, all have one."""
OUTPUTS = ("by_label", "by_null_reason", *(f"{name}_{of}" for name in DIMENSIONS for of in ("sum", "count")))
"""Sums over what models of any kind predict; files of datasets before schema version 3 lack them."""
_READ = ("label", "emotion_null_reason", *DIMENSIONS)
"""Columns that `OUTPUTS` are computed from."""
_EXPRESSION = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(?!=)(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Groups:
    """Grouping: the name of each group column, and its SQL expression over `utterances`."""

    by: Mapping[str, str]

    @property
    def folder(self) -> str:
        """Return the folder of the summaries."""
        return summary_folder(tuple(self.by))


def parse_groups(words: Sequence[str], columns: Iterable[str]) -> Groups:
    """Parse groups such as `speaker,channel` or `day=strftime(recorded_at, '%Y-%m-%d')`.

    Raises: ConfigError for a missing column, a repeated name, or a name that the sums use.
    """
    by: dict[str, str] = {}
    known = list(columns)
    for word in words:
        named = _EXPRESSION.fullmatch(word)
        for name, expression in [named.groups()] if named else [(name, quoted(name)) for name in word.split(",")]:
            if not named and name not in known:
                near = did_you_mean(name, known)
                raise ConfigError(f"--by {name}: no such column{near}; an expression is written {name}=SQL")
            if name in (*SUMS, *TIMED, *OUTPUTS, BY_MODEL) or name in by:
                problem = "is given twice" if name in by else "is a column of every summary"
                raise ConfigError(
                    f"--by {name}: {name!r} {problem}; give it another name, as in my_{name}={expression}"
                )
            by[name] = expression
    return Groups(by)


def undivided(table: pa.Table, groups: Groups) -> list[str]:
    """Return the groups whose expression has `//` and whose values are not whole numbers.

    DuckDB rounds the result of `//` for integers only: `start_s // 60` is 1.025 at 61.5 s, which gives nearly one group
    per utterance.
    """
    return [
        name
        for name, expression in groups.by.items()
        if "//" in expression
        and (pa.types.is_floating(table.field(name).type) or pa.types.is_decimal(table.field(name).type))
        and any(value is not None and value % 1 for value in table[name].to_pylist())
    ]


def summarize(rows: Rows, groups: Groups) -> Iterator[tuple[str, int]]:
    """Write the missing summaries. Yields: each newly summarized plan, and its number of groups.

    Costs one pass over the necessary columns of each new plan. Memory: DuckDB, which spills to disk, and one plan's
    groups.
    Raises: ConfigError when the folder has summaries by other expressions, or an expression is not valid.
    """
    store = rows.store
    zone = _existing_zone(store, groups)
    done = {entry.key for entry in store.list(groups.folder)}
    for plan in rows.plans:
        key = summary_key(groups.folder, plan.plan)
        if key in done:
            continue
        of_plan = rows.of([plan.plan])
        with asking(zone, utterances=of_plan.utterances(), planned=of_plan.planned()) as connection:
            sums = connection.sql(_sums(groups, plan)).to_arrow_table()
        # after the query, so that an invalid expression does not claim the name
        claim = {"format": FORMAT, "by": dict(groups.by), "time_zone": zone}
        if not store.put_if_absent(f"{groups.folder}/{SUMMARY}", json.dumps(claim, indent=1).encode()):
            _existing_zone(store, groups)
        rows.require_no_erasure_since()
        store.put_if_absent(key, parquet_bytes(_described(sums, groups, SUMMARY_COLUMNS)))
        yield plan.plan, sums.num_rows


def _existing_zone(store: Store, groups: Groups) -> str | None:
    """Return the time zone of existing summaries: None, the machine's, for those of earlier versions; UTC without any.

    Raises: ConfigError when they use other expressions.
    """
    try:
        definition = read_document(store, f"{groups.folder}/{SUMMARY}")
    except FileNotFoundError:
        return TIME_ZONE
    existing = definition["by"]
    if existing != dict(groups.by):
        raise ConfigError(
            f"{store.root}/{groups.folder} already contains summaries by {existing}; choose another name for yours: NAME=SQL"
        )
    zone: str | None = definition.get("time_zone")
    return zone


def _sums(groups: Groups, plan: Plan) -> str:
    """Return the query for one row per group of a plan.

    It aggregates by recording first, so that a recording's length counts once per group; no recording spans two plans.
    """
    keys = [f"k{number}" for number in range(len(groups.by))]
    given = ", ".join(f"({sql}) AS {key}" for key, sql in zip(keys, groups.by.values(), strict=True))
    named = ", ".join(f"sums.{key} AS {quoted(name)}" for key, name in zip(keys, groups.by, strict=True))
    key_list = ", ".join(keys)
    outputs, further = (_outputs() if plan.settings.schema_version > 2 else {}), plan.settings.also
    predicted = f", {', '.join(_READ)}" if outputs else ""
    for number, name in enumerate(further):
        read = ", ".join(f"{each}: {BY_MODEL}.{name}.{each}" for each in ("emotion", "confidence", *_READ))
        predicted += f", {{{read}}} AS m{number}"
    if further:
        outputs[BY_MODEL] = _struct({name: _struct(_further(f"m{number}.")) for number, name in enumerate(further)})
    columns = (*SUMS, *TIMED, COUNTED, *outputs)
    return f"""
    WITH keyed AS (
        SELECT {given}, recording_id, emotion, duration_s, end_s, confidence::DOUBLE AS confidence{predicted},
            lag(emotion) OVER ordered AS earlier,
            row_number() OVER ordered = 1 AS opens,
            lead(segment_index) OVER ordered IS NULL AS closes
        FROM utterances WINDOW ordered AS (PARTITION BY recording_id ORDER BY segment_index)
    ), lengths AS (
        SELECT recording_id, any_value(planned.duration_s) AS timed_s,
            coalesce(any_value(planned.duration_s), max(end_s) - coalesce(any_value(offset_s), 0)) AS length_s
        FROM keyed JOIN planned USING (recording_id) GROUP BY recording_id
    ), recordings AS (
        SELECT {key_list}, recording_id, sum(duration_s) AS speech_s FROM keyed GROUP BY ALL
    ), long AS (
        SELECT {key_list}, count(*)::BIGINT AS recordings, sum(length_s) AS length_s,
            sum(speech_s) FILTER (timed_s IS NOT NULL) AS timed_speech_s, sum(timed_s) AS timed_length_s
        FROM recordings JOIN lengths USING (recording_id) GROUP BY ALL
    ), sums AS (
        SELECT {key_list}, count(*)::BIGINT AS utterances, sum(duration_s) AS speech_s,
            {per_emotion(COUNT.format("emotion = '$'"))} AS by_emotion,
            {per_emotion("sum(duration_s) FILTER (emotion = '$')")} AS speech_s_by_emotion,
            {transitions("earlier")} AS transitions,
            {per_emotion(COUNT.format("emotion = '$' AND opens"))} AS first_emotion,
            {per_emotion(COUNT.format("emotion = '$' AND closes"))} AS last_emotion,
            sum(confidence) AS confidence_sum, count(confidence)::BIGINT AS {COUNTED},
            min(confidence) AS confidence_min, max(confidence) AS confidence_max{_listed(outputs)}
        FROM keyed GROUP BY ALL
    )
    SELECT {named}, '{plan.plan}' AS run_id, {", ".join(columns)}
    FROM sums JOIN long ON {" AND ".join(f"sums.{key} IS NOT DISTINCT FROM long.{key}" for key in keys)} ORDER BY ALL
    """


def _struct(fields: Mapping[str, str]) -> str:
    """Return an SQL struct of expressions by their names."""
    return "{" + ", ".join(f"{quoted(name)}: {expression}" for name, expression in fields.items()) + "}"


def _listed(columns: Mapping[str, str]) -> str:
    """Return expressions by their names as the end of a list of columns."""
    return "".join(f", {expression} AS {name}" for name, expression in columns.items())


def _outputs(of: str = "") -> dict[str, str]:
    """Return the SQL of each of `OUTPUTS`, of the columns whose names begin with `of`."""
    reasons = (f"{each}: count(*) FILTER ({of}emotion_null_reason = '{each}')::BIGINT" for each in NULL_REASONS)
    outputs = {
        "by_label": f"(histogram({of}label) FILTER ({of}label IS NOT NULL))::MAP(VARCHAR, BIGINT)",
        "by_null_reason": f"{{{', '.join(reasons)}}}",
    }
    for name in DIMENSIONS:
        outputs |= {f"{name}_sum": f"sum({of}{name}::DOUBLE)", f"{name}_count": f"count({of}{name})::BIGINT"}
    return outputs


def _further(of: str) -> dict[str, str]:
    """Return the SQL of each field of a further model's sums, of the columns whose names begin with `of`."""
    return {
        "by_emotion": per_emotion(f"count(*) FILTER ({of}emotion = '$')::BIGINT"),
        "confidence_sum": f"sum({of}confidence::DOUBLE)",
        COUNTED: f"count({of}confidence)::BIGINT",
        **_outputs(of),
        "compared": f"count(*) FILTER (emotion IS NOT NULL AND {of}emotion IS NOT NULL)::BIGINT",
        "agreed": f"count(*) FILTER (emotion = {of}emotion)::BIGINT",
    }


def merged(store: Store, groups: Groups) -> pa.Table:
    """Combine all summaries into one row per group: counts, shares and means.

    Returns: the group columns and `recordings`, `utterances`, `speech_s`; `length_s`, the length of the whole
        recordings, by the manifest's duration or else the end of the last utterance; `speech_share`, see
        docs/summaries.md; `share` of the utterances and `share_s` of their seconds per emotion; `confidence` (mean),
        its minimum and maximum; `transitions` (from, to); `changes`, the share of neighbouring utterances that differ;
        `opens_with` and `closes_with`, the emotions with which recordings most often begin and end; from schema version
        3, `by_label`, `null_share` by reason, and the means of the dimensions; `by_model`, the same of each further model
        with its `agreement`, the share of utterances with the main model's emotion among those to which both give one.
    """
    keys = sorted(entry.key for entry in store.list(groups.folder) if entry.key.endswith(".parquet"))
    schema = read_columns(_schema(store, key) for key in keys)
    later = [*(pa.field(name, pa.float64()) for name in TIMED), pa.field(COUNTED, pa.int64())]
    schema = pa.schema([*schema, *(field for field in later if field.name not in schema.names)])
    with asking(summaries=dataset(store, groups.folder, keys, schema)) as connection:
        table = connection.sql(_shares(groups, schema)).to_arrow_table()
    return _described(table, groups, MERGED_COLUMNS)


def _described(table: pa.Table, groups: Groups, columns: Mapping[str, Column]) -> pa.Table:
    """Add the descriptions of the columns that are not the group's."""
    fields = list(table.schema)
    keys = len(groups.by)
    return pa.table(table.columns, schema=pa.schema([*fields[:keys], *described(fields[keys:], columns)]))


def _schema(store: Store, key: str) -> pa.Schema:
    with store.open(key) as file:
        return pq.read_schema(file)


def _shares(groups: Groups, schema: pa.Schema) -> str:
    names = ", ".join(map(quoted, groups.by))
    both = [(one, other) for one in EMOTIONS for other in EMOTIONS]
    pairs = " + ".join(f"sum(transitions.{one}.{other})" for one, other in both)
    same = " + ".join(f"sum(transitions.{emotion}.{emotion})" for emotion in EMOTIONS)
    moved = per_emotion(per_emotion("sum(transitions.€.$)::BIGINT").replace("€", "$"))

    def most(column: str) -> str:
        ranked = ", ".join(f"{{count: sum({column}.{emotion}), emotion: '{emotion}'}}" for emotion in EMOTIONS)
        return f"CASE WHEN greatest({ranked}).count > 0 THEN greatest({ranked}).emotion END"

    predicted = _merged_outputs() if "by_label" in schema.names else {}
    if BY_MODEL in schema.names:
        further = [field.name for field in schema.field(BY_MODEL).type]
        predicted[BY_MODEL] = _struct({name: _struct(_merged_further(f"{BY_MODEL}.{name}.")) for name in further})
    return f"""
    SELECT {names}, sum(recordings)::BIGINT AS recordings, sum(utterances)::BIGINT AS utterances,
        sum(speech_s) AS speech_s, sum(length_s) AS length_s,
        sum(timed_speech_s) / nullif(sum(timed_length_s), 0) AS speech_share,
        {per_emotion("sum(by_emotion.$) / sum(utterances)")} AS share,
        {per_emotion("coalesce(sum(speech_s_by_emotion.$), 0) / nullif(sum(speech_s), 0)")} AS share_s,
        sum(confidence_sum) / nullif(sum(coalesce({COUNTED}, utterances)), 0) AS confidence,
        min(confidence_min) AS confidence_min, max(confidence_max) AS confidence_max,
        {moved} AS transitions, 1 - ({same}) / nullif({pairs}, 0) AS changes,
        {most("first_emotion")} AS opens_with, {most("last_emotion")} AS closes_with{_listed(predicted)}
    FROM summaries GROUP BY ALL ORDER BY ALL
    """


def _merged_outputs(of: str = "") -> dict[str, str]:
    """Return the SQL of the columns that `merged` computes from `OUTPUTS`, whose names begin with `of`."""
    entries = f"flatten(list(map_entries({of}by_label)) FILTER ({of}by_label IS NOT NULL))"
    # names that no group has: a group of the same name would be taken for the variable
    labels = f"list_sort(list_distinct([__entry.key FOR __entry IN {entries}]))"
    count = f"list_sum([__entry.value FOR __entry IN {entries} IF __entry.key = __label])::BIGINT"
    shares = (f"{reason}: sum({of}by_null_reason.{reason}) / {_counted(of)}" for reason in NULL_REASONS)
    return {
        "by_label": f"map_from_entries([{{key: __label, value: {count}}} FOR __label IN {labels}])",
        "null_share": f"{{{', '.join(shares)}}}",
        **{f"mean_{name}": f"sum({of}{name}_sum) / nullif(sum({of}{name}_count), 0)" for name in DIMENSIONS},
    }


def _merged_further(of: str) -> dict[str, str]:
    """Return the SQL of each field that `merged` computes from a further model's sums, whose names begin with `of`."""
    return {
        "share": per_emotion(f"sum({of}by_emotion.$) / {_counted(of)}"),
        "confidence": f"sum({of}confidence_sum) / nullif(sum({of}{COUNTED}), 0)",
        **_merged_outputs(of),
        "compared": f"sum({of}compared)::BIGINT",
        "agreement": f"sum({of}agreed) / nullif(sum({of}compared), 0)",
    }


def _counted(of: str) -> str:
    """Return the SQL for the number of utterances in files that have the sums `of`."""
    return f"sum(utterances) FILTER ({of}by_null_reason IS NOT NULL)"
