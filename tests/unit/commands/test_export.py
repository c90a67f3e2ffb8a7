"""`vlkd export`: which run it takes, what it writes and prints, and that nothing half-written looks
whole."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.support.encoders import write_encoder
from tests.support.page_commands import leaves
from tests.unit.engine.recipes import IMAGE, TEXT, final_state, tiny_recipe, train
from vlkd_cli.builders.backbone import Export


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run, `runs/first`, that averages its weights."""
    folder = tmp_path_factory.mktemp("exported")
    (folder / "runs").mkdir()
    recipe = tiny_recipe(
        towers={
            "image": IMAGE,
            "text": {**TEXT, "head": {"name": "linear", "width": 16}},
            "slow": {"follows": "image", "momentum": 0.9},
        },
        distillers=[
            {"name": "infonce", "student": "image", "teacher": "text"},
            {"name": "simreg", "student": "image", "teacher": "slow"},
        ],
        train={"steps": 3, "ema": 0.5},
    )
    train(folder, recipe, "runs/first")
    return folder


@pytest.fixture
def here(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    shutil.rmtree(trained / "out", ignore_errors=True)
    return trained


def fails(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error of a command that ends with exit code 2."""
    capsys.readouterr()
    assert leaves(["export", *words]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1, line
    return line


def test_the_towers_of_the_newest_run_are_written_and_reported(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert leaves(["export", "out"]) == 0
    printed = capsys.readouterr().out
    assert sorted(path.name for path in (here / "out").iterdir()) == ["image", "slow", "text"]
    assert "runs/first/checkpoints/last.pt, step 3, averaged weights -> out" in printed
    assert "image, recipe: {builder: openclip, model: out/image, pretrained: true}" in printed
    assert "text, Python: model = open_clip.create_model('local-dir:out/text'" in printed
    assert {path.name for path in (here / "out" / "text").iterdir()} == {
        "open_clip_config.json",
        "open_clip_model.safetensors",
        "head.safetensors",
        "vlkd_tower.yaml",
    }
    assert yaml.safe_load((here / "out" / "text" / "vlkd_tower.yaml").read_text())["head"] == {
        "name": "linear",
        "width": 16,
    }


def test_the_average_is_exported_as_it_is_evaluated(here: Path) -> None:
    assert leaves(["export", "first", "out", "--tower", "text"]) == 0
    assert not (here / "out" / "image").exists()
    state = final_state(here / "runs" / "first")
    head = load_file(here / "out" / "text" / "head.safetensors")["head.linear.weight"]
    assert torch.equal(head, state["ema"]["towers.text.head.linear.weight"])
    assert not torch.equal(head, state["towers"]["text"]["head.linear.weight"])


def test_a_tower_that_follows_another_is_exported_under_its_own_name_and_weights(
    here: Path,
) -> None:
    assert leaves(["export", "first", "out"]) == 0
    assert (
        yaml.safe_load((here / "out" / "slow" / "vlkd_tower.yaml").read_text())["tower"] == "slow"
    )
    own, followed = (
        load_file(here / "out" / name / "open_clip_model.safetensors") for name in ("slow", "image")
    )
    followers = final_state(here / "runs" / "first")["followers"]
    assert torch.equal(
        own["class_embedding"], followers["slow.tower.backbone.encoder.class_embedding"]
    )
    assert not torch.equal(own["class_embedding"], followed["class_embedding"])


def test_a_checkpoint_by_its_file_also_outside_its_run(here: Path, tmp_path: Path) -> None:
    assert leaves(["export", "runs/first/checkpoints/last.pt", "out"]) == 0
    shutil.copy("runs/first/checkpoints/last.pt", tmp_path / "alone.pt")
    assert leaves(["export", str(tmp_path / "alone.pt"), str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "text" / "head.safetensors").read_bytes() == (
        here / "out" / "text" / "head.safetensors"
    ).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.pt", "out"]


def test_a_full_folder_is_left_alone_unless_forced_and_then_only_its_towers_are_replaced(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "out" / "image").mkdir(parents=True)
    (here / "out" / "image" / "old").touch()
    (here / "out" / "notes.txt").touch()
    assert "out is not empty. Name another folder, or add --force" in fails(["out"], capsys)
    assert [path.name for path in (here / "out" / "image").iterdir()] == ["old"]
    assert leaves(["export", "out", "--force"]) == 0
    assert (here / "out" / "notes.txt").exists() and not (here / "out" / "image" / "old").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["runs/frist", "out"],
            "'runs/frist' is not a run folder or checkpoint. Did you mean 'first'?",
        ),
        (["quickstart", "out"], "'quickstart' is not a run folder or checkpoint."),
        (
            ["tiny.yaml", "out"],
            (
                "'tiny.yaml' is not a run folder or checkpoint. The towers of a recipe are"
                " untrained; `vlkd train` starts a run."
            ),
        ),
        (["runs/gone.pt", "out"], "no checkpoint at runs/gone.pt"),
        (
            ["first", "out", "--tower", "txt"],
            (
                "--tower txt: the run has no such tower. Did you mean 'text'? It has: image, slow,"
                " text."
            ),
        ),
        (
            ["runs/first"],
            (
                "runs/first is a run folder. Name another folder for the towers: `vlkd export"
                " runs/first FOLDER`."
            ),
        ),
        (["runs/first", "tiny.yaml"], "tiny.yaml is a file. Name a folder."),
        (
            ["first", "out", "more"],
            "expected one run or checkpoint and one folder, got 3 words: first out more.",
        ),
        (["out", "--runs", "nowhere"], "no run under nowhere/."),
        (["first", "out", "--set", "towers.text.bilder=sbert"], "bilder"),
    ],
)
def test_what_a_user_can_fix_is_one_line(
    words: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in fails(words, capsys)
    assert not (here / "out").exists()


def test_a_broken_checkpoint_is_one_line(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("runs/first", tmp_path / "broken")
    (tmp_path / "broken" / "checkpoints" / "last.pt").write_bytes(b"no checkpoint")
    assert "is damaged or not a checkpoint" in fails([str(tmp_path / "broken"), "out"], capsys)
    (tmp_path / "broken" / "checkpoints" / "last.pt").unlink()
    assert "holds no checkpoint" in fails([str(tmp_path / "broken"), "out"], capsys)


def test_a_place_that_cannot_be_written_is_one_line(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "cannot write tiny.yaml/out: Not a directory." in fails(
        ["first", "tiny.yaml/out"], capsys
    )


def test_a_full_disk_leaves_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _break_text(monkeypatch, OSError(28, "No space left on device"))
    assert "cannot write out: No space left on device. Free space or name another folder." in fails(
        ["first", "out"], capsys
    )
    assert not (here / "out").exists()


def test_what_an_interruption_leaves_looks_unfinished_and_is_replaced(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        # As after SIGKILL: nothing is tidied up.
        patch.setattr("shutil.rmtree", lambda *words, **keys: None)
        _break_text(patch, KeyboardInterrupt())
        assert leaves(["export", "first", "out"]) == 130
    assert [path.name for path in (here / "out").iterdir()] == [".unfinished"]
    assert leaves(["export", "first", "out"]) == 0
    assert sorted(path.name for path in (here / "out").iterdir()) == ["image", "slow", "text"]


def test_ctrl_c_leaves_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _break_text(monkeypatch, KeyboardInterrupt())
    assert leaves(["export", "first", "out"]) == 130
    assert not (here / "out").exists()


def test_a_method_that_cannot_be_merged_is_reported_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("adapters", reason="needs the extra 'adapters'")
    torch.manual_seed(0)
    base = str(write_encoder(tmp_path / "base"))
    text: dict[str, Any] = {
        "builder": "adapters",
        "model": base,
        "head": {"name": "linear", "width": 16},
    }
    for method, column, notes in (("lora", "merged", 0), ("bottleneck", "beside", 1)):
        recipe = tiny_recipe(
            towers={"image": IMAGE, "text": {**text, "adapter": {"name": method}}},
            train={"steps": 1},
        )
        run = train(tmp_path, recipe, method)
        capsys.readouterr()
        assert leaves(["export", str(run), str(tmp_path / f"{method}-out"), "--tower", "text"]) == 0
        printed = capsys.readouterr().out
        assert f"  {column}  " in printed and "averaged" not in printed
        assert (
            printed.count(
                f"text, note: adapter '{method}' is part of the computation and cannot be merged"
            )
            == notes
        )


def _break_text(patch: pytest.MonkeyPatch, error: BaseException) -> None:
    """The image tower is written, the text tower fails."""
    from vlkd_cli.builders.openclip.towers import OpenClipText

    def fail(self: Any, folder: Path, place: Path, keys: Any) -> Export:
        assert (folder.parent / "image").is_dir()
        raise error

    patch.setattr(OpenClipText, "export", fail)
