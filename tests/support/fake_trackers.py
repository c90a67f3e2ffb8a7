"""Stand-ins for the packages of experiment trackers, with the part of their public API that the
sinks use: trackio 0.27, mlflow 3."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple


class Metric(NamedTuple):
    """`mlflow.entities.Metric`."""

    key: str
    value: float
    timestamp: int
    step: int


class Run:
    """`trackio.Run`."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.logged: list[tuple[int | None, dict[str, Any]]] = []
        self.finished = False

    def log(self, metrics: dict[str, Any], step: int | None = None) -> None:
        assert not self.finished
        self.logged.append((step, metrics))

    def finish(self) -> None:
        self.finished = True


class MlflowClient:
    """`mlflow.MlflowClient`; one store for each address."""

    stores: dict[str | None, MlflowClient] = {}

    def __init__(self, tracking_uri: str | None = None) -> None:
        self.uri = tracking_uri
        store = self.stores.setdefault(tracking_uri, self)
        self.experiments: dict[str, str] = {} if store is self else store.experiments
        self.runs: dict[str, dict[str, Any]] = {} if store is self else store.runs

    def get_experiment_by_name(self, name: str) -> SimpleNamespace | None:
        found = self.experiments.get(name)
        return None if found is None else SimpleNamespace(experiment_id=found)

    def create_experiment(self, name: str) -> str:
        self.experiments[name] = str(len(self.experiments))
        return self.experiments[name]

    def create_run(self, experiment_id: str, run_name: str | None = None) -> SimpleNamespace:
        run_id = f"run{len(self.runs)}"
        self.runs[run_id] = {
            "experiment": experiment_id, "name": run_name, "metrics": [], "status": "RUNNING",
        }  # fmt: skip
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

    def update_run(self, run_id: str, status: str | None = None, name: str | None = None) -> None:
        self.runs[run_id]["status"] = status

    def log_batch(self, run_id: str, metrics: list[Metric]) -> None:
        self.runs[run_id]["metrics"] += metrics

    def set_terminated(self, run_id: str, status: str = "FINISHED") -> None:
        self.runs[run_id]["status"] = status


def fake_trackers() -> dict[str, ModuleType]:
    """Modules for `sys.modules`, with an empty store."""
    MlflowClient.stores.clear()
    trackio, mlflow = ModuleType("trackio"), ModuleType("mlflow")
    entities = ModuleType("mlflow.entities")
    runs: list[Run] = []

    def init(
        project: str, name: str | None = None, space_id: str | None = None, resume: str = "never"
    ) -> Run:
        runs.append(Run({"project": project, "name": name, "space_id": space_id, "resume": resume}))
        return runs[-1]

    trackio.init, trackio.runs = init, runs  # type: ignore[attr-defined]
    mlflow.MlflowClient, entities.Metric = MlflowClient, Metric  # type: ignore[attr-defined]
    return {"trackio": trackio, "mlflow": mlflow, "mlflow.entities": entities}
