"""Parameters divided among processes (fully sharded data parallel).

Each process holds a slice of every parameter along its first dimension, with the gradient and the
optimizer's state of that slice. A block's whole weights are gathered while it runs and dropped
after it. To everything else a divided parameter is a tensor of its whole shape (a `DTensor`), and
`own_slice` is the plain tensor that this process may change.

Source: Zhao et al., PyTorch FSDP, VLDB 2023, arXiv:2304.11277; torch.distributed.fsdp.fully_shard.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vlkd_cli.distributed.runtime import rank, world_size

_SKELETON = "_skeleton"


def divide(root: nn.Module, blocks: Sequence[nn.Module], device: torch.device) -> None:
    """Divide the parameters of a module among all processes; names and shapes stay.

    Args:
        root: on the device, with the same weights everywhere.
        blocks: parts of it that are gathered one by one; what is outside of them is one part.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    skeleton = _skeleton(root)
    mesh = init_device_mesh(device.type, (world_size(),))
    # Single numbers have no first dimension.
    scalars = {parameter for parameter in root.parameters() if parameter.ndim == 0}
    keys: dict[str, Any] = {"ignored_params": scalars} if scalars else {}
    for part in (*blocks, root):
        if any(True for _ in part.parameters()):
            # Also those of the root: what ran without a backward pass would otherwise stay whole
            # and miss what the optimizer changes.
            fully_shard(part, mesh=mesh, reshard_after_forward=True, **keys)
    root.__dict__[_SKELETON] = skeleton


def is_divided(tensor: Tensor) -> bool:
    """Whether each process holds a slice of it."""
    # Importing the module takes a second, and before that no tensor is one.
    module: Any = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


@torch.no_grad()
def own_slice(tensor: Tensor) -> Tensor:
    """The slice of a divided tensor that this process holds, which may be empty, without graph; any
    other tensor as it is, without graph. It shares the tensor's memory."""
    divided: Any = tensor
    own: Tensor = divided.to_local() if is_divided(tensor) else tensor.detach()
    return own


def slice_parameter(parameter: nn.Parameter) -> nn.Parameter:
    """What an optimizer moves: this process's slice of a divided parameter, always the same object;
    any other parameter itself."""
    if not is_divided(parameter):
        return parameter
    found: nn.Parameter | None = getattr(parameter, "own_slice", None)
    if found is None:
        found = nn.Parameter(own_slice(parameter), requires_grad=parameter.requires_grad)
        parameter.own_slice = found  # type: ignore[attr-defined]
        found.divided = parameter  # type: ignore[attr-defined]
    return found


def divided_of(parameter: Tensor) -> Tensor:
    """The divided parameter that this is `slice_parameter` of; any other tensor itself."""
    return getattr(parameter, "divided", parameter)


def as_divided(own: Tensor, like: Tensor) -> Tensor:
    """A divided tensor of the slices that the processes hold, for one of the same shape."""
    if not is_divided(like):
        return own
    divided: Any = like
    found: Tensor = type(divided).from_local(
        own,
        divided.device_mesh,
        divided.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )
    return found


def joined_later(pieces: Sequence[Tensor]) -> Tensor:
    """A tensor of the shape that pieces have one after another, without memory of its own: `joined`
    gives all of it, `slice_of` the rows of this process."""
    rows = sum(map(len, pieces))
    found = torch.empty((rows, *pieces[0].shape[1:]), dtype=pieces[0].dtype, device="meta")
    found.pieces = tuple(pieces)  # type: ignore[attr-defined]
    return found


def joined(tensor: Tensor) -> Tensor:
    """All rows of a tensor out of `joined_later`; any other tensor itself."""
    return _rows_of(tensor, 0, len(tensor)) if hasattr(tensor, "pieces") else tensor


