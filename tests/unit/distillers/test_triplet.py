"""Which triplets the miners of `triplet` take where distances tie or a margin is below 0."""

from __future__ import annotations

import pytest
import torch

from tests.support.recipes import problems_with
from vlkd_cli.distillers.triplet import Triplet

# An anchor, three positives at one place and three negatives at one place: every choice ties.
ROWS = torch.tensor([[1.0, 0], *[[0.0, 1]] * 3, *[[0.6, 0.8]] * 3], dtype=torch.float64)
LABELS = torch.tensor([0, 0, 0, 0, 1, 2, 3])


def test_batch_hard_takes_the_first_of_equal_distances():
    rows = ROWS.clone().requires_grad_()
    Triplet(miner="batch_hard", distance="cosine")((rows,), labels=LABELS).backward()
    assert rows.grad is not None
    gradient = rows.grad.norm(dim=1)
    # Anchors 1 to 3 share positive 0 and negative 4; anchor 0 takes positive 1.
    assert gradient[2] == gradient[3] and abs(gradient[1] - gradient[2]) > 0.01
    assert gradient[4] > 0.01 and gradient[5] == gradient[6] == 0


def test_batch_hard_distinguishes_rows_that_nearly_coincide():
    # Squared distances of 1e-6 are lost in 1 - cosine of single precision.
    noise = torch.randn(24, 16, generator=torch.Generator().manual_seed(0))
    rows = torch.nn.functional.normalize(1 + 1e-3 * noise)
    labels = torch.arange(24) // 3
    every = torch.cdist(rows.double(), rows.double(), compute_mode="donot_use_mm_for_euclid_dist")
    same = labels[:, None] == labels
    farthest = every.masked_fill(~same, -torch.inf).amax(1)
    nearest = every.masked_fill(same, torch.inf).amin(1)
    expected = float((farthest - nearest + 0.2).mean())
    found = Triplet(miner="batch_hard")((rows,), labels=labels)
    assert float(found) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("miner", "count"), [("all", 1), ("hard", 1), ("easy", 8)])
def test_a_miner_margin_below_zero_moves_the_border(miner: str, count: int):
    angles = torch.tensor([0.0, 0.5, 1.0, 0.2], dtype=torch.float64)
    rows = torch.stack([angles.cos(), angles.sin()], dim=1)
    labels = torch.tensor([0, 0, 0, 1])
    distances = torch.cdist(rows, rows)
    gaps = {
        (a, p): float(distances[a, 3] - distances[a, p])
        for a in range(3)
        for p in range(3)
        if a != p
    }
    border = -0.5
    takes = {
        "all": lambda gap: gap <= border,
        "hard": lambda gap: gap <= min(0.0, border),
        "easy": lambda gap: gap > border,
    }[miner]
    losses = [max(1 - gap, 0.0) for gap in gaps.values() if takes(gap)]
    expected = sum(losses) / sum(loss > 0 for loss in losses)
    found = Triplet(margin=1.0, miner=miner, miner_margin=border)((rows,), labels=labels)
    assert float(found) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("distiller", "line"),
    [
        ("{name: triplet, miner_margin: 0.1}", "miner_margin: has no effect with miner: none."),
        (
            "{name: triplet, miner: batch_hard, miner_margin: 0.1}",
            "miner_margin: has no effect with miner: batch_hard.",
        ),
        (
            "{name: multi_similarity, miner: none, epsilon: 0.2}",
            "epsilon: has no effect with miner: none.",
        ),
        (
            "{name: margin_softmax, num_classes: 4, kind: none, margin: 0.2}",
            "margin: has no effect with kind: none.",
        ),
        ("{name: score_regression, scale: 2}", "scale: has no effect with loss: mse."),
        (
            "{name: score_regression, range: [5, 0]}",
            "range: [5, 0] runs backwards: write the lower first.",
        ),
        ("{name: score_regression, range: [1, 1]}", "range: [1, 1] is empty: write two different"),
        ("{name: reinforced, logit_bias: 1}", "logit_bias: has no effect with loss: softmax."),
        ("{name: swav, queue_from_epoch: 2}", "queue_from_epoch: has no effect with queue_size:"),
    ],
)
def test_a_key_of_another_choice_is_refused_by_the_check(distiller: str, line: str):
    assert any(line in problem for problem in problems_with(f"distillers=[{distiller}]"))
