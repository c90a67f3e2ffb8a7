"""The objectives of self-supervised learning give the numbers of the published formulas and codes
(tests/golden/ssl.json), in value, gradient and state, over their steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.golden.golden_inputs import build, probe
from vlkd_cli.distillers.clustered_labels import balanced_weights, whitened
from vlkd_cli.distillers.npid import nce
from vlkd_cli.distillers.similarity import unit
from vlkd_cli.recipe.component import make
from vlkd_cli.recipe.types import Progress

CASES = {
    case["id"]: case
    for case in json.loads((Path(__file__).parent / "ssl.json").read_text(encoding="utf-8"))[
        "cases"
    ]
}


class Case:
    """The inputs of a golden case in float64, and what is expected of them."""

    def __init__(self, name: str) -> None:
        self.case = CASES[name]
        self.hyper: dict[str, Any] = self.case["hyper"]
        self.expected = self.case["expected"]["f64"]
        self.state: dict[str, Any] = self.expected.get("state", {})
        self.inputs = {
            key: torch.from_numpy(values).double()
            if values.dtype == np.float32
            else torch.from_numpy(values)
            for key, values in build(self.case).items()
        }
        for key in self.case["student_inputs"]:
            self.inputs[key].requires_grad_()

    def __getitem__(self, key: str) -> Tensor:
        return self.inputs[key]

    def check(self, loss: Tensor, output: str = "loss", factor: float = 1.0) -> None:
        """Value and gradients of an output."""
        expected = self.expected["outputs"][output]
        np.testing.assert_allclose(float(loss.detach()) * factor, expected["value"], rtol=1e-9)
        names = list(expected["grad"])
        gradients = torch.autograd.grad(loss * factor, [self.inputs[key] for key in names])
        for key, gradient in zip(names, gradients, strict=True):
            got, wanted = gradient.numpy(), expected["grad"][key]
            np.testing.assert_allclose(np.linalg.norm(got), wanted["norm"], rtol=1e-9)
            np.testing.assert_allclose(got.ravel()[:4], wanted["head"], rtol=1e-7, atol=1e-12)
            product = (got * probe(self.case, got.shape)).sum()
            np.testing.assert_allclose(product, wanted["probe"], rtol=1e-8)


def ready(name: str, keys: dict[str, Any], *widths: Any, **sizes: int) -> Any:
    """A distiller of the catalogue in float64, set up for the widths of its sides."""
    objective = make("distiller", name, keys)
    student, teacher = widths if len(widths) == 2 else (widths[0], None)
    objective.setup(student, teacher, **sizes)
    return objective.double().train()


def summed(values: Tensor) -> dict[str, float]:
    return {"sum": float(values.double().sum()), "sumsq": float(values.double().square().sum())}


def near(got: Any, wanted: Any, rtol: float = 1e-9) -> None:
    if isinstance(wanted, dict):
        got, wanted = list(got.values()), list(wanted.values())
    np.testing.assert_allclose(np.asarray(got), np.asarray(wanted), rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("ntxent")])
def test_ntxent(name):
    case = Case(name)
    case.check(ready("ntxent", case.hyper, 1, 1)(case["a"], case["b"]))


def test_byol_is_simreg_over_both_directions():
    case = Case("byol/n7_d12")
    simreg = ready("simreg", {}, 12, 12)
    loss = (simreg(case["q1"], case["k2"]) + simreg(case["q2"], case["k1"])) / 2
    case.check(loss, factor=2)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("moco/")])
def test_moco_with_a_queue_over_two_steps(name):
    case = Case(name)
    size, width = case["queue"].shape
    keys = {"queue_size": size, "temperature": case.hyper["temperature"]}
    moco = ready("moco", keys, width, width)
    moco.queue.rows.copy_(case["queue"])
    moco.queue.position.fill_(case.hyper.get("position", 0))
    for step in range(2):
        case.check(moco(case[f"q@{step}"], case[f"k@{step}"]), f"loss@{step}")
        moco.commit(Progress(step))
    assert int(moco.queue.position) == case.state["position_after"]
    near(summed(moco.queue.rows), case.state["queue_after"])
    near(moco.queue.rows[0, :4], case.state["queue_after_row0"])


def test_moco_v3_contrasts_with_the_keys_of_the_batch():
    case = Case("mocov3/n7_d11_t0.2")
    moco = ready("moco", {"queue_size": None, "temperature": 0.2}, 11, 11)
    loss = moco(case["q1"], case["k2"]) + moco(case["q2"], case["k1"])
    case.check(loss, factor=2 * 0.2)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("swav")])
def test_swav_with_and_without_a_queue(name):
    case = Case(name)
    num_codes, width = case.hyper["global"], case["crops"].shape[2]
    keys: dict[str, Any] = {
        "num_prototypes": len(case["prototypes"]),
        "epsilon": case.hyper["epsilon"],
        "num_iterations": case.hyper["iterations"],
        "temperature": case.hyper["temperature"],
    }
    if case.hyper["queue"]:
        keys |= {"queue_size": case["queue"].shape[1], "queue_from_epoch": 0}
    views = tuple(case["crops"])
    swav = ready("swav", keys, (width,) * len(views), (width,) * num_codes)
    del swav.prototypes
    swav.prototypes = case["prototypes"]
    if case.hyper["queue"]:
        for queue, rows in zip(swav.queues, case["queue"], strict=True):
            queue.rows.copy_(unit(rows))
        swav.num_queued.fill_(case["queue"].shape[1])
    case.check(swav(views, views[:num_codes]))
    for number in range(num_codes):
        codes = swav._codes(number, unit(views[number].detach()), unit(case["prototypes"].detach()))
        near(codes[0, :4], case.state[f"codes{number}_row0_first4"], rtol=1e-7)


def test_dense_contrast():
    case = Case("densecl/b3_t9_K20")
    keys = {"queue_size": 20, "temperature": 0.2}
    objective = ready("dense_contrast", keys, (5, 6), (5, 6))
    objective.queue.rows.copy_(case["queue"])
    student, teacher = (
        (case["dense_q"], case["features_q"]),
        (case["dense_k"], case["features_k"]),
    )
    case.check(objective(student, teacher))
    objective.commit(Progress(0))
    near(objective.queue.rows[0, :4], case.state["pushed_row0_first4"])


def test_npid_of_both_estimators():
    case = Case("npid/b5_N30_K12")

    def products() -> tuple[Tensor, Tensor, Tensor]:
        features, bank = unit(case["feature"]), case["bank"]
        positive = (features * bank[case["index"]]).sum(1) / 0.07
        negative = (features[:, None] * bank[case["negatives"]]).sum(2) / 0.07
        return positive, negative, torch.cat([positive[:, None], negative], dim=1)

    positive, _, logits = products()
    case.check((logits.logsumexp(1) - positive).mean(), "softmax")
    positive, negative, logits = products()
    normalizer = 30 * logits.detach().exp().mean()
    near(normalizer, case.state["normaliser"])
    case.check(nce(positive, negative, normalizer, 30), "nce")


def test_npid_moves_its_bank():
    case = Case("npid/b5_N30_K12")
    npid = ready("npid", {"num_negatives": 12}, 8, num_rows=30)
    npid.bank.copy_(case["bank"])
    npid(case["feature"], indices=case["index"], progress=Progress(0))
    npid.commit(Progress(0))
    near(summed(npid.bank), case.state["bank_after"])
    near(npid.bank[case["index"][0], :4], case.state["bank_row_of_index0_first4"])


def test_ibot_over_samples_with_any_number_of_hidden_places():
    case = Case("ibot_patch/counts_4_0_7_2")
    keys = {"teacher_temperature": case.hyper["teacher_temp"]}
    ibot = ready("ibot", keys, 10, 10)
    ibot.center.copy_(case["center"])
    counts = torch.tensor(case.hyper["counts"])
    samples = torch.arange(4).repeat_interleave(counts)
    case.check(
        ibot(case["student"], case["teacher"], samples=samples, indices=torch.arange(4)),
    )
    ibot.commit(Progress(0))
    near(ibot.center[:4], case.state["center_after_first4"])
    near(summed(ibot.center), case.state["center_after"])


def test_odc_over_two_steps():
    case = Case("odc/N40_C5")
    odc = ready("odc", {"num_clusters": 5, "min_cluster": 1, "centroid_steps": 1}, 6, num_rows=40)
    odc.start(torch.arange(40), case["bank"], torch.arange(40) % 5)
    for step in range(2):
        odc(case[f"feature@{step}"], indices=case[f"index@{step}"])
        odc.commit(Progress(step))
    assert odc.labels.tolist() == case.state["labels_after"]
    assert torch.bincount(odc.labels).tolist() == case.state["counts"]
    near(summed(odc.centroids), case.state["centroids_after"])
    near(summed(odc.bank), case.state["bank_after"])
    near(odc.weights, case.state["weights_power_0.5_mean_one_over_samples"])
    odc.classifier = nn.Identity()
    case.check(odc(case["logits"], indices=torch.arange(8)))


def test_deepcluster_s_weights_and_whitening():
    case = Case("whitening/n30_d12_to5")
    rows = whitened(case["features"], case.hyper["components"])
    gram = rows @ rows.T
    near(summed(gram), case.state["gram"])
    near(gram[0, :6], case.state["gram_row0_first6"])
    weights = balanced_weights(torch.tensor([0, 0, 0, 2]), 3, balance=1.0)
    # Every cluster counts alike, and the mean over the four samples is 1.
    near(weights, [2 / 3, 0, 2])


def test_view_order_of_a_rotation():
    case = Case("view_order/rotation_4")
    logits = case["features"] @ case["weight"].T + case["bias"]
    objective = ready("view_order", {}, (4, 4, 4, 4))
    views = tuple(logits) if len(logits) == 4 else tuple(logits.transpose(0, 1))
    case.check(objective(views))


def test_dino_over_crops():
    case = Case("dino/2+4_b3_K11")
    keys = {"num_prototypes": None, "student_temperature": 0.1, "teacher_temperature": 0.04}
    dino = ready("dino", keys, (11,) * 6, (11,) * 2)
    dino.center.copy_(case["center"])
    case.check(dino(tuple(case["student"]), tuple(case["teacher"])))
    dino.commit(Progress(0))
    near(summed(dino.center), case.state["center_after"])
