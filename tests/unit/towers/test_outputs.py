from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vlkd_cli.builders.backbone import Backbone, Encoded, Tokens
from vlkd_cli.errors import RecipeError
from vlkd_cli.heads.linear import LinearHead
from vlkd_cli.preprocessing import Grid, ImageInput
from vlkd_cli.recipe.schema import TowerSpec
from vlkd_cli.towers.assemble import assemble
from vlkd_cli.towers.outputs import Head, Output, Source, read_sources, reading_order
from vlkd_cli.towers.tower import Tower


class Squares(Backbone):
    """Four positions, the corners of a picture of 4 x 4 pixels; the feature is their mean."""

    modality = "image"

    def __init__(self) -> None:
        super().__init__()
        self.input = ImageInput(size_px=(4, 4))
        self.width = self.token_width = 3
        self.scale = nn.Parameter(torch.ones(()))
        self.pictures: list[int] = []

    def run(self, inputs: Tensor, *, tokens: bool) -> Encoded:
        self.pictures.append(len(inputs))
        values = nn.functional.avg_pool2d(inputs, 2).flatten(2).transpose(1, 2) * self.scale
        return Encoded(values.mean(1), Tokens.of_places(values))


class Counted(nn.Module):
    """A head of rows that counts the rows it is applied to."""

    def __init__(self, factor: float = 2.0, width: int = 3) -> None:
        super().__init__()
        self.width, self.factor = width, factor
        self.rows: list[int] = []

    def forward(self, rows: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        self.rows.append(len(rows))
        return rows * self.factor


class Whole(nn.Module):
    """A head of tokens that receives the hidden positions."""

    width = 3

    def forward(
        self, tokens: Float[Tensor, "B T D"], hidden: Bool[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        return tokens if hidden is None else tokens + hidden[..., None]


class Pixels(nn.Module):
    """A target made of the picture."""

    width, has_weights = 3, False

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B T 3"]:
        return nn.functional.avg_pool2d(images, 2).flatten(2).transpose(1, 2)


def tower(heads: dict[str, Head], **keys: Any) -> Tower:
    return Tower("image", Squares(), heads=heads, **keys)


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))


HIDDEN = torch.tensor([[True, False, True, False], [False, True, True, False]])
UNEVEN = torch.tensor([[True, False, False, False], [False, True, True, True]])


def test_the_backbone_and_each_head_run_once_for_all_that_is_wanted() -> None:
    project, predict = Counted(), Counted(3.0)
    built = tower(
        {
            "project": Head(project),
            "predict": Head(predict, (Source("project"),)),
            "places": Head(Counted(), (Source("tokens"),)),
        }
    )
    found = built(images(2), ("predict", "project", "backbone", "tokens", "places"))
    assert built.encoder.pictures == [2] and project.rows == [2] and predict.rows == [2]
    torch.testing.assert_close(found["predict"], found["backbone"] * 6)
    torch.testing.assert_close(found["tokens"].mean(1), found["backbone"])
    torch.testing.assert_close(found["places"], found["tokens"] * 2)


def test_a_head_runs_over_its_own_pictures_only() -> None:
    project, predict = Counted(), Counted()
    built = tower({"project": Head(project), "predict": Head(predict, (Source("project"),))})
    pictures = images(6)
    found = built(pictures, {"predict": (2,), "project": (1, 3)}, pictures=3)
    assert built.encoder.pictures == [6] and project.rows == [6] and predict.rows == [2]
    one_by_one = built(pictures, ("project",))["project"]
    torch.testing.assert_close(found["project"], one_by_one[[0, 2, 3, 5]])
    torch.testing.assert_close(found["predict"], one_by_one[[1, 4]] * 2)


def test_pictures_that_nothing_reads_are_not_encoded() -> None:
    built = tower({})
    pictures = images(6)
    found = built(pictures, {"backbone": (2, 3)}, pictures=3)
    assert built.encoder.pictures == [4]
    torch.testing.assert_close(found["backbone"], built.features(pictures)[[1, 2, 4, 5]])


def test_a_list_of_sources_is_joined_and_may_name_another_picture() -> None:
    built = tower({"pair": Head(Counted(width=6), (Source("backbone"), Source("backbone", 1)))})
    pictures = images(6)
    pair = built(pictures, {"pair": (2, 3)}, pictures=3)["pair"]
    features = built.features(pictures).view(2, 3, 3)
    first = features[:, :1].expand(-1, 2, -1)
    torch.testing.assert_close(pair, torch.cat([features[:, 1:], first], dim=2).flatten(0, 1) * 2)


def test_an_output_without_a_head_of_its_name_is_the_feature() -> None:
    built = tower({"project": Head(Counted())})
    pictures = images(2)
    assert built.encode(pictures).equal(built.features(pictures))
    assert built.width == built.width_of("backbone") == 3


@pytest.mark.parametrize("at", ["hidden", "visible"])
def test_selecting_places_before_a_head_equals_selecting_afterwards(at: Any) -> None:
    torch.manual_seed(0)
    linear = LinearHead(3, width=5)
    counted = Counted()
    built = tower(
        {
            "some": Head(linear, (Source("tokens"),), at),
            "all": Head(linear, (Source("tokens"),)),
            "counted": Head(counted, (Source("tokens"),), at),
        }
    )
    found = built(images(2), ("some", "all", "counted"), hidden=HIDDEN)
    chosen = HIDDEN if at == "hidden" else ~HIDDEN
    torch.testing.assert_close(found["some"].flatten(0, 1), found["all"][chosen])
    assert found["some"].shape == (2, 2, 5) and counted.rows == [4]


def test_places_of_varying_number_are_flattened_sample_after_sample() -> None:
    built = tower({"some": Head(Counted(), (Source("tokens"),), "hidden")})
    found = built(images(2), ("some", "tokens"), hidden=UNEVEN)
    assert found["some"].shape == (4, 3)
    torch.testing.assert_close(found["some"], found["tokens"][UNEVEN] * 2)


def test_without_a_mask_every_place_is_read() -> None:
    built = tower({"some": Head(Counted(), (Source("tokens"),), "hidden")})
    assert built(images(2), ("some",))["some"].shape == (2, 4, 3)


def test_a_head_of_positions_receives_what_is_hidden_and_is_selected_afterwards() -> None:
    built = tower({"paint": Head(Whole(), (Source("tokens"),), "hidden")})
    found = built(images(2), ("paint", "tokens"), hidden=HIDDEN)
    torch.testing.assert_close(found["paint"].flatten(0, 1), found["tokens"][HIDDEN] + 1)


class Placed(Whole):
    """A head that receives the positions of its rows."""

    def forward(
        self,
        tokens: Float[Tensor, "B T D"],
        hidden: Bool[Tensor, "B P"] | None = None,
        at: str = "none",
    ) -> Float[Tensor, "B T D"]:
        self.received = at
        return tokens


class Predicted(Placed):
    """A head that gives the hidden places from the visible ones."""

    reads_at, gives_at = "visible", "hidden"


class Hiding(Squares):
    """Squares that leave out or keep what is hidden, as asked."""

    def forward(
        self, inputs: Tensor, hidden: Any = None, masks: Any = "none", *, tokens: bool = True
    ) -> Encoded:
        values = self.run(inputs, tokens=tokens).tokens.values  # type: ignore[union-attr]
        if hidden is not None and masks != "none":
            chosen = hidden if masks == "complement" else ~hidden
            values = values[chosen].unflatten(0, (len(values), -1))
        return Encoded(values.mean(1), Tokens.of_places(values))


@pytest.mark.parametrize(
    ("masks", "expected"), [("none", "all"), ("drop", "visible"), ("complement", "hidden")]
)
def test_a_head_receives_the_positions_of_its_rows(masks: Any, expected: str) -> None:
    head, after = Placed(), Placed()
    heads = {
        "first": Head(head, (Source("tokens"),)),
        "second": Head(after, (Source("first"),)),
    }
    both = Tower("image", Hiding(), heads=heads, masks=masks)
    # Two of four are hidden: their number alone determines nothing.
    both(images(1), ("second",), hidden=torch.tensor([[True, False, True, False]]))
    assert (head.received, after.received) == (expected, expected)
    both(images(1), ("second",))
    assert head.received == "all"


def test_positions_of_a_head_s_rows_are_passed_to_the_next_head() -> None:
    after = Placed()
    heads = {
        "predict": Head(Predicted(), (Source("tokens"),)),
        "paint": Head(after, (Source("predict"),), "hidden"),
    }
    both = Tower("image", Hiding(), heads=heads, masks="drop")
    outputs = both(images(1), ("paint",), hidden=torch.tensor([[True, False, True, False]]))
    assert after.received == "hidden"
    assert outputs["paint"].shape == (1, 2, 3)


@pytest.mark.parametrize(
    ("heads", "masks", "message"),
    [
        (
            {"pick": Head(Counted(), (Source("tokens"),), "hidden")},
            "drop",
            "'pick' is at the hidden positions, and 'tokens' has only the visible positions",
        ),
        (
            {"pick": Head(Placed(), (Source("tokens"),), "visible")},
            "complement",
            "'pick' is at the visible positions, and 'tokens' has only the hidden positions",
        ),
        (
            {"guess": Head(Predicted(), (Source("tokens"),))},
            "replace",
            "'guess' takes only the visible positions, and 'tokens' has all positions",
        ),
        (
            {
                "a": Head(Predicted(), (Source("tokens"),)),
                "b": Head(Counted(width=6), (Source("a"), Source("tokens"))),
            },
            "drop",
            "'b' joins rows of only the hidden positions and only the visible positions",
        ),
    ],
)
def test_positions_that_masks_leave_out_are_refused(
    heads: dict[str, Head], masks: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Tower("image", Hiding(), heads=heads, masks=masks)


@pytest.mark.parametrize("name", ["keys", "items", "pop", "train", "forward", "_modules"])
def test_a_head_may_be_called_like_a_method_of_a_module(name: str) -> None:
    both = tower({name: Head(LinearHead(3, width=2)), "keys_of": Head(Counted(), (Source(name),))})
    batch = images(2)
    expected = both(batch, (name,))[name]
    assert expected.shape == (2, 2)
    state = both.state_dict()
    weights = {key for key in state if key.startswith(f"heads.{name}.")}
    assert weights
    other = copy.deepcopy(both)
    other.load_state_dict(state)
    other.train()
    assert torch.equal(other(batch, (name,))[name], expected)
    other.leave_out_heads([name])
    assert set(other.heads) == {name} and set(both.trainable_state()) >= weights


def test_a_target_is_made_of_the_picture_without_gradient() -> None:
    built = tower({"pixels": Head(Pixels(), (Source("input"),), "hidden")})
    pictures = images(2).requires_grad_()
    found = built(pictures, ("pixels",), hidden=HIDDEN)
    assert built.encoder.pictures == [] and not found["pixels"].requires_grad
    torch.testing.assert_close(found["pixels"].flatten(0, 1), Pixels()(pictures)[HIDDEN])


def test_rows_of_varying_number_are_cut_by_picture() -> None:
    counts = torch.tensor([1, 3, 2, 0])
    values = torch.arange(6.0).view(6, 1)
    together = Output(values, (1, 2), counts)
    assert together.of((2,)).values.flatten().tolist() == [1, 2, 3]
    assert together.of((1,)).values.flatten().tolist() == [0, 4, 5]
    assert together.of((1,)).counts.tolist() == [1, 2]  # type: ignore[union-attr]


def test_heads_run_in_reading_order_and_circles_are_named() -> None:
    reads = {"c": read_sources("b"), "a": read_sources(["backbone", "backbone.1"])}
    assert reading_order({**reads, "b": read_sources("a")}) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="head 'c' reads 'b', which the tower does not have"):
        reading_order(reads)
    with pytest.raises(ValueError, match="head 'c' reads 'b', in a circle"):
        reading_order({**reads, "b": read_sources("c")})


def test_a_head_of_features_cannot_read_pictures() -> None:
    with pytest.raises(ValueError, match="head 'x' takes features and reads input"):
        tower({"x": Head(Counted(), (Source("input"),))})
    with pytest.raises(ValueError, match="head 'x' takes pictures and reads backbone"):
        tower({"x": Head(Pixels())})


def test_heads_of_a_recipe_get_widths_and_the_grid() -> None:
    spec = {
        "builder": "timm",
        "model": "test_vit",
        "image_size": 64,
        "head": {"name": "linear", "width": 7},
        "heads": {
            "predict": {"name": "linear", "width": 5, "reads": ["project", "backbone"]},
            "project": {"name": "linear", "width": 6},
            "pixels": {"name": "patches", "reads": "input"},
        },
    }
    built = assemble("image", TowerSpec.model_validate(spec))
    assert [built.width_of(name) for name in ("head", "project", "predict", "pixels")] == [
        7,
        6,
        5,
        3 * 16 * 16,
    ]
    assert built.heads.predict.linear.in_features == 6 + 64
    names = {name.rpartition(".linear")[0] for name, _ in built.named_parameters()} - {""}
    assert {name for name in names if not name.startswith("backbone")} == {
        "head",
        "heads.project",
        "heads.predict",
    }
    found = built(torch.rand(2, 3, 64, 64), ("head", "predict", "pixels"))
    assert found["pixels"].shape == (2, 16, 768) and found["predict"].shape == (2, 5)


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({"a": {"reads": "b"}}, "head 'a' reads 'b', which the tower does not have"),
        ({"a": {"reads": "a"}}, "head 'a' reads 'a', in a circle"),
        ({"a": {"reads": "input"}}, "head 'a' takes features and reads input"),
    ],
)
def test_wrong_reads_are_one_line(heads: dict[str, Any], message: str) -> None:
    filled = {name: {"name": "linear", "width": 2, **head} for name, head in heads.items()}
    spec = {"builder": "timm", "model": "test_vit", "image_size": 64, "heads": filled}
    with pytest.raises(RecipeError, match=message) as error:
        assemble("image", TowerSpec.model_validate(spec))
    assert "\n" not in str(error.value)


