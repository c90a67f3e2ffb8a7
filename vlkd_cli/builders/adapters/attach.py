"""Add a parameter-efficient method to a Hugging Face encoder, in place: afterwards only the
weights of the method are trainable."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vlkd_cli.builders.adapters.methods.low_rank import IA3, MTLLoRA, PeftMethod
from vlkd_cli.builders.adapters.methods.method import Method
from vlkd_cli.builders.adapters.methods.prefix_tuning import PrefixTuning, PromptTuning
from vlkd_cli.builders.adapters.methods.reft import ReFT
from vlkd_cli.builders.adapters.targets import ENDS
from vlkd_cli.errors import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.modeling_outputs import BaseModelOutputWithPooling

NAME = "vlkd"
"""What the libraries call our adapter; part of the name of each of its weights, which
distinguishes them from the encoder's."""

NOTHING = (
    "adapter: adds nothing to this encoder. Look at its layers, leave_out or targets: each leaves"
    " every layer out."
)

# The end of a module's name by its role, over the families that transformers has.
_ROLES: dict[str, tuple[str, ...]] = {
    **{role: ENDS[role] for role in ("q", "k", "v")},
    "o": (
        "attention.output.dense",
        "attention.dense",
        "attn.o",
        "o",
        "out_lin",
        "out_proj",
        "o_proj",
    ),
    "intermediate": (
        "intermediate.dense",
        "ffn",
        "lin1",
        "wi",
        "wi_0",
        "wi_1",
        "fc1",
        "gate_proj",
        "up_proj",
    ),
    "output": ("output.dense", "ffn_output", "lin2", "wo", "fc2", "down_proj"),
}


def attach(
    model: PreTrainedModel, method: Method, tokenize: Callable[[str], Sequence[int]]
) -> None:
    """Add the method's modules to a transformers model and freeze everything else. The model is
    left in eval mode.

    Args:
        tokenize: the token ids of a text, for prompts that start from one.

    Raises:
        RecipeError: the method does not fit this encoder.
    """
    if problems := method.problems(int(model.config.hidden_size)):
        raise RecipeError(problems[0])
    count = int(model.config.num_hidden_layers)
    if beyond := [layer for layer in method.named_layers if layer >= count]:
        raise RecipeError(
            f"adapter: names layer {beyond[0]}, but this encoder has layers 0 to {count - 1}."
        )
    if isinstance(method, PrefixTuning) and len(set(method.named_layers)) == count:
        # The library fails on it without a word that helps.
        raise RecipeError(NOTHING)
    if isinstance(method, PromptTuning):
        _attach_prompt(model, method, tokenize)
    elif isinstance(method, PeftMethod):
        _attach_peft(model, method)
    else:
        with _quiet("adapters"):
            _attach_adapters(model, method)
    if model.config.model_type == "deberta-v2":
        _cast_projections(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_own(name))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise RecipeError(NOTHING)
    # Both libraries leave the model in training mode, whose dropout would reach an evaluation.
    model.eval()


def encoder_model(stack: PreTrainedModel) -> PreTrainedModel:
    """The model that the libraries know: for T5's bare stack of layers, the T5EncoderModel around
    it; else the model itself."""
    if type(stack).__name__ != "T5Stack":
        return stack
    from transformers import T5EncoderModel

    with torch.device("meta"):
        model = T5EncoderModel(stack.config)
    model.shared = stack.embed_tokens
    model.encoder = stack
    return model.eval()


