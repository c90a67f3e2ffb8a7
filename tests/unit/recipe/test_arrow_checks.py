"""Sides that do not exist, do not fit, or from which nothing learns."""

from __future__ import annotations

import pytest

from tests.support.recipes import problems

TOWERS = """\
towers:
  image: {builder: torchvision, model: resnet18, heads: {project: {name: linear, width: 8}}}
  image_key: {follows: image}
  text: {builder: openclip, config: {layers: 2, width: 64, heads: 2}}
"""
DATA = """\
data:
  reader: csv
  path: pairs.csv
  texts: {answer: reply}
  views: {local: {name: simclr, copies: 3}, second: null}
"""
PROJECTED = "{name: simreg, student: image.project, teacher: image_key.project@second}"


def lines(*distillers: str, towers: str = TOWERS, data: str = DATA, more: str = "") -> list[str]:
    listed = "".join(f"  - {each}\n" for each in distillers)
    found = problems(f"{towers}distillers:\n{listed}{data}{more}")
    # Few of these recipes read both views, which is the claim of test_data_checks.py.
    return [line for line in found if ": nothing reads it. Write TOWER@" not in line]


def with_text(*distillers: str) -> list[str]:
    """With what makes both towers and the head take part."""
    return lines(*distillers, "{name: infonce}", PROJECTED)


@pytest.mark.parametrize(
    ("distiller", "expected"),
    [
        ("{name: infonce, student: imag}", "student: no tower 'imag'. Did you mean 'image'?"),
        (
            "{name: infonce, student: image.projekt}",
            "student: tower 'image' has no output 'projekt'. Did you mean 'project'? Outputs:"
            " backbone, tokens, head, project.",
        ),
        (
            "{name: infonce, student: image_key.projekt}",
            "student: tower 'image_key' has no output 'projekt'. Did you mean 'project'?",
        ),
        (
            "{name: infonce, student: image@locl.1}",
            "student: no view 'locl'. Did you mean 'local'? Known: local, second.",
        ),
        (
            "{name: simcse, student: text, teacher: text@anser}",
            "teacher: no view or text 'anser'. Did you mean 'answer'? Known: local, second,",
        ),
        (
            "{name: infonce, student: image@local.4, teacher: text}",
            "student: view 'local' has 3 pictures, and 'image@local.4' is beyond. Set copies: 4"
            " there, or write a number up to 3.",
        ),
        (
            "{name: infonce, student: image@second.2, teacher: text}",
            "student: view 'second' has 1 picture, and 'image@second.2' is beyond.",
        ),
        (
            "{name: simcse, student: text, teacher: text@local}",
            "teacher: view 'local' has 3 pictures of each image, and tower 'text' reads texts."
            " Give the copies to another view, or read another view.",
        ),
        (
            "{name: infonce, student: image, teacher: image@answer}",
            "teacher: 'answer' is a text of the samples, and tower 'image' reads images. Name a"
            " view.",
        ),
        (
            "{name: simreg, student: image@local, teacher: [text, text]}",
            "teacher: 3 students and 2 teachers do not pair up. Give one teacher for each student,"
            " or one for all.",
        ),
        (
            "{name: cross_entropy, num_classes: 3, student: image, teacher: text}",
            "teacher: distiller 'cross_entropy' has no teacher. Remove it.",
        ),
        (
            "{name: affinity, student: [image, text, text], teacher: [image, text]}",
            "student: distiller 'affinity' takes 2 addresses here, got 3.",
        ),
        (
            "{name: simcse, student: text, teacher: [text@second, text@answer, text]}",
            "teacher: distiller 'simcse' takes one address or 2 addresses here, got 3.",
        ),
        (
            "{name: infonce, student: image.tokens, teacher: text}",
            "student: distiller 'infonce' takes rows here; 'image.tokens' has positions.",
        ),
        ("{name: infonce, student: []}", "student: an empty list names no output."),
    ],
)
def test_a_side_that_does_not_fit_is_one_line(distiller: str, expected: str) -> None:
    (line,) = with_text(distiller)
    assert line.startswith(f"r.yaml:6: distillers[0].{expected}")


@pytest.mark.parametrize(
    "distiller",
    [
        "{name: simreg, student: image.tokens, teacher: image_key.tokens@second}",
        "{name: simreg, student: image.project@local, teacher: image_key.project@second}",
        "{name: simreg, student: image@local.2-3, teacher: [image@local.1, image]}",
        "{name: dino, num_prototypes: 8, student: [image, image@local], teacher: image_key}",
        "{name: simcse, student: text, teacher: [text@second, text@answer]}",
        "{name: compress, queue_size: 8, student: [image, image_key], teacher: text}",
    ],
)
def test_sides_of_every_form_are_fine(distiller: str) -> None:
    assert with_text(distiller) == []


