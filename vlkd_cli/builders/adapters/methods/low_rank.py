"""Changes of weight matrices that can be folded into them: LoRA and its kin."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, NotRequired, TypedDict

from vlkd_cli.builders.adapters.methods.method import Method
from vlkd_cli.errors import RecipeError
from vlkd_cli.recipe.types import NonNegativeInt, Positive, PositiveInt, Rate

if TYPE_CHECKING:
    from adapters import AdapterConfig
    from peft import PeftConfig

TEXT_RANK, TEXT_ALPHA = 8, 16
"""Defaults of builder adapters; towers of other builders have 16 and 32."""


class LowRankOptions(TypedDict):
    """Peft's keys of LoRA and DoRA."""

    r: int
    lora_alpha: float
    lora_dropout: float
    use_rslora: NotRequired[bool]


class VeRAOptions(TypedDict):
    """Peft's keys of VeRA."""

    r: int
    d_initial: float
    vera_dropout: float
    projection_prng_key: int


class PeftMethod(Method):
    """A method of peft that changes linear layers; `targets` names them."""

    library: ClassVar[Literal["adapters", "peft", "vlkd"]] = "peft"
    merges: ClassVar[bool] = True
    text_targets: ClassVar[Sequence[str]] = ("q", "v")
    """What changes in a text encoder of builder `adapters` where `targets` is not given."""
    targets: Sequence[str] | None
    last: int | None


class LoRA(PeftMethod):
    """Add the product of two thin matrices to a weight matrix.

    Args:
        rank: inner width of the product; by default 16, with builder adapters 8.
        alpha: the product is scaled by alpha / rank; by default 32, with builder adapters 16.
        targets: which weights: q, k, v, o (attention), up, down (MLP; intermediate, output with
            builder adapters), conv, or the end of a module's name. By default q, k, v, o; up and
            down in networks without attention, conv in those without either; with builder adapters
            q, v.
        dropout: fraction of the input that is dropped in training.
        rank_stabilized: scale by alpha / sqrt(rank) instead (rsLoRA).
        last: layers from the end that are changed; by default all.

    Source: Hu et al., LoRA, arXiv:2106.09685, section 4; Kalajdzievski, arXiv:2312.03732 (rsLoRA);
        as peft builds them.
    """

    paper: ClassVar[str] = "arXiv:2106.09685"

    def __init__(
        self,
        *,
        rank: PositiveInt | None = None,
        alpha: Positive | None = None,
        targets: Sequence[str] | None = None,
        dropout: Rate = 0.0,
        rank_stabilized: bool = False,
        last: PositiveInt | None = None,
    ) -> None:
        self.rank, self.alpha, self.dropout, self.last = rank, alpha, dropout, last
        self.targets = None if targets is None else list(targets)
        self.options = {"use_rslora": rank_stabilized}

    def config(self) -> PeftConfig:
        from peft import LoraConfig

        return LoraConfig(**_low_rank_options(self, TEXT_RANK, TEXT_ALPHA), **self.options)

    def tower_options(self) -> LowRankOptions:
        """Rank, alpha and scaling for a tower of any builder."""
        return {**_low_rank_options(self, 16, 32), "use_rslora": self.options["use_rslora"]}


class DoRA(PeftMethod):
    """LoRA on the direction of a weight matrix, and a learned length for each of its rows.

    Args:
        rank: inner width of the product; by default 16, with builder adapters 8.
        alpha: the product is scaled by alpha / rank; by default 32, with builder adapters 16.
        targets: as LoRA's.
        dropout: fraction of the input that is dropped in training.
        last: layers from the end that are changed; by default all.

    Source: Liu et al., DoRA, arXiv:2402.09353, equation 5; as peft builds it.
    """

    paper: ClassVar[str] = "arXiv:2402.09353"

    def __init__(
        self,
        *,
        rank: PositiveInt | None = None,
        alpha: Positive | None = None,
        targets: Sequence[str] | None = None,
        dropout: Rate = 0.0,
        last: PositiveInt | None = None,
    ) -> None:
        self.rank, self.alpha, self.dropout, self.last = rank, alpha, dropout, last
        self.targets = None if targets is None else list(targets)

    def config(self) -> PeftConfig:
        from peft import LoraConfig

        return LoraConfig(**_low_rank_options(self, TEXT_RANK, TEXT_ALPHA), use_dora=True)

    def tower_options(self) -> LowRankOptions:
        """Rank, alpha and scaling for a tower of any builder."""
        return _low_rank_options(self, 16, 32)


