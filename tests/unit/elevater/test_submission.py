"""Prediction files and the zip: the toolkit's bytes, and every mistake reported in one
line."""

from __future__ import annotations

import json
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.elevater_goldens import golden
from vlkd_cli.data.readers.elevater_sets import SetFacts, SplitFacts
from vlkd_cli.elevater.predictions import Header, Row, read_predictions, write_predictions
from vlkd_cli.elevater.submission import MEMBER, prediction_folder, submit
from vlkd_cli.errors import DataError

LABELS = {"birds": [[0], [1], [2], [0]], "memes": [[1], [0], [1]]}


def _facts(name: str, classes: int, metric: str, rows: int) -> SetFacts:
    return SetFacts(
        name, f"classification/{name}", metric, classes, {"test": SplitFacts("test.txt", (), rows)}
    )  # type: ignore[arg-type]


SETS = {"birds": _facts("birds", 3, "accuracy", 4), "memes": _facts("memes", 2, "roc_auc", 3)}


def _header(dataset: str, seed: int = 0, shots: int = 5, trainable: int = 10) -> Header:
    return Header("toy", dataset, trainable, 1010, 900, 1000, shots, [seed])


def _probabilities(dataset: str, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(
        len(LABELS[dataset]), SETS[dataset].num_classes, generator=generator
    ).softmax(1)


def _write(folder: Path, dataset: str, /, seed: int = 0, shots: int = 5, **changes: Any) -> Path:
    path = folder / (f"seed{seed}_{dataset}.json" if shots else f"{dataset}.json")
    provenance = {
        "dataset": dataset,
        "labels": LABELS[dataset],
        "row_order": "a",
        "class_order": "b",
        "doubts": [],
        **changes,
    }
    write_predictions(
        path, _header(dataset, seed, shots), _probabilities(dataset, seed), provenance
    )
    return path


def _complete(folder: Path) -> Path:
    for dataset in SETS:
        for seed in (0, 1, 2):
            _write(folder, dataset, seed)
    return folder


def _rounded(value: Any) -> str:
    """The toolkit's way: dump, read with every float rounded, dump again."""
    return json.dumps(json.loads(json.dumps(value), parse_float=lambda text: round(float(text), 6)))


def test_a_prediction_file_has_the_toolkits_bytes(tmp_path: Path) -> None:
    values = torch.tensor([[1e-7, 0.9999999, 1.2345678e-6], [0.25, 0.5, 0.25]])
    write_predictions(tmp_path / "birds.json", _header("birds", shots=0), values, {})
    expected = _rounded({**_header("birds", shots=0)._asdict(), "predictions": [values.tolist()]})
    assert (tmp_path / "birds.json").read_text() == expected
    assert "[0.0, 1.0, 1e-06]" in expected


def test_merging_gives_the_toolkits_zip(tmp_path: Path) -> None:
    case = golden("prepare_submit")
    (files,) = [entry["files"] for entry in case["inputs"]]
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    sets = {
        "cifar-10": _facts("cifar-10", 2, "accuracy", 2),
        "mnist": _facts("mnist", 2, "accuracy", 2),
    }
    # The golden's rows are not probabilities, which its merge does not look at.
    sets = {
        name: SetFacts(**{**facts.__dict__, "multi_label": True}) for name, facts in sets.items()
    }
    done = submit(tmp_path, tmp_path / "myrun.zip", partial=True, trust_order=True, sets=sets)
    assert done.path.name == case["expected"]["zip_name"]
    with zipfile.ZipFile(done.path) as archive:
        assert archive.namelist() == case["expected"]["zip_members"] == [MEMBER]
        assert archive.infolist()[0].compress_type == zipfile.ZIP_DEFLATED
        assert archive.read(MEMBER).decode() == json.dumps(case["expected"]["merged"])


def test_a_complete_submission_is_merged_and_scored(tmp_path: Path) -> None:
    done = submit(_complete(tmp_path), sets=SETS)
    with zipfile.ZipFile(done.path) as archive:
        merged = json.loads(archive.read(MEMBER))
    assert [record["dataset_name"] for record in merged["data"]] == ["birds", "memes"]
    assert merged["data"][0]["rnd_seeds"] == [0, 1, 2]
    assert merged["data"][0]["num_trainable_params"] == 10.0
    assert np.allclose(
        merged["data"][0]["predictions"],
        torch.stack([_probabilities("birds", seed) for seed in (0, 1, 2)]),
        atol=1e-6,
    )
    assert [score.dataset for score in done.scores] == ["birds", "memes"]
    hits = [
        (_probabilities("birds", seed).argmax(1) == torch.tensor([0, 1, 2, 0]))
        .float()
        .mean()
        .item()
        for seed in (0, 1, 2)
    ]
    assert done.scores[0].values == pytest.approx(hits)
    assert done.average == pytest.approx((done.scores[0].mean + done.scores[1].mean) / 2)
    again = done.path.read_bytes()
    assert submit(tmp_path, sets=SETS).path.read_bytes() == again


def test_a_run_folder_leads_to_its_only_predictions(tmp_path: Path) -> None:
    _write(tmp_path / "elevater" / "zero_shot", "birds", shots=0)
    (tmp_path / "results.json").write_text("{}")
    assert prediction_folder(tmp_path) == tmp_path / "elevater" / "zero_shot"
    _write(tmp_path / "elevater" / "linear_probe_5", "birds")
    with pytest.raises(DataError, match="several kinds"):
        prediction_folder(tmp_path)
    assert prediction_folder(tmp_path / "elevater" / "linear_probe_5").name == "linear_probe_5"


def _refusal(folder: Path, **options: Any) -> list[str]:
    with pytest.raises(DataError) as caught:
        submit(folder, sets=SETS, **options)
    assert not list(folder.glob("*.zip"))
    first, *lines = str(caught.value).splitlines()
    assert first.startswith(f"submission rejected, {len(lines)} problem")
    return lines


def _change(path: Path, **changes: Any) -> None:
    record = json.loads(path.read_text())
    record.update(changes)
    path.write_text(json.dumps(record))


def test_missing_data_sets_and_seeds_are_named(tmp_path: Path) -> None:
    _write(tmp_path, "memes", 1)
    lines = _refusal(tmp_path)
    assert lines[0].startswith("'memes': seed 0, 2 missing of 0, 1, 2.")
    assert lines[1].startswith("1 of 2 data sets are missing: birds.")
    done = submit(tmp_path, partial=True, sets=SETS)
    assert done.average is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0.5, 0.5], "row 1 has 2 values, and 'birds' has 3 classes"),
        ([float("nan"), 0.5, 0.5], "row 1 holds NaN or infinity"),
        ([1.5, -0.25, -0.25], "row 1 holds -0.25, outside 0 to 1"),
        ([0.5, 0.1, 0.1], "row 1 sums to 0.700000 instead of 1"),
        (["a", 0.5, 0.5], "row 1 holds a value that is not a number"),
        ([True, 0.0, 0.0], "row 1 holds a value that is not a number"),
        ([10**400, 0, 0], "outside 0 to 1"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, row: list[Any], message: str) -> None:
    path = _complete(tmp_path) / "seed1_birds.json"
    predictions = json.loads(path.read_text())["predictions"]
    predictions[0][1] = row
    _change(path, predictions=predictions)
    (line,) = _refusal(tmp_path)
    assert line.startswith(str(path)) and message in line


