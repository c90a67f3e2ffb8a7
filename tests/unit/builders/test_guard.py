from __future__ import annotations

import json

import pytest

from vlkd_cli.builders.guard import of_tower, one_line
from vlkd_cli.errors import MissingPackageError, RecipeError, WeightsError


def test_what_a_library_raises_becomes_one_line() -> None:
    with pytest.raises(RecipeError) as error, one_line("model 'x'", "Correct `config`."):
        raise KeyError("gelu\nand more")
    assert str(error.value) == "model 'x': KeyError: 'gelu\\nand more'. Correct `config`."
    with pytest.raises(WeightsError) as error, one_line("x", "Replace it.", WeightsError):
        raise ValueError("\x1b[31mfirst:\x1b[0m\nsecond")
    assert str(error.value) == "x: first. Replace it."


def test_a_one_line_message_stays_as_it_is() -> None:
    with pytest.raises(WeightsError, match="^as it is$"), one_line("model 'x'", "Correct it."):
        raise WeightsError("as it is")


def test_the_tower_is_named_once() -> None:
    with pytest.raises(WeightsError, match="^tower 'text': no file$"), of_tower("text"):
        raise WeightsError("no file")
    with pytest.raises(RecipeError, match="^tower 'text' has no head$"), of_tower("text"):
        raise RecipeError("tower 'text' has no head")
    with pytest.raises(MissingPackageError, match="^tower 'text': builder 'timm' needs"):
        with of_tower("text"):
            raise MissingPackageError("builder 'timm'", "timm")


def test_mistakes_of_a_library_are_one_line_and_ours_keep_their_traceback() -> None:
    with pytest.raises(RecipeError, match="^tower 'text': Expecting value.*choose another model"):
        with of_tower("text"):
            json.loads("no json")
    from vlkd_cli.builders.padding import pad

    with pytest.raises(TypeError), of_tower("text"):
        pad(None)  # type: ignore[arg-type]
