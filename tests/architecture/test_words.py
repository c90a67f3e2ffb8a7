"""Messages, docstrings, comments, pages and the names of functions are written in the words of the
field, in American spelling: words that were replaced do not come back."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

WORDS = {
    r"beside": "next to, in addition to",
    r"anew": "again",
    r"misfits?": "mismatch",
    r"twofold": "duplicate",
    r"whoever": "anyone who",
    r"mend(s|ed|ing)?": "fix",
    r"whole numbers?": "integer",
    r"headlines?": "primary metric",
    r"go(es|ing)? on|went on": "resume, continue",
    r"kept|keeps": "cached, stored, saved; a thing that keeps its value: stays",
    r"drawn|drew": "rendered, sampled, loaded, initialized",
    r"stands|stood": "appears, is; stands for: means, represents",
    r"told|said|says|saying": "reported, raised, named, defined",
    r"tells|telling": "distinguishes, shows, determines",
    r"in (its|their|the) place": "instead, replaces",
    r"no place for": "cannot hold",
    r"pulls? towards": "decay",
    r"shares? of": "fraction of",
    r"brought to unit length": "L2-normalized",
    r"(?<!there )(is|are) no(?! longer| more| other| larger) [a-z]+": "is not a",
    r"what (it )?learns": "trainable parameters",
    r"(un)?(colou?red pictures|labelled|labelling)": "labeled",
    r"\w*(colour|favour|neighbour|behaviour|honour)\w*": "American spelling: color",
    r"(un)?\w*(normalis|initialis|regularis|generalis|standardis|tokenis|synchronis)\w*": "-ize",
    r"optimis(e|ed|er|ers|ation|ing)": "optimize",
    r"(un)?(centre[ds]?|centring|grey\w*|learnt|judgements?|licences?|(mis)?spelt)": "center, gray",
}
"""Replaced word, as a pattern between word boundaries -> what to write instead."""

EXCEPTIONS = {
    ("vlkd_cli/data/readers/shapes.py", "beside"): "a variable inside a string",
    ("vlkd_cli/data/readers/shapes.py", "centre"): "a word of the rendered captions",
    ("vlkd_cli/data/readers/shapes.py", "grey"): "a word of the rendered captions",
    ("vlkd_cli/builders/backbone.py", "beside"): "a value in exported files",
    ("vlkd_cli/builders/adapters/builder.py", "beside"): "a value in exported files",
    ("vlkd_cli/towers/whole/sentence.py", "beside"): "a value in exported files",
    ("vlkd_cli/elevater/predictions.py", "beside"): "a variable inside a string",
    ("vlkd_cli/reports/table.py", "headline"): "a former value of an option",
    ("vlkd_cli/engine/launching/start_table.py", "headline"): "a former value of an option",
    ("vlkd_cli/evaluation/suites/sts.py", "headlines"): "the name of a subset of STS",
    ("tests/support/text_folders.py", "headlines"): "the name of a subset of STS",
    ("tests/golden/test_search_tuning.py", "first_points_before_normalising"): "a golden's key",
    ("tests/golden/test_soups.py", "kept"): "a golden's key",
    ("tests/golden/test_ssl.py", "normaliser"): "a golden's key",
    ("tests/unit/heads/test_masked_heads.py", "normalise"): "a golden's key",
    ("tests/unit/builders/pointnet/test_sizes.py", "centres"): "a spelling that is understood",
    ("tests/unit/builders/pointnet/test_sizes.py", "neighbours"): "a spelling that is understood",
    ("tests/unit/commands/test_export.py", "beside"): "a value in exported files",
    ("tests/unit/towers/test_export.py", "beside"): "a value in exported files",
    ("tests/unit/reports/test_table.py", "headline"): "a former value of an option",
}
"""(File, word) that stays, and why."""

NAMING_THEM = {
    "vlkd_cli/recipe/former_names.py",
    "tests/unit/recipe/test_former_names.py",
    "tests/architecture/test_words.py",
    "CHANGELOG.md",
}
"""Files about former keys and replaced words."""

CODE = ["vlkd_cli", "tests", "benchmarks"]
PAGES = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/**/*.md", "recipes/**/*.yaml"]
PATTERN = re.compile("|".join(rf"\b({pattern})\b" for pattern in WORDS), re.IGNORECASE)


def prose_of(file: Path) -> Iterator[tuple[int, str]]:
    """(Line number, text) of what a person reads: pages whole; of code its strings and comments and
    the names of functions and classes as words."""
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".py":
        yield from enumerate(text.splitlines(), start=1)
        return
    kinds = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", None)}
    before = ""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in kinds:
            yield from enumerate(token.string.splitlines(), start=token.start[0])
        elif before in ("def", "class"):
            yield token.start[0], token.string.replace("_", " ")
        before = token.string


def found_in(file: Path) -> list[str]:
    name = file.relative_to(ROOT).as_posix()
    return [
        f"{name}:{number}: '{match[0]}'"
        for number, line in prose_of(file)
        for match in PATTERN.finditer(line)
        if (name, match[0].lower()) not in EXCEPTIONS
    ]


def test_replaced_words_do_not_come_back():
    files = [
        *(file for folder in CODE for file in sorted((ROOT / folder).rglob("*.py"))),
        *(file for pattern in PAGES for file in sorted(ROOT.glob(pattern))),
    ]
    files = [file for file in files if file.relative_to(ROOT).as_posix() not in NAMING_THEM]
    assert len(files) > 1000
    assert [line for file in files for line in found_in(file)] == []


def test_every_exception_is_needed():
    names = {name for name, _ in EXCEPTIONS}
    used = {
        (name, match[0].lower())
        for name in names
        for _, line in prose_of(ROOT / name)
        for match in PATTERN.finditer(line)
    }
    assert set(EXCEPTIONS) <= used


@pytest.mark.parametrize(
    "text", ["lies beside it", "it is no picture", "normalised rows", "a share of it", "Colours"]
)
def test_a_replaced_word_is_found(text):
    assert PATTERN.search(text)


@pytest.mark.parametrize("text", ["there is no picture", "is no longer read", "optimistic"])
def test_other_words_are_not(text):
    assert not PATTERN.search(text)
