"""Suite `search` on real drawings: an untrained network against brute force."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.fakes import FakeTower
from vlkd_cli.evaluation.suites.search import Search
from vlkd_cli.features.encode import embed_images, normalize
from vlkd_cli.features.subject import Subject
from vlkd_cli.preprocessing import ImageInput

pytestmark = [pytest.mark.shared, pytest.mark.slow]


class Drawings(FakeTower):
    """Four blocks of 3 x 3 convolutions with random weights, 64 outputs."""

    def __init__(self) -> None:
        super().__init__("image", lambda number: torch.zeros(64), 64)
        self.input = ImageInput((32, 32))
        torch.manual_seed(0)
        blocks: list[nn.Module] = []
        for before, after in ((1, 32), (32, 64), (64, 64), (64, 64)):
            blocks += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
            blocks.append(nn.MaxPool2d(2))
        self.network = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(256, 64)).eval()

    def features(self, inputs: Any) -> Tensor:
        found: Tensor = self.network(1 - inputs[:, :1].float() / 255)
        return found


@pytest.fixture(scope="module")
def held_out(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every fourth character of Omniglot's small background set, a folder for each."""
    place = tmp_path_factory.mktemp("omniglot")
    with zipfile.ZipFile(shared / "data" / "omniglot" / "images_background_small1.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".png")]
        classes = sorted({name.rpartition("/")[0] for name in names})
        chosen = {name: number for number, name in enumerate(classes) if number % 4 == 3}
        for name in names:
            folder, _, file = name.rpartition("/")
            if folder in chosen:
                (place / f"{chosen[folder]:03}").mkdir(exist_ok=True)
                (place / f"{chosen[folder]:03}" / file).write_bytes(archive.read(name))
    return place


def test_an_untrained_network_finds_half_of_the_drawings_and_brute_force_agrees(held_out: Path):
    subject = Subject(Drawings(), None)
    suite = Search(data={"reader": "classification", "path": str(held_out)}, k=[1, 10])
    (result,) = suite.run(subject)
    assert (result.num_items, result.num_classes) == (680, 34)
    reader = suite.open(subject).queries.reader
    rows = normalize(embed_images(subject, reader)).double()
    labels = torch.from_numpy(reader.labels_of(np.arange(680)))
    scores = rows @ rows.T
    scores.fill_diagonal_(-torch.inf)
    order = scores.argsort(dim=1, descending=True)
    same = (labels[order] == labels[:, None])[:, :19].double()
    precision = same.cumsum(1) / torch.arange(1, 20)
    assert result.metrics["precision@1"] == pytest.approx(float(same[:, 0].mean()), abs=2e-3)
    expected = float(((precision * same).sum(1) / 19).mean())
    assert result.metrics["map_at_r"] == pytest.approx(expected, abs=1e-3)
    assert 0.4 < result.metrics["precision@1"] < 0.7  # 0.57 with other weights of this kind
    assert result.chance["precision@1"] == pytest.approx(19 / 679)
