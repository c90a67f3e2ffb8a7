"""A training step of lightly 1.6.0 for each recipe whose method it has on the recipe's network."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import lightly_resnets as resnets
import lightly_vits as vits
import torch
from gpu_table import Table, measure
from lightly_resnets import Method, Sizes
from torch import nn
from torch.optim import Optimizer

METHODS: dict[str, Callable[[Sizes], Method]] = {
    "ssl/barlow_twins": resnets.barlow_twins,
    "ssl/byol": resnets.byol,
    "ssl/densecl": resnets.densecl,
    "ssl/dino": vits.dino,
    "ssl/ibot": vits.ibot,
    "ssl/mae": vits.mae,
    "ssl/mocov2": resnets.mocov2,
    "ssl/simclr": resnets.simclr,
    "ssl/simsiam": resnets.simsiam,
    "ssl/swav": resnets.swav,
    "ssl/vicreg": resnets.vicreg,
}
"""Its other methods are not those of a recipe, or run on another network (SimMIM on a plain vision
transformer); MoCo v1 and v3 have no example."""

RATE, MOMENTUM = 1e-3, 0.99


def has_lightly() -> bool:
    return importlib.util.find_spec("lightly") is not None


def lightly_step(table: Table, name: str, case: str, batch_size: int, tiny: bool) -> None:
    """Time the same number and sizes of pictures as vlkd's side encodes, standardized and on the
    device."""
    if name not in METHODS:
        return
    with table.case(case, "lightly"):
        sizes = Sizes(batch_size, table.device, tiny)
        method = METHODS[name](sizes)
        step = _step(method, sizes)
        timing = measure(step, table.device, calls=3)
        table.add(case, "lightly", timing, rate=batch_size / timing.seconds, unit="images/s")


def _step(method: Method, sizes: Sizes) -> Callable[[], object]:
    from lightly.models.utils import update_momentum

    modules = nn.ModuleList(method.modules).to(sizes.device)
    views = [
        torch.randn(sizes.batch_size, 3, *[sizes.pixels(size_px)] * 2, device=sizes.device)
        for count, size_px in method.views
        for _ in range(count)
    ]
    optimizer = _optimizer(method.optimizer, modules)
    parameters = [each for group in optimizer.param_groups for each in group["params"]]

    def step() -> None:
        for followed, follower in method.followers:
            update_momentum(followed, follower, MOMENTUM)
        optimizer.zero_grad()
        with torch.autocast(sizes.device.type, dtype=torch.bfloat16):
            loss = method.loss(views)
        loss.backward()
        if method.clip is not None:
            nn.utils.clip_grad_norm_(parameters, method.clip)
        optimizer.step()

    return step


def _optimizer(name: str, modules: nn.Module) -> Optimizer:
    """The recipe's kind; biases and norms are not decayed on either side."""
    from lightly.models.utils import get_weight_decay_parameters
    from lightly.utils.lars import LARS

    decayed, others = (
        [parameter for parameter in each if parameter.requires_grad]
        for each in get_weight_decay_parameters([modules])
    )
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    if name == "lars":
        return LARS(groups, lr=RATE, momentum=0.9, weight_decay=1e-6)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=RATE, momentum=0.9, weight_decay=1e-4, fused=True)
    return torch.optim.AdamW(groups, lr=RATE, weight_decay=0.05, fused=True)
