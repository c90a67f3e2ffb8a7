"""Modalities are distinguished in one place: elsewhere code asks their objects and never compares
their names, so that another one is a row there and not a search through the package."""

from __future__ import annotations

import ast

from tests.architecture.test_layers import PACKAGE, source_files
from vlkd_cli.recipe.types import MODALITY_NAMES

OWN_ROOMS = ("builders/", "data/modality.py", "recipe/modality.py")
"""Where they are described, and builders, each of which knows the modalities of its own library."""

OTHER_WORDS = {
    # Where a classifier starts from: texts, or random weights.
    "elevater/run.py": {"start"},
    "evaluation/suites/elevater.py": {"start"},
    # What `vlkd mine --query` searches with.
    "engine/mine.py": {"query"},
    # Names that mteb gives to the parts of its batches.
    "evaluation/mteb_encoder.py": {"in batch"},
    # Members of a sample in tar files.
    "data/files/shard_index.py": {"members"},
}
"""Comparisons with the same words that mean something else, by what is compared."""


def test_names_of_modalities_are_compared_in_their_own_rooms_only():
    wrong = []
    for path in source_files():
        place = path.relative_to(PACKAGE).as_posix()
        if place.startswith(OWN_ROOMS):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare) and _names_a_modality(node):
                comparison = ast.unparse(node)
                if not any(word in comparison for word in OTHER_WORDS.get(place, ())):
                    wrong.append(f"{place}:{node.lineno}: {comparison}")
    assert wrong == []


def _names_a_modality(comparison: ast.Compare) -> bool:
    return any(
        isinstance(part, ast.Constant) and part.value in MODALITY_NAMES
        for side in (comparison.left, *comparison.comparators)
        for part in ast.walk(side)
    )
