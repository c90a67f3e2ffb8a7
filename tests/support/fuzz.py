"""Mutated inputs: what each family of files is read by, and how its files are damaged.

Run as a program, it reads seeds of one or several families in a process of its own and prints what
went wrong: `python -m tests.support.fuzz FAMILY:FIRST:COUNT ... [--folder PLACE]`.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS, MEBIBYTES = 20, 1024
"""What one input may cost at most."""

ODD_BYTES = [
    *(b"\0", b"\xff", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b'"', b"'", b"\r", b"\t", b",", b"{", b"]"),
    *(b"\x1b[31m", b"9" * 400, b"x" * 5000, b"[" * 300, b"\xf0\x9f\x92\xa5", b"\xed\xa0\x80"),
]
ODD_VALUES = [
    *("null", "[]", "{}", "''", "true", "~", "-1", "0", "-0.0", ".inf", ".nan", "1e400", "1e-400"),
    *("99999999999999999999", "9" * 5000, "0x_", "2024-01-01", "[[[[]]]]", "{a: {b: {c: 1}}}"),
    *("'\\ud800'", '"\\0"', '"\\e["', "\u2028", "os:getcwd", "::", "..:X", "'pipe:touch sprung'"),
    *("${NOT_SET}", "${NOT_SET:-x}", "!!binary aGk=", "!!float x", "*a", "&a [*a]", "<<: *a"),
    *(
        "{<<: {a: 1}}",
        "image@",
        "image.backbone@@b",
        ".",
        "[image, [text]]",
        "[csv, csv]",
        "'{a,b'",
    ),
    *("{linear: [0, 1], epochs: 0}", "{cosine: [1]}", "{last: 0}", "{last: 99999}", "['!*']"),
    *(
        "{reader: csv}",
        "{readers: [{}]}",
        "{name: [1]}",
        "{name: linear, width: -1}",
        "{name: csv}",
    ),
]


def damaged(draw: random.Random, content: bytes) -> bytes:
    """The bytes with one to three mistakes of the kinds that disks, editors and people make."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(len(data) + 1)
        length = draw.choice([1, 4, 40, 400])
        how = draw.randrange(7)
        if how == 0:
            del data[place:]
        elif how == 1:
            del data[place : place + length]
        elif how == 2:
            data[place : place + length] = draw.randbytes(min(length, len(data) - place))
        elif how == 3:
            data[place : place + length] = bytes(min(length, len(data) - place))
        elif how == 4:
            data[place:place] = draw.choice(ODD_BYTES)
        elif how == 5:
            data[place:place] = data[: draw.randrange(len(data) + 1)]
        else:
            data[place : place + 1] = draw.choice(ODD_BYTES)
    return bytes(data)


def damage_a_file(draw: random.Random, folder: Path, pattern: str = "*") -> None:
    """Damage one of the files of a folder, or replace it by something that is not a file."""
    files = sorted(path for path in folder.rglob(pattern) if path.is_file())
    path = draw.choice(files)
    how = draw.randrange(12)
    if how == 0:
        path.unlink()
    elif how == 1:
        path.unlink()
        path.mkdir()
    elif how == 2:
        path.write_bytes(b"")
    else:
        path.write_bytes(damaged(draw, path.read_bytes()))


# -- recipes ---------------------------------------------------------------------------------------


def mutate_recipe(draw: random.Random) -> str:
    from tests.support.recipes import SMALL
    from vlkd_cli.recipe.shipped import shipped_recipes

    texts = [SMALL, *(path.read_text() for path in shipped_recipes().values())]
    lines = draw.choice(texts).splitlines()
    for _ in range(draw.randint(1, 3)):
        number = draw.randrange(len(lines)) if lines else 0
        how = draw.randrange(6)
        if not lines or how == 0:
            lines.insert(number, draw.choice(lines) if lines else "a: 1")
        elif how == 1:
            del lines[number]
        elif how == 2:
            lines[number] = damaged(draw, lines[number].encode()).decode("utf-8", "replace")
        elif how == 3 and ":" in lines[number]:
            lines[number] = lines[number].partition(":")[0] + ": " + draw.choice(ODD_VALUES)
        elif how == 4:
            words = lines[number].split(" ")
            words[draw.randrange(len(words))] = draw.choice(ODD_VALUES)
            lines[number] = " ".join(words)
        else:
            lines[number] = " " * draw.randint(0, 6) + lines[number].lstrip()
    return "\n".join(lines)


