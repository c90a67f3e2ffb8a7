"""Learned prompt vectors for the text towers of open_clip."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlkd_cli.errors import RecipeError
from vlkd_cli.preprocessing import TextInput
from vlkd_cli.recipe.types import PositiveInt

# Marks in the token ids the position of a learned vector. It is neither padding (0) nor, being
# small, the end token that pooling looks for.
PLACEHOLDER = 1


class CoOp:
    """Learned word vectors between the start token and the caption, shared by all captions.

    `train: prompt` learns them (and the head) in a frozen tower, `train: all` learns the tower too.
    Captions are cut earlier by as many tokens.

    Args:
        tokens: number of learned vectors.
        init_text: words whose vectors they start from, repeated or cut to `tokens`; by default
            small random numbers.

    Source: Zhou et al., Learning to Prompt for Vision-Language Models, arXiv:2109.01134, section
    3.2: one prompt for all classes, the class at the end, standard deviation 0.02.
    """

    def __init__(self, *, tokens: PositiveInt = 4, init_text: str | None = None) -> None:
        self.tokens = tokens
        self.init_text = init_text

    def attach(self, backbone: Any) -> None:
        """Give an open_clip text backbone the prompt, in place.

        Raises:
            RecipeError: the tower has no word vectors of open_clip's own, or no room for the prompt
                and a caption.
        """
        embedding: Any = getattr(backbone.encoder, "token_embedding", None)
        if embedding is None:
            raise RecipeError(
                "prompt: this tower's encoder is a Hugging Face model inside open_clip, whose words"
                " are out of reach. Load that model with builder: adapters and adapter: {name:"
                " prompt_tuning}."
            )
        start = 1 if backbone.marks_end else 0
        shortened, room = _shorten(backbone.input, self.tokens)
        if room < start + 2:
            raise RecipeError(
                f"prompt.tokens: {self.tokens} vectors leave no room for a caption. Choose at most"
                f" {self.tokens + room - start - 2}."
            )
        embedding.prompt = nn.Parameter(self._first_vectors(backbone, embedding, start))
        embedding.prompt_start = start
        embedding.register_forward_hook(_insert)
        backbone.input = PromptedTokenizer(shortened, tokens=self.tokens, start=start)
        backbone.prompted = frozenset({"encoder.token_embedding.prompt"})
        backbone.settings = json.dumps([backbone.settings, "coop", self.tokens])

    def _first_vectors(self, backbone: Any, embedding: nn.Embedding, start: int) -> Tensor:
        vectors = torch.empty(self.tokens, embedding.embedding_dim).normal_(std=0.02)
        if self.init_text is None:
            return vectors
        ids = backbone.input([self.init_text])["input_ids"][0, start:]
        ids = ids[: int(ids.argmax())] if start else ids[ids != 0]
        if not len(ids):
            raise RecipeError(
                "prompt.init_text: the tokenizer finds no tokens in it. Write at least one word."
            )
        return embedding.weight.detach()[
            ids.repeat(self.tokens // len(ids) + 1)[: self.tokens]
        ].clone()


class PromptedTokenizer:
    """A tokenizer that leaves room for the prompt: placeholders after the start token, captions cut
    earlier by as many."""

    def __init__(self, tokenizer: Any, *, tokens: int, start: int) -> None:
        self.tokenizer = tokenizer
        self.tokens = tokens
        self.start = start

    def __call__(self, texts: Sequence[str]) -> TextInput:
        return {"input_ids": self.with_room(self.tokenizer(texts)["input_ids"])}

    def with_room(self, ids: Tensor) -> Tensor:
        """Token ids `[B, T]` of the tokenizer inside, with placeholders for the prompt."""
        room = ids.new_full((ids.shape[0], self.tokens), PLACEHOLDER)
        return torch.cat([ids[:, : self.start], room, ids[:, self.start :]], dim=1)

    def __getattr__(self, name: str) -> Any:
        # The end token and the like are asked of the tokenizer inside. Pickling looks for
        # attributes before there is one.
        if name.startswith("__") or name == "tokenizer":
            raise AttributeError(name)
        return getattr(self.tokenizer, name)


def _shorten(tokenizer: Any, tokens: int) -> tuple[Any, int]:
    """A copy of the tokenizer for captions shorter by this many tokens, and how many that
    leaves."""
    tokenizer = copy.copy(tokenizer)
    if not hasattr(tokenizer, "context_length"):
        tokenizer.tokenizer = copy.copy(tokenizer.tokenizer)
        tokenizer.tokenizer.context_length -= tokens
        return tokenizer, tokenizer.tokenizer.context_length
    tokenizer.context_length -= tokens
    return tokenizer, tokenizer.context_length


def _insert(embedding: Any, arguments: tuple[Any, ...], words: Tensor) -> Tensor:
    prompt = embedding.prompt.to(words.dtype)
    start, stop = embedding.prompt_start, embedding.prompt_start + len(prompt)
    return torch.cat(
        [words[:, :start], prompt.expand(words.shape[0], -1, -1), words[:, stop:]], dim=1
    )
