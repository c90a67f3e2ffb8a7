"""Suite mteb: towers as an encoder of mteb. Tests that call mteb itself need its extra."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.support.fakes import FakeTower, color_of, random_feature
from tests.support.suite_cases import picture_of_caption
from vlkd_cli import catalog
from vlkd_cli.checkpoint import Source
from vlkd_cli.errors import RecipeError, UserError
from vlkd_cli.evaluation.mteb_encoder import encode_batches, revision_of
from vlkd_cli.evaluation.run import run_suites
from vlkd_cli.evaluation.suites.mteb import MTEB
from vlkd_cli.features.subject import Subject
from vlkd_cli.recipe.schema import EvalSpec
from vlkd_cli.recipe.trust import check_foreign
from vlkd_cli.reports.records import read_run

TASKS = "tests.support.mteb_tasks"


def knowing() -> Subject:
    return Subject(
        FakeTower("image", random_feature(32), 32), FakeTower("text", picture_of_caption, 32)
    )


def unit(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features, dim=-1)


def test_batches_of_texts_images_and_both_give_unit_features() -> None:
    texts = [f"picture {n}" for n in (3, 5)]
    images = [Image.new("RGB", (8, 8), color_of(n)) for n in (4, 6)]
    of_text = unit(torch.stack([picture_of_caption(text) for text in texts]))
    of_image = unit(torch.stack([random_feature(32)(n) for n in (4, 6)]))
    found = encode_batches(knowing(), [{"text": texts}, {"image": images}])
    assert found.dtype == np.float32 and found.shape == (4, 32)
    torch.testing.assert_close(torch.from_numpy(found), torch.cat([of_text, of_image]))
    both = encode_batches(knowing(), [{"text": texts, "image": images}])
    torch.testing.assert_close(torch.from_numpy(both), unit(of_text + of_image))
    assert encode_batches(knowing(), []).shape == (0, 32)
    with pytest.raises(UserError, match="holds audio, and neither text nor image"):
        encode_batches(knowing(), [{"audio": []}])


def test_the_revision_contains_weights_and_precision() -> None:
    subject = knowing()
    plain = revision_of(subject)
    subject.precision = "bf16"
    assert revision_of(subject) == f"{plain}-bf16" and plain.count("-") == 1


def test_no_tasks_and_no_package_end_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="tasks is empty"):
        MTEB(tasks=[])
    monkeypatch.setitem(__import__("sys").modules, "mteb", None)
    with pytest.raises(UserError, match=r"suite 'mteb' needs an optional package: .*\[mteb\]"):
        MTEB(tasks=["NFCorpus"]).open(knowing())


def test_a_run_of_somebody_else_may_not_name_code_as_a_task() -> None:
    evals = [{"suite": "mteb", "tasks": ["NFCorpus", "os:abort"]}]
    (problem,) = check_foreign({"evals": evals}, "Add --trust.")
    assert problem.path == ("evals", 0, "tasks", 1)


needs_mteb = pytest.mark.skipif(
    catalog.missing_extra("suite", "mteb") is not None,
    reason="needs the extra 'mteb', which transformers 5 excludes (docs/mteb.md)",
)


@pytest.mark.slow  # for the import of mteb
@needs_mteb
def test_toy_tasks_from_local_data_are_run_and_found_again(tmp_path: Path) -> None:
    model = Source(run="runs/first", file="runs/first/checkpoints/last.pt", step=4, averaged=False)
    subject = knowing()
    subject.model, subject.output = model, tmp_path / "results"
    tasks = [f"{TASKS}:ToyText", f"{TASKS}:ToyImage"]
    spec = EvalSpec.model_validate({"suite": "mteb", "tasks": tasks})
    text, image = run_suites(subject, [spec], folder=subject.output)
    assert (text.dataset, image.dataset) == ("ToyText", "ToyImage")
    assert text.metrics == image.metrics == {"main_score": 1.0}
    assert text.settings["task_revision"] == "7" and text.split == "test"
    files = sorted((tmp_path / "results" / "mteb").rglob("Toy*.json"))
    place = Path("results") / "vlkd__first" / revision_of(subject)
    assert [file.relative_to(tmp_path / "results" / "mteb") for file in files] == [
        place / "ToyImage.json",
        place / "ToyText.json",
    ]
    assert json.loads(files[0].read_text())["dataset_revision"] == "7"
    assert isinstance(subject.text, FakeTower)
    before = subject.text.encoded
    again, _ = run_suites(subject, [spec], folder=subject.output)
    assert again.metrics == text.metrics and subject.text.encoded == before
    (tmp_path / "recipe.yaml").write_text("towers: {}\n")
    record = read_run(tmp_path)
    assert not record.unreadable and len(record.results) == 2


@pytest.mark.slow  # for the import of mteb
@needs_mteb
def test_a_tower_that_knows_nothing_scores_low_and_a_missing_one_is_named() -> None:
    lost = Subject(None, FakeTower("text", random_feature(32, 1), 32))
    spec = EvalSpec.model_validate({"suite": "mteb", "tasks": [f"{TASKS}:ToyText"]})
    (result,) = run_suites(lost, [spec])
    assert result.metrics["main_score"] < 0.4
    for task, message in (
        (f"{TASKS}:ToyImage", "task 'ToyImage' needs a tower for image"),
        ("NFCorpsu", "Did you mean: 'NFCorpus'"),
        (f"{TASKS}:Nothing", "has no attribute 'Nothing'"),
    ):
        with pytest.raises(UserError, match=message):
            MTEB(tasks=[task]).open(lost)
