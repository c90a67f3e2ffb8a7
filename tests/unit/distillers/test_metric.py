"""The door to pytorch-metric-learning: misspelled names and keys, what it supplies, and why its own
wrapper for several processes is not used."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.support.ranks import run_on_ranks
from tests.support.recipes import problems_with
from vlkd_cli.distillers.distiller import DataFacts
from vlkd_cli.distillers.metric import Metric
from vlkd_cli.errors import DataError, RecipeError, UserError
from vlkd_cli.recipe.metric_names import class_keys, class_names
from vlkd_cli.recipe.types import Progress

ROWS, WIDTH, CLASSES = 16, 5, 4
LOSSES = ("TripletMarginLoss", "ContrastiveLoss", "ArcFaceLoss")


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64)
    return rows, torch.arange(CLASSES).repeat(ROWS // CLASSES)


def built(name: str, **keys: Any) -> Metric:
    if name == "ArcFaceLoss":
        keys |= {"num_classes": CLASSES, "scale": 8}
    objective = Metric(loss={"name": name, **keys})
    objective.setup((WIDTH,), None)
    return objective.double()


def gradients(call: Any, loss: Any, rank: int = 0, world_size: int = 1) -> list[np.ndarray | None]:
    """Gradient of this rank's rows over W, and of the class weights as DDP averages them."""
    rows, labels = (part.chunk(world_size)[rank] for part in batch())
    rows.requires_grad_()
    call(rows, labels).backward()
    assert rows.grad is not None
    weights = next(iter(loss.parameters()), None)
    if weights is None:
        return [rows.grad.numpy() / world_size, None]
    assert weights.grad is not None
    averaged = weights.grad.clone()
    if world_size > 1:
        dist.all_reduce(averaged)
    return [rows.grad.numpy() / world_size, (averaged / world_size).numpy()]


def ours(objective: Metric) -> Any:
    return lambda rows, labels: objective((rows,), labels=labels, progress=Progress())


def of_a_rank() -> dict[tuple[str, str], list[np.ndarray | None]]:
    """Gradients by loss, with our collectives and with the library's wrapper in both modes."""
    from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

    place, found = (dist.get_rank(), dist.get_world_size()), {}
    for name in LOSSES:
        objective = built(name)
        found[name, "ours"] = gradients(ours(objective), objective.loss, *place)
        for mode in ("default", "efficient"):
            if mode == "efficient" and name == "ArcFaceLoss":
                continue  # the wrapper does not support it
            loss = built(name).loss
            wrapped = DistributedLossWrapper(loss, efficient=mode == "efficient")
            found[name, mode] = gradients(wrapped, loss, *place)
    return found


