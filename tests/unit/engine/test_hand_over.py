"""`vlkd export --card` and `--push`: what the card contains, that its lines of Python run, and that
no token gets into a file or a message."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from tests.support.fake_hub import fake_hub
from tests.support.page_commands import leaves
from tests.unit.engine.recipes import IMAGE, TEXT, tiny_recipe, train
from vlkd_cli.engine.hand_over import HandOver, _hub_id
from vlkd_cli.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")
TOKEN = "hf_" + "Qw7" * 9
RETRIEVAL = {
    "suite": "retrieval",
    "data": {"reader": "shapes", "split": "val", "num_samples": 24, "size_px": 32},
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run `runs/first`, evaluated at its end, whose recipe names a place of this
    machine and a variable."""
    folder = tmp_path_factory.mktemp("card")
    (folder / "runs").mkdir()
    (folder / "private").mkdir()
    os.environ["VLKD_TEST_SECRET"] = "very-secret-cache"
    recipe = tiny_recipe(
        towers={"image": IMAGE, "text": TEXT | {"cache_dir": str(folder / "private" / "models")}},
        train={"steps": 2, "cache_dir": "${VLKD_TEST_SECRET}"},
        evals=[RETRIEVAL],
    )
    os.chdir(folder)
    train(folder, recipe, "runs/first")
    assert leaves(["export", "first", "out", "--card", "--license", "apache-2.0"]) == 0
    return folder


