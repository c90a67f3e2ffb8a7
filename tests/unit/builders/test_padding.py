from __future__ import annotations

import torch
from torch import Tensor, nn

from vlkd_cli.builders.padding import by_length, leaks, pad, probing

TEXTS = pad([[5, 6], [7, 8, 9, 4], [3, 2]], 1)


def windowed(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each token becomes the sum of itself and the next, padding included."""
    values = inputs["input_ids"].double()
    following = torch.cat([values[:, 1:], values.new_zeros(len(values), 1)], dim=1)
    tokens = (values + following).unsqueeze(-1)
    return {"tokens": tokens, "feature": (tokens * inputs["attention_mask"][..., None]).sum(1)}


def test_rows_are_padded_on_the_right() -> None:
    assert TEXTS["input_ids"].tolist() == [[5, 6, 1, 1], [7, 8, 9, 4], [3, 2, 1, 1]]
    assert TEXTS["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]]
    assert pad([[]])["input_ids"].tolist() == [[0]]
    assert pad([[]])["attention_mask"].tolist() == [[0]]


def test_by_length_padding_is_never_read() -> None:
    found = by_length(TEXTS, windowed)
    assert found["feature"].squeeze().tolist() == [17, 15 + 17 + 13 + 4, 7]
    assert found["tokens"].squeeze().tolist() == [[11, 6, 0, 0], [15, 17, 13, 4], [5, 2, 0, 0]]


def test_by_length_other_inputs_stay_with_their_rows() -> None:
    inputs = {**TEXTS, "task": torch.tensor([1, 2, 3])}
    found = by_length(inputs, lambda part: {"task": part["task"].double()[:, None]})
    assert found["task"].squeeze().tolist() == [1, 2, 3]


def test_gradients_pass_through() -> None:
    table = nn.Embedding(10, 2)
    found = by_length(TEXTS, lambda part: {"tokens": table(part["input_ids"])})
    found["tokens"].sum().backward()
    assert table.weight.grad[:, 0].tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 1, 1]


def test_an_encoder_that_reads_its_padding_is_found_out() -> None:
    one = pad([[5, 6]])
    assert leaks(one, windowed, number=1)
    assert not leaks(one, windowed, number=0)  # its padding adds nothing


def test_a_trial_run_leaves_no_trace() -> None:
    network = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5).eval())
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    with probing(network):
        assert not network[0].training and not torch.is_grad_enabled()
        torch.rand(3)
    assert torch.rand(1) == expected
    assert [module.training for module in network] == [True, False]
