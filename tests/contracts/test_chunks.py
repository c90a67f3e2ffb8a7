"""`train.chunk`: for every objective a step in chunks gives the loss, the gradients and the state
of a whole step, on any number of ranks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.ranks import run_on_ranks
from tests.unit.engine.recipes import IMAGE, TEXT, tiny_recipe
from vlkd_cli.catalog import names
from vlkd_cli.composition import chunks
from vlkd_cli.composition.composition import Composition
from vlkd_cli.composition.episodes import start_episode
from vlkd_cli.composition.gradient_sums import GradientSums
from vlkd_cli.data.batch import Batch
from vlkd_cli.distributed.runtime import rank
from vlkd_cli.engine.build_composition import build_composition
from vlkd_cli.engine.build_towers import build_towers
from vlkd_cli.errors import RecipeError
from vlkd_cli.numerics.precision import autocast
from vlkd_cli.recipe.schema import Recipe
from vlkd_cli.recipe.types import Progress

ROWS, CHUNK, STEPS = 8, 3, 2
PROCESSES = (1, 2, 4)
FORMS = ("whole, fresh", "whole, resumed", "in chunks, fresh", "in chunks, resumed")
"""What every objective is compared in; `docs/generate.py` makes a table of these two lines."""
LINEAR = {"name": "linear", "width": 16}
TOWERS = {
    "image": {
        **IMAGE,
        "masks": "replace",
        "heads": {
            "head": LINEAR,
            "order": {"name": "linear", "width": 2},
            "patch": {**LINEAR, "reads": "tokens", "at": "hidden"},
        },
    },
    "text": {**TEXT, "head": LINEAR},
    "image_key": {"follows": "image", "masks": "none"},
    "teacher_image": {**IMAGE, "train": "none"},
    "teacher_text": {**TEXT, "train": "none"},
}
PAIR = {"student": "image", "teacher": "text"}
OBJECTIVES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        "infonce siglip unicl vicreg barlow_twins simreg rkd ntxent regress codes"
        " score_regression".split(),
        PAIR,
    ),
    **{name: {**PAIR, "queue_size": 20} for name in ("seed", "compress")},
    **{name: {**PAIR, "num_prototypes": 10} for name in ("dino", "protocpc")},
    "protoclip": {**PAIR, "num_prototypes": 3, "contrastive_episodes": 0},
    "simcse": {"student": "text", "teacher": "text@second"},
    "cross_entropy": {"student": "image", "num_classes": 5},
    **{
        name: {}
        for name in (
            "affinity feature_distance interactive_contrast relational_kl gradient_match"
            " augmented_contrast"
        ).split()
    },
    "layer_distance": PAIR,
    "reinforced": {"contrastive_weight": 0.5},
    "moco": {"student": "image", "teacher": "image_key@second", "queue_size": 20},
    "dense_contrast": {
        "student": ["image.tokens", "image.tokens"],
        "teacher": ["image_key.tokens@second", "image_key.tokens@second"],
        "queue_size": 20,
    },
    "swav": {"student": ["image", "image@second"], "teacher": "image", "num_prototypes": 10},
    "ibot": {"student": "image.patch", "teacher": "image_key.patch"},
    "koleo": {"student": "image"},
    "view_order": {"student": ["image.order", "image.order@second"]},
    "npid": {"student": "image", "num_negatives": 8},
    **{
        name: {
            "student": "image",
            "teacher": "image",
            "num_clusters": 2,
            "components": 2,
        }
        for name in ("deepcluster", "odc")
    },
    **{name: {"student": "image"} for name in ("triplet", "supcon", "multi_similarity")},
    **{name: {"student": "image", "num_classes": 5} for name in ("margin_softmax", "proxy_anchor")},
    "margin_mse": {"student": "image", "teacher": ["text", "teacher_text"]},
    "metric": {"student": "image", "loss": "ContrastiveLoss"},
}


def composed(name: str, chunk: int | None, **keys: Any) -> Composition:
    """A composition of one objective with the towers that it reads, in float64."""
    torch.manual_seed(0)
    spec = {"name": name, **OBJECTIVES[name], **keys}
    towers = copy.deepcopy(TOWERS)
    if name not in ("ibot",):
        del towers["image"]["heads"]["patch"], towers["image"]["masks"]  # type: ignore[attr-defined]
    if name != "view_order":
        del towers["image"]["heads"]["order"]  # type: ignore[attr-defined]
    recipe = Recipe.model_validate(
        tiny_recipe(
            towers=towers,
            distillers=[spec],
            data={"views": {"second": None}},
            train={"chunk": chunk, "batch_size": ROWS},
        )
    )
    built = build_towers(recipe, captions=None, run_folder=None, cache_dir=None)
    return build_composition(recipe, built, num_rows=40).to(torch.float64)


def batch_of(composition: Composition, step: int) -> Batch:
    """Eight samples of this rank."""
    draw = torch.Generator().manual_seed(100 * step + rank())
    words = ["a cat", "two dogs run over the snow", "a red ball", "snow", "a", "b c", "d", "e f g"]
    inputs: dict[str, Any] = {}
    for key, tower in composition.input_keys().items():
        original = composition.tower(tower)
        if original.modality == "text":
            inputs[key] = original.input(words)  # type: ignore[union-attr]
        else:
            inputs[key] = torch.rand(ROWS, 3, 32, 32, generator=draw, dtype=torch.float64)
    return Batch(
        inputs,
        torch.randperm(40, generator=draw)[:ROWS],
        torch.randint(-1, 5, (ROWS,), generator=draw),
        targets=torch.rand(ROWS, 1, generator=draw),
        hidden={"main": torch.rand(ROWS, 16, generator=draw) < 0.4},
    )


def record(
    name: str, chunk: int | None, *, resumes: bool = False, kind: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """Losses, gradients and the final state of some steps.

    Args:
        resumes: before the last step, continue with a new composition that took over the state.
        kind: of weights and inputs.
    """

    def batch(step: int) -> Batch:
        found = batch_of(composition, step)
        return found.each(lambda one: one.to(kind) if one.is_floating_point() else one)

    composition = composed(name, chunk).to(kind)
    composition.train()
    start_episode(composition, [batch(50 + k) for k in range(3)], Progress(0, 2, 4))
    found: dict[str, Tensor] = {}
    for step in range(STEPS):
        if resumes and step == STEPS - 1:
            state = copy.deepcopy(composition.state_dict())
            composition = composed(name, chunk).to(kind)
            composition.train()
            composition.load_state_dict(state)
        composition.zero_grad()
        output = composition(batch(step), Progress(step, 2, 4))
        output.loss.backward()
        found[f"loss {step}"] = output.loss.detach()
        for key, parameter in composition.named_parameters():
            if parameter.grad is not None:
                found[f"gradient {step} {key}"] = parameter.grad.clone()
        composition.commit(Progress(step, 2, 4))
    found |= {f"state {key}": value for key, value in composition.state_dict().items()}
    return found


def deviation(name: str, *, resumes: bool = False) -> float:
    """Largest deviation of the chunked step, relative to the largest entry of each tensor; of both
    forms resumed too, where that is asked for."""
    whole, chunked = record(name, None), record(name, CHUNK)
    others = [chunked]
    if resumes:
        others += [record(name, chunk, resumes=True) for chunk in (None, CHUNK)]
    assert any(key.startswith("gradient") for key in whole)
    worst = 0.0
    for other in others:
        assert whole.keys() == other.keys()
        for key, value in whole.items():
            scale = max(float(value.abs().max()), 1e-3) if value.numel() else 1.0
            apart = float((other[key] - value).abs().max()) if value.numel() else 0.0
            worst = max(worst, apart / scale)
    return worst


def test_every_objective_is_there():
    assert set(OBJECTIVES) == set(names("distiller"))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_in_chunks_is_a_whole_step(name):
    assert deviation(name) < 1e-9


def deviations() -> dict[str, float]:
    return {name: deviation(name, resumes=True) for name in OBJECTIVES}


@pytest.mark.slow
@pytest.mark.parametrize("processes", PROCESSES)
def test_all_forms_of_a_step_are_one_on_ranks(processes):
    assert len(FORMS) == 4
    for found in run_on_ranks(deviations, processes, timeout_seconds=1200):
        assert max(found.values()) < 1e-9, found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_dropout_equals_that_of_the_same_chunks_with_stored_activations(monkeypatch, precision):
    cpu = torch.device("cpu")

    def gradients() -> list[Tensor]:
        composition = composed("infonce", CHUNK).float()
        composition.tower("text").head = torch.nn.Sequential(  # type: ignore[union-attr]
            torch.nn.Dropout(0.5),
            composition.tower("text").head,  # type: ignore[union-attr]
        )
        composition.train()
        found = []
        # The first step shows which weights a pass reads; the second recomputes by another way.
        for step in range(2):
            composition.zero_grad()
            torch.manual_seed(step)
            batch = batch_of(composition, step).each(
                lambda one: one.float() if one.is_floating_point() else one
            )
            with autocast(precision, cpu):
                loss = composition(batch, Progress()).loss
            loss.backward()
            found += [p.grad for p in composition.parameters() if p.grad is not None]
        return found

    recomputed = gradients()
    monkeypatch.setattr(chunks, "checkpoint", lambda run, *inputs, use_reentrant: run(*inputs))
    monkeypatch.setattr(chunks, "_again", lambda run, rows, places, *_: run(rows, places))
    monkeypatch.setattr(GradientSums, "take_from", lambda self, outputs: None)
    kept = gradients()
    assert len(kept) == len(recomputed) > 20
    assert all(torch.equal(one, other) for one, other in zip(recomputed, kept, strict=True))


def record_copies(chunk: int | None, precision: str) -> dict[str, Tensor]:
    """Losses and gradients of `dino` over a picture and two copies of a view, in float64."""
    recipe = Recipe.model_validate(
        tiny_recipe(
            towers={
                "image": {**IMAGE, "head": {"name": "mlp", "width": 16, "hidden": 32}},
                "image_key": {"follows": "image"},
            },
            distillers=[
                {
                    "name": "dino",
                    "student": ["image", "image@local.1-2"],
                    "teacher": ["image_key"],
                    "num_prototypes": 10,
                }
            ],
            data={"views": {"local": {"name": "none", "copies": 2}}},
            train={"chunk": chunk, "batch_size": ROWS},
        )
    )
    torch.manual_seed(0)
    built = build_towers(recipe, captions=None, run_folder=None, cache_dir=None)
    kind = torch.float64 if precision == "fp64" else torch.float32
    composition = build_composition(recipe, built, num_rows=40).to(kind)
    composition.train()
    found: dict[str, Tensor] = {}
    for step in range(STEPS):
        draw = torch.Generator().manual_seed(step)
        main = torch.rand(ROWS, 3, 32, 32, generator=draw, dtype=torch.float64).to(kind)
        local = torch.rand(ROWS, 2, 3, 32, 32, generator=draw, dtype=torch.float64).to(kind)
        inputs = {key: local if "local" in key else main for key in composition.input_keys()}
        composition.zero_grad()
        with autocast("bf16" if precision == "bf16" else "fp32", torch.device("cpu")):
            loss = composition(
                Batch(inputs, torch.arange(ROWS), torch.zeros(ROWS)), Progress()
            ).loss
        loss.backward()
        found[f"loss {step}"] = loss.detach().double()
        for key, parameter in composition.named_parameters():
            if parameter.grad is not None:
                found[f"gradient {step} {key}"] = parameter.grad.double()
        composition.commit(Progress())
    return found


def furthest(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest deviation, relative to the largest entry of each tensor."""
    assert found.keys() == expected.keys() and len(found) > 20
    apart = (
        (found[key] - value).abs().max() / value.abs().max() for key, value in expected.items()
    )
    return float(max(apart))


