"""A table of models and data sets: every cell is that of a single evaluation, finished cells are
never measured again, and one failure stops nothing."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.data_sets import multilingual_data
from tests.support.image_folders import make_image_root
from tests.unit.engine.recipes import tiny_recipe, train, write_recipe
from vlkd_cli.app import main
from vlkd_cli.engine.launching import start_table
from vlkd_cli.engine.tables import compute as computing
from vlkd_cli.reports.table import LONG_FORM, Cell
from vlkd_cli.towers.tower import Tower

NAMES = ("a", "b", "c")
SETS = ("s1", "s2", "s3", "s4")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs of other seeds and four data sets."""
    folder = tmp_path_factory.mktemp("tables")
    recipe = tiny_recipe(data={"num_samples": 16}, train={"steps": 2})
    for seed, name in enumerate(NAMES):
        train(folder, {**recipe, "train": {**recipe["train"], "seed": seed}}, f"runs/{name}")
    make_image_root(folder / "data", SETS)
    return folder


@pytest.fixture
def place(bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with copies of runs and data, to work in."""
    import shutil

    shutil.copytree(bench / "runs", tmp_path / "runs")
    shutil.copytree(bench / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLKD_CACHE", str(tmp_path / "cache"))
    return tmp_path


def vlkd(words: str) -> int:
    try:
        main(words.split())
    except SystemExit as left:
        return int(left.code or 0)
    return 0


def read(path: str) -> list[dict[str, Any]]:
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


EVAL = "eval runs/a runs/b runs/c --data data --suite zero_shot"


def test_every_cell_equals_the_single_evaluation(place: Path) -> None:
    words = "eval runs/a runs/b --data data --suite zero_shot,knn --datasets s1,s2 --metrics all"
    assert vlkd(f"{words} --table out.json") == 0
    cells = json.loads(Path("out.json").read_text())["cells"]
    assert len({(cell["target"], cell["dataset"], cell["suite"]) for cell in cells}) == 8
    for run in "ab":
        for name in ("s1", "s2"):
            single = f"eval runs/{run} --data data --suite zero_shot,knn --with data={name}"
            assert vlkd(f"{single} --output single.json") == 0
            for result in json.loads(Path("single.json").read_text()):
                own = {
                    cell["metric"]: cell["value"]
                    for cell in cells
                    if (cell["target"], cell["dataset"], cell["suite"])
                    == (f"runs/{run}", name, result["suite"])
                }
                assert own == result["metrics"]
                assert {
                    cell["key"] for cell in cells if cell["file"] and result["key"] in cell["file"]
                } == {result["key"]}


def test_a_kill_after_five_of_twelve_cells_leaves_seven(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vlkd(f"{EVAL} --datasets s1,s2,s3,s4 --table whole.csv") == 0
    for file in place.glob("runs/*/results/step_*/*"):
        file.unlink()
    written, write = [], computing.write_result

    def killed_after_five(result: Any, folder: Path) -> Path:
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(result)
        return write(result, folder)

    with monkeypatch.context() as patch:
        patch.setattr(computing, "write_result", killed_after_five)
        assert vlkd(f"{EVAL} --datasets s1,s2,s3,s4 --table cut.csv") != 0
    capsys.readouterr()
    assert vlkd(f"{EVAL} --datasets s1,s2,s3,s4 --table cut.csv") == 0
    message = capsys.readouterr().out
    assert "12 cells: 5 done before, 7 to compute (3 models, 4 data sets)" in message
    assert message.count("zero_shot top1") >= 7 and "[7/7] runs/c s4: zero_shot top1" in message
    assert read("cut.csv") == read("whole.csv")
    assert vlkd(f"{EVAL} --datasets s1,s2,s3,s4 --table cut.csv") == 0
    assert "12 done before, 0 to compute" in capsys.readouterr().out
    assert not list(place.rglob("results/**/*.lock"))


def test_results_of_single_evaluations_are_taken(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vlkd("eval runs/a --data data --suite zero_shot --with data=s1") == 0
    capsys.readouterr()
    assert vlkd(f"{EVAL} --datasets s1 --table out.csv") == 0
    assert "3 cells: 1 done before, 2 to compute" in capsys.readouterr().out


def test_other_weights_rows_and_keys_are_other_cells(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "eval runs/a --data data --suite zero_shot --datasets s1,s2 --table out.csv"
    assert vlkd(words) == 0
    (place / "data/s1/test/red/9.png").write_bytes((place / "data/s2/test/red/0.png").read_bytes())
    capsys.readouterr()
    assert vlkd(words) == 0
    assert "2 cells: 1 done before, 1 to compute" in capsys.readouterr().out
    assert vlkd(f"{words} --with ensemble=raw_mean") == 0
    assert "2 cells: 0 done before, 2 to compute" in capsys.readouterr().out
    assert vlkd(f"{words} --redo") == 0
    assert "2 cells: 0 done before, 2 to compute" in capsys.readouterr().out
    files = [file.name for file in place.glob("runs/a/results/*/*.json")]
    assert len(files) == 5  # s1 twice, s2 once, and both with other keys


def test_suites_share_one_pass_over_the_images_of_a_model_and_data_set(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: dict[str, int] = {"image": 0, "text": 0}
    features = Tower.features

    def counting(self: Tower, *given: Any, **named: Any) -> Any:
        found = features(self, *given, **named)
        rows[self.modality] += len(found)
        return found

    monkeypatch.setattr(Tower, "features", counting)
    words = "eval runs/a runs/b --data data --datasets s1,s2 --table out.csv --suite"
    assert vlkd(f"{words} zero_shot,knn,few_shot") == 0
    # 9 test and 12 training pictures of 2 sets, 2 models; the prompts of both sets are the same.
    assert rows["image"] == 2 * 2 * 21
    texts = rows["text"]
    assert vlkd(f"{words} zero_shot,knn,clustering") == 0
    assert rows == {"image": 2 * 2 * 21, "text": texts}


def test_a_failing_cell_is_named_and_stops_nothing(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = place / "data/s2/test/red/0.png"
    content = good.read_bytes()
    good.write_bytes(b"not an image")
    words = f"{EVAL} --datasets s1,s2 --table out"
    assert vlkd(f"{words}.md") == 1
    message = capsys.readouterr().out
    assert "runs/b s2: zero_shot failed: " in message and "red/0.png" in message
    assert (
        "Table: out.md. 3 of 6 cells failed (runs/a: zero_shot s2; runs/b: zero_shot s2; runs/c:"
        " zero_shot s2); the same command tries them again." in message.replace("\n", " ")
    )
    assert "| failed |" in Path("out.md").read_text()
    assert vlkd(f"{words}.csv --layout long") == 1
    failed = [row for row in read("out.csv") if row["status"] == "failed"]
    assert len(failed) == 3 and all("red/0.png" in row["error"] for row in failed)
    good.write_bytes(content)
    capsys.readouterr()
    assert vlkd(f"{words}.csv") == 0
    assert "6 cells: 3 done before, 3 to compute" in capsys.readouterr().out
    assert not list(place.rglob("*.failed.json"))


def test_a_model_that_cannot_be_loaded_fails_alone(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (place / "runs/b/checkpoints").glob("*.pt"):
        file.write_bytes(b"cut off")
    assert vlkd(f"{EVAL} --datasets s1 --table out.csv") == 1
    message = capsys.readouterr().out
    assert "runs/b s1: zero_shot failed: " in message and "damaged" in message
    rows = {row["target"]: row for row in read("out.csv")}
    assert rows["runs/b"]["zero_shot.s1.top1"] == ""
    assert float(rows["runs/c"]["zero_shot.s1.top1"]) >= 0


def test_running_out_of_memory_halves_the_batch_once(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, run = [], computing.run_suite

    def hungry(suite: Any, spec: Any, subject: Any) -> Any:
        sizes.append(subject.batch_size)
        if len(sizes) == 1:
            raise RuntimeError("CUDA out of memory")
        return run(suite, spec, subject)

    monkeypatch.setattr(computing, "run_suite", hungry)
    assert vlkd("eval runs/a --data data --suite zero_shot --datasets s1 --table out.csv") == 0
    assert sizes == [64, 32]


def test_a_unit_that_another_process_measures_is_left_to_it(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = []
    real = computing.claimed

    def noted(path: Path) -> Any:
        claims.append(path)
        return real(path)

    monkeypatch.setattr(computing, "claimed", noted)
    words = "eval runs/a --data data --suite zero_shot --datasets s1,s2 --table out.csv"
    assert vlkd(words) == 0
    for file in place.glob("runs/a/results/*/*.json"):
        file.unlink()
    holder = {"host": os.uname().nodename, "pid": os.getppid()}
    claims[0].write_text(json.dumps(holder))
    capsys.readouterr()
    assert vlkd(words) == 0
    message = capsys.readouterr().out
    assert "1 cell not measured yet" in message and "runs/a s2: zero_shot" in message
    assert claims[0].exists()


@pytest.mark.slow
def test_several_processes_share_the_cells_and_measure_each_once(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert vlkd(f"{EVAL} --datasets s1,s2 --table one.csv") == 0
    before = read("one.csv")
    for file in place.glob("runs/*/results/*/*.json"):
        file.unlink()
    for more in ("", " --redo"):
        capfd.readouterr()
        assert vlkd(f"{EVAL} --datasets s1,s2 --table two.csv --jobs 2{more}") == 0
        said = capfd.readouterr().out
        assert said.count("6 cells: 0 done before, 6 to compute") == 1
        assert said.count(": zero_shot top1") == 6
        assert read("two.csv") == before


def test_what_another_process_has_just_measured_was_not_done_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = Cell(0, "a", 0, "s1", 0, "zero_shot", "abc", str(tmp_path), f"{tmp_path}/x.failed.json")
    result = tmp_path / "zero_shot-abc.json"
    result.write_text(json.dumps({"metrics": {"top1": 0.5}}))
    os.utime(result, (100, 100))
    for started, line in ((99, "0 done before, 1 to compute"), (101, "1 done before, 0 to")):
        start_table._say_plan([cell], False, started)
        assert line in capsys.readouterr().out


def test_what_this_command_measured_or_saw_fail_is_not_tried_again(tmp_path: Path) -> None:
    cell = Cell(0, "a", 0, "s1", 0, "zero_shot", "abc", str(tmp_path), f"{tmp_path}/x.failed.json")
    assert not computing._is_done(cell, redo=False, started=0)
    Path(cell.failure).write_text("{}")
    os.utime(cell.failure, (100, 100))
    assert computing._is_done(cell, redo=False, started=99)
    assert not computing._is_done(cell, redo=False, started=101)
    result = tmp_path / "zero_shot-s1-test-abc.json"
    result.write_text('{"metrics": {}}')
    os.utime(result, (200, 200))
    assert computing._is_done(cell, redo=False, started=300)
    assert computing._is_done(cell, redo=True, started=199)
    assert not computing._is_done(cell, redo=True, started=201)


def test_an_error_before_the_cells_are_known_leaves_an_earlier_table(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    Path("out.csv").write_text("earlier")
    monkeypatch.setattr("vlkd_cli.engine.tables.plan.make_plan", stopped)
    assert vlkd(f"{EVAL} --datasets s1 --table out.csv") == 128 + signal.SIGTERM
    assert Path("out.csv").read_text() == "earlier"


def test_targets_may_be_checkpoints_recipes_exports_models_and_lists(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vlkd("export runs/a exported") == 0
    write_recipe(place, tiny_recipe(), "mine")
    Path("models.txt").write_text(
        "# all of them\nruns/a\nexported  # towers of a\n\nruns/b/checkpoints/last.pt\nmine.yaml\n"
        "torchvision:resnet18\n"
    )
    words = (
        "eval @models.txt --data data --datasets s1 --suite zero_shot,knn --with point=projected"
    )
    assert vlkd(f"{words} --table out.csv") == 0
    rows = {row["target"]: row for row in read("out.csv")}
    assert list(rows) == [
        "chance", "runs/a", "exported", "runs/b/checkpoints/last.pt", "mine.yaml",
        "torchvision:resnet18",
    ]  # fmt: skip
    top1, knn = "zero_shot.s1.top1", next(name for name in rows["runs/a"] if "knn" in name)
    assert (rows["exported"][top1], rows["exported"][knn]) == (
        rows["runs/a"][top1],
        rows["runs/a"][knn],
    )
    assert rows["torchvision:resnet18"][top1] == "" and rows["torchvision:resnet18"][knn] != ""
    capsys.readouterr()
    assert vlkd("eval torchvision:resnet18 --data data --suite knn --with data=s1") == 0


def test_a_list_of_ones_own_and_all_data_sets(place: Path) -> None:
    Path("lists.yaml").write_text(
        "mine:\n- s1\n- {reader: shapes, name: rendered, split: val, num_samples: 6, size_px: 32}\n"
    )
    words = "eval runs/a --data data --suite zero_shot,retrieval --table out.csv --datasets"
    assert vlkd(f"{words} lists.yaml:mine") == 0
    (row,) = [row for row in read("out.csv") if row["target"] == "runs/a"]
    assert list(row)[1:4] == [
        "zero_shot.s1.top1", "zero_shot.rendered.top1", "retrieval.rendered.mean_recall",
    ]  # fmt: skip
    for source, known in (("s1", "stl10"), ("s2", "pets")):
        (place / "data" / source).rename(place / "data" / known)
    assert vlkd(f"{words} all") == 0
    (row,) = [row for row in read("out.csv") if row["target"] == "runs/a"]
    assert {name.split(".")[1] for name in row if "." in name} == {"stl10", "pets"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--datasets s1,nothing", "--datasets nothing: not below data, not a known data set"),
        ("--datasets s1,cifar10", "--datasets: not below data: cifar10. Leave them out, or add"),
        ("--datasets vtab", "--datasets: not below data: caltech101, cifar100, dtd,"),
        ("", "a table needs --datasets NAME[,NAME...]"),
        ("--datasets s1 --suite sts", "--suite sts: has data of its own and no column"),
        ("--datasets s1 --suite knm", "unknown suite 'knm'"),
        ("--datasets s1 --suite knn,knn", "--suite knn,knn: 'knn' is given twice."),
        ("openclpi:RN50 --datasets s1", "Did you mean 'openclip:RN50'?"),
        ("--datasets l.yaml:b", "--datasets l.yaml:4: 'b' is not a list."),
        ("--datasets no.yaml:x", "--datasets no.yaml: cannot be read"),
        ("--datasets s1 --suite retrieval", "--datasets s1: none of the suites (retrieval) can"),
        ("--datasets s1 --gpus 2", "--gpus has no effect with a table. Use --jobs"),
        ("--datasets s1 --table x.docx", "--table x.docx: write to a file that ends in"),
        ("--datasets s1 --digits 2", "--digits has no effect with --table out.csv."),
        ("--datasets s1 --with data.split=val", "--with data.split=val: has no effect on a table"),
        ("--datasets l.yaml:a", "--datasets l.yaml:3: suite 'zero_shot': data.reader: unknown"),
        ("--datasets s1 --languages all", "--languages all: has no effect on zero_shot. Leave it"),
        (
            "--datasets xm --suite retrieval --languages all",
            "--suite retrieval: gives several results of data 'xm', or cannot name its result",
        ),
    ],
)
def test_mistakes_end_in_one_line_before_the_first_cell(
    place: Path, capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    Path("l.yaml").write_text("a:\n- s1\n- {reader: classificaton, path: data/s2}\nb: s1\n")
    if " xm " in words:
        multilingual_data(place / "data" / "xm")
    suite = "" if "--suite" in words else " --suite zero_shot"
    table = "" if "--table" in words else " --table out.csv"
    assert vlkd(f"eval runs/a runs/b --data data {words}{suite}{table}") == 2
    error = capsys.readouterr().err
    assert message in error.replace("\n", " ") and "Traceback" not in error
    assert not Path("out.csv").exists()


def test_sets_that_are_absent_can_be_left_out(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "eval runs/a --data data --suite zero_shot --table out.csv --datasets s1,cifar10"
    assert vlkd(f"{words} --missing leave_out") == 0
    assert "Left out, not there: cifar10." in capsys.readouterr().err
    assert vlkd(f"{words} --missing leave_out --list") == 0
    assert "done" in capsys.readouterr().out


def test_the_long_form_names_run_checkpoint_step_weights_and_hashes(place: Path) -> None:
    words = f"{EVAL} --datasets s1 --table out.csv --layout long"
    assert vlkd(words) == 0
    rows = read("out.csv")
    assert tuple(rows[0]) == LONG_FORM and len(rows) == 3
    first = rows[0]
    assert (first["run"], first["step"], first["status"]) == ("a", "2", "done")
    assert first["checkpoint"].endswith("last.pt") and len(first["key"]) == 12
    assert len({row["weights"] for row in rows}) == 3 and len({row["rows"] for row in rows}) == 1
    result = json.loads(Path(first["file"]).read_text())
    assert result["key"] == first["key"] and result["seconds"] > 0 and result["device"] == "cpu"


def test_suites_share_a_table_with_the_sets_that_each_takes(place: Path) -> None:
    (place / "data" / "pairs").mkdir()
    items = [{"image": f"{n}.png", "right": f"a {n}", "wrong": ["b"]} for n in range(2)]
    for n in range(2):
        Image.new("RGB", (8, 8), (90 * n, 0, 0)).save(place / "data" / "pairs" / f"{n}.png")
    (place / "data" / "pairs" / "mine.json").write_text(json.dumps(items))
    words = "eval runs/a --data data --suite zero_shot,caption_choice --datasets s1,pairs/mine"
    assert vlkd(f"{words} --table out.csv") == 0
    assert list(read("out.csv")[0]) == [
        "target",
        "zero_shot.s1.top1",
        "caption_choice.pairs/mine.accuracy",
        "mean",
        "normalized_mean",
        "mean_rank",
    ]
