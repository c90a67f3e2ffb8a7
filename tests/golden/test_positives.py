"""Positives off the diagonal give the numbers of dense definitions
(tests/golden/distil_adapt.json), in value and gradient, on 1, 2 and 4 ranks, for any tiles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.golden import golden_inputs
from tests.support.ranks import run_on_ranks
from vlkd_cli.distillers import tiles
from vlkd_cli.distillers.distiller import Distiller
from vlkd_cli.distributed.runtime import rank, world_size
from vlkd_cli.recipe.component import make

GOLDENS = json.loads((Path(__file__).parent / "distil_adapt.json").read_text(encoding="utf-8"))[
    "cases"
]
CASES = [case for case in GOLDENS if case["kind"].startswith("positives_")]
EACH = [pytest.param(case, id=case["id"]) for case in CASES]


def built(case: dict[str, Any]) -> tuple[Distiller, dict[str, Any]]:
    """The distiller of a case, and what it is offered next to the sides."""
    hyper, grades = case["hyper"], case["hyper"].get("grades")
    keys: dict[str, Any] = {"positives": "label", "logit_scale": hyper["logit_scale"]}
    keys |= {"grade": "relevance"} if grades else {"positive_weight": hyper["weight"]}
    if "logit_bias" in hyper:
        keys["logit_bias"] = hyper["logit_bias"]
    distiller: Distiller = make("distiller", case["kind"].removeprefix("positives_"), keys)
    distiller.double()
    # The logarithm of a scale in float32 moves the goldens in the eighth digit.
    distiller.log_scale.data.fill_(float(np.log(hyper["logit_scale"])))
    offered: dict[str, Any] = {"labels": torch.tensor(hyper["keys"])}
    if grades:
        offered["columns"] = {"relevance": torch.tensor(grades, dtype=torch.float64)}
    return distiller, offered


def sides(case: dict[str, Any]) -> tuple[Tensor, Tensor]:
    given = golden_inputs.build(case)
    student, teacher = (
        torch.from_numpy(given[name]).double().requires_grad_() for name in ("student", "teacher")
    )
    return student, teacher


def check(case: dict[str, Any], side: str, gradient: np.ndarray) -> None:
    expected = case["expected"]["f64"]["grad"][side]
    assert np.linalg.norm(gradient) == pytest.approx(expected["norm"], rel=1e-9)
    probe = float((gradient * golden_inputs.probe(case, gradient.shape)).sum())
    assert probe == pytest.approx(expected["probe"], rel=1e-9, abs=1e-11)
    np.testing.assert_allclose(gradient.ravel()[:4], expected["head"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tile", [None, (3, 5)], ids=["one tile", "tiles of 3 x 5"])
@pytest.mark.parametrize("case", EACH)
def test_values_and_gradients(
    case: dict[str, Any], tile: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tile is not None:
        monkeypatch.setattr(tiles, "TILE_ROWS", tile[0])
        monkeypatch.setattr(tiles, "TILE_COLUMNS", tile[1])
    distiller, offered = built(case)
    student, teacher = sides(case)
    loss = distiller(student, teacher, **offered)
    assert loss.item() == pytest.approx(case["expected"]["f64"]["loss"], rel=1e-9)
    loss.backward()
    for side, tensor in (("student", student), ("teacher", teacher)):
        assert tensor.grad is not None
        check(case, side, tensor.grad.numpy())


def _on_a_rank(ids: list[str]) -> dict[str, Any]:
    found = {}
    for case in CASES:
        if case["id"] in ids:
            distiller, offered = built(case)
            student, teacher = sides(case)
            size = len(student) // world_size()
            own = slice(rank() * size, (rank() + 1) * size)
            offered["labels"] = offered["labels"][own]
            offered["columns"] = {
                name: column[own] for name, column in offered.get("columns", {}).items()
            }
            loss = distiller(student[own], teacher[own], **offered)
            loss.backward()
            assert student.grad is not None and teacher.grad is not None
            found[case["id"]] = loss.item(), student.grad.numpy(), teacher.grad.numpy()
    return found


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_give_the_same_numbers(ranks: int) -> None:
    cases = [c for c in CASES if str(ranks) in c["expected"]["f64"].get("rank_losses", {})]
    assert len(cases) >= 4
    answers = run_on_ranks(_on_a_rank, ranks, [case["id"] for case in cases])
    for case in cases:
        own = [answer[case["id"]] for answer in answers]
        expected = case["expected"]["f64"]["rank_losses"][str(ranks)]
        assert [loss for loss, _, _ in own] == pytest.approx(expected, rel=1e-9)
        # DDP averages over ranks.
        for number, side in ((1, "student"), (2, "teacher")):
            check(case, side, sum(each[number] for each in own) / ranks)


def dense(
    name: str, student: Tensor, teacher: Tensor, keys: Tensor, grades: Tensor, scale: float
) -> Tensor:
    """The definitions with whole matrices."""
    logits = scale * F.normalize(student) @ F.normalize(teacher).T
    same = (keys[:, None] == keys[None, :]) & (keys >= 0)[:, None]
    weights = same * grades[None, :]
    weights.fill_diagonal_(0)
    weights = weights + torch.diag(torch.where(grades > 0, grades, torch.ones_like(grades)))
    ignored = same & (weights == 0)
    if name == "siglip":
        logits = logits - 3.0
        kept = F.softplus(logits).masked_fill(ignored, 0)
        return (kept - weights * logits).sum() / len(logits)
    masked = logits.masked_fill(ignored, -torch.inf)
    rows = masked.logsumexp(1) - (weights * logits).sum(1) / weights.sum(1)
    columns = masked.logsumexp(0) - (weights * logits).sum(0) / weights.sum(0)
    return (rows.mean() + columns.mean()) / 2


@pytest.mark.parametrize("teacher_learns_alone", [False, True])
@pytest.mark.parametrize("name", ["infonce", "siglip"])
def test_random_keys_and_grades_equal_the_dense_definition(
    name: str, teacher_learns_alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "TILE_ROWS", 3)
    monkeypatch.setattr(tiles, "TILE_COLUMNS", 5)
    for seed in range(5):
        torch.manual_seed(seed)
        student, teacher = (torch.randn(13, 4, dtype=torch.float64) for _ in range(2))
        student.requires_grad_(not teacher_learns_alone)
        teacher.requires_grad_()
        keys = torch.randint(-1, 4, (13,))
        grades = torch.randint(0, 3, (13,)).double() / 2
        # A column compares as labels do.
        keys_of: dict[str, Any] = {"positives": "product", "grade": "relevance"}
        keys_of |= {"logit_scale": 5.0, "learnable": False}
        keys_of |= {"logit_bias": -3.0} if name == "siglip" else {}
        distiller = make("distiller", name, keys_of).double()
        distiller.log_scale.fill_(float(np.log(5.0)))
        learned = [side for side in (student, teacher) if side.requires_grad]
        found = distiller(student, teacher, columns={"product": keys, "relevance": grades})
        expected = dense(name, student, teacher, keys, grades, 5.0)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
        for ours, theirs in zip(
            torch.autograd.grad(found, learned), torch.autograd.grad(expected, learned), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
