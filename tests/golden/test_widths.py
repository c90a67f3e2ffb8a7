"""Sums over widths give the numbers of dense definitions (tests/golden/distil_adapt.json), in value
and gradient, on one and several ranks, for any tiles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from tests.golden.test_positives import check, sides
from tests.support.ranks import run_on_ranks
from vlkd_cli.distillers import tiles
from vlkd_cli.distillers.widths import AtWidths
from vlkd_cli.distributed import collectives
from vlkd_cli.distributed.runtime import rank, world_size
from vlkd_cli.recipe.component import make

CASES = [
    case
    for case in json.loads(
        (Path(__file__).parent / "distil_adapt.json").read_text(encoding="utf-8")
    )["cases"]
    if case["kind"].startswith("matryoshka_")
]


def built(case: dict[str, Any]) -> AtWidths:
    hyper, name = case["hyper"], case["kind"].removeprefix("matryoshka_")
    keys: dict[str, Any] = {"logit_scale": hyper["logit_scale"]}
    if "logit_bias" in hyper:
        keys["logit_bias"] = hyper["logit_bias"]
    if name == "simreg_l2":
        name, keys = "simreg", {}
    inner = [make("distiller", name, keys) for _ in hyper["widths"]]
    distiller = AtWidths(inner, hyper["widths"], hyper["weights"])
    distiller.setup(hyper["widths"][-1], hyper["widths"][-1])
    distiller.double()
    if name != "simreg":
        assert len(list(distiller.parameters())) == len(list(inner[0].parameters()))
        inner[0].log_scale.data.fill_(float(np.log(hyper["logit_scale"])))
    return distiller


@pytest.mark.parametrize("tile", [None, (3, 5)], ids=["one tile", "tiles of 3 x 5"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_values_and_gradients(
    case: dict[str, Any], tile: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(CASES) == 4
    if tile is not None:
        monkeypatch.setattr(tiles, "TILE_ROWS", tile[0])
        monkeypatch.setattr(tiles, "TILE_COLUMNS", tile[1])
    student, teacher = sides(case)
    loss = built(case)(student, teacher)
    assert loss.item() == pytest.approx(case["expected"]["f64"]["loss"], rel=1e-9)
    loss.backward()
    for side, tensor in (("student", student), ("teacher", teacher)):
        # simreg detaches its teacher.
        assert (tensor.grad is None) == ("simreg" in case["id"] and side == "teacher")
        if tensor.grad is not None:
            check(case, side, tensor.grad.numpy())


def _on_a_rank(ids: list[str]) -> dict[str, Any]:
    calls = []
    plain = collectives._gathered

    def counted(local: Tensor) -> Tensor:
        if local.ndim == 2:
            calls.append(local.shape)
        return plain(local)

    collectives._gathered = counted
    found: dict[str, Any] = {}
    try:
        for case in (case for case in CASES if case["id"] in ids):
            calls.clear()
            student, teacher = sides(case)
            size = len(student) // world_size()
            own = slice(rank() * size, (rank() + 1) * size)
            loss = built(case)(student[own], teacher[own])
            loss.backward()
            assert student.grad is not None and teacher.grad is not None
            gradients = student.grad.numpy(), teacher.grad.numpy()
            found[case["id"]] = loss.item(), *gradients, len(calls)
    finally:
        collectives._gathered = plain
    return found


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_ranks_give_the_same_numbers_and_gather_full_rows_once(ranks: int) -> None:
    cases = [case for case in CASES if case["id"].startswith("matryoshka/infonce")]
    assert len(cases) == 2
    answers = run_on_ranks(_on_a_rank, ranks, [case["id"] for case in cases])
    for case in cases:
        own = [answer[case["id"]] for answer in answers]
        assert np.mean([each[0] for each in own]) == pytest.approx(
            case["expected"]["f64"]["loss"], rel=1e-9
        )
        for number, side in ((1, "student"), (2, "teacher")):
            check(case, side, sum(each[number] for each in own) / ranks)
        assert [each[3] for each in own] == [1] * ranks
