"""How a command of README or docs is tested. Each falls under exactly one of WAYS; none is left
untested."""

from __future__ import annotations

import dataclasses
import io
import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from docs.prepare_products import write_products
from tests.support.pages import BASE, ROOT, Block, Command
from tests.support.tuning_data import settings, write_tuning_data
from vlkd_cli.app import main
from vlkd_cli.data.readers.shapes import Shapes
from vlkd_cli.engine.launching.sweep_cells import sweep_cells
from vlkd_cli.evaluation.datasets.collections import collections
from vlkd_cli.evaluation.datasets.known_sets import known_sets
from vlkd_cli.recipe.load import load_recipe, parse_recipe
from vlkd_cli.recipe.schema import Recipe

# What makes the quickstart recipe a matter of a second.
SMALL = [
    "data.num_samples=64", "train.steps=2", "train.batch_size=16", "train.log_every_steps=1",
    "evals[0].data.num_samples=48", "evals[1].data.num_samples=48",
]  # fmt: skip
TINY = [word for setting in SMALL for word in ("--set", setting)]
LENGTH = ["schedule.warmup_steps=1", "schedule.cooldown_steps=2", "train.epochs=2"]
LONG = [
    word
    for setting in [*(each for each in SMALL if "train.steps" not in each), *LENGTH]
    for word in ("--set", setting)
]
TINY_PAIR = [
    word
    for setting in ("data.num_samples=64", "train.steps=2", "train.batch_size=16")
    for word in ("--set", setting)
]
TINY_EVALS = [
    word for number in (0, 1) for word in ("--set", f"evals[{number}].data.num_samples=48")
]
TINY_ALIGNED = [
    word
    for setting in (
        "towers.image.pretrained=false",
        "towers.image.head.factor=1",
        "towers.text.model=data/glove.txt",
        "train.steps=3",
        "train.batch_size=4",
    )
    for word in ("--set", setting)
]
TINY_SUITES = ["--with", "data={reader: shapes, split: val, num_samples: 48, size_px: 64}"]

# Trained and evaluated for real, in the pages' order and in one folder for each page, with these
# words added.
RUN: dict[str, list[str]] = {
    "vlkd train quickstart": TINY,
    "vlkd train quickstart --run runs/first": TINY,
    "vlkd train quickstart --dry-run": TINY,
    "vlkd train quickstart --run runs/second --set train.seed=1": TINY,
    "vlkd train finetune/classes --run runs/tuned": TINY,
    "vlkd eval runs/tuned --wise-ft 0,0.25,0.5,0.75,1": [],
    "vlkd export runs/tuned exported_tuned": [],
    "vlkd train align/sail --run runs/aligned": TINY_ALIGNED,
    "vlkd eval runs/aligned": [],
    "vlkd encode runs/aligned pictures aligned.npy": [],
    "vlkd search aligned.npy 'a red circle' -k 4 --page aligned.html": [],
    "vlkd export runs/aligned exported_aligned": [],
    "vlkd mine runs/first hard.csv": [],
    "vlkd mine runs/first hard.csv --query text --num 8 --range 5:200 --relative-margin 0.05": [],
    "vlkd train small/clip_from_scratch --run runs/scratch --set train.epochs=6": TINY_PAIR,
    "vlkd cache fill distill/mobile": [
        "--set",
        "data.num_samples=64",
        "--set",
        "train.batch_size=16",
    ],
    "vlkd cache list": [],
    "vlkd train distill/mobile --run runs/mobile": [*TINY_PAIR, *TINY_EVALS],
    "vlkd export runs/mobile exported_mobile": [],
    "vlkd cache export teachers.tar": [],
    "vlkd cache import teachers.tar": [],
    "vlkd cache prune --unused-for 30": [],
    "vlkd report runs/first": [],
    "vlkd report runs/first -o first.html": [],
    "vlkd report runs/first runs/second": [],
    "vlkd runs": [],
    "vlkd compare runs": [],
    "vlkd compare runs/first runs/second": [],
    "vlkd compare runs --metric zero_shot.top1 --at last --table compare.md": [],
    "vlkd train --resume runs/first": [],
    "vlkd train quickstart --run runs/long --set schedule.name=wsd"
    " --set schedule.cooldown_steps=80": LONG,
    "vlkd train --resume runs/long --set train.epochs=10": [],
    "vlkd eval": [],
    "vlkd eval runs/first --suite retrieval,feature_analysis": TINY_SUITES,
    "vlkd eval runs/first/checkpoints/last.pt --suite zero_shot --output results.json": TINY_SUITES,
    "vlkd export runs/first exported": [],
    "vlkd export exported_newest": [],
    "vlkd train pair.yaml --run runs/pair": ["--set", "data.num_samples=64"],
    "vlkd export runs/pair exported_open_clip --format open_clip": [],
    "vlkd export runs/pair exported_clip --format hf_clip": [],
    "vlkd export runs/first exported_sentences --format sentence_transformers": [],
    "vlkd export runs/first/checkpoints/last.pt exported --tower text --force": [],
    "vlkd export runs/first exported_onnx --format onnx": [],
    "vlkd export runs/first exported_int8 --format onnx --int8 --normalize": [],
    "vlkd export runs/first exported_card --card --license apache-2.0 --language en": [],
    "vlkd export runs/first exported_hub --push org/name --private --license apache-2.0": [],
    "vlkd encode runs/first photos photos.npy": [],
    "vlkd encode runs/first queries.txt queries.parquet": [],
    "vlkd encode runs/first - -": [],
    "vlkd encode runs/first products.csv products.npy --tower text --column words": [],
    "vlkd encode runs/first photos tokens.npy --tower image --output tokens": [],
    "vlkd search photos.npy 'a red circle' photos/03.png": [],
    "vlkd search photos.npy 'a red circle' -k 4 --page results.html": [],
    "vlkd search photos.npy 'a red circle' --json": [],
    "vlkd eval quickstart --suite retrieval": [*TINY_SUITES, "--set", "data.num_samples=64"],
}

