"""The context of an autograd function, typed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from torch.autograd.function import FunctionCtx

    class Context(FunctionCtx):
        """What `forward` of a `torch.autograd.Function` hands to its `backward`: torch's own
        attributes, and any others that `forward` sets."""

        needs_input_grad: tuple[bool, ...]

        def save_for_backward(self, *tensors: Tensor | None) -> None: ...

        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: object) -> None: ...

else:
    # At run time torch makes a class for each function, and none is a subclass of one of ours:
    # shape checks, which read annotations, would refuse it.
    Context = Any
