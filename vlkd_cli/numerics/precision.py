"""Autocast and gradient scaling for fp32, bf16 and fp16, on CPU and GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Literal

import torch

from vlkd_cli.recipe.types import Precision

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Context in which a forward pass runs."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


def grad_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """A scaler that is active for fp16 only; bf16 has fp32's range."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


@contextlib.contextmanager
def matrix_precision(precision: Literal["highest", "high"], device: torch.device) -> Iterator[None]:
    """Precision of float32 matrix products within it on a GPU, in the words of
    `torch.set_float32_matmul_precision`: "highest" is true float32; "high" is TF32, which rounds
    the factors to 11 significant bits, adds in float32, and is seven times as fast on an H200."""
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
