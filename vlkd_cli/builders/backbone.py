"""What every builder returns: an encoder without a head, with what it expects of its input."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from vlkd_cli.errors import WeightsError
from vlkd_cli.preprocessing import ImageInput, TextInput
from vlkd_cli.recipe.schema import Component


class Tokens(NamedTuple):
    """Token outputs of an encoder: `values` `[B, T, D]`, `mask` `[B, T]` bool (True: a real token),
    `eot` `[B]` positions or None."""

    values: Tensor
    mask: Tensor
    eot: Tensor | None = None


class Export(NamedTuple):
    """How a backbone was written for its library: what loads it again, in Python and in a recipe,
    and what gives its feature.

    `adapter` says what became of a parameter-efficient method: "merged" into the weights or kept
    "beside" them. `note` is one line on what the library's format cannot hold.
    """

    format: str
    python: str
    recipe: dict[str, Any]
    feature: str
    adapter: Literal["", "merged", "beside"] = ""
    note: str = ""


class Backbone(nn.Module):
    """An encoder without a head.

    Its attributes are set by the builder; parameter names below it are the library's own, so that
    patterns and checkpoints read well.
    """

    modality: Literal["image", "text"]
    width: int
    """Width of the pooled feature (and of the tokens where the two agree)."""
    token_width: int | None = None
    """Width of the tokens, where the backbone can give tokens; None where it cannot."""
    image_input: ImageInput | None = None
    """Image backbones: what they expect."""
    pools: bool = True
    """Whether it has a pooled feature of its own; otherwise a pooler is needed."""
    settings: str = ""
    """What determines its output beside weights and class, e.g. the number of heads or the
    tokenizer; part of the feature cache's key."""

    able: frozenset[str] | None = None
    """Names, as patterns write them, of what can learn at all; set by `towers.freezing` from the
    first `requires_grad` it meets."""
    files: Mapping[str, bytes] = MappingProxyType({})
    """What its run made and its checkpoints must hold beside weights, by path in the run folder: a
    trained tokenizer."""
    prompted: frozenset[str] = frozenset()
    """Names (as in state_dict) of learned prompt vectors: what `train: prompt` means."""

    @abstractmethod
    def forward(self, inputs: Any) -> Tensor:
        """Pooled features `[B, width]` of standardised images `[B, 3, H, W]` or of a TextInput."""

    def tokens(self, inputs: Any) -> Tokens:
        """Token features of the same inputs, for a pooler of the recipe. Only where `token_width`
        is set."""
        raise NotImplementedError

    def tokenize(self, texts: Sequence[str]) -> TextInput:
        """Text backbones: strings to inputs. Runs in loader workers, so it must survive pickling
        and touch no device."""
        raise NotImplementedError

    def layers(self) -> list[list[str]]:
        """Parameter-name prefixes of each layer, input side first; for `train: {last: N}` and
        layer-wise learning rates.

        Names are the library's own, as in patterns: without the `encoder.` that holds the library's
        module. What no prefix names (embeddings, final norms) goes with the first layer if it comes
        before, else with the last.
        """
        return []

    def export(self, folder: Path, place: Path, keys: Mapping[str, Any]) -> Export:
        """Write it into an empty folder in its library's format, so that the library loads it
        without vlkd. It stays as it is.

        Args:
            folder: where to write.
            place: where the folder will be when it is done; what the Export says.
            keys: the recipe keys that its builder was given.

        Raises:
            WeightsError: its builder has no such format.
        """
        raise WeightsError(
            f"{type(self).__name__} has no format of its own to be written in. Take the tower from"
            " its run (`run: ...`)."
        )


class ModelInfo(NamedTuple):
    """One row of `vlkd list-models`. Unknown numbers are None."""

    name: str
    builder: str
    modality: Literal["image", "text"]
    width: int | None = None
    parameters: int | None = None
    image_size_px: int | None = None
    pretrained: tuple[str, ...] = ()


class BuildContext(NamedTuple):
    """What a builder is given beside the tower's recipe keys.

    Args:
        tower: the tower's name, for messages and for the files that belong to it.
        captions: gives the captions at hand, for a tokenizer trained on them; None where weights of
            a checkpoint follow, which go with the tokenizer of their run.
        files: what that checkpoint holds beside weights, by path in the run folder.
        run_folder: where a trained tokenizer is written and found again.
        adapter: the tower's `adapter:` section, for builders that take one.
    """

    tower: str = "tower"
    captions: Callable[[], Iterable[str]] | None = None
    files: Mapping[str, bytes] = MappingProxyType({})
    run_folder: Path | None = None
    adapter: Component | None = None


class Builder:
    """Base of the builders: keyword-only constructor arguments are the tower's recipe keys."""

    modalities: tuple[str, ...] = ("image", "text")
    takes_adapters: bool = False
    """Whether the tower may have an `adapter:` section."""

    def build(
        self, modality: Literal["image", "text"], context: BuildContext = BuildContext()
    ) -> Backbone:
        """The backbone with its weights loaded, on the CPU, in fp32.

        Raises:
            WeightsError: the weights are not on disk and cannot be fetched, or do not fit.
            RecipeError: the model is unknown to this builder.
        """
        raise NotImplementedError

    @classmethod
    def list_models(
        cls, modality: str | None = None, pattern: str = "*", pretrained_only: bool = False
    ) -> list[ModelInfo]:
        """The models that this builder knows by name and that match a glob pattern."""
        raise NotImplementedError

    @classmethod
    def measured(cls, row: ModelInfo) -> ModelInfo | None:
        """A row of `list_models` with what only building the model without memory shows; None where
        it can be no tower.

        Widths are of the feature that a head would read, parameters of the tower without
        classifier.
        """
        return row
