"""A small set-up for every objective, its variants included: keys, and inputs for a batch on one or
many ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from vlkd_cli.catalog import load
from vlkd_cli.distillers.distiller import Distiller, Widths
from vlkd_cli.recipe.contract import contract_of
from vlkd_cli.recipe.types import Progress

Side = Tensor | tuple[Tensor, ...] | None
CLASSES, SAMPLES = 5, 40
ROWS_OF_DATA = SAMPLES + 5
POSITIONS = 3


@dataclass(frozen=True)
class Case:
    """One objective with its keys and the widths of both sides; a tuple of widths is a tuple of
    tensors."""

    distiller: str
    student: Widths = 6
    teacher: Widths | None = 6
    keys: dict[str, Any] = field(default_factory=dict)
    kind: Literal["rows", "positions", "selected"] = "rows"

    def build(self, dtype: torch.dtype) -> Distiller:
        distiller: Distiller = load("distiller", self.distiller)(**self.keys)
        sizes = {"num_rows": ROWS_OF_DATA} if contract_of(self.distiller).counts_rows else {}
        distiller.setup(self.student, self.teacher, **sizes)
        return distiller.to(dtype)


CASES = {
    "infonce": Case("infonce"),
    "siglip": Case("siglip"),
    "simreg": Case("simreg"),
    "simreg l1": Case("simreg", keys={"distance": "l1"}),
    "simreg smooth_l1": Case("simreg", keys={"distance": "smooth_l1"}),
    "vicreg wide": Case("vicreg", 20, 20),
    "vicreg narrow": Case("vicreg"),
    "barlow_twins wide": Case("barlow_twins", 20, 20),
    "barlow_twins narrow": Case("barlow_twins"),
    "rkd": Case("rkd", 6, 9),
    "rkd itra": Case("rkd", 6, 9, {"compat": "itra"}),
    "compress two queues": Case("compress", 6, 9, {"queue_size": 20}),
    "compress one queue": Case("compress", keys={"num_queues": 1, "queue_size": 20}),
    "compress momentum": Case("compress", (6, 6), 9, {"queue_size": 20}),
    "compress short queue": Case("compress", 6, 9, {"queue_size": 7}),
    "seed": Case("seed", keys={"queue_size": 20, "teacher_temperature": 0.05}),
    "dino": Case("dino", keys={"num_prototypes": 30}),
    "dino views": Case("dino", (6, 6, 6), (6, 6), {"num_prototypes": 30}),
    "dino logits": Case("dino", keys={"num_prototypes": None}),
    "protocpc": Case("protocpc", keys={"num_prototypes": 30}),
    "protocpc sinkhorn": Case("protocpc", keys={"num_prototypes": 30, "assignment": "sinkhorn"}),
    "protoclip": Case("protoclip", keys={"num_prototypes": 4, "contrastive_episodes": 0}),
    "protoclip external": Case(
        "protoclip",
        (6, 5),
        (6, 5, 7),
        {
            "num_prototypes": 4,
            "contrastive_episodes": 0,
            "back_translation": False,
            "target_temperature": None,
        },
    ),
    "unicl": Case("unicl"),
    "cross_entropy": Case(
        "cross_entropy", 6, None, {"num_classes": CLASSES, "label_smoothing": 0.1}
    ),
    "affinity": Case("affinity", (6, 6), (9, 9), {"affinity_weight": 0.5, "learnable": True}),
    "feature_distance": Case("feature_distance", (6, 6), (9, 9)),
    "interactive_contrast": Case("interactive_contrast", (6, 6), (9, 9)),
    "relational_kl": Case("relational_kl", (6, 6), (9, 9)),
    "gradient_match": Case("gradient_match", (6, 6), (9, 9)),
    "augmented_contrast": Case("augmented_contrast", (6, 6), (9, 9)),
    "layer_distance": Case("layer_distance", 6, 9),
    "layer_distance places": Case("layer_distance", 6, 9, {}, "positions"),
    "reinforced": Case(
        "reinforced",
        (6, 6),
        (9, 9, 4, 4),
        {"contrastive_weight": 0.25, "distill_weight": 0.75, "teacher_logit_scales": [70.0, 60.0]},
    ),
    "reinforced synthetic": Case("reinforced", (6, 6, 6), (9, 9, 9)),
    "reinforced sigmoid": Case(
        "reinforced", (6, 6), (9, 9), {"loss": "sigmoid", "contrastive_weight": 1.0}
    ),
    "reinforced probability": Case(
        "reinforced", (6, 6), (9, 9), {"loss": "sigmoid", "sigmoid_targets": "probability"}
    ),
    "simcse": Case("simcse"),
    "simcse negatives": Case("simcse", 6, (6, 6), {"hard_negative_weight": 0.5}),
    "simcse itra": Case("simcse", keys={"compat": "itra"}),
    "ntxent": Case("ntxent"),
    "moco": Case("moco", keys={"queue_size": 20}),
    "moco v3": Case("moco", keys={"queue_size": None}),
    "dense_contrast": Case("dense_contrast", (6, 4), (6, 4), {"queue_size": 20}, "positions"),
    "swav": Case("swav", (6, 6, 6), (6, 6), {"num_prototypes": 10}),
    "swav queue": Case(
        "swav",
        (6, 6),
        (6, 6),
        {"num_prototypes": 10, "queue_size": 14, "queue_from_epoch": 0},
    ),
    "regress": Case("regress"),
    "regress positions": Case("regress", keys={"distance": "l1"}, kind="positions"),
    "codes": Case("codes"),
    "codes positions": Case("codes", kind="positions"),
    "ibot": Case("ibot", kind="selected"),
    "koleo": Case("koleo", 6, None),
    "view_order": Case("view_order", (3, 3, 3), None),
    "npid": Case("npid", 6, None, {"num_negatives": 16}),
    "npid softmax": Case("npid", 6, None, {"num_negatives": 16, "estimator": "softmax"}),
    "npid bank": Case("npid", 6, None, {"num_negatives": None, "estimator": "softmax"}),
    "deepcluster": Case("deepcluster", 6, 6, {"num_clusters": 4, "components": 4}),
    "odc": Case(
        "odc",
        6,
        6,
        {"num_clusters": 4, "components": 4, "min_cluster": 6, "centroid_steps": 2},
    ),
    "triplet": Case("triplet", (6,), None),
    "triplet soft": Case("triplet", (6,), None, {"soft": True, "distance": "cosine"}),
    "triplet semihard": Case("triplet", (6, 6), None, {"miner": "semihard", "margin": 0.5}),
    "triplet batch_hard": Case("triplet", (6,), None, {"miner": "batch_hard", "margin": 0.5}),
    "supcon": Case("supcon", (6,), None),
    "supcon two outputs": Case("supcon", (6, 6), None),
    "multi_similarity": Case("multi_similarity", (6,), None, {"beta": 10.0}),
    "multi_similarity all pairs": Case("multi_similarity", (6, 6), None, {"miner": "none"}),
    "margin_softmax": Case("margin_softmax", (6,), None, {"num_classes": CLASSES, "scale": 16.0}),
    "margin_softmax cosface": Case(
        "margin_softmax", (6, 6), None, {"num_classes": CLASSES, "kind": "cosface", "scale": 16.0}
    ),
    "proxy_anchor": Case("proxy_anchor", (6,), None, {"num_classes": CLASSES, "alpha": 8.0}),
    "metric": Case("metric", (6,), None, {"loss": {"name": "CircleLoss", "gamma": 8}}),
    "metric two outputs": Case(
        "metric", (6, 6), None, {"loss": "ContrastiveLoss", "distance": "CosineSimilarity"}
    ),
    "metric random": Case(
        "metric", (6,), None, {"loss": "TripletMarginLoss", "miner": "DistanceWeightedMiner"}
    ),
    "metric classes": Case(
        "metric", (6,), None, {"loss": {"name": "ArcFaceLoss", "num_classes": CLASSES, "scale": 16}}
    ),
    "margin_mse": Case("margin_mse", 6, (6, 6), {"scale": 0.01}),
    "margin_mse cosine": Case("margin_mse", 6, (6, 6), {"similarity": "cosine", "scale": 10.0}),
    "score_regression": Case("score_regression"),
    "score_regression ranking": Case("score_regression", keys={"loss": "ranking"}),
}


def side(
    width: Widths | None,
    rows: int,
    generator: torch.Generator,
    dtype: torch.dtype,
    kind: str = "rows",
) -> Side:
    """Random features; of several positions for each row unless the kind is "rows"."""
    if width is None:
        return None
    shape = (rows,) if kind == "rows" else (rows, POSITIONS)

    def features(each: int) -> Tensor:
        return torch.randn(*shape, each, generator=generator, dtype=torch.float64).to(dtype)

    return tuple(map(features, width)) if isinstance(width, tuple) else features(width)


def batch(
    case: Case, rows: int, step: int, dtype: torch.dtype
) -> tuple[Side, Side, dict[str, Any]]:
    """Student and teacher of a whole batch, and what else it offers; labels are unknown for some
    rows, indices are unseen by the episode for some."""
    generator = torch.Generator().manual_seed(100 + step)
    student, teacher = (
        side(case.student, rows, generator, dtype, case.kind),
        side(case.teacher, rows, generator, dtype, case.kind),
    )
    if not contract_of(case.distiller).teacher:
        teacher = None
    labels = torch.randint(-1, CLASSES, (rows,), generator=generator)
    indices = torch.randint(0, SAMPLES + 5, (rows,), generator=generator)
    progress = Progress(step, steps_per_epoch=2, total_steps=10)
    targets = torch.rand(rows, 1, generator=generator, dtype=torch.float64).to(dtype)
    offered = {"labels": labels, "targets": targets, "indices": indices, "progress": progress}
    if case.kind == "selected":
        # Some rows have none, one has all.
        offered["counts"] = torch.randint(0, POSITIONS + 1, (rows,), generator=generator)
    return student, teacher, offered


def called(distiller: Distiller, student: Side, teacher: Side, offered: dict[str, Any]) -> Tensor:
    """The loss; of selected positions, as many of each row as `offered` counts."""
    offered = dict(offered)
    counts = offered.pop("counts", None)
    if counts is not None:
        assert isinstance(student, Tensor) and isinstance(teacher, Tensor)
        chosen = torch.arange(POSITIONS) < counts[:, None]
        student, teacher = student[chosen], teacher[chosen]
        offered["samples"] = torch.arange(len(counts)).repeat_interleave(counts)
    return distiller(student, teacher, **offered)


def share(offered: dict[str, Any], rows: slice) -> dict[str, Any]:
    """What a batch offers, for some of its rows."""
    return {
        name: value[rows] if isinstance(value, Tensor) else value for name, value in offered.items()
    }


def episode(case: Case, dtype: torch.dtype) -> tuple[Side, Side, Tensor]:
    """Features of an episode's samples, some sampled twice, and their positions in the data
    set."""
    generator = torch.Generator().manual_seed(7)
    indices = torch.cat([torch.randperm(SAMPLES, generator=generator), torch.arange(4)])
    student, teacher = (
        side(case.student, SAMPLES, generator, dtype),
        side(case.teacher, SAMPLES, generator, dtype),
    )
    return pick(student, indices), pick(teacher, indices), indices


def start_episode(
    distiller: Distiller, case: Case, dtype: torch.dtype, rows: slice = slice(None)
) -> None:
    """Begin an episode on some of its rows, where the objective has episodes."""
    episodes = contract_of(case.distiller).episode
    if episodes is None:
        return
    student, teacher, indices = episode(case, dtype)
    sides = {"student": pick(student, rows), "teacher": pick(teacher, rows)}
    start: Any = distiller.start_episode
    start(
        **{name: side for name, side in sides.items() if name in episodes},
        indices=indices[rows],
        progress=Progress(),
    )


def pick(features: Side, rows: Tensor | slice) -> Side:
    """Rows of every tensor of a side."""
    if features is None:
        return None
    return tuple(one[rows] for one in features) if isinstance(features, tuple) else features[rows]


def tensors(*sides: Side) -> Iterator[Tensor]:
    """All tensors of all sides."""
    for one in sides:
        if one is not None:
            yield from one if isinstance(one, tuple) else (one,)


def run_steps(
    case: Case,
    rows: int,
    steps: int,
    dtype: torch.dtype,
    rank: int = 0,
    world_size: int = 1,
    average: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    distiller: Distiller | None = None,
    first: int = 0,
) -> dict[str, Any]:
    """Train the objective's own parameters for some steps on this rank's share, as DDP would;
    losses, gradients and the last state.

    Args:
        average: mean over ranks.
        distiller: continue this one instead of a fresh one.
        first: number of the first step.
    """
    own = slice(rank * rows // world_size, (rank + 1) * rows // world_size)
    if distiller is None:
        distiller = case.build(dtype)
        # Ranks hold different numbers of rows.
        start_episode(distiller, case, dtype, slice(rank, None, world_size))
    record: dict[str, Any] = {"losses": [], "features": [], "parameters": []}
    for step in range(first, first + steps):
        student, teacher, offered = batch(case, rows, step, dtype)
        student, teacher = pick(student, own), pick(teacher, own)
        for tensor in tensors(student, teacher):
            tensor.requires_grad_()
        distiller.zero_grad()
        loss = called(distiller, student, teacher, share(offered, own))
        loss.backward()
        record["losses"].append(loss.item())
        record["features"].append(
            [
                None if tensor.grad is None else tensor.grad.numpy()
                for tensor in tensors(student, teacher)
            ]
        )
        gradients = {}
        with torch.no_grad():
            for name, parameter in distiller.named_parameters():
                assert parameter.grad is not None, (
                    f"{name} takes no part, which DDP would not forgive"
                )
                gradient = average(parameter.grad)
                gradients[name] = gradient.numpy()
                parameter -= 0.1 * gradient
        record["parameters"].append(gradients)
        distiller.commit(offered["progress"])
    record["state"] = {
        name: value.detach().numpy().copy() for name, value in distiller.state_dict().items()
    }
    return record
