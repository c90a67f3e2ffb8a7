"""Which objectives read a number off the device in a step, which makes a GPU wait for the host.

On the device `meta` no tensor has values: what reads one fails there.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.distiller_cases import CASES, Case, batch, called, start_episode, tensors

META = torch.device("meta")
# Sizes depend on how many positives, clusters or hidden positions there are; banks of the data
# set's size are not updated twice for one sample; a queue is used once it is full; libraries list
# pairs.
READ = {name for name in CASES if name.split()[0] in ("ibot", "metric", "npid", "odc", "triplet")}
READ = (READ | {"swav queue"}) - {"triplet batch_hard"}
NEEDS_VALUES = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::bincount",
    "aten::lift_fresh",  # a tensor out of Python numbers, which is copied to the device
}


class Watch(TorchDispatchMode):
    """Fails where a value is read or copied from the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        masks = name in ("aten::index", "aten::index_put", "aten::index_put_") and any(
            each is not None and each.dtype == torch.bool for each in args[1]
        )
        if name in NEEDS_VALUES or masks:
            raise NotImplementedError(f"{name} reads values")
        return func(*args, **(kwargs or {}))


def moved(values: Any) -> Any:
    if isinstance(values, Tensor):
        return values.detach().to(META)
    return tuple(map(moved, values)) if type(values) is tuple else values


def take_steps(case: Case) -> None:
    """Two steps without values."""
    distiller = case.build(torch.float32)
    start_episode(distiller, case, torch.float32)
    distiller.to(META).train()
    for step in range(2):
        student, teacher, offered = batch(case, 8, step, torch.float32)
        if "counts" in offered:
            raise NotImplementedError("the number of selected positions is a value")
        offered = {name: moved(value) for name, value in offered.items()}
        student, teacher = moved(student), moved(teacher)
        for tensor in tensors(student, teacher):
            tensor.requires_grad_()
        with Watch():
            called(distiller, student, teacher, offered).backward()
            distiller.commit(offered["progress"])


@pytest.mark.parametrize("name", CASES)
def test_a_step_reads_nothing_unless_it_is_listed(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # There is no autocast on this device.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    if name in READ:
        with pytest.raises((NotImplementedError, RuntimeError), match=r"value|item|nonzero|unique"):
            take_steps(CASES[name])
    else:
        take_steps(CASES[name])
