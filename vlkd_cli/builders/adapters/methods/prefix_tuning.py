"""Learned keys and values, or learned word vectors, before the sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from vlkd_cli.builders.adapters.methods.method import Method
from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.types import NonNegativeInt, PositiveInt, Rate

if TYPE_CHECKING:
    from adapters import AdapterConfig
    from peft import PeftConfig


class PrefixTuning(Method):
    """Learned keys and values before those of the sentence, in every attention.

    Args:
        length: number of learned positions.
        flat: learn keys and values directly instead of through a small network that produces them.
        bottleneck_size: width of that network, 512 by default; has no meaning with `flat`.
        dropout: fraction of the prefix's values dropped while training.
        leave_out: layers, counted from 0, that get no prefix.

    Source: Li and Liang, Prefix-Tuning, arXiv:2101.00190; as the library `adapters` builds it.
    """

    paper: ClassVar[str] = "arXiv:2101.00190"
    library: ClassVar[Literal["adapters", "peft"]] = "adapters"

    def __init__(
        self,
        *,
        length: PositiveInt = 30,
        flat: bool = False,
        bottleneck_size: PositiveInt | None = None,
        dropout: Rate = 0.0,
        leave_out: Sequence[NonNegativeInt] = (),
    ) -> None:
        if flat and bottleneck_size is not None:
            raise RecipeError(
                "adapter.bottleneck_size: has no effect with flat: true. Remove one of the two."
            )
        self.named_layers = list(leave_out)
        self.options = {
            "prefix_length": length,
            "flat": flat,
            "bottleneck_size": bottleneck_size or 512,
            "dropout": dropout,
            "leave_out": list(leave_out),
        }

    def config(self) -> AdapterConfig:
        from adapters import PrefixTuningConfig

        return PrefixTuningConfig(**self.options)


class PromptTuning(Method):
    """Learned word vectors before those of the sentence. They take part in the attention, and no
    pooler sees them.

    Args:
        length: number of learned vectors; the longest sentence is shorter by as many tokens.
        init: `vocabulary` starts from randomly sampled words, `text` from `init_text`, `random`
            from a normal distribution.
        init_text: the words to start from, repeated or cut to `length`; only with init: text.

    Source: Lester et al., The Power of Scale for Parameter-Efficient Prompt Tuning,
    arXiv:2104.08691; the vectors are peft's, because with those of `adapters` padding leaks into
    the sentence.
    """

    paper: ClassVar[str] = "arXiv:2104.08691"
    library: ClassVar[Literal["adapters", "peft"]] = "peft"

    def __init__(
        self,
        *,
        length: PositiveInt = 10,
        init: Literal["vocabulary", "text", "random"] = "vocabulary",
        init_text: str | None = None,
    ) -> None:
        if (init == "text") != (init_text is not None):
            raise RecipeError("adapter.init_text: needs init: text, and init: text needs it.")
        self.length = length
        self.init = init
        self.init_text = init_text

    @property
    def prompt_length(self) -> int:
        return self.length

    def config(self) -> PeftConfig:
        from peft import PromptTuningConfig

        # Words are looked up with the tower's own tokenizer afterwards, so peft never opens one.
        init = "SAMPLE_VOCAB" if self.init == "vocabulary" else "RANDOM"
        return PromptTuningConfig(
            num_virtual_tokens=self.length, num_transformer_submodules=1, prompt_tuning_init=init
        )
