"""Edits of hidden states at the first and last tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from vlkd_cli.builders.adapters.methods.method import Method
from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.types import NonNegativeInt, PositiveInt, Rate

if TYPE_CHECKING:
    from adapters import AdapterConfig


class ReFT(Method):
    """After each layer, edit the hidden states of the first and last tokens inside a subspace of
    low rank.

    Args:
        form: `loreft` (orthogonal projection), `noreft` (any projection), `direft` (the old part is
            not taken away).
        rank: dimensions of the subspace.
        first_tokens: how many tokens from the front are edited.
        last_tokens: how many real tokens from the end are edited.
        tied: one edit for the first and the last tokens instead of two. Untied, the edit of a side
            without tokens never learns.
        layers: layers, counted from 0, whose output is edited; by default all.
        dropout: fraction of the edited values dropped while training.

    Source: Wu et al., ReFT, arXiv:2404.03592, section 3.2; as the library `adapters` builds it,
    except that the form is saved and that loreft's projection is made orthonormal by QR, which
    weight decay does not break.
    """

    paper: ClassVar[str] = "arXiv:2404.03592"
    library: ClassVar[Literal["adapters", "peft"]] = "adapters"

    def __init__(
        self,
        *,
        form: Literal["loreft", "noreft", "direft"] = "loreft",
        rank: PositiveInt = 1,
        first_tokens: NonNegativeInt = 3,
        last_tokens: NonNegativeInt = 0,
        tied: bool = False,
        layers: Sequence[NonNegativeInt] | None = None,
        dropout: Rate = 0.05,
    ) -> None:
        if first_tokens + last_tokens == 0:
            raise RecipeError(
                "adapter.first_tokens: with last_tokens: 0 too, nothing is edited. Set one of the"
                " two above 0."
            )
        self.form, self.rank = form, rank
        self.first_tokens, self.last_tokens = first_tokens, last_tokens
        self.named_layers = list(layers or ())
        self.options = {
            "r": rank,
            "prefix_positions": first_tokens,
            "suffix_positions": last_tokens,
            "tied_weights": tied,
            "layers": "all" if layers is None else list(layers),
            "dropout": dropout,
        }

    def problems(self, hidden_size: int) -> list[str]:
        if self.form != "loreft" or self.rank <= hidden_size:
            return []
        return [
            f"adapter.rank: {self.rank} directions cannot be orthogonal in {hidden_size}"
            f" dimensions. Choose at most {hidden_size}."
        ]

    def config(self) -> AdapterConfig:
        from adapters import DiReftConfig, LoReftConfig, NoReftConfig

        return {"loreft": LoReftConfig, "noreft": NoReftConfig, "direft": DiReftConfig}[self.form](
            **self.options
        )
