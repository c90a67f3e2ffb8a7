"""Padded texts: how rows of tokens become one tensor, and encoders that let padding leak into their
outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vlkd_cli.preprocessing import TextInput

Outputs = dict[str, Tensor]
"""Outputs by name: tokens `[B, T, D]` under "tokens", others `[B, ...]`."""
PROBE_PADDING = 8
LEAK = 1e-4
"""Largest difference, as a fraction of the largest value, that is put down to rounding."""


def pad(rows: Sequence[Sequence[int]], number: int = 0, least: int = 1) -> TextInput:
    """Ids and mask, padded on the right to the longest row; at least one column, so that poolers
    have something to mask.

    Positions then count from a text's first token in every family of encoders, whatever side a
    library would pad.

    Args:
        rows: token ids of each text.
        number: the id that fills up; the mask hides it.
        least: fewest columns.
    """
    length = max([least, *map(len, rows)])
    filled = [[*row, *[number] * (length - len(row))] for row in rows]
    lengths = torch.tensor([len(row) for row in rows]).view(-1, 1)
    return {
        "input_ids": torch.tensor(filled, dtype=torch.long).view(len(rows), length),
        "attention_mask": (torch.arange(length)[None] < lengths).long(),
    }


def by_length(inputs: TextInput, run: Callable[[TextInput], Outputs]) -> Outputs:
    """Encode texts of equal length together and without padding, and put them back in order.

    Costs more and smaller runs; for encoders whose outputs would depend on the padding.

    Args:
        inputs: tensors `[B, T]`, `attention_mask` among them, or `[B, ...]`.
        run: encodes such inputs; its output "tokens" is scattered to the original positions again,
            zeros at the padding.
    """
    mask = inputs["attention_mask"].bool()
    lengths = mask.sum(1)
    outputs: Outputs = {}
    for length in lengths.unique().tolist():
        rows = (lengths == length).nonzero().squeeze(1)
        real = {
            name: values[rows][mask[rows]].view(len(rows), length)
            if values.shape == mask.shape
            else values[rows]
            for name, values in inputs.items()
        }
        for name, found in run(real).items():
            if name == "tokens":
                shape = (*mask[rows].shape, found.shape[-1])
                found = found.new_zeros(shape).masked_scatter(mask[rows].unsqueeze(-1), found)
            whole = outputs.get(name, found.new_zeros(len(mask), *found.shape[1:]))
            outputs[name] = whole.index_put((rows,), found)
    return outputs


@contextmanager
def probing(encoder: nn.Module) -> Iterator[None]:
    """Eval mode without gradients for a trial run, which leaves no trace: modes and torch's random
    numbers are as they were."""
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def leaks(
    inputs: TextInput, run: Callable[[TextInput], Mapping[str, Tensor]], number: int = 0
) -> bool:
    """Whether padding behind a text changes what an encoder in eval mode gives for it.

    Args:
        inputs: of one text, without padding.
        number: the id that fills up.
    """
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    padded = {
        "input_ids": torch.cat([ids, ids.new_full((1, PROBE_PADDING), number)], dim=1),
        "attention_mask": torch.cat([mask, mask.new_zeros(1, PROBE_PADDING)], dim=1),
    }
    alone, beside = run(inputs), run(padded)
    for name, expected in alone.items():
        found = beside[name][:, : expected.shape[1]] if name == "tokens" else beside[name]
        if float((found - expected).abs().max()) > LEAK * max(1.0, float(expected.abs().max())):
            return True
    return False
