"""Small networks between or parallel to the layers: bottleneck adapters, invertible language
adapters and Compacter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from vlkd_cli.builders.adapters.methods.method import Method
from vlkd_cli.recipe.types import NonNegativeInt, Positive, PositiveInt, Rate

if TYPE_CHECKING:
    from adapters import AdapterConfig


def _given(**options: object) -> dict[str, object]:
    return {key: value for key, value in options.items() if value is not None}


class Bottleneck(Method):
    """Project down, bend, project up, add: after the attention, after the feed-forward part, or
    both.

    Args:
        form: `plain` and `houlsby` sit after both parts of a layer, `pfeiffer`, `parallel` and
            `adapter_plus` at its feed-forward part; `parallel` runs parallel to it and starts as
            the exact identity; `adapter_plus` scales each channel and drops layers at random.
        reduction_factor: the layer's width over the bottleneck's; by default the form's own (16,
            parallel 2, adapter_plus 96).
        non_linearity: by default the form's own (plain, pfeiffer, parallel: relu; houlsby: swish;
            adapter_plus: gelu).
        scaling: factor on what is added, a number, one learned number or one learned number per
            channel; by default the form's own.
        dropout: fraction of the adapter's values dropped while training.
        leave_out: layers, counted from 0, that get no adapter.

    Source: Houlsby et al., arXiv:1902.00751; Pfeiffer et al., arXiv:2005.00247; He et al.,
    arXiv:2110.04366 (parallel); Steitz and Roth, arXiv:2406.06820 (AdapterPlus); as the library
    `adapters` builds them.
    """

    paper: ClassVar[str] = "arXiv:1902.00751, 2005.00247, 2110.04366, 2406.06820"
    library: ClassVar[Literal["adapters", "peft"]] = "adapters"

    def __init__(
        self,
        *,
        form: Literal["plain", "houlsby", "pfeiffer", "parallel", "adapter_plus"] = "plain",
        reduction_factor: Positive | None = None,
        non_linearity: (
            Literal["relu", "gelu", "swish", "tanh", "leakyrelu", "linear"] | None
        ) = None,
        scaling: Positive | Literal["learned", "channel"] | None = None,
        dropout: Rate = 0.0,
        leave_out: Sequence[NonNegativeInt] = (),
    ) -> None:
        self.form = form
        self.options = _given(
            reduction_factor=reduction_factor, non_linearity=non_linearity, scaling=scaling
        )
        self.dropout = dropout
        self.named_layers = list(leave_out)

    def config(self) -> AdapterConfig:
        from adapters import (
            AdapterPlusConfig,
            BnConfig,
            DoubleSeqBnConfig,
            ParBnConfig,
            SeqBnConfig,
        )

        options = {**self.options, "dropout": self.dropout, "leave_out": self.named_layers}
        if self.form == "plain":
            plain = {
                "mh_adapter": True,
                "output_adapter": True,
                "reduction_factor": 16,
                "non_linearity": "relu",
            }
            return BnConfig(**{**plain, **options})
        presets = {
            "houlsby": DoubleSeqBnConfig,
            "pfeiffer": SeqBnConfig,
            "parallel": ParBnConfig,
            "adapter_plus": AdapterPlusConfig,
        }
        return presets[self.form](**options)


class Language(Method):
    """Bottleneck adapters with an invertible network after the embeddings, as MAD-X learns a
    language.

    Args:
        form: `pfeiffer` (after the feed-forward part) or `houlsby` (after both parts of a layer).
        reduction_factor: the layer's width over the bottleneck's.
        inverse_reduction_factor: half the embedding's width over the hidden width of the invertible
            network.
        dropout: fraction of the adapter's values dropped while training.
        leave_out: layers, counted from 0, that get no adapter.

    Source: Pfeiffer et al., MAD-X, arXiv:2005.00052, section 3.2; as the library `adapters` builds
    it, with additive coupling (its affine coupling fails on every encoder).
    """

    paper: ClassVar[str] = "arXiv:2005.00052"
    library: ClassVar[Literal["adapters", "peft"]] = "adapters"

    def __init__(
        self,
        *,
        form: Literal["pfeiffer", "houlsby"] = "pfeiffer",
        reduction_factor: Positive = 16,
        inverse_reduction_factor: Positive = 2,
        dropout: Rate = 0.0,
        leave_out: Sequence[NonNegativeInt] = (),
    ) -> None:
        self.form = form
        self.inverse_reduction_factor = inverse_reduction_factor
        self.options = {
            "reduction_factor": reduction_factor,
            "inv_adapter": "nice",
            "inv_adapter_reduction_factor": inverse_reduction_factor,
            "dropout": dropout,
            "leave_out": list(leave_out),
        }
        self.named_layers = list(leave_out)

    def config(self) -> AdapterConfig:
        from adapters import DoubleSeqBnInvConfig, SeqBnInvConfig

        return (SeqBnInvConfig if self.form == "pfeiffer" else DoubleSeqBnInvConfig)(**self.options)

    def problems(self, hidden_size: int) -> list[str]:
        if hidden_size // 2 // self.inverse_reduction_factor >= 1:
            return []
        return [
            f"adapter.inverse_reduction_factor: half the width {hidden_size} over"
            f" {self.inverse_reduction_factor:g} leaves the invertible network no unit. Choose at"
            f" most {hidden_size // 2}."
        ]


class Compacter(Method):
    """Bottleneck adapters whose matrices are sums of Kronecker products with small matrices shared
    by all layers.

    Args:
        form: `compacter` sits after both parts of a layer, `compacter_plus_plus` after the
            feed-forward part only.
        reduction_factor: the layer's width over the bottleneck's; the quotient must be a multiple
            of `terms`.
        terms: number of Kronecker products summed, and the side of the small matrices.
        factor_rank: rank of the large factors.
        shared_rule: whether all layers share the small matrices.
        dropout: fraction of the adapter's values dropped while training.
        leave_out: layers, counted from 0, that get no adapter.

    Source: Mahabadi et al., Compacter, arXiv:2106.04647; as the library `adapters` builds it,
        except that what is shared is saved.
    """

    paper: ClassVar[str] = "arXiv:2106.04647"
    library: ClassVar[Literal["adapters", "peft"]] = "adapters"

    def __init__(
        self,
        *,
        form: Literal["compacter", "compacter_plus_plus"] = "compacter",
        reduction_factor: Positive = 32,
        terms: PositiveInt = 4,
        factor_rank: PositiveInt = 1,
        shared_rule: bool = True,
        dropout: Rate = 0.0,
        leave_out: Sequence[NonNegativeInt] = (),
    ) -> None:
        self.form = form
        self.reduction_factor = reduction_factor
        self.terms = terms
        self.options = {
            "reduction_factor": reduction_factor,
            "phm_dim": terms,
            "phm_rank": factor_rank,
            "shared_phm_rule": shared_rule,
            "dropout": dropout,
            "leave_out": list(leave_out),
        }
        self.named_layers = list(leave_out)

    def config(self) -> AdapterConfig:
        from adapters import CompacterConfig, CompacterPlusPlusConfig

        return (CompacterConfig if self.form == "compacter" else CompacterPlusPlusConfig)(
            **self.options
        )

    def problems(self, hidden_size: int) -> list[str]:
        bottleneck = int(hidden_size // self.reduction_factor)
        if hidden_size % self.terms == 0 and bottleneck and bottleneck % self.terms == 0:
            return []
        return [
            f"adapter.reduction_factor: width {hidden_size} over {self.reduction_factor:g} is a"
            f" bottleneck of {bottleneck}, and compacter needs a multiple of terms ({self.terms})."
            " Choose a reduction_factor that leaves one."
        ]
