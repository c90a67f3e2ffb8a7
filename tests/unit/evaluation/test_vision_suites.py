"""Claims about single suites that the bracket of all suites does not make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.fakes import COLORED, GROUPED, Colored, FakeTower, random_feature
from tests.support.suite_cases import (
    class_of_picture,
    class_of_prompt,
    knowing_classes,
    knowing_nothing,
)
from vlkd_cli.errors import DataError, RecipeError
from vlkd_cli.evaluation.datasets.prompts import prompts
from vlkd_cli.evaluation.results import Result
from vlkd_cli.evaluation.run import print_results, run_suites
from vlkd_cli.features.encode import class_features, embed_images, embed_texts, normalize
from vlkd_cli.features.subject import Subject
from vlkd_cli.recipe.schema import EvalSpec


def run(subject: Subject, suite: str, **keys: Any) -> Result:
    (result,) = run_suites(
        subject, [EvalSpec.model_validate({"suite": suite, "data": {"reader": COLORED}, **keys})]
    )
    return result


def test_prompts_are_normalized_before_the_mean_or_after_it() -> None:
    subject = knowing_nothing()
    texts = [["a", "b", "c"], ["d"]]
    raw = embed_texts(subject, ["a", "b", "c", "d"])
    clip = normalize(torch.stack([normalize(raw[:3]).mean(0), raw[3]]))
    itra = normalize(torch.stack([raw[:3].mean(0), raw[3]]))
    torch.testing.assert_close(class_features(subject, texts, "normalize"), clip)
    torch.testing.assert_close(class_features(subject, texts, "raw_mean"), itra)
    assert not torch.allclose(clip, itra)


def test_results_that_would_have_one_name_are_numbered_and_none_is_lost(tmp_path: Path) -> None:
    data = [{"reader": COLORED, "num_samples": size} for size in (16, 24, 32)]
    specs = [EvalSpec.model_validate({"suite": "zero_shot", "data": keys}) for keys in data]
    results = run_suites(knowing_classes(), specs, folder=tmp_path)
    name = results[0].dataset
    assert [result.dataset for result in results] == [name, f"{name}_2", f"{name}_3"]
    kept = {
        json.loads(file.read_text())["dataset"]: json.loads(file.read_text())["num_items"]
        for file in tmp_path.glob("*.json")
    }
    assert kept == {name: 16, f"{name}_2": 24, f"{name}_3": 32}


def half_knowing() -> Subject:
    """Takes every picture of class 1 for class 2 and knows the others."""
    return Subject(
        FakeTower(
            "image", lambda position: class_of_picture(2 if position % 8 == 1 else position), 8
        ),
        FakeTower("text", class_of_prompt, 8),
    )


def test_the_table_per_class_and_the_confusions_say_what_went_wrong() -> None:
    result = run(half_knowing(), "zero_shot")
    assert result.metrics["top1"] == pytest.approx(7 / 8)
    assert result.metrics["mean_per_class"] == pytest.approx(7 / 8)
    recalls = {row["class"]: row["recall"] for row in result.details["per_class"]}
    assert recalls["kind 1"] == 0 and recalls["kind 2"] == 1
    assert result.details["confusions"] == [
        {"class": "kind 1", "taken_for": "kind 2", "images": 60}
    ]


def test_several_labels_are_scored_by_average_precision_equal_to_scikit_learn() -> None:
    from sklearn.metrics import average_precision_score

    from vlkd_cli.evaluation.metrics.classification import (
        average_precision,
        chance_average_precision,
    )

    random = np.random.default_rng(0)
    scores, targets = random.standard_normal(200).round(1), random.random(200) < 0.3
    assert average_precision(scores, targets) == pytest.approx(
        average_precision_score(targets, scores)
    )
    shuffled = [average_precision(random.random(200), targets) for _ in range(400)]
    assert np.mean(shuffled) == pytest.approx(
        chance_average_precision(int(targets.sum()), 200), abs=0.006
    )

    data = {"reader": COLORED, "several": True}

    def both(position: int) -> torch.Tensor:
        return class_of_picture(position) + class_of_picture(position // 3)

    best = run(
        Subject(FakeTower("image", both, 8), FakeTower("text", class_of_prompt, 8)),
        "zero_shot",
        data=data,
    )
    assert best.metrics["mean_average_precision"] == pytest.approx(1)
    worst = run(knowing_nothing(), "zero_shot", data=data)
    assert worst.metrics["mean_average_precision"] == pytest.approx(
        worst.chance["mean_average_precision"], abs=0.06
    )


def test_templates_come_from_a_list_a_file_and_a_file_per_class(tmp_path: Path) -> None:
    seen: list[str] = []

    def remembering(text: str) -> torch.Tensor:
        seen.append(text)
        return class_of_prompt(text)

    subject = Subject(FakeTower("image", class_of_picture, 8), FakeTower("text", remembering, 8))
    lines, own = tmp_path / "templates.txt", tmp_path / "prompts.json"
    lines.write_text("a {c} here\n\none {}\n")
    own.write_text(
        json.dumps({f"kind {number}": [f"what a kind {number} is"] for number in range(8)})
    )
    for chosen, expected in (
        (["the {}"], "the kind 3"),
        (str(lines), "a kind 3 here"),
        (str(own), "what a kind 3 is"),
        ("plain", "kind 3"),
    ):
        seen.clear()
        assert run(subject, "zero_shot", templates=chosen).metrics["top1"] == 1
        assert expected in seen
    with pytest.raises(DataError, match="Did you mean 'texture'"):
        run(subject, "zero_shot", templates="textur")
    with pytest.raises(DataError, match="8 classes"):
        run(subject, "zero_shot", classes=["one", "two"])
    with pytest.raises(DataError, match="in another order than its labels"):
        run(subject, "zero_shot", classes=[f"kind {number}" for number in reversed(range(8))])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", "a number, not text"),
        ('[["a {}"]]', "a list, not text"),
        ('{"kind 0": [3]}', "a number, not text"),
        ("3", "expected a JSON list or object, not a number"),
        ("[", "cannot be read"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
@pytest.mark.parametrize("key", ["classes", "templates"])
def test_names_and_templates_of_a_json_are_texts_or_refused_in_a_line(
    tmp_path: Path, key: str, content: str, message: str
) -> None:
    file = tmp_path / "own.json"
    file.write_text(content)
    subject = Subject(
        FakeTower("image", class_of_picture, 8), FakeTower("text", class_of_prompt, 8)
    )
    with pytest.raises(DataError, match=message) as caught:
        run(subject, "zero_shot", **{key: str(file)})
    assert "\n" not in str(caught.value) and "own.json" in str(caught.value)


@pytest.mark.parametrize(
    "dataset",
    [
        "oxford-flower-102",
        "flowers",
        "kitti-distance",
        "fgvc-aircraft-2013b-variants102",
        "cifar10",
    ],
)
def test_the_templates_of_clip_benchmark_are_found_by_any_name_of_the_data_set(
    dataset: str,
) -> None:
    pytest.importorskip("clip_benchmark")
    ((prompt, *_),) = prompts(["thing"], Colored(), "clip_benchmark", dataset)
    assert "thing" in prompt


def test_constant_features_retrieve_at_chance_and_not_perfectly() -> None:
    same = torch.ones(8)
    subject = Subject(FakeTower("image", lambda _: same, 8), FakeTower("text", lambda _: same, 8))
    result = run(subject, "retrieval", data={"reader": COLORED, "num_samples": 100})
    assert result.metrics["text_to_image_R@1"] == pytest.approx(result.chance["text_to_image_R@1"])
    assert result.metrics["text_to_image_mean_rank"] == pytest.approx(
        result.chance["text_to_image_mean_rank"]
    )


def test_features_that_are_not_finite_are_misses() -> None:
    from vlkd_cli.evaluation.metrics.classification import top_k_accuracy

    nothing = torch.full((3, 4), torch.nan)
    assert top_k_accuracy(nothing, torch.tensor([0, 1, 2]), 3) == 0


def test_knn_equals_scikit_learn() -> None:
    from sklearn.neighbors import KNeighborsClassifier

    subject = Subject(
        FakeTower(
            "image", lambda position: class_of_picture(position) + random_feature(8, 5)(position), 8
        ),
        None,
    )
    result = run(subject, "knn", k=[7], temperature=0.0)
    from vlkd_cli.evaluation.datasets.dataset import labeled_pair

    pair = labeled_pair(subject, {"reader": COLORED}, None)
    train, test = (
        normalize(embed_images(subject, part.reader)).numpy() for part in (pair.train, pair.test)
    )
    peer = KNeighborsClassifier(7, metric="cosine", algorithm="brute").fit(
        train, pair.train_labels.numpy()
    )
    assert result.metrics["k7_top1"] == pytest.approx(peer.score(test, pair.test_labels.numpy()))


@pytest.mark.parametrize("protocol", ["clip", "sgd", "adamw", "elevater", "elevater_paper"])
def test_every_probe_protocol_learns_noisy_classes(protocol: str) -> None:
    subject = Subject(
        FakeTower(
            "image",
            lambda position: 2 * class_of_picture(position) + random_feature(8, 5)(position),
            8,
        ),
        None,
    )
    data = {"reader": COLORED, "num_samples": 240}
    keys: dict[str, Any] = {"epochs": 3} if protocol == "elevater" else {"tune": False}
    if protocol == "sgd":
        keys = {"lr": 0.5}
    result = run(subject, "linear_probe", data=data, protocol=protocol, **keys)
    assert 0.5 < result.metrics["top1"] < 1
    assert result.protocol == protocol
    assert ("test" in result.settings["epoch_chosen_on"]) == (protocol == "elevater_paper")


def test_the_tuned_probe_equals_scikit_learn_at_the_chosen_regularizer() -> None:
    from sklearn.linear_model import LogisticRegression

    from vlkd_cli.evaluation.datasets.dataset import labeled_pair

    subject = Subject(
        FakeTower(
            "image", lambda position: class_of_picture(position) + random_feature(8, 5)(position), 8
        ),
        None,
    )
    data = {"reader": COLORED, "num_samples": 160}
    result = run(subject, "linear_probe", data=data)
    pair = labeled_pair(subject, data, None)
    train, test = (embed_images(subject, part.reader).numpy() for part in (pair.train, pair.test))
    peer = LogisticRegression(C=result.settings["C"], max_iter=1000).fit(
        train, pair.train_labels.numpy()
    )
    assert result.metrics["top1"] == pytest.approx(
        peer.score(test, pair.test_labels.numpy()), abs=1 / 160
    )
    assert result.settings["trainings"] == 16


def test_few_shot_embeds_only_the_sampled_images() -> None:
    subject = knowing_classes()
    result = run(subject, "few_shot", shots=[1], seeds=[0, 1])
    assert subject.image is not None and subject.image.encoded <= 480 + 2 * 8
    assert set(result.details["1shot_top1_per_seed"]) == {"0", "1"}
    assert result.metrics["1shot_top1_spread"] == 0


def test_training_and_test_images_must_differ() -> None:
    with pytest.raises(DataError, match="the same"):
        run(knowing_classes(), "knn", data={"reader": COLORED, "split": "train"})


def test_towers_of_different_widths_are_reported_with_the_remedy() -> None:
    subject = Subject(
        FakeTower("image", random_feature(8), 8), FakeTower("text", random_feature(6), 6)
    )
    for suite in ("zero_shot", "retrieval", "feature_analysis"):
        with pytest.raises(RecipeError, match="head"):
            run(subject, suite)


def test_suites_that_run_second_cost_no_tower_pass() -> None:
    subject = knowing_classes()
    keys = {"data": {"reader": COLORED}}
    suites = ["zero_shot", "knn", "clustering", "linear_probe", "few_shot"]
    specs = [
        EvalSpec.model_validate(
            {"suite": name, **keys, **({"tune": False} if name == "linear_probe" else {})}
        )
        for name in suites
    ]
    results = run_suites(subject, specs)
    assert len(results) == 5
    assert subject.image is not None and subject.image.encoded == 480 + 480
    assert not subject.tables.stores and not subject.tables.projected


def test_results_are_printed_next_to_chance(capsys: pytest.CaptureFixture[str]) -> None:
    print_results([run(knowing_classes(), "zero_shot")])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if " top1 " in line]
    assert "1.0000" in line and "0.1250" in line


def test_analysis_of_features_equals_the_direct_formulas() -> None:
    from vlkd_cli.evaluation.metrics.geometry import (
        effective_rank,
        mean_positive_cosine,
        modality_gap,
        spectrum,
        uniformity,
    )

    generator = torch.Generator().manual_seed(0)
    one = normalize(torch.randn(1500, 6, generator=generator) + 0.3)
    other = normalize(torch.randn(1500, 6, generator=generator))
    cosine = one.double() @ one.double().T
    assert mean_positive_cosine(one) == pytest.approx(cosine[cosine > 0].mean().item(), abs=1e-5)
    distance = torch.pdist(one.double())
    assert uniformity(one) == pytest.approx(
        torch.exp(-2 * distance**2).mean().log().item(), abs=1e-5
    )
    assert modality_gap(one, other) == pytest.approx(
        (one.mean(0) - other.mean(0)).norm().item(), abs=1e-6
    )
    singular = torch.linalg.svdvals(one.double() - one.double().mean(0))
    assert spectrum(one).tolist() == pytest.approx(
        (singular**2 / (singular**2).sum()).tolist(), abs=1e-6
    )
    share = singular / singular.sum()
    assert effective_rank(spectrum(one)) == pytest.approx(
        float((-(share * share.log()).sum()).exp()), abs=1e-4
    )


@pytest.mark.parametrize(
    ("suite", "keys"),
    [
        ("zero_shot", {}),
        ("knn", {"k": [20]}),
        ("linear_probe", {"tune": False}),
        ("few_shot", {"shots": [1, 5], "seeds": [0, 1]}),
    ],
)
def test_the_worst_group_is_the_one_that_the_tower_fails(suite: str, keys: dict[str, Any]) -> None:
    def failing_every_fourth(position: int) -> Tensor:
        # Training pictures are at 2048 and later.
        wrong = position < 1024 and position % 4 == 0
        return class_of_picture(position + 1 if wrong else position)

    subject = Subject(
        FakeTower("image", failing_every_fourth, 8), FakeTower("text", class_of_prompt, 8)
    )
    result = run(subject, suite, data={"reader": GROUPED}, **keys)
    assert result.metrics[result.primary_metric] == 0.75
    groups = {row["group"]: (row["n"], row["share"]) for row in result.details["groups"]}
    assert groups == {"a": (360, 1.0), "b": (120, 0.0)}
    assert result.metrics["worst_group"] == 0 and result.metrics["group_gap"] == 1
    assert result.metrics["average_over_groups"] == 0.5
    large = run(subject, suite, data={"reader": GROUPED}, min_group=200, **keys)
    assert large.metrics["worst_group"] == 1 and large.key != result.key
    with pytest.raises(RecipeError, match="min_group has no effect"):
        run(subject, suite, min_group=200, **keys)