def is_own(name: str) -> bool:
    """Whether a parameter or buffer belongs to the adapter, by its name."""
    return any(part == NAME or part.startswith(f"{NAME}_") for part in name.split("."))


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The adapter's parameters and buffers, each once, under the first of its names.

    Buffers belong to it: the fixed matrices of VeRA are random numbers.
    """
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor for name, tensor in named if is_own(name)}


def _attach_adapters(model: PreTrainedModel, method: Method) -> None:
    import adapters
    from adapters.composition import MultiTask

    adapters.init(
        model, interface=_mpnet_interface() if model.config.model_type == "mpnet" else None
    )
    if isinstance(method, MTLLoRA):
        names = [f"{NAME}_{index}" for index in range(len(method.tasks))]
        for name in names:
            model.add_adapter(name, config=method.config())
        # Without this the thin matrices, which are what the tasks have in common, would be one copy
        # per task.
        model.share_parameters(names, name=NAME)
        model.train_adapter(MultiTask(*names))
        return
    model.add_adapter(NAME, config=method.config())
    model.train_adapter(NAME)
    if isinstance(method, ReFT):
        _edit_short_sentences(model, method)
    for module in model.modules():
        if parametrize.is_parametrized(module, "weight") and isinstance(module, nn.Linear):
            _make_decayable(module)


def _edit_short_sentences(model: nn.Module, method: ReFT) -> None:
    for module in model.modules():
        if (
            type(module).__name__ == "ReftLayer"
            and isinstance(edits := module.refts, nn.ModuleDict)
            and NAME in edits
        ):
            edits[NAME] = _Edits(
                edits[NAME].get_submodule("units"), method.first_tokens, method.last_tokens
            )


class _Edits(nn.Module):
    """ReFT's edits by a mask over positions.

    The library's own indices leave a sentence with fewer tokens than are edited, and take one end's
    states for the other's.

    Args:
        units: the edit of the first tokens, and that of the last ones where it is another.
        first: how many tokens from the front are edited.
        last: how many real tokens from the end are edited; where both would edit a token, this one
            does.
    """

    def __init__(self, units: nn.Module, first: int, last: int) -> None:
        super().__init__()
        self.units = units
        self.first, self.last = first, last

    def forward(self, states: Tensor) -> Tensor:
        from adapters.context import ForwardContext

        context: Any = ForwardContext.get_context()
        start, length = context.offsets.view(-1, 1), context.seqlens.view(-1, 1)
        index = torch.arange(states.shape[1], device=states.device) - start
        real = (index >= 0) & (index < length)
        units = list(self.units.children())
        edited = torch.where(
            (real & (index < self.first)).unsqueeze(-1), units[0](states).to(states.dtype), states
        )
        return torch.where(
            (real & (index >= length - self.last)).unsqueeze(-1),
            units[-1](states).to(states.dtype),
            edited,
        )


def _make_decayable(projection: nn.Linear) -> None:
    # torch's own parametrization reads signs from the whole part of learned numbers that start at
    # 1: with weight decay they are 0 after the first step, and so is the whole matrix. It also
    # holds a fixed random matrix of the encoder's width squared, which would be saved.
    parametrize.remove_parametrizations(projection, "weight", leave_parametrized=True)
    parametrize.register_parametrization(projection, "weight", _OrthonormalRows())


class _OrthonormalRows(nn.Module):
    """The orthonormal basis of a matrix's rows, by QR with a positive diagonal. Weight decay, which
    scales the matrix, changes nothing."""

    def forward(self, rows: Tensor) -> Tensor:
        basis, triangle = torch.linalg.qr(rows.mT)
        orthogonal: Tensor = (basis * triangle.diagonal().sign()).mT
        return orthogonal

    def right_inverse(self, rows: Tensor) -> Tensor:
        return rows


def _mpnet_interface() -> object:
    from adapters import AdapterModelInterface

    return AdapterModelInterface(
        adapter_methods=["bottleneck", "reft", "invertible"],
        model_embeddings="embeddings",
        model_layers="encoder.layer",
        layer_self_attn="attention.attn",
        layer_cross_attn=None,
        attn_q_proj="q",
        attn_k_proj="k",
        attn_v_proj="v",
        attn_o_proj="o",
        layer_intermediate_proj="intermediate.dense",
        layer_output_proj="output.dense",
        layer_pre_self_attn="attention",
        layer_pre_ffn="intermediate",
        layer_ln_1="attention.LayerNorm",
        layer_ln_2="output.LayerNorm",
    )


def _attach_peft(model: PreTrainedModel, method: PeftMethod) -> None:
    from peft import get_peft_model

    config = method.config()
    targets = method.text_targets if method.targets is None else method.targets
    found = find_targets(model, targets)
    if not found and not getattr(method, "feed_forward", False):
        raise RecipeError(
            "adapter.targets: is empty, so nothing would be trained. Name at least one, e.g. q."
        )
    if isinstance(method, IA3) and method.feed_forward:
        config.feedforward_modules = find_targets(model, ["output"])
        found = [*found, *config.feedforward_modules]
    config.target_modules = found
    # The wrapper that comes back is not needed: the modules are in the model already, under its own
    # names.
    get_peft_model(model, config, adapter_name=NAME)


def find_targets(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """The full names of the linear layers that match roles (q, k, v, o, intermediate, output) or
    ends of names.

    Raises:
        RecipeError: a target matches none.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    chosen: list[str] = []
    for target in targets:
        ends = _ROLES.get(target, (target,))
        found = [
            name for name in linear if any(name == end or name.endswith(f".{end}") for end in ends)
        ]
        if target == "output":
            found = [name for name in found if "attention." not in name]
        if not found:
            known = sorted({name.rsplit(".", 1)[-1] for name in linear})
            raise RecipeError(
                f"adapter.targets: '{target}' names no linear layer of this {type(model).__name__}."
                f" Its layers end in {', '.join(known)}."
            )
        chosen += [name for name in found if name not in chosen]
    return chosen