class VeRA(PeftMethod):
    """LoRA whose two matrices are random, fixed and shared by all layers; only two vectors per
    layer learn.

    Args:
        rank: inner width of the product; large, because only vectors of this length learn.
        initial_scale: first value of the inner vector; the outer one starts at 0.
        targets: as LoRA's.
        dropout: fraction of the input dropped while training.
        projection_seed: seed of the random matrices.
        last: layers from the end that are changed; by default all.

    Source: Kopiczko et al., VeRA, arXiv:2310.11454, equation 2; as peft builds it (the library
        `adapters` trains full matrices instead).
    """

    paper: ClassVar[str] = "arXiv:2310.11454"

    def __init__(
        self,
        *,
        rank: PositiveInt = 256,
        initial_scale: Positive = 0.1,
        targets: Sequence[str] | None = None,
        dropout: Rate = 0.0,
        projection_seed: NonNegativeInt = 0,
        last: PositiveInt | None = None,
    ) -> None:
        self.dropout, self.last = dropout, last
        self.targets = None if targets is None else list(targets)
        self.options: VeRAOptions = {
            "r": rank,
            "d_initial": initial_scale,
            "vera_dropout": dropout,
            "projection_prng_key": projection_seed,
        }

    def config(self) -> PeftConfig:
        from peft import VeraConfig

        with warnings.catch_warnings():
            # It warns that the random matrices come from their seed; that is what is wanted.
            warnings.simplefilter("ignore", UserWarning)
            return VeraConfig(save_projection=False, **self.options)


class IA3(PeftMethod):
    """One learned factor for each channel of keys, values and the inside of the feed-forward part.

    Args:
        targets: which outputs are scaled: q, k, v, o, up (intermediate with builder adapters),
            conv, or the end of a module's name; by default k and v, conv in networks without
            attention.
        feed_forward: whether the input of the feed-forward part's second matrix is scaled too.
        last: layers from the end that are changed; by default all.

    Source: Liu et al., Few-Shot Parameter-Efficient Fine-Tuning, arXiv:2205.05638, section 3.3; as
        peft builds it.
    """

    paper: ClassVar[str] = "arXiv:2205.05638"

    text_targets: ClassVar[Sequence[str]] = ("k", "v")

    def __init__(
        self,
        *,
        targets: Sequence[str] | None = None,
        feed_forward: bool = True,
        last: PositiveInt | None = None,
    ) -> None:
        for name in ("output", "down"):
            if feed_forward and name in (targets or ()):
                raise RecipeError(
                    f"adapter.targets: '{name}' is scaled at its input by feed_forward: true"
                    " already. Remove one of the two."
                )
        self.targets, self.last = None if targets is None else list(targets), last
        self.feed_forward = feed_forward

    def config(self) -> PeftConfig:
        from peft import IA3Config

        return IA3Config()


def _low_rank_options(method: LoRA | DoRA, rank: int, alpha: float) -> LowRankOptions:
    """Peft's keys, with defaults for those that the recipe leaves out."""
    return {
        "r": method.rank or rank,
        "lora_alpha": method.alpha or alpha,
        "lora_dropout": method.dropout,
    }


class MTLLoRA(Method):
    """LoRA for several tasks: the thin matrices are shared, each task has its own small matrix
    between them and its own mixture.

    A row's task is the input's `task_ids` `[B]` where it has them, else `task`.

    Args:
        tasks: the names of the tasks.
        task: the one that this tower encodes for; by default the first.
        rank: inner width of the product.
        alpha: the product is scaled by alpha / rank.
        targets: which attention matrices: q, k, v.
        dropout: fraction of the input dropped while training.
        up_projections: number of second matrices that are mixed.
        sharpness: temperature of the mixture.

    Source: Yang et al., MTL-LoRA, arXiv:2410.09437; as the library `adapters` builds it, with
    diagonal small matrices (its full ones cannot be built).
    """

    paper: ClassVar[str] = "arXiv:2410.09437"
    library: ClassVar[Literal["adapters", "peft", "vlkd"]] = "adapters"

    def __init__(
        self,
        *,
        tasks: Sequence[str] = ("default",),
        task: str | None = None,
        rank: PositiveInt = 8,
        alpha: PositiveInt = 16,
        targets: Sequence[Literal["q", "k", "v"]] = ("q", "v"),
        dropout: Rate = 0.0,
        up_projections: PositiveInt = 1,
        sharpness: Positive = 0.05,
    ) -> None:
        if not tasks or len(set(tasks)) != len(tasks):
            raise RecipeError("adapter.tasks: needs one or more names, each once.")
        if task is not None and task not in tasks:
            raise RecipeError(f"adapter.task: '{task}' is not among tasks: {', '.join(tasks)}.")
        self.tasks = list(tasks)
        self.task = tasks[0] if task is None else task
        self.options = {
            "r": rank,
            "alpha": alpha,
            "attn_matrices": list(targets),
            "dropout": dropout,
            "n_up_projection": up_projections,
            "task_specific_matrix_type": "singular_values",
            "weights_sharpness": sharpness,
        }

    def config(self) -> AdapterConfig:
        from adapters import MTLLoRAConfig

        return MTLLoRAConfig(**self.options)
