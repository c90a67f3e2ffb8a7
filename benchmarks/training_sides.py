"""The two sides of the training benchmarks: the same small model, batch, precision, data and
augmentation for vlkd and open_clip_train.

The model is about a ViT-Ti/32 with a 4-layer text tower. Images are JPEG files with the spectrum of
photographs (amplitude falling as 1 / frequency); captions have the lengths of those people write, 6
to 20 words with a mean of 11.

As a program it is one training's process, which waits for its turns (see `turns`):
`training_sides.py vlkd RECIPE RUN_FOLDER` or `training_sides.py open_clip MODEL.json ARGUMENTS...`.
The peer's may be of another environment, so it imports nothing of vlkd.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import sys
import tarfile
from pathlib import Path
from typing import Any

from turns import Epochs, Training

BATCH = 64
MODEL: dict[str, Any] = {
    "embed_dim": 256,
    "vision_cfg": {
        "image_size": 224,
        "layers": 12,
        "width": 192,
        "head_width": 64,
        "patch_size": 32,
    },
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "layers": 4, "width": 256, "heads": 4},
}
IMAGE = {
    "builder": "openclip",
    "config": {
        "embed_dim": 256,
        "image_size": 224,
        "layers": 12,
        "width": 192,
        "heads": 3,
        "patch_size": 32,
    },
}
TEXT = {"builder": "openclip", "config": {"embed_dim": 256, "layers": 4, "width": 256, "heads": 4}}
OPTIMIZER = {"lr": 5e-4, "weight_decay": 0.2, "betas": [0.9, 0.98], "eps": 1e-6}
WARMUP_STEPS = 20
SCALE = (0.9, 1.0)

LOCKS = {"image": ("--lock-image",), "text": ("--lock-text", "--lock-text-freeze-layer-norm")}

SUBJECTS = (
    "dog",
    "cat",
    "man",
    "woman",
    "child",
    "bicycle",
    "horse",
    "bird",
    "boat",
    "train",
    "car",
    "kitchen",
    "table",
    "tree",
    "road",
)
QUALITIES = (
    "small",
    "large",
    "red",
    "blue",
    "old",
    "young",
    "wooden",
    "striped",
    "bright",
    "quiet",
    "wet",
    "empty",
    "tall",
    "happy",
)
ACTIONS = (
    "standing",
    "sitting",
    "running",
    "waiting",
    "playing",
    "resting",
    "moving",
    "looking",
    "leaning",
    "jumping",
    "walking",
)
PLACES = (
    "near",
    "behind",
    "around",
    "above",
    "below",
    "under",
    "inside",
    "across",
    "against",
    "along",
)


def draw_data(
    folder: Path,
    samples: int,
    *,
    size: tuple[int, int] = (256, 341),
    shards: int = 2,
    seed: int = 0,
) -> None:
    """Images with captions as `pairs.csv` and as `shard-NNNN.tar`."""
    import numpy as np
    from PIL import Image

    generator, draw = np.random.default_rng(seed), random.Random(seed)
    height, width = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = 1.0
    rows = ["filepath\ttitle"]
    files = []
    for number in range(samples):
        noise = np.fft.rfft2(generator.standard_normal((3, height, width))) / frequency
        noise[1:] = 0.7 * noise[0] + 0.3 * noise[1:]  # colors go together, as in photographs
        pixels = np.fft.irfft2(noise, s=size)
        pixels = (pixels - pixels.mean()) / pixels.std() * 50 + 120
        content = io.BytesIO()
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8).transpose(1, 2, 0)).save(
            content, "JPEG", quality=90
        )
        path = folder / f"{number:06}.jpg"
        path.write_bytes(content.getvalue())
        caption = draw_caption(draw)
        rows.append(f"{path}\t{caption}")
        files.append((path.stem, content.getvalue(), caption.encode()))
    (folder / "pairs.csv").write_text("\n".join(rows) + "\n")
    for shard in range(shards):
        with tarfile.open(folder / f"shard-{shard:04}.tar", "w") as tar:
            for stem, image, caption in files[shard::shards]:
                for suffix, member in (("jpg", image), ("txt", caption)):
                    entry = tarfile.TarInfo(f"{stem}.{suffix}")
                    entry.size = len(member)
                    tar.addfile(entry, io.BytesIO(member))


def draw_caption(draw: random.Random) -> str:
    """A sentence of 6 to 20 words."""
    length = min(20, max(6, round(draw.gauss(11, 2.5))))
    words = ["a", draw.choice(QUALITIES), draw.choice(SUBJECTS), draw.choice(ACTIONS)]
    while len(words) < length:
        words += [draw.choice(PLACES), "the", draw.choice(QUALITIES), draw.choice(SUBJECTS)]
    return " ".join(words[:length])


def recipe_for(
    folder: Path, *, reader: str, epochs: int, precision: str, workers: int, **sections: Any
) -> dict[str, Any]:
    """Vlkd's side; `sections` replace whole sections or, where both are mappings, single keys."""
    data = {
        "csv": {"reader": "csv", "path": str(folder / "pairs.csv"), "sep": "\t"},
        "webdataset": _shards(folder),
    }[reader]
    recipe: dict[str, Any] = {
        "towers": {"image": IMAGE, "text": TEXT},
        "distillers": [{"name": "infonce"}],
        "data": {**data, "augment": {"name": "standard", "scale": list(SCALE)}, "workers": workers},
        "train": {
            "epochs": epochs,
            "batch_size": BATCH,
            "precision": precision,
            "log_every_steps": 100,
            "save_every_epochs": None,
            "cache_dir": str(folder / "cache"),
        },
        "optimizer": {"name": "adamw", **OPTIMIZER},
        "schedule": {"name": "cosine", "warmup_steps": WARMUP_STEPS},
    }
    for name, section in sections.items():
        recipe[name] = {**recipe[name], **section} if isinstance(section, dict) else section
    return recipe


