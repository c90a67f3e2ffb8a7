"""The line that a run ends with."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.run_folders import make_run
from vlkd_cli.reports.outcome import outcome_line
from vlkd_cli.reports.records import read_run


def test_the_line_names_the_best_step_its_value_and_the_end(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", values=(0.1, 0.3456, 0.25))
    line = outcome_line(read_run(run))
    assert line is not None and line.startswith("best zero_shot.")
    assert line.endswith(".top1 0.346 at step 20; at the end 0.250")


def test_the_checkpoint_is_named_where_train_best_stores_one(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", values=(0.1, 0.301, 0.305), best="zero_shot.top1")
    (run / "checkpoints").mkdir(exist_ok=True)
    (run / "checkpoints" / "best.pt").touch()
    # With min_delta, the best checkpoint need not be of the highest value.
    state = json.loads((run / "state.json").read_text())
    (run / "state.json").write_text(json.dumps({**state, "best": 0.301, "best_step": 20}))
    line = outcome_line(read_run(run))
    assert line is not None
    assert line.endswith(".top1 0.301 at step 20 (checkpoints/best.pt); at the end 0.305")


def test_a_run_without_evaluations_has_no_such_line(tmp_path: Path) -> None:
    assert outcome_line(read_run(make_run(tmp_path / "a", values=()))) is None