def slice_of(whole: Tensor, like: Tensor) -> Tensor:
    """What this process holds of a tensor that is divided as another is; all of it where that is
    not divided."""
    if not is_divided(like):
        return joined(whole)
    rows = -(-whole.shape[0] // world_size())
    return _rows_of(whole, rank() * rows, (rank() + 1) * rows)


def _rows_of(tensor: Tensor, start: int, stop: int) -> Tensor:
    pieces: Sequence[Tensor] = getattr(tensor, "pieces", (tensor,))
    found, first = [pieces[0][:0]], 0
    for piece in pieces:
        own = piece[max(start - first, 0) : max(stop - first, 0)]
        found += [own] if len(own) else []
        first += len(piece)
    return found[-1] if len(found) <= 2 else torch.cat(found)


def divided_state(state: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """A state of whole tensors as the module can load it."""
    own = module.state_dict()
    return {
        name: as_divided(slice_of(value, own[name]).contiguous().to(own[name].device), own[name])
        if name in own and is_divided(own[name])
        else joined(value)
        for name, value in state.items()
    }


def divided_modules(module: nn.Module) -> list[Any]:
    """The parts that are gathered one by one (`FSDPModule`)."""
    if not any(is_divided(parameter) for parameter in module.parameters()):
        return []
    from torch.distributed.fsdp import FSDPModule

    return [part for part in module.modules() if isinstance(part, FSDPModule)]


@contextmanager
def gathered_once(modules: Sequence[Any]) -> Iterator[None]:
    """Within it, weights that one forward pass gathers stay for the next one.

    Args:
        modules: what `divided_modules` gave.
    """
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for module in modules:
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()


def gather_once_in_backward(
    modules: Sequence[Any], first: Iterable[Tensor], last: Iterable[Tensor]
) -> None:
    """Let weights stay gathered in the backward pass from one output to another.

    Args:
        modules: what `divided_modules` gave.
        first: outputs at which the backward pass begins.
        last: outputs whose backward pass is the last to need the weights.
    """
    for outputs, drops in ((first, False), (last, True)):

        def switch(_: Tensor, drops: bool = drops) -> None:
            for module in modules:
                module.set_reshard_after_backward(drops, recurse=False)

        for output in outputs:
            if output.requires_grad:
                output.register_hook(switch)


@contextmanager
def whole_weights(module: nn.Module) -> Iterator[None]:
    """Context in which copies with all weights replace sharded modules, so that every process can
    run or copy them on its own. All processes enter it together."""
    found = [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if _SKELETON in child.__dict__
    ]
    for parent, name, child in found:
        parent._modules[name] = _filled(child)
    try:
        yield
    finally:
        for parent, name, child in found:
            parent._modules[name] = child
            _empty(child.__dict__[_SKELETON])


def _skeleton(module: nn.Module) -> nn.Module:
    """A copy whose parameters take no memory; buffers are shared."""
    memo: dict[int, object] = {id(buffer): buffer for buffer in module.buffers()}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(
            parameter.detach().to("meta"), requires_grad=parameter.requires_grad
        )
    return copy.deepcopy(module, memo)


def _whole(parameter: nn.Parameter) -> Tensor:
    if is_divided(parameter):
        return parameter.full_tensor()  # type: ignore[attr-defined,no-any-return]
    return parameter.detach()


@torch.no_grad()
def _filled(divided: nn.Module) -> nn.Module:
    skeleton: nn.Module = divided.__dict__[_SKELETON]
    skeleton.train(divided.training)
    whole = {
        parameter: nn.Parameter(_whole(parameter), requires_grad=parameter.requires_grad)
        for parameter in divided.parameters()
    }
    owners = dict(skeleton.named_modules())
    for place, owner in divided.named_modules():
        owners[place]._parameters.update(
            {name: whole[one] for name, one in owner._parameters.items() if one is not None}
        )
    return skeleton


def _empty(skeleton: nn.Module) -> None:
    for owner in skeleton.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                owner._parameters[name] = nn.Parameter(
                    parameter.detach().to("meta"), requires_grad=parameter.requires_grad
                )
