"""Who may import whom: a row imports from rows above its own; inside a row, a package imports only
itself."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import vlkd_cli

PACKAGE = Path(vlkd_cli.__file__).parent

ROWS = [
    {"errors", "ranks"},
    {"cache_folder", "catalog", "claims", "console", "whole_file"},
    {"recipe"},
    {"distributed"},
    {"numerics", "preprocessing"},
    {"distillers", "poolers", "heads"},
    {"builders", "data"},
    {"remote_runs", "checkpoint_shards"},
    {"checkpoint"},
    {"towers"},
    {"composition"},
    {"features"},
    {"evaluation", "elevater", "reports"},
    {"synthesis"},
    {"engine"},
    {"commands", "app", "api"},
]
ROW_OF = {name: number for number, row in enumerate(ROWS) for name in row}

# In a row, one package may stand on another; never the other way round.
STANDS_ON = {
    # The suite is the door to the protocol's own room.
    ("elevater", "evaluation"),
    ("evaluation.suites", "elevater"),
}
# Third-party packages that need torch or are as slow; only rows from `distributed` down may import
# them.
HEAVY = {
    "torch",
    "torchvision",
    "numpy",
    "transformers",
    "open_clip",
    "timm",
    "sentence_transformers",
    "sklearn",
    "PIL",
    "webdataset",
}
# Libraries that belong to one component each are imported by the functions that use them.
INSIDE_FUNCTIONS = {
    "torchvision",
    "transformers",
    "open_clip",
    "timm",
    "sentence_transformers",
    "sklearn",
    "webdataset",
    "adapters",
    "peft",
    "wandb",
    "trackio",
    "mlflow",
    "tensorboard",
    "pandas",
    "simplejpeg",
    "fsspec",
    "mteb",
    "datasets",
}


def room_of(module: str) -> str:
    """`vlkd_cli.engine.trainer` -> engine."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


@functools.cache
def imports_of(path: Path, *, top_level_only: bool = False) -> list[str]:
    """Modules that a file imports, those for type checkers left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    nodes = ast.walk(tree) if not top_level_only else _outside_functions(tree)
    found = []
    for node in nodes:
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from vlkd_cli import catalog` imports a module, `from vlkd_cli.catalog import load` a
            # name of one.
            found += (
                [f"vlkd_cli.{alias.name}" for alias in node.names]
                if node.module == "vlkd_cli"
                else [node.module]
            )
    return found


def _outside_functions(node: ast.AST) -> list[ast.AST]:
    found = []
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            found += [child, *_outside_functions(child)]
    return found


def source_files() -> list[Path]:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 60
    return files


def test_every_room_has_a_row():
    rooms = {path.stem for path in PACKAGE.glob("*.py")} | {
        path.parent.name for path in PACKAGE.glob("*/__init__.py")
    }
    assert rooms - {"__init__", "__main__"} == set(ROW_OF)


def test_a_row_imports_only_from_rows_above():
    wrong = []
    for path in source_files():
        relative = path.relative_to(PACKAGE)
        own = relative.parts[0].removesuffix(".py")
        if own not in ROW_OF:
            continue
        place = ".".join(relative.with_suffix("").parts)
        for module in imports_of(path):
            other = room_of(module)
            if not module.startswith("vlkd_cli") or other == own or other not in ROW_OF:
                continue
            stands = any(place.startswith(upper) and other == lower for upper, lower in STANDS_ON)
            if ROW_OF[other] > ROW_OF[own] or (ROW_OF[other] == ROW_OF[own] and not stands):
                wrong.append(f"{relative} imports {module}")
    assert wrong == []


def test_the_first_three_rows_import_nothing_heavy():
    wrong = []
    for path in source_files():
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room in {name for row in ROWS[:3] for name in row}:
            wrong += [
                f"{path.name} imports {module}"
                for module in imports_of(path)
                if module.split(".")[0] in HEAVY
            ]
    assert wrong == []


def test_libraries_of_single_components_are_imported_inside_functions():
    wrong = []
    for path in source_files():
        for module in imports_of(path, top_level_only=True):
            if module.split(".")[0] in INSIDE_FUNCTIONS:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {module}")
    assert wrong == []


def test_commands_import_typer_and_the_standard_library_only():
    allowed = {
        "typer",
        "__future__",
        "collections",
        "pathlib",
        "typing",
        "enum",
        "json",
        "os",
        "sys",
    }
    wrong = []
    files = sorted((PACKAGE / "commands").glob("*.py"))
    assert len(files) >= 10
    for path in files:
        wrong += [
            f"{path.name} imports {module}"
            for module in imports_of(path, top_level_only=True)
            if module.split(".")[0] not in allowed and module != "vlkd_cli.commands.options"
        ]
    assert wrong == []


def test_torch_distributed_is_touched_in_two_rooms_only():
    wrong = []
    for path in source_files():
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room not in ("distributed", "engine"):
            wrong += [
                f"{path.relative_to(PACKAGE)} imports {module}"
                for module in imports_of(path)
                if module.startswith("torch.distributed")
            ]
    assert wrong == []