RUN |= {
    f"vlkd train {recipe} --run runs/{run}": settings(recipe)
    for recipe, run in (
        ("tune_text", "pairs"),
        ("tune_image", "characters"),
        ("tune_clip", "photos"),
        ("tune_open_clip", "whole"),
        ("tune_mesh", "models"),
        ("synthesize", "passages"),
    )
}
_PRODUCTS = ["train.steps=2", "train.batch_size=8", "evals[1].data.num_samples=48"]
_FEW_PRODUCTS = [word for setting in _PRODUCTS for word in ("--set", setting)]
RUN |= {
    "vlkd mine runs/first products/hard.csv --positives product"
    " --set 'data={reader: csv, path: products/train.csv}'": [],
    "vlkd train finetune/products --run runs/products": _FEW_PRODUCTS,
    "vlkd train finetune/products --run runs/lora"
    " --set 'towers.image.adapter={name: lora, rank: 16}'"
    " --set 'towers.text.adapter={name: lora, rank: 16}'": _FEW_PRODUCTS,
    "vlkd eval runs/products --wise-ft 0,0.25,0.5,0.75,1": [],
    "vlkd export runs/products exported_products --wise-ft 0.75": [],
}
RUN |= {
    "vlkd synthesize synthesize data/relations": settings("synthesize"),
    "vlkd encode runs/pairs sentences.txt sentences.npy": [],
    "vlkd search sentences.npy 'a plane takes off' -k 3 --page sentences.html": [],
    "vlkd export runs/pairs exported_pairs": [],
    "vlkd export runs/pairs sentence_encoder --format sentence_transformers": [],
    "vlkd encode runs/characters pictures pictures.npy": [],
    "vlkd search pictures.npy pictures/00.jpg -k 4 --page pictures.html": [],
    "vlkd export runs/characters exported_characters": [],
    "vlkd encode runs/photos pictures photos_tuned.npy": [],
    "vlkd search photos_tuned.npy 'a red circle' -k 4 --page photos.html": [],
    "vlkd export runs/photos exported_photos": [],
    "vlkd export runs/whole exported_whole": [],
    "vlkd encode runs/models models models.npy": [],
    "vlkd search models.npy models/tall_post/00.off -k 3 --page models.html": [],
    "vlkd export runs/models exported_models": [],
    "vlkd encode runs/passages data/cranfield passages.npy": [],
    "vlkd search passages.npy 'a plane takes off' -k 3 --page passages.html": [],
}

