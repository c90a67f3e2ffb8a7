"""MLflow tracking."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path

from vlkd_cli.reports.sink import Sink

RUN_ID = "mlflow_run_id"
"""The file of a run folder that names the MLflow run that a resumed run continues."""


class MLflowSink(Sink):
    """Values as metrics of an MLflow run.

    Letters that MLflow does not take in names of metrics become `_` (`R@1`: `R_1`). MLflow deletes
    nothing: what an interrupted run logged beyond the step that it continues from appears twice.

    Args:
        experiment: the experiment that the run appears in, made where it is missing.
        uri: address of the tracking server, or a local store; by default MLFLOW_TRACKING_URI.
    """

    def __init__(
        self,
        folder: Path,
        resume_step: int | None = None,
        *,
        experiment: str = "vlkd",
        uri: str | None = None,
    ) -> None:
        super().__init__(folder, resume_step)
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        note = folder / RUN_ID
        if resume_step is not None and note.is_file():
            self._run_id = note.read_text(encoding="utf-8").strip()
            self._client.update_run(self._run_id, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(experiment)
        number = (
            self._client.create_experiment(experiment) if found is None else found.experiment_id
        )
        self._run_id = self._client.create_run(number, run_name=folder.name).info.run_id
        note.write_text(self._run_id + "\n", encoding="utf-8")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [
            Metric(re.sub(r"[^\w\-. /]", "_", name), float(value), now, step)
            for name, value in values.items()
        ]
        self._client.log_batch(self._run_id, metrics=metrics)

    def finish(self) -> None:
        self._client.set_terminated(self._run_id)
