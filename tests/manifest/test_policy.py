"""Policies: which rows the conditions exclude, which SQL is refused, and that no value of a manifest reaches a message."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError
from pipeline.manifest.policy import CAUSES, Policy, counted, visible_columns
from pipeline.schema import ROW_SCHEMA


def rows_of(*rows: dict[str, object], **extra: pa.Array) -> pa.Table:
    """Return rows as staging has them; other keys are pass-through columns."""
    names = dict.fromkeys([*ROW_SCHEMA.names, *(name for row in rows for name in row)])
    usual: dict[str, object] = {"audio": "/a.wav", "manifest": "m", "line": 1}
    columns: dict[str, Any] = {}
    for name in names:
        values = [
            row.get(name, f"r{number}" if name == "recording_id" else usual.get(name))
            for number, row in enumerate(rows)
        ]
        kind = ROW_SCHEMA.field(name).type if name in ROW_SCHEMA.names else None
        columns[name] = pa.array(values, kind)
    return pa.table({**columns, **extra})


def causes(policy: Policy, rows: pa.Table) -> list[str | None]:
    policy.check()
    with policy.evaluator() as evaluator:
        return [None if cause == 0 else CAUSES[cause - 1] for cause in evaluator.causes(rows)]


ROLES = rows_of({"role": "agent"}, {"role": "customer"}, {"role": None})


def test_a_null_condition_excludes_nothing_and_admits_nothing() -> None:
    """Fails if a row whose condition is null is excluded by --exclude, or let through by --only."""
    assert causes(Policy(exclude="role = 'agent'"), ROLES) == ["exclude", None, None]
    assert causes(Policy(only="role = 'agent'"), ROLES) == [None, "only", "only"]
    assert causes(Policy(exclude="NULL"), ROLES) == [None] * 3
    assert causes(Policy(only="NULL"), ROLES) == ["only"] * 3


def test_a_row_without_a_channel_uses_the_excluded_one_too() -> None:
    """Fails if the mean of all channels, which includes the excluded one, is let through."""
    rows = rows_of({"channel": 0}, {"channel": 1}, {"channel": None})
    assert causes(Policy(exclude_channel=(1,)), rows) == [None, "exclude_channel", "exclude_channel"]
    assert causes(Policy(exclude_channel=(0, 1)), rows) == ["exclude_channel"] * 3


def test_a_row_is_counted_once_under_the_first_option() -> None:
    """Fails if a row that several options exclude is counted more than once."""
    policy = Policy("role = 'agent'", "role = 'nobody'", (3,))
    rows = rows_of({"role": "agent", "channel": 3}, {"role": "agent", "channel": 0}, {"role": "x", "channel": 0})
    assert causes(policy, rows) == ["exclude_channel", "exclude", "only"]
    with policy.evaluator() as evaluator:
        assert counted(evaluator.causes(rows)) == {"exclude_channel": 1, "exclude": 1, "only": 1}
    assert counted(np.zeros(3, dtype=np.int8)) == {}


def test_conditions_use_the_manifests_names() -> None:
    """Fails if a column is visible only under the name that the output gives it, or two names become one column."""
    row = {"recording_id": "call", "offset_s": 1.0, "duration_s": 2.5, "manifest_label": "x", "manifest_own": "y"}
    names = visible_columns(rows_of(row)).column_names
    assert {"id", "offset", "duration", "channel", "text", "label", "manifest_label", "manifest_own"} <= set(names)
    assert not {"manifest", "line", "own", "offset_s"} & set(names)
    assert len({name.lower() for name in names}) == len(names)
    sql = "id = 'call' AND \"offset\" = 1 AND duration BETWEEN 2 AND 3 AND label = 'x' AND manifest_label = label"
    assert causes(Policy(exclude=sql), rows_of(row)) == ["exclude"]


@pytest.mark.parametrize(
    "values",
    [
        pa.array([1, None], pa.duration("s")), pa.array([1, None], pa.float16()), pa.array([{"a": 1}, None]),
        pa.array([[1], None]), pa.array([1, None], pa.decimal256(50, 2)), pa.array([1, None], pa.timestamp("ns", "Asia/Tokyo")),
        pa.array([b"1", None], pa.binary()), pa.array([10**17, None], pa.timestamp("s")), pa.array([1, None], pa.uint64()),
        pa.array([1, None], pa.time64("us")), pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())),
    ],
    ids=lambda values: str(values.type),
)  # fmt: skip
def test_every_type_of_column_can_be_tested(values: pa.Array) -> None:
    """Fails if a column of a type that DuckDB lacks makes every condition fail, also one on another column."""
    rows = rows_of({}, {}, odd=values)
    assert causes(Policy(exclude="id = 'r1'"), rows) == [None, "exclude"]
    assert causes(Policy(exclude="odd IS NULL"), rows) == [None, "exclude"]


FILES = [
    "EXISTS (SELECT * FROM read_csv('{file}'))", "EXISTS (FROM '{file}')", "EXISTS (FROM read_text('{file}'))",
    "'{file}' IN (SELECT file FROM glob('{folder}/*'))", "EXISTS (FROM read_parquet('https://127.0.0.1:1/x.parquet'))",
    "EXISTS (FROM 's3://bucket/x.parquet')", "EXISTS (FROM rows_of)", "EXISTS (FROM table_outside)",
]  # fmt: skip


@pytest.mark.parametrize("sql", FILES)
def test_a_condition_cannot_read_files_the_network_or_the_program(sql: str, tmp_path: Any) -> None:
    """Fails if SQL opens a file or a URL, or reads a variable of the program; the table is there to be found."""
    file = tmp_path / "secret.csv"
    file.write_text("a\n1\n")
    table_outside = pa.table({"a": [1]})
    assert table_outside.num_rows
    with pytest.raises(ConfigError, match=r"cannot be evaluated: (Permission|Catalog|IO|HTTP|Missing Extension)"):
        causes(Policy(exclude=sql.format(file=file, folder=tmp_path)), ROLES)


@pytest.mark.parametrize("setting", ["enable_external_access", "lock_configuration", "python_enable_replacements"])
def test_the_locks_cannot_be_opened(setting: str) -> None:
    """Fails if a statement could allow access again."""
    import duckdb

    with Policy(exclude="true").evaluator() as evaluator, pytest.raises(duckdb.Error, match="locked"):
        evaluator._connection.execute(f"SET {setting} = {setting != 'lock_configuration'}")


@pytest.mark.parametrize(
    "sql",
    [
        "", "role =", "role = 'a'; DROP TABLE x", "role = 'a') OR (true", "role, id", "role", "1", "duration", "rolle = 'a'",
        "count(*) > 1", "row_number() OVER () > 1", "role = 1.5::INT[]", "SELECT true", "role = 'a' ORDER BY id", "*",
        "unnest([true, false])", "sum(duration) > 3", "max(id) = id", "CAST(role AS INT) = 1",
    ],
)  # fmt: skip
@pytest.mark.parametrize("option", ["exclude", "only"])
def test_what_is_not_a_condition_is_refused(sql: str, option: str) -> None:
    """Fails if an aggregate, whose value would depend on the chunk, a text or two statements count as a condition."""
    with pytest.raises(ConfigError, match=f"^--{option} "):
        causes(Policy(**{option: sql}), ROLES)


def test_an_error_does_not_quote_the_manifest() -> None:
    """Fails if a message about a value that cannot be converted shows the value, which may be a transcript."""
    with pytest.raises(ConfigError, match="TRY_CAST") as raised:
        causes(Policy(exclude="CAST(text AS DATE) > '2020-01-01'"), rows_of({"text": "my secret words"}))
    assert "secret" not in str(raised.value)
    assert raised.value.__cause__ is None


@pytest.mark.parametrize("policy", [Policy("a"), Policy(only="b"), Policy(None, None, (0, 2)), Policy("a", "b", (1,))])
def test_a_policy_is_read_back_from_its_document(policy: Policy) -> None:
    """Fails if a condition is lost between planning and resuming."""
    assert Policy.of(policy.document()) == policy and policy
    assert not Policy() and Policy().document() == {}


@pytest.mark.parametrize(
    "document", [{}, [], None, {"exclude": 1}, {"other": "x"}, {"exclude_channel": ["1"]}, {"exclude_channel": 1}]
)
def test_another_document_is_refused(document: object) -> None:
    """Fails if a damaged policy is read as a policy that excludes less."""
    with pytest.raises((TypeError, ValueError)):
        Policy.of(document)


def test_reports_show_no_query_string() -> None:
    """Fails if a pre-signed URL in a condition is published whole."""
    shown = Policy("audio = 'https://h/a.wav?sig=SECRET'", None, (1,)).shown()
    assert "SECRET" not in str(shown) and shown["exclude_channel"] == [1]


# -- generated conditions, against three-valued logic in Python

_VALUES = {"x": st.none() | st.integers(-3, 3), "role": st.none() | st.sampled_from(["agent", "customer", ""])}
_ROWS = st.lists(st.fixed_dictionaries(_VALUES), min_size=1, max_size=12)
_ATOMS = st.one_of(
    st.tuples(st.just("x"), st.sampled_from(["=", "<", ">=", "<>"]), st.integers(-3, 3)),
    st.tuples(st.just("role"), st.sampled_from(["=", "<>"]), st.sampled_from(["agent", "customer", ""])),
    st.tuples(st.sampled_from(["x", "role"]), st.just("IS NULL"), st.none()),
)
_CONDITIONS = st.recursive(
    _ATOMS,
    lambda inner: st.tuples(st.sampled_from(["AND", "OR"]), inner, inner) | st.tuples(st.just("NOT"), inner),
    max_leaves=6,
)


def _sql(tree: Any) -> str:
    if tree[0] in ("AND", "OR"):
        return f"({_sql(tree[1])} {tree[0]} {_sql(tree[2])})"
    if tree[0] == "NOT":
        return f"(NOT {_sql(tree[1])})"
    column, operator, value = tree
    return f"{column} IS NULL" if operator == "IS NULL" else f"{column} {operator} {value!r}"


def _truth(tree: Any, row: dict[str, Any]) -> bool | None:
    if tree[0] in ("AND", "OR"):
        decisive = tree[0] == "OR"
        values = [_truth(each, row) for each in tree[1:]]
        return decisive if decisive in values else None if None in values else not decisive
    if tree[0] == "NOT":
        value = _truth(tree[1], row)
        return None if value is None else not value
    column, operator, value = tree
    mine = row[column]
    if operator == "IS NULL":
        return mine is None
    if mine is None:
        return None
    return {"=": mine == value, "<>": mine != value}[operator] if operator in ("=", "<>") else (
        mine < value if operator == "<" else mine >= value
    )  # fmt: skip


@given(_ROWS, _CONDITIONS, _CONDITIONS)
@settings(max_examples=100, deadline=None)
def test_generated_conditions_agree_with_three_valued_logic(
    rows: list[dict[str, Any]], exclude: Any, only: Any
) -> None:
    """Fails if a row is excluded that should not be, or the other way round, for any combination of nulls."""
    columns = {"x": pa.int64(), "role": pa.string()}
    arrays = {name: pa.array([row[name] for row in rows], kind) for name, kind in columns.items()}
    table = rows_of(*({} for _ in rows), **arrays)
    expected = [
        "exclude" if _truth(exclude, row) else None if _truth(only, row) else "only" for row in rows
    ]  # fmt: skip
    assert causes(Policy(_sql(exclude), _sql(only)), table) == expected
