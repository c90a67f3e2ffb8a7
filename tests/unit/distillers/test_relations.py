"""Properties of RKD, VICReg, UniCL and labels that goldens do not show."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from vlkd_cli.distillers.barlow_twins import BarlowTwins
from vlkd_cli.distillers.cross_entropy import CrossEntropy
from vlkd_cli.distillers.distiller import DataFacts, Distiller
from vlkd_cli.distillers.infonce import InfoNCE
from vlkd_cli.distillers.reinforced import Reinforced
from vlkd_cli.distillers.rkd import RKD
from vlkd_cli.distillers.unicl import UniCL
from vlkd_cli.distillers.vicreg import VICReg
from vlkd_cli.errors import DataError, RecipeError


def test_rkd_ignores_rotation_scale_and_shift_of_the_student() -> None:
    torch.manual_seed(0)
    teacher, student = (
        torch.randn(9, 7, dtype=torch.float64),
        torch.randn(9, 5, dtype=torch.float64),
    )
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))
    moved = 3 * student @ rotation + 100
    assert RKD()(moved, teacher).item() == pytest.approx(RKD()(student, teacher).item(), rel=1e-9)


def test_rkd_of_a_student_like_its_teacher_is_zero() -> None:
    teacher = torch.randn(9, 7, dtype=torch.float64)
    assert RKD(normalize="none")(2 * teacher, teacher).item() == pytest.approx(0, abs=1e-20)


def test_a_duplicated_caption_does_not_explode_rkd() -> None:
    student, teacher = torch.randn(8, 16), torch.randn(8, 16)
    student[5] = student[2]
    student.requires_grad_()
    RKD()(student, teacher).backward()
    assert student.grad is not None and student.grad.abs().max() < 10


@pytest.mark.parametrize("loss", [VICReg(), BarlowTwins()])
def test_gram_matrix_gives_the_same_value_as_the_covariance(loss: torch.nn.Module) -> None:
    """Doubling the batch by a copy crosses from the one form to the other; means over rows stay
    what they are."""
    torch.manual_seed(0)
    x, y = torch.randn(6, 10, dtype=torch.float64), torch.randn(6, 10, dtype=torch.float64)
    if isinstance(loss, VICReg):
        loss.variance_weight = loss.invariance_weight = 0.0
        # Unbiased covariances of 12 rows differ from those of 6 by (2 * 5 / 11)^2.
        factor = (10 / 11) ** 2
    else:
        factor = 1.0
    assert loss(x.repeat(2, 1), y.repeat(2, 1)).item() == pytest.approx(
        factor * loss(x, y).item(), rel=1e-9
    )


def test_unicl_without_labels_is_infonce_and_stays_finite_at_wide_logits() -> None:
    x, y = torch.randn(6, 4), torch.randn(6, 4)
    unlabeled = torch.full((6,), -1)
    assert UniCL()(x, y, labels=unlabeled).item() == pytest.approx(InfoNCE()(x, y).item(), rel=1e-5)
    assert UniCL(logit_scale=300.0)(x, -x, labels=torch.zeros(6, dtype=torch.int64)).isfinite()


def test_cross_entropy_counts_labeled_rows_only() -> None:
    loss = CrossEntropy(num_classes=3)
    loss.setup(4, None)
    features, labels = torch.randn(5, 4), torch.tensor([0, -1, 2, -1, 1])
    found = loss(features, labels=labels)
    known = labels >= 0
    torch.testing.assert_close(
        found, F.cross_entropy(loss.classifier(features[known]), labels[known])
    )
    assert loss(features, labels=torch.full((5,), -1)).item() == 0


def test_soft_targets_keep_the_digits_of_small_probabilities() -> None:
    """At the first bias of -10 both probabilities are some 1e-5, and so is the gradient between
    them."""
    torch.manual_seed(0)
    image, text, *teacher = (torch.randn(24, 16) for _ in range(4))
    gradients = []
    for dtype in (torch.float32, torch.float64):
        student = tuple(
            side.detach().to(dtype, copy=True).requires_grad_() for side in (image, text)
        )
        loss = Reinforced(
            loss="sigmoid",
            sigmoid_targets="probability",
            logit_scale=1.0,
            teacher_logit_scales=[1.0],
        ).to(dtype)
        loss(student, tuple(side.to(dtype) for side in teacher)).backward()
        gradients.append(student[0].grad)
    ours, exact = gradients
    assert ours is not None and exact is not None
    assert ((ours - exact).abs().max() / exact.abs().max()).item() < 1e-5


@pytest.mark.parametrize("loss", [UniCL(), CrossEntropy()])
def test_missing_labels_are_one_line(loss: Distiller) -> None:
    with pytest.raises(DataError, match="needs labels"):
        loss.check_data(DataFacts(100, highest_label=-1))
    loss.check_data(DataFacts(100, highest_label=None))


def test_labels_beyond_the_classes_are_refused_before_the_first_step() -> None:
    with pytest.raises(
        RecipeError,
        match="labels up to 47, and num_classes of distiller 'cross_entropy' is 3. Set",
    ):
        CrossEntropy(num_classes=3).check_data(DataFacts(100, highest_label=47))
    CrossEntropy(num_classes=48).check_data(DataFacts(100, highest_label=47))


@pytest.mark.parametrize(
    ("keys", "teacher", "message"),
    [
        (
            {"teacher_widths": [8, 8]},
            (16, 16, 16, 16),
            "2 addresses into all teachers, but got 4. Remove teacher_widths",
        ),
        ({"teacher_widths": [4, 4]}, (16, 16), "add up to 8, but the teacher outputs have widths"),
        (
            {"teacher_logit_scales": [1.0, 2.0]},
            (16, 16),
            "has 2 entries for 1 teacher. Give one for all, or one for each",
        ),
        (
            {},
            (16, 16, 16),
            "takes 2 outputs of each teacher, as many as of the student, but got 3",
        ),
    ],
)
def test_teachers_that_do_not_add_up_are_refused(
    keys: dict[str, Any], teacher: tuple[int, ...], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        Reinforced(**keys).setup((16, 16), teacher)