def test_the_library_s_wrapper_gives_wrong_gradients_and_ours_do_not():
    ranks = run_on_ranks(of_a_rank, 2)
    for name in LOSSES:
        objective = built(name)
        rows, weights = gradients(ours(objective), objective.loss)
        assert rows is not None

        def of(mode: str, part: int, name: str = name) -> Any:
            return [rank[name, mode][part] for rank in ranks]

        np.testing.assert_allclose(np.concatenate(of("ours", 0)), rows, atol=1e-12)
        if weights is not None:
            np.testing.assert_allclose(of("ours", 1)[0], weights, atol=1e-12)
            # The weights learn twice as fast on two processes, and W times on W.
            np.testing.assert_allclose(of("default", 1)[0], 2 * weights, atol=1e-12)
        else:
            wrong = np.concatenate(of("efficient", 0)).ravel()
            true = rows.ravel()
            cosine = wrong @ true / np.linalg.norm(wrong) / np.linalg.norm(true)
            assert cosine < 0.99 and np.linalg.norm(wrong) > 1.2 * np.linalg.norm(true)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            "loss: CircelLoss",
            "distillers[0].loss: pytorch-metric-learning has no loss 'CircelLoss'. Did you mean"
            " 'CircleLoss'?",
        ),
        ("loss: {name: CircleLoss, gama: 80}", "distillers[0].loss.gama: unknown key. Did you"),
        ("loss: {gamma: 80}", "distillers[0].loss: write a name, or a mapping with name"),
        ("loss: ArcFaceLoss", "num_classes"),
        ("loss: CrossBatchMemory", "Use distiller 'moco' or a larger batch"),
        ("loss: VICRegLoss", "use distiller 'vicreg'"),
        ("loss: SelfSupervisedLoss", "list two outputs"),
        ("loss: MultipleLosses", "list two distillers"),
        ("loss: CentroidTripletLoss", "2.9 no longer has it"),
        ("loss: NTXLoss, miner: MaximumLossMiner", "Use BatchHardMiner"),
        ("loss: NTXLoss, miner: {name: BatchHardMinr}", "distillers[0].miner.name: pytorch"),
        ("loss: NTXLoss, distance: LpDistanc", "has no distance 'LpDistanc'. Did you mean 'LpD"),
        ("loss: NTXLoss", None),
        ("loss: {name: CircleLoss, m: 0.25, gamma: 80}, miner: {name: AngularMiner}", None),
    ],
)
def test_misspelled_names_and_keys_are_recipe_errors(keys, expected):
    lines = problems_with(
        f"distillers=[{{name: metric, student: image, {keys}}}]",
        "data={reader: classification, path: photos}",
        "towers={image: {builder: torchvision, model: resnet18}}",
    )
    if expected is None:
        assert lines == []
    else:
        assert any(expected in line for line in lines), lines


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_every_loss_and_miner_that_is_listed_can_be_made():
    assert len(class_names("loss")) > 25 and len(class_names("miner")) > 7
    rows, labels = batch()
    for name in class_names("loss"):
        given = {"num_classes": CLASSES, "margin": 0.2, "Tn": 10}
        keys = {key.name: given[key.name] for key in class_keys("loss", name) if key.required}
        keys |= {"n_bins": 5} if name == "HistogramLoss" else {}
        objective = Metric(loss={"name": name, **keys})
        objective.setup((WIDTH,), None)
        value = objective.double()((rows,), labels=labels, progress=Progress())
        assert value.isfinite(), name
    for name in class_names("miner"):
        objective = Metric(loss="TripletMarginLoss", miner=name)
        objective.setup((WIDTH,), None)
        assert objective((rows,), labels=labels, progress=Progress()).isfinite(), name


def test_random_choices_depend_on_the_step_and_leave_the_generators_alone():
    objective = Metric(loss="TripletMarginLoss", miner="DistanceWeightedMiner")
    objective.setup((WIDTH,), None)
    rows, labels = batch()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    values = [
        float(objective((rows,), labels=labels, progress=Progress(step))) for step in (0, 0, 1, 2)
    ]
    assert torch.rand(3).equal(expected)
    assert values[0] == values[1] and len(set(values)) > 1


def test_labels_that_are_missing_or_too_many_are_one_line():
    objective = built("ContrastiveLoss")
    with pytest.raises(DataError, match="the data has none"):
        objective((batch()[0],), labels=None, progress=Progress())
    with pytest.raises(UserError, match="Set num_classes: 10"):
        built("ArcFaceLoss").check_data(DataFacts(10, highest_label=9))


def test_values_that_the_library_refuses_are_one_line():
    with pytest.raises(RecipeError, match="miner 'BatchEasyHardMiner' does not take these keys"):
        Metric(loss="NTXLoss", miner={"name": "BatchEasyHardMiner", "pos_strategy": "x"})
    with pytest.raises(RecipeError, match="'all', 'hard', 'semihard' or 'easy', got 'x'"):
        Metric(loss="NTXLoss", miner={"name": "TripletMarginMiner", "type_of_triplets": "x"})


def test_rows_that_the_library_refuses_are_one_line():
    pytest.importorskip("pytorch_metric_learning.losses.smooth_ap", reason="needs version 2.9")
    rows, labels = batch()
    objective = built("SmoothAPLoss")
    with pytest.raises(RecipeError, match="loss 'SmoothAPLoss' does not take these keys or rows"):
        objective((rows[1:],), labels=labels[1:], progress=Progress())
    # Samples without a label are classes of their own: two outputs make pairs of them.
    value = objective((rows, rows + 0.01), labels=torch.full((ROWS,), -1), progress=Progress())
    assert value.isfinite()


def test_two_outputs_without_labels_are_each_other_s_positives():
    objective = built("NTXentLoss")
    rows, _ = batch()
    value = objective((rows, rows + 0.01), labels=None, progress=Progress())
    other = objective((rows, rows.flip(0)), labels=None, progress=Progress())
    assert value < other