ODD_NODES: list[Any] = [
    *(
        None,
        True,
        False,
        -1,
        0,
        1,
        3,
        2**31,
        2**70,
        0.0,
        -0.5,
        1.5,
        1e-30,
        1e30,
        float("inf"),
        "",
        "x",
    ),
    *(
        [],
        {},
        [1],
        ["x"],
        {"name": "x"},
        {"a": {"b": 1}},
        "image",
        "text@a",
        [["image"]],
        "none",
        "head",
    ),
    *({"linear": [0, 1]}, {"cosine": [1, 0], "steps": 2}, {"last": 1}, "csv", {"reader": "shapes"}),
]


def mutated(draw: random.Random, tree: Any) -> Any:
    """The plain values with a node replaced, removed, renamed or written twice."""
    if not isinstance(tree, dict | list) or not tree or draw.random() < 0.15:
        return draw.choice(ODD_NODES)
    made: Any = dict(tree) if isinstance(tree, dict) else list(tree)
    key = draw.choice(list(made)) if isinstance(made, dict) else draw.randrange(len(made))
    how = draw.random()
    if how < 0.8:
        made[key] = mutated(draw, made[key])
    elif how < 0.87:
        del made[key]
    elif isinstance(made, list):
        made.append(made[key])
    elif how < 0.94:
        made[draw.choice(["name", "width", "x", str(key)[:-1] or "y"])] = made.pop(key)
    else:
        made[draw.choice(["heads", "lr", "copies", "every_steps"])] = draw.choice(ODD_NODES)
    return made


def mutate_tree(draw: random.Random) -> str:
    import yaml

    from tests.support.recipes import SMALL
    from vlkd_cli.recipe.shipped import shipped_recipes

    texts = [SMALL, *(path.read_text() for path in shipped_recipes().values())]
    tree = yaml.safe_load(draw.choice(texts))
    for _ in range(draw.randint(1, 3)):
        tree = mutated(draw, tree)
    return yaml.safe_dump(tree, sort_keys=False)


SETTINGS: dict[str, list[Any]] = {
    "towers.image.config.width": [0, 1, 7, 10**9],
    "towers.image.config.heads": [0, 3, 17],
    "towers.image.config.layers": [0, 40],
    "towers.image.config.image_size": [1, 7, 10**6],
    "towers.image.config.patch_size": [0, 33, 32],
    "towers.image.head": [
        {"name": "linear", "width": 10**12},
        {"name": "mlp", "width": 4, "layers": 100},
        {"name": "mlp", "width": 4, "dropout": 1.0},
        {"name": "prototypes", "num_prototypes": 1, "bottleneck": 10**9},
    ],
    "towers.image.pooler": [{"name": "eot"}, {"name": "gem", "p": 1e-9}, {"name": "attention"}],
    "towers.image": [{"builder": "torchvision", "model": "resnet18", "image_size": 1}],
    "towers.text.config.width": [10**9, 1],
    "towers.text.config.context_length": [1, 2, 3, 10**9],
    "towers.text.config.vocab_size": [1, 10**12],
    "towers.text.prompt": [{"tokens": 1}, {"tokens": 75}, {"tokens": 10**9}, {"init_text": ""}],
    "towers.text.train": ["none", "head", ["*"], ["!*"], ["nothing.*"], {"last": 10**9}],
    "towers.text.layer_decay": [1e-300, 1.0],
    "towers.text.lr": [1e30, 1e-300],
    "distillers": [
        [{"name": name}]
        for name in ("vicreg", "barlow_twins", "rkd", "unicl", "simcse", "cross_entropy", "dino")
    ],
    "distillers.0.weight": [0, -1, 1e38, {"linear": [-1, 1]}],
    "distillers.0.logit_scale": [0, 1e38, -5],
    "data.num_samples": [1, 2, 7],
    "data.size_px": [1, 2, 10**5],
    "data.episode_samples": [1, 10**18],
    "data.augment": [{"name": "standard", "scale": [0, 0]}, {"name": "simclr", "strength": 1e9}],
    "train.batch_size": [1, 16, 17, 10**12],
    "train.accumulate": [2, 10**12],
    "train.epochs": [2**31, 10**18],
    "train.steps": [1, 10**18],
    "train.precision": ["bf16", "fp16"],
    "train.clip_grad_norm": [1e-300, 1e300],
    "train.ema": [1e-9, 0.999999],
    "train.channels_last": [True],
    "train.best": ["retrieval", "retrieval.nothing", "retrieval.mean_recall"],
    "optimizer": [
        {"name": "adamw", "betas": [2, 2]},
        {"name": "sgd", "momentum": -1},
        {"name": "sgd", "nesterov": True},
        {"name": "rprop", "etas": [2, 0.5]},
        {"name": "lars", "lr": 1e30},
        {"name": "lion", "betas": [0, 0]},
        {"name": "adafactor"},
        {"name": "adamw", "eps": -1},
    ],
    "schedule.warmup_steps": [10**18],
    "schedule.warmup_epochs": [1e30],
    "schedule.end_factor": [1e300],
    "evals.0.data": [{"reader": "shapes", "num_samples": 1}, "cifar10", {"reader": "csv"}],
    "evals.0.every_steps": [1],
}
"""Values at the limits of what settings take, by their places in a tiny recipe."""


