"""Every mode of ELEVATER on a rendered data root, from pictures to a checked submission."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.color_towers import RandomHead, color_towers, mobilenet_tower
from tests.support.elevater_goldens import golden, sampled
from tests.support.elevater_root import make_elevater_root
from tests.support.ranks import run_on_ranks
from vlkd_cli.commands.submit_elevater import submit_elevater
from vlkd_cli.data.readers.elevater import Elevater
from vlkd_cli.data.readers.elevater_sets import read_registry
from vlkd_cli.elevater import learners
from vlkd_cli.elevater.learners import FineTuneLearner, Task
from vlkd_cli.elevater.metrics import METRICS
from vlkd_cli.elevater.run import zero_shot_probabilities
from vlkd_cli.elevater.submission import MEMBER, prediction_folder, submit
from vlkd_cli.elevater.sweep import Trial
from vlkd_cli.errors import DataError, RecipeError
from vlkd_cli.evaluation.results import Result
from vlkd_cli.evaluation.suites.elevater import ElevaterSuite
from vlkd_cli.features.subject import Subject
from vlkd_cli.towers.tower import Tower

SHORT: dict[str, Any] = {"sweep_epochs": 1, "epochs": 3}
NAMES = ["toy-colors", "toy-tags", "toy-memes", "toy-places"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_elevater_root(tmp_path_factory.mktemp("elevater"), train=7, test=5)


def _subject(root: Path, output: Path | None = None, **towers: Any) -> Subject:
    image, text = color_towers(**towers)
    return Subject(image, text, output=output, data_root=root)


def _primary_metrics(results: list[Result]) -> dict[str, float]:
    return {result.dataset: result.metrics[result.primary_metric] for result in results}


def _submitted(output: Path, root: Path) -> list[dict[str, Any]]:
    sets = read_registry(root / "vision_datasets.json")
    done = submit(prediction_folder(output), sets=sets)
    assert done.average is not None and [score.dataset for score in done.scores] == NAMES
    with zipfile.ZipFile(done.path) as archive:
        records: list[dict[str, Any]] = json.loads(archive.read(MEMBER))["data"]
    for record in records:
        shape = np.shape(record["predictions"])
        facts = sets[record["dataset_name"]]
        assert shape == (
            len(record["rnd_seeds"]),
            facts.splits["test"].num_images,
            facts.num_classes,
        )
    return records


def test_zero_shot_probabilities_are_the_toolkits() -> None:
    arrays, expected = sampled("zeroshot"), golden("zeroshot")["expected"]
    found = zero_shot_probabilities(
        torch.from_numpy(arrays["ze"]), torch.from_numpy(arrays["zt"]).T
    )
    assert found[0].tolist() == pytest.approx(expected["probs_row0"], abs=1e-5)
    for metric in ("accuracy", "mean-per-class"):
        assert METRICS[metric](found.numpy(), arrays["zl"][:, 0]) == pytest.approx(
            expected[metric], abs=1e-5
        )


def test_zero_shot_reaches_a_checked_submission(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = ElevaterSuite().run(_subject(root, tmp_path))
    scores = _primary_metrics(results)
    assert list(scores) == NAMES
    assert scores["toy-colors"] == scores["toy-memes"] == scores["toy-places"] == 1.0
    assert scores["toy-tags"] > 0.8
    assert [result.primary_metric for result in results] == [
        "accuracy",
        "map_11_points",
        "roc_auc",
        "mean_per_class",
    ]
    assert results[0].chance == {"accuracy": pytest.approx(1 / 3)}
    records = _submitted(tmp_path, root)
    assert all(
        record["rnd_seeds"] == [0] and record["n_shot"] == 0 and record["num_trainable_params"] == 0
        for record in records
    )
    assert records[0]["num_visual_params"] == 12 and records[0]["num_params"] == 12 + 15
    submit_elevater(tmp_path, tmp_path / "all.zip", registry=root / "vision_datasets.json")
    printed = capsys.readouterr()
    assert "average" in printed.out and "EvalAI takes only those" in printed.err
    with pytest.raises(DataError, match="'toy-colors' is not one of the 20 data sets"):
        submit_elevater(tmp_path, tmp_path / "official.zip")
    assert not (tmp_path / "official.zip").exists()


def test_random_towers_are_near_chance_and_never_perfect(root: Path) -> None:
    subject = _subject(root)
    assert subject.image is not None
    subject.image = Tower("image", subject.image.encoder, head=RandomHead(3))
    scores = _primary_metrics(ElevaterSuite(datasets=["toy-colors", "toy-places"]).run(subject))
    assert scores["toy-colors"] == pytest.approx(
        1 / 3, abs=0.37
    )  # 15 images: three standard errors
    assert scores["toy-places"] == pytest.approx(1 / 4, abs=0.3)


def test_linear_probe_with_shots_reaches_a_checked_submission(root: Path, tmp_path: Path) -> None:
    suite = ElevaterSuite(mode="linear_probe", shots=5, **SHORT)
    results = suite.run(_subject(root, tmp_path))
    scores = _primary_metrics(results)
    assert scores["toy-colors"] == scores["toy-places"] == scores["toy-memes"] == 1.0
    assert results[0].protocol == "elevater_linear_probe_5"
    assert results[0].settings["epoch_chosen_on"] == "validation"
    assert [entry["seed"] for entry in results[0].details["seeds"]] == [0, 1, 2]
    assert all(
        entry["trainings_searched"] > 60 and entry["train_rows"] == 15
        for entry in results[0].details["seeds"]
    )
    records = _submitted(tmp_path, root)
    assert all(record["rnd_seeds"] == [0, 1, 2] and record["n_shot"] == 5 for record in records)
    assert records[0]["num_trainable_params"] == 3 * (3 + 1)


def test_fine_tuning_with_all_rows_reaches_a_checked_submission(root: Path, tmp_path: Path) -> None:
    subject = _subject(root, tmp_path)
    assert subject.image is not None
    before = subject.image.digest()
    suite = ElevaterSuite(mode="fine_tune", tune=False, lr=0.05, weight_decay=1e-4, epochs=2)
    results = suite.run(subject)
    assert subject.image.digest() == before and subject.image.is_frozen
    assert min(_primary_metrics(results).values()) > 0.8
    records = _submitted(tmp_path, root)
    assert all(record["rnd_seeds"] == [0] and record["n_shot"] == -1 for record in records)
    assert records[0]["num_trainable_params"] == 3 * (3 + 1) + 12


def test_fine_tuning_searches_and_learns_what_the_tower_did_not_know(root: Path) -> None:
    subject = _subject(root, knows=False)
    suite = ElevaterSuite(
        mode="fine_tune",
        datasets="toy-memes",
        shots=2,
        seeds=0,
        sweep_epochs=1,
        epochs=1,
        start="random",
    )
    (result,) = suite.run(subject)
    assert result.details["seeds"][0]["trainings_searched"] > 60
    assert 0 <= result.metrics["roc_auc"] <= 1


def test_the_parity_protocol_takes_the_best_test_epoch_and_reports_it(
    root: Path, tmp_path: Path
) -> None:
    keys: dict[str, Any] = {
        "mode": "linear_probe",
        "datasets": "toy-tags",
        "tune": False,
        "lr": 0.3,
        "epochs": 6,
    }
    (honest,) = ElevaterSuite(**keys).run(_subject(root, tmp_path))
    (paper,) = ElevaterSuite(protocol="elevater_paper", **keys).run(_subject(root, tmp_path))
    assert paper.protocol == "elevater_paper_linear_probe_full"
    assert (honest.settings["epoch_chosen_on"], paper.settings["epoch_chosen_on"]) == (
        "validation",
        "test",
    )
    assert paper.metrics["map_11_points"] >= honest.metrics["map_11_points"]
    assert {path.name for path in (tmp_path / "elevater").iterdir()} == {
        "linear_probe_full",
        "linear_probe_full_best_on_test",
    }


def test_what_was_predicted_before_is_read_again_until_something_changes(
    root: Path, tmp_path: Path
) -> None:
    suite = ElevaterSuite(
        mode="linear_probe", datasets="toy-colors", shots=2, seeds=[0, 1], **SHORT
    )
    first = suite.run(_subject(root, tmp_path))
    files = sorted((tmp_path / "elevater" / "linear_probe_2").glob("*.json"))
    times = [path.stat().st_mtime_ns for path in files]
    assert [path.name for path in files] == ["seed0_toy-colors.json", "seed1_toy-colors.json"]
    assert suite.run(_subject(root, tmp_path)) == first
    assert [path.stat().st_mtime_ns for path in files] == times
    suite.run(_subject(root, tmp_path, knows=False))
    assert all(path.stat().st_mtime_ns > time for path, time in zip(files, times, strict=True))


def test_kitti_images_are_squashed_and_others_cropped(root: Path, tmp_path: Path) -> None:
    from vlkd_cli.elevater.run import _without_crop

    subject = _subject(root)
    squashed = _without_crop(subject)
    assert squashed.image is not None and subject.image is not None
    assert squashed.image.input.resize == "squash" and subject.image.input.resize == "shortest"  # type: ignore[union-attr]
    assert squashed.image.backbone is subject.image.backbone


def test_templates_may_come_from_a_file_by_data_set(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.json"
    own = {
        "toy-colors": {"classes": [["red", "crimson"], "green", "yellow"], "templates": ["{}!"]},
        "toy-memes": ["some {}"],
    }
    file.write_text(json.dumps(own))
    scores = _primary_metrics(
        ElevaterSuite(datasets=["toy-colors", "toy-memes"], templates=str(file)).run(_subject(root))
    )
    assert scores["toy-memes"] == 1.0
    assert scores["toy-colors"] == pytest.approx(2 / 3)  # the file calls the blue ones yellow
    for wrong, message in (
        (["red"], "1 class names, and the data set has 3"),
        (["green", "red", "blue"], "class 'green' is number 0"),
    ):
        file.write_text(json.dumps({"toy-colors": {"classes": wrong, "templates": ["{}!"]}}))
        with pytest.raises(DataError, match=message):
            ElevaterSuite(datasets="toy-colors", templates=str(file)).run(_subject(root))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"shots": 5}, "shots has no effect with mode 'zero_shot'"),
        ({"tune": False, "protocol": "elevater_paper"}, "tune, protocol has no effect"),
        ({"mode": "linear_probe", "lr": 0.1}, "Set tune: false"),
        ({"mode": "linear_probe", "seeds": [1]}, "have the one seed 0"),
        ({"mode": "linear_probe", "shots": 5, "seeds": [1, 1]}, "must be distinct"),
        ({"mode": "linear_probe", "shots": 0}, "shots is 0"),
        ({"mode": "linear_probe", "features": "backbone", "start": "text"}, "Set start: random"),
        ({"mode": "fine_tune", "tune": False, "sweep_epochs": 3}, "sweep_epochs has no effect"),
    ],
)
def test_keys_without_effect_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message.replace("(", r"\(")):
        ElevaterSuite(**keys)


def test_missing_data_and_towers_are_reported_in_one_line(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--data ROOT"):
        ElevaterSuite().run(Subject(*color_towers()))
    with pytest.raises(DataError, match="no ELEVATER data set is under"):
        ElevaterSuite().run(_subject(tmp_path))
    with pytest.raises(DataError, match="is not a folder"):
        ElevaterSuite(datasets="dtd").run(_subject(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="'dtd' is not under"):
        ElevaterSuite(datasets="dtd").run(_subject(root))
    with pytest.raises(RecipeError, match="start: random"):
        ElevaterSuite(mode="linear_probe", datasets="toy-memes").run(
            Subject(color_towers()[0], None, data_root=root)
        )


def test_rows_without_a_score_are_reported_with_the_data_set(root: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(root, tmp_path / "root"))
    index = copy / "classification/toy_memes_2026/test_meta.json"
    index.write_text(index.read_text().replace('"category_id": 8', '"category_id": 7'))
    with pytest.raises(
        DataError, match="^data set 'toy-memes': ROC AUC needs rows of both classes"
    ):
        ElevaterSuite(datasets="toy-memes").run(_subject(copy))


def _on_a_rank(root: str, output: str) -> dict[str, Any]:
    subject = _subject(Path(root), Path(output))
    probe = ElevaterSuite(
        mode="linear_probe", datasets=["toy-colors", "toy-tags"], shots=2, seeds=[0, 1], **SHORT
    )
    tuned = ElevaterSuite(
        mode="fine_tune", datasets="toy-memes", shots=2, seeds=0, tune=False, lr=0.02, epochs=2
    )
    results = [*ElevaterSuite().run(subject), *probe.run(subject), *tuned.run(subject)]
    return {
        f"{result.protocol} {result.dataset}": (result.metrics, result.details)
        for result in results
    } | {"search": _looks(root, subject)}


def _looks(root: str, subject: Subject) -> list[list[float]]:
    """Three fine-tunings of a search."""
    reader = Elevater(root=root, dataset="toy-colors", split="train")
    targets = torch.from_numpy(reader.targets())
    learner = FineTuneLearner(
        Task("accuracy", 3, False, targets, targets),
        subject,
        range(len(reader)),
        reader,
        reader,
        point="head",
        initial=None,
    )
    trials = [Trial(lr, 0.0) for lr in (1e-4, 0.02, 0.5)]
    return learner.curves(trials, train=range(6, len(reader)), valid=range(6), epochs=2)


def test_no_rank_waits_for_the_last_trainings_of_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learners, "world_size", lambda: 4)
    shares = []
    for own in range(4):
        monkeypatch.setattr(learners, "rank", lambda own=own: own)
        shares.append([learners.dealt(count) for count in (1, 5, 8)])
    assert shares == [
        [[0], [0, 4], [0, 4]],
        [[0], [1, 0], [1, 5]],
        [[0], [2, 1], [2, 6]],
        [[0], [3, 2], [3, 7]],
    ]


def test_two_ranks_give_the_numbers_of_one(root: Path, tmp_path: Path) -> None:
    alone = _on_a_rank(str(root), str(tmp_path / "alone"))
    together = run_on_ranks(_on_a_rank, 2, str(root), str(tmp_path / "together"))
    assert together[0] == together[1] == alone
    for path in (tmp_path / "alone").rglob("*.json"):
        other = tmp_path / "together" / path.relative_to(tmp_path / "alone")
        assert other.read_text() == path.read_text()


@pytest.mark.shared
def test_real_sets_are_predicted_and_scored_locally(shared: Path, tmp_path: Path) -> None:
    root = shared / "data" / "elevater"
    results = ElevaterSuite(datasets=["ants-bees", "cifar-10-mini"]).run(_subject(root, tmp_path))
    assert [result.num_items for result in results] == [61, 1000]
    done = submit(
        tmp_path / "elevater" / "zero_shot", sets=read_registry(root / "vision_datasets.json")
    )
    assert {score.dataset: score.mean for score in done.scores} == pytest.approx(
        _primary_metrics(results), abs=1e-3
    )


@pytest.mark.shared
@pytest.mark.slow
def test_the_probe_of_a_pretrained_tower_separates_two_classes(
    shared: Path, tmp_path: Path
) -> None:
    subject = Subject(
        mobilenet_tower(shared / "data" / "weights" / "mobilenet_v2_imagenet.safetensors"),
        None,
        batch_size=32,
    )
    subject.data_root = shared / "data" / "elevater"
    (result,) = ElevaterSuite(mode="linear_probe", datasets="ants-bees", start="random").run(
        subject
    )
    # Logistic regression reaches 0.934 on these features; 61 images make a standard error of 0.03.
    assert result.metrics["accuracy"] > 0.87
