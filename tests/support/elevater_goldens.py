"""Golden values of the ELEVATER toolkit, computed by running its own functions; inputs are sampled
again and checked by their digest."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray


@cache
def _cases() -> dict[str, dict[str, Any]]:
    path = Path(__file__).parent.parent / "golden" / "elevater.json"
    return {case["id"]: case for case in json.loads(path.read_text(encoding="utf-8"))["cases"]}


def golden(name: str) -> dict[str, Any]:
    """The case `elevater.NAME`."""
    return _cases()[f"elevater.{name}"]


def sampled(name: str) -> dict[str, NDArray[Any]]:
    """The input arrays of a case, by name."""
    arrays: dict[str, NDArray[Any]] = {}
    for entry in golden(name)["inputs"]:
        space: dict[str, Any] = {"np": np, "softmax": _softmax}
        exec(entry["recipe"], space)  # a line of numpy from our own golden file
        array = np.ascontiguousarray(space[entry["name"]])
        is_same = hashlib.sha256(array.tobytes()).hexdigest() == entry["sha256_c_order_le"]
        if not is_same and int(np.__version__.split(".")[0]) < 2:
            pytest.skip("numpy 1 rounds the last bits of exp in another way")
        assert is_same, f"{name}: input {entry['name']} differs"
        arrays[entry["name"]] = array
    return arrays


def _softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    raised = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))