def start_run(draw: random.Random, folder: Path) -> None:
    """A dry run of a tiny recipe with one or two values at their limits."""
    import yaml

    from tests.unit.engine.recipes import tiny_recipe
    from vlkd_cli.engine.launching.start import TrainRequest, start_training

    eval_ = [{"suite": "retrieval", "data": {"reader": "shapes", "num_samples": 6}}]
    tree: Any = copy.deepcopy(tiny_recipe(evals=eval_, schedule={"warmup_steps": 1}))
    tree["data"]["num_samples"] = 16
    for key in draw.sample(sorted(SETTINGS), draw.randint(1, 2)):
        *outer, last = key.split(".")
        here = tree
        for part in outer:
            here = here[int(part)] if isinstance(here, list) else here.setdefault(part, {})
        here[last] = copy.deepcopy(draw.choice(SETTINGS[key]))
    path = folder / "r.yaml"
    path.write_text(yaml.safe_dump(tree))
    start_training(TrainRequest(recipe=str(path), dry_run=True, quiet=True, cpu_workers=1))


def read_recipe(draw: random.Random, folder: Path) -> None:
    from vlkd_cli.recipe.load import parse_recipe, recipe_from_json
    from vlkd_cli.recipe.snapshot import recipe_to_json, recipe_to_yaml

    keys = [
        "towers.image",
        "train.seed",
        "data",
        "distillers[0].weight",
        "a.b",
        "evals.0",
        "towers",
    ]
    chosen = draw.choice(keys), draw.choice(ODD_VALUES)
    overrides = ["=".join(chosen)] if draw.random() < 0.4 else []
    text = mutate_recipe(draw) if draw.random() < 0.4 else mutate_tree(draw)
    recipe = parse_recipe(text, "r.yaml", overrides, foreign=draw.random() < 0.2)
    assert recipe_from_json(recipe_to_json(recipe)) == recipe
    assert parse_recipe(recipe_to_yaml(recipe), "again.yaml") == recipe


# -- tables, shards and images ---------------------------------------------------------------------


def read_all(section: dict[str, Any]) -> None:
    """Open a reader and read every sample as the loader would; broken samples are allowed."""
    from vlkd_cli.data.batch import Broken
    from vlkd_cli.data.images.decode import Picture
    from vlkd_cli.data.readers.open import open_reader
    from vlkd_cli.data.readers.reader import Reader

    reader = open_reader(section)
    reader = pickle_copy(reader)
    if not isinstance(reader, Reader):
        list(reader.stream(0, 0, 0, 1))
        return
    reader.fingerprint()
    for index in range(min(len(reader), 64)):
        for read in (reader.captions, reader.labels, reader.name):
            for text in contained(read, index):
                assert not isinstance(text, str) or text.encode() is not None
        for source in contained(lambda i: [reader.image(i)], index):
            try:
                if source is not None:
                    Picture(source).pixels()
            except Broken:
                continue


