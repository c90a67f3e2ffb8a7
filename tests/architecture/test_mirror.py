"""Every module has a test: a file of its name at the mirrored path, a test that imports it, the
contract test of its kind of component, or the test that this page names."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

from tests.architecture.test_layers import PACKAGE, source_files
from vlkd_cli.catalog import CATALOG

TESTS = Path(__file__).resolve().parents[1]

CONTRACTS = {
    "builder": "contracts/test_towers.py",
    "adapter": "unit/builders/adapters/test_matrix.py",
    "prompt": "unit/builders/openclip/test_prompts.py",
    "pooler": "unit/test_poolers.py",
    "head": "contracts/test_towers.py",
    "distiller": "contracts/test_distillers.py",
    "reader": "contracts/test_readers.py",
    "augment": "unit/data/images/test_decode.py",
    "mask": "unit/data/test_masks.py",
    "suite": "contracts/test_suites.py",
    "scorer": "unit/synthesis/test_scorers.py",
    "sink": "unit/reports/test_open.py",
}
"""Kind of component -> the test that runs over all of its kind in the catalogue."""

# Modules that only their users reach: the test that runs them through these.
THROUGH = {
    "contracts/test_distillers.py": [
        "distillers.angle",
        "distillers.class_weights",
        "distillers.labeled_rows",
        "distillers.logit_scale",
        "distillers.moments",
        "distillers.pair_contrast",
        "distillers.positives",
        "distillers.prototype_loss",
        "distillers.prototypes",
    ],
    "contracts/test_docs.py": [
        "commands.evaluate",
        "commands.list_distillers",
        "commands.report",
        "commands.runs",
        "commands.train",
        "engine.dry_run",
    ],
    "unit/engine/launching/test_start_sweep.py": ["commands.sweep"],
    "unit/engine/tables/test_tables.py": [
        "engine.tables.plan",
        "engine.launching.start_table",
        "engine.launching.targets",
    ],
    "unit/data/loading/test_distinct.py": ["data.loading.choices"],
    "golden/test_mining.py": ["numerics.mining"],
    "unit/reports/test_records.py": ["numerics.directions"],
    "unit/engine/test_mine.py": ["commands.mine"],
    "unit/engine/test_draws.py": [
        "commands.cache",
        "data.loading.draws",
        "data.stored_view",
        "engine.draw_fill",
        "engine.draws",
        "features.draw_tables",
        "towers.storing",
    ],
    "unit/features/test_training_cache.py": ["features.broken_rows"],
    "contracts/test_readers.py": [
        "data.files.fingerprints",
        "data.files.row_groups",
        "data.files.table",
        "data.files.shard_samples",
        "data.files.tar_members",
        "data.loading.assembler",
        "data.loading.streams",
        "data.readers.captioned_images",
    ],
    "contracts/test_suites.py": [
        "data.files.text_table",
        "evaluation.datasets.text_files",
        "evaluation.passage_search",
        "evaluation.probes.softmax_grid",
        "evaluation.sentence_encoder",
        "evaluation.suite",
    ],
    "contracts/test_towers.py": [
        "builders.hub",
        "builders.openclip.save",
        "builders.openclip.weights",
        "towers.frozen",
    ],
    "unit/builders/adapters/test_matrix.py": [
        "builders.adapters.listing",
        "builders.adapters.methods.method",
    ],
    "unit/builders/huggingface/test_builder.py": [
        "builders.huggingface.load",
        "builders.huggingface.text",
    ],
    "unit/data/images/test_decode.py": ["data.images.orientation"],
    "unit/data/meshes/test_files.py": ["data.meshes.off"],
    "unit/data/readers/test_elevater.py": [
        "data.readers.elevater_archive",
        "data.readers.elevater_index",
    ],
    "unit/data/readers/test_passages.py": ["data.files.passage_table", "data.files.relations"],
    "unit/data/readers/test_caption_weights.py": ["recipe.caption_weights"],
    "unit/data/readers/test_parquet.py": ["data.files.arrow_files"],
    "unit/data/readers/test_webdataset.py": ["data.files.remote"],
    "unit/data/test_readers.py": ["data.files.named_texts", "data.readers.subset"],
    "unit/elevater/test_submission.py": [
        "elevater.checking",
        "elevater.protocol",
        "elevater.score",
    ],
    "unit/evaluation/suites/test_elevater.py": ["elevater.templates"],
    "unit/evaluation/suites/test_search.py": [
        "evaluation.datasets.qrels",
        "evaluation.search_sides",
        "evaluation.trec",
    ],
    "unit/engine/launching/test_host_memory.py": ["engine.launching.host_memory"],
    "unit/engine/launching/test_start_evaluation.py": ["engine.launching.suite_specs"],
    "unit/engine/test_encode.py": ["commands.encode", "engine.items"],
    "unit/engine/test_check_data.py": ["commands.data"],
    "unit/engine/test_export_onnx.py": ["towers.onnx.session"],
    "unit/engine/test_encoder.py": ["api", "data.readers.pictures", "engine.target"],
    "unit/engine/test_meshes.py": ["engine.given"],
    "unit/engine/test_search.py": ["commands.search"],
    "unit/engine/test_synthesize.py": ["commands.synthesize"],
    "unit/engine/test_trainer.py": ["engine.ema", "numerics.precision"],
    "unit/engine/test_training.py": [
        "composition.episodes",
        "engine.determinism",
        "engine.failures",
        "engine.inputs",
        "engine.launching.interruption",
        "engine.parallel",
        "features.training_cache",
        "towers.cached",
    ],
    "unit/commands/test_export.py": ["engine.export"],
    "unit/recipe/test_checks.py": [
        "recipe.objectives",
        "recipe.shape",
        "recipe.tower_checks",
    ],
    "unit/recipe/test_load.py": ["recipe.variables"],
    "unit/recipe/test_trust.py": ["towers.trained"],
    "unit/recipe/test_types.py": ["recipe.arrays"],
    "unit/reports/html/test_write.py": [
        "reports.html.charts",
        "reports.html.comparison_page",
        "reports.html.run_page",
    ],
    "unit/reports/test_open.py": ["reports.sink"],
    "unit/synthesis/test_choosing.py": ["synthesis.mining"],
    "unit/synthesis/test_run.py": ["synthesis.parts"],
    "unit/synthesis/test_scorers.py": [
        "synthesis.scorers.scorer",
        "synthesis.scoring",
        "synthesis.sources",
    ],
}


def test_every_module_has_a_test():
    named = {module for modules in THROUGH.values() for module in modules}
    known = named | _components() | _imported()
    missing = [
        module for module, path in _modules().items() if module not in known and not _mirror(path)
    ]
    assert missing == [], "write tests/unit/FOLDER/test_MODULE.py, or name the test under THROUGH"


def test_tests_and_modules_that_this_page_names_exist_once():
    files = [*CONTRACTS.values(), *THROUGH]
    assert [file for file in files if not (TESTS / file).is_file()] == []
    named = [module for modules in THROUGH.values() for module in modules]
    assert sorted(set(named)) == sorted(named)
    assert [module for module in named if module not in _modules()] == []
    assert set(CONTRACTS) == set(CATALOG)


@functools.cache
def _modules() -> dict[str, Path]:
    """Every module but packages and `__main__`, below vlkd_cli: name -> path inside the package."""
    paths = [path.relative_to(PACKAGE) for path in source_files()]
    return {
        ".".join(path.with_suffix("").parts): path
        for path in paths
        if path.name not in ("__init__.py", "__main__.py")
    }


def _mirror(path: Path) -> bool:
    return (TESTS / "unit" / path.parent / f"test_{path.name}").is_file()


def _components() -> set[str]:
    return {
        entry.target.partition(":")[0] for kind in CONTRACTS for entry in CATALOG[kind].values()
    }


@functools.cache
def _imported() -> set[str]:
    """Modules that a test of unit, contracts or golden imports."""
    found: set[str] = set()
    files = [path for room in ("unit", "contracts", "golden") for path in _files(TESTS / room)]
    assert len(files) > 100
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name.removeprefix("vlkd_cli.") for name in found}


def _files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("test_*.py"))
