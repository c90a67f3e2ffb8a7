"""A text encoder of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from vlkd_cli.builders.backbone import Encoded, Tokens
from vlkd_cli.builders.guard import one_line
from vlkd_cli.builders.huggingface.dual import Origin
from vlkd_cli.builders.huggingface.library_encoder import LibraryEncoder
from vlkd_cli.builders.huggingface.save import save_tokenizer
from vlkd_cli.builders.layers import find_layers
from vlkd_cli.builders.padding import Outputs, by_length, leaks, probing
from vlkd_cli.errors import RecipeError
from vlkd_cli.poolers import masked_mean
from vlkd_cli.preprocessing import TextInput, Tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig
    from transformers.modeling_outputs import BaseModelOutputWithPooling


class HuggingFaceText(LibraryEncoder):
    """A transformers encoder: mean over the real tokens of the last layer, or the model's own
    pooled output.

    Args:
        encoder: takes `input_ids` and `attention_mask`, returns an output with `last_hidden_state`.
        config: its configuration.
        tokenizer: a picklable callable from strings to a TextInput.
        own_pooler: use `pooler_output`.
        origin: the dual encoder that it is a half of.
    """

    modality = "text"
    input: Tokenizer
    exported_keys = ("max_length", "own_pooler", "trust")

    def __init__(
        self,
        encoder: nn.Module,
        config: PretrainedConfig,
        tokenizer: Tokenizer,
        *,
        own_pooler: bool = False,
        settings: str = "",
        origin: Origin | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.origin = encoder, origin
        self.config = config
        self.input = tokenizer
        self.own_pooler = own_pooler
        self.settings = settings
        self.by_length = False
        self.width, self.token_width = self._measure()

    def run(self, inputs: TextInput, *, tokens: bool) -> Encoded:
        output, mask = self._run(inputs), inputs["attention_mask"].bool()
        feature = (
            output.pooler_output if self.own_pooler else masked_mean(output.last_hidden_state, mask)
        )
        return Encoded(feature, Tokens(output.last_hidden_state, mask))

    def layers(self) -> list[list[str]]:
        return find_layers(self.encoder)

    @property
    def reads(self) -> str:
        return (
            "pooler_output"
            if self.own_pooler
            else "the mean of last_hidden_state over the real tokens"
        )

    def save_input(self, folder: Path) -> None:
        save_tokenizer(self.input, folder)

    def _run(self, inputs: TextInput) -> BaseModelOutputWithPooling:
        """The encoder's output; padding changes nothing in it."""
        if not self.by_length:
            return self._run_batch(inputs)
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        found = by_length(inputs, self._outputs)
        return BaseModelOutputWithPooling(found["tokens"], found.get("pooled"))

    def _run_batch(self, inputs: TextInput) -> BaseModelOutputWithPooling:
        return self.encoder(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], return_dict=True
        )

    def _outputs(self, inputs: TextInput) -> Outputs:
        output = self._run_batch(inputs)
        found = {"tokens": output.last_hidden_state}
        return found | {"pooled": output.pooler_output} if self.own_pooler else found

    def _measure(self) -> tuple[int, int]:
        """Widths of the feature and of the tokens, by a run over one word; also finds out whether
        the encoder lets padding leak, and then encodes texts of equal length together."""
        inputs = self.input(["a"])
        kind = self.config.model_type
        what = f"builder 'huggingface': models of type '{kind}' do not encode plain texts"
        with probing(self.encoder), one_line(what, "Choose another model."):
            output = self._run_batch(inputs)
            tokens = output.last_hidden_state
        if self.own_pooler and getattr(output, "pooler_output", None) is None:
            raise RecipeError(
                "builder 'huggingface': this model has no pooler of its own. Remove `own_pooler` or"
                " use `pooler: {name: cls}`."
            )
        if getattr(self.input, "fills", False):
            return int(output.pooler_output.shape[-1]), int(tokens.shape[-1])
        with probing(self.encoder):
            self.by_length = leaks(inputs, self._outputs, getattr(self.input, "pad", 0))
        width = output.pooler_output.shape[-1] if self.own_pooler else tokens.shape[-1]
        return int(width), int(tokens.shape[-1])
