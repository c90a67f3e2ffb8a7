"""Autocast and gradient scaling for fp32, bf16 and fp16, on CPU and GPU."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

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
