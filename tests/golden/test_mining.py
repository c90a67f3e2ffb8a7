"""Mined negatives are those of the definition (tests/golden/distil_adapt.json), whatever the
blocks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.golden import golden_inputs
from vlkd_cli.numerics.mining import Rules, mine

CASES = [
    case
    for case in json.loads(
        (Path(__file__).parent / "distil_adapt.json").read_text(encoding="utf-8")
    )["cases"]
    if case["kind"] == "mining"
]


@pytest.mark.parametrize("block_rows", [None, 3])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_negatives(case: dict[str, Any], block_rows: int | None) -> None:
    assert len(CASES) == 4
    given, hyper = golden_inputs.build(case), case["hyper"]
    queries, corpus = given["queries"].astype(np.float64), given["corpus"].astype(np.float64)
    count = len(queries)
    corpus[:count] = 0.8 * corpus[:count] + queries
    corpus[count], corpus[count + 1] = corpus[0], corpus[1]
    corpus_keys = np.arange(len(corpus))
    corpus_keys[count : count + 2] = 0, 1
    positives = [[query] for query in range(count)]
    if "several" in case["id"]:
        for query in range(count):
            positives[query] += [count + 2 + query] * (count + 2 + query < len(corpus))
    start, stop = hyper["range"]
    found = mine(
        *(F.normalize(torch.from_numpy(rows)).float() for rows in (queries, corpus)),
        Rules(
            hyper["num"],
            start,
            stop,
            hyper["absolute_margin"],
            hyper["relative_margin"],
            hyper["max_score"],
            hyper["min_score"],
        ),
        query_keys=np.arange(count),
        corpus_keys=corpus_keys,
        positives=positives,
        block_rows=block_rows,
    )
    rows = [[int(row) for row in own if row >= 0] for own in found.rows]
    assert rows == case["expected"]["negatives"]
    assert np.isnan(found.scores[found.rows < 0]).all()
    assert np.isfinite(found.scores[found.rows >= 0]).all()
