"""How the tokens of an encoder become one feature. All of them honor the mask: padding never
matters. Averages and maxima of an image are over its patches, without class and register tokens.

Each takes the token width from the engine and its recipe keys as keyword-only arguments; `width` is
what it returns.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.types import NonNegative, Positive, PositiveInt


class Pooler(nn.Module):
    """Base of the poolers: tokens `[B, T, D]`, their mask (True: real) and, where the encoder has
    them, ends of text to `[B, D]`."""

    width: int
    formula: str = ""
    """TeX of what it computes, of tokens x with mask m."""
    needs_eot: bool = False
    """Whether the encoder must provide the position of the end of text."""
    needs_class_token: bool = False
    """Whether it reads the class token of an image encoder."""
    takes_prefix: bool = False
    """Whether `forward` also takes `prefix`, the number of class and register tokens; such a
    pooler is for images."""

    patches_only: ClassVar[bool] = False
    """Whether it pools an image's patches without class and register tokens."""

    starts_random: ClassVar[bool] = False
    """Whether it has weights that must be trained before its feature means anything."""

    def __init__(self, token_width: int) -> None:
        super().__init__()
        self.width = token_width

    def forward(
        self,
        tokens: Float[Tensor, "B T D"],
        mask: Bool[Tensor, "B T"],
        eot: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B D"]:
        raise NotImplementedError


class CLSPooler(Pooler):
    """The first token; of an image, the class token."""

    formula = r"y = x_{\min \{t : m_t = 1\}}"

    needs_class_token = True

    def __init__(self, token_width: int) -> None:
        super().__init__(token_width)

    def forward(
        self,
        tokens: Float[Tensor, "B T D"],
        mask: Bool[Tensor, "B T"],
        eot: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B D"]:
        # Padding may be on the left (decoder-style tokenizers), so the first token is the first
        # real one.
        return _pick(tokens, mask.int().argmax(1))


class ClassMeanPooler(Pooler):
    """The class token joined with the mean of the patches, without registers: width 2 D.

    Source: Zhang et al., SAIL, CVPR 2025, arXiv:2412.04616, section 4.
    """

    formula = r"y = \left[ x_{\mathrm{cls}}, \; \frac{1}{P} \sum_{p=1}^{P} x_p \right]"

    needs_class_token = True
    takes_prefix = True

    def __init__(self, token_width: int) -> None:
        super().__init__(token_width)
        self.width = 2 * token_width

    def forward(
        self,
        tokens: Float[Tensor, "B T D"],
        mask: Bool[Tensor, "B T"],
        eot: Int[Tensor, " B"] | None = None,
        prefix: int = 0,
    ) -> Float[Tensor, "B E"]:
        if not prefix:
            raise RecipeError(
                "pooler 'cls_mean' needs a class token, and the tower's model has none. Use"
                " `pooler: {name: mean}`."
            )
        return torch.cat([tokens[:, 0], tokens[:, prefix:].mean(dim=1)], dim=1)


class MeanPooler(Pooler):
    """Mean over the real tokens (of an image, its patches); a row without any gives zeros."""

    formula = r"y = \frac{\sum_t m_t x_t}{\max(1, \sum_t m_t)}"

    patches_only: ClassVar[bool] = True

    def __init__(self, token_width: int) -> None:
        super().__init__(token_width)

    def forward(
        self,
        tokens: Float[Tensor, "B T D"],
        mask: Bool[Tensor, "B T"],
        eot: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B D"]:
        return masked_mean(tokens, mask)


class MaxPooler(Pooler):
    """Maximum over the real tokens (of an image, its patches), for each feature; a row without any
    gives zeros."""

    formula = r"y_d = \max_{t : m_t = 1} x_{t,d}"

    patches_only: ClassVar[bool] = True

    def __init__(self, token_width: int) -> None:
        super().__init__(token_width)

    def forward(
        self,
        tokens: Float[Tensor, "B T D"],
        mask: Bool[Tensor, "B T"],
        eot: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B D"]:
        highest = tokens.masked_fill(~mask.unsqueeze(-1), torch.finfo(tokens.dtype).min).amax(1)
        return highest * mask.any(1, keepdim=True).to(tokens.dtype)


class LastPooler(Pooler):
    """The last real token."""

    formula = r"y = x_{\max \{t : m_t = 1\}}"

    def __init__(self, token_width: int) -> None:
        super().__init__(token_width)

    def forward(
        self,
        tokens: Float[Tensor, "B T D"],
        mask: Bool[Tensor, "B T"],
        eot: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B D"]:
        positions = torch.arange(mask.shape[1], device=mask.device)
        return _pick(tokens, (positions * mask).amax(1))


class EOTPooler(Pooler):
    """The end-of-text token, for encoders that mark one (CLIP's text transformers)."""

    formula = r"y = x_{t_{\mathrm{eot}}}"

    needs_eot = True

    def __init__(self, token_width: int) -> None:
        super().__init__(token_width)

    def forward(
        self,
        tokens: Float[Tensor, "B T D"],
        mask: Bool[Tensor, "B T"],
        eot: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B D"]:
        assert eot is not None, "the encoder has no end-of-text token"
        return _pick(tokens, eot)


class GeMPooler(Pooler):
    """Generalized mean `(mean(max(x, eps)**p))**(1/p)` over the real tokens (of an image, its
    patches): p = 1 is the mean of the positive parts, large p the maximum.

    Args:
        p: where the power starts.
        eps: floor of the values, which must be positive to be raised to a power.
        learnable: whether the power is trained.

    Source: Radenovic et al., Fine-tuning CNN Image Retrieval with No Human Annotation,
    arXiv:1711.02512, equation 3, with one power for all features as in the authors' code.
    """

    formula = r"y = \left( \frac{\sum_t m_t \max(x_t, \varepsilon)^p}{\sum_t m_t} \right)^{1/p}"

    patches_only: ClassVar[bool] = True

    def __init__(
        self, token_width: int, *, p: Positive = 3.0, eps: Positive = 1e-6, learnable: bool = True
    ) -> None:
        super().__init__(token_width)
        self.p = nn.Parameter(torch.full((1,), float(p)), requires_grad=learnable)
        self.eps = eps

    def forward(
        self,
        tokens: Float[Tensor, "B T D"],
        mask: Bool[Tensor, "B T"],
        eot: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B D"]:
        # At least fp32: 1e-6 to the third power is below what 16-bit floats hold.
        kind = torch.promote_types(tokens.dtype, torch.float32)
        power = self.p.to(kind)
        raised = tokens.to(kind).clamp(min=self.eps).pow(power)
        mean = masked_mean(raised, mask).clamp(min=torch.finfo(kind).tiny)
        return mean.pow(1 / power).to(tokens.dtype)


class AttentionPooler(Pooler):
    """A learned query attends to the real tokens; the outcome is normalized and passed through a
    residual MLP.

    Args:
        heads: attention heads; must divide the token width.
        mlp_ratio: width of the MLP's hidden layer over the token width; 0 leaves the MLP out.

    Source: the MAP head of Zhai et al., Scaling Vision Transformers, arXiv:2106.04560, section 3.2.
    """

    formula = r"y = z + \mathrm{mlp}(\mathrm{LN}(z)), \quad z = \mathrm{attention}(q, X, X)"

    starts_random: ClassVar[bool] = True

    def __init__(
        self, token_width: int, *, heads: PositiveInt = 8, mlp_ratio: NonNegative = 4.0
    ) -> None:
        super().__init__(token_width)
        if token_width % heads:
            raise ValueError(
                f"pooler 'attention': {heads} heads do not divide the token width {token_width}"
            )
        self.query = nn.Parameter(torch.empty(1, 1, token_width))
        nn.init.trunc_normal_(self.query, std=token_width**-0.5)
        self.attention = nn.MultiheadAttention(token_width, heads, batch_first=True)
        hidden = int(token_width * mlp_ratio)
        self.norm = nn.LayerNorm(token_width)
        self.mlp = (
            nn.Sequential(nn.Linear(token_width, hidden), nn.GELU(), nn.Linear(hidden, token_width))
            if hidden
            else None
        )

    def forward(
        self,
        tokens: Float[Tensor, "B T D"],
        mask: Bool[Tensor, "B T"],
        eot: Int[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B D"]:
        query = self.query.expand(tokens.shape[0], -1, -1).to(tokens.dtype)
        # A row without real tokens attends to everything: a softmax over nothing is not a number.
        ignored = ~mask & mask.any(1, keepdim=True)
        pooled = self.attention(
            query, tokens, tokens, key_padding_mask=ignored, need_weights=False
        )[0].squeeze(1)
        refined: Tensor = pooled if self.mlp is None else pooled + self.mlp(self.norm(pooled))
        return refined


def masked_mean(tokens: Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B D"]:
    """Mean over the real tokens; zeros where there is none."""
    # Filled rather than multiplied by zero: values in the padding may be infinite.
    real = tokens.masked_fill(~mask.unsqueeze(-1), 0)
    return real.sum(1) / mask.sum(1, keepdim=True).clamp(min=1).to(tokens.dtype)


def _pick(tokens: Tensor, positions: Tensor) -> Tensor:
    return tokens[torch.arange(tokens.shape[0], device=tokens.device), positions]
