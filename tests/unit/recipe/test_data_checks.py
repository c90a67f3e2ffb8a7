"""What readers offer, against what towers read."""

from __future__ import annotations

import pytest

from tests.support.recipes import problems, problems_with
from vlkd_cli import catalog
from vlkd_cli.recipe.data_checks import offers_of

POSITIVES = "distillers=[{{name: infonce, positives: {}}}]"


def test_every_reader_declares_what_it_offers() -> None:
    assert len(catalog.names("reader")) >= 9
    for name in catalog.names("reader"):
        offers = offers_of(name, {})
        known = {"image", "text", "mesh", "label", "target", "choices", "languages", "group"}
        assert offers and offers <= known, name


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, {"image", "text"}),
        ({"label": "kind"}, {"image", "text", "label"}),
        ({"target": ["a", "b"], "image": None}, {"text", "target"}),
        ({"caption": None}, {"image"}),
        ({"caption": None, "texts": {"a": "b"}}, {"image", "text"}),
        ({"caption": None, "texts": {}}, {"image"}),
    ],
)
def test_a_key_that_is_not_null_offers(keys: dict[str, object], expected: set[str]) -> None:
    assert offers_of("csv", keys) == expected


def test_a_reader_that_does_not_say_is_not_judged() -> None:
    assert offers_of("collections:OrderedDict", {}) is None
    assert offers_of("csw", {}) is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ["data={reader: images, path: photos}"],
            "reader 'images' has no captions with these keys, and tower 'text' reads them. Take"
            " another",
        ),
        (
            ["data={reader: csv, path: a.csv, caption: null}"],
            "reader 'csv' has no captions with these keys, and tower 'text' reads them. Set data",
        ),
        (
            ["data={reader: csv, path: a.csv, image: null}"],
            "reader 'csv' has no images with these keys, and tower 'image' reads them. Set"
            " data.image",
        ),
        (
            ["data={readers: [{reader: csv, path: a.csv}, {reader: images, path: b}]}"],
            "reader 'images' has no captions with these keys",
        ),
        (
            ["data={reader: csv, path: a.csv, per_class: 4}"],
            "reader 'csv' has no labels with these keys, and data.per_class needs them. Set"
            " data.label",
        ),
        (["data={reader: shapes, per_class: 1}"], "is at least 2"),
        (
            ["data={reader: shapes, per_class: 3}", "train.batch_size=64"],
            "3 does not divide train.batch_size, 64",
        ),
        (
            ["data={reader: shapes, per_class: 4, shuffle: false}"],
            "sets its own order, so shuffle: false has no effect",
        ),
        (
            ["data={reader: webdataset, path: a.tar, stream: true, per_class: 4}"],
            "needs random access to samples, but reader 'webdataset' streams here",
        ),
        (
            ["data={reader: shapes, distinct: caption, per_class: 2}", "train.batch_size=4"],
            "distinct: sets the order of samples, and so does per_class",
        ),
        (
            ["data={reader: csv, path: a.csv, caption: null, distinct: caption}"],
            "distinct: reader 'csv' has no captions with these keys. Set data.caption",
        ),
        (
            ["data={reader: webdataset, path: a.tar, stream: true, distinct: caption}"],
            "distinct: needs random access to samples, but reader 'webdataset' streams here",
        ),
        (
            ["data={reader: coco, path: a, distinct: captoin}"],
            "distinct: 'captoin' is a column, and reader 'coco' has none. Did you mean",
        ),
        (
            [
                "data={reader: shapes, distinct: caption}",
                "distillers=[{name: infonce, positives: caption}]",
            ],
            "positives: has no effect: with data.distinct: caption, no two samples of a step",
        ),
        (
            [
                "data={reader: shapes, distinct: color}",
                "distillers=[{name: infonce, positives: color}]",
            ],
            "positives: has no effect: with data.distinct: color, no two samples of a step",
        ),
        (
            [
                "data={reader: csv, path: a.csv, texts: {more: alt}, views: {more: null}}",
            ],
            "'more' is a view and a text. Rename one of them.",
        ),
        (
            [
                "data={reader: csv, path: a.csv, texts: {more: alt}}",
                "distillers=[{name: infonce, student: image@more, teacher: text}]",
            ],
            "student: 'more' is a text of the samples, and tower 'image' reads images.",
        ),
    ],
)
def test_what_the_data_does_not_offer_is_reported(options: list[str], expected: str) -> None:
    found = problems_with(*options)
    assert any(expected in problem for problem in found), found