def test_copies_of_a_picture_in_chunks_are_those_of_a_whole_step():
    assert furthest(record_copies(2, "fp64"), record_copies(None, "fp64")) < 1e-10


@pytest.mark.slow
def test_rounding_is_all_that_chunks_change_and_16_bits_are_added_up_more_exactly():
    exact = record_copies(None, "fp64")
    for chunk in (None, 1, 2):
        assert furthest(record_copies(chunk, "fp32"), exact) < 5e-5
    whole = furthest(record_copies(None, "bf16"), exact)
    # Gradients of a piece are rounded to 16 bits and added up in 32; those of all rows at once are
    # added up in 16, where biases that many positions share lose most.
    for chunk in (1, 2):
        assert furthest(record_copies(chunk, "bf16"), exact) < min(whole, 0.03)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["triplet", "compress", "rkd"])
def test_objectives_that_amplify_rounding_do_so_in_a_whole_step_too(name):
    exact = {
        key: value
        for key, value in record(name, None).items()
        # rkd does not see where rows lie: gradients of the last biases are zero, or rounding.
        if key.startswith("gradient") and value.abs().max() > 1e-12
    }

    def apart(chunk: int | None) -> float:
        found = record(name, chunk, kind=torch.float32)
        return furthest({key: found[key].double() for key in exact}, exact)

    assert apart(CHUNK) < 2 * apart(None) < 2e-4


