"""The objectives of fine-tuning for search give the numbers of pytorch-metric-learning and of the
published formulas (tests/golden/search_tuning.json), in value and gradient; pooler gem and the
relations of `vlkd synthesize` those of references in plain Python."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.passages import ScoredByTable, written_relations
from vlkd_cli.builders.pointnet.groups import ball_query, farthest_points
from vlkd_cli.data.meshes.files import parse_mesh
from vlkd_cli.data.meshes.points import cloud_of, sample_surface
from vlkd_cli.recipe.component import make
from vlkd_cli.recipe.types import Progress

GOLDENS = json.loads((Path(__file__).parent / "search_tuning.json").read_text(encoding="utf-8"))[
    "cases"
]
METRIC = [case for case in GOLDENS if case["kind"] == "metric_loss"]
SCORED = [case for case in GOLDENS if case["kind"] in ("margin_mse", "score_regression")]
GEM = [case for case in GOLDENS if case["kind"] == "gem"]
SYNTHESIS = [case for case in GOLDENS if case["kind"] == "synthesis"]
CLOUDS = [case for case in GOLDENS if case["kind"] in ("farthest_points", "ball_query")]
MESHES = [case for case in GOLDENS if case["kind"] == "mesh_sampling"]
MINERS = {"TripletMarginMiner": "type_of_triplets", "MultiSimilarityMiner": "pairs"}


def built(spec: dict[str, Any]) -> Tensor:
    """An input of a case, as the file's `meta` describes it."""
    if "cloud" in spec:
        clouds, count, grid = spec["cloud"]
        random, shape = np.random.RandomState(spec["seed"]), (clouds, count, 3)
        if grid is None:
            return torch.from_numpy(random.randn(*shape).astype(np.float32) / np.float32(3))
        whole = random.randint(-grid, grid + 1, size=shape).astype(np.float32)
        return torch.from_numpy(whole / np.float32(grid))
    if "randn" in spec:
        values = np.random.RandomState(spec["seed"]).randn(*spec["randn"]) * spec.get("scale", 1.0)
        for to, source in spec.get("copy_rows", []):
            values[to] = values[source]
        return torch.from_numpy(values)
    if "uniform" in spec:
        return torch.from_numpy(np.random.RandomState(spec["seed"]).uniform(*spec["uniform"]))
    random, count, classes = np.random.RandomState(spec["seed"]), spec["n"], spec["classes"]
    if spec["kind"] == "balanced":
        labels = np.repeat(np.arange(classes), count // classes)[random.permutation(count)]
    elif spec["kind"] == "free":
        labels = random.randint(0, classes, count)
    else:
        labels = np.repeat(np.arange(classes), count // classes)[:count]
        labels = np.concatenate([labels, classes + np.arange(count - len(labels))])
        labels[-2:] = classes + 50, classes + 51
        labels = labels[random.permutation(count)]
    return torch.from_numpy(np.asarray(labels, dtype=np.int64))


def objective_of(case: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """(name, keys) of the distiller that a case is about; None for the library's other losses."""
    name, keys, miner = case["id"].split("/")[0], dict(case["hyper"]), case["miner"]
    if name == "triplet" and "swap" not in keys:
        keys["soft"] = keys.pop("smooth_loss", False)
        if miner is not None:
            keys["miner"] = miner[1].get("type_of_triplets", "batch_hard")
        return name, keys
    if name == "supcon":
        return name, keys
    if name == "multi_similarity":
        keys |= {"miner": "none"} if miner is None else {"epsilon": miner[1]["epsilon"]}
        return name, keys
    if name == "margin_softmax":
        kind = {"ArcFaceLoss": "arcface", "CosFaceLoss": "cosface"}.get(case["source"].split()[-1])
        if kind is None:
            return name, {"kind": "none", "scale": 1 / keys["temperature"]}
        if kind == "arcface":
            keys["margin"] = float(np.deg2rad(keys["margin"]))
        return name, {"kind": kind, **keys}
    return (name, keys) if name == "proxy_anchor" else None


OURS = [case for case in METRIC if objective_of(case) is not None]
OTHERS = [case for case in METRIC if objective_of(case) is None]


def agrees(gradient: Tensor, spec: dict[str, Any], expected: dict[str, Any]) -> None:
    """The gradient has the golden's length, first entries and product with the probe."""
    probe = np.random.RandomState(spec["seed"] + 7919).randn(*gradient.shape)
    got = gradient.numpy()
    np.testing.assert_allclose(np.linalg.norm(got), expected["norm"], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(got.ravel()[:4], expected["head"], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose((got * probe).sum(), expected["probe"], rtol=1e-6, atol=1e-9)


def test_every_kind_of_case_is_there():
    assert (len(OURS), len(OTHERS), len(SCORED)) == (40, 21, 7)
    assert (len(GEM), len(SYNTHESIS), len(CLOUDS), len(MESHES)) == (4, 3, 6, 3)


@pytest.mark.parametrize("case", OURS, ids=lambda case: case["id"])
def test_an_objective_over_labels_has_the_library_s_value_and_gradient(case):
    found = objective_of(case)
    assert found is not None
    name, keys = found
    inputs = {key: built(spec) for key, spec in case["inputs"].items()}
    rows = inputs["x"].requires_grad_()
    if "weights" in inputs:
        keys["num_classes"] = len(inputs["weights"])
    objective = make("distiller", name, keys)
    objective.setup((rows.shape[1],), None)
    if "weights" in inputs:
        objective.weights = torch.nn.Parameter(inputs["weights"])
    loss = objective((rows,), labels=inputs["labels"])
    np.testing.assert_allclose(float(loss.detach()), case["expected"]["loss"], rtol=1e-6, atol=1e-9)
    loss.backward()
    assert rows.grad is not None
    agrees(rows.grad, case["inputs"]["x"], case["expected"]["grad_x"])
    if "weights" in inputs:
        agrees(objective.weights.grad, case["inputs"]["weights"], case["expected"]["grad_weights"])


@pytest.mark.parametrize("case", OTHERS, ids=lambda case: case["id"])
def test_other_losses_of_the_library_give_its_value_and_gradient(case):
    rows, labels = (built(case["inputs"][name]) for name in ("x", "labels"))
    loss = {"name": case["source"].split()[-1], **case["hyper"]}
    objective = make("distiller", "metric", {"loss": loss})
    objective.setup((rows.shape[1],), None)
    value = objective((rows.requires_grad_(),), labels=labels, progress=Progress())
    expected = case["expected"]
    np.testing.assert_allclose(float(value.detach()), expected["loss"], rtol=1e-6, atol=1e-9)
    value.backward()
    assert rows.grad is not None
    agrees(rows.grad, case["inputs"]["x"], expected["grad_x"])


@pytest.mark.parametrize("case", SCORED, ids=lambda case: case["id"])
def test_an_objective_over_scores_has_the_formula_s_value_and_gradient(case):
    inputs = {name: built(spec) for name, spec in case["inputs"].items()}
    *sides, scores = inputs
    features = [inputs[side].requires_grad_() for side in sides]
    keys = {key: value for key, value in case["hyper"].items() if key != "range"}
    objective = make("distiller", case["kind"], keys)
    student, *teacher = features
    loss = objective(
        student,
        tuple(teacher) if len(teacher) > 1 else teacher[0],
        targets=inputs[scores][:, None],
    )
    np.testing.assert_allclose(float(loss.detach()), case["expected"]["loss"], rtol=1e-6, atol=1e-9)
    loss.backward()
    for side, feature in zip(sides, features, strict=True):
        assert feature.grad is not None
        agrees(feature.grad, case["inputs"][side], case["expected"][f"grad_{side}"])


@pytest.mark.parametrize("case", GEM, ids=lambda case: case["id"])
def test_pooler_gem_has_the_formula_s_value_and_gradient(case):
    spec, lengths = case["inputs"]["tokens"], torch.tensor(case["inputs"]["lengths"])
    tokens = built(spec).requires_grad_()
    mask = torch.arange(tokens.shape[1])[None] < lengths[:, None]
    pooler = make("pooler", "gem", case["hyper"], tokens.shape[2]).double()
    torch.nn.init.constant_(pooler.p, case["hyper"]["p"])
    pooled = pooler(tokens, mask)
    np.testing.assert_allclose(
        pooled.detach().numpy().ravel(), case["expected"]["pooled"], rtol=1e-6, atol=1e-9
    )
    pooled.square().sum().backward()
    assert tokens.grad is not None
    agrees(tokens.grad, spec, case["expected"]["grad_of_sum_of_squares"])


@pytest.mark.parametrize("case", SYNTHESIS, ids=lambda case: case["id"])
def test_synthesis_gives_the_relations_of_the_reference(case, tmp_path, monkeypatch):
    inputs = case["inputs"]
    # The recipe of the file: D, Q, D2 and CE in this order from one stream.
    seed, (_, num_passages, width), num_queries = {
        "synthesis/top": (2201, (0, 30, 5), 5),
        "synthesis/random": (2202, (0, 40, 5), 6),
        "synthesis/two_miners": (2203, (0, 25, 4), 4),
    }[case["id"]]
    random = np.random.RandomState(seed)
    passages = random.randint(-3, 4, size=(num_passages, width))
    chosen = passages[random.permutation(num_passages)[:num_queries]]
    queries = chosen + random.randint(-1, 2, size=(num_queries, width))
    others = random.randint(-3, 4, size=(num_passages, width))
    scores = np.round(random.randn(num_queries, num_passages) * 4, 3)
    monkeypatch.setattr(ScoredByTable, "table", scores)
    miners = [passages, others] if "second" in inputs["miners"] else [passages]
    keys = {key: inputs[key] for key in ("relations", "depth", "seed", "sampling")}
    rows, page = written_relations(tmp_path, queries, miners, **keys)
    assert [row[:3] for row in rows] == [row[:3] for row in case["expected"]["rows"]]
    expected = [[*row[3:7], f"text_{row[7]}"] for row in case["expected"]["rows"]]
    for row, (positive, negative, margin, rank, miner) in zip(rows, expected, strict=True):
        numbers = [float(row[4]), float(row[5]), float(row[3])]
        np.testing.assert_allclose(numbers, [positive, negative, margin], rtol=0, atol=1e-9)
        assert (int(row[6]), row[7]) == (rank, miner)
    share = case["expected"]["share_of_negative_margins"]
    assert page["share_of_negative_margins"] == pytest.approx(share)


@pytest.mark.parametrize("case", CLOUDS, ids=lambda case: case["id"])
def test_points_are_chosen_and_grouped_as_the_goldens(case: dict[str, Any]) -> None:
    given, expected = case["inputs"], case["expected"]["indices"]
    points = built(given["points"])
    if case["kind"] == "farthest_points":
        assert farthest_points(points, given["count"]).tolist() == expected
        return
    found = ball_query(points, points[:, :6], given["radius"], given["count"])
    assert found.tolist() == expected


@pytest.mark.parametrize("case", MESHES, ids=lambda case: case["id"])
def test_surfaces_are_sampled_as_the_goldens(case: dict[str, Any]) -> None:
    content, expected = case["inputs"]["off"].encode(), case["expected"]
    mesh = parse_mesh(content, "off")
    seed = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
    points, faces = sample_surface(mesh, seed, case["inputs"]["points"])
    assert faces[:8].tolist() == expected["faces_of_first"]
    assert np.bincount(faces, minlength=len(mesh.faces)).tolist() == expected["counts_per_face"]
    np.testing.assert_allclose(points[:4], expected["first_points_before_normalising"], atol=1e-8)
    cloud = cloud_of(content, "off", case["inputs"]["points"])
    np.testing.assert_allclose(cloud[:4, :3], expected["first_points"], atol=1e-6)
    np.testing.assert_allclose(cloud[:4, 3:], expected["first_normals"], atol=1e-6)
    assert abs(cloud[:, :3].mean(0)).max() < 1e-7
    assert abs(np.linalg.norm(cloud[:, :3], axis=1).max() - expected["largest_norm"]) < 1e-6
