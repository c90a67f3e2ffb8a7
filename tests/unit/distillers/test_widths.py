from __future__ import annotations

import pytest
import torch

from tests.support.recipes import problems_with
from vlkd_cli import console
from vlkd_cli.distillers.widths import AtWidths
from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.component import make
from vlkd_cli.recipe.types import Progress


def built(name: str, widths: list[int], **keys: object) -> AtWidths:
    return AtWidths([make("distiller", name, keys) for _ in widths], widths)


def test_each_width_has_its_own_queue_and_scales_are_shared() -> None:
    torch.manual_seed(0)
    seed = built("seed", [2, 4], queue_size=8)
    seed.setup(4, 4)
    queues = {name: tuple(value.shape) for name, value in seed.state_dict().items()}
    assert {shape[-1] for name, shape in queues.items() if len(shape) == 2} == {2, 4}
    before = {name: value.clone() for name, value in seed.state_dict().items()}
    seed(torch.randn(3, 4, requires_grad=True), torch.randn(3, 4))
    assert all(value.equal(before[name]) for name, value in seed.state_dict().items())
    seed.commit(Progress())
    assert any(not value.equal(before[name]) for name, value in seed.state_dict().items())

    infonce = built("infonce", [2, 4])
    assert len(list(infonce.parameters())) == 1
    twin = built("infonce", [2, 4], logit_scale=3.0)
    twin.load_state_dict(infonce.state_dict())
    assert [each.log_scale.item() for each in twin.inner] == [infonce.inner[0].log_scale.item()] * 2


def test_a_width_beyond_the_outputs_is_refused_and_a_missing_full_width_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(console, "warn_once", warnings.append)
    with pytest.raises(RecipeError, match="widths: 8 is more than the 6 values that it compares"):
        built("infonce", [4, 8]).setup(6, 6)
    built("infonce", [4, 6]).setup(6, 6)
    assert warnings == []
    built("infonce", [2, 4]).setup(6, 6)
    assert warnings and "the full width, 6, is not among widths [2, 4]" in warnings[0]


HEADS = "towers.image.head={name: linear, width: 64}"


@pytest.mark.parametrize(
    ("distiller", "line"),
    [
        ("{name: infonce, widths: [32, 16]}", "widths: [32, 16] does not ascend."),
        ("{name: infonce, widths: [16, 16]}", "widths: [16, 16] does not ascend."),
        ("{name: infonce, widths: []}", "widths: [] does not ascend."),
        ("{name: infonce, width_weights: [1]}", "width_weights: has no effect without widths"),
        ("{name: infonce, widths: [8, 16], width_weights: [1]}", "has 1 weights for 2 widths"),
        ("{name: infonce, widths: [16, 128]}", "128 is more than the 64 values of tower 'image'"),
        (
            "{name: cross_entropy, student: image, num_classes: 4, widths: [8]}",
            "are of objectives between two outputs, and 'cross_entropy' is not one here.",
        ),
        (
            "{name: dino, student: [image, image@b], teacher: image, widths: [8]}",
            "are of objectives between two outputs, and 'dino' is not one here.",
        ),
        ("{name: protoclip, widths: [8], num_prototypes: 4}", "between two outputs"),
    ],
)
def test_widths_that_mean_nothing_are_refused(distiller: str, line: str) -> None:
    found = problems_with(
        HEADS, "data={reader: shapes, views: {b: null}}", f"distillers=[{distiller}]"
    )
    assert any(line in problem for problem in found), found
