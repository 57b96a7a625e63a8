"""Airflow DAG that annotates new and changed files of a corpus every night. Copy it to the DAG folder, with `ray_job.py`.

Airflow's workers need `ray[default]==2.60.0` and `s3fs`, and in their environment RAY_DASHBOARD, RAY_AUTH_MODE=token,
RAY_AUTH_TOKEN and the credentials for the output. The job runs on the cluster; the task waits.
"""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import Param, dag, get_current_context, task
from ray_job import run_night


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
    },
)
def speech_emotion() -> None:
    """Annotate new files and summarize."""

    @task(retries=3, retry_delay=timedelta(minutes=5))  # a retry resumes from what is committed
    def run() -> list[dict[str, Any]]:
        context = get_current_context()
        params, instance = context["params"], context["ti"]
        options = ["--output", params["output"], *params["options"]]
        name = "".join(c if c.isalnum() else "-" for c in context["run_id"])
        submission = f"airflow-{name}-{instance.try_number}"
        return run_night(os.environ["RAY_DASHBOARD"], submission, params["corpus"], params["by"], options)

    @task
    def summarise(reports: list[dict[str, Any]]) -> dict[str, float]:
        return {key: sum(r[key] for r in reports) for key in ("rows", "utterances", "rejected", "audio_hours")}

    summarise(run())


speech_emotion()
