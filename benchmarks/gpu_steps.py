"""Training steps of vlkd and of open_clip's trainer on batches that lie on the device."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable
from typing import Any

import torch
import yaml
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from training_sides import draw_caption

from vlkd_cli.data.batch import Batch
from vlkd_cli.engine.build import build_composition, build_towers
from vlkd_cli.engine.optim import build_optimizer
from vlkd_cli.engine.parallel import wrap_for_this_group
from vlkd_cli.engine.trainer import Trainer
from vlkd_cli.recipe.load import parse_recipe
from vlkd_cli.recipe.types import Progress
from vlkd_cli.towers.tower import Tower

Step = Callable[[], object]
CONTEXT = 77
OPTIMIZER = {"lr": 1e-4, "weight_decay": 0.2, "betas": [0.9, 0.98], "eps": 1e-6}
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def pictures(count: int, size: int, device: torch.device) -> Tensor:
    """Random uint8 pictures `[count, 3, size, size]`."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (count, 3, size, size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, device=device, generator=generator)


def captions(count: int) -> list[str]:
    """Sentences of 6 to 20 words."""
    draw = random.Random(0)
    return [draw_caption(draw) for _ in range(count)]


TINY = "tiny"
SIZES: dict[str, int] = {"layers": 1, "width": 16, "heads": 1}


def tower(model: str, kind: str) -> dict[str, Any]:
    """An image or text tower of one of open_clip's models, or a tiny one."""
    if model != TINY:
        return {"builder": "openclip", "model": model}
    pixels = {"image_size": 32, "patch_size": 16} if kind == "image" else {}
    return {"builder": "openclip", "config": {**SIZES, **pixels, "embed_dim": 16}}


class Ours:
    """vlkd's side of a CLIP model: its composition with a trainer.

    Args:
        model: a name of open_clip's.
        sections: of the recipe, over the defaults.
    """

    def __init__(self, model: str, device: torch.device, **sections: dict[str, Any]) -> None:
        recipe: dict[str, Any] = {
            "towers": {
                kind: {**tower(model, kind), **sections.get(kind, {})} for kind in ("image", "text")
            },
            "distillers": [{"name": "infonce"}],
            "data": {"reader": "shapes"},
            "train": {
                "batch_size": 10**6,
                "precision": "bf16",
                "log_every_steps": 10**6,
                **sections.get("train", {}),
            },
            "optimizer": {"name": "adamw", **OPTIMIZER},
            "schedule": {"name": "constant"},
        }
        parsed = parse_recipe(yaml.safe_dump(recipe), "gpu.yaml")
        self.device, self.model = device, model
        towers = build_towers(parsed, captions=None, run_folder=None, cache_dir=None)
        self.tokenize = towers["text"].encoder.input  # type: ignore[union-attr]
        self.size_px = towers["image"].encoder.input.size_px[0]  # type: ignore[union-attr]
        run = {
            name: each.cached() if isinstance(each, Tower) and each.is_frozen else each
            for name, each in towers.items()
        }
        composition = build_composition(parsed, run).to(device)
        self.widths = {name: run[name].width for name in run}
        self.frozen = set(composition.frozen)
        self.trainer = Trainer(
            composition,
            build_optimizer(composition, parsed, Progress(0, 10**6, 10**6)),
            None,  # type: ignore[arg-type]
            parsed.train,
            parsed.schedule,
            device,
            10**6,
            10**6,
            wrap=wrap_for_this_group(compile=parsed.train.compile),
        )

    def step(self, images: Tensor, texts: list[str], *, tokens: int | None = None) -> Step:
        """A step on a batch.

        Args:
            tokens: length that captions are padded to; None: that of the longest.
        """
        count = len(images)
        text = {
            key: _padded(value, tokens).to(self.device)
            for key, value in self.tokenize(texts).items()
        }
        inputs: dict[str, Any] = {"image": images, "text": text}
        for name in self.frozen:
            inputs[name] = torch.randn(count, self.widths[name], device=self.device)
        rows = torch.arange(count, device=self.device)
        batch = Batch(inputs, rows, torch.full_like(rows, -1))

        def step() -> None:
            self.trainer.step([batch])
            self.trainer.step_count += 1

        return step