@pytest.fixture(autouse=True)
def inside(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    monkeypatch.setenv("VLKD_TEST_SECRET", "very-secret-cache")


def test_the_front_matter_is_read_by_the_hub_and_holds_the_results(here: Path) -> None:
    card = ModelCard.load(here / "out" / "README.md")
    data = card.data
    assert data.license == "apache-2.0" and data.library_name == "vlkd"
    assert data.pipeline_tag == "zero-shot-image-classification"
    assert data.tags == ["vlkd", "infonce"] and data.model_name == "first"
    results = {each.metric_type: each for each in data.eval_results}
    (file,) = (here / "runs" / "first" / "results").glob("*/retrieval-*.json")
    stored = yaml.safe_load(file.read_text())
    assert set(results) == set(stored["metrics"])
    recall = results["mean_recall"]
    assert recall.metric_value == pytest.approx(stored["metrics"]["mean_recall"], abs=1e-6)
    assert recall.dataset_revision == stored["hashes"]["rows"] and recall.dataset_split == "val"
    # What is written, read and written again is the same.
    assert ModelCard(str(card)).data.to_dict() == data.to_dict()


def test_the_card_names_its_source_and_no_path_of_this_machine(here: Path) -> None:
    text = (here / "out" / "README.md").read_text()
    assert "trained with vlkd for 2 steps" in text and "48 samples" in text
    assert "[arXiv:2103.00020](https://arxiv.org/abs/2103.00020)" in text
    assert "| **mean_recall** |" in text and "chance" in text
    assert re.search(r"image/open_clip_model\.safetensors`: sha256 `[0-9a-f]{64}`", text)
    recipe = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    assert recipe["towers"]["text"]["cache_dir"] == "models"
    assert recipe["train"]["cache_dir"] == "${VLKD_TEST_SECRET}"
    assert str(here) not in text and "very-secret-cache" not in text


def usage_of(folder: Path) -> str:
    text = (folder / "README.md").read_text()
    return text.partition("```python\n")[2].partition("```")[0]


def test_the_lines_of_use_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = usage_of(here / "out")
    assert len(lines.splitlines()) <= 5
    exec(lines, {})
    assert capsys.readouterr().out == "(1, 16)\n"


@pytest.mark.parametrize("format", ["onnx", "open_clip", "hf_clip"])
def test_the_lines_of_use_run_in_every_format(
    format: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", "first", f"out_{format}", "--format", format, "--card", "--license", "mit"]
    assert leaves(words) == 0
    capsys.readouterr()
    lines = usage_of(here / f"out_{format}")
    assert len(lines.splitlines()) <= 5
    exec(lines, {})
    assert capsys.readouterr().out.strip()
    library = {"onnx": "vlkd", "open_clip": "open_clip", "hf_clip": "transformers"}[format]
    assert ModelCard.load(here / f"out_{format}" / "README.md").data.library_name == library


def test_without_results_of_its_step_the_card_reports_that(here: Path, tmp_path: Path) -> None:
    shutil.copytree(here / "runs" / "first", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "results")
    words = ["export", str(tmp_path / "run"), str(tmp_path / "out"), "--card", "--license", "mit"]
    assert leaves(words) == 0
    text = (tmp_path / "out" / "README.md").read_text()
    assert "Nothing was evaluated at step 2." in text and "model-index" not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--card"], "a card (--card, --push) needs a license. Add --license ID"),
        (["--push", "org/name"], "a card (--card, --push) needs a license"),
        (["--license", "mit"], "--license has no effect without --card or --push."),
        (["--language", "en"], "--language has no effect without --card or --push."),
        (["--private"], "--private has no effect without --push."),
        (["--card", "--license", "Apache 2.0"], "--license Apache 2.0: not an identifier"),
        (
            ["--card", "--license", "mit", "--language", "english"],
            "--language english: not a code of ISO 639",
        ),
        (["--push", "name", "--license", "mit"], "--push name: a model's name on the hub is ORG/"),
    ],
)
def test_options_are_checked_before_anything_is_read(
    words: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert leaves(["export", "gone", "nothing", *words]) == 2
    line = capsys.readouterr().err
    assert line.startswith(message) and line.count("\n") == 1
    assert not (here / "nothing").exists()


def pushed(here: Path, out: str, url: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`vlkd export --push` in a process of its own: the hub's address is read when the library is
    imported."""
    words = [*("export", "first", out, "--tower", "text", "--push", "org/name", "--private")]
    words += ["--license", "mit", "--force"]
    settings = {
        "HF_ENDPOINT": url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(here / "hub"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    return subprocess.run(
        [sys.executable, "-m", "vlkd_cli", *words],
        cwd=here,
        env={**os.environ, **settings, **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )


def insist_on_secrecy(here: Path, *texts: str) -> None:
    for text in texts:
        assert TOKEN not in text
    for file in here.rglob("*"):
        if file.is_file():
            assert TOKEN.encode() not in file.read_bytes(), file


@pytest.mark.slow
def test_an_export_is_pushed_with_its_card_and_the_token_is_nowhere(here: Path) -> None:
    with fake_hub() as hub:
        done = pushed(here, "sent", hub.url, HF_TOKEN=TOKEN)
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith(f"Sent to {hub.url}/org/name\n")
        assert hub.tokens == {f"Bearer {TOKEN}"}
        assert hub.created[0]["private"] is True and hub.created[0]["name"] == "name"
        sent = here / "sent"
        files = {
            path.relative_to(sent).as_posix(): path.read_bytes()
            for path in sent.rglob("*")
            if path.is_file()
        }
        assert hub.files == files and "README.md" in files and len(files) >= 4
        assert 'folder = snapshot_download("org/name")' in files["README.md"].decode()
        insist_on_secrecy(here, done.stdout, done.stderr)
        # Sent again, into a folder that exists.
        assert pushed(here, "sent", hub.url, HF_TOKEN=TOKEN).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("401", "the hub does not accept the token. Set HF_TOKEN"),
        ("403", "the token may not write to 'org'"),
        ("cut", "the hub was not reached, or ended the upload"),
    ],
)
def test_a_refusal_or_a_cut_upload_is_one_line_without_the_token(
    answer: Any, message: str, here: Path
) -> None:
    with fake_hub() as hub:
        hub.answer = answer
        done = pushed(here, "refused", hub.url, HF_TOKEN=TOKEN)
    assert done.returncode == 2
    assert done.stderr.startswith(f"--push org/name: {message}"), done.stderr
    assert done.stderr.endswith("refused is complete; repeat with --force to send it again.\n")
    assert done.stderr.count("\n") == 1
    assert (here / "refused" / "README.md").is_file()
    insist_on_secrecy(here, done.stdout, done.stderr)


def test_a_push_without_a_token_is_refused(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vlkd_cli.engine.hand_over._token", lambda: None)
    words = ["export", "first", "tokenless", "--push", "org/name", "--license", "mit"]
    assert leaves(words) == 2
    assert "--push org/name: no token of the hub. Set HF_TOKEN" in capsys.readouterr().err


def test_a_token_in_the_recipe_does_not_get_into_the_card(
    here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("vlkd_cli.engine.hand_over._token", lambda: TOKEN)
    out = tmp_path / "out"
    words = ["export", "first", str(out), "--card", "--license", "mit"]
    assert leaves([*words, "--set", f"train.cache_dir=x_{TOKEN}"]) == 0
    text = (out / "README.md").read_text()
    assert "x_(token)" in text and TOKEN not in text


@pytest.mark.parametrize(
    ("builder", "model", "pretrained", "hub"),
    [
        ("huggingface", "org/bert", None, "org/bert"),
        ("huggingface", "org/bert", False, None),
        ("huggingface", "/home/me/bert", None, None),
        ("sbert", "all-MiniLM-L6-v2", True, "sentence-transformers/all-MiniLM-L6-v2"),
        ("openclip", "hf-hub:org/clip", True, "org/clip"),
        ("openclip", "ViT-B-32", "laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
        ("timm", "resnet50.a1_in1k", True, "timm/resnet50.a1_in1k"),
        ("torchvision", "resnet18", True, None),
    ],
)
def test_base_models_are_hub_ids(
    builder: str, model: str, pretrained: Any, hub: str | None
) -> None:
    assert _hub_id(builder, model, pretrained) == hub


def test_a_push_writes_a_card() -> None:
    assert HandOver(push="org/name").wants_card and not HandOver().wants_card
    with pytest.raises(UserError, match="needs a license"):
        HandOver(push="org/name").check()
