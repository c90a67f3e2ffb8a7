"""The adapters builder on a tiny BERT: what is trained, what is saved, and that an embedding is its
sentence's alone."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.adapters import METHODS, STARTS_AS_IDENTITY, adapted, embed, shake, take_step
from tests.support.encoders import SENTENCES, write_encoder
from vlkd_cli.builders.adapters.files import load_adapter, save_adapter
from vlkd_cli.builders.huggingface.builder import HuggingFace
from vlkd_cli.checkpoint import Checkpoint
from vlkd_cli.errors import RecipeError, WeightsError
from vlkd_cli.recipe import adapters as adapter_rules
from vlkd_cli.recipe.schema import TowerSpec
from vlkd_cli.towers.assemble import assemble

pytestmark = pytest.mark.skipif(
    not adapter_rules.is_installed(), reason="needs the extra 'adapters'"
)

HEAD = {"name": "linear", "width": 16}

# Trained parameters on two layers of width 64, as measured in the specification of the methods.
TRAINED = {
    "bottleneck": 2320,
    "houlsby": 2320,
    "pfeiffer": 1160,
    "parallel": 8384,
    "adapter_plus": 1288,
    "language": 3304,
    "language_houlsby": 4464,
    "compacter": 1024,
    "compacter_plus_plus": 544,
    "prefix_tuning": 166528,
    "prefix_tuning_flat": 7680,
    "prompt_tuning": 640,
    "lora": 4096,
    "dora": 4352,
    "vera": 288,
    "ia3": 512,
    "mtl_lora": 4132,
    "loreft": 516,
    "noreft": 516,
    "direft": 516,
    "mix_and_match": 267360,
    "unipelt": 171024,
}


def test_an_adapter_that_no_output_depends_on_is_refused(
    bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = HuggingFace.build

    def with_an_idle_layer(self: HuggingFace, *arguments: Any) -> Any:
        backbone: Any = build(self, *arguments)
        backbone.encoder.idle = torch.nn.Linear(64, 64)
        return backbone

    monkeypatch.setattr(HuggingFace, "build", with_an_idle_layer)
    section = {"builder": "adapters", "model": str(bert), "head": HEAD}
    alive, dead = ({"name": "lora", "targets": targets} for targets in (["q"], ["q", "idle"]))
    assemble("text", TowerSpec.model_validate({**section, "adapter": alive}))
    with pytest.raises(RecipeError, match=r"adapter 'lora': has no effect at 'idle\.lora_A'"):
        assemble("text", TowerSpec.model_validate({**section, "adapter": dead}))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return write_encoder(tmp_path_factory.mktemp("bert"))


@pytest.mark.parametrize("method", METHODS)
def test_one_step_moves_the_adapter_and_the_head_and_nothing_else(bert: Path, method: str) -> None:
    tower = adapted(bert, method, head=HEAD)
    assert tower.count_parameters()[1] == TRAINED[method] + 64 * 16 + 16
    # Away from the start, where some weights wait behind zeros for their first gradient.
    shake(tower)
    before = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
    learning = {name for name, parameter in tower.named_parameters() if parameter.requires_grad}
    take_step(
        tower,
        torch.optim.AdamW(
            [parameter for parameter in tower.parameters() if parameter.requires_grad], lr=0.1
        ),
        seed=0,
    )
    names = {id(parameter): name for name, parameter in tower.named_parameters()}
    objects = dict(tower.named_parameters(remove_duplicate=False))
    moved = {
        names[id(objects[name])]
        for name, tensor in tower.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    # Weight decay moves what has a gradient of zero (a ReFT edit of no tokens), but never what has
    # none.
    assert moved == learning
    assert all(name.startswith("head.") or "vlkd" in name for name in moved)


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_holds_only_what_trains_and_restores_the_output_under_another_random_state(
    bert: Path, method: str
) -> None:
    tower = adapted(bert, method, head=HEAD, seed=1)
    shake(tower)
    state = tower.trainable_state()
    assert set(state) == {
        name for name, parameter in tower.named_parameters() if parameter.requires_grad
    }
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    other = adapted(bert, method, head=HEAD, seed=2)
    other.load_trainable_state(torch.load(file, weights_only=True))
    assert torch.equal(embed(other), embed(tower))


@pytest.mark.parametrize("method", METHODS)
def test_a_saved_adapter_restores_the_output_under_another_random_state(
    bert: Path, method: str, tmp_path: Path
) -> None:
    tower = adapted(bert, method, seed=1)
    shake(tower)
    save_adapter(tower.encoder, tmp_path)
    again = adapted(bert, method, seed=2, adapter_weights=str(tmp_path), train="none")
    assert again.is_frozen
    assert torch.equal(embed(again), embed(tower))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pooler", [None, "cls"])
def test_an_embedding_does_not_depend_on_what_else_is_in_its_batch(
    bert: Path, method: str, pooler: str | None
) -> None:
    tower = adapted(bert, method, **({} if pooler is None else {"pooler": {"name": pooler}}))
    shake(tower)
    together = embed(tower)
    alone = torch.cat([embed(tower, [sentence]) for sentence in SENTENCES])
    assert torch.allclose(together, alone, atol=2e-6)
    # The test would notice: an unmasked average over padding changes the embedding of a short
    # sentence.
    assert not torch.allclose(together[0], together[1], atol=1e-3)


@pytest.mark.parametrize("method", STARTS_AS_IDENTITY)
def test_these_methods_start_as_the_plain_encoder(bert: Path, method: str) -> None:
    plain = assemble(
        "text", TowerSpec.model_validate({"builder": "huggingface", "model": str(bert)})
    )
    assert torch.allclose(embed(adapted(bert, method)), embed(plain), atol=1e-6)


@pytest.mark.parametrize("method", ["bottleneck", "compacter", "vera", "loreft", "unipelt"])
def test_resuming_after_a_step_equals_never_having_stopped(bert: Path, method: str) -> None:
    def learners(tower: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            [parameter for parameter in tower.parameters() if parameter.requires_grad], lr=0.01
        )

    tower = adapted(bert, method, seed=1)
    optimizer = learners(tower)
    take_step(tower, optimizer, seed=10)
    state, moments = (
        {name: tensor.clone() for name, tensor in tower.trainable_state().items()},
        copy.deepcopy(optimizer.state_dict()),
    )
    other = adapted(bert, method, seed=2)
    other.load_trainable_state(state)
    resumed = learners(other)
    resumed.load_state_dict(moments)
    take_step(tower, optimizer, seed=11)
    take_step(other, resumed, seed=11)
    assert torch.equal(embed(other), embed(tower))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_under_bfloat16_autocast(bert: Path, method: str) -> None:
    tower = adapted(bert, method)
    exact = embed(tower)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(embed(tower).float(), exact, atol=0.1)


@pytest.mark.parametrize(
    "method",
    ["bottleneck", "prefix_tuning", "prompt_tuning", "lora", "vera", "mtl_lora", "unipelt"],
)
def test_a_tower_cast_to_bfloat16_casts_its_adapter_too(bert: Path, method: str) -> None:
    tower = adapted(bert, method).to(torch.bfloat16)
    assert {parameter.dtype for parameter in tower.parameters()} == {torch.bfloat16}
    assert embed(tower).dtype == torch.bfloat16


@pytest.mark.parametrize("method", ["loreft", "noreft"])
def test_reft_in_bfloat16_weights_is_refused_with_a_remedy(bert: Path, method: str) -> None:
    with pytest.raises(
        RecipeError, match="adapter 'reft' needs float32 weights. Train with `precision: bf16`"
    ):
        embed(adapted(bert, method).to(torch.bfloat16))


def test_a_new_tower_is_in_eval_mode_and_dropout_obeys_the_mode(bert: Path) -> None:
    tower = adapted(bert, "loreft")
    assert not any(module.training for module in tower.encoder.encoder.modules())
    shake(tower)
    inputs = tower.input(SENTENCES)
    tower.train()
    assert not torch.equal(tower.encode(inputs), tower.encode(inputs))
    tower.eval()
    assert torch.equal(tower.encode(inputs), tower.encode(inputs))


def test_loreft_stays_orthonormal_under_weight_decay(bert: Path) -> None:
    tower = adapted(bert, "loreft")
    optimizer = torch.optim.AdamW(
        [parameter for parameter in tower.parameters() if parameter.requires_grad],
        lr=0.1,
        weight_decay=0.5,
    )
    for step in range(3):
        take_step(tower, optimizer, seed=step)
    rows = (
        tower.encoder.encoder.encoder.layer[0].reft_layer.refts["vlkd"].units[0].projection.weight
    )
    assert torch.allclose(rows @ rows.mT, torch.eye(len(rows)), atol=1e-6)


def test_prompt_tuning_gives_the_sentence_s_own_tokens(bert: Path) -> None:
    tower = adapted(bert, "prompt_tuning", pooler={"name": "cls"})
    inputs = tower.input(SENTENCES)
    tokens = tower.encoder(inputs).tokens
    assert tokens.values.shape[:2] == tokens.mask.shape == inputs["input_ids"].shape
    assert torch.equal(embed(tower), tokens.values[:, 0])


def test_prompt_tuning_leaves_room_for_the_prompt(bert: Path) -> None:
    tower = adapted(bert, "prompt_tuning", adapter={"name": "prompt_tuning", "length": 30})
    inputs = tower.input(["the cat sits on the mat and looks at the dog " * 5])
    assert inputs["input_ids"].shape[1] == 48 - 30
    assert torch.isfinite(tower.encode(inputs)).all()
    with pytest.raises(
        RecipeError,
        match="47 learned positions and a caption do not fit into the encoder's 48 positions",
    ):
        adapted(bert, "prompt_tuning", adapter={"name": "prompt_tuning", "length": 47})


def test_prompt_tuning_starts_from_the_words_it_is_given(bert: Path) -> None:
    tower = adapted(
        bert,
        "prompt_tuning",
        adapter={"name": "prompt_tuning", "length": 3, "init": "text", "init_text": "red dog"},
    )
    words = tower.encoder.encoder.get_input_embeddings().weight
    ids = tower.input(["red dog red"])["input_ids"][0, 1:-1]
    assert torch.equal(
        tower.encoder.encoder.prompt_tuning.vectors["vlkd"].embedding.weight, words[ids]
    )


def test_mtl_lora_shares_its_matrices_and_distinguishes_tasks(bert: Path) -> None:
    section = {"name": "mtl_lora", "tasks": ["caption", "question"], "task": "question"}
    tower = adapted(bert, "mtl_lora", adapter=section)
    # One more task costs 8 + 1 numbers for each of the four matrices, not a second LoRA.
    assert tower.count_parameters()[1] == TRAINED["mtl_lora"] + 4 * 9
    shake(tower)
    inputs = tower.input(SENTENCES)
    mixed = tower.encode({**inputs, "task_ids": torch.tensor([0, 1, 1])})
    own = tower.encode(inputs)
    assert torch.allclose(mixed[1:], own[1:], atol=1e-6) and not torch.allclose(
        mixed[0], own[0], atol=1e-4
    )


def test_tasks_that_no_row_has_still_get_a_gradient(bert: Path) -> None:
    tower = adapted(
        bert, "mtl_lora", adapter={"name": "mtl_lora", "tasks": ["caption", "question"]}
    )
    tower.encode(tower.input(SENTENCES)).sum().backward()
    assert all(
        parameter.grad is not None for parameter in tower.parameters() if parameter.requires_grad
    )


def test_the_word_embeddings_are_not_in_a_checkpoint_under_another_name(bert: Path) -> None:
    # The library stores them a second time below its own module for prompts.
    state = adapted(bert, "bottleneck").trainable_state()
    assert not [name for name in state if "embeddings" in name]


def test_the_head_alone_does_not_free_the_encoder(bert: Path) -> None:
    tower = adapted(bert, "lora", head=HEAD, train=["head.*"], adapter_weights=None)
    assert {name for name, parameter in tower.named_parameters() if parameter.requires_grad} == {
        "head.linear.weight",
        "head.linear.bias",
    }
    assert tower.backbone_is_frozen


@pytest.mark.parametrize("method", ["lora", "compacter", "prefix_tuning"])
def test_a_tower_taken_from_a_run_is_restored_with_a_frozen_encoder(
    bert: Path, method: str, tmp_path: Path
) -> None:
    name, keys = METHODS[method]
    section = {"builder": "adapters", "model": str(bert), "adapter": {"name": name, **keys}}
    tower = adapted(bert, method, seed=1)
    shake(tower)
    checkpoint = Checkpoint(
        step=1,
        recipe=json.dumps({"towers": {"text": section}}),
        world_size=1,
        global_batch=1,
        towers={"text": tower.trainable_state()},
    )
    checkpoint.save(tmp_path / "checkpoints")
    torch.manual_seed(2)
    frozen = assemble("text", TowerSpec.model_validate({"run": str(tmp_path), "train": "none"}))
    assert frozen.is_frozen and torch.equal(embed(frozen), embed(tower))
    learning = assemble("text", TowerSpec.model_validate({"run": str(tmp_path), "train": "all"}))
    assert learning.count_parameters() == tower.count_parameters() and torch.equal(
        embed(learning), embed(tower)
    )


def test_an_adapter_of_other_keys_or_another_encoder_is_refused_in_one_line(
    bert: Path, tmp_path: Path
) -> None:
    tower = adapted(bert, "lora")
    save_adapter(tower.encoder, tmp_path / "lora")
    with pytest.raises(
        WeightsError,
        match=(
            "was saved with adapter.rank: 8, the recipe has 4. Copy the section from its"
            " adapter.yaml"
        ),
    ):
        adapted(
            bert,
            "lora",
            adapter={"name": "lora", "rank": 4},
            adapter_weights=str(tmp_path / "lora"),
        )
    with pytest.raises(WeightsError, match="has no readable adapter.yaml"):
        load_adapter(tower.encoder, tmp_path / "nowhere")
    wider = write_encoder(tmp_path / "wider", hidden_size=32)
    with pytest.raises(WeightsError, match="does not fit this encoder"):
        adapted(wider, "lora", adapter_weights=str(tmp_path / "lora"))


@pytest.mark.parametrize(
    "section",
    [
        {"last_tokens": 6, "first_tokens": 0},
        {"last_tokens": 5, "first_tokens": 5},
        {"last_tokens": 20, "tied": True},
    ],
)
def test_reft_edits_sentences_with_fewer_tokens_than_it_edits(
    bert: Path, section: dict[str, Any]
) -> None:
    tower = adapted(bert, "loreft", adapter={"name": "reft", **section})
    shake(tower)
    together = embed(tower)
    alone = torch.cat([embed(tower, [sentence]) for sentence in SENTENCES])
    assert torch.allclose(together, alone, atol=2e-6)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "reft", "layers": []}, "adapter: adds nothing to this encoder"),
        (
            {"name": "reft", "layers": [0, 9]},
            "adapter: names layer 9, but this encoder has layers 0 to 1",
        ),
        (
            {"name": "prefix_tuning", "leave_out": [2]},
            "adapter: names layer 2, but this encoder has layers 0 to 1",
        ),
        ({"name": "prefix_tuning", "leave_out": [0, 1]}, "adapter: adds nothing to this encoder"),
        ({"name": "bottleneck", "leave_out": [0, 1]}, "adapter: adds nothing to this encoder"),
        ({"name": "lora", "targets": []}, "adapter.targets: is empty"),
        ({"name": "ia3", "targets": [], "feed_forward": False}, "adapter.targets: is empty"),
        (
            {"name": "reft", "rank": 65},
            "adapter.rank: 65 directions cannot be orthogonal in 64 dimensions",
        ),
        (
            {"name": "language", "inverse_reduction_factor": 33},
            "adapter.inverse_reduction_factor: half the width 64 over 33",
        ),
    ],
)
def test_keys_that_leave_nothing_to_learn_are_refused(
    bert: Path, section: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        adapted(bert, "lora", adapter=section)
