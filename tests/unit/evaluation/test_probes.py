"""Heads on frozen features: the toolkit's numbers, and one pass for many settings."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.elevater_goldens import golden, sampled
from vlkd_cli.evaluation.probes.probes import HeadSetting, epoch_batches, epoch_orders, train_heads


def test_row_orders_are_those_of_the_toolkit_loader() -> None:
    expected = golden("linear_probe_micro")["expected"]["row_order_of_epochs_1_and_2"]
    orders = [
        [batch.tolist() for batch in epoch_batches(order, 16)]
        for order in islice(epoch_orders(50), 2)
    ]
    assert orders == expected


def test_probe_equals_the_toolkit_micro_run() -> None:
    arrays, expected = sampled("linear_probe_micro"), golden("linear_probe_micro")["expected"]
    train = torch.from_numpy(arrays["Xa"]), torch.from_numpy(arrays["ya"])
    test = torch.from_numpy(arrays["Xb"])
    accuracies, outputs = [], []
    banks = train_heads(
        *train,
        classes=4,
        settings=[HeadSetting(0.1, 1e-3)],
        epochs=4,
        batch_size=16,
        initial=torch.from_numpy(arrays["W0"]).T,
    )
    for bank in banks:
        outputs.append(bank.probabilities(test).numpy())
        accuracies.append(100 * float((outputs[-1].argmax(1) == arrays["yb"]).mean()))
    assert accuracies == pytest.approx(expected["accuracy_per_epoch_percent"], abs=1e-6)
    assert outputs[int(np.argmax(accuracies))][0] == pytest.approx(
        expected["best_probs_row0"], abs=0.002
    )
    assert bank.num_parameters == expected["n_trainable_params"]


@pytest.mark.parametrize("multi_label", [False, True])
def test_heads_trained_together_equal_heads_trained_alone_by_autograd(multi_label: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(33, 5, generator=generator)
    targets = (
        torch.randint(0, 2, (33, 3), generator=generator).float()
        if multi_label
        else torch.randint(0, 3, (33,), generator=generator)
    )
    settings = [HeadSetting(0.1, 0.01), HeadSetting(0.02, 1.0)]
    *_, bank = train_heads(
        features,
        targets,
        classes=3,
        settings=settings,
        epochs=3,
        batch_size=8,
        multi_label=multi_label,
        seed=4,
    )
    for head, setting in enumerate(settings):
        torch.manual_seed(4)
        linear, norm = nn.Linear(5, 3), nn.BatchNorm1d(5, affine=False)
        optimizer = torch.optim.SGD(
            linear.parameters(), lr=setting.lr, momentum=0.9, weight_decay=setting.weight_decay
        )
        loss_of = nn.BCEWithLogitsLoss() if multi_label else nn.CrossEntropyLoss()
        for order in islice(epoch_orders(33, seed=4), 3):
            for rows in epoch_batches(order, 8):
                optimizer.zero_grad()
                loss_of(linear(norm(features[rows])), targets[rows]).backward()
                optimizer.step()
        expected = linear(norm.eval()(features)).softmax(-1)
        torch.testing.assert_close(
            bank.probabilities(features, head), expected.detach(), rtol=1e-4, atol=1e-6
        )