def test_a_weight_that_a_piece_leaves_out_at_random_has_the_gradient_of_the_others():
    class Skipping(torch.nn.Module):
        """Runs its layer for the pieces whose first picture is bright."""

        def __init__(self) -> None:
            super().__init__()
            self.layer, self.other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)

        def forward(self, rows: Tensor, places: Tensor | None) -> dict[str, Tensor]:
            used = self.other(rows)
            return {"head": used + self.layer(rows) if rows[0, 0] > 0 else used}

    network = Skipping()
    rows = torch.tensor([[1.0, 2.0], [-3.0, 4.0], [-5.0, 6.0]])
    reads, found = None, []
    for _ in range(2):
        network.zero_grad()
        outputs, reads = chunks.encode_in_chunks(
            network, rows, None, size=1, learns=True, layers=[network.layer], reads=reads
        )()
        outputs["head"].sum().backward()
        found.append([p.grad.clone() for p in network.parameters()])  # type: ignore[union-attr]
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert found[1][0].tolist() == [[1.0, 2.0], [1.0, 2.0]]


def test_activations_of_one_chunk_are_held_at_a_time():
    held = {}
    for chunk in (None, 2):
        composition = composed("infonce", chunk)
        batch, kept = batch_of(composition, 0), {}

        def pack(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        known = [*composition.parameters(), batch.inputs["image"]]
        apart = {tensor.untyped_storage().data_ptr() for tensor in known}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            composition(batch, Progress())
        held[chunk] = sum(size for place, size in kept.items() if place not in apart)
    assert held[2] < held[None] / 3


def test_no_chunk_runs_again_before_the_activations_of_every_pass_are_gone():
    events: list[str] = []

    class Logged(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, rows: Tensor, name: str) -> Tensor:
            ctx.name = name
            events.append(f"{name} forward")
            return rows.clone()

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            events.append(f"{ctx.name} backward")
            return grads[0], None

    layers = {name: torch.nn.Linear(2, 2) for name in ("image", "text")}
    reads: dict[str, Any] = {"image": None, "text": None}
    for _ in range(2):
        events.clear()
        begun = {
            name: chunks.encode_in_chunks(
                lambda rows, _, name=name: {"head": Logged.apply(layers[name](rows), name)},
                torch.rand(6, 2),
                None,
                size=2,
                learns=True,
                reads=reads[name],
            )
            for name in layers
        }
        outputs = {}
        for name, finish in begun.items():
            outputs[name], reads[name] = finish()
        (outputs["image"]["head"] @ outputs["text"]["head"].T).sum().backward()
    first = ["image forward"] * 2 + ["text forward"] * 2 + ["image forward", "text forward"]
    assert events[:8] == [*first, "text backward", "image backward"]
    again = ["text forward", "text backward"] * 2 + ["image forward", "image backward"] * 2
    assert events[8:] == again


def test_batch_norms_that_learn_are_refused():
    towers = {
        "image": {"builder": "torchvision", "model": "resnet18", "image_size": 32, "head": LINEAR},
        "text": {**TEXT, "head": LINEAR},
    }
    recipe = Recipe.model_validate(tiny_recipe(towers=towers, train={"chunk": 2}))
    built = build_towers(recipe, captions=None, run_folder=None, cache_dir=None)
    with pytest.raises(RecipeError, match="tower 'image' has trainable batch norms"):
        build_composition(recipe, built, num_rows=40)


def test_a_step_in_chunks_with_frozen_statistics_of_batch_norms_is_a_whole_step():
    image = {"builder": "timm", "model": "resnet10t"}
    towers = {
        "image": {**image, "freeze_batch_norm_stats": True, "image_size": 32, "head": LINEAR},
        "text": {**TEXT, "head": LINEAR},
    }
    found = []
    for chunk in (None, CHUNK):
        recipe = Recipe.model_validate(tiny_recipe(towers=towers, train={"chunk": chunk}))
        built = build_towers(recipe, captions=None, run_folder=None, cache_dir=None)
        composition = build_composition(recipe, built, num_rows=40).to(torch.float64).train()
        loss = composition(batch_of(composition, 0), Progress()).loss
        loss.backward()
        found.append([loss, *(p.grad for p in composition.parameters() if p.grad is not None)])
    assert len(found[0]) > 30
    for whole, chunked in zip(*found, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-9, atol=1e-12)
