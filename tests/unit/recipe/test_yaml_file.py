"""YAML with line numbers, plain scalars and variables."""

from __future__ import annotations

import pytest

from vlkd_cli.recipe.yaml_file import plain_values, read_document


def value_of(text: str) -> object:
    document = read_document(text, "a.yaml")
    assert document.problems == []
    return document.value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-4", 1e-4),
        ("1.0e-5", 1e-5),
        ("5E3", 5000.0),
        (".5", 0.5),
        ("-3.", -3.0),
        ("2_000_000", 2_000_000),
        ("0x10", 16),
        ("010", 10),
        ("-7", -7),
        ("true", True),
        ("null", None),
        ("~", None),
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("e5", "e5"),
        ("1.2.3", "1.2.3"),
        ("'1e-4'", "1e-4"),
        ('"true"', "true"),
        (".inf", float("inf")),
        ("_1", "_1"),
    ],
)
def test_scalars_are_read_as_people_mean_them(text, expected):
    read = value_of(f"a: {text}")["a"]
    assert read == expected
    assert type(read) is type(expected)


def test_every_place_knows_its_line():
    document = read_document("a:\n  b: 1\n  c:\n    - x\n    - d: 2\n", "a.yaml")
    lines = {
        ".".join(map(str, path)): int(origin.removeprefix("a.yaml:"))
        for path, origin in document.origins.items()
    }
    assert lines == {"": 1, "a": 1, "a.b": 2, "a.c": 3, "a.c.0": 4, "a.c.1": 5, "a.c.1.d": 5}


def test_a_key_written_twice_names_both_lines():
    document = read_document("a:\n  b: 1\n  c: 2\n  b: 3\n", "a.yaml")
    (problem,) = document.problems
    assert (problem.path, problem.text) == (
        ("a", "b"),
        "written twice, first in line 2. Remove one of the two.",
    )
    assert document.origins["a", "b"] == "a.yaml:4"


def test_variables_are_filled_in(monkeypatch):
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.setenv("EPOCHS", "3")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("NOT_SET", raising=False)
    text = (
        "{path: '${DATA}/x.csv', epochs: ${EPOCHS}, quoted: '${EPOCHS}', lr: ${NOT_SET:-1e-3},"
        " none: '${NOT_SET:-}', empty: '${EMPTY:-7}'}"
    )
    assert value_of(text) == {
        "path": "/data/x.csv",
        "epochs": 3,
        "quoted": "3",
        "lr": 1e-3,
        "none": "",
        "empty": "7",
    }


def test_a_variable_that_is_not_set_is_a_problem_at_its_line(monkeypatch):
    monkeypatch.delenv("NOT_SET", raising=False)
    document = read_document("a:\n  b: ${NOT_SET}/x\n", "a.yaml")
    (problem,) = document.problems
    assert (problem.path, problem.text) == (
        ("a", "b"),
        "the environment variable NOT_SET is not set. Set it, or write ${NOT_SET:-default}.",
    )
    assert document.origins["a", "b"] == "a.yaml:2"


def test_anchors_and_merges_work_and_own_keys_win():
    assert value_of("base: &b {x: 1, y: 2}\nmore: {<<: *b, y: 3}\nsame: *b\n") == {
        "base": {"x": 1, "y": 2},
        "more": {"x": 1, "y": 3},
        "same": {"x": 1, "y": 2},
    }


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        (
            "a: 1\nb: [1, 2\n",
            3,
            (
                "not valid YAML: expected ',' or ']', but got '<stream end>', while parsing a flow"
                " sequence."
            ),
        ),
        ("a: 1\n  b: 2\n", 2, "not valid YAML: mapping values are not allowed here."),
        ("a: *none\n", 1, "not valid YAML: found undefined alias 'none'."),
        ("a: &x [*x]\n", 1, "not valid YAML: an anchor that contains itself."),
        ("? [1, 2]\n: 3\n", 1, "not valid YAML: a key that is not a plain word."),
        ("a: !!python/object:os.system x\n", 1, None),
    ],
)
def test_bad_yaml_is_one_problem_with_its_line(text, line, expected):
    document = read_document(text, "a.yaml")
    assert document.value is None
    assert document.origins[()] == f"a.yaml:{line}"
    assert expected is None or document.problems[0].text == expected


