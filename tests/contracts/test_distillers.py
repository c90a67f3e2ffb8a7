"""The contract of every objective of the catalogue, on one process and on several."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.support.distiller_cases import (
    CASES,
    Case,
    Side,
    batch,
    called,
    pick,
    run_steps,
    share,
    start_episode,
    tensors,
)
from tests.support.ranks import run_on_ranks
from vlkd_cli.catalog import load, names
from vlkd_cli.distillers.distiller import Distiller
from vlkd_cli.distributed.collectives import (
    gather_without_grad,
    mean_without_grad,
    sum_without_grad,
)
from vlkd_cli.recipe.contract import contract_of, form_for

# The ranks of a small group wait for the large ones' work on whatever machine this is.
PATIENCE = timedelta(seconds=600)
pytestmark = pytest.mark.timeout(PATIENCE.total_seconds())
ROWS, STEPS = 12, 3
TOLERANCE = {"float64": 1e-10, "float32": 1e-5}
"""Relative to the largest entry. In float32 products over shards round differently, and gradients
are what is left of terms that nearly cancel."""


def gather_own_gradient(local: torch.Tensor) -> torch.Tensor:
    """The usual mistake: right value, but only the own rows carry a gradient."""
    everywhere = gather_without_grad(local).clone()
    everywhere[dist.get_rank() * len(local) : (dist.get_rank() + 1) * len(local)] = local
    return everywhere


def sum_own_gradient(local: torch.Tensor) -> torch.Tensor:
    """An all-reduce that autograd does not know of: gradient 1/W."""
    return local + (sum_without_grad(local) - local.detach())


WRONG = {
    "infonce": ("blocked_contrast.gather", gather_own_gradient),
    "affinity": ("similarity.gather", gather_own_gradient),
    "simcse": ("simcse.gather", gather_own_gradient),
    "barlow_twins narrow": ("moments.all_reduce_sum", sum_own_gradient),
    "vicreg narrow": ("moments.all_reduce_sum", lambda tensor: tensor),
    "unicl": ("similarity.gather", gather_own_gradient),
    "rkd": ("rkd.gather", gather_own_gradient),
    "compress two queues": ("anchors.gather_without_grad", lambda tensor: tensor.detach()),
    "seed": ("anchors.gather_without_grad", lambda tensor: tensor.detach()),
    "dino": ("prototypes.mean_without_grad", lambda tensor: tensor),
    "protocpc sinkhorn": ("prototypes.mean_without_grad", lambda tensor: tensor),
    "gradient_match": ("clip_kd.all_reduce_sum", sum_own_gradient),
    "cross_entropy": ("cross_entropy.sum_without_grad", lambda tensor: tensor),
    "ntxent": ("ntxent.gather_without_grad", lambda tensor: tensor.detach()),
    "moco": ("anchors.gather_without_grad", lambda tensor: tensor.detach()),
    "moco v3": ("moco.gather_without_grad", lambda tensor: tensor.detach()),
    "dense_contrast": ("anchors.gather_without_grad", lambda tensor: tensor.detach()),
    "swav": ("swav.gather_without_grad", lambda tensor: tensor.detach()),
    "ibot": ("ibot.sum_without_grad", lambda tensor: tensor.detach()),
    "koleo": ("koleo.gather", gather_own_gradient),
    "npid": ("npid.gather_without_grad", lambda tensor: tensor.detach()),
    "odc": ("odc.gather_without_grad", lambda tensor: tensor.detach()),
    "triplet": ("labeled_rows.gather", gather_own_gradient),
    "triplet semihard": ("labeled_rows.sum_without_grad", lambda tensor: tensor),
    "supcon": ("labeled_rows.gather", gather_own_gradient),
    "multi_similarity": ("labeled_rows.gather", gather_own_gradient),
    "margin_softmax": ("labeled_rows.sum_without_grad", lambda tensor: tensor),
    "proxy_anchor": ("proxy_anchor.all_reduce_sum", sum_own_gradient),
    "metric": ("metric.gather", gather_own_gradient),
    "metric random": (
        "metric.gather_without_grad",
        lambda tensor: tensor.repeat(dist.get_world_size()),
    ),
    "score_regression ranking": ("score_regression.gather", gather_own_gradient),
}
"""The originals' failures: gathers without gradient, statistics of one rank, queues and centers
that drift apart."""


def test_every_objective_of_the_catalogue_has_a_case() -> None:
    assert {case.distiller for case in CASES.values()} == set(names("distiller"))
    assert len(names("distiller")) >= 40


@pytest.mark.parametrize("name", names("distiller"))
def test_objective_declares_what_it_is(name: str) -> None:
    kind = load("distiller", name)
    assert issubclass(kind, Distiller)
    assert kind.direction in ("symmetric", "one_way")
    assert kind.crosses_ranks and (kind.paper or name == "cross_entropy")
    assert "Source:" in kind.__doc__
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in parameters)
    next(case for case in CASES.values() if case.distiller == name).build(torch.float32)


@pytest.mark.parametrize("name", names("distiller"))
def test_the_contract_read_without_torch_is_that_of_the_class(name: str) -> None:
    contract, kind = contract_of(name), load("distiller", name)
    found = inspect.signature(kind.forward).parameters
    sides = [each for each in found if each in ("student", "teacher")]
    assert [*sides, *contract.wants] == list(found)[1:]
    assert bool(contract.teacher) == ("teacher" in sides)
    assert (contract.episode is not None) == hasattr(kind, "start_episode")


@pytest.mark.parametrize("name", CASES)
def test_a_case_is_of_a_form_that_the_contract_offers(name: str) -> None:
    case = CASES[name]
    contract = contract_of(case.distiller)
    for forms, widths in (
        (contract.student, case.student),
        (contract.forms("teacher"), case.teacher),
    ):
        if widths is not None:
            form = form_for(forms, 1 if isinstance(widths, int) else len(widths))
            assert form is not None
            assert (form.is_tuple or form.repeats) == isinstance(widths, tuple)


def differences(found: dict[str, Any], wanted: dict[str, Any], world_size: int) -> float:
    """Largest relative deviation of a rank's record from the single process's, losses aside."""
    worst = 0.0

    def compare(ours: Any, theirs: Any) -> None:
        nonlocal worst
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs.size:
            scale = max(np.abs(theirs.astype(np.float64)).max(), 1e-3)
            worst = max(worst, float(np.abs(ours.astype(np.float64) - theirs).max() / scale))

    for ours, theirs in zip(found["features"], wanted["features"], strict=True):
        for our_gradient, their_gradient in zip(ours, theirs, strict=True):
            compare(None if our_gradient is None else our_gradient / world_size, their_gradient)
    for ours, theirs in zip(
        found["parameters"] + [found["state"]],
        wanted["parameters"] + [wanted["state"]],
        strict=True,
    ):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            compare(ours[key], theirs[key])
    return worst


def of_rank(record: dict[str, Any], rank: int, world_size: int) -> dict[str, Any]:
    """The single process's record with only the rows of one rank."""
    own = slice(rank * ROWS // world_size, (rank + 1) * ROWS // world_size)
    return record | {
        "features": [
            [None if one is None else one[own] for one in step] for step in record["features"]
        ]
    }


def steps_in(precision: str, case: Case, *rank_and_group: Any) -> dict[str, Any]:
    """Three steps of a case; further arguments as of `run_steps`."""
    return run_steps(case, ROWS, STEPS, getattr(torch, precision), *rank_and_group)


def on_one_rank(world_sizes: list[int], folder: str) -> dict[str, Any]:
    """Every case at every world size, and with the wrong collectives at two ranks; groups are left
    and joined again in between."""
    rank, everything = dist.get_rank(), {}
    for world_size in world_sizes:
        # A group that one rank leaves while another still connects to it fails there: "connection
        # closed by peer".
        dist.barrier()
        dist.destroy_process_group()
        if rank < world_size:
            file = f"file://{folder}/{world_size}"
            dist.init_process_group(
                "gloo", init_method=file, rank=rank, world_size=world_size, timeout=PATIENCE
            )
            for name, case in CASES.items():
                for precision in TOLERANCE:
                    everything[world_size, name, precision] = steps_in(
                        precision, case, rank, world_size, mean_without_grad
                    )
            if world_size == 2:
                for name, (target, replacement) in WRONG.items():
                    with mock.patch(f"vlkd_cli.distillers.{target}", replacement):
                        everything["wrong", name] = steps_in(
                            "float64", CASES[name], rank, world_size, mean_without_grad
                        )
            dist.barrier()
            dist.destroy_process_group()
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/all-{world_size}",
            rank=rank,
            world_size=4,
            timeout=PATIENCE,
        )
    dist.barrier()
    return everything


