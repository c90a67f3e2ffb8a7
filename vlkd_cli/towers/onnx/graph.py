"""Towers as functions of tensors, and such a function as an ONNX file."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlkd_cli.builders.openclip.prompts import PromptedTokenizer
from vlkd_cli.builders.weight_files import first_line
from vlkd_cli.errors import MissingPackageError, UserError
from vlkd_cli.towers.tower import Tower

Exporter = Literal["torchscript", "dynamo"]
OPSETS: dict[Exporter, int] = {"torchscript": 17, "dynamo": 18}
REMEDY = "Export it in its library's format (without --format onnx)."
VECTOR = "vector"
IMAGES = "images"


class TowerGraph(nn.Module):
    """A tower as a function of uint8 images `[B, 3, H, W]`, or of the tensors `[B, T]` that its
    tokenizer gives, to vectors `[B, width]`; standardization, pooler and head are inside.

    Args:
        normalize: L2-normalize the vectors.
    """

    def __init__(self, tower: Tower, names: Sequence[str], *, normalize: bool) -> None:
        super().__init__()
        self.tower, self.names, self.normalize = tower, tuple(names), normalize
        if tower.backbone_is_frozen:
            # It is outside the module tree; exporters look for weights inside.
            self.encoder = tower.encoder
        self.eval()

    def forward(self, *inputs: Tensor) -> Tensor:
        if self.names == (IMAGES,):
            vectors = self.tower.encode(inputs[0])
        else:
            given = dict(zip(self.names, inputs, strict=True))
            if isinstance(self.tower.input, PromptedTokenizer):
                given["input_ids"] = self.tower.input.with_room(given["input_ids"])
            vectors = self.tower.encode(given)
        return F.normalize(vectors, dim=-1) if self.normalize else vectors


class PairGraph(nn.Module):
    """An image and a text tower as one function: the vectors of both, and the logits `[images,
    texts]`, factor times cosine plus bias, that their objective compares."""

    def __init__(self, image: TowerGraph, text: TowerGraph, scale: float, bias: float) -> None:
        super().__init__()
        self.image, self.text = image, text
        self.scale, self.bias = scale, bias
        self.eval()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        image, text = self.image(inputs[0]), self.text(*inputs[1:])
        cosines = F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
        return image, text, self.scale * cosines + self.bias


def tokenizer_of(tower: Tower) -> Any:
    """The tokenizer whose ids the graph of a text tower takes: without room for a learned prompt,
    which the graph adds."""
    own = tower.input
    return own.tokenizer if isinstance(own, PromptedTokenizer) else own


def write_graph(
    graph: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    axes: Mapping[str, Mapping[int, str]],
    path: Path,
    what: str,
    *,
    exporter: Exporter = "torchscript",
) -> None:
    """Write a function as an ONNX file.

    Args:
        inputs: examples, by name.
        axes: names of the dynamic axes of inputs and outputs.
        what: what is written, for messages.
        exporter: torch's TorchScript exporter, which takes seconds, or torch.export, which takes
            a minute and knows more.

    Raises:
        UserError: it cannot be traced.
    """
    own = {name: dict(axes.get(name, {})) for name in [*inputs, *outputs]}
    options: dict[str, Any] = {"dynamic_axes": own}
    if exporter == "dynamo":
        any_size = torch.export.Dim.AUTO
        shapes = tuple(dict.fromkeys(own[name], any_size) for name in inputs)
        options = {"dynamic_shapes": (shapes,)}
    with _exporting(), torch.no_grad():
        try:
            torch.onnx.export(
                graph,
                tuple(inputs.values()),
                path,
                input_names=list(inputs),
                output_names=list(outputs),
                opset_version=OPSETS[exporter],
                dynamo=exporter == "dynamo",
                verbose=False,
                **options,
            )
        # Exporters fail in any way that the code they trace can.
        except Exception as error:
            path.unlink(missing_ok=True)
            raise UserError(
                f"{what} cannot be written as ONNX: {first_line(error).rstrip('.')}. {REMEDY}"
            ) from error


def require_packages() -> None:
    """Raises MissingPackageError where what ONNX needs is not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingPackageError("--format onnx", "onnx") from error


@contextlib.contextmanager
def _exporting() -> Iterator[None]:
    """Without the exporters' warnings and the graph that they print when they fail, and without
    torch's fused attention, which they do not know."""
    log: Any = torch._C
    was_fast, was_logged = torch.backends.mha.get_fastpath_enabled(), log._jit_is_onnx_log_enabled()
    was_quiet = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    torch.backends.mha.set_fastpath_enabled(False)
    log._jit_set_onnx_log_enabled(False)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(was_quiet)
        torch.backends.mha.set_fastpath_enabled(was_fast)
        log._jit_set_onnx_log_enabled(was_logged)
