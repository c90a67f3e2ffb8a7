"""Learned prompt vectors in an openclip text tower."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch

from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.schema import TowerSpec
from vlkd_cli.towers.assemble import assemble

TINY = {
    "layers": 2,
    "width": 32,
    "heads": 2,
    "embed_dim": 16,
    "vocab_size": 600,
    "context_length": 24,
}
CAPTIONS = [
    "a dog",
    "a photo of a red square",
    "the cat sits on the mat and looks at the dog that looks at the cat",
]


def tower_of(seed: int = 0, **section: Any) -> Any:
    torch.manual_seed(seed)
    tower = assemble(
        "text", TowerSpec.model_validate({"builder": "openclip", "config": TINY, **section})
    )
    return tower.eval()


def learning(tower: Any) -> set[str]:
    return {name for name, parameter in tower.named_parameters() if parameter.requires_grad}


def test_a_frozen_tower_learns_its_prompt_alone_and_saves_nothing_else() -> None:
    tower = tower_of(prompt={"tokens": 4}, train="prompt")
    assert (
        learning(tower)
        == set(tower.trainable_state())
        == {"backbone.encoder.token_embedding.prompt"}
    )
    before = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
    optimizer = torch.optim.AdamW(
        [parameter for parameter in tower.parameters() if parameter.requires_grad], lr=0.1
    )
    (tower.encode(tower.input(CAPTIONS)) * torch.randn(16)).sum().backward()
    optimizer.step()
    assert {
        name for name, tensor in tower.state_dict().items() if not torch.equal(tensor, before[name])
    } == learning(tower)


def test_train_prompt_learns_the_head_too() -> None:
    tower = tower_of(prompt={"tokens": 4}, train="prompt", head={"name": "linear", "width": 8})
    assert learning(tower) == {
        "backbone.encoder.token_embedding.prompt",
        "head.linear.weight",
        "head.linear.bias",
    }


def test_a_trainable_tower_learns_with_its_prompt() -> None:
    tower = tower_of(prompt={"tokens": 4})
    assert learning(tower) == {name for name, _ in tower.named_parameters()}


def test_a_prompt_of_words_equals_writing_the_words() -> None:
    plain = tower_of()
    words = len(plain.input(["a photo of a"])["input_ids"][0]) - 2
    prompted = tower_of(prompt={"tokens": words, "init_text": "a photo of a"})
    with torch.no_grad():
        ours = prompted.encode(prompted.input(["dog", "red square"]))
        theirs = plain.encode(plain.input(["a photo of a dog", "a photo of a red square"]))
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_every_vector_reaches_every_caption() -> None:
    tower = tower_of(prompt={"tokens": 3})
    for row in tower.encode(tower.input(CAPTIONS)):
        gradient = torch.autograd.grad(
            (row * torch.arange(16.0)).sum(),
            tower.encoder.encoder.token_embedding.prompt,
            retain_graph=True,
        )[0]
        assert (gradient.abs().sum(1) > 0).all()


def test_a_caption_s_embedding_does_not_depend_on_its_batch() -> None:
    tower = tower_of(prompt={"tokens": 4})
    with torch.no_grad():
        together = tower.encode(tower.input(CAPTIONS))
        alone = torch.cat([tower.encode(tower.input([caption])) for caption in CAPTIONS])
    assert torch.allclose(together, alone, atol=1e-6)


def test_long_captions_are_cut_to_leave_room_and_keep_their_end() -> None:
    tower = tower_of(prompt={"tokens": 4})
    inputs = tower.input(["dog " * 50])
    assert inputs["input_ids"].shape == (1, 24)
    tokens = tower.encoder(inputs).tokens
    assert tokens.eot is not None and int(tokens.eot[0]) == 23


def test_loading_the_saved_prompt_under_another_random_state_restores_the_output() -> None:
    tower, other = (
        tower_of(prompt={"tokens": 4}, train="prompt"),
        tower_of(prompt={"tokens": 4}, train="prompt"),
    )
    with torch.no_grad():
        tower.encoder.encoder.token_embedding.prompt.normal_()
    inputs = tower.input(CAPTIONS)
    assert not torch.equal(other.encode(inputs), tower.encode(inputs))
    other.load_trainable_state(tower.trainable_state())
    assert torch.equal(other.encode(inputs), tower.encode(inputs))


def test_the_tokenizer_survives_pickling() -> None:
    tower = tower_of(prompt={"tokens": 4})
    again = pickle.loads(pickle.dumps(tower.input))
    assert torch.equal(again(CAPTIONS)["input_ids"], tower.input(CAPTIONS)["input_ids"])


def test_a_prompt_changes_the_digest() -> None:
    assert (
        len({tower_of(prompt=prompt).digest() for prompt in (None, {"tokens": 3}, {"tokens": 4})})
        == 3
    )


def test_a_prompt_without_room_or_words_is_refused() -> None:
    with pytest.raises(
        RecipeError,
        match="prompt.tokens: 22 vectors leave no room for a caption. Choose at most 21.",
    ):
        tower_of(prompt={"tokens": 22})
    with pytest.raises(RecipeError, match="prompt.init_text: the tokenizer finds no tokens in it"):
        tower_of(prompt={"tokens": 4, "init_text": " "})
