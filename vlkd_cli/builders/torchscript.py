"""The tensors of a TorchScript archive, read without running anything that is in it.

`torch.jit.load` executes an archive's own code, which may create or overwrite any file. OpenAI
publishes its CLIP weights as such archives; their tensors are plain bytes next to a pickle that
maps names to them, and this reader looks at nothing else.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

MAX_PARTS = 1_000_000
"""More modules and tensors than any model has; a bad archive may name one of them without end."""
STORAGES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}


def is_torchscript(path: Path) -> bool:
    """Whether a file is an archive that `torch.jit.save` wrote."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Parameters, buffers and other tensor attributes of the archive's modules by name.

    Raises:
        Exception: of any kind where the archive is damaged; pickle.UnpicklingError where it holds
            objects other than modules and tensors.
    """
    with zipfile.ZipFile(path) as archive:
        root = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        reader = _Reader(archive, root.removesuffix("data.pkl"))
        module = reader.load()
    return _tensors(module)


class _Module:
    """Replaces any class of the archive: only its attributes are of interest."""


class _Storage(NamedTuple):
    values: Tensor


class _Reader(pickle.Unpickler):
    """Unpickles modules as `_Module` and tensors from the archive's bytes; refuses all else."""

    def __init__(self, archive: zipfile.ZipFile, prefix: str) -> None:
        super().__init__(archive.open(f"{prefix}data.pkl"))
        self._archive, self._prefix = archive, prefix
        self._storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> object:
        if module.split(".")[0] == "__torch__":
            return _Module
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise pickle.UnpicklingError(f"it holds '{module}.{name}', which is not a module or tensor")

    def persistent_load(self, pid: tuple[str, object, str, object, int]) -> _Storage:
        kind, dtype, key, _, numel = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"it refers to '{kind}', which is not a tensor's bytes")
        if key not in self._storages:
            name = f"{self._prefix}data/{key}"
            expected = int(numel) * dtype.itemsize
            if self._archive.getinfo(name).file_size != expected:
                raise ValueError(f"{name} does not hold {numel} numbers of {dtype}")
            # The zip's own checksum is compared while reading.
            content = bytearray(self._archive.read(name))
            values = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0)
            self._storages[key] = _Storage(values.to(dtype))
        return self._storages[key]


def _rebuild_tensor(
    storage: _Storage, offset: int, size: Sequence[int], stride: Sequence[int], *rest: object
) -> Tensor:
    # as_strided refuses what would reach beyond the storage.
    return torch.as_strided(storage.values, tuple(size), tuple(stride), offset)


def _rebuild_parameter(data: Tensor, *rest: object) -> Tensor:
    return data


def _first(value: object, *rest: object) -> object:
    return value


ALLOWED: Mapping[tuple[str, str], object] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch.jit._pickle", "restore_type_tag"): _first,
    **{
        ("torch.jit._pickle", f"build_{kind}list"): _first
        for kind in ("int", "tensor", "double", "bool")
    },
}


def _tensors(module: object) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    waiting: list[tuple[str, object]] = [("", module)]
    for _ in range(MAX_PARTS):
        if not waiting:
            return found
        name, value = waiting.pop()
        if isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, _Module):
            prefix = f"{name}." if name else ""
            waiting += [(f"{prefix}{key}", part) for key, part in vars(value).items()]
    raise ValueError(f"the archive names more than {MAX_PARTS:,} modules and tensors")