def test_many_wrong_rows_are_summed_up(tmp_path: Path) -> None:
    path = _complete(tmp_path) / "seed1_birds.json"
    _change(path, predictions=[[[0.9, 0.9, 0.9]] * 10])
    lines = _refusal(tmp_path)
    assert sum("sums to" in line for line in lines) == 3
    assert any("rows that do not sum to 1: 7 more." in line for line in lines)
    assert any(
        "seed 1 has 10 rows, and the test part of 'birds' has 4 images" in line for line in lines
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset_name": "bird"}, "Did you mean 'birds'?"),
        ({"n_shot": 20}, "different numbers of shots are mixed: 5, 20"),
        ({"model_name": "other"}, "different models are mixed: 'toy', 'other'"),
        ({"num_params": 7}, "num_params differs between seeds: 1010, 7"),
        ({"rnd_seeds": [0]}, "seed 0 occurs more than once"),
        ({"rnd_seeds": [1, 2]}, "1 seeds of predictions, and rnd_seeds lists 2"),
        ({"rnd_seeds": ["1"]}, "Expected a list of integers"),
        ({"rnd_seeds": 3}, "rnd_seeds is 3. Evaluate this data set again"),
        ({"predictions": [[], [[1, 0, 0]]]}, "2 seeds of predictions, and rnd_seeds lists 1"),
        ({"n_shot": "five"}, "n_shot is 'five'"),
        ({"num_params": float("nan")}, "num_params is nan"),
        ({"num_visual_params": -1}, "num_visual_params is -1"),
        ({"author": "x"}, "key 'author' appears after the predictions"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = _complete(tmp_path) / "seed1_birds.json"
    _change(path, **changes)
    assert any(message in line for line in _refusal(tmp_path))


def test_a_key_of_another_format_is_named(tmp_path: Path) -> None:
    path = _complete(tmp_path) / "seed1_birds.json"
    path.write_text(json.dumps({"author": "x", **json.loads(path.read_text())}))
    assert any("unknown key 'author'" in line for line in _refusal(tmp_path))


def test_files_cut_off_or_of_another_kind_are_named(tmp_path: Path) -> None:
    path = _complete(tmp_path) / "seed1_birds.json"
    whole = path.read_text()
    for content in (
        whole[:-40],
        whole + whole,
        '{"a": ' + "[" * 3000,
        "[]",
        "{}",
        '{"a": 1}',
        whole.replace('"predictions": [[', '"predictions": [[3, '),
    ):
        path.write_text(content)
        assert any(line.startswith(f"{path}: ") for line in _refusal(tmp_path)), content


def test_order_that_nothing_vouches_for_is_refused_unless_trusted(tmp_path: Path) -> None:
    _complete(tmp_path)
    (tmp_path / "provenance" / "seed1_birds.json").unlink()
    (line,) = [line for line in _refusal(tmp_path) if "cannot be verified" in line]
    assert "--trust-order" in line
    for content, reason in (
        ("[]", "no JSON object"),
        ('{"labels": null}', "'labels' is not a list"),
        ('{"doubts": 3}', "'doubts' is not a list"),
    ):
        (tmp_path / "provenance" / "seed1_birds.json").write_text(content)
        named = f"provenance/seed1_birds.json: cannot be read: {reason}"
        assert any(named in line for line in _refusal(tmp_path)), content
    _write(tmp_path, "birds", 1, doubts=["Its rows are in the order of a rebuilt index."])
    assert any("rebuilt index" in line for line in _refusal(tmp_path))
    submit(tmp_path, sets=SETS, trust_order=True).path.unlink()
    _write(tmp_path, "birds", 1, row_order="other")
    assert any("row order differs between seeds" in line for line in _refusal(tmp_path))
    _write(tmp_path, "birds", 1, dataset="memes")
    assert any("was evaluated on 'memes', not on 'birds'" in line for line in _refusal(tmp_path))


def test_rows_are_streamed_and_never_held_as_lists(tmp_path: Path) -> None:
    rows, classes = 2_000, 50
    sets = {"large": _facts("large", classes, "accuracy", rows)}
    values = torch.rand(rows, classes, generator=torch.Generator().manual_seed(0))
    provenance = {"dataset": "large", "labels": [[0]] * rows, "doubts": []}
    tracemalloc.start()
    write_predictions(
        tmp_path / "large.json",
        _header("large", shots=0),
        values / values.sum(1, keepdim=True),
        provenance,
    )
    submit(tmp_path, sets=sets)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # 100,000 floats in lists take 3.2 MB; the table of numbers for the score takes 0.8 MB.
    assert peak < 2e6
    assert (
        sum(isinstance(event, Row) for event in read_predictions(tmp_path / "large.json")) == rows
    )
