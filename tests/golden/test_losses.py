"""Every case that the original authors' code produced, in value and gradient, in float64 and
float32.

Cases of one original that vlkd offers as several distillers are taken apart by output. What is an
original's own reading rather than the
paper's is matched by the named switch: CLIP-KD's ICL (`scale_is_log: false`) and GD
(`gd_temperature: scale`). Not matched, with the
reason: CLIP-KD's `cross_kd` and `afd` (not in the main recipe, and no distiller of the
catalogue), `itra_contrast` (marked as
reference only: ITRA's VICReg and Barlow Twins cannot reach their own targets; its RKD is matched by
`compat: itra`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.golden import golden_inputs
from vlkd_cli.catalog import load
from vlkd_cli.distillers.blocked_contrast import blocked_infonce
from vlkd_cli.distillers.distiller import Distiller
from vlkd_cli.heads.prototypes import PrototypeHead
from vlkd_cli.numerics.kmeans import class_means, kmeans
from vlkd_cli.recipe.types import Progress, Schedule

GOLDENS = json.loads((Path(__file__).parent / "losses.json").read_text())
CASES = {case["id"]: case for case in GOLDENS["cases"]}
NOT_MATCHED = {"cross_kd", "afd"}
Inputs = dict[str, Tensor]


def build(name: str, **keys: Any) -> Distiller:
    return load("distiller", name)(**keys)


def with_scale(distiller: Distiller, inputs: Inputs, hyper: dict[str, Any]) -> Distiller:
    """Replace the distiller's own scale by the logarithm of the golden's, inside the graph, so that
    its gradient can be read."""
    scale = inputs.get(
        "logit_scale", torch.tensor(float(hyper.get("logit_scale", 1.0)), dtype=torch.float64)
    )
    distiller._parameters.pop("log_scale", None)
    distiller._buffers.pop("log_scale", None)
    distiller.log_scale = scale.log()
    if "logit_bias" in inputs:
        distiller._parameters.pop("bias", None)
        distiller._buffers.pop("bias", None)
        distiller.bias = inputs["logit_bias"]
    return distiller


def student_pair(inputs: Inputs) -> tuple[Tensor, Tensor]:
    return inputs["image"], inputs["text"]


def teacher_pair(inputs: Inputs) -> tuple[Tensor, Tensor]:
    return inputs["t_image"], inputs["t_text"]


def infonce(case: dict[str, Any], x: Inputs) -> Inputs:
    return {"loss": with_scale(build("infonce"), x, case["hyper"])(x["image"], x["text"])}


def siglip(case: dict[str, Any], x: Inputs) -> Inputs:
    return {"loss": with_scale(build("siglip"), x, case["hyper"])(x["image"], x["text"])}


def distill_clip(case: dict[str, Any], x: Inputs) -> Inputs:
    keys = {"teacher_logit_scale": case["hyper"]["teacher_logit_scale"]}
    parts = {"distill": 1.0, "contrastive": 0.0}
    return {
        name: with_scale(build("affinity", affinity_weight=weight, **keys), x, case["hyper"])(
            student_pair(x), teacher_pair(x)
        )
        for name, weight in parts.items()
    }


def affinity(case: dict[str, Any], x: Inputs) -> Inputs:
    loss = distill_clip(case, x)["distill"]
    return {"loss": loss}


def mobileclip(case: dict[str, Any], x: Inputs) -> Inputs:
    hyper = case["hyper"]
    contrastive, distill = hyper["weights_contrastive_distill"]
    student, teacher = student_pair(x), teacher_pair(x)
    if "syn_text" in x:
        student, teacher = (*student, x["syn_text"]), (*teacher, x["t_syn_text"])
    keys = {
        "teacher_widths": hyper["teacher_dims"],
        "teacher_logit_scales": hyper["teacher_logit_scales"],
    }
    if "teacher_logit_biases" in hyper:
        keys |= {"loss": "sigmoid", "teacher_logit_biases": hyper["teacher_logit_biases"]}

    def term(contrastive: float, distill: float) -> Tensor:
        distiller = build(
            "reinforced", contrastive_weight=contrastive, distill_weight=distill, **keys
        )
        return with_scale(distiller, x, hyper)(student, teacher)

    return {
        "contrastive": term(contrastive, 0.0),
        "distill": term(0.0, distill),
        "total": term(contrastive, distill),
    }


def clip_kd(case: dict[str, Any], x: Inputs) -> Inputs:
    hyper = case["hyper"]
    keys = {"teacher_logit_scale": hyper["teacher_logit_scale"]}
    distillers = {
        "task": with_scale(build("infonce"), x, hyper),
        "ckd": with_scale(build("relational_kl", **keys), x, hyper),
        "icl": (
            build(
                "interactive_contrast",
                logit_scale=math.exp(hyper["cross_logit_scale"]),
                scale_is_log=False,
            ).double()
        ),
        "fd": build("feature_distance"),
        "gd": with_scale(build("gradient_match", gradient_temperature="scale", **keys), x, hyper),
    }
    distillers["icl"]._parameters.pop("log_scale")
    distillers["icl"].log_scale = torch.tensor(hyper["cross_logit_scale"], dtype=x["image"].dtype)
    outputs = {}
    for name, distiller in distillers.items():
        if name == "task":
            outputs[name] = distiller(*student_pair(x))
            continue
        pairs = student_pair(x), teacher_pair(x)
        distiller.setup(*(tuple(side.shape[1] for side in pair) for pair in pairs))
        distiller.to(x["image"].dtype)
        for modality, projection in zip(
            ("visual", "text"), getattr(distiller, "projections", ()), strict=False
        ):
            if isinstance(projection, torch.nn.Linear):
                projection.load_state_dict(
                    {part: x[f"{modality}_proj.{part}"].detach() for part in ("weight", "bias")}
                )
        outputs[name] = distiller(student_pair(x), teacher_pair(x))
    return outputs


def simcse(case: dict[str, Any], x: Inputs) -> Inputs:
    hyper = case["hyper"]
    distiller = build(
        "simcse", temperature=hyper["temp"], hard_negative_weight=hyper["hard_negative_logit"]
    )
    return {"loss": distiller(x["z1"], (x["z2"], x["z3"]) if "z3" in x else x["z2"])}


def vicreg(case: dict[str, Any], x: Inputs) -> Inputs:
    parts = {"sim": "invariance", "std": "variance", "cov": "covariance"}
    off = {f"{part}_weight": 0.0 for part in parts.values()}
    terms = {
        f"{name}_term": build("vicreg", **off | {f"{part}_weight": 1.0})(x["x"], x["y"])
        for name, part in parts.items()
    }
    return {"loss": build("vicreg")(x["x"], x["y"]), **terms}


def barlow_twins(case: dict[str, Any], x: Inputs) -> Inputs:
    return {"loss": build("barlow_twins")(x["x"], x["y"])}


def rkd(case: dict[str, Any], x: Inputs) -> Inputs:
    normalize = {0: "none", 1: "teacher", 2: "both"}[len(case["harness_norm"])]
    weights = {"distance": (1.0, 0.0), "angle": (0.0, 1.0), "total_1d_2a": (1.0, 2.0)}
    return {
        name: build("rkd", distance_weight=distance, angle_weight=angle, normalize=normalize)(
            x["student"], x["teacher"]
        )
        for name, (distance, angle) in weights.items()
    }


def simreg(case: dict[str, Any], x: Inputs) -> Inputs:
    loss = build("simreg")(x["student"], x["teacher"])
    return {"loss": loss, "loss_mse_nonorm_flag": build("simreg")(x["student"], x["teacher"])}


def simreg_itra(case: dict[str, Any], x: Inputs) -> Inputs:
    distances = {"mse": "l2", "l1": "l1", "smooth_l1": "smooth_l1"}
    return {
        name: build("simreg", distance=distance, compat="itra")(x["student"], x["teacher"])
        for name, distance in distances.items()
    }


def itra_contrast(case: dict[str, Any], x: Inputs) -> Inputs:
    return {"rkd_half_d_one_a": build("rkd", compat="itra")(x["student"], x["teacher"])}


def unicl(case: dict[str, Any], x: Inputs) -> Inputs:
    return {
        "loss": with_scale(build("unicl"), x, case["hyper"])(
            x["image"], x["text"], labels=x["labels"]
        )
    }


def proto_term(x: Inputs, temperature: float | None, scale: Tensor) -> Callable[..., Tensor]:
    distiller = build(
        "protoclip",
        target_temperature=temperature if temperature is None or temperature > 0 else None,
    )
    distiller._parameters.pop("log_proto_scale")
    distiller.log_proto_scale = scale.log()
    return distiller.prototype_term


def protoclip_proto(case: dict[str, Any], x: Inputs) -> Inputs:
    term = proto_term(x, case["hyper"]["target_temperature"], x["logit_scale"])
    seen = torch.ones_like(x["labels"], dtype=torch.bool)
    return {
        "loss": term(
            F.normalize(x["student"], dim=1),
            x["student_centroids"],
            x["labels"],
            seen,
            x["teacher_centroids"],
        )
    }


def protoclip_total(case: dict[str, Any], x: Inputs) -> Inputs:
    """The whole objective, its episode written into its state."""
    hyper = case["hyper"]

    def loss(clip: float, prototype: float, directions: tuple[int, ...] = (0, 1)) -> Tensor:
        distiller = build(
            "protoclip",
            contrastive_weight=clip,
            prototype_weight=prototype,
            target_temperature=hyper["target_temperature"],
        ).to(x["image"].dtype)
        classes = len(x["img_centroids"])
        image, text = (F.normalize(x[f"episode_{side}_proj"], dim=1) for side in ("image", "text"))
        distiller.episode_indices = torch.arange(len(image))
        distiller.labels = torch.stack([x["img_labels"], x["text_labels"]])
        distiller.centroids = torch.stack([x["img_centroids"], x["text_centroids"]])
        distiller.means = torch.stack(
            [
                class_means(image, x["text_labels"], classes),
                class_means(text, x["img_labels"], classes),
            ]
        )
        for name, key in (("log_scale", "logit_scale"), ("log_proto_scale", "logit_scale_proto")):
            distiller._parameters.pop(name)
            setattr(distiller, name, torch.tensor(hyper[key], dtype=x["image"].dtype).log())
        if len(directions) == 1:
            (only,) = directions
            features = F.normalize(x[("image_proj", "text_proj")[only]], dim=1)
            labels = distiller.labels[1 - only, x["index"]]
            seen = torch.ones_like(labels, dtype=torch.bool)
            return distiller.prototype_term(
                features, distiller.means[only], labels, seen, distiller.centroids[1 - only]
            )
        return distiller(
            (x["image"], x["image_proj"]), (x["text"], x["text_proj"]), indices=x["index"]
        )

    return {
        "clip": loss(1.0, 0.0),
        "proto_i2t": loss(0.0, 1.0, (0,)),
        "proto_t2i": loss(0.0, 1.0, (1,)),
        "total": loss(hyper["w_clip"], hyper["w_proto"]),
    }


ADAPTERS: dict[str, Callable[[dict[str, Any], Inputs], Inputs]] = {
    "infonce_clip": infonce,
    "siglip": siglip,
    "distill_clip": distill_clip,
    "tinyclip_affinity": affinity,
    "mobileclip_dr": mobileclip,
    "mobileclip_distill_siglip": mobileclip,
    "clip_kd": clip_kd,
    "simcse": simcse,
    "vicreg": vicreg,
    "barlow_twins": barlow_twins,
    "rkd": rkd,
    "simreg": simreg,
    "simreg_itra_variants": simreg_itra,
    "itra_contrast": itra_contrast,
    "unicl": unicl,
    "protoclip_proto": protoclip_proto,
    "protoclip_total": protoclip_total,
}


def tensors(case: dict[str, Any], dtype: torch.dtype) -> tuple[Inputs, Inputs]:
    """The raw inputs as leaves, and as the objective gets them: row-normalized where the case asks
    so."""
    raw = {name: torch.tensor(value) for name, value in golden_inputs.build(case).items()}
    raw = {
        name: value.to(dtype) if value.is_floating_point() else value for name, value in raw.items()
    }
    for name in case["student_inputs"]:
        raw[name].requires_grad_()
    given = dict(raw)
    for name in case.get("harness_norm") or ():
        if name in given:
            given[name] = F.normalize(given[name], dim=1)
    return raw, given


def check_gradient(
    case: dict[str, Any],
    name: str,
    gradient: Tensor | None,
    wanted: dict[str, Any] | None,
    tolerance: float,
) -> None:
    if wanted is None:
        assert gradient is None or gradient.abs().max() == 0, name
        return
    found = np.zeros(()) if gradient is None else gradient.double().numpy()
    size = max(wanted["norm"], 1e-12)
    assert np.linalg.norm(found) == pytest.approx(wanted["norm"], rel=tolerance, abs=1e-13), name
    if gradient is not None:
        probe = (
            float((found * golden_inputs.probe(case, found.shape)).sum()) if found.shape else None
        )
        if probe is not None:
            assert probe == pytest.approx(
                wanted["probe"], rel=tolerance, abs=20 * tolerance * size
            ), name
        np.testing.assert_allclose(
            found.ravel()[:4],
            wanted["head"],
            rtol=tolerance,
            atol=20 * tolerance * size,
            err_msg=name,
        )


def check_outputs(
    case: dict[str, Any], precision: str, outputs: Inputs, raw: Inputs, suffix: str = ""
) -> None:
    wanted = case["expected"][precision]["outputs"]
    tolerance = 1e-9 if precision == "f64" else 2e-5
    for name, value in outputs.items():
        expected = wanted.get(name + suffix)
        if expected is None:
            continue
        # The originals keep ProtoCLIP's centroids in float32.
        loose = 1e-6 if case["loss"] == "protoclip_total" and precision == "f64" else tolerance
        assert value.item() == pytest.approx(
            expected["value"], rel=loose, abs=2e-7 if precision == "f32" else 1e-12
        ), name
        if case.get("gradient_not_a_target") or precision == "f32":
            continue
        sources = [source for source in case["student_inputs"] if source.endswith(suffix)]
        gradients = torch.autograd.grad(
            value, [raw[source] for source in sources], allow_unused=True, retain_graph=True
        )
        for source, gradient in zip(sources, gradients, strict=True):
            if source in (expected.get("grad") or {}):
                check_gradient(
                    case, f"{name} by {source}", gradient, expected["grad"][source], loose
                )


@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case["loss"] in ADAPTERS])
def test_objective_equals_the_original_in_value_and_gradient(name: str, precision: str) -> None:
    case = CASES[name]
    golden_inputs.verify(case)
    raw, given = tensors(case, torch.float64 if precision == "f64" else torch.float32)
    outputs = ADAPTERS[case["loss"]](case, given)
    wanted = set(case["expected"][precision]["outputs"])
    if not case.get("reference_only") and case["loss"] != "tinyclip_affinity":
        assert wanted - NOT_MATCHED <= set(outputs)
    check_outputs(case, precision, outputs, raw)


def stateful(
    case: dict[str, Any], dtype: torch.dtype, x: Inputs
) -> tuple[Distiller, Callable[[int], Tensor], dict[str, Callable[[], Tensor]]]:
    """The distiller with the case's first state, a function from the step to its loss, and the
    states that the case records."""
    hyper, kind = case["hyper"], case["loss"]
    if kind.startswith("compress"):
        distiller = build(
            "compress",
            num_queues=1 if kind == "compress_1q" else 2,
            queue_size=hyper["queue_size"],
            temperature=hyper["T"],
        )
    elif kind == "seed":
        distiller = build(
            "seed",
            queue_size=hyper["K"],
            student_temperature=hyper["t_student"],
            teacher_temperature=hyper["t_teacher"],
        )
    elif kind == "protocpc":
        assignment = {"sk": "sinkhorn", "softmax": "softmax"}[hyper["assignment"]]
        distiller = build(
            "protocpc",
            num_prototypes=None,
            teacher_temperature=hyper["teacher_temp"],
            assignment=assignment,
        )
    else:
        temperature = hyper["teacher_temp"]
        if "warmup_teacher_temp" in hyper:
            temperature = Schedule(
                linear=(hyper["warmup_teacher_temp"], temperature),
                epochs=hyper["warmup_teacher_temp_epochs"],
            )
        distiller = build("dino", num_prototypes=None, teacher_temperature=temperature)
    distiller.setup(x["student@0"].shape[1], x["teacher@0"].shape[1])
    distiller.to(dtype)
    recorded: dict[str, Callable[[], Tensor]] = {}
    if kind.startswith("compress"):
        distiller.teacher_queue.rows.copy_(x["mem_teacher"])
        recorded["mem_teacher_end"] = lambda: distiller.teacher_queue.rows
        if kind != "compress_1q":
            distiller.student_queue.rows.copy_(x["mem_student"])
            recorded["mem_student_end"] = lambda: distiller.student_queue.rows
    elif kind == "seed":
        distiller.queue.rows.copy_(x["queue"].T)
        recorded["queue_end"] = lambda: distiller.queue.rows
    elif kind == "protocpc":
        recorded["prior_end"] = lambda: distiller.prior
    else:
        if "center" in x:
            distiller.center.copy_(x["center"][0])
        recorded["center_end"] = lambda: distiller.center

    def loss(step: int) -> Tensor:
        student, teacher = x[f"student@{step}"], x[f"teacher@{step}"]
        if kind == "compress_2q_momentum":
            return distiller((student, x[f"student_key@{step}"]), teacher)
        if kind == "dino":
            # With one step per epoch the step is the epoch.
            progress = Progress(step=hyper["epoch_per_step"][step])
            views = student.chunk(hyper["ncrops"]), teacher.chunk(2)
            return distiller(*views, progress=progress)
        return distiller(student, teacher)

    return distiller, loss, recorded


@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize(
    "name",
    [
        name
        for name, case in CASES.items()
        if case.get("stateful") or case["loss"].startswith("compress")
    ],
)
def test_objective_with_state_equals_the_original_over_three_steps(
    name: str, precision: str
) -> None:
    case, dtype = CASES[name], torch.float64 if precision == "f64" else torch.float32
    golden_inputs.verify(case)
    raw, given = tensors(case, dtype)
    distiller, loss, recorded = stateful(case, dtype, given)
    for step in range(3):
        check_outputs(case, precision, {"loss": loss(step)}, raw, f"@{step}")
        distiller.commit(Progress(step))
    for state, read in recorded.items():
        wanted = case["expected"][precision]["state"][state]
        tolerance = 1e-9 if precision == "f64" else 2e-5
        found = read().double()
        assert found.square().sum().item() == pytest.approx(wanted["sumsq"], rel=tolerance)
        assert found.sum().item() == pytest.approx(
            wanted["sum"], rel=tolerance, abs=tolerance * wanted["sumsq"] ** 0.5
        )


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if case["loss"] == "dino_head"]
)
def test_prototype_head_equals_the_original(name: str) -> None:
    case = CASES[name]
    hyper = case["hyper"]
    raw, given = tensors(case, torch.float64)
    head = PrototypeHead(
        hyper["in_dim"],
        num_prototypes=hyper["out_dim"],
        bottleneck=hyper["bottleneck_dim"],
        layers=hyper["nlayers"],
        hidden=hyper["hidden_dim"],
        norm="batch" if hyper["use_bn"] else "none",
    ).double()
    drawn = {
        entry.removeprefix("w:"): value.detach()
        for entry, value in given.items()
        if entry.startswith("w:")
    }
    single = hyper["nlayers"] == 1
    renamed = {
        (
            entry.replace("mlp.", "layers.0." if single and "mlp.0" not in entry else "layers.")
        ): value
        for entry, value in drawn.items()
        if entry.startswith("mlp.")
    }
    renamed["prototypes"] = drawn["last_layer.weight_v"]
    missing = head.load_state_dict(renamed, strict=False)
    assert not missing.unexpected_keys
    outputs = head(given["x"])
    probe = np.random.RandomState(case["seed"] + 1).randn(*outputs.shape) / math.sqrt(
        outputs.numel()
    )
    check_outputs(case, "f64", {"probe": (outputs * torch.tensor(probe)).sum()}, raw)
    assert outputs.square().sum().item() == pytest.approx(
        case["expected"]["f64"]["state"]["out"]["sumsq"], rel=1e-9
    )


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if case["loss"] == "protoclip_pbt"]
)
def test_back_translated_prototypes_equal_the_original(name: str) -> None:
    case = CASES[name]
    _, given = tensors(case, torch.float64)
    means = class_means(given["student"], given["labels"], case["hyper"]["k"])
    probe = np.random.RandomState(case["seed"] + 1).randn(*means.shape)
    assert (means.numpy() * probe).sum() == pytest.approx(
        case["expected"]["f64"]["outputs"]["probe"]["value"], rel=1e-6
    )
    assert means.square().sum().item() == pytest.approx(
        case["expected"]["f64"]["state"]["centroids"]["sumsq"], rel=1e-6
    )


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if case["loss"] == "protoclip_kmeans"]
)
def test_kmeans_is_as_good_as_faiss(name: str) -> None:
    case = CASES[name]
    hyper = case["hyper"]
    _, given = tensors(case, torch.float32)
    points = given["centers"][torch.arange(len(given["noise"])) % hyper["k"]] + given["noise"]
    clusters = kmeans(
        points, hyper["k"], num_iterations=hyper["niter"], num_restarts=hyper["nredo"], seed=1234
    )
    wanted = case["expected"]["f64"]["outputs"]
    assert clusters.inertia <= 1.02 * wanted["faiss_sse"]["value"]
    if "exact_sse_of_partition" in wanted:
        assert clusters.inertia == pytest.approx(
            wanted["exact_sse_of_partition"]["value"], rel=1e-4
        )


def test_every_golden_case_is_taken() -> None:
    taken = set(ADAPTERS) | {
        "dino_head",
        "protoclip_pbt",
        "protoclip_kmeans",
        "seed",
        "dino",
        "dino_itra_single_view",
        "protocpc",
    }
    taken |= {"compress_1q", "compress_2q", "compress_2q_momentum"}
    assert {case["loss"] for case in CASES.values()} == taken
    assert len(CASES) == 57


def test_infonce_golden_fails_with_local_negatives() -> None:
    """Seen failing: the contrast of two halves apart is another number."""
    case = CASES["infonce_clip/n8_d16_s14.29"]
    _, given = tensors(case, torch.float64)
    halves = [
        blocked_infonce(given["image"][part], given["text"][part], given["logit_scale"])
        for part in (slice(0, 4), slice(4, 8))
    ]
    assert (
        abs(torch.stack(halves).mean().item() - case["expected"]["f64"]["outputs"]["loss"]["value"])
        > 0.1
    )
