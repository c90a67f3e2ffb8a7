"""Queues, centers, schedules and episodes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from vlkd_cli.distillers.anchors import AnchorQueue, queue_loss
from vlkd_cli.distillers.compress import CompRess
from vlkd_cli.distillers.dino import DINO
from vlkd_cli.distillers.distiller import DataFacts, Distiller, Widths
from vlkd_cli.distillers.protoclip import ProtoCLIP
from vlkd_cli.distillers.seed import SEED
from vlkd_cli.errors import DataError, RecipeError, UserError
from vlkd_cli.recipe.component import make
from vlkd_cli.recipe.types import Progress, Schedule

NOW = Progress()


def ready(distiller: Distiller, student: Widths, teacher: Widths | None) -> Any:
    """The distiller, set up for the widths of its sides."""
    distiller.setup(student, teacher)
    return distiller


def test_queue_wraps_inside_a_batch() -> None:
    queue = AnchorQueue(5, 1, seed=0, unit_rows=False)
    for start in (0, 3, 6):
        queue.push(torch.arange(start, start + 3.0)[:, None])
    assert queue.rows[:, 0].tolist() == [5, 6, 7, 8, 4]
    assert queue.position.item() == 4


def test_queue_shorter_than_a_batch_holds_the_last_rows_at_their_positions() -> None:
    queue = AnchorQueue(4, 1, seed=0, unit_rows=False)
    queue.push(torch.arange(10.0)[:, None])
    assert sorted(queue.rows[:, 0].tolist()) == [6, 7, 8, 9]
    assert queue.position.item() == 2
    assert queue.rows[1, 0] == 9


def test_streamed_queue_loss_equals_the_materialized_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlkd_cli.distillers.anchors.TILE_ENTRIES", 20)
    generator = torch.Generator().manual_seed(0)
    student, teacher, ours, theirs = (
        torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (5, 5, 33, 33)
    )
    student.requires_grad_()
    z, y = student @ ours.T / 0.1, teacher @ theirs.T / 0.2
    target = y.softmax(dim=1)
    wanted = (target * (target.log() - z.log_softmax(dim=1))).sum(dim=1).mean()
    found = queue_loss(
        student,
        teacher,
        ours,
        theirs,
        student_temperature=0.1,
        teacher_temperature=0.2,
        subtracts_entropy=True,
    )
    assert found.item() == pytest.approx(wanted.item(), rel=1e-12)
    torch.testing.assert_close(*(torch.autograd.grad(loss, student)[0] for loss in (found, wanted)))


def test_batch_is_scored_against_the_queue_before_it_enters() -> None:
    loss = ready(CompRess(queue_size=8), 3, 3)
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    first = loss(student, teacher).item()
    assert loss(student, teacher).item() == first
    loss.discard()
    loss.commit(NOW)
    assert loss(student, teacher).item() == first
    loss.commit(NOW)
    assert loss(student, teacher).item() != first


def test_micro_batches_enter_in_their_order() -> None:
    loss = ready(SEED(queue_size=6), 4, 4)
    rows = torch.eye(4)
    loss(rows[:2], rows[:2])
    loss(rows[2:], rows[2:])
    loss.commit(NOW)
    assert loss.queue is not None
    torch.testing.assert_close(loss.queue.rows[:4], rows)


def test_center_moves_once_per_commit_by_the_mean_of_micro_batches() -> None:
    loss = ready(DINO(num_prototypes=None, center_momentum=0.5), 5, 5)
    first, second = torch.randn(3, 5), torch.randn(3, 5)
    loss(first, first)
    loss(second, second)
    loss.commit(NOW)
    torch.testing.assert_close(loss.center, 0.5 * torch.cat([first, second]).mean(dim=0))


def test_teacher_temperature_follows_its_schedule_by_epoch() -> None:
    schedule = Schedule(linear=(0.04, 0.07), epochs=4)
    warm = ready(DINO(num_prototypes=None, teacher_temperature=schedule), 5, 5)
    student, teacher = torch.randn(3, 5), torch.randn(3, 5)
    for epoch, temperature in ((0, 0.04), (1, 0.05), (3, 0.07), (9, 0.07)):
        fixed = ready(DINO(num_prototypes=None, teacher_temperature=temperature), 5, 5)
        progress = Progress(step=epoch * 10, steps_per_epoch=10)
        assert warm(student, teacher, progress=progress).item() == pytest.approx(
            fixed(student, teacher).item(), rel=1e-5
        )


def test_tied_prototypes_learn_from_the_student_alone() -> None:
    loss = ready(DINO(num_prototypes=7), 5, 5)
    student, teacher = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    loss(student, teacher).backward()
    assert loss.prototypes is not None and loss.prototypes.grad is not None and teacher.grad is None
    # Only directions matter: no gradient along a prototype.
    assert (loss.prototypes.grad * loss.prototypes).sum(dim=1).abs().max() < 1e-6


def test_widths_that_letters_cannot_tell_are_refused_with_the_head_to_add() -> None:
    message = r"teacher embeds 9 values, the student 6, .*'compress'.*: \{name: linear, width: 9\}"
    with pytest.raises(RecipeError, match=message):
        CompRess(num_queues=1).setup(6, 9)
    with pytest.raises(RecipeError, match="distiller 'protoclip' compares them directly"):
        ProtoCLIP().setup(6, (6, 9))


def test_protoclip_before_its_first_episode_is_infonce_with_its_scales_in_the_graph() -> None:
    loss = ProtoCLIP(num_prototypes=2)
    features = torch.randn(6, 4, requires_grad=True)
    # The first epoch only contrasts.
    loss.start_episode(features, features, indices=torch.arange(6), progress=NOW)
    loss(features, features + 0.1, indices=torch.arange(6)).backward()
    assert len(loss.episode_indices) == 0
    assert all(parameter.grad is not None for parameter in loss.parameters())


def test_protoclip_leaves_unseen_samples_out_and_refuses_too_small_episodes() -> None:
    torch.manual_seed(0)
    loss = ProtoCLIP(num_prototypes=2, contrastive_episodes=0, contrastive_weight=0.0)
    features = torch.randn(8, 4)
    loss.start_episode(features, features, indices=torch.arange(8), progress=NOW)
    seen = loss(features[:2], features[:2], indices=torch.tensor([0, 1])).item()
    both = loss(features[:3], features[:3], indices=torch.tensor([0, 1, 99])).item()
    assert both == pytest.approx(seen, rel=1e-6) and seen > 0
    assert loss(features[:2], features[:2], indices=torch.tensor([98, 99])).item() == 0
    with pytest.raises(
        DataError,
        match="forms 2 clusters, but an episode has only 1 samples. Lower num_prototypes, or raise",
    ):
        loss.check_data(DataFacts(1))
    with pytest.raises(DataError, match="forms 2 clusters, but the episode has only 1 samples"):
        first = torch.zeros(1, dtype=torch.int64)
        loss.start_episode(features[:1], features[:1], indices=first, progress=NOW)


@pytest.mark.parametrize("name", ["deepcluster", "odc"])
def test_more_clusters_than_samples_are_refused_before_the_first_step(name: str) -> None:
    message = f"'{name}' forms 9 clusters, and the epoch has only 8 samples. Lower num_clusters."
    with pytest.raises(DataError, match=message):
        make("distiller", name, {"num_clusters": 9}).check_data(DataFacts(8))


@pytest.mark.parametrize("name", ["deepcluster", "odc"])
def test_features_of_a_diverged_tower_are_refused_in_one_line(name: str) -> None:
    loss: Any = make("distiller", name, {"num_clusters": 2})
    loss.setup(3, 3, num_rows=4)
    features = torch.randn(4, 3)
    features[1, 2] = torch.nan
    with pytest.raises(UserError, match="features of 1 of 4 are not finite. Lower optimizer.lr"):
        loss.start_episode(features, indices=torch.arange(4), progress=NOW)


@pytest.mark.parametrize("name", ["npid", "odc"])
def test_a_sample_in_two_batches_of_one_step_counts_with_its_later_row(name: str) -> None:
    torch.manual_seed(0)
    keys: dict[str, Any] = {
        "npid": {"num_negatives": 4},
        "odc": {"num_clusters": 2, "components": 2},
    }
    bank: Any = make("distiller", name, keys[name])
    bank.setup(3, 3 if name == "odc" else None, num_rows=6)
    if name == "odc":
        bank.start_episode(torch.randn(6, 3), indices=torch.arange(6), progress=NOW)
    twin, first, second = copy.deepcopy(bank), torch.randn(2, 3), torch.randn(2, 3)
    bank(first, indices=torch.tensor([4, 1]), progress=NOW)
    bank(second, indices=torch.tensor([4, 2]), progress=NOW)
    bank.commit(NOW)
    rows = torch.cat([first[1:], second])
    twin(rows, indices=torch.tensor([1, 4, 2]), progress=NOW)
    twin.commit(NOW)
    torch.testing.assert_close(bank.bank, twin.bank)


def test_odc_dissolves_a_small_cluster_into_the_nearest_of_the_new_centroids() -> None:
    def at(*degrees: float) -> Tensor:
        angles = torch.deg2rad(torch.tensor(degrees))
        return torch.stack([angles.cos(), angles.sin()], dim=1)

    keys = {"num_clusters": 3, "momentum": 1.0, "min_cluster": 2, "centroid_steps": 1}
    odc: Any = make("distiller", "odc", keys)
    odc.setup(2, 2, num_rows=8)
    first = at(0, 0, 0, 0, 90, 90, 90, 200)
    odc.start(torch.arange(8), first, torch.tensor([0, 0, 0, 0, 1, 1, 1, 2]))
    # The cluster at 0 moves to 300, so it is nearer to the row at 200 than the one at 90 is.
    odc(at(300, 301, 299, 300), indices=torch.arange(4))
    odc.commit(NOW)
    groups = {frozenset((odc.labels == label).nonzero()[:, 0].tolist()) for label in range(3)}
    assert groups == {frozenset(range(4)), frozenset((4, 5, 6)), frozenset((7,))}
    for label in range(3):
        torch.testing.assert_close(odc.centroids[label], odc.bank[odc.labels == label].mean(0))


def test_samples_are_encoded_before_those_epochs_only_that_cluster_them() -> None:
    second, third = Progress(step=10, steps_per_epoch=10), Progress(step=20, steps_per_epoch=10)
    sparse: Any = make("distiller", "deepcluster", {"num_clusters": 2, "every_epochs": 2})
    assert [sparse.is_episode_due(each) for each in (NOW, second, third)] == [True, False, True]
    once: Any = make("distiller", "odc", {"num_clusters": 2, "components": 2})
    once.setup(3, 3, num_rows=4)
    assert [once.is_episode_due(each) for each in (NOW, second)] == [True, False]
    once.start_episode(torch.randn(4, 3), indices=torch.arange(4), progress=NOW)
    assert not once.is_episode_due(NOW)
    later = ProtoCLIP(num_prototypes=2, contrastive_episodes=1)
    assert [later.is_episode_due(each) for each in (NOW, second)] == [False, True]
