"""An ONNX file next to the function that it was written from: the same numbers, or none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vlkd_cli.builders.weight_files import first_line
from vlkd_cli.errors import UserError
from vlkd_cli.towers.onnx.graph import REMEDY

LEAST_COSINE = 0.9999
MOST_DIFFERENCE = 1e-4
"""Largest difference as a fraction of the largest value."""

Inputs = Mapping[str, Tensor]


class Agreement(NamedTuple):
    """How near the rows of two functions are.

    Args:
        cosine: the least cosine of two rows.
        difference: the largest difference of two numbers over the largest number.
        rows: how many were compared.
    """

    cosine: float
    difference: float
    rows: int

    def __str__(self) -> str:
        return (
            f"cosine >= {self.cosine:.7f}, largest difference {self.difference:.1e} of the largest"
            f" value, {self.rows} rows"
        )

    @property
    def holds(self) -> bool:
        """Whether the two are the same function but for rounding; never with NaN."""
        return self.cosine >= LEAST_COSINE and self.difference <= MOST_DIFFERENCE


class Session:
    """An ONNX file that onnxruntime runs on the CPU."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        # Errors only: towers of dynamic length make it warn about shapes.
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        self._session: Any = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self.inputs = tuple(each.name for each in self._session.get_inputs())

    def run(self, inputs: Inputs) -> list[Tensor]:
        """All outputs; inputs that the graph does not read are passed over."""
        given = {name: inputs[name].cpu().numpy() for name in self.inputs}
        return [torch.from_numpy(output) for output in self._session.run(None, given)]


def compare(graph: nn.Module, path: Path, batches: Sequence[Inputs], what: str) -> Agreement:
    """How near the file's outputs are to the function's.

    Raises:
        UserError: onnxruntime cannot run the file, or the two differ; both numbers are in the
            line.
    """
    try:
        session = Session(path)
        found = [session.run(batch) for batch in batches]
    # onnxruntime raises exceptions of its own kinds, which share no base below Exception.
    except Exception as error:
        reason = first_line(error).rpartition("Status Message: ")[2]
        raise UserError(
            f"{what}: onnxruntime cannot run the ONNX file, which was removed: {reason[:200]}."
            f" {REMEDY}"
        ) from error
    expected = [_outputs(graph, batch) for batch in batches]
    pairs = [
        (of_graph, of_file)
        for first, second in zip(expected, found, strict=True)
        for of_graph, of_file in zip(first, second, strict=True)
    ]
    agreement = agree(pairs)
    if not agreement.holds:
        raise UserError(
            f"{what}: the ONNX file, which was removed, gives other vectors than the tower: least"
            f" cosine {agreement.cosine:.6f} (at least {LEAST_COSINE}), largest difference"
            f" {agreement.difference:.1e} of the largest value (at most {MOST_DIFFERENCE:g})."
            f" {REMEDY}"
        )
    return agreement


def agree(pairs: Sequence[tuple[Tensor, Tensor]]) -> Agreement:
    """How near pairs of `[N, D]` rows are; two rows of zeros are equal."""
    cosines, differences, rows = [1.0], [0.0], 0
    for expected, found in pairs:
        first, second = expected.double(), found.double()
        lengths = first.norm(dim=-1) * second.norm(dim=-1)
        cosine = torch.where(lengths > 0, (first * second).sum(-1) / lengths, 1.0)
        # A row of zeros next to one of numbers.
        cosine[(lengths == 0) & (first != second).any(-1)] = 0.0
        largest = float(first.abs().max())
        difference = float((first - second).abs().max())
        cosines.append(float(cosine.min()))
        differences.append(difference / largest if largest else difference)
        rows += len(first)
    broken = any(map(math.isnan, [*cosines, *differences]))
    return Agreement(
        math.nan if broken else min(cosines), math.nan if broken else max(differences), rows
    )


def _outputs(graph: nn.Module, batch: Inputs) -> Sequence[Tensor]:
    with torch.no_grad():
        outputs = graph(*batch.values())
    return (outputs,) if isinstance(outputs, Tensor) else outputs