def _shards(folder: Path) -> dict[str, Any]:
    return {"reader": "webdataset", "path": str(folder / "shard-*.tar")}


def start_vlkd(folder: Path, recipe: dict[str, Any], name: str, mode: str = "vlkd") -> Training:
    """A vlkd training that waits for its first turn."""
    import yaml

    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return Training(
        [sys.executable, __file__, mode, str(path), str(folder / f"run_{name}")],
        folder / f"{name}.log",
    )


def start_open_clip(
    folder: Path,
    name: str,
    *,
    reader: str,
    epochs: int,
    precision: str,
    workers: int,
    python: str | None = None,
    options: tuple[str, ...] = (),
) -> Training:
    """An open_clip training that waits for its first turn.

    Args:
        python: interpreter of another environment.
        options: further arguments of open_clip_train, e.g. --lock-image.
    """
    model = folder / "ViT-Ti-32-small.json"
    model.write_text(json.dumps(MODEL))
    samples = len((folder / "pairs.csv").read_text().splitlines()) - 1
    shards = sorted(folder.glob("shard-*.tar"))
    data = {
        "csv": ["--dataset-type", "csv", "--train-data", str(folder / "pairs.csv")],
        "webdataset": [
            "--dataset-type",
            "webdataset",
            "--train-num-samples",
            str(samples),
            "--train-data",
            f"{folder}/shard-{{0000..{len(shards) - 1:04}}}.tar",
        ],
    }[reader]
    arguments = [
        *data,
        "--model",
        model.stem,
        "--precision",
        {"fp32": "fp32", "bf16": "amp_bf16"}[precision],
        "--device",
        "cpu",
        "--batch-size",
        str(BATCH),
        "--epochs",
        str(epochs),
        "--workers",
        str(workers),
        "--warmup",
        str(WARMUP_STEPS),
        "--lr",
        str(OPTIMIZER["lr"]),
        "--wd",
        str(OPTIMIZER["weight_decay"]),
        "--beta1",
        "0.9",
        "--beta2",
        "0.98",
        "--eps",
        "1e-6",
        "--aug-cfg",
        f"scale=({SCALE[0]}, {SCALE[1]})",
        "--log-every-n-steps",
        "100",
        "--save-frequency",
        "0",
        "--logs",
        str(folder / "open_clip_logs"),
        "--name",
        name,
        *options,
    ]
    return Training(
        [python or sys.executable, __file__, "open_clip", str(model), *arguments],
        folder / f"{name}.log",
    )


def _run_vlkd(recipe: str, run: str) -> int:
    import torch

    from vlkd_cli.engine.launching.start import TrainRequest, start_training
    from vlkd_cli.engine.run import Run

    torch.set_num_threads(1)
    epochs, start_epoch = Epochs(), Run.start_epoch
    with contextlib.ExitStack() as under_way:

        def in_turn(self: Run, epoch: int) -> None:
            under_way.close()
            under_way.enter_context(epochs.epoch())
            start_epoch(self, epoch)

        Run.start_epoch = in_turn  # type: ignore[method-assign]
        return start_training(TrainRequest(recipe=recipe, run=Path(run)))


def _run_vlkd_without_frozen(recipe: str, run: str) -> int:
    """The same training with a constant in place of the frozen tower: no row is read for it."""
    import torch

    from vlkd_cli.data.views import FeatureView

    constants: dict[int, torch.Tensor] = {}

    def constant(self: FeatureView, samples: Any, *_: Any) -> torch.Tensor:
        if len(samples) not in constants:
            constants[len(samples)] = torch.randn(
                len(samples), self.width, generator=torch.Generator().manual_seed(0)
            )
        return constants[len(samples)]

    FeatureView.__call__ = FeatureView.gather = constant  # type: ignore[assignment, method-assign]
    return _run_vlkd(recipe, run)


def _run_open_clip(model: str, *arguments: str) -> int:
    import open_clip
    import torch
    from open_clip_train import main

    torch.set_num_threads(1)
    open_clip.add_model_config(Path(model))
    epochs, train_one_epoch = Epochs(), main.train_one_epoch

    def in_turn(*given: Any, **named: Any) -> None:
        with epochs.epoch():
            train_one_epoch(*given, **named)

    main.train_one_epoch = in_turn
    main.main(list(arguments))
    return 0


if __name__ == "__main__":
    side = {
        "vlkd": _run_vlkd,
        "vlkd_without_frozen": _run_vlkd_without_frozen,
        "open_clip": _run_open_clip,
    }[sys.argv[1]]
    sys.exit(side(*sys.argv[2:]))
