"""Keys read from a constructor's signature without importing its module."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import Literal

import pytest

from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.messages import described_type
from vlkd_cli.recipe.params import Source, described, module_file, read_class, signature_of
from vlkd_cli.recipe.types import Schedule

COMPONENT = '''
"""A file that cannot be imported."""
from __future__ import annotations
import a_package_that_is_not_there
from typing import Literal
from collections.abc import Sequence
from vlkd_cli.recipe.types import NonNegative, Schedulable

Protocol = Literal["batch", "layer"]
HALF = 1 / 2

class Base:
    """The base's words."""
    modalities = frozenset({"text"})
    direction: str = "one_way"
    def __init__(self, *, from_base: int = 3) -> None: ...

class Mine(Base):
    """What it does.

    Args:
        width: how wide,
            in numbers.
        low, high: the bounds.

    Source: nowhere.
    """
    direction = "symmetric"
    def __init__(self, width_in: int, *, width: int, norm: Protocol | None = None,
                 low: NonNegative = HALF, high: Schedulable = 1e-3,
                 names: Sequence[str] = ("a", "b"),
                 other: float = a_package_that_is_not_there.X) -> None:
        self.register_buffer("middle", None)
        self.bias = Parameter(0)
        self.register_buffer("bias", None)
        self.queue = AnchorQueue(3)

class Heir(Base):
    pass
'''


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "component.py"
    path.write_text(COMPONENT)
    return path


def test_keys_have_types_defaults_and_descriptions(file):
    signature = read_class(file, "component", "Mine")
    keys = {key.name: key for key in signature.keys}
    assert list(keys) == ["width", "norm", "low", "high", "names", "other"]
    assert keys["width"].required
    assert not keys["norm"].required
    assert keys["norm"].annotation == Literal["batch", "layer"] | None
    assert keys["low"].default == 0.5
    assert keys["high"].annotation == float | Schedule
    assert keys["names"].default == ("a", "b")
    assert keys["other"].default == Source("a_package_that_is_not_there.X")
    assert keys["width"].description == "how wide, in numbers."
    assert keys["low"].description == keys["high"].description == "the bounds."


def test_class_attributes_come_from_the_bases_too(file):
    assert read_class(file, "component", "Mine").attributes == {
        "modalities": frozenset({"text"}),
        "direction": "symmetric",
    }


def test_a_class_without_constructor_has_its_base_s_keys_and_words(file):
    signature = read_class(file, "component", "Heir")
    assert [key.name for key in signature.keys] == ["from_base"]
    assert signature.docstring == "The base's words."


def test_state_is_buffers_and_queues_without_learned_parameters(file):
    assert read_class(file, "component", "Mine").state == ("middle", "queue")


def test_attributes_are_followed_into_other_files_of_vlkd():
    assert signature_of("distiller", "feature_distance").attributes["minimum_batch"] == 1
    assert signature_of("distiller", "infonce").attributes["minimum_batch"] == 2


def test_keys_that_a_base_describes_are_described():
    keys = {key.name: key for key in signature_of("distiller", "siglip").keys}
    assert keys["logit_bias"].description.startswith("initial bias of the logits")
    assert keys["logit_scale"].description.startswith("initial factor on the cosines")
    assert signature_of("distiller", "relational_kl").keys[0].default == 1 / 0.07


def test_a_missing_class_is_reported(file):
    with pytest.raises(RecipeError, match="component has no class 'Nobody'"):
        read_class(file, "component", "Nobody")


def test_reading_signatures_imports_nothing():
    script = """
    import sys
    from vlkd_cli.recipe.params import signature_of
    assert signature_of("distiller", "infonce").key_names()
    assert signature_of("builder", "torchvision").key_names()
    assert "torch" not in sys.modules, "torch"
    assert "vlkd_cli.distillers" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)


class ThirdParty:
    """A component of another package.

    Args:
        size: how many.
    """

    takes = "pair"

    def __init__(self, *, size: int = 3, mode: Literal["a", "b"] = "a") -> None:
        self.size = size


def test_a_third_party_s_component_is_inspected():
    signature = signature_of("distiller", f"{__name__}:ThirdParty")
    assert [(key.name, key.annotation, key.default) for key in signature.keys] == [
        ("size", int, 3),
        ("mode", Literal["a", "b"], "a"),
    ]
    assert signature.keys[0].description == "how many."
    assert signature.attributes["takes"] == "pair"


def test_a_third_party_s_missing_module_or_class_is_reported():
    with pytest.raises(
        RecipeError, match="no module 'nowhere_to_be_found'. Install the package it lives in."
    ):
        signature_of("distiller", "nowhere_to_be_found:X")
    with pytest.raises(RecipeError, match="has no 'Nobody'"):
        signature_of("distiller", f"{__name__}:Nobody")


def test_modules_are_found_without_importing_their_parents():
    assert module_file("torch.optim").name == "__init__.py"
    assert module_file("vlkd_cli.errors").name == "errors.py"
    assert module_file("vlkd_cli.nothing") is None
    assert module_file("nowhere_to_be_found.x") is None


def test_arguments_end_where_the_margin_ends():
    text = """One.

    Args:
        a: first: with a colon.
        b: second
           continues.

    Source: c: not an argument.
    """
    assert described(text) == {"a": "first: with a colon.", "b": "second continues."}


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "an integer"),
        (float | None, "a number or null"),
        (list[str], "a list of text"),
        (tuple[float, float], "a list of 2: a number, a number"),
        (tuple[int, ...], "a list of integers"),
        (dict[str, float], "a mapping of names to numbers"),
        (Literal["a", 2], "'a' or 2"),
        (bool | str, "true or false or text"),
        (
            float | Schedule,
            (
                "a number or a schedule ({linear: [first, last]}, or cosine or jump, with epochs or"
                " steps)"
            ),
        ),
    ],
)
def test_types_in_words(annotation, words):
    assert described_type(annotation) == words
