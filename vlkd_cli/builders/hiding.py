"""Hide positions of pictures inside a library's network, whose state dict stays the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from vlkd_cli.preprocessing import Grid

Masks = Literal["none", "drop", "replace", "complement"]


class Places(NamedTuple):
    """The modules of a network at which positions can be hidden; None if it has no such module.

    Args:
        embedding: gives a vector for each patch, before positions are added: `[B, T, D]`,
            `[B, H, W, D]`, or `[B, D, H, W]` where `channels_first`.
        width: D of those vectors.
        dropping: does nothing itself, between the positions and the first block; gives
            `[B, prefix + T, D]`.
    """

    embedding: nn.Module | None = None
    width: int = 0
    channels_first: bool = False
    dropping: nn.Module | None = None


class Hiding:
    """Hooks on a network that do nothing but inside `active`.

    The mask is set for one call and cleared after it, so that a run that ends in an exception (a
    recomputed forward stops early) leaves nothing behind. Copies of the network have hooks of their
    own: `copy.deepcopy` follows bound methods.
    """

    def __init__(self, places: Places) -> None:
        self._channels_first = places.channels_first
        self._grid: Grid | None = None
        self._hidden: Tensor | None = None
        self._token: Tensor | None = None
        self._visible: Tensor | None = None
        if places.embedding is not None:
            places.embedding.register_forward_hook(self._replace)
        if places.dropping is not None:
            places.dropping.register_forward_hook(self._drop)

    @staticmethod
    def kinds(places: Places) -> frozenset[str]:
        """The kinds of hiding that a network with these modules supports."""
        replacing = ("replace",) if places.embedding is not None else ()
        dropping = ("drop", "complement") if places.dropping is not None else ()
        return frozenset((*replacing, *dropping))

    @contextmanager
    def active(
        self, masks: Masks, hidden: Tensor, grid: Grid, token: Tensor | None
    ) -> Iterator[None]:
        """Context in which the network runs with hidden positions.

        Args:
            masks: "drop", "complement" or "replace".
            hidden: `[B, T]` bool over the positions of `grid`.
            token: what replaces hidden patches, `[D]`.

        Raises:
            ValueError: positions are dropped, and rows hide different numbers of them.
        """
        self._grid = grid
        if masks == "replace":
            assert token is not None, "masks: replace needs a mask token"
            self._hidden, self._token = hidden, token
        else:
            self._visible = positions(hidden if masks == "complement" else ~hidden)
        try:
            yield
        finally:
            self._grid = self._hidden = self._token = self._visible = None

    def _replace(self, module: nn.Module, given: object, patches: Tensor) -> Tensor | None:
        if self._grid is None or self._hidden is None or self._token is None:
            return None
        rows, columns = self._grid.rows, self._grid.columns
        hidden = self._hidden.view(-1, rows, columns)
        first = self._channels_first
        # A network that merges patches has more of them here than positions at its end.
        if patches.ndim == 3:
            factor = round((patches.shape[1] / (rows * columns)) ** 0.5)
        else:
            factor = patches.shape[2 if first else 1] // rows
        hidden = hidden.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
        token = self._token.to(patches.dtype)
        if first:
            return torch.where(hidden[:, None], token[:, None, None], patches)
        if patches.ndim == 3:
            hidden = hidden.flatten(1)
        return torch.where(hidden[..., None], token, patches)

    def _drop(self, module: nn.Module, given: object, tokens: Tensor) -> Tensor | None:
        if self._grid is None or self._visible is None:
            return None
        prefix = tokens.shape[1] - self._grid.num_places
        return torch.cat([tokens[:, :prefix], gather(tokens[:, prefix:], self._visible)], dim=1)


def positions(chosen: Tensor) -> Tensor:
    """The positions of the True entries of each row, rising: `[B, T]` bool to `[B, m]` int64.

    Raises:
        ValueError: rows have different numbers of them.
    """
    counts = chosen.sum(1)
    fewest, most = torch.stack([counts.min(), counts.max()]).tolist()
    if fewest != most:
        raise ValueError(
            f"rows have between {fewest} and {most} positions; all rows need the same number"
        )
    # A stable sort preserves the order of positions.
    return chosen.byte().sort(dim=1, descending=True, stable=True).indices[:, :most]


def gather(tokens: Tensor, chosen: Tensor) -> Tensor:
    """The tokens `[B, m, D]` of `[B, T, D]` at positions `[B, m]`."""
    return tokens.gather(1, chosen[..., None].expand(-1, -1, tokens.shape[-1]))