# Run for real, but only among the slow tests.
SLOW = (
    "vlkd list-adapters",
    "vlkd list-models --builder torchvision --search 'resnet*'",
    "vlkd export runs/first exported_int8 --format onnx --int8 --normalize",
)


def way_of(command: Command) -> str:
    """The one way in which the command is tested."""
    ways = [name for name, (applies, _) in WAYS.items() if applies(command)]
    assert len(ways) == 1, (
        f"{command} is tested in {len(ways)} ways ({', '.join(ways)}); name it in"
        " tests/support/page_commands.py"
    )
    return ways[0]


def try_command(command: Command, folder: Path) -> None:
    """Test the command in its way; `folder` is the current one and holds the page's recipes."""
    WAYS[way_of(command)][1](command, folder)


def write_recipes(blocks: list[Block], folder: Path) -> None:
    """The recipes of a page that say their file's name, for the page's commands."""
    for block in blocks:
        if block.language == "yaml" and block.file_name is not None:
            (folder / block.file_name).write_text(block.text, encoding="utf-8")


def write_inputs(folder: Path) -> None:
    """Images and texts for commands that encode and search."""
    (folder / "photos").mkdir()
    shapes = Shapes(num_samples=6, size_px=32, split="val")
    for number in range(len(shapes)):
        shapes.image(number).save(folder / "photos" / f"{number:02}.png")
    (folder / "queries.txt").write_text("a red circle\na green square\n", encoding="utf-8")
    table = "key,words\na,a red circle\nb,a green square\n"
    (folder / "products.csv").write_text(table, encoding="utf-8")
    write_tuning_data(folder)
    write_products(folder / "products", 24)


def is_slow(command: Command) -> bool:
    """Whether `make test` leaves the command out."""
    return _plain(command) in SLOW


def check_yaml(block: Block) -> Recipe:
    """A recipe of a page, or a fragment of one inside a small whole one, passes the checks."""
    sections = yaml.safe_load(BASE)
    fragment = yaml.safe_load(_without_variables(block.text)) or {}
    kept = {key: value for key, value in sections.items() if key not in fragment}
    whole = (yaml.safe_dump(kept) if kept and block.file_name is None else "") + block.text
    return parse_recipe(whole, str(block))


def leaves(words: list[str]) -> int:
    """The exit code of `vlkd WORDS` in this process."""
    try:
        main(words)
    except SystemExit as leaving:
        return int(leaving.code or 0)
    return 0


def _without_variables(text: str) -> str:
    return re.sub(r"\$\{[^}]*\}", "x", text)


def _plain(command: Command) -> str:
    return shlex.join(command.words)


def _vlkd_words(command: Command) -> list[str] | None:
    """The words after `vlkd`, whatever starts it; None where the command is of another program."""
    # What SLURM sets in a task of an array.
    words = [word.replace("$SLURM_ARRAY_TASK_ID", "0") for word in command.words]
    if words[:1] == ["srun"]:
        words = words[
            next(
                number for number, word in enumerate(words[1:], start=1) if not word.startswith("-")
            ) :
        ]
    if words[:1] == ["torchrun"]:
        from torch.distributed.run import get_args_parser

        launched = get_args_parser().parse_args(words[1:])
        return (
            launched.training_script_args
            if launched.module and launched.training_script == "vlkd_cli"
            else None
        )
    return words[1:] if words[:1] == ["vlkd"] else None


def _is_make(command: Command) -> bool:
    return command.words[0] == "make"


def _try_make(command: Command, folder: Path) -> None:
    targets = re.findall(
        r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert set(command.words[1:]) <= set(targets), command


def _is_install(command: Command) -> bool:
    return command.words[:2] == ["pip", "install"]


def _try_install(command: Command, folder: Path) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    for word in command.words[2:]:
        package = re.fullmatch(r"(?:-e|\.|(?:vlkd|\.)\[([a-z,]+)\])", word)
        assert package is not None, command
        assert set(filter(None, (package[1] or "").split(","))) <= set(extras), command


def _is_run(command: Command) -> bool:
    return _plain(command) in RUN


def _try_run(command: Command, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        # What is sent, and how, is tested in test_hand_over.py.
        patch.setattr("vlkd_cli.engine.export.push", lambda *given: "the hub")
        if command.words[-1] == "-":
            patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a red circle\n")))
            patch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO()))
        _leave_well(command)


