"""What a distiller's signature means, read from its source."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.contract import Contract, Form, Output, contract_of, form_for

HEADER = """
from __future__ import annotations
from collections.abc import Sequence
from typing import Any
from jaxtyping import Float, Int
from torch import Tensor, nn
from vlkd_cli.distillers.distiller import Distiller, Widths
from vlkd_cli.distillers.infonce import InfoNCE as Base
from vlkd_cli.distillers.similarity import Pair
from vlkd_cli.recipe.types import Progress

Views = Float[Tensor, "B D"] | Sequence[Float[Tensor, "B D"]]
"""
ROWS = 'Float[Tensor, "B D"]'


NUMBERS = itertools.count(1)


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The contract of a class with the given methods, in a module of its own."""
    monkeypatch.syspath_prepend(tmp_path)

    def read(*methods: str, base: str = "Distiller") -> Contract:
        # Names of folders come again, and sources are read once.
        module = f"contract_{next(NUMBERS)}"
        body = "".join(f"    {method}: ...\n" for method in methods)
        text = f"{HEADER}\nclass Own({base}):\n    direction = 'one_way'\n{body}"
        (tmp_path / f"{module}.py").write_text(text)
        return contract_of(f"{module}:Own")

    return read


def single(kind: str, width: str = "D") -> Form:
    return Form((Output(kind, width),))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("annotation", "forms"),
    [
        (ROWS, [single("rows")]),
        ('Float[Tensor, "B T D"]', [single("positions")]),
        ('Float[Tensor, "... D"]', [single("either")]),
        ('Float[Tensor, "M D"]', [single("selected")]),
        ('Float[Tensor, "B _"]', [single("rows", "_")]),
        (f"Sequence[{ROWS}]", [Form((Output("rows", "D"),), repeats=True)]),
        (f"list[{ROWS}]", [Form((Output("rows", "D"),), repeats=True)]),
        (
            f'tuple[{ROWS}, Float[Tensor, "B C"]]',
            [Form((Output("rows", "D"), Output("rows", "C")), is_tuple=True)],
        ),
        ("Views", [single("rows"), Form((Output("rows", "D"),), repeats=True)]),
        ("Pair", [Form((Output("rows", "_"), Output("rows", "_")), is_tuple=True)]),
        ("Tensor", [single("either", "_")]),
        ("Any", [single("either", "_")]),
    ],
)
def test_annotations_are_forms_with_aliases_resolved(read, annotation, forms):
    assert list(read(f"def forward(self, student: {annotation})").student) == forms


def test_no_teacher_an_optional_one_and_a_needed_one(read):
    none = read(f"def forward(self, student: {ROWS})")
    assert (none.takes_teacher, none.needs_teacher) == (False, False)
    optional = read(f"def forward(self, student: {ROWS}, teacher: {ROWS} | None = None)")
    assert (optional.takes_teacher, optional.needs_teacher) == (True, False)
    needed = read(f"def forward(self, student: {ROWS}, teacher: {ROWS})")
    assert (needed.takes_teacher, needed.needs_teacher) == (True, True)


def test_an_episode_may_have_a_teacher_that_no_step_has(read):
    contract = read(
        f'def forward(self, student: {ROWS}, *, indices: Int[Tensor, "B"])',
        f"def start_episode(self, teacher: {ROWS}, *, indices: Any, progress: Progress)",
        "def setup(self, student: Widths, teacher: Widths | None, *, num_rows: int)",
    )
    assert contract.teacher == () and contract.needs_teacher and contract.counts_rows
    assert contract.episode == {"teacher": (single("rows"),)}
    assert contract.forms("teacher") == (single("rows"),)


def test_keyword_only_names_are_wanted_and_needed_without_a_default(read):
    contract = read(
        f'def forward(self, student: {ROWS}, *, labels: Int[Tensor, "B"],'
        " progress: Progress = Progress())"
    )
    assert dict(contract.wants) == {"labels": True, "progress": False}
    assert not contract.counts_rows


def test_methods_of_bases_count(read):
    assert read(base="Base").student == contract_of("infonce").student


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            f"def forward(self, student: {ROWS}, teacher: {ROWS}, context: Any = None)",
            "forward: 'context' is neither a side nor keyword-only. Other arguments go after"
            " the *: labels, targets, caption_keys, columns, negatives, indices, samples,",
        ),
        (f"def forward(self, features: {ROWS})", "'features' is neither a side nor"),
        (f"def forward(self, teacher: {ROWS})", "its first argument is not `student`."),
        (
            f"def forward(self, student: {ROWS}, *, weights: Tensor)",
            "unknown argument 'weights'; known: labels, targets, caption_keys, columns,"
            " negatives, indices, samples, progress.",
        ),
        ("def forward(self, student: Unheard)", "the annotation of 'student' cannot be read"),
    ],
)
def test_other_signatures_are_refused_in_a_line_with_their_place(read, method, message):
    with pytest.raises(RecipeError) as error:
        read(method)
    assert message in str(error.value)
    assert ".py:" in str(error.value) and "\n" not in str(error.value)


def test_the_number_of_addresses_chooses_a_single_output_first():
    one, two = single("rows"), Form((Output("rows", "D"),) * 2, is_tuple=True)
    many = Form((Output("rows", "D"),), repeats=True)
    assert form_for([many, one], 1) is one
    assert form_for([one, two], 2) is two
    assert form_for([one, two], 3) is None
    assert form_for([many], 1) is many
    assert many.of(3) == (Output("rows", "D"),) * 3


def test_only_single_outputs_pair_up():
    assert contract_of("infonce").pairs and contract_of("cross_entropy").pairs
    assert not contract_of("simcse").pairs and not contract_of("dino").pairs


def test_contracts_are_read_without_torch():
    code = (
        "import sys; from vlkd_cli.recipe.contract import contract_of; contract_of('protoclip');"
        " assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
