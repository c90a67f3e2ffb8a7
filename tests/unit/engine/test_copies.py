from __future__ import annotations

import torch

from vlkd_cli.data.batch import Batch
from vlkd_cli.engine.copies import Copies


def test_a_batch_on_the_cpu_stays_as_it_is() -> None:
    rows = torch.arange(4)
    batch = Batch({"image": torch.rand(4, 3, 2, 2), "text": {"input_ids": rows}}, rows, rows)
    moved = Copies(torch.device("cpu"))(batch)
    assert moved.inputs["image"] is batch.inputs["image"]
    assert moved.inputs["text"]["input_ids"] is rows  # type: ignore[index]