@pytest.mark.parametrize(
    "options",
    [
        ["data={reader: shapes, per_class: 4}"],
        ["data={reader: csv, path: a.csv, label: kind, per_class: 2}"],
        ["data={reader: webdataset, path: a.tar}"],
        [
            "data={reader: csv, path: a.csv, distinct: product}",
            "distillers=[{name: infonce, positives: author}]",
        ],
        ["data={reader: csv, path: a.csv, caption: null, texts: {a: b}}"],
    ],
)
def test_what_it_offers_is_not(options: list[str]) -> None:
    assert problems_with(*options) == []


VIEWS = """\
towers:
  image: {builder: torchvision, model: resnet18}
  text: {builder: openclip, config: {layers: 2, width: 512, heads: 8}}
distillers:
  - {name: infonce, student: STUDENT, teacher: text}
data:
  reader: shapes
  augment: {name: simclr}
  views: {b: VIEW}
"""


@pytest.mark.parametrize(
    ("student", "view", "expected"),
    [
        ("image", "{name: simclr}", ["r.yaml:9: data.views.b: nothing reads it."]),
        ("image@b", "{name: simclr}", ["r.yaml:8: data.augment: has no effect: no distiller"]),
        # A view that is null borrows the augmentation of the main one.
        ("image@b", "null", []),
        ("[image, image@b]", "{name: simclr}", []),
        # A misspelled name is one line, where it is written.
        ("image@c", "{name: simclr}", ["r.yaml:5: distillers[0].student: no view 'c'."]),
    ],
)
def test_views_and_augmentations_that_nothing_reads_are_refused(student, view, expected):
    found = problems(VIEWS.replace("STUDENT", student).replace("VIEW", view))
    assert len(found) == len(expected)
    assert all(line.startswith(start) for line, start in zip(found, expected, strict=True))


def test_a_view_that_is_read_between_epochs_alone_is_read():
    clusters = "{name: deepcluster, student: image, teacher: image@b}\n  - {name: infonce}"
    first = "{name: infonce, student: STUDENT, teacher: text}"
    assert problems(VIEWS.replace(first, clusters).replace("VIEW", "{name: none}")) == []


MESH = [
    "towers={mesh: {builder: pointnet}}",
    "distillers=[{name: supcon}]",
    "data={reader: meshes, path: models}",
]


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("data.augment={name: points}", None),
        ("data.augment={name: none}", None),
        (
            "data.augment={name: standard}",
            "data.augment.name: 'standard' changes images, and tower 'mesh' reads meshes of this"
            " view. Write points or none, or give the tower a view of its own.",
        ),
        (
            "data.augment={name: points, size_px: 32}",
            "data.augment.size_px: has no effect: tower 'mesh' reads meshes of this view. Remove"
            " it.",
        ),
        (
            "data.augment={name: none, mask: {name: random}}",
            "data.augment.mask: has no effect: tower 'mesh' reads meshes of this view. Remove it.",
        ),
        (
            "data.points=512",
            "reader 'meshes' samples 512 points of each mesh, and tower 'mesh' reads"
            " 1024. Raise data.points, or lower towers.mesh.points.",
        ),
        (
            "data={reader: classification, path: photos}",
            "data.reader: reader 'classification' has no meshes with these keys, and tower 'mesh'"
            " reads them. Take another reader.",
        ),
    ],
)
def test_what_a_mesh_tower_reads_is_of_meshes(option: str, expected: str | None) -> None:
    lines = problems_with(*MESH, option)
    assert lines == [] if expected is None else expected in lines


def test_an_augmentation_of_points_is_not_for_images() -> None:
    lines = problems_with("data.augment={name: points}")
    assert any("'points' changes meshes, and tower 'image' reads images" in line for line in lines)


@pytest.mark.parametrize("name", ["triplet", "supcon", "multi_similarity"])
def test_rows_of_one_output_are_compared_by_labels_that_the_data_must_have(name: str) -> None:
    photos = ["towers={image: {builder: torchvision, model: resnet18}}"]
    photos.append("data={reader: images, path: photos}")
    lines = problems_with(*photos, f"distillers=[{{name: {name}}}]")
    assert lines == [
        f"distillers[0]: distiller '{name}' needs labels, and reader 'images' has none with these"
        " keys. Take another reader."
    ]
    two = f"distillers=[{{name: {name}, student: [image, image@second]}}]"
    assert problems_with(*photos, two, "data.views={second: null}") == []