@pytest.fixture(scope="module")
def alone() -> dict[Any, Any]:
    torch.set_num_threads(1)
    return {
        (name, precision): steps_in(precision, case)
        for name, case in CASES.items()
        for precision in TOLERANCE
    }


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    folder = tmp_path_factory.mktemp("groups")
    return run_on_ranks(
        on_one_rank, 4, [4, 3, 2, 1], os.fspath(folder), timeout_seconds=PATIENCE.total_seconds()
    )


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("name", CASES)
def test_objective_is_exact_over_ranks(
    name: str, world_size: int, alone: dict[Any, Any], on_ranks: list[dict[Any, Any]]
) -> None:
    for precision, tolerance in TOLERANCE.items():
        wanted = alone[name, precision]
        records = [on_ranks[rank][world_size, name, precision] for rank in range(world_size)]
        losses = np.mean([record["losses"] for record in records], axis=0)
        np.testing.assert_allclose(losses, wanted["losses"], rtol=tolerance, atol=tolerance)
        for rank, record in enumerate(records):
            assert differences(record, of_rank(wanted, rank, world_size), world_size) < tolerance


@pytest.mark.parametrize("name", WRONG)
def test_wrong_collective_is_noticed(
    name: str, alone: dict[Any, Any], on_ranks: list[dict[Any, Any]]
) -> None:
    wanted = alone[name, "float64"]
    records = [on_ranks[rank]["wrong", name] for rank in range(2)]
    losses = np.mean([record["losses"] for record in records], axis=0)
    in_values = np.abs(losses - wanted["losses"]).max() > 1e-4
    in_gradients_or_state = any(
        differences(record, of_rank(wanted, rank, 2), 2) > 1e-3
        for rank, record in enumerate(records)
    )
    assert in_values or in_gradients_or_state


