"""Methods of lightly 1.6.0 on a ResNet: its heads, losses and momentum updates, put together as in
the examples of its repository (github.com/lightly-ai/lightly, examples/pytorch)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

Views = list[Tensor]


class Sizes(NamedTuple):
    """Of the networks and pictures of a recipe, or tiny ones; and where they are."""

    batch_size: int
    device: torch.device
    tiny: bool

    def of(self, width: int) -> int:
        return min(width, 32) if self.tiny else width

    def pixels(self, size_px: int) -> int:
        return {224: 64, 96: 32}[size_px] if self.tiny else size_px

    def resnet(self) -> tuple[Any, int]:
        """The network without its classifier, and the width of its features."""
        net = torchvision.models.resnet18() if self.tiny else torchvision.models.resnet50()
        width, net.fc = net.fc.in_features, nn.Identity()
        return net, width

    def vit(self, model: str, **config: Any) -> Any:
        if self.tiny:
            model = "vit_tiny_patch16_224"
            config |= {"img_size": 64, "patch_size": 8, "depth": 1}
        return timm.create_model(model, num_classes=0, **config)


class Method(NamedTuple):
    """What an example trains.

    Args:
        loss: of a list of views.
        modules: everything that it uses; what requires gradients is trained.
        views: how many pictures of which size.
        followers: followed modules and their copies.
        clip: norm that gradients are cut to, where the recipe cuts them.
    """

    loss: Callable[[Views], Tensor]
    modules: list[nn.Module]
    views: tuple[tuple[int, int], ...] = ((2, 224),)
    optimizer: str = "lars"
    followers: tuple[tuple[nn.Module, nn.Module], ...] = ()
    clip: float | None = None


def key_of(module: nn.Module) -> Any:
    return copy.deepcopy(module).requires_grad_(False)


def simclr(sizes: Sizes) -> Method:
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    net, width = sizes.resnet()
    return _pair(net, SimCLRProjectionHead(width, sizes.of(2048), 128), NTXentLoss(0.1))


def barlow_twins(sizes: Sizes) -> Method:
    from lightly.loss import BarlowTwinsLoss
    from lightly.models.modules import BarlowTwinsProjectionHead

    net, width = sizes.resnet()
    project = BarlowTwinsProjectionHead(width, sizes.of(8192), sizes.of(8192))
    return _pair(net, project, BarlowTwinsLoss(0.0051))


def vicreg(sizes: Sizes) -> Method:
    from lightly.loss import VICRegLoss
    from lightly.models.modules.heads import VICRegProjectionHead

    net, width = sizes.resnet()
    project = VICRegProjectionHead(width, sizes.of(8192), sizes.of(8192))
    return _pair(net, project, VICRegLoss())


def _pair(net: Any, project: Any, criterion: Any) -> Method:
    def loss(views: Views) -> Tensor:
        first, second = (project(net(view)) for view in views)
        return criterion(first, second)

    return Method(loss, [net, project, criterion])


def byol(sizes: Sizes) -> Method:
    from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead

    net, width = sizes.resnet()
    project = BYOLProjectionHead(width, sizes.of(4096), 256)
    predict = BYOLPredictionHead(256, sizes.of(4096), 256)
    net_key, project_key = key_of(net), key_of(project)

    def loss(views: Views) -> Tensor:
        predicted = [predict(project(net(view))) for view in views]
        with torch.no_grad():
            targets = [project_key(net_key(view)) for view in views]
        return _opposite(predicted, targets)

    followers = ((net, net_key), (project, project_key))
    modules = [net, project, predict, net_key, project_key]
    return Method(loss, modules, followers=followers)


def simsiam(sizes: Sizes) -> Method:
    from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead

    net, width = sizes.resnet()
    wide = sizes.of(2048)
    project, predict = (
        SimSiamProjectionHead(width, wide, wide),
        SimSiamPredictionHead(wide, 512, wide),
    )

    def loss(views: Views) -> Tensor:
        projected = [project(net(view)) for view in views]
        targets = [each.detach() for each in projected]
        return _opposite([predict(each) for each in projected], targets)

    return Method(loss, [net, project, predict], optimizer="sgd")


def _opposite(predicted: Views, targets: Views) -> Tensor:
    """Of the prediction of each view and the target of the other."""
    from lightly.loss import NegativeCosineSimilarity

    criterion = NegativeCosineSimilarity()
    return (criterion(predicted[0], targets[1]) + criterion(predicted[1], targets[0])) / 2


def mocov2(sizes: Sizes) -> Method:
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead

    net, width = sizes.resnet()
    project = MoCoProjectionHead(width, sizes.of(2048), 128)
    net_key, project_key = key_of(net), key_of(project)
    criterion = NTXentLoss(0.2, memory_bank_size=(65536, 128))

    def loss(views: Views) -> Tensor:
        query = project(net(views[0]))
        with torch.no_grad():
            key = project_key(net_key(views[1]))
        return criterion(query, key)

    followers = ((net, net_key), (project, project_key))
    modules = [net, project, net_key, project_key, criterion]
    return Method(loss, modules, optimizer="sgd", followers=followers)


def densecl(sizes: Sizes) -> Method:
    from lightly.loss import NTXentLoss
    from lightly.models.modules import DenseCLProjectionHead
    from lightly.models.utils import select_most_similar

    whole, width = sizes.resnet()
    net = nn.Sequential(*list(whole.children())[:-2])
    heads = nn.ModuleList(DenseCLProjectionHead(width, sizes.of(2048), 128) for _ in range(2))
    net_key, heads_key = key_of(net), key_of(heads)
    criteria = [NTXentLoss(0.2, memory_bank_size=(65536, 128)) for _ in range(2)]

    def encoded(images: Tensor, net: Any, heads: Any) -> tuple[Tensor, Tensor, Tensor]:
        features = net(images)
        positions = features.flatten(2).transpose(1, 2)
        return positions, heads[0](features.mean((2, 3))), heads[1](positions)

    def loss(views: Views) -> Tensor:
        positions, pooled, dense = encoded(views[0], net, heads)
        with torch.no_grad():
            key_positions, key_pooled, key_dense = encoded(views[1], net_key, heads_key)
        matched = select_most_similar(positions, key_positions, key_dense)
        local = criteria[1](dense.flatten(0, 1), matched.flatten(0, 1))
        return (criteria[0](pooled, key_pooled) + local) / 2

    followers = ((net, net_key), (heads, heads_key))
    modules = [net, heads, net_key, heads_key, *criteria]
    return Method(loss, modules, optimizer="sgd", followers=followers)


def swav(sizes: Sizes) -> Method:
    """Without the queue, which neither side reads in its first epochs."""
    from lightly.loss import SwaVLoss
    from lightly.models.modules import SwaVProjectionHead, SwaVPrototypes

    net, width = sizes.resnet()
    project, prototypes = SwaVProjectionHead(width, sizes.of(2048), 128), SwaVPrototypes(128, 3000)
    criterion = SwaVLoss()

    def loss(views: Views) -> Tensor:
        prototypes.normalize()
        scores = [prototypes(F.normalize(project(net(view)), dim=1)) for view in views]
        return criterion(scores[:2], scores[2:])

    return Method(loss, [net, project, prototypes], ((2, 224), (6, 96)))
