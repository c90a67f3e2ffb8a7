"""What every builder returns: an encoder without a head, with what it expects of its input."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vlkd_cli.builders.hiding import Hiding, Masks, Places
from vlkd_cli.errors import RecipeError, WeightsError
from vlkd_cli.preprocessing import Grid, ImageInput, Inputs, InputSpec
from vlkd_cli.recipe.schema import Component
from vlkd_cli.recipe.types import ModalityName


class Tokens(NamedTuple):
    """Token outputs of an encoder.

    Args:
        values: `[B, T, D]`.
        mask: `[B, T]` bool, True for a real token.
        eot: `[B]` positions of the end of text, or None.
        prefix: how many tokens of an image encoder precede its patches (class and register
            tokens).
    """

    values: Tensor
    mask: Tensor
    eot: Tensor | None = None
    prefix: int = 0

    @classmethod
    def of_places(cls, values: Tensor, prefix: int = 0) -> Tokens:
        """Tokens of a picture, all of which are real."""
        mask = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
        return cls(values, mask, None, prefix)


class Encoded(NamedTuple):
    """What one run of an encoder gives: the pooled feature `[B, width]` and the tokens.

    Either is None where the encoder has none; tokens also where they were not asked for.
    """

    feature: Tensor | None
    tokens: Tokens | None


class Export(NamedTuple):
    """How a backbone was written for its library: what loads it again, in Python and in a recipe,
    and what gives its feature.

    `adapter` is how a parameter-efficient method was exported: "merged" into the weights, or in
    files next to them ("beside"). `note` is one line on what the library's format cannot hold.
    """

    format: str
    python: str
    recipe: dict[str, object]
    feature: str
    adapter: Literal["", "merged", "beside"] = ""
    note: str = ""


class _Grids(dict[tuple[int, int], Grid | None]):
    """Grids by the size of pictures, shared by all copies of a backbone."""

    def __deepcopy__(self, memo: dict[int, object]) -> _Grids:
        return self


OTHER_PROCESSOR = (
    "Choose another model, or another image_processor_type in its preprocessor_config.json."
)
"""What to do where a library's image processor does something that vlkd does not know."""


