"""Batches on their way to the device."""

from __future__ import annotations

import torch

from vlkd_cli.data.batch import Batch


class Copies:
    """Copies batches to a device; on a GPU on a stream of their own.

    The host is steps ahead of the GPU, so that a batch is copied while former steps are computed;
    on their stream it would wait for them. Batches come from pinned memory.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: Batch) -> Batch:
        """The batch, which what is computed from now on may read."""
        if self._stream is None:
            return batch.to(self.device)
        computing = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._stream):
            moved = batch.to(self.device)
        computing.wait_stream(self._stream)
        # Their memory is not to be used again before these computations are done.
        for tensor in moved.tensors():
            tensor.record_stream(computing)
        return moved
