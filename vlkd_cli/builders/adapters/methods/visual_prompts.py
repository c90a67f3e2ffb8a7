"""Visual prompt tuning, as a recipe writes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from vlkd_cli.builders.adapters.methods.method import Method
from vlkd_cli.recipe.types import ModalityName, PositiveInt, Rate

if TYPE_CHECKING:
    from adapters import AdapterConfig


class VPT(Method):
    """Learned tokens among the patches of a frozen vision transformer.

    Args:
        tokens: learned tokens of a block.
        deep: every block has tokens of its own, which replace what the one before made of its;
            false: the first block's are carried on.
        dropout: of the learned tokens in training.
        last: blocks from the end that have them; by default all.

    Source: Jia et al., Visual Prompt Tuning, ECCV 2022, arXiv:2203.12119, section 3.2.
    """

    paper: ClassVar[str] = "arXiv:2203.12119"
    library: ClassVar[Literal["adapters", "peft", "vlkd"]] = "vlkd"
    modalities: ClassVar[tuple[ModalityName, ...]] = ("image",)

    def __init__(
        self,
        *,
        tokens: PositiveInt = 10,
        deep: bool = True,
        dropout: Rate = 0.0,
        last: PositiveInt | None = None,
    ) -> None:
        self.tokens, self.deep, self.dropout, self.last = tokens, deep, dropout, last

    def config(self) -> AdapterConfig:
        raise NotImplementedError("visual prompts are vlkd's own")
