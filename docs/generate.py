"""Write the generated parts of README.md and docs/: the recipe reference, tables of components,
and code blocks that show a file of docs/snippets. `make docs` runs it; a test keeps it up to date.

A page marks a generated part with `<!-- table: NAME -->` or `<!-- snippet: FILE -->` on the line
before the table or the code block.
"""

from __future__ import annotations

import ast
import contextlib
import io
import math
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from vlkd_cli import catalog
from vlkd_cli.app import main as run_vlkd
from vlkd_cli.recipe.model_options import section_text
from vlkd_cli.recipe.named_models import NamedModel, named_models
from vlkd_cli.recipe.params import signature_of
from vlkd_cli.recipe.reference import catalogue_page

ROOT = Path(__file__).resolve().parent.parent
SNIPPETS = ROOT / "docs" / "snippets"


def main() -> None:
    """Write every generated page and name those that changed."""
    for path, text in {**generated_snippets(), **generated_pages()}.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"{path.relative_to(ROOT)} written.")


def generated_snippets() -> dict[Path, str]:
    """Files of docs/snippets that hold the output of a command."""
    return {SNIPPETS / "wrong.txt": _errors_of("recipes", "check", "wrong.yaml")}


def generated_pages() -> dict[Path, str]:
    """Every page that has generated parts, as it should be now."""
    pages = {ROOT / "docs" / "catalogue.md": catalogue_page()}
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        if path not in pages:
            pages[path] = filled(path.read_text(encoding="utf-8"))
    return pages


def filled(page: str) -> str:
    """The page with its marked tables and code blocks replaced."""
    page = re.sub(
        r"(<!-- table: (\w+) -->\n\n?)(?:\|.*\n)*",
        lambda match: match[1] + "".join(f"{line}\n" for line in TABLES[match[2]]()),
        page,
    )
    return re.sub(
        r"(<!-- snippet: (\S+) -->\n\n?```\w+\n).*?(?=```$)",
        lambda match: match[1] + (SNIPPETS / match[2]).read_text(encoding="utf-8"),
        page,
        flags=re.DOTALL | re.MULTILINE,
    )


def parts_table() -> list[str]:
    """README's table of what works together."""
    images = "towers that give tokens; `eot` where the end of the text is marked"
    rows = [
        ("image builders", _offering("builder", "image"), "every text builder"),
        ("text builders", _offering("builder", "text"), "every image builder"),
        (
            "mesh builders",
            _offering("builder", "mesh"),
            "every builder, see [meshes](docs/tune_mesh.md)",
        ),
        ("poolers", catalog.names("pooler"), images),
        ("heads", catalog.names("head"), "every tower"),
        (
            "adapters",
            catalog.names("adapter"),
            "every tower (`lora`, `dora`, `vera`, `ia3`), vision transformers (`vpt`), text builder"
            " `adapters` (all but `vpt`), see [adapters](docs/adapters.md)",
        ),
        ("prompts", catalog.names("prompt"), "text towers of `openclip`"),
        (
            "distillers",
            catalog.names("distiller"),
            "any outputs of any towers, several at once, each with a weight; "
            "see [objectives](docs/objectives.md)",
        ),
        ("readers", catalog.names("reader"), "every tower; several readers can be mixed"),
        (
            "augmentations",
            catalog.names("augment"),
            "every reader of images; `points`: readers of meshes",
        ),
        ("masks", catalog.names("mask"), "vision transformers, see [views](docs/recipes.md)"),
        (
            "suites for both towers",
            _suites({"image", "text"}),
            "during a run, after it, or without training",
        ),
        ("suites for image towers", _suites({"image"}), "the same"),
        ("suites for text towers", _suites({"text"}), "the same"),
        ("suites for any tower", _suites(set()), "the same"),
        (
            "scorers",
            catalog.names("scorer"),
            "`vlkd synthesize`, see [synthesize](docs/synthesize.md)",
        ),
        ("sinks", catalog.names("sink"), "every run; the csv is always written"),
    ]
    quoted = [(part, ", ".join(f"`{name}`" for name in names), fits) for part, names, fits in rows]
    return _table(("part", "names", "works with"), quoted)


def suites_table() -> list[str]:
    """Every suite with what it measures and the towers that it needs."""
    rows = [
        (f"`{name}`", entry.summary, ", ".join(sorted(_modalities("suite", name))) or "any")
        for name, entry in catalog.CATALOG["suite"].items()
    ]
    return _table(("suite", "measures", "needs"), rows)