def contained(read: Callable[[int], Any], index: int) -> Any:
    from vlkd_cli.data.batch import Broken

    try:
        return read(index)
    except Broken:
        return ()


def pickle_copy(value: Any) -> Any:
    """What a loader worker gets."""
    import pickle

    return pickle.loads(pickle.dumps(value))


def read_table(draw: random.Random, folder: Path) -> None:
    from tests.support.data_sets import READER_DATA

    name = draw.choice(["csv", "csv", "coco", "folder", "classification", "images"])
    section = READER_DATA[name](folder)
    if name == "csv" and draw.random() < 0.5:
        section |= draw.choice(
            [{"label": "title"}, {"caption_separator": ";"}, {"group": False}, {"quotes": True}]
        )
    tables = [path for path in folder.rglob("*") if path.suffix in (".tsv", ".json", ".txt")]
    damage_a_file(draw, folder, f"*{tables[0].suffix}" if tables else "*")
    read_all(section)


def read_shard(draw: random.Random, folder: Path) -> None:
    from tests.support.data_sets import READER_DATA

    name = draw.choice(["webdataset", "webdataset", "clip_benchmark"])
    section = READER_DATA[name](folder)
    if name == "webdataset" and draw.random() < 0.3:
        section |= {"stream": True, "samples_per_epoch": 8}
    damage_a_file(draw, folder)
    read_all(section)


