"""Dagster asset for the dataset of utterances, its checks, and a nightly schedule: `dagster dev -f` this file.

Each partition is the folder of one day. Dagster's process needs `ray[default]==2.60.0` and `s3fs`, `ray_job.py` beside this
file, and in its environment RAY_DASHBOARD, RAY_AUTH_MODE=token, RAY_AUTH_TOKEN and the credentials for the output.
"""

# no postponed annotations: Dagster needs annotations as types, not as text
from dagster import (
    AssetCheckExecutionContext,
    AssetCheckResult,
    AssetExecutionContext,
    ConfigurableResource,
    DagsterExecutionInterruptedError,
    DagsterRun,
    DailyPartitionsDefinition,
    Definitions,
    EnvVar,
    Failure,
    MaterializeResult,
    RetryPolicy,
    asset,
    asset_check,
    build_schedule_from_partitioned_job,
    define_asset_job,
)
from pydantic import Field
from ray_job import Ended, JobFailedError, run_command, run_night, stop_run


class Cluster(ConfigurableResource):
    """The Ray cluster, the corpus and the output.

    Attributes:
        dashboard: URL of the Ray cluster's dashboard.
        corpus: folder or prefix of one day's audio; `{day}` is replaced by the partition.
        output: location of the output, such as s3://bucket/emotions.
        by: columns of the summary.
        options: more options of jobs.annotate.
        limits: tests of jobs.check.
        working_dir: source tree to upload; empty if the cluster's image contains the code.
        timeout_hours: a job that runs longer is stopped.
    """

    dashboard: str
    corpus: str
    output: str
    by: list[str] = Field(default_factory=lambda: ["language"])
    options: list[str] = Field(default_factory=list)
    limits: list[str] = Field(default_factory=lambda: ["--max-reject-share", "0.05"])
    working_dir: str = ""
    timeout_hours: float = 20.0

    def annotate(self, context: AssetExecutionContext) -> list[dict]:
        """Run one night. Returns: the reports of its runs."""
        day, run = context.partition_key, _name(context.run, "utterances")
        corpus = self.corpus.replace("{day}", day)
        try:
            return run_night(
                self.dashboard,
                f"{run}-{day}",
                corpus,
                self.by,
                ["--output", self.output, *self.options],
                working_dir=self.working_dir or None,
                timeout_s=self.timeout_hours * 3600,
                log=context.log.info,
            )
        except DagsterExecutionInterruptedError:
            stop_run(self.dashboard, f"{run}-{day}")
            raise
        except JobFailedError as error:
            raise Failure(str(error), allow_retries=error.retry) from error

    def test(self, context: AssetCheckExecutionContext, command: list[str], failed: set[int]) -> AssetCheckResult:
        """Run a test of the output. `failed` is the set of exit statuses by which the command says that a test failed."""
        run = _name(context.run, command[0])
        words = ["python", "-m", command[0], self.output, *command[1:]]
        try:
            ended: Ended = run_command(
                self.dashboard,
                run,
                words,
                working_dir=self.working_dir or None,
                timeout_s=self.timeout_hours * 3600,
                log=context.log.info,
            )
        except DagsterExecutionInterruptedError:
            stop_run(self.dashboard, run)
            raise
        if ended.exit_status not in {0, *failed}:
            raise Failure(str(ended.failure()), allow_retries=ended.failure().retry)
        return AssetCheckResult(passed=ended.exit_status == 0, metadata={"log": "\n".join(ended.last_lines)})


def _name(run: DagsterRun, task: str) -> str:
    """Return the name of a submission: that of the first run, of which a retried run is a copy."""
    return f"dagster-{run.root_run_id or run.run_id}-{task}"


DAYS = DailyPartitionsDefinition("2026-01-01")
RETRIES = RetryPolicy(max_retries=3, delay=300)
"""A retry joins the submission that is still running, or resumes from what is committed."""


@asset(partitions_def=DAYS, retry_policy=RETRIES, pool="speech-emotion")
def utterances(context: AssetExecutionContext, cluster: Cluster) -> MaterializeResult:
    """Materialise the table with one row for each labelled span of speech: the files of one day that are new or changed."""
    reports = cluster.annotate(context)
    totals = {key: sum(r[key] for r in reports) for key in ("rows", "utterances", "rejected", "audio_hours")}
    return MaterializeResult(metadata={**totals, "runs": [r["run_id"] for r in reports], "output": cluster.output})


@asset_check(asset=utterances)
def sound(context: AssetCheckExecutionContext, cluster: Cluster) -> AssetCheckResult:
    """Check that each row of each plan was annotated or rejected exactly once, and that every file is intact."""
    return cluster.test(context, ["jobs.verify"], failed={1, 3})


@asset_check(asset=utterances)
def within_limits(context: AssetCheckExecutionContext, cluster: Cluster) -> AssetCheckResult:
    """Check the output against the limits of `Cluster.limits`."""
    return cluster.test(context, ["jobs.check", *cluster.limits], failed={3})


nightly = build_schedule_from_partitioned_job(
    define_asset_job("nightly", [utterances], partitions_def=DAYS), hour_of_day=1, minute_of_hour=30
)
definitions = Definitions(
    assets=[utterances],
    asset_checks=[sound, within_limits],
    schedules=[nightly],
    resources={
        "cluster": Cluster(
            dashboard=EnvVar("RAY_DASHBOARD"), corpus="s3://BUCKET/corpus/day={day}", output="s3://BUCKET/emotions"
        )
    },
)
