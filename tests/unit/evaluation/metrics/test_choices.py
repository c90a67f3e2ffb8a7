"""Choices among captions equal the golden cases; a tie is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vlkd_cli.evaluation.metrics.choices import (
    PAIR_CHANCE,
    caption_outcomes,
    chance_of_choice,
    pair_outcomes,
)
from vlkd_cli.evaluation.metrics.groups import group_metrics, group_rows

GOLDEN = json.loads((Path(__file__).parents[3] / "golden" / "many_runs.json").read_text())
CASES = GOLDEN["caption_choice"]


@pytest.mark.parametrize("name", ["two_captions", "five_captions"])
def test_a_caption_is_right_if_strictly_above_the_others(name: str) -> None:
    case = CASES[name]
    scores = [np.array(row) for row in case["scores"]]
    found = caption_outcomes(scores, [1] * len(scores))
    assert found.right.tolist() == case["outcomes"]
    assert found.right.mean() == pytest.approx(case["accuracy"], abs=1e-9)
    if "chance" in case:
        assert chance_of_choice(1, len(scores[0]) - 1) == case["chance"]
    else:
        # CLIP_benchmark's argmax gives a tie to the first caption, which is the right one.
        with_ties = (found.right | found.tied).mean()
        assert with_ties == pytest.approx(case["clip_benchmark_text_acc"])


def test_groups_equal_the_golden_case() -> None:
    case = CASES["two_captions"]
    hits = np.array(case["outcomes"], dtype=bool)
    rows = group_rows(hits, [str(group) for group in case["groups"]])
    assert {row["group"]: row["share"] for row in rows} == pytest.approx(case["group_accuracy"])
    metrics = group_metrics(rows, min_group=1)
    assert metrics["average_over_groups"] == pytest.approx(case["macro_accuracy"], abs=1e-9)
    assert metrics["worst_group"] == case["group_accuracy"][str(case["worst_group"])]


@pytest.mark.parametrize("name", ["winoground", "winoground_ties"])
def test_pairs_equal_winoground(name: str) -> None:
    case = CASES[name]
    found = pair_outcomes(np.array(case["scores"]))
    for kind in ("text", "image", "group"):
        assert getattr(found, kind).tolist() == case[kind]
        if name == "winoground":
            assert getattr(found, kind).mean() == pytest.approx(case[f"{kind}_score"])
            assert PAIR_CHANCE[f"{kind}_score"] == case["chance"][kind]
    assert found.tied.tolist() == ([False] * 10 if name == "winoground" else [True, True, False])


def test_of_several_right_captions_all_or_any_must_be_above() -> None:
    scores = [np.array([0.9, 0.2, 0.5]), np.array([0.9, 0.8, 0.5]), np.array([0.5, 0.4, 0.5])]
    assert caption_outcomes(scores, [2, 2, 2]).right.tolist() == [False, True, False]
    found = caption_outcomes(scores, [2, 2, 2], "any")
    assert found.right.tolist() == [True, True, False] and found.tied.tolist() == [0, 0, 1]
    assert chance_of_choice(2, 1, "any") == pytest.approx(2 / 3)
    assert chance_of_choice(2, 1) == pytest.approx(1 / 3)
    assert chance_of_choice(2, 3) == pytest.approx(1 / 10)
