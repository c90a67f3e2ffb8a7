"""Several methods at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from vlkd_cli.builders.adapters.methods.method import Method
from vlkd_cli.recipe.types import Positive, PositiveInt, Rate

if TYPE_CHECKING:
    from adapters import AdapterConfig


class MixAndMatch(Method):
    """Prefix tuning in the attention and a scaled bottleneck parallel to the feed-forward part.

    Args:
        prefix_length: number of learned positions.
        bottleneck_size: width of the network that produces them.
        reduction_factor: the layer's width over that of the parallel bottleneck.
        scaling: factor on what the parallel bottleneck adds.
        dropout: fraction of both parts' values dropped while training.

    Source: He et al., Towards a Unified View of Parameter-Efficient Transfer Learning,
        arXiv:2110.04366; as `adapters` builds it.
    """

    paper: ClassVar[str] = "arXiv:2110.04366"
    library: ClassVar[Literal["adapters", "peft"]] = "adapters"

    def __init__(
        self,
        *,
        prefix_length: PositiveInt = 30,
        bottleneck_size: PositiveInt = 800,
        reduction_factor: Positive = 2,
        scaling: Positive = 4.0,
        dropout: Rate = 0.0,
    ) -> None:
        self.prefix = {
            "prefix_length": prefix_length,
            "bottleneck_size": bottleneck_size,
            "dropout": dropout,
        }
        self.bottleneck = {
            "reduction_factor": reduction_factor,
            "scaling": scaling,
            "dropout": dropout,
        }

    def config(self) -> AdapterConfig:
        from adapters import MAMConfig, ParBnConfig, PrefixTuningConfig

        return MAMConfig(
            prefix_tuning=PrefixTuningConfig(**self.prefix), adapter=ParBnConfig(**self.bottleneck)
        )


class UniPELT(Method):
    """Prefix tuning, a bottleneck and LoRA, each behind a gate that the sentence sets.

    The gates average over all positions, so sentences are encoded in groups of equal length: an
    embedding does not depend on its batch, at the price of more and smaller forward passes.

    Args:
        prefix_length: number of learned positions.
        reduction_factor: the layer's width over that of the bottleneck.
        rank: inner width of LoRA's product.
        alpha: LoRA's scale times its rank.
        dropout: fraction of each part's values dropped while training.

    Source: Mao et al., UniPELT, arXiv:2110.07577; as the library `adapters` builds it.
    """

    paper: ClassVar[str] = "arXiv:2110.07577"
    library: ClassVar[Literal["adapters", "peft"]] = "adapters"
    gates_over_tokens: ClassVar[bool] = True

    def __init__(
        self,
        *,
        prefix_length: PositiveInt = 10,
        reduction_factor: Positive = 16,
        rank: PositiveInt = 8,
        alpha: PositiveInt = 2,
        dropout: Rate = 0.0,
    ) -> None:
        self.prefix = {"prefix_length": prefix_length, "dropout": dropout}
        self.bottleneck = {"reduction_factor": reduction_factor, "dropout": dropout}
        self.lora = {"r": rank, "alpha": alpha, "dropout": dropout}

    def config(self) -> AdapterConfig:
        from adapters import LoRAConfig, PrefixTuningConfig, SeqBnConfig, UniPELTConfig

        return UniPELTConfig(
            prefix_tuning=PrefixTuningConfig(**self.prefix),
            adapter=SeqBnConfig(**self.bottleneck),
            lora=LoRAConfig(**self.lora),
        )
