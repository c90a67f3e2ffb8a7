"""Merged weights, and configurations that are not to be trusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.adapters import adapted, embed, shake
from tests.support.encoders import SENTENCES, write_encoder
from vlkd_cli.builders.adapters.files import export_merged
from vlkd_cli.errors import RecipeError, WeightsError
from vlkd_cli.recipe import adapters as adapter_rules
from vlkd_cli.recipe.schema import TowerSpec
from vlkd_cli.towers.assemble import assemble

pytestmark = pytest.mark.skipif(
    not adapter_rules.is_installed(), reason="needs the extra 'adapters'"
)

MERGING: dict[str, dict[str, Any]] = {
    "lora": {"name": "lora", "targets": ["q", "k", "v", "o", "intermediate", "output"]},
    "rslora": {"name": "lora", "rank": 4, "rank_stabilized": True},
    "dora": {"name": "dora"},
    "vera": {"name": "vera", "rank": 8},
    "ia3": {"name": "ia3"},
}


@pytest.mark.parametrize("method", MERGING)
def test_a_merged_folder_loads_as_a_plain_encoder_with_the_same_output(
    method: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    folder = write_encoder(tmp_path / "bert")
    tower = adapted(folder, "lora", adapter=MERGING[method])
    shake(tower)
    before = embed(tower)
    export_merged(tower.encoder, tmp_path / "merged")
    assert torch.equal(embed(tower), before), "exporting must not change the tower"
    plain = assemble(
        "text",
        TowerSpec.model_validate({"builder": "huggingface", "model": str(tmp_path / "merged")}),
    )
    assert torch.allclose(embed(plain), before, atol=2e-6)
    untouched = assemble(
        "text", TowerSpec.model_validate({"builder": "huggingface", "model": str(folder)})
    )
    assert not torch.allclose(embed(untouched), before, atol=1e-3)


def test_a_method_that_is_part_of_the_computation_is_not_merged(tmp_path: Path) -> None:
    tower = adapted(write_encoder(tmp_path / "bert"), "bottleneck")
    with pytest.raises(
        WeightsError, match="adapter 'bottleneck' cannot be folded into the encoder's weights"
    ):
        export_merged(tower.encoder, tmp_path / "merged")


def test_a_merged_t5_encoder_loads_with_transformers(tmp_path: Path) -> None:
    from transformers import T5EncoderModel

    torch.manual_seed(0)
    tower = adapted(write_encoder(tmp_path / "t5", "t5"), "lora")
    shake(tower)
    export_merged(tower.encoder, tmp_path / "merged")
    inputs = tower.input(SENTENCES)
    plain = T5EncoderModel.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        states = plain(**inputs).last_hidden_state
        assert torch.allclose(states, tower.eval().encoder(inputs).tokens.values, atol=2e-6)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("auto_map", {"AutoModel": "somewhere--model.Model"}),
        ("_attn_implementation_internal", "somewhere/kernel"),
    ],
)
def test_a_configuration_that_runs_foreign_code_is_refused_unless_trusted(
    key: str, value: Any, tmp_path: Path
) -> None:
    folder = write_encoder(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(
        RecipeError,
        match=(
            f"its configuration has '{key}', which runs code of the model's author. Add `trust:"
            " true`"
        ),
    ):
        adapted(folder, "lora")


def test_modernbert_and_unknown_pairs_are_refused_by_the_builder_too(tmp_path: Path) -> None:
    config = {"type": "modernbert", "layers": 2, "width": 32, "heads": 2, "vocab_size": 600}
    spec = {"builder": "adapters", "config": config, "adapter": {"name": "lora"}}
    with pytest.raises(
        RecipeError, match="tower 'text': adapter.name: 'lora' is not supported on modernbert"
    ):
        assemble("text", TowerSpec.model_validate(spec))
    with pytest.raises(RecipeError, match="'unipelt' does not work on mpnet encoders"):
        adapted(write_encoder(tmp_path, "mpnet"), "unipelt")


def test_a_target_that_matches_no_layer_is_reported_with_the_existing_names(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError,
        match=(
            "adapter.targets: 'qkv' names no linear layer of this BertModel. Its layers end in"
            " dense, key, query"
        ),
    ):
        adapted(write_encoder(tmp_path), "lora", adapter={"name": "lora", "targets": ["qkv"]})


def test_an_adapter_on_an_encoder_from_scratch_learns_over_its_fixed_random_weights() -> None:
    config = {
        "type": "bert",
        "layers": 2,
        "width": 32,
        "heads": 2,
        "vocab_size": 600,
        "max_length": 24,
    }
    tower = assemble(
        "text",
        TowerSpec.model_validate(
            {"builder": "adapters", "config": config, "adapter": {"name": "bottleneck"}}
        ),
    )
    assert all(
        "vlkd" in name for name, parameter in tower.named_parameters() if parameter.requires_grad
    )
    assert embed(tower).shape == (3, 32)
