"""Every method on every encoder of the table: the record behind `adapter_rules`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.adapters import METHODS, adapted, embed, shake, take_step
from tests.support.encoders import SENTENCES, write_encoder
from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe import adapters as adapter_rules

pytestmark = pytest.mark.skipif(
    not adapter_rules.is_installed(), reason="needs the extra 'adapters'"
)

OTHERS = [kind for kind in adapter_rules.ENCODERS if kind != "bert"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    return {kind: write_encoder(tmp_path_factory.mktemp(kind), kind) for kind in OTHERS}


def claims(folder: Path, kind: str, method: str) -> None:
    name, keys = METHODS[method]
    if adapter_rules.refusal(name, kind, form=keys.get("form")) is not None:
        with pytest.raises(RecipeError, match=kind):
            adapted(folder, method)
        return
    tower = adapted(folder, method)
    shake(tower)
    together = embed(tower)
    alone = torch.cat([embed(tower, [sentence]) for sentence in SENTENCES])
    assert torch.allclose(together, alone, atol=5e-6), "an embedding depends on its batch"
    state = {name: tensor.clone() for name, tensor in tower.trainable_state().items()}
    assert set(state) == {
        name for name, parameter in tower.named_parameters() if parameter.requires_grad
    }
    other = adapted(folder, method, seed=3)
    other.load_trainable_state(state)
    assert torch.equal(embed(other), together), "loading does not restore the output"
    take_step(
        tower,
        torch.optim.AdamW(
            [parameter for parameter in tower.parameters() if parameter.requires_grad], lr=0.1
        ),
        seed=0,
    )
    assert not torch.allclose(embed(tower), together, atol=1e-4), "a step changes nothing"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(embed(tower)).all()


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("distilbert", "prefix_tuning"),
        ("distilbert", "unipelt"),
        ("roberta", "prompt_tuning"),
        ("mpnet", "language"),
        ("mpnet", "lora"),
        ("t5", "mix_and_match"),
        ("clip_text_model", "loreft"),
        ("deberta-v2", "vera"),
    ],
)
def test_the_pairs_that_the_libraries_get_wrong_are_right_here(
    folders: dict[str, Path], kind: str, method: str
) -> None:
    claims(folders[kind], kind, method)


@pytest.mark.slow
@pytest.mark.parametrize("kind", OTHERS)
def test_every_method_is_right_on_every_encoder_or_refused(
    folders: dict[str, Path], kind: str
) -> None:
    for method in METHODS:
        claims(folders[kind], kind, method)


def test_the_fused_attention_of_distilbert_would_leak_padding(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_rules, "needs_eager_attention", lambda name, kind: False)
    tower = adapted(folders["distilbert"], "prefix_tuning_flat")
    shake(tower)
    alone = torch.cat([embed(tower, [sentence]) for sentence in SENTENCES])
    assert not torch.allclose(embed(tower), alone, atol=1e-4)
