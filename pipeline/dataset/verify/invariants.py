"""The invariants of an output as a closed list of codes, and the result of an audit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from pipeline.layout import attempts_folder


class Invariant(StrEnum):
    """An invariant of an output. The value is the code printed for its violations."""

    # the dataset and its plans
    DATASET_DAMAGED = "DATASET_DAMAGED"  # `_dataset.json` is missing or cannot be read
    DATASET_MIXED = "DATASET_MIXED"  # a plan has other settings, models or column types than the dataset
    PLAN_DAMAGED = "PLAN_DAMAGED"  # `plan.json` or a file it names is missing, unreadable or inconsistent
    PLAN_GAP = "PLAN_GAP"  # a plan number is missing: resuming would not find the plans after it
    ID_TWICE = "ID_TWICE"  # a recording id is twice in a plan, or in two, and the first did not reject it
    INDEX = "INDEX"  # the index of earlier plans, `_runs/index`, states other ids, rejects or settings than a plan
    RETRY = "RETRY"  # a plan takes over rows of a plan that is not published, or not as many as it states
    # parts
    PART_MISSING = "PART_MISSING"  # a shard of a published plan has no part
    PART_TWICE = "PART_TWICE"  # a shard has parts in two folders: readers get its rows twice
    PART_MISPLACED = "PART_MISPLACED"  # the folder name has other partition values than the plan's rows
    PART_BEYOND_PLAN = "PART_BEYOND_PLAN"  # the plan has no shard of that number
    PART_UNREADABLE = "PART_UNREADABLE"  # truncated, empty, not Parquet, or pages that fail their checksum
    ORPHAN = "ORPHAN"  # a file among the results that no plan names; readers would read it as rows
    SCHEMA = "SCHEMA"  # columns or types differ from the plan's
    # receipts
    RECEIPT_MISSING = "RECEIPT_MISSING"  # a Parquet file without a readable receipt in its footer
    RECEIPT_PLACE = "RECEIPT_PLACE"  # the receipt of another shard
    RECEIPT_ROWS = "RECEIPT_ROWS"  # not the number of rows of the planned shard
    RECEIPT_IDS = "RECEIPT_IDS"  # not the ids of the planned shard
    RECEIPT_CONFIG = "RECEIPT_CONFIG"  # settings or models differ from the plan's
    RECEIPT_UTTERANCES = "RECEIPT_UTTERANCES"  # not the number of rows in the file
    RECEIPT_REJECTS = "RECEIPT_REJECTS"  # rejects of rows that do not exist, or twice
    # rows
    ROW_LOST = "ROW_LOST"  # a plan row is neither among the utterances nor among the rejects of its part
    ROW_TWICE = "ROW_TWICE"  # a plan row is among both
    ROW_UNKNOWN = "ROW_UNKNOWN"  # utterances of a recording that the shard does not hold
    UTTERANCE_ID = "UTTERANCE_ID"  # not composed of the row's recording id and segment index
    UTTERANCE_TWICE = "UTTERANCE_TWICE"  # two rows have the same recording and segment
    SEGMENT_GAP = "SEGMENT_GAP"  # the segments of a recording are not 0 to n-1
    RUN_ID = "RUN_ID"  # the row names another run
    PLAN_COLUMNS = "PLAN_COLUMNS"  # a manifest column differs from the plan row
    SCORES = "SCORES"  # not probabilities that add up to 1
    CONFIDENCE = "CONFIDENCE"  # confidence is not the highest score, or margin is not its lead over the second
    LABEL = "LABEL"  # label is unknown, does not match the emotion, or does not have the highest score
    LANGUAGE = "LANGUAGE"  # an utterance marked as without a model for its language has results, or a model covers it
    TEXTS = "TEXTS"  # a text is written although `--texts` is none, or as words although it is hash
    TRANSCRIPT = "TRANSCRIPT"  # `asr_flag` or `words` do not fit the text
    EMBEDDING = "EMBEDDING"  # missing, or a number in it is not finite
    # results derived from the receipts
    PUBLISHED_EARLY = "PUBLISHED_EARLY"  # `_SUCCESS`, report or rejects exist although shards have no part
    REJECTS_MISSING = "REJECTS_MISSING"
    REJECTS_UNREADABLE = "REJECTS_UNREADABLE"
    REJECTS_ROWS = "REJECTS_ROWS"  # not the rejects of the plan and its receipts
    REPORT_MISSING = "REPORT_MISSING"
    REPORT_UNREADABLE = "REPORT_UNREADABLE"
    REPORT_COUNTS = "REPORT_COUNTS"  # counts differ from the sums over plan and receipts


@dataclass(frozen=True, slots=True)
class Violation:
    """One violated invariant: its code, the file's key, and a sentence that describes it."""

    invariant: Invariant
    key: str
    sentence: str

    def line(self) -> str:
        """Return `CODE  key  sentence` as one printable line."""
        return f"{self.invariant}  {printable(self.key)}  {printable(self.sentence)}"