@pytest.mark.parametrize("name", CASES)
def test_objective_resumes_as_if_never_stopped(name: str, alone: dict[Any, Any]) -> None:
    case, dtype = CASES[name], torch.float32
    torch.set_num_threads(1)
    half = case.build(dtype)
    start_episode(half, case, dtype)
    run_steps(case, ROWS, 2, dtype, distiller=half)
    saved = copy.deepcopy(half.state_dict())
    resumed = case.build(dtype)
    resumed.load_state_dict(saved)
    last = run_steps(case, ROWS, 1, dtype, distiller=resumed, first=2)
    wanted = alone[name, "float32"]
    assert last["losses"] == wanted["losses"][2:]
    for key, value in wanted["state"].items():
        np.testing.assert_array_equal(last["state"][key], value)


EACH_ROW_ITSELF = ("simreg", "regress", "codes", "view_order", "moco", "dense_contrast")
"""Objectives whose batches of equal size, without labels, have a mean that is the whole's."""
STATEFUL = (
    "compress",
    "dense_contrast",
    "dino",
    "ibot",
    "moco",
    "npid",
    "odc",
    "protocpc",
    "seed",
    "swav queue",
)
"""Cases, or all of an objective, whose state moves with an optimizer step."""


# Sinkhorn's assignments, whose mean is the prior, balance the rows of one batch.
@pytest.mark.parametrize("name", [name for name in CASES if name != "protocpc sinkhorn"])
def test_batches_of_one_optimizer_step_move_the_state_once(name: str) -> None:
    case, dtype = CASES[name], torch.float64
    whole = case.build(dtype)
    start_episode(whole, case, dtype)
    parts, before = copy.deepcopy(whole), copy.deepcopy(whole.state_dict())
    student, teacher, offered = batch(case, ROWS, 0, dtype)
    wanted = called(whole, student, teacher, offered)
    whole.commit(offered["progress"])
    losses = []
    for first in range(0, ROWS, ROWS // 3):
        rows = slice(first, first + ROWS // 3)
        sides = pick(student, rows), pick(teacher, rows)
        losses.append(called(parts, *sides, share(offered, rows)))
    parts.commit(offered["progress"])
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[key], value, rtol=1e-9, atol=1e-12, msg=key)
    moved = any(not value.equal(before[key]) for key, value in whole.state_dict().items())
    assert moved == (bool({name, case.distiller} & set(STATEFUL)) and name != "moco v3")
    if case.distiller in EACH_ROW_ITSELF and name != "moco v3":
        torch.testing.assert_close(torch.stack(losses).mean(), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_forward_and_evaluation_leave_the_state_alone(name: str) -> None:
    case = CASES[name]
    distiller = case.build(torch.float32)
    before = copy.deepcopy(distiller.state_dict())
    student, teacher, offered = batch(case, ROWS, 0, torch.float32)
    called(distiller, student, teacher, offered)
    distiller.discard()
    distiller.eval()
    with torch.no_grad():
        called(distiller, student, teacher, offered)
    distiller.commit(offered["progress"])
    for key, value in distiller.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("name", CASES)
def test_one_way_objective_sends_no_gradient_to_its_teacher(name: str) -> None:
    case = CASES[name]
    distiller = case.build(torch.float32)
    if case.distiller in ("deepcluster", "odc"):  # which learn nothing before
        start_episode(distiller, case, torch.float32)
    student, teacher, offered = batch(case, ROWS, 0, torch.float32)
    for tensor in tensors(student, teacher):
        tensor.requires_grad_()
    called(distiller, student, teacher, offered).backward()
    if distiller.direction == "one_way":
        assert all(tensor.grad is None for tensor in tensors(teacher))
    if name not in (
        "compress momentum",
        "protoclip external",
        "dense_contrast",
    ):  # a key encoder learns nothing; no episode has begun; matches take no gradient
        assert all(
            tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in tensors(student)
        )


def changed(side: Side, change: Callable[[torch.Tensor], torch.Tensor]) -> Side:
    """A side with every tensor of it changed."""
    if side is None:
        return None
    return tuple(map(change, side)) if isinstance(side, tuple) else change(side)


HARD = {
    "one row": lambda tensor: tensor[:1],
    "duplicated rows": lambda tensor: tensor[[0] * 6],
    "a zero row": lambda tensor: torch.cat([tensor[:5], torch.zeros_like(tensor[:1])]),
    "near duplicates": lambda tensor: tensor[:1] + 1e-4 * tensor[:6],
    "large rows": lambda tensor: 30 * tensor[:6],
}


@pytest.mark.parametrize("hardness", HARD)
@pytest.mark.parametrize("name", CASES)
def test_hard_batches_have_finite_loss_and_gradient(name: str, hardness: str) -> None:
    case, change = CASES[name], HARD[hardness]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        distiller = case.build(torch.float32)
        student, teacher, offered = batch(case, ROWS, 0, torch.float32)
        student, teacher = (
            changed(side, lambda tensor, dtype=dtype: change(tensor).to(dtype))
            for side in (student, teacher)
        )
        made = [tensor.requires_grad_() for tensor in tensors(student, teacher)]
        offered = share(offered, slice(len(made[0])))
        with torch.autocast(
            "cpu",
            dtype=dtype if dtype != torch.float32 else torch.bfloat16,
            enabled=dtype != torch.float32,
        ):
            loss = called(distiller, student, teacher, offered)
        assert loss.dtype == torch.float32
        loss.backward()
        assert loss.isfinite()
        for tensor in made:
            # Features in 16 bits have gradients in 16 bits; a gradient that a scaler must tame is
            # the trainer's matter.
            assert tensor.grad is None or tensor.grad.isfinite().all() or dtype == torch.float16
            assert tensor.grad is None or dtype != torch.float32 or tensor.grad.abs().max() < 1e5
        distiller.commit(offered["progress"])
        assert all(value.isfinite().all() for value in distiller.state_dict().values())


@pytest.mark.parametrize("name", CASES)
def test_sixteen_bits_stay_near_float32(name: str) -> None:
    case = CASES[name]
    student, teacher, offered = batch(case, ROWS, 0, torch.float32)
    sides = [changed(side, torch.Tensor.bfloat16) for side in (student, teacher)]
    values = []
    for dtype in (torch.float32, torch.bfloat16):
        to_dtype = partial(torch.Tensor.to, dtype=dtype)
        ours, theirs = (changed(side, to_dtype) for side in sides)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            values.append(called(case.build(torch.float32), ours, theirs, offered).item())
    # Nothing is computed in 16 bits, so only the rounding of the inputs counts, and that is the
    # same here.
    assert values[0] == pytest.approx(values[1], rel=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_objective_survives_deepcopy_after_a_step(name: str) -> None:
    case = CASES[name]
    distiller = case.build(torch.float32)
    student, teacher, offered = batch(case, ROWS, 0, torch.float32)
    called(distiller, student, teacher, offered)
    twin = copy.deepcopy(distiller)
    found = (called(each, student, teacher, offered).item() for each in (twin, distiller))
    assert next(found) == next(found)