def _padded(values: Tensor, length: int | None) -> Tensor:
    if length is None or values.shape[1] >= length:
        return values
    return torch.nn.functional.pad(values, (0, length - values.shape[1]))


class Peer:
    """open_clip's side: what `open_clip_train` does in a step, with the fused optimizer that it
    has no option for.

    Args:
        locks: freeze the image tower, as --lock-image.
    """

    def __init__(
        self, model: str, device: torch.device, *, locks: bool = False, compiles: bool = False
    ) -> None:
        import open_clip
        from open_clip.loss import ClipLoss

        self.device = device
        self.model: Any = (
            _tiny_clip()
            if model == TINY
            else open_clip.create_model(model, precision="fp32", output_dict=True)
        )
        self.model.to(device)
        if locks:
            self.model.lock_image_tower()
        self.tokenize = open_clip.get_tokenizer("ViT-B-32")
        size: Any = self.model.visual.image_size
        self.size_px = int(size[0] if isinstance(size, tuple) else size)
        decayed: list[Tensor] = []
        others: list[Tensor] = []
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                (others if parameter.ndim < 2 else decayed).append(parameter)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": others, "weight_decay": 0.0},
                {"params": decayed, "weight_decay": OPTIMIZER["weight_decay"]},
            ],
            lr=OPTIMIZER["lr"],
            betas=tuple(OPTIMIZER["betas"]),
            eps=OPTIMIZER["eps"],
            fused=True,
        )
        self.loss = ClipLoss(local_loss=True, gather_with_grad=True, cache_labels=True)
        self.model.train()
        self.forward = torch.compile(self.model) if compiles else self.model

    def inputs(self, images: Tensor, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Standardized pictures and padded tokens, as its loader gives them."""
        mean, std = (
            torch.tensor(values, device=self.device).view(3, 1, 1) for values in (MEAN, STD)
        )
        return (images.float() / 255 - mean) / std, self.tokenize(texts).to(self.device)

    def step(self, images: Tensor, texts: list[str]) -> Step:
        """A step on a batch."""
        pixels, tokens = self.inputs(images, texts)

        def step() -> None:
            self.optimizer.zero_grad()
            with self._autocast():
                output = self.forward(pixels, tokens)
                losses = self.loss(**output, output_dict=True)
                total = sum(losses.values())
            total.backward()
            self._update()

        return step

    def accumulating_step(self, images: Tensor, texts: list[str], count: int) -> Step:
        """The same over `count` parts of a batch, as with --accum-freq."""
        pixels, tokens = self.inputs(images, texts)
        parts = list(zip(pixels.chunk(count), tokens.chunk(count), strict=True))

        def step() -> None:
            found: list[dict[str, Tensor]] = []
            with torch.no_grad(), self._autocast():
                for pair in parts:
                    output = self.forward(*pair)
                    found.append({key: output[key] for key in ("image_features", "text_features")})
            self.optimizer.zero_grad()
            for number, pair in enumerate(parts):
                with self._autocast():
                    output = self.forward(*pair)
                    whole = {
                        key: torch.cat(
                            [
                                output[key] if other == number else found[other][key]
                                for other in range(count)
                            ]
                        )
                        for key in found[0]
                    }
                    losses = self.loss(**whole, logit_scale=output["logit_scale"], output_dict=True)
                    total = sum(losses.values())
                total.backward()
            self._update()

        return step

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _update(self) -> None:
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(100))


def _tiny_clip() -> Any:
    from open_clip.model import CLIP

    vision = {"image_size": 32, "patch_size": 16, "layers": 1, "width": 16, "head_width": 16}
    return CLIP(16, vision, dict(SIZES), output_dict=True)


def flops(step: Step) -> float:
    """Floating-point operations of the products in a step."""
    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())
