"""Code blocks of docs are tested files, commands work, recipes pass the checks, tables tell the
truth, and links lead somewhere."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from docs import generate
from tests.architecture.test_layers import ROWS
from tests.support.page_commands import (
    check_yaml,
    is_slow,
    leaves,
    try_command,
    way_of,
    write_inputs,
    write_recipes,
)
from tests.support.pages import (
    ROOT,
    SNIPPETS,
    Command,
    anchors_of,
    blocks_of,
    commands_of,
    inside,
    table_after,
)
from vlkd_cli import catalog
from vlkd_cli.catalog import CATALOG
from vlkd_cli.recipe import adapters as adapter_rules
from vlkd_cli.recipe.params import signature_of

PAGES = sorted((ROOT / "docs").glob("*.md"))
WRITTEN = [page for page in PAGES if page.name != "catalogue.md"]
BLOCKS = [block for page in WRITTEN for block in blocks_of(page)]
KINDS_OF_SNIPPET = (".py", ".yaml", ".yml", ".txt")
COMMANDS = [command for page in WRITTEN for command in commands_of(page)]


def test_the_pages_are_there():
    names = {page.stem for page in PAGES}
    assert {
        "index",
        "quickstart",
        "recipes",
        "catalogue",
        "architecture",
        "evaluation",
        "scaling",
        "adapters",
    } <= names
    assert {"add_a_distiller", "add_a_builder", "add_a_reader", "add_a_suite"} <= names
    assert len(BLOCKS) > 30 and len(COMMANDS) > 30


def test_every_page_is_linked_from_the_index():
    reachable = set(inside(ROOT / "docs" / "index.md")) | set(
        inside(ROOT / "docs" / "evaluation.md")
    )
    assert {page.name for page in PAGES} - reachable == {"index.md"}


ROOT_PAGES = [ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING", "SECURITY")]


@pytest.mark.parametrize("page", [*PAGES, *ROOT_PAGES], ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    for target in inside(page):
        file, _, anchor = target.partition("#")
        found = page.parent / file if file else page
        assert found.is_file(), target
        assert not anchor or anchor in anchors_of(found), target


def test_every_block_is_of_a_kind_that_is_tested():
    # Layouts of data folders are written by tests/support/text_folders.py and read by the suites'
    # own tests.
    kinds = {"bash", "yaml", "yml", "python", "text", "layout"}
    assert {block.language for block in BLOCKS} == kinds


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.language == "python"], ids=str
)
def test_python_is_a_snippet(block):
    assert block.text in [file.read_text(encoding="utf-8") for file in SNIPPETS.glob("*.py")]


def test_the_workflow_for_users_gives_commands_that_work():
    jobs = yaml.safe_load((SNIPPETS / "smoke.yml").read_text(encoding="utf-8"))["jobs"]
    commands = [step["run"] for step in jobs["smoke"]["steps"] if "run" in step]
    assert commands[-1] == "vlkd recipes smoke --no-weights recipes/*.yaml"
    assert leaves([*shlex.split(commands[-1])[1:-1], "quickstart"]) == 0


def test_every_snippet_appears_in_a_page():
    shown = {block.text for block in BLOCKS}
    files = [file for file in SNIPPETS.iterdir() if file.suffix in KINDS_OF_SNIPPET]
    assert len(files) >= 7
    for file in files:
        assert file.read_text(encoding="utf-8") in shown, file.name


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "text"], ids=str)
def test_text_is_a_snippet(block):
    assert block.text in [file.read_text(encoding="utf-8") for file in SNIPPETS.glob("*.txt")]


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "yaml"], ids=str)
def test_a_recipe_passes_the_check(block):
    if "builder: adapters" in block.text and not adapter_rules.is_installed():
        pytest.skip("needs the extra 'adapters'")
    if block.text != (SNIPPETS / "wrong.yaml").read_text(encoding="utf-8"):
        check_yaml(block)


def test_the_wrong_recipe_ends_in_the_lines_that_the_page_shows(monkeypatch, capsys):
    monkeypatch.chdir(SNIPPETS)
    assert leaves(["recipes", "check", "wrong.yaml"]) == 2
    assert capsys.readouterr().err == (SNIPPETS / "wrong.txt").read_text(encoding="utf-8")


def test_the_tutorial_shows_the_recipe_as_it_is():
    recipe = yaml.safe_load((ROOT / "recipes" / "quickstart.yaml").read_text(encoding="utf-8"))
    parts = [
        block for block in blocks_of(ROOT / "docs" / "quickstart.md") if block.language == "yaml"
    ]
    assert len(parts) == 4
    for block in parts:
        for section, value in yaml.safe_load(block.text).items():
            assert recipe[section] == value, (
                f"{block}: recipes/quickstart.yaml has {section}: {recipe[section]}"
            )


@pytest.mark.parametrize("name", ["simclr", "mae"])
def test_what_users_of_mmselfsup_are_shown_is_the_shipped_recipe(name):
    (block,) = [
        block
        for block in blocks_of(ROOT / "docs" / "from_mmselfsup.md")
        if block.file_name == f"{name}.yaml"
    ]
    shown = yaml.safe_load(block.text)
    shipped = yaml.safe_load((ROOT / "recipes" / "ssl" / f"{name}.yaml").read_text("utf-8"))
    for section in ("towers", "distillers", "optimizer", "schedule"):
        assert shown[section] == shipped[section], section
    assert shown["data"] == {**shipped["data"], "path": "data/imagenet/train"}
    config: dict[str, Any] = {}
    exec((SNIPPETS / f"mmselfsup_{name}.py").read_text(encoding="utf-8"), config)
    assert config["train_cfg"]["max_epochs"] == shown["train"]["epochs"]
    assert config["optim_wrapper"]["optimizer"]["lr"] == shown["optimizer"]["lr"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands of docs run one after another, a run and recipes at hand."""
    place = tmp_path_factory.mktemp("docs")
    write_recipes(BLOCKS, place)
    write_inputs(place)
    (place / "mine.yaml").write_bytes((ROOT / "recipes" / "quickstart.yaml").read_bytes())
    return place