def test_a_cached_tower_offers_what_reads_the_feature() -> None:
    backbone = Squares().requires_grad_(False)
    heads = {
        "project": Head(LinearHead(3, width=2)),
        "places": Head(Counted(), (Source("tokens"),)),
    }
    built = Tower("image", backbone, heads=heads)
    cached = built.cached()
    rows = built.features(images(2))
    torch.testing.assert_close(cached.encode(rows, "project"), built.encode(images(2), "project"))
    assert cached.heads is built.heads and cached.name == "image"
    with pytest.raises(KeyError, match="tokens"):
        cached.encode(rows, "places")


def test_weightless_heads_leave_a_frozen_tower_frozen() -> None:
    backbone = Squares().requires_grad_(False)
    built = Tower("image", backbone, heads={"pixels": Head(Pixels(), (Source("input"),))})
    assert built.is_frozen and built.num_layers == 2


def test_a_copy_has_heads_of_its_own() -> None:
    built = tower({"head": Head(LinearHead(3, width=2)), "x": Head(LinearHead(3, width=2))})
    copied = copy.deepcopy(built)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.zero_()
    assert copied.encode(images(2), "x").abs().sum() > 0
    copied.leave_out_heads(["x"])
    assert set(copied.graph.links) == {"x"} and copied.width_of("head") == 3
    assert not any(name.startswith("head.") for name in copied.state_dict())
    assert Grid(2, 2, 2).num_places == 4
