"""Heads of masked image modeling: targets as published, decoders over visible and hidden places."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.golden.golden_inputs import build
from vlkd_cli.heads.decoder import DecoderHead
from vlkd_cli.heads.hog import HOGHead
from vlkd_cli.heads.patches import PatchHead
from vlkd_cli.heads.regressor import RegressorHead
from vlkd_cli.numerics.positions import sine_cosine
from vlkd_cli.preprocessing import Grid

CASES = {
    case["id"]: case
    for case in json.loads(
        (Path(__file__).parents[2] / "golden" / "ssl.json").read_text(encoding="utf-8")
    )["cases"]
}
GRID = Grid(4, 4, 8)


def masked(case: dict, inputs: dict) -> torch.Tensor:
    order = np.argsort(inputs["noise"], axis=1)[:, : case["hyper"]["num_hidden"]]
    hidden = torch.zeros(inputs["noise"].shape, dtype=torch.bool)
    return hidden.scatter_(1, torch.from_numpy(order), True)


@pytest.mark.parametrize("name", ["mae/24px_p8_norm", "mae/24px_p6", "simmim/48px_unit16"])
def test_patches_are_the_published_targets(name):
    case = CASES[name]
    inputs = build(case)
    image = torch.from_numpy(inputs["image"]).double()
    side = case["hyper"].get("patch") or case["hyper"]["unit"]
    places = image.shape[-1] // side
    head = PatchHead(3, Grid(places, places, side), normalize=case["hyper"].get("normalise", False))
    gap = (torch.from_numpy(inputs["pred"]).double() - head(image))[masked(case, inputs)]
    loss = gap.abs().mean() if name.startswith("simmim") else gap.square().mean()
    wanted = case["expected"]["f64"]["outputs"]["loss"]["value"]
    np.testing.assert_allclose(float(loss), wanted, rtol=1e-9)


@pytest.mark.parametrize("name", ["hog/64px_no_loss", "hog/32px_maskfeat"])
def test_hog_is_the_published_target(name):
    case = CASES[name]
    image = torch.from_numpy(build(case)["image"]).double()
    places = case["hyper"]["grid"]
    target = HOGHead(3, Grid(places, places, image.shape[-1] // places))(image)
    state = case["expected"]["f64"]["state"]
    assert list(target.shape) == state["shape"]
    np.testing.assert_allclose(float(target.sum()), state["sum"], rtol=1e-9)
    np.testing.assert_allclose(target[0, 0, :8].numpy(), state["patch0_first8"], rtol=1e-9)


@pytest.mark.parametrize("window", [1, 5])
def test_hog_weighs_magnitudes_by_a_window_of_any_side(window):
    pictures = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double()
    grid = Grid(2, 2, 8)
    found = HOGHead(3, grid, cell=8, window=window)(pictures)
    places = torch.arange(window).double() - (window - 1) / 2
    bell = (-0.5 * (places / max(window // 2, 1)) ** 2).exp().repeat(16)[:16]
    padded = torch.nn.functional.pad(pictures, (1, 1, 1, 1), mode="reflect")
    sobel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]).double().expand(3, 1, 3, 3)
    across, down = (
        torch.nn.functional.conv2d(padded, kernel, groups=3)
        for kernel in (sobel, sobel.transpose(2, 3))
    )
    magnitudes = torch.hypot(across, down) * bell[:, None] * bell
    directions = (torch.atan2(across, down) / torch.pi * 9).floor().long() % 9
    votes = torch.nn.functional.one_hot(directions, 9) * magnitudes[..., None]
    cells = votes.view(1, 3, 2, 8, 2, 8, 9).sum((3, 5))
    expected = torch.nn.functional.normalize(cells, dim=-1).permute(0, 2, 3, 1, 4).reshape(1, 4, 27)
    torch.testing.assert_close(found, expected)


def test_a_decoder_puts_visible_places_where_they_belong():
    torch.manual_seed(0)
    decoder = DecoderHead(12, GRID, width=10, width_inner=16, layers=1, heads=2).eval()
    hidden = torch.zeros(2, 16, dtype=torch.bool)
    hidden[:, 4:] = True
    visible = torch.randn(2, 4, 12)
    whole = decoder(visible, hidden)
    assert whole.shape == (2, 16, 10)
    # The same rows at other positions decode to something else.
    assert not torch.allclose(decoder(visible, hidden.flip(1)), whole)
    assert decoder(torch.randn(2, 16, 12)).shape == (2, 16, 10)


def test_a_decoder_without_filling_outputs_only_the_given_positions():
    torch.manual_seed(0)
    decoder = DecoderHead(12, GRID, width=10, width_inner=16, layers=1, heads=2, fill=False)
    hidden = torch.zeros(2, 16, dtype=torch.bool)
    hidden[:, 4:] = True
    assert decoder(torch.randn(2, 12, 12), hidden, "hidden").shape == (2, 12, 10)
    assert (decoder.mask_token, decoder.gives_at) == (None, None)


@pytest.mark.parametrize("fill", [True, False])
def test_a_decoder_does_not_guess_positions_from_their_number(fill):
    torch.manual_seed(0)
    decoder = DecoderHead(12, GRID, width=10, width_inner=16, layers=1, heads=2, fill=fill)
    hidden = torch.zeros(2, 16, dtype=torch.bool)
    hidden[:, 8:] = True
    rows = torch.randn(2, 8, 12)
    visible = decoder(rows, hidden, "visible")
    assert torch.equal(decoder(rows, ~hidden, "hidden"), visible)
    assert not torch.allclose(decoder(rows, hidden, "hidden"), visible, atol=1e-3)
    whole = torch.randn(2, 16, 12)
    assert torch.equal(decoder(whole, hidden, "all"), decoder(whole))


def test_a_regressor_gives_a_row_for_each_hidden_place_and_reads_visible_ones_alone():
    torch.manual_seed(0)
    head = RegressorHead(12, GRID, layers=2, heads=3).eval()
    hidden = torch.zeros(2, 16, dtype=torch.bool)
    hidden[:, 5:] = True
    visible = torch.randn(2, 5, 12, requires_grad=True)
    rows = head(visible, hidden)
    assert rows.shape == (2, 11, 12)
    rows[0].sum().backward()
    assert visible.grad[0].abs().sum() > 0 and visible.grad[1].abs().sum() == 0
    with pytest.raises(ValueError, match="masks: drop"):
        head(torch.randn(2, 16, 12), hidden)


def test_sine_cosine_positions_are_different_at_every_place():
    positions = sine_cosine(16, 3, 5)
    assert positions.shape == (15, 16)
    assert torch.cdist(positions, positions).fill_diagonal_(1).min() > 0.1
    with pytest.raises(ValueError, match="4 divides"):
        sine_cosine(10, 2, 2)