def _leave_well(command: Command) -> None:
    assert leaves([*command.words[1:], *RUN[_plain(command)]]) == 0, command


def _is_look_up(command: Command) -> bool:
    words = _vlkd_words(command)
    return words is not None and (
        words[:1] == [] or words[0].startswith(("-", "list", "show")) or words[0] == "recipes"
    )


def _try_look_up(command: Command, folder: Path) -> None:
    if "--data" in command.words:
        (folder / command.words[command.words.index("--data") + 1]).mkdir(
            parents=True, exist_ok=True
        )
    assert leaves(command.words[1:]) == 0, command


def _is_checked(command: Command) -> bool:
    words = _vlkd_words(command)
    return (
        words is not None
        and words[:1] in (["train"], ["eval"], ["encode"], ["sweep"], ["submit-elevater"], ["data"])
        and not _is_run(command)
    )


def _try_checked(command: Command, folder: Path) -> None:
    """The command runs up to where it would start workers; then what it was given is checked as it
    would be there."""
    from vlkd_cli.engine import encode
    from vlkd_cli.engine.launching import start, start_evaluation, start_sweep, start_table

    words = _vlkd_words(command)
    assert words is not None
    given: dict[str, Any] = {}

    def take(request: Any = None, **keys: Any) -> int:
        given.update(keys if request is None else dataclasses.asdict(request))
        return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start, "start_training", take)
        patch.setattr(start_evaluation, "start_evaluation", take)
        patch.setattr(start_table, "start_table", take)
        patch.setattr(start_sweep, "start_sweep", take)
        patch.setattr(encode, "start_encoding", take)
        patch.setattr(
            "vlkd_cli.elevater.submission.submit",
            lambda *words, **keys: take(submitted=True) or Done(),
        )
        patch.setattr("vlkd_cli.elevater.submission.prediction_folder", lambda run: run)
        patch.setattr(
            "vlkd_cli.engine.check_data.check_data",
            lambda recipe, overrides, output: take(recipe=load_recipe(recipe, overrides)),
        )
        assert leaves(words) == 0, command
    assert given, command
    if words[0] == "sweep":
        assert sweep_cells(
            given["grids"],
            given["draws"],
            num_random=given["num_random"],
            seeds=given["seeds"] or (0,),
        )
    if words[0] == "train" and given["recipe"] is not None:
        load_recipe(given["recipe"], given["overrides"])
    if words[0] == "eval" and "targets" in given:
        bare = parse_recipe(BASE, "run")
        start_evaluation.suite_specs(bare, given["suites"], given["suite_settings"], has_data=True)
        named = [word for word in given["datasets"] if word in collections()]
        assert named or all(":" in word or word in known_sets() for word in given["datasets"])
    elif words[0] == "eval":
        run = str(given["target"]).startswith("runs/")
        recipe = (
            parse_recipe(BASE, "run")
            if run
            else start_evaluation.find_target(given["target"], given["overrides"], folder / "runs")[
                0
            ]
        )
        if given["suites"]:
            start_evaluation.suite_specs(recipe, given["suites"], given["suite_settings"])


class Done(NamedTuple):
    """A submission that was not written."""

    path: str = ""
    num_files: int = 0
    average: float | None = None
    scores: tuple[()] = ()


def _is_shell(command: Command) -> bool:
    return command.words[0] in ("export", "git", "cd", "sbatch", "tensorboard", "python")


def _try_shell(command: Command, folder: Path) -> None:
    """Other programs: what they are given exists."""
    words = command.words
    if words[0] == "python":
        assert (ROOT / words[1]).is_file(), command
    elif words[0] == "export":
        assert re.fullmatch(r"[A-Z_]+=\S+", words[1]), command
    else:
        assert words[:2] == ["tensorboard", "--logdir"], command


WAYS: dict[str, tuple[Callable[[Command], bool], Callable[[Command, Path], None]]] = {
    "a target of the Makefile": (_is_make, _try_make),
    "packages with extras that exist": (_is_install, _try_install),
    "run for real on a few rendered samples": (_is_run, _try_run),
    "looked up for real": (_is_look_up, _try_look_up),
    "up to the start of workers": (_is_checked, _try_checked),
    "another program": (_is_shell, _try_shell),
}