def _cast_projections(model: nn.Module) -> None:
    # DeBERTa masks its scores with the lowest number of the queries' type. Under autocast some
    # methods hand it float32 queries for bfloat16 scores, where that number does not exist.
    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1] in ("query_proj", "key_proj", "value_proj"):
            module.register_forward_hook(_to_autocast_type)


def _to_autocast_type(module: nn.Module, arguments: tuple[object, ...], output: Tensor) -> Tensor:
    kind = output.device.type
    return output.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else output


class _Prompt(nn.Module):
    """Holds peft's prompt vectors where the forward hooks of the encoder find them."""

    def __init__(self, vectors: nn.Module, length: int) -> None:
        super().__init__()
        self.vectors = nn.ModuleDict({NAME: vectors})
        self.length = length

    def forward(self, batch: int) -> Tensor:
        vectors: Any = self.vectors[NAME]
        learned: Tensor = vectors.embedding.weight
        return learned.unsqueeze(0).expand(batch, -1, -1)


def _attach_prompt(
    model: PreTrainedModel, method: PromptTuning, tokenize: Callable[[str], Sequence[int]]
) -> None:
    from peft import PromptEmbedding

    words = model.get_input_embeddings()
    config = method.config()
    config.token_dim = words.embedding_dim
    vectors = PromptEmbedding(config, words)
    if method.init_text is not None:
        ids = list(tokenize(method.init_text))
        if not ids:
            raise RecipeError(
                "adapter.init_text: the tokenizer finds no tokens in it. Write at least one word."
            )
        repeated = (ids * (method.length // len(ids) + 1))[: method.length]
        with torch.no_grad():
            vectors.embedding.weight.copy_(
                words.weight[torch.tensor(repeated, device=words.weight.device)]
            )
    model.prompt_tuning = _Prompt(vectors, method.length)
    # Hooks, not a wrapper: the class of the encoder and the names of its weights stay the same.
    model.register_forward_pre_hook(_prepend, with_kwargs=True)
    model.register_forward_hook(_strip)


def _prepend(
    model: PreTrainedModel, arguments: tuple[object, ...], keywords: dict[str, Tensor]
) -> tuple[tuple[object, ...], dict[str, Tensor]]:
    ids = keywords.pop("input_ids")
    mask = keywords.pop("attention_mask", None)
    vectors = model.prompt_tuning(ids.shape[0])
    embedded = model.get_input_embeddings()(ids)
    keywords["inputs_embeds"] = torch.cat([vectors.to(embedded.dtype), embedded], dim=1)
    mask = torch.ones_like(ids) if mask is None else mask
    keywords["attention_mask"] = torch.cat(
        [mask.new_ones(mask.shape[0], vectors.shape[1]), mask], dim=1
    )
    return arguments, keywords


def _strip(
    model: PreTrainedModel, arguments: tuple[object, ...], output: BaseModelOutputWithPooling
) -> BaseModelOutputWithPooling:
    # A pooler must see the sentence's own tokens only: the first token at position 0, and as many
    # states as the mask has columns.
    output.last_hidden_state = output.last_hidden_state[:, model.prompt_tuning.length :]
    if (
        getattr(output, "pooler_output", None) is not None
        and getattr(model, "pooler", None) is not None
    ):
        output.pooler_output = model.pooler(output.last_hidden_state)
    return output


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Without the library's remarks on steps in between, such as an adapter that is not active
    yet."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
