"""Methods of lightly 1.6.0 on a vision transformer, put together as in the examples of its
repository (github.com/lightly-ai/lightly, examples/pytorch). Masks are sampled once, as vlkd's come
with the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightly_resnets import Method, Sizes, Views, key_of
from torch import Tensor, nn

CROPS = ((2, 224), (8, 96))


def dino(sizes: Sizes) -> Method:
    """A pass for each crop, as in its example."""
    from lightly.loss import DINOLoss
    from lightly.models.modules import DINOProjectionHead

    codes = sizes.of(65536)
    net = sizes.vit("vit_small_patch16_224", dynamic_img_size=True, drop_path_rate=0.1)
    head, head_key = (
        DINOProjectionHead(net.num_features, sizes.of(2048), 256, codes) for _ in range(2)
    )
    net_key, criterion = key_of(net).eval(), DINOLoss(codes)
    head_key.requires_grad_(False)

    def loss(views: Views) -> Tensor:
        with torch.no_grad():
            targets = [head_key(net_key(view)) for view in views[:2]]
        return criterion(targets, [head(net(view)) for view in views])

    followers = ((net, net_key), (head, head_key))
    modules = [net, head, net_key, head_key, criterion]
    return Method(loss, modules, CROPS, "adamw", followers, clip=3.0)


def ibot(sizes: Sizes) -> Method:
    """With a head of its own for positions, and KoLeo, as in its example of DINOv2."""
    from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss
    from lightly.models.modules import DINOProjectionHead, MaskedVisionTransformerTIMM
    from lightly.models.utils import random_block_mask

    vit = {"dynamic_img_size": True, "pos_embed": "learn"}
    net, net_key = (
        MaskedVisionTransformerTIMM(
            sizes.vit("vit_small_patch16_224", drop_path_rate=rate, **vit),
            antialias=False,
            pos_embed_initialization="skip",
        )
        for rate in (0.1, 0.0)
    )
    codes, places = sizes.of(65536), sizes.of(8192)
    heads, heads_key = (
        nn.ModuleList(
            DINOProjectionHead(net.vit.num_features, sizes.of(2048), 256, wide)
            for wide in (codes, places)
        )
        for _ in range(2)
    )
    for each in (net_key, heads_key):
        each.eval().requires_grad_(False)
    of_crops, of_places, spread = DINOLoss(codes), IBOTPatchLoss(places), KoLeoLoss()
    size = (2 * sizes.batch_size, *net.vit.patch_embed.grid_size)
    blocks = random_block_mask(size, device=sizes.device)
    tokens = F.pad(blocks.flatten(1), (1, 0))

    def loss(views: Views) -> Tensor:
        whole = torch.cat(views[:2])
        with torch.no_grad():
            seen = net_key.encode(whole)
            targets, codes_key = heads_key[1](seen[tokens]), heads_key[0](seen[:, 0])
        given = net.encode(whole, mask=tokens)
        local = net.encode(torch.cat(views[2:]))[:, 0]
        crops = heads[0](torch.cat([given[:, 0], local])).chunk(len(views))
        apart = sum(spread(picture) for picture in given[:, 0].chunk(2)) / 2
        return (
            of_crops(codes_key.chunk(2), crops)
            + of_places(targets, heads[1](given[tokens]), blocks)
            + 0.1 * apart
        )

    followers = ((net, net_key), (heads, heads_key))
    modules = [net, heads, net_key, heads_key, of_crops, of_places]
    return Method(loss, modules, CROPS, "adamw", followers, clip=3.0)


def mae(sizes: Sizes) -> Method:
    """Patches are normalized, as in the recipe."""
    from lightly.models import utils
    from lightly.models.modules import (
        MaskedVisionTransformerDecoderTIMM,
        MaskedVisionTransformerTIMM,
    )

    net = MaskedVisionTransformerTIMM(sizes.vit("vit_base_patch16_224"))
    width, length = sizes.of(512), net.sequence_length
    enter = nn.Linear(net.vit.embed_dim, width)
    decoder = MaskedVisionTransformerDecoderTIMM(length - 1, width, 1 if sizes.tiny else 8, 16)
    patch_px = net.vit.patch_embed.patch_size[0]
    leave = nn.Linear(width, 3 * patch_px**2)
    visible, hidden = utils.random_token_mask((sizes.batch_size, length), 0.75, device=sizes.device)

    def loss(views: Views) -> Tensor:
        images = views[0]
        encoded = enter(net.encode(images, idx_keep=visible))
        queries = utils.repeat_token(decoder.mask_token, (sizes.batch_size, length))
        placed = utils.set_at_index(queries, visible, encoded.type_as(queries))
        painted = leave(utils.get_at_index(decoder(placed), hidden))
        target = utils.get_at_index(utils.patchify(images, patch_px), hidden - 1)
        return F.mse_loss(painted, utils.normalize_mean_var(target))

    return Method(loss, [net, enter, decoder, leave], ((1, 224),), "adamw")