def test_every_command_is_tested_in_one_way():
    for command in COMMANDS:
        way_of(command)


def _once() -> list[Command]:
    """Each command once, in the order of the pages; those of the tutorial come first, for they make
    the run that others name."""
    first = {}
    for command in sorted(COMMANDS, key=lambda command: command.block.page.stem != "quickstart"):
        first.setdefault(" ".join(command.words), command)
    return list(first.values())


@pytest.mark.parametrize(
    "command", [pytest.param(c, marks=[pytest.mark.slow] * is_slow(c)) for c in _once()], ids=str
)
def test_a_command_works(command, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("VLKD_CACHE", str(folder / "cache"))
    try_command(command, folder)


def test_a_run_folder_holds_what_the_tutorial_lists(folder):
    listed = [
        line.split()[0]
        for line in (SNIPPETS / "run_folder.txt").read_text(encoding="utf-8").splitlines()
    ]
    assert len(listed) == 9
    for name in listed:
        assert (folder / "runs" / "first" / name).exists(), name


def test_the_import_rows_equal_those_of_the_layers_test():
    table = table_after(ROOT / "docs" / "architecture.md", "## Import rows")
    assert [set(packages.split(", ")) for _, packages in table] == ROWS
    assert [int(number) for number, _ in table] == list(range(1, len(ROWS) + 1))


def test_the_rooms_are_there():
    for names, _ in table_after(ROOT / "docs" / "architecture.md", "## Rooms"):
        for name in names.split(", "):
            assert (ROOT / "vlkd_cli" / name).exists(), name


def test_generated_parts_are_up_to_date():
    expected = {**generate.generated_snippets(), **generate.generated_pages()}
    assert len(expected) > 15
    old = [str(path) for path, text in expected.items() if path.read_text(encoding="utf-8") != text]
    assert old == [], "run: make docs"


def test_a_generated_part_is_written_again_whatever_it_was():
    page = "<!-- table: suites -->\n\n| old |\n|---|\n\nafter\n"
    written = generate.filled(page)
    assert "| old |" not in written and written.endswith("|\n\nafter\n")
    assert generate.filled(written) == written
    assert len(written.splitlines()) == len(CATALOG["suite"]) + 6


MINE = """\
towers:
  image:
    builder: docs.snippets.my_builder:MyBuilder
    width: 32
    depth: 2
    size_px: 32
    head: {name: linear, width: 32}
    train: {last: 1}
  text: {builder: openclip, config: {layers: 1, width: 32, heads: 2}}
distillers:
  - {name: "docs.snippets.my_distiller:CenteredCosine", momentum: 0.5}
  - {name: infonce}
data: &pairs {reader: "docs.snippets.my_reader:JSONLines", path: "pairs.{split}.jsonl"}
train: {epochs: 2, batch_size: 4, log_every_steps: 1}
evals:
  - {suite: "docs.snippets.my_suite:TwoCaptions", data: {<<: *pairs, split: val}}
"""


def test_a_recipe_of_the_four_examples_trains_is_resumed_and_measured(
    tmp_path, monkeypatch, capsys
):
    from vlkd_cli.data.readers.shapes import Shapes

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path / "cache"))
    for split in ("train", "val"):
        drawn = Shapes(num_samples=12, size_px=32, split=split)
        lines = []
        for index in range(len(drawn)):
            drawn.image(index).save(f"{split}{index}.png")
            lines.append(
                json.dumps(
                    {"image": f"{split}{index}.png", "captions": list(drawn.captions(index))}
                )
            )
        Path(f"pairs.{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    Path("mine.yaml").write_text(MINE, encoding="utf-8")

    assert leaves(["train", "mine.yaml", "--run", "run"]) == 0
    printed = capsys.readouterr().out
    assert "TwoCaptions" in printed and "0.5000" in printed
    state = torch.load("run/checkpoints/last.pt", weights_only=True)
    assert state["step"] == 6
    assert state["distillers"]["CenteredCosine.center"].abs().sum() > 0
    assert {name for name in state["towers"]["image"] if name.startswith("backbone")} == {
        name for name in state["towers"]["image"] if ".blocks.1." in name
    }, "only the last layer learns"
    assert (
        leaves(
            [
                "eval",
                "run",
                "--trust",
                "--suite",
                "docs.snippets.my_suite:TwoCaptions",
                "--with",
                "data={reader: shapes, num_samples: 8, split: val}",
            ]
        )
        == 0
    )


def test_the_example_distiller_is_the_same_over_accumulated_batches_and_writes_nothing_in_forward():
    from docs.snippets.my_distiller import CenteredCosine
    from vlkd_cli.recipe.types import Progress

    torch.manual_seed(0)
    student, teacher = torch.randn(8, 5), torch.randn(8, 5)
    distiller = CenteredCosine(momentum=0.0)
    distiller.setup(5, 5)
    whole = distiller(student, teacher)
    torch.testing.assert_close(
        (distiller(student[:4], teacher[:4]) + distiller(student[4:], teacher[4:])) / 2, whole
    )
    assert distiller.center.abs().sum() == 0
    distiller.discard()
    distiller(student[:4], teacher[:4])
    distiller(student[4:], teacher[4:])
    distiller.commit(Progress())
    torch.testing.assert_close(distiller.center, teacher.mean(0))


def test_the_example_suite_is_bracketed():
    from docs.snippets.my_suite import TwoCaptions
    from tests.support.fakes import COLORED, random_feature
    from tests.support.suite_cases import knowing_nothing, picture_of_caption, subject

    suite = TwoCaptions(data={"reader": COLORED, "num_samples": 200})
    (best,) = suite.run(subject(random_feature(32), picture_of_caption, 32))
    (worst,) = suite.run(knowing_nothing())
    (tied,) = suite.run(subject(lambda number: torch.ones(4), lambda text: torch.ones(4), 4))
    assert (best.metrics["accuracy"], tied.metrics["accuracy"]) == (1.0, 0.5)
    assert worst.metrics["accuracy"] == pytest.approx(0.5, abs=0.15)
    assert best.chance == {"accuracy": 0.5} and best.num_items == 200 and best.hashes["rows"]


def test_the_example_reader_names_the_line_that_is_wrong(tmp_path):
    from docs.snippets.my_reader import JSONLines
    from vlkd_cli.errors import DataError

    file = tmp_path / "pairs.jsonl"
    file.write_text('{"image": "a.png", "captions": ["a"]}\n{"image": "b.png"}\n', encoding="utf-8")
    with pytest.raises(
        DataError, match=r"pairs.jsonl:2: expected an object with 'image' and 'captions'"
    ):
        JSONLines(path=str(file))
    with pytest.raises(DataError, match="cannot be read: No such file or directory"):
        JSONLines(path=str(tmp_path / "none.jsonl"))


def test_the_example_builder_is_listed_with_its_keys():
    from docs.snippets.my_builder import MyBuilder

    assert [row.name for row in MyBuilder.list_models("image")] == ["patch_mixer"]
    assert MyBuilder.list_models("text") == []
    assert signature_of("builder", "docs.snippets.my_builder:MyBuilder").key_names() == [
        "width",
        "depth",
        "size_px",
    ]


def test_an_exported_head_is_applied_to_the_features(tmp_path):
    from docs.snippets.exported_head import load_head
    from vlkd_cli.recipe.schema import TowerSpec
    from vlkd_cli.towers.assemble import assemble
    from vlkd_cli.towers.export import export_tower

    section = {
        "builder": "torchvision",
        "model": "resnet18",
        "image_size": 32,
        "head": {"name": "mlp", "width": 6, "layers": 2, "hidden": 8},
    }
    tower = assemble("image", TowerSpec.model_validate(section)).eval()
    export_tower(tower, tmp_path, tmp_path)
    features = torch.randn(3, tower.feature_width, generator=torch.Generator().manual_seed(0))
    assert torch.equal(load_head(tmp_path)(features), tower.project(features))


@torch.no_grad()
def test_an_onnx_export_gives_the_vectors_of_the_towers(tmp_path):
    pytest.importorskip("onnxruntime")
    from PIL import Image

    from docs.snippets.onnx_search import encode_images, encode_texts
    from vlkd_cli.recipe.schema import TowerSpec
    from vlkd_cli.towers.assemble import assemble
    from vlkd_cli.towers.onnx.write import export_onnx

    sizes = {"layers": 1, "width": 16, "heads": 2}
    sections = {
        "image": {"builder": "openclip", "config": {**sizes, "image_size": 32, "patch_size": 8}},
        "text": {"builder": "openclip", "config": sizes},
    }
    towers = {}
    for name, section in sections.items():
        towers[name] = assemble(name, TowerSpec.model_validate(section)).eval()
        (tmp_path / name).mkdir()
        export_onnx(towers[name], tmp_path / name, tmp_path / name)
    texts = ["a red circle", "two dogs"]
    expected = towers["text"].encode(towers["text"].input(texts))
    found = torch.from_numpy(encode_texts(tmp_path / "text", texts))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    pixels = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8)
    found = encode_images(tmp_path / "image", [Image.fromarray(pixels.numpy())])
    expected = towers["image"].encode(pixels.permute(2, 0, 1)[None])
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-5)


def test_an_adapter_is_saved_and_merged_as_documented(tmp_path):
    pytest.importorskip("peft")
    pytest.importorskip("adapters")
    from docs.snippets.save_adapter import keep_adapter
    from tests.support.adapters import adapted
    from tests.support.encoders import write_encoder

    assert catalog.names("adapter")
    tower = adapted(write_encoder(tmp_path / "bert"), "lora")
    keep_adapter(tower, tmp_path)
    assert sorted(os.listdir(tmp_path / "my_adapter")) == ["adapter.safetensors", "adapter.yaml"]
    assert (tmp_path / "my_encoder" / "config.json").is_file()
