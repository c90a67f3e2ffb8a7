"""Every method and form that tests run, small enough for tiny encoders, and towers made with
them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.support.encoders import SENTENCES

Method = tuple[str, dict[str, Any]]

METHODS: dict[str, Method] = {
    "bottleneck": ("bottleneck", {}),
    "houlsby": ("bottleneck", {"form": "houlsby"}),
    "pfeiffer": ("bottleneck", {"form": "pfeiffer"}),
    "parallel": ("bottleneck", {"form": "parallel"}),
    "adapter_plus": ("bottleneck", {"form": "adapter_plus", "reduction_factor": 16}),
    "language": ("language", {}),
    "language_houlsby": ("language", {"form": "houlsby"}),
    "compacter": ("compacter", {"reduction_factor": 4}),
    "compacter_plus_plus": ("compacter", {"form": "compacter_plus_plus", "reduction_factor": 4}),
    "prefix_tuning": ("prefix_tuning", {}),
    "prefix_tuning_flat": ("prefix_tuning", {"flat": True}),
    "prompt_tuning": ("prompt_tuning", {}),
    "lora": ("lora", {}),
    "dora": ("dora", {}),
    "vera": ("vera", {"rank": 8}),
    "ia3": ("ia3", {}),
    "mtl_lora": ("mtl_lora", {}),
    "loreft": ("reft", {}),
    "noreft": ("reft", {"form": "noreft", "last_tokens": 2}),
    "direft": ("reft", {"form": "direft"}),
    "mix_and_match": ("mix_and_match", {}),
    "unipelt": ("unipelt", {}),
}

STARTS_AS_IDENTITY = (
    "parallel",
    "compacter",
    "compacter_plus_plus",
    "lora",
    "dora",
    "vera",
    "ia3",
    "mtl_lora",
)


def adapted(folder: Path, method: str, *, seed: int = 0, **section: Any) -> Any:
    """A text tower over the encoder in `folder` with one of METHODS, its random weights made with a
    seed."""
    from vlkd_cli.recipe.schema import TowerSpec
    from vlkd_cli.towers.assemble import assemble

    name, keys = METHODS[method]
    torch.manual_seed(seed)
    return assemble(
        "text",
        TowerSpec.model_validate(
            {
                "builder": "adapters",
                "model": str(folder),
                "adapter": {"name": name, **keys},
                **section,
            }
        ),
    )


def shake(tower: Any, seed: int = 1) -> None:
    """Move everything that learns away from its start, so that no method is the identity any
    more."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in tower.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def embed(tower: Any, sentences: list[str] | None = None) -> Tensor:
    """Embeddings without dropout and gradient."""
    tower.eval()
    with torch.no_grad():
        return tower.encode(tower.input(sentences or SENTENCES))


def take_step(tower: Any, optimizer: torch.optim.Optimizer, seed: int) -> None:
    """One step of an arbitrary objective, dropout and all."""
    tower.train()
    torch.manual_seed(seed)
    embedding = tower.encode(tower.input(SENTENCES))
    (embedding * torch.randn(embedding.shape[-1])).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