def test_a_name_that_is_a_view_and_a_text_is_refused() -> None:
    (line,) = lines(
        "{name: infonce}", PROJECTED, data=DATA.replace("texts: {answer:", "texts: {local:")
    )
    assert line == "r.yaml:12: data.views.local: 'local' is a view and a text. Rename one of them."


@pytest.mark.parametrize("name", ["input", "tokens", "backbone", "main"])
def test_reserved_names_are_not_views(name: str) -> None:
    data = DATA.replace("second: null", f"second: null, {name}: null")
    (line,) = lines("{name: infonce}", PROJECTED, data=data)
    assert line.endswith("is none of main, input, backbone, tokens, layers.")


def test_a_trained_teacher_of_one_way_distillers_gets_no_gradient_and_is_refused() -> None:
    assert lines("{name: simreg, student: image.project, teacher: text}") == [
        "r.yaml:4: towers.text: would be trained, but gets no gradient: it is only the teacher of"
        " 'simreg', which detaches it. Set train: none."
    ]


def test_a_teacher_that_also_learns_elsewhere_is_fine() -> None:
    assert lines("{name: simreg, student: image.project, teacher: text}", "{name: infonce}") == []
    assert lines("{name: vicreg, student: image.project, teacher: text}") == []


@pytest.mark.parametrize(
    ("distiller", "expected"),
    [
        (
            "{name: simreg, student: image_key, teacher: image}",
            "distillers[0].student: tower 'image_key' follows another and is not trained itself, so"
            " it cannot be the student.",
        ),
        (
            "{name: simreg, student: [image, image_key], teacher: text}",
            "distillers[0].student: tower 'image_key' follows another and is not trained itself, so"
            " it cannot be the student.",
        ),
    ],
)
def test_a_call_whose_student_only_follows_is_refused(distiller: str, expected: str) -> None:
    assert with_text(distiller) == [f"r.yaml:6: {expected}"]


def test_labels_and_targets_that_no_reader_offers_are_reported_at_the_distiller() -> None:
    (line,) = with_text("{name: cross_entropy, num_classes: 3}")
    assert line == (
        "r.yaml:6: distillers[0]: distiller 'cross_entropy' needs labels, and reader 'csv' has none"
        " with these keys. Set data.label, or take another reader."
    )
    labeled = DATA.replace("pairs.csv\n", "pairs.csv\n  label: kind\n")
    both = ("{name: cross_entropy, num_classes: 3}", "{name: infonce}", PROJECTED)
    assert lines(*both, data=labeled) == []


MASKED = """\
towers:
  image:
    builder: timm
    model: vit_tiny_patch16_224
    masks: replace
    heads: {patch: {name: linear, width: 8, reads: tokens, at: hidden}}
  image_key: {follows: image}
distillers:
  - {name: NAME, student: image.patch, teacher: image_key.patch}
data: {reader: shapes, augment: {name: simclr, mask: MASK}}
"""
VARIES = "{name: block, share: [0.1, 0.5]}"


@pytest.mark.parametrize(
    ("name", "mask", "expected"),
    [
        ("ibot", VARIES, None),
        ("ibot", "{name: random}", None),
        ("simreg", "{name: random}", None),
        (
            "simreg",
            VARIES,
            "student: distiller 'simreg' takes rows or positions here; 'image.patch' has a varying"
            " number of positions.",
        ),
        (
            "seed",
            "{name: random}",
            "student: distiller 'seed' takes rows here; 'image.patch' has positions.",
        ),
    ],
)
def test_selected_positions_go_where_any_number_of_them_is_taken(
    name: str, mask: str, expected: str | None
) -> None:
    found = problems(MASKED.replace("NAME", name).replace("MASK", mask))
    assert found == ([] if expected is None else [f"r.yaml:9: distillers[0].{expected}"])


def test_rows_do_not_go_where_positions_are_taken() -> None:
    (line,) = with_text("{name: ibot, student: image, teacher: image_key@second}")
    assert line.endswith(
        "student: distiller 'ibot' takes selected positions here; 'image' has rows."
    )


def test_inner_layers_of_meshes_are_refused():
    towers = "towers:\n  mesh: {builder: pointnet}\n  copy: {builder: pointnet, train: none}\n"
    reads = "{name: simreg, student: mesh.layers.0.pooled, teacher: copy.layers.0.pooled}"
    (line, _) = lines(reads, towers=towers, data="data: {reader: meshes, path: models}\n")
    assert "student: tower 'mesh' reads meshes, whose layers are not read one by one." in line
