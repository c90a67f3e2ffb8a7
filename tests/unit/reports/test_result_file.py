"""A result file has the types that pages and tables rely on, or counts as none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.run_folders import write_result
from vlkd_cli.reports.result_file import read_result


def test_a_result_reads_back_as_it_was_written(tmp_path: Path) -> None:
    path = write_result(tmp_path, 10, 0.5, metric="top1")
    found = read_result(path)
    assert found == json.loads(path.read_text())
    assert found is not None and found["metrics"] == {"top1": 0.5}


def test_a_number_that_does_not_exist_is_null(tmp_path: Path) -> None:
    path = write_result(tmp_path, 10, 0.5)
    path.write_text(json.dumps({**json.loads(path.read_text()), "metrics": {"top1": None}}))
    assert read_result(path) is not None


@pytest.mark.parametrize(
    "change",
    [
        {"metrics": []},
        {"metrics": {"top1": "0.5"}},
        {"metrics": {"top1": True}},
        {"metrics": {"top1": 10**400}},
        {"chance": [0.1]},
        {"chance": {"top1": {}}},
        {"hashes": "aa"},
        {"suite": ["zero_shot"]},
        {"num_items": "200"},
        {"num_classes": 1.5},
        {"seconds": "1"},
    ],
)
def test_a_value_of_another_type_makes_it_unreadable(tmp_path: Path, change: Any) -> None:
    path = write_result(tmp_path, 10, 0.5)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert read_result(path) is None


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", "[" * 100_000, "\0"])
def test_what_is_not_a_result_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    assert read_result(path) is None
    assert read_result(tmp_path) is None and read_result(tmp_path / "gone.json") is None