class Backbone(nn.Module):
    """An encoder without a head.

    Its attributes are set by the builder; parameter names below it are the library's own, so that
    patterns and checkpoints read well.
    """

    modality: ModalityName
    input: InputSpec
    """What it expects: how pictures are prepared, or the tokenizer of its texts."""
    width: int
    """Width of the pooled feature (and of the tokens where the two agree)."""
    token_width: int | None = None
    """Width of the tokens, where the backbone can give tokens; None where it cannot."""
    pools: bool = True
    """Whether it has a pooled feature of its own; otherwise a pooler is needed."""
    settings: str = ""
    """What determines its output in addition to weights and class, e.g. the number of heads or the
    tokenizer; part of the feature cache's key."""
    takes_prompts: bool = False
    """Whether `prompt:` can give it learned vectors before its texts."""
    adapter_name: str = ""
    """The parameter-efficient method that `builders.adapters.any_tower` put into it."""
    mask_token: nn.Parameter | None
    """Replaces hidden patches with `masks: replace`; made by `add_mask_token`."""

    fixed: frozenset[str] | None = None
    """Names, as patterns write them, of what can never be trained; set by `towers.freezing` from
    the first `requires_grad` it meets."""
    files: Mapping[str, bytes] = MappingProxyType({})
    """What its run made and its checkpoints must hold in addition to weights, by path in the run
    folder: a trained tokenizer."""
    prompted: frozenset[str] = frozenset()
    """Names (as in state_dict) of learned prompt vectors: what `train: prompt` means."""

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("mask_token", None)
        self._grids = _Grids()

    def forward(
        self,
        inputs: Inputs,
        hidden: Tensor | None = None,
        masks: Masks = "none",
        *,
        tokens: bool = True,
    ) -> Encoded:
        """Feature and tokens of the same inputs, from one run.

        Args:
            inputs: standardized images `[B, 3, H, W]`, or a TextInput.
            hidden: `[B, T]` bool, True for the positions of its grid that are hidden.
            masks: how hidden positions are treated: "drop" encodes only the others, "complement"
                only the hidden ones, "replace" puts the mask token there; "none" ignores `hidden`.
            tokens: whether the tokens are needed; some encoders save work without them.
        """
        if hidden is None or masks == "none":
            return self.run(inputs, tokens=tokens)
        assert isinstance(inputs, Tensor), "masks hide patches of images"
        grid = self.grid((inputs.shape[-2], inputs.shape[-1]))
        assert grid is not None, "masks need an image encoder with a grid of positions"
        with self._hiding().active(masks, hidden, grid, self.mask_token):
            return self.run(inputs, tokens=tokens)

    @abstractmethod
    def run(self, inputs: Any, *, tokens: bool) -> Encoded:
        """What `forward` does without masks; what a builder implements."""

    @property
    def hides(self) -> frozenset[str]:
        """The values of `masks:` that it supports, in addition to "none"."""
        return Hiding.kinds(self.places())

    def places(self) -> Places:
        """The modules of the library's network at which positions can be hidden."""
        return Places()

    def add_mask_token(self) -> None:
        """Create the learned vector that `masks: replace` needs: normal with standard deviation
        0.02."""
        self.mask_token = nn.Parameter(torch.empty(self.places().width))
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def grid(self, size_px: tuple[int, int]) -> Grid | None:
        """The grid of its tokens for pictures of this height and width, found by a run on meta
        tensors; None if it has no such tokens.

        Raises:
            RecipeError: it does not take pictures of this size.
        """
        if not isinstance(self.input, ImageInput):
            return None
        if size_px not in self._grids:
            self._grids[size_px] = _grid_of(self._tokens_of(size_px), size_px)
        return self._grids[size_px]

    def _tokens_of(self, size_px: tuple[int, int]) -> Tokens | None:
        """The tokens of one picture of a size; their numbers mean nothing."""
        # Copied with tensors that hold no numbers, so that a large network costs neither memory nor
        # time. What a library holds outside of parameters and buffers is not copied, and then only
        # a real run shows it.
        tensors = [*self.parameters(), *self.buffers()]
        shadow = copy.deepcopy(self, {id(tensor): _shadow(tensor) for tensor in tensors}).eval()
        problem: Exception | None = None
        for network, device in ((shadow, torch.device("meta")), (self, tensors[0].device)):
            modes = [(module, module.training) for module in network.modules()]
            try:
                with torch.no_grad():
                    network.eval()
                    return network.run(torch.zeros(1, 3, *size_px, device=device), tokens=True)[1]
            # A network refuses a size by any kind of exception.
            except Exception as error:
                problem = error
            finally:
                for module, mode in modes:
                    module.training = mode
        raise RecipeError(
            f"it does not take pictures of {size_px[0]} x {size_px[1]} pixels"
            f" ({str(problem).strip().splitlines()[0]})"
        )

    def _hiding(self) -> Hiding:
        if "_hider" not in self.__dict__:
            self.__dict__["_hider"] = Hiding(self.places())
        hider: Hiding = self.__dict__["_hider"]
        return hider

    def library_pixels(self, picture: np.ndarray) -> Tensor | None:
        """What the library's own image processor makes of a picture `[h, w, 3]` uint8: `[3, H, W]`,
        standardized; None where there is none to compare with.

        Raises:
            RecipeError: the processor fails.
        """
        return None

    def layers(self) -> list[list[str]]:
        """Parameter-name prefixes of each layer, input side first; for `train: {last: N}` and
        layer-wise learning rates.

        Names are the library's own, as in patterns: without the `encoder.` that holds the library's
        module. What no prefix names (embeddings, final norms) goes with the first layer if it comes
        before, else with the last.
        """
        return []

    def export(self, folder: Path, destination: Path, keys: Mapping[str, object]) -> Export:
        """Write it into an empty folder in its library's format, so that the library loads it
        without vlkd.

        Args:
            folder: where to write.
            destination: where the folder will be when it is done, as named in the Export.
            keys: the recipe keys that its builder was given.

        Raises:
            WeightsError: its builder has no such format.
        """
        raise WeightsError(
            f"{type(self).__name__} cannot be exported: it has no format of its own. Take the"
            " tower from its run (`run: ...`)."
        )


class ModelInfo(NamedTuple):
    """One row of `vlkd list-models`. Unknown numbers are None."""

    name: str
    builder: str
    modality: ModalityName
    width: int | None = None
    parameters: int | None = None
    image_size_px: int | None = None
    pretrained: Sequence[str] = ()


class BuildContext(NamedTuple):
    """What a builder is given in addition to the tower's recipe keys.

    Args:
        tower: the tower's name, for messages and for the files that belong to it.
        captions: gives the captions at hand, for a tokenizer trained on them; None where weights of
            a checkpoint follow, which go with the tokenizer of their run.
        files: what that checkpoint holds in addition to weights, by path in the run folder.
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
    assumed_modality: str | None = None
    """The modality of a tower whose section and name leave it open; None: they must determine
    it."""
    keys_of_modality: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    """Keys that towers of one modality alone have."""
    takes_adapters: bool = False
    """Whether it attaches the tower's `adapter:` itself."""
    adaptable: bool = False
    """Whether `builders.adapters.any_tower` may adapt its backbones."""

    def build(self, modality: ModalityName, context: BuildContext = BuildContext()) -> Backbone:
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


def _shadow(tensor: Tensor) -> Tensor:
    """A tensor of the same shape without memory; of float32 where a frozen one has 16 bits."""
    narrow = tensor.dtype in (torch.float16, torch.bfloat16)
    return tensor.to("meta", torch.float32 if narrow else tensor.dtype)


def _grid_of(tokens: Tokens | None, size_px: tuple[int, int]) -> Grid | None:
    """The grid whose sides are in the ratio of the picture's."""
    if tokens is None:
        return None
    places = tokens.values.shape[1] - tokens.prefix
    rows = round((places * size_px[0] / size_px[1]) ** 0.5)
    if not rows or places % rows:
        return None
    return Grid(rows, places // rows, size_px[0] // rows)
