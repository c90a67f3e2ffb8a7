"""`vlkd export` of two towers as one model, and of text towers with their heads."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from tests.support.encoders import write_encoder
from tests.support.page_commands import leaves
from tests.unit.engine.recipes import IMAGE, TEXT, tiny_recipe, train
from vlkd_cli import api
from vlkd_cli.checkpoint import Checkpoint
from vlkd_cli.data.readers.shapes import Shapes
from vlkd_cli.engine.export_whole import write_whole
from vlkd_cli.engine.launching.targets import target_of
from vlkd_cli.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs `pair`, of two towers of open_clip, and `sentences`, of a BERT with a
    head."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "runs").mkdir()
    text = {**TEXT, "head": {"name": "linear", "width": 16, "bias": False}}
    short = {"train": {"steps": 2}}
    train(folder, tiny_recipe(towers={"image": IMAGE, "text": text}, **short), "runs/pair")
    bert = {
        "builder": "huggingface",
        "model": str(write_encoder(folder / "bert")),
        "head": {"name": "linear", "width": 16},
    }
    train(folder, tiny_recipe(towers={"image": IMAGE, "text": bert}, **short), "runs/sentences")
    return folder


@pytest.fixture(autouse=True)
def inside(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)


def test_halves_of_open_clip_are_also_written_as_one_model_with_the_trained_scale(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert leaves(["export", "pair", "both"]) == 0
    printed = capsys.readouterr().out
    names = sorted(path.name for path in (here / "both").iterdir())
    assert names == ["dual_encoder", "image", "text"]
    created = "open_clip.create_model_and_transforms('local-dir:both/dual_encoder')"
    assert f"dual_encoder, Python: model, _, preprocess = {created}" in printed
    state = load_file(here / "both" / "dual_encoder" / "open_clip_model.safetensors")
    (scale,) = Checkpoint.load(
        here / "runs" / "pair" / "checkpoints" / "last.pt"
    ).distillers.values()
    assert float(state["logit_scale"]) == pytest.approx(float(scale))
    assert float(scale) != pytest.approx(math.log(1 / 0.07), abs=1e-7)


def test_formats_of_pairs_write_the_pair_alone_and_vlkd_reads_it_again(here: Path) -> None:
    texts, picture = ["a cat", "two dogs"], Shapes(num_samples=1, size_px=32).image(0)
    trained = api.load("runs/pair", device="cpu")
    for name in ("open_clip", "hf_clip"):
        assert leaves(["export", "pair", f"one_{name}", "--format", name]) == 0
        assert [path.name for path in (here / f"one_{name}").iterdir()] == ["dual_encoder"]
        for target in (f"one_{name}", f"one_{name}/dual_encoder"):
            again = api.load(target, device="cpu")
            assert again.encode(texts) == pytest.approx(trained.encode(texts), abs=1e-5)
            assert again.encode(picture) == pytest.approx(trained.encode(picture), abs=1e-5)
            assert set(target_of(target, [], here, False).recipe.towers) == {"image", "text"}


def test_a_text_tower_and_its_head_are_one_sentence_transformer_that_vlkd_reads_again(
    here: Path,
) -> None:
    words = ["export", "sentences", "st", "--format", "sentence_transformers"]
    assert leaves(words) == 0
    assert [path.name for path in (here / "st").iterdir()] == ["text"]
    page = yaml.safe_load((here / "st" / "text" / "vlkd_tower.yaml").read_text())
    assert page["feature_width"] == 16 and "head" not in page
    texts = ["the big red dog", "a cat"]
    before = api.load("runs/sentences", "text", device="cpu").encode(texts)
    after = api.load("st", device="cpu").encode(texts)
    assert before == pytest.approx(after, abs=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sentences", "--format", "open_clip"], "it is of builder `huggingface`"),
        (["sentences", "--format", "hf_clip", "--tower", "text"], "of image towers there is none"),
        (
            ["pair", "--format", "sentence_transformers", "--tower", "image"],
            "writes text towers, and there is none",
        ),
        (["pair", "--format", "sentence_transformers"], "it is of builder `openclip`"),
    ],
)
def test_what_does_not_fit_is_one_line_and_leaves_nothing(
    words: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert leaves(["export", words[0], "nothing", *words[1:]]) == 2
    line = capsys.readouterr().err
    assert message in line and line.count("\n") == 1
    assert not (here / "nothing").exists()


def test_several_towers_of_a_modality_are_selected_by_tower(here: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.load(here / "runs" / "pair" / "checkpoints" / "last.pt")
    towers = api.load("runs/pair", device="cpu")._subject.towers
    every = {**towers, "slow": towers["image"]}
    with pytest.raises(UserError, match="there are several: image, slow. Choose two by --tower"):
        write_whole("open_clip", every, checkpoint, tmp_path, tmp_path)