def read_image(draw: random.Random, folder: Path) -> None:
    from tests.support.data_sets import encoded, photo
    from vlkd_cli.data.batch import Broken
    from vlkd_cli.data.images.decode import Picture

    kind = draw.choice(["JPEG", "JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
    extra = {"exif": exif(draw)} if kind in ("JPEG", "PNG", "WEBP") and draw.random() < 0.5 else {}
    content = damaged(draw, encoded(photo(draw.randrange(6)), kind, **extra))
    path = folder / f"x.{kind.lower()}"
    path.write_bytes(content)
    for source in (content, str(path)):
        try:
            Picture(source).pixels()
        except Broken:
            continue


def exif(draw: random.Random) -> bytes:
    from PIL import Image

    tags = Image.Exif()
    tags[0x0112] = draw.randint(0, 12)
    return tags.tobytes()


# -- checkpoints and caches ------------------------------------------------------------------------


def read_checkpoint(draw: random.Random, folder: Path) -> None:
    import torch

    from tests.unit.engine.recipes import tiny_recipe
    from vlkd_cli.checkpoint import Checkpoint
    from vlkd_cli.engine.evaluate import load_towers

    recipe = tiny_recipe()
    saved = Checkpoint(
        step=3,
        recipe=json.dumps(recipe),
        world_size=1,
        global_batch=8,
        towers={"image": {"head.weight": torch.zeros(2, 2)}, "text": {}},
        ema={"towers.image.head.weight": torch.ones(2, 2)},
        files={"tokenizers/text.json": b"{}"},
    )
    path = saved.save(folder)
    if draw.random() < 0.5:
        path.write_bytes(damaged(draw, path.read_bytes()))
    else:
        content = torch.load(path, weights_only=True)
        odd = [
            None,
            -1,
            2**70,
            1.5,
            "",
            "x",
            [],
            {},
            {"a": 1},
            torch.zeros(0),
            b"\xff",
            True,
            {1: 2},
        ]
        for _ in range(draw.randint(1, 2)):
            key = draw.choice(sorted(content))
            if draw.random() < 0.2:
                del content[key]
            elif key == "recipe" and draw.random() < 0.7:
                content[key] = damaged(draw, str(content[key]).encode()).decode("utf-8", "replace")
            elif isinstance(content[key], dict) and content[key] and draw.random() < 0.6:
                content[key] = {**content[key], draw.choice(sorted(content[key])): draw.choice(odd)}
            else:
                content[key] = draw.choice(odd)
        torch.save(content, path)
    checkpoint = Checkpoint.load(path)
    load_towers(checkpoint.read_recipe(), folder, checkpoint)


def read_cache(draw: random.Random, folder: Path) -> None:
    import numpy as np

    from tests.support.data_sets import READER_DATA
    from vlkd_cli.data.files import cached_arrays
    from vlkd_cli.data.readers.open import open_reader
    from vlkd_cli.features.store import FeatureStore

    if draw.random() < 0.4:
        place = folder / "features"
        FeatureStore(place, 6, 4).write(np.arange(6), np.ones((6, 4), np.float32))
        damage_a_file(draw, place)
        store = FeatureStore(place, 6, 4)
        rows = store.table()[store.done.astype(bool)]
        assert not store.done.all() or np.isfinite(rows).all(), "a damaged table is believed"
        return
    cached_arrays.CACHE_ABOVE_BYTES = 0
    section = READER_DATA[draw.choice(["csv", "webdataset"])](folder / "data")

    def texts() -> list[Any]:
        reader: Any = open_reader(section)
        return [(list(reader.captions(i)), list(reader.labels(i))) for i in range(len(reader))]

    before = texts()
    cache = cached_arrays.data_cache()
    if any(path.is_file() for path in cache.rglob("*")):
        damage_a_file(draw, cache)
    assert texts() == before, "a damaged index is believed"


FAMILIES: dict[str, Callable[[random.Random, Path], None]] = {
    "recipes": read_recipe,
    "tables": read_table,
    "shards": read_shard,
    "images": read_image,
    "checkpoints": read_checkpoint,
    "caches": read_cache,
    "runs": start_run,
}


def verdict(family: str, seed: int, place: Path) -> str | None:
    """What is wrong with how one mutated input ends; None where it is success or one line."""
    from vlkd_cli.errors import UserError

    folder = place / f"{family}-{seed}"
    folder.mkdir(parents=True)
    memory = peak_mebibytes()
    # Time of the processor, not of a machine that others use too; and an end to waiting.
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(10 * SECONDS)
    try:
        FAMILIES[family](random.Random(f"{family}{seed}"), folder)
    except UserError as error:
        # Everything but a line feed is shown as an escape, see `console.error`.
        lines = str(error).split("\n")
        if not lines or (len(lines) > 1 and family not in ("recipes", "runs")):
            return f"not one line: {str(error)!r}"
    except TimeoutError:
        return f"still running after {SECONDS} s"
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        text = "".join(traceback.format_exception_only(error)).strip()[:300]
        return f"{text} ({Path(last.filename).name}:{last.lineno})"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        shutil.rmtree(folder, ignore_errors=True)
    grown = peak_mebibytes() - memory
    return f"took {grown:.0f} MiB" if grown > MEBIBYTES else None


def warm_up() -> None:
    """Import what takes its time before time is measured."""
    import torch

    import vlkd_cli.builders.openclip.towers
    import vlkd_cli.builders.timm.builder
    import vlkd_cli.engine.worker
    import vlkd_cli.evaluation.suites.retrieval  # noqa: F401

    torch.set_num_threads(1)


def peak_mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(words: list[str]) -> None:
    def stop(*_: Any) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, stop)
    signal.signal(signal.SIGPROF, stop)
    # A runaway allocation fails instead of taking the machine with it.
    resource.setrlimit(resource.RLIMIT_DATA, (6 << 30, 6 << 30))
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as place:
        import os

        os.environ["VLKD_CACHE"] = f"{place}/cache"
        os.chdir(place)
        warm_up()
        for word in words:
            family, first, count = word.split(":")
            for seed in range(int(first), int(first) + int(count)):
                shutil.rmtree(f"{place}/cache", ignore_errors=True)
                with (
                    contextlib.redirect_stdout(io.StringIO()),
                    contextlib.redirect_stderr(sys.stdout),
                ):
                    message = verdict(family, seed, Path(place))
                if message is not None:
                    found[f"{family}:{seed}"] = message
        assert not Path("sprung").exists(), "a command of a recipe was run"
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