Tell = Callable[[Violation], None]


def printable(text: str) -> str:
    """Escape the unprintable characters of an external text, so that it fits on one terminal line."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


@dataclass(frozen=True, slots=True)
class PlanState:
    """The progress of one plan, and the counts of those of its parts that could be read.

    Attributes:
        rows: manifest rows, including those rejected while planning.
        rejects: rejects of planning and of the run.
        failed_tries: recorded failed attempts to finish the plan.
        excluded: rows of the manifests that the plan's policy excluded; they are not among its rows.
        retries: rows that earlier plans rejected and this plan takes over, by earlier plan.
        erased: rows that were erased from the plan; they are not among its rows.
        erases: rows that it erases from other plans, if it is an erasure.
    """

    plan: str
    rows: int
    shards: int
    parts: int
    published: bool
    utterances: int
    rejects: int
    failed_tries: int = 0
    excluded: int = 0
    retries: Mapping[str, int] = field(default_factory=dict)
    erased: int = 0
    erases: int | None = None

    @property
    def finished(self) -> bool:
        """Return whether every shard has its part and the results are published."""
        return self.published and self.parts == self.shards

    def line(self) -> str:
        """Return the line of this plan in the summary."""
        if self.erases is not None:
            state = "" if self.finished else ", unfinished: finish it with jobs.erase OUT --finish"
            return f"plan {self.plan}: erasure of {self.erases:,} rows{state}"
        if not self.finished:
            rest = "" if self.parts < self.shards else ", not published"
            rest += f", {self.failed_tries:,} failed tries in {attempts_folder(self.plan)}" if self.failed_tries else ""
            return f"plan {self.plan}: unfinished: {self.parts:,} of {self.shards:,} shards{rest}"
        return (
            f"plan {self.plan}: {self.rows:,} rows, {self.utterances:,} utterances and {self.rejects:,} rejects in "
            f"{self.shards:,} shards, published"
            + (f"; {self.excluded:,} rows excluded" if self.excluded else "")
            + (f"; {self.erased:,} rows erased" if self.erased else "")
            + "".join(f"; {count:,} rows retried from plan {plan}" for plan, count in self.retries.items())
        )


@dataclass(frozen=True, slots=True)
class Audit:
    """The result of an audit.

    Attributes:
        deep: whether all data were read, or only footers and ids.
        unreadable_plans: number of plans whose shards could not be checked.
        leftovers: number of temporaries and shard files that no plan names; harmless, removed by `jobs.prune`.
    """

    output: str
    deep: bool
    plans: tuple[PlanState, ...]
    unreadable_plans: int
    violations: tuple[Violation, ...]
    leftovers: int
    leftover_bytes: int

    @property
    def rows(self) -> int:
        """Number of manifest rows: a row that was retried counts once."""
        return sum(plan.rows for plan in self.plans) - self.retried

    @property
    def rejects(self) -> int:
        """Number of rows whose last try was rejected."""
        return sum(plan.rejects for plan in self.plans) - self.retried

    @property
    def retried(self) -> int:
        """Number of rejected rows that a later plan took over."""
        return sum(count for plan in self.plans for count in plan.retries.values())

    @property
    def status(self) -> str:
        """Return `violated`, `unfinished` or `sound`; the first that applies."""
        if self.violations:
            return "violated"
        return "sound" if self.plans and all(plan.finished for plan in self.plans) else "unfinished"

    def as_dict(self) -> dict[str, Any]:
        """Return a dictionary that can be written as JSON."""
        document = {"status": self.status, **asdict(self)}
        for violation in document["violations"]:
            violation["promise"] = violation.pop("invariant")  # the key's name in earlier versions
        return document
