"""Training steps of vlkd and of open_clip's trainer on batches that lie on the device."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
import yaml
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from training_sides import draw_caption

from vlkd_cli.data.batch import Batch
from vlkd_cli.engine.build_composition import build_composition
from vlkd_cli.engine.build_towers import build_towers
from vlkd_cli.engine.optim import build_optimizer
from vlkd_cli.engine.parallel import wrap_for_this_group
from vlkd_cli.engine.trainer import Trainer
from vlkd_cli.recipe.load import parse_recipe
from vlkd_cli.recipe.types import Progress
from vlkd_cli.towers.blocks import checkpoint_activations
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


TINY, SMALL = "tiny", "small"
SIZES: dict[str, dict[str, int]] = {
    TINY: {"layers": 1, "width": 16, "heads": 1},
    SMALL: {"layers": 6, "width": 192, "heads": 3},
}
PIXELS = {TINY: {"image_size": 32, "patch_size": 16}, SMALL: {"image_size": 112, "patch_size": 16}}


def tower(model: str, kind: str) -> dict[str, Any]:
    """An image or text tower of one of open_clip's models, or of a size of our own."""
    if model not in SIZES:
        return {"builder": "openclip", "model": model}
    sizes, pixels = SIZES[model], PIXELS[model] if kind == "image" else {}
    return {"builder": "openclip", "config": {**sizes, **pixels, "embed_dim": sizes["width"]}}


class Ours:
    """vlkd's side of a CLIP model: its composition with a trainer.

    Args:
        model: a name of open_clip's.
        sections: of the recipe, instead of the defaults; images are left out where they name
            distillers of texts.
        keys: of the towers and of `train`, over the defaults.
    """

    def __init__(
        self,
        model: str,
        device: torch.device,
        *,
        sections: Mapping[str, Any] = MappingProxyType({}),
        **keys: dict[str, Any],
    ) -> None:
        recipe: dict[str, Any] = {
            "towers": {
                kind: {**tower(model, kind), **keys.get(kind, {})}
                for kind in (("text",) if sections else ("image", "text"))
            },
            "distillers": [{"name": "infonce"}],
            "data": {"reader": "shapes"},
            "train": {
                "batch_size": 10**6,
                "precision": "bf16",
                "log_every_steps": 10**6,
                **keys.get("train", {}),
            },
            "optimizer": {"name": "adamw", **OPTIMIZER},
            "schedule": {"name": "constant"},
            **sections,
        }
        parsed = parse_recipe(yaml.safe_dump(recipe), "gpu.yaml")
        self.device, self.model = device, model
        towers = build_towers(parsed, captions=None, run_folder=None, cache_dir=None)
        self.tokenize = towers["text"].encoder.input  # type: ignore[union-attr]
        if "image" in towers:
            self.size_px = towers["image"].encoder.input.size_px[0]  # type: ignore[union-attr]
        if parsed.train.checkpoint_activations:
            for each in towers.values():
                checkpoint_activations(each.encoder)  # type: ignore[union-attr]
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
        inputs: dict[str, Any] = {"image": images, "text": self.text(texts, tokens)}
        for name in self.frozen:
            inputs[name] = torch.randn(count, self.widths[name], device=self.device)
        return self._step(inputs, count)

    def text_step(self, texts: list[str], *, tokens: int | None = None) -> Step:
        """A step on pairs of texts, the second half's being those of the first."""
        count = len(texts) // 2
        first, second = (self.text(part, tokens) for part in (texts[:count], texts[count:]))
        return self._step({"text": first, "text@second": second}, count)

    def text(self, texts: list[str], tokens: int | None) -> dict[str, Tensor]:
        """Texts as the tower takes them, padded to a length or to that of the longest."""
        found: Mapping[str, Tensor] = self.tokenize(texts)
        return {key: _padded(value, tokens).to(self.device) for key, value in found.items()}

    def _step(self, inputs: dict[str, Any], count: int) -> Step:
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
        casts: whether it multiplies in bfloat16.
    """

    def __init__(
        self,
        model: str,
        device: torch.device,
        *,
        locks: bool = False,
        compiles: bool = False,
        casts: bool = True,
    ) -> None:
        import open_clip
        from open_clip.loss import ClipLoss

        self.device, self.casts = device, casts
        self.model: Any = (
            _own_clip(model)
            if model in SIZES
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
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.casts)

    def _update(self) -> None:
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(100))


def _own_clip(model: str) -> Any:
    from open_clip.model import CLIP

    sizes = SIZES[model]
    head_width = sizes["width"] // sizes["heads"]
    vision = {
        **PIXELS[model],
        "layers": sizes["layers"],
        "width": sizes["width"],
        "head_width": head_width,
    }
    return CLIP(sizes["width"], vision, dict(sizes), output_dict=True)


def flops(step: Step) -> float:
    """Floating-point operations of the products in a step."""
    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())
