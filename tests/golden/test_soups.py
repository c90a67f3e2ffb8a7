"""Averages of runs are those of the definition (tests/golden/distil_adapt.json)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.golden import golden_inputs
from vlkd_cli.towers.soup import averaged, greedy

CASES = [
    case
    for case in json.loads(
        (Path(__file__).parent / "distil_adapt.json").read_text(encoding="utf-8")
    )["cases"]
    if case["kind"] == "soup"
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_uniform_and_greedy_averages(case: dict[str, Any]) -> None:
    assert len(CASES) == 2
    given, expected = golden_inputs.build(case), case["expected"]
    target = given["target"].astype(np.float64)
    states = [
        {"w": torch.from_numpy(given[name]).double()} for name in given if name.startswith("w")
    ]
    names = [str(number) for number in range(len(states))]

    def mean(numbers: Sequence[int]) -> np.ndarray:
        chosen = averaged([states[n] for n in numbers], [names[n] for n in numbers])
        return chosen["w"].numpy()

    def score(numbers: Sequence[int]) -> float:
        return -float(((mean(numbers) - target) ** 2).mean())

    found = greedy(len(states), score)
    assert found.each == pytest.approx(expected["each"], rel=1e-9)
    every = range(len(states))
    assert score(every) == pytest.approx(expected["uniform"]["score"], rel=1e-9)
    assert mean(every)[:4] == pytest.approx(expected["uniform"]["head"], rel=1e-9)
    wanted = expected["greedy"]
    assert found.taken == wanted["taken"] and found.score == pytest.approx(wanted["score"])
    assert [(t.number, t.is_added) for t in found.trail] == [
        (t["tried"], t["kept"]) for t in wanted["trail"]
    ]
    assert [t.score for t in found.trail] == pytest.approx([t["score"] for t in wanted["trail"]])
    assert mean(found.taken)[:4] == pytest.approx(wanted["head"], rel=1e-9)
    # Never below the best run.
    assert found.score >= max(found.each)
