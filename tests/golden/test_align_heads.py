"""Heads `glu` and `blocks` give the numbers of SAIL's module and of blocks written from plain loops
(tests/golden/distil_adapt.json)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.golden import golden_inputs
from vlkd_cli.preprocessing import Grid
from vlkd_cli.recipe.component import make

GOLDENS = json.loads((Path(__file__).parent / "distil_adapt.json").read_text(encoding="utf-8"))[
    "cases"
]


def cases(kind: str) -> list[Any]:
    found = [pytest.param(case, id=case["id"]) for case in GOLDENS if case["kind"] == kind]
    assert found
    return found


def tensors(case: dict[str, Any]) -> dict[str, Tensor]:
    return {
        name: torch.from_numpy(value).double() for name, value in golden_inputs.build(case).items()
    }


@pytest.mark.parametrize("case", cases("glu"))
def test_glu(case: dict[str, Any]) -> None:
    given = tensors(case)
    width_in, width = given["x"].shape[1], given["out_weight"].shape[0]
    hidden = given["f1_weight"].shape[0]
    head = make("head", "glu", {"width": width, "factor": -(-hidden // width_in)}, width_in, None)
    if hidden % width_in:
        # A width that no factor gives, as weights from elsewhere may have.
        head.gate, head.value = (torch.nn.Linear(width_in, hidden) for _ in range(2))
        head.out = torch.nn.Linear(hidden, width)
    head.double()
    head.load_state_dict(
        {
            "norm.weight": 1 + given["norm_weight"],
            "norm.bias": given["norm_bias"],
            "gate.weight": given["f1_weight"],
            "gate.bias": given["f1_bias"],
            "value.weight": given["f2_weight"],
            "value.bias": given["f2_bias"],
            "out.weight": given["out_weight"],
            "out.bias": given["out_bias"],
        }
    )
    expected = torch.tensor(case["expected"]["y"], dtype=torch.float64)
    torch.testing.assert_close(head(given["x"]), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", cases("blocks"))
def test_blocks(case: dict[str, Any]) -> None:
    given, hyper = tensors(case), case["hyper"]
    tokens = given["tokens"]
    keys = {
        "layers": hyper["blocks"],
        "heads": hyper["heads"],
        "hidden": given["b0.w1"].shape[0],
        **({"width": hyper["width"]} if hyper["width"] else {}),
    }
    head = make("head", "blocks", keys, tokens.shape[2], Grid(1, 1, 1)).double().eval()
    state = {"norm.weight": 1 + given["norm_w"], "norm.bias": given["norm_b"]}
    for number in range(hyper["blocks"]):
        own = {key.split(".")[1]: value for key, value in given.items() if f"b{number}." in key}
        state |= {
            f"blocks.{number}.{name}": value
            for name, value in {
                "norm1.weight": 1 + own["norm1_w"],
                "norm1.bias": own["norm1_b"],
                "attn.qkv.weight": own["qkv"],
                "attn.proj.weight": own["proj"],
                "attn.proj.bias": own["proj_b"],
                "ls1.gamma": own["ls1"],
                "norm2.weight": 1 + own["norm2_w"],
                "norm2.bias": own["norm2_b"],
                "mlp.fc1_g.weight": own["w1"],
                "mlp.fc1_g.bias": own["w1_b"],
                "mlp.fc1_x.weight": own["w2"],
                "mlp.fc1_x.bias": own["w2_b"],
                "mlp.fc2.weight": own["w3"],
                "mlp.fc2.bias": own["w3_b"],
                "ls2.gamma": own["ls2"],
            }.items()
        }
    if "out" in given:
        state["out.weight"] = given["out"]
    head.load_state_dict(state)
    prefix = hyper["prefix_tokens"]
    feature = head(tokens[:, prefix:], prefix=tokens[:, :prefix])
    expected = torch.tensor(case["expected"]["feature"], dtype=torch.float64)
    torch.testing.assert_close(feature, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("width_in", "parameters"), [(1024, 25_185_280), (2048, 83_923_968), (4096, 302_064_640)]
)
def test_glu_has_as_many_parameters_as_sail(width_in: int, parameters: int) -> None:
    with torch.device("meta"):
        head = make("head", "glu", {"width": 1024}, width_in, None)
    assert sum(parameter.numel() for parameter in head.parameters()) == parameters


@pytest.mark.parametrize(("width_in", "parameters"), [(1024, 25_326_336), (384, 3_549_952)])
def test_blocks_have_as_many_parameters_as_dino_txt(width_in: int, parameters: int) -> None:
    heads = width_in // 64
    with torch.device("meta"):
        head = make("head", "blocks", {"heads": heads}, width_in, Grid(16, 16, 14))
    # The full width is [class, mean] and needs no projection.
    assert head.width == 2 * width_in
    assert sum(parameter.numel() for parameter in head.parameters()) == parameters
