"""What answers without torch, and quickly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.recipes import SMALL

SCRIPT = """
import sys
from vlkd_cli.app import main
try:
    main(sys.argv[1:])
except SystemExit as leaving:
    code = leaving.code or 0
libraries = ("torch", "torchvision", "transformers", "open_clip", "timm", "PIL")
slow = [name for name in libraries if name in sys.modules]
print("LOADED", code, *slow)
"""

MISSPELT = SMALL.replace("{name: infonce}", "{name: infonce, logit_scal: 50}")


def answered(*words: str) -> tuple[int, list[str], str]:
    """Exit code, slow modules that were imported, and standard error of `vlkd WORDS`."""
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, *words], capture_output=True, text=True, check=False
    )
    last = result.stdout.rpartition("LOADED ")[2].split()
    assert last, result.stderr
    return int(last[0]), last[1:], result.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("--help",),
        ("--version",),
        ("train", "--help"),
        ("recipes", "list"),
        ("recipes", "check", "quickstart"),
        ("recipes", "schema"),
        ("show", "distiller", "infonce"),
        ("show", "model", "resnet-base"),
        ("list-models", "--task", "text-to-image"),
        ("list-distillers",),
        ("runs", "--help"),
        ("compare", "--help"),
        ("report", "--help"),
        ("encode", "--help"),
        ("search", "--help"),
        ("mine", "--help"),
        ("synthesize", "--help"),
        ("export", "--help"),
    ],
)
def test_looking_things_up_needs_no_torch(words):
    if "list-models" in words:
        answered(*words)  # widths of libraries that are not the pinned ones are then in the cache
    assert answered(*words)[:2] == (0, [])


@pytest.mark.parametrize("command", [("recipes", "check"), ("train",)])
def test_a_misspelled_recipe_is_reported_without_torch(command, tmp_path: Path):
    file = tmp_path / "mine.yaml"
    file.write_text(MISSPELT + "optimzer: {}\n")
    code, slow, stderr = answered(*command, str(file))
    assert (code, slow) == (2, [])
    assert "distillers[0].logit_scal: unknown key. Did you mean 'logit_scale'?" in stderr
    assert "optimzer: unknown key. Did you mean 'optimizer'?" in stderr


def test_help_loads_neither_pydantic_nor_yaml():
    script = (
        "import sys; from vlkd_cli.app import main\ntry: main(['--help'])\nexcept SystemExit:"
        " pass\nassert not {'pydantic', 'yaml', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
