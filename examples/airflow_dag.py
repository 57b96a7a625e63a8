"""Airflow DAG that annotates new and changed files of a corpus every night. Copy it to the DAG folder, with `ray_job.py`.

Airflow's workers need `ray[default]==2.60.0` and `s3fs`, and in their environment RAY_DASHBOARD, RAY_AUTH_MODE=token,
RAY_AUTH_TOKEN and the credentials for the output. The job runs on the cluster; the task waits.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import BaseOperator, Param, dag, task
from airflow.sdk.exceptions import AirflowFailException
from ray_job import JobFailedError, run_night, stop_run


class Annotate(BaseOperator):
    """Task that runs one night on the cluster. A retry joins the submission that is still running, or resumes its work."""

    run: str | None = None
    killed = False

    def execute(self, context: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Wait for the job. Returns: the reports of its runs. Raises: AirflowFailException where a retry cannot help."""
        params, instance = context["params"], context["ti"]
        self.run = "airflow-" + "".join(c if c.isalnum() else "-" for c in f"{self.dag_id}-{context['run_id']}")
        try:
            return run_night(
                os.environ["RAY_DASHBOARD"],
                self.run,
                params["corpus"],
                params["by"],
                ["--output", params["output"], *params["options"]],
                after=instance.max_tries - self.retries,  # tries before a person cleared the task, to run it anew
                working_dir=params["working_dir"],
                timeout_s=params["timeout_hours"] * 3600,
            )
        except JobFailedError as error:
            if error.retry or self.killed:  # Airflow also ends tasks to move them to another machine
                raise
            raise AirflowFailException(str(error)) from error

    def on_kill(self) -> None:
        """Stop the job. Airflow calls this when a person ends or clears the task, its time is over or its machine shuts down."""
        self.killed = True
        if self.run:
            stop_run(os.environ["RAY_DASHBOARD"], self.run)


@dag(
    schedule="30 1 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,  # two runs at once would be safe, but do some work twice
    params={
        "corpus": Param("s3://BUCKET/corpus", type="string"),
        "output": Param("s3://BUCKET/emotions", type="string"),
        "by": Param(["language"], type="array", items={"type": "string"}, description="columns of the summary"),
        "options": Param([], type="array", items={"type": "string"}, description="more options of jobs.annotate"),
        "working_dir": Param(None, type=["null", "string"], description="source tree, if the cluster's image has none"),
        "timeout_hours": Param(20, type="number", description="a job that runs longer is stopped"),
    },
)
def speech_emotion() -> None:
    """Annotate new files and summarize."""

    @task
    def summarise(reports: list[dict[str, Any]]) -> dict[str, float]:
        return {key: sum(r[key] for r in reports) for key in ("rows", "utterances", "rejected", "audio_hours")}

    # a retry resumes from what is committed
    annotate = Annotate(task_id="annotate", retries=3, retry_delay=timedelta(minutes=5))
    summarise(annotate.output)


speech_emotion()
