"""How tensors get into a module and out of it again, and the errors when they do not fit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from torch import Tensor, nn

from vlkd_cli.errors import WeightsError


def write_weights(state: Mapping[str, Tensor], file: Path) -> None:
    """Write a safetensors file as the libraries do, in which no two tensors share memory."""
    from safetensors.torch import save_file

    own = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()
    }
    save_file(own, file, metadata={"format": "pt"})


def fit_weights(
    module: nn.Module,
    state: Mapping[str, Tensor],
    what: str,
    *,
    source: str,
    ignore: Callable[[str], bool] = lambda name: False,
) -> None:
    """Load weights into a module, every parameter and persistent buffer of it.

    If all of its names are below one prefix (`model.`, `student.`), those are used.

    Args:
        what: the model in the user's words.
        source: file or tag that the weights come from.
        ignore: names in `state` that may be left over.

    Raises:
        WeightsError: names or shapes differ; the message names the first.
    """
    wanted = module.state_dict()
    state = below_prefix(state, wanted, what, source=source)
    given = {name: value for name, value in state.items() if name in wanted or not ignore(name)}
    for name, tensor in wanted.items():
        if name not in given:
            # Old files do not count batches; the number is only used by norms without a fixed
            # momentum.
            if name.endswith("num_batches_tracked"):
                given[name] = tensor
                continue
            raise WeightsError(
                f"{what}: weights of '{source}' do not fit: '{name}' {_shape(tensor)} is not in"
                f" them. {_REMEDY}"
            )
        if given[name].shape != tensor.shape:
            raise WeightsError(
                f"{what}: weights of '{source}' do not fit: '{name}' is {_shape(given[name])} in"
                f" them and {_shape(tensor)} in the model. " + _REMEDY
            )
    for name, tensor in given.items():
        if name not in wanted:
            raise WeightsError(
                f"{what}: weights of '{source}' do not fit: the model has no '{name}'"
                f" {_shape(tensor)}. {_REMEDY}"
            )
    module.load_state_dict(given)


def below_prefix(
    state: Mapping[str, Tensor], names: Collection[str], what: str, *, source: str
) -> Mapping[str, Tensor]:
    """The tensors below the one prefix that has a model's names, without the prefix; all of them
    if there is no such prefix.

    Args:
        names: of the model's parameters and buffers; counters of batches may be missing.

    Raises:
        WeightsError: several prefixes fit, so several models are in the file.
    """
    needed = [name for name in names if not name.endswith("num_batches_tracked")]
    if not needed or any(name in state for name in needed):
        return state
    ending = f".{needed[0]}"
    prefixes = [name.removesuffix(needed[0]) for name in state if name.endswith(ending)]
    fitting = [prefix for prefix in prefixes if all(f"{prefix}{name}" in state for name in needed)]
    if len(fitting) > 1:
        raise WeightsError(
            f"{what}: '{source}' holds the weights of several models"
            f" ({', '.join(map(repr, fitting))}). Save the right one in its own file."
        )
    if not fitting:
        return state
    return {
        name.removeprefix(fitting[0]): tensor
        for name, tensor in state.items()
        if name.startswith(fitting[0])
    }


_REMEDY = "Choose the model that they were made for."


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))
