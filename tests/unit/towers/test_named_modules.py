"""Modules by any name."""

from __future__ import annotations

import copy

import torch
from torch import nn

from vlkd_cli.towers.named_modules import NamedModules


def test_names_of_methods_are_names_like_any_other():
    names = ("keys", "items", "values", "update", "train", "type", "image")
    modules = NamedModules({name: nn.Linear(2, 2) for name in names})
    assert tuple(modules) == tuple(modules.keys()) == names
    assert {name.partition(".")[0] for name, _ in modules.named_parameters()} == set(names)
    assert {**modules}["keys"] is modules["keys"]
    other = copy.deepcopy(modules)
    other["keys"].weight.data.zero_()
    other.load_state_dict(modules.state_dict())
    assert torch.equal(other["keys"].weight, modules["keys"].weight)
    assert not any(module.training for module in modules.eval().values())
