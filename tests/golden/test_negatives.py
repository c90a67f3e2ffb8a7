"""Hard negatives give the numbers of dense definitions (tests/golden/distil_adapt.json), in value
and gradient, on 1, 2 and 4 ranks, for any tiles."""

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
from tests.golden.test_positives import check
from tests.support.ranks import run_on_ranks
from vlkd_cli.distillers import tiles
from vlkd_cli.distillers.distiller import Distiller
from vlkd_cli.distillers.negatives import Negatives
from vlkd_cli.distributed.runtime import rank, world_size
from vlkd_cli.recipe.component import make

CASES = [
    case
    for case in json.loads(
        (Path(__file__).parent / "distil_adapt.json").read_text(encoding="utf-8")
    )["cases"]
    if case["kind"].startswith("negatives_")
]
SIDES = {"negatives": "teacher", "negative_images": "student"}


def built(case: dict[str, Any]) -> Distiller:
    hyper = case["hyper"]
    keys = {"logit_scale": hyper["logit_scale"]}
    if len(set(hyper["keys"])) < len(hyper["keys"]):
        keys |= {"positives": "caption", "positive_weight": hyper["weight"]}
    if "logit_bias" in hyper:
        keys["logit_bias"] = hyper["logit_bias"]
    distiller: Distiller = make("distiller", case["kind"].removeprefix("negatives_"), keys)
    distiller.double()
    distiller.log_scale.data.fill_(float(np.log(hyper["logit_scale"])))
    return distiller


def loss_of(case: dict[str, Any], tensors: dict[str, Tensor], ranks: int, number: int) -> Tensor:
    """The loss of a rank's part of the rows; each negative list is split as the rows are."""

    def part(rows: Tensor) -> Tensor:
        size = len(rows) // ranks
        return rows[number * size : (number + 1) * size]

    hyper = case["hyper"]
    keys = part(torch.tensor(hyper["keys"]))
    negatives = []
    for name, side in SIDES.items():
        if name not in tensors:
            continue
        values = part(tensors[name])
        own = torch.arange(500, 500 + len(tensors[name]))
        own = torch.tensor(hyper["negative_keys"]) if "negative_keys" in hyper else own
        own = part(own)
        for start in range(0, len(values), len(keys)):
            rows = slice(start, start + len(keys))
            texts = {"keys": own[rows], "row_keys": keys} if side == "teacher" else {}
            negatives.append(Negatives(values[rows], side, **texts))  # type: ignore[arg-type]
    found: Tensor = built(case)(
        part(tensors["student"]),
        part(tensors["teacher"]),
        caption_keys=keys,
        negatives=tuple(negatives),
    )
    return found


def inputs(case: dict[str, Any]) -> dict[str, Tensor]:
    given = golden_inputs.build(case)
    return {name: torch.from_numpy(rows).double().requires_grad_() for name, rows in given.items()}


@pytest.mark.parametrize("tile", [None, (3, 5)], ids=["one tile", "tiles of 3 x 5"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_values_and_gradients(
    case: dict[str, Any], tile: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(CASES) == 8
    if tile is not None:
        monkeypatch.setattr(tiles, "TILE_ROWS", tile[0])
        monkeypatch.setattr(tiles, "TILE_COLUMNS", tile[1])
        monkeypatch.setattr(tiles, "STORED_ENTRIES", 0)
    tensors = inputs(case)
    loss = loss_of(case, tensors, 1, 0)
    assert loss.item() == pytest.approx(case["expected"]["f64"]["loss"], rel=1e-9)
    loss.backward()
    for name, rows in tensors.items():
        assert rows.grad is not None
        check(case, name, rows.grad.numpy())


def _on_a_rank(ids: list[str]) -> dict[str, Any]:
    found = {}
    for case in CASES:
        if case["id"] in ids:
            tensors = inputs(case)
            loss = loss_of(case, tensors, world_size(), rank())
            loss.backward()
            found[case["id"]] = (
                loss.item(),
                {n: rows.grad.numpy() for n, rows in tensors.items() if rows.grad is not None},
            )
    return found


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_give_the_same_numbers(ranks: int) -> None:
    answers = run_on_ranks(_on_a_rank, ranks, [case["id"] for case in CASES])
    for case in CASES:
        own = [answer[case["id"]] for answer in answers]
        losses = [loss for loss, _ in own]
        expected = case["expected"]["f64"]
        if case["id"] != "siglip/negatives_both":
            assert losses == pytest.approx(expected["rank_losses"][str(ranks)], rel=1e-9)
        assert np.mean(losses) == pytest.approx(expected["loss"], rel=1e-9)
        for name in own[0][1]:
            check(case, name, sum(gradients[name] for _, gradients in own) / ranks)


def dense(
    name: str, x: Tensor, y: Tensor, texts: list[Tensor], left_out: list[Tensor], own: bool
) -> Tensor:
    """The definition with whole matrices, scale 5 and bias -3."""
    x, y = F.normalize(x), F.normalize(y)
    logits = 5.0 * x @ y.T - (3.0 if name == "siglip" else 0.0)
    extra = torch.cat([5.0 * x @ F.normalize(each).T for each in texts], dim=1)
    extra = extra - (3.0 if name == "siglip" else 0.0)
    masked = torch.cat(left_out, dim=1)
    if own:
        masked = masked | ~torch.eye(len(x), dtype=torch.bool).repeat(1, len(texts))
    extra = extra.masked_fill(masked, -torch.inf)
    if name == "siglip":
        total = F.softplus(logits).sum() - logits.trace() + F.softplus(extra).sum()
        return total / len(x)
    rows = torch.cat([logits, extra], dim=1).logsumexp(1).mean()
    return (rows + logits.logsumexp(0).mean()) / 2 - logits.diagonal().mean()


@pytest.mark.parametrize("own", [False, True], ids=["batch", "own"])
@pytest.mark.parametrize("frozen", ["nothing", "teacher", "student"])
@pytest.mark.parametrize("name", ["infonce", "siglip"])
def test_missing_and_equal_texts_are_left_out(
    name: str, frozen: str, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "TILE_ROWS", 3)
    monkeypatch.setattr(tiles, "TILE_COLUMNS", 5)
    torch.manual_seed(0)
    x, y, a, b = (torch.randn(7, 4, dtype=torch.float64, requires_grad=True) for _ in range(4))
    if frozen != "nothing":
        (y if frozen == "teacher" else x).requires_grad_(False)
    row_keys = torch.tensor([1, 2, 3, 1, -1, 4, 5])
    keys = [torch.tensor([1, -1, 9, 9, -1, 4, 3]), torch.tensor([7, 8, 1, 2, 3, -1, 5])]
    negatives = tuple(
        Negatives(values, "teacher", own_keys, row_keys)
        for values, own_keys in zip((a, b), keys, strict=True)
    )
    options = {"logit_scale": 5.0, "learnable": False}
    options |= {"negatives_of": "own" if own else "batch"}
    options |= {"logit_bias": -3.0} if name == "siglip" else {}
    distiller = make("distiller", name, options).double()
    distiller.log_scale.fill_(float(np.log(5.0)))
    found = distiller(x, y, negatives=negatives)
    left_out = [
        (each < 0) | ((each == row_keys[:, None]) & (row_keys >= 0)[:, None]) for each in keys
    ]
    expected = dense(name, x, y, [a, b], left_out, own)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    learned = [each for each in (x, y, a, b) if each.requires_grad]
    for ours, theirs in zip(
        torch.autograd.grad(found, learned), torch.autograd.grad(expected, learned), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
