"""Quicker ways through open_clip's transformers, with the same weights and the same features.

Of the last block only one token is read by towers that pool a single one, so only that token asks,
is projected and passes the MLP there. On CPUs, attention reads queries, keys and values where the
one projection left them instead of copying them apart, and works in float32 (torch's 16-bit
attention kernels for CPUs take several times as long); a patch embedding in 16 bits is a matrix
product.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkd_cli.numerics.autograd import Context

if TYPE_CHECKING:
    from open_clip.transformer import Transformer


class PackedAttention(nn.MultiheadAttention):
    """Self-attention without copies on CPUs; elsewhere, and in uses that open_clip's towers do not
    make of it, torch's own.

    In float32 equal bit for bit; under autocast the softmax and its products are in float32.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        plain = (
            query is key
            and key is value
            and query.ndim == 3
            and not need_weights
            and key_padding_mask is None
            and not is_causal
        )
        if (
            not plain
            or query.device.type != "cpu"
            or (attn_mask is not None and attn_mask.ndim != 2)
        ):
            return super().forward(
                query,
                key,
                value,
                key_padding_mask=key_padding_mask,
                need_weights=need_weights,
                attn_mask=attn_mask,
                average_attn_weights=average_attn_weights,
                is_causal=is_causal,
            )
        packed = F.linear(query, self.in_proj_weight, self.in_proj_bias)
        queries, keys, values = split_heads(packed, 3, self.num_heads)
        return self.out_proj(attend(queries, keys, values, attn_mask).to(packed.dtype)), None


class PatchEmbedding(nn.Conv2d):
    """A convolution whose windows do not overlap; on CPUs in 16 bits it is one matrix product,
    which is quicker there."""

    def forward(self, images: Tensor) -> Tensor:
        if (
            images.device.type != "cpu"
            or not torch.is_autocast_enabled("cpu")
            or not self._tiles(images)
        ):
            return super().forward(images)
        batch, channels, height, width = images.shape
        down, right = self.stride
        windows = images.to(torch.get_autocast_dtype("cpu")).view(
            batch, channels, height // down, down, width // right, right
        )
        windows = windows.permute(0, 2, 4, 1, 3, 5).reshape(
            batch, height // down, width // right, channels * down * right
        )
        return F.linear(windows, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)

    def _tiles(self, images: Tensor) -> bool:
        sides = zip(images.shape[-2:], cast("tuple[int, int]", self.stride), strict=True)
        return images.is_contiguous() and all(side % step == 0 for side, step in sides)


def quicken(encoder: nn.Module) -> None:
    """Give an open_clip transformer the attention and patch embedding above, in place; names and
    weights stay."""
    from open_clip.transformer import ResidualAttentionBlock

    for module in encoder.modules():
        attention = getattr(module, "attn", None)
        if (
            type(module) is ResidualAttentionBlock
            and type(attention) is nn.MultiheadAttention
            and _is_plain(attention)
        ):
            attention.__class__ = PackedAttention
    patches = getattr(encoder, "conv1", None)
    if (
        type(patches) is nn.Conv2d
        and patches.stride == patches.kernel_size
        and patches.padding == (0, 0)
        and patches.groups == 1
    ):
        patches.__class__ = PatchEmbedding


def reads_one_token(transformer: Transformer) -> bool:
    """Whether `pooled` knows this transformer's last block, and nothing waits for its call."""
    from open_clip.transformer import ResidualAttentionBlock

    last = transformer.resblocks[-1]
    return (
        type(last) is ResidualAttentionBlock
        and not hasattr(last, "ln_1_kv")
        and isinstance(last.attn, PackedAttention)
        # Prompts are inserted and removed by hooks.
        and not (last._forward_pre_hooks or last._forward_hooks)
    )


def pooled(
    transformer: Transformer,
    tokens: Tensor,
    positions: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """One token of each row after all blocks, `[B, D]`: equal to `transformer(tokens,
    attn_mask=mask)[arange(B), positions]`.

    Args:
        tokens: `[B, T, D]`.
        positions: `[B]` int64; None: the first token of each.
        mask: `[T, T]`, added to the products of queries (rows) and keys.
    """
    *former, last = transformer.resblocks
    for block in former:
        tokens = block(tokens, attn_mask=mask)
    normed, attention = last.ln_1(tokens), last.attn
    width, heads = attention.embed_dim, attention.num_heads
    query = F.linear(
        _pick(normed, positions), attention.in_proj_weight[:width], attention.in_proj_bias[:width]
    )
    packed = F.linear(normed, attention.in_proj_weight[width:], attention.in_proj_bias[width:])
    keys, values = split_heads(packed, 2, heads)
    (queries,) = split_heads(query[:, None], 1, heads)
    if mask is not None:
        mask = mask[:1] if positions is None else mask[positions][:, None, None]
    attended = attention.out_proj(attend(queries, keys, values, mask).squeeze(1).to(packed.dtype))
    token = _pick(tokens, positions) + last.ls_1(attended)
    output: Tensor = token + last.ls_2(last.mlp(last.ln_2(token)))
    return output


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of `[B, H, T, D]`, heads side by side again: `[B, T, H * D]`."""
    if mask is not None and mask.is_floating_point():
        mask = mask.to(queries.dtype)
    with torch.autocast(queries.device.type, enabled=False):
        return (
            F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
            .transpose(1, 2)
            .flatten(2)
        )


def split_heads(packed: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
    """`[B, T, parts * H * D]` as that many `[B, H, T, D]`, all looking into one memory; on CPUs
    16-bit numbers become float32."""
    return cast("tuple[Tensor, ...]", _SplitHeads.apply(packed, parts, heads))


class _SplitHeads(torch.autograd.Function):
    # Views alone would do, but their backward stacks the parts and then copies them once more into
    # the order of the projection.
    @staticmethod
    def forward(ctx: Context, packed: Tensor, parts: int, heads: int) -> tuple[Tensor, ...]:
        batch, length, width = packed.shape
        ctx.shape, ctx.kind = (batch, length, parts, heads, width // parts // heads), packed.dtype
        full = (
            packed.float()
            if packed.device.type == "cpu" and packed.dtype in (torch.bfloat16, torch.float16)
            else packed
        )
        return full.view(ctx.shape).permute(2, 0, 3, 1, 4).unbind(0)

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        packed = torch.empty(ctx.shape, dtype=ctx.kind, device=grads[0].device)
        for part, grad in enumerate(grads):
            packed[:, :, part] = grad.transpose(1, 2)
        return packed.flatten(2), None, None


def _pick(tokens: Tensor, positions: Tensor | None) -> Tensor:
    if positions is None:
        return tokens[:, 0]
    # Not `len`, which a trace would take for a constant.
    return tokens[torch.arange(tokens.shape[0], device=tokens.device), positions]


def _is_plain(attention: nn.MultiheadAttention) -> bool:
    return bool(
        attention.batch_first
        and attention._qkv_same_embed_dim
        and attention.in_proj_bias is not None
        and attention.bias_k is None
        and not attention.add_zero_attn
        and not attention.dropout
    )