def models_table() -> list[str]:
    """Every model by name with its task and what it expands to."""
    rows = [
        (f"`{model.name}`", ", ".join(model.tasks), model.about, _stands_for(model))
        for model in named_models().values()
    ]
    return _table(("name", "task", "what it is", "expands to"), rows)


def forms_table() -> list[str]:
    """In which forms, and on how many processes, a step of each objective was compared; the
    contract test covers the whole catalogue."""
    text = (ROOT / "tests" / "contracts" / "test_chunks.py").read_text(encoding="utf-8")
    found = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(text).body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id in ("PROCESSES", "FORMS")
    }
    processes = ", ".join(map(str, found["PROCESSES"]))
    rows = [
        (f"`{name}`", *(processes for _ in found["FORMS"])) for name in catalog.names("distiller")
    ]
    return _table(("processes", *found["FORMS"]), rows)


def fits_table() -> list[str]:
    """The largest batches and models on some machines, from the peaks in performance.md."""
    machines = {
        "one card of 24 GiB": (24, 1),
        "one node of 8 x 80 GiB": (80, 8),
        "16 nodes of 8 x 80 GiB": (80, 128),
    }
    rows = []
    for name, (memory, cards) in machines.items():
        batches = [cards * _largest_batch(model, memory) for model in ("ViT-B/32", "ViT-B/16")]
        chunked = _largest_batch("ViT-B/16", memory, chunk=64) if cards == 1 else None
        weights = _two_digits(cards * memory * 2**30 / 2 / 16 / 1e9)
        rows.append(
            (
                name,
                *(f"{_two_digits(batch):,.0f}" for batch in batches),
                "" if chunked is None else f"{_two_digits(chunked):,.0f}",
                f"{weights:g} billion{', not divided' if cards == 1 else ''}",
            )
        )
    header = (
        *("hardware", "ViT-B/32, whole", "ViT-B/16, whole", "ViT-B/16, `chunk: 64`"),
        "trained weights, AdamW, `shard: towers`",
    )
    first, _, *body = _table(header, rows)
    return [first, "|---|---:|---:|---:|---:|", *body]


def _largest_batch(model: str, memory: float, chunk: int | None = None) -> float:
    """Pairs that fit the GiB of a card: less CUDA's 0.6 GiB, 5 % for fragmentation and what is
    there in any case."""
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    row = r"^\| {}, {} \|[^|]*\| [\d.]+ \(([\d.]+) GiB\)"
    peaks = []
    for batch in ("256", "1,024"):
        found = re.search(row.format(re.escape(model), batch), page, re.MULTILINE)
        assert found is not None
        peaks.append(float(found[1]))
    pair = (peaks[1] - peaks[0]) / (1024 - 256)
    room = 0.95 * memory - 0.6 - (peaks[0] - 256 * pair)
    if chunk is None:
        return room / pair
    picture = 224 * 224 * 3 / 2**30
    return (room - chunk * pair) / picture


def _two_digits(number: float) -> float:
    """Rounded down to two digits."""
    unit = 10 ** (math.floor(math.log10(number)) - 1)
    return math.floor(number / unit) * unit


TABLES: dict[str, Callable[[], list[str]]] = {
    "fits": fits_table,
    "forms": forms_table,
    "parts": parts_table,
    "suites": suites_table,
    "models": models_table,
}


def _stands_for(model: NamedModel) -> str:
    sections = [*model.towers.values(), *([model.scorer] if model.scorer else [])]
    found = " and ".join(f"`{text}`" for text in dict.fromkeys(map(section_text, sections)))
    return f"{found}; this version has no {model.missing}" if model.missing else found


def _modalities(kind: str, name: str) -> set[str]:
    return set(signature_of(kind, name).attributes["modalities"])


def _offering(kind: str, modality: str) -> list[str]:
    return [name for name in catalog.names(kind) if modality in _modalities(kind, name)]


def _suites(needed: set[str]) -> list[str]:
    return [name for name in catalog.names("suite") if _modalities("suite", name) == needed]


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [head, ("---",) * len(head), *rows]
    return [
        "|" + "|".join(line) + "|" if line[0] == "---" else f"| {' | '.join(line)} |"
        for line in lines
    ]


def _errors_of(*words: str) -> str:
    """What a command writes to standard error when it runs in docs/snippets."""
    errors, here = io.StringIO(), Path.cwd()
    os.chdir(SNIPPETS)
    try:
        with contextlib.redirect_stderr(errors), contextlib.suppress(SystemExit):
            run_vlkd(words)
    finally:
        os.chdir(here)
    return errors.getvalue()


if __name__ == "__main__":
    sys.exit(main())