def test_control_characters_are_one_problem():
    document = read_document("a: \x00\n", "a.yaml")
    assert document.problems[0].text == "not valid YAML: character 3 is not allowed in a YAML file."


def laughs() -> str:
    """Nine aliases of nine aliases, twelve times: 9**12 values from 600 letters."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 12):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (laughs(), "more than 50,000 values."),
        (
            "a: &a {k: 1, l: 2}\nb: {<<: [" + "*a, " * 26_000 + "*a]}",
            "merges more than 50,000 keys.",
        ),
        ("a: [" + "1, " * 51_000 + "1]", "more than 50,000 values."),
        ("[" * 2_000 + "]" * 2_000, "nested more than 64 levels deep."),
        ("{a: " * 2_000 + "1" + "}" * 2_000, "nested more than 64 levels deep."),
        ("".join(" " * depth + "a:\n" for depth in range(100)), "nested more than 64 levels deep."),
        ("- " * 3_000 + "x", "nested more than 64 levels deep."),
        ("a: " + "9" * 5_000, "cannot be read as int."),
        ("a: 0x_", "'0x_' cannot be read as int."),
        ("a: !!float abc", "'abc' cannot be read as float."),
        ("a: !!bool abc", "'abc' cannot be read as bool."),
        ("a: !!timestamp foo", "'foo' cannot be read as timestamp."),
        ("a: !!binary aGk=", "no values of type tag:yaml.org,2002:binary."),
        ("a: !!python/object/apply:os.system [x]", "python/object/apply:os.system."),
        ("a: &a {<<: *a}", "an anchor that contains itself."),
        ("a: {<<: 5}", "`<<` merges mappings only."),
        ("a: " + "x" * 500_000, "500,003 characters; a recipe has at most 500,000."),
    ],
    ids=lambda text: text[-24:],
)
def test_what_would_cost_time_or_memory_is_one_line(text, message):
    (problem,) = read_document(text, "a.yaml").problems
    assert problem.text.endswith(message)


@pytest.mark.parametrize(
    "text",
    [
        laughs(),
        "a: &a {b: *a}",
        "[" * 2_000,
        "a: " + "9" * 5_000,
        "a: !!bool abc",
        "a: !!python/object/apply:os.system [x]",
        "? [a]\n: 1",
        "a: \x00",
        "a: " + "x" * 500_000,
    ],
    ids=lambda text: text[:24],
)
def test_values_of_a_damaged_or_hostile_file_are_a_value_error(text):
    with pytest.raises(ValueError):
        plain_values(text)


def test_plain_values_are_those_of_a_recipe_with_variables_as_written():
    text = "a: &a {k: 1e-4, l: 'no'}\nb:\n- *a\n- ${HOME}\n- 2024-01-01\n"
    one = {"k": 1e-4, "l": "no"}
    assert plain_values(text) == {"a": one, "b": [one, "${HOME}", "2024-01-01"]}


def test_aliases_and_merges_of_usual_size_are_read():
    text = "a: &a {k: 1, l: 2}\nb: &b {<<: *a, l: 3}\nc: {<<: [*b, *a], m: *b}\n"
    assert value_of(text) == {
        "a": {"k": 1, "l": 2},
        "b": {"k": 1, "l": 3},
        "c": {"k": 1, "l": 3, "m": {"k": 1, "l": 3}},
    }


def test_letters_that_stand_for_variables_inside_are_text():
    assert value_of("a: \ue0005\ue001") == {"a": "\ue0005\ue001"}
