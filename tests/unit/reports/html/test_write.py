"""The page is one file, made of what is there, and shows what went wrong."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.support.run_folders import make_run, write_result, write_shown
from tests.unit.engine.recipes import tiny_recipe, train
from vlkd_cli.errors import UserError
from vlkd_cli.reports.html import pictures
from vlkd_cli.reports.html.write import write_report

VOID = {"meta", "link", "br"}


class Outline(HTMLParser):
    """Headings, attributes that name addresses, and whether tags are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("src", "href", "action", "srcset"):
                self.addresses.append(value)
            if name == "id":
                self.ids.append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h2", "h3"):
            self.headings.append(data)


def page_of(*folders: Path, output: Path | None = None) -> tuple[str, Outline]:
    text = write_report(folders, output).read_text(encoding="utf-8")
    outline = Outline(text)
    assert outline.open == []
    return text, outline


def full_run(folder: Path, **keys) -> Path:
    run = make_run(folder, best="zero_shot.top1", **keys)
    (run / "skipped.csv").write_text("bad.jpg,cut off\nworse.jpg,cut off\n")
    write_shown(
        run / "results" / "step_00000020" / "zero_shot-pets-test-prompts.json", folder / "pictures"
    )
    write_result(run, None, 0.7, suite="knn", dataset="cifar10")
    return run


def test_a_full_run_has_every_section_in_order(tmp_path: Path):
    text, outline = page_of(full_run(tmp_path / "a"))
    assert outline.ids == [
        "results",
        "retrieval",
        "confusions",
        "map",
        "training",
        "data",
        "command",
    ]
    assert "zero_shot pets top1" in text and "best, at step 20; chance 0.05" in text
    assert "Evaluated afterwards (1 values)" in text
    assert "2 × cut off" in text and "bad.jpg" in text
    assert "mine.yaml" in text and "train.seed" in text
    assert "95 % over 200 items: 0.241 to 0.367" in text


def test_nothing_is_asked_from_outside(tmp_path: Path):
    text, outline = page_of(full_run(tmp_path / "a"))
    assert all(address.startswith(("#", "data:")) for address in outline.addresses)
    assert re.findall(r"(?:https?:)?//[a-z]", text.replace("// Shows", "")) == []
    assert set(re.findall(r"url\(([^)]{11})", text)) == {"data:image/"}


def test_pictures_appear_once_each_and_a_missing_one_is_a_gray_tile(tmp_path: Path):
    run = full_run(tmp_path / "a")
    text, _ = page_of(run)
    rules = re.findall(r"^\.(p\d+)\{background-image:url\(data:image/webp;base64,", text, re.M)
    # Five found, the miss's own; picture 6 is missing.
    assert rules == [f"p{n}" for n in range(6)]
    used = re.findall(r'class="picture (\w+)', text)
    assert set(used) == {*rules, "missing"} and used.count("p0") == 2
    assert text.count('role="img" aria-label=') >= 14
    shutil.rmtree(tmp_path / "a" / "pictures")
    text, _ = page_of(run)
    assert set(re.findall(r'class="picture (\w+)', text)) == {"missing"}


@pytest.mark.parametrize(
    ("gone", "section"),
    [
        ("metrics.csv", "training"),
        ("results", "retrieval"),
        ("skipped.csv", None),
        ("versions.json", None),
        ("state.json", None),
    ],
)
def test_what_is_missing_leaves_its_section_out(tmp_path: Path, gone, section):
    run = full_run(tmp_path / "a")
    path = run / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    _, outline = page_of(run)
    assert section not in outline.ids and "command" in outline.ids


def test_a_run_that_has_only_its_recipe_has_a_page(tmp_path: Path):
    run = make_run(tmp_path / "a", values=[])
    for name in ("metrics.csv", "state.json", "versions.json"):
        (run / name).unlink()
    text, outline = page_of(run)
    assert outline.ids == ["data", "command"]
    assert "Nothing was evaluated" in text


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe\x00", b"PK\x03\x04"])
def test_damaged_files_are_named_and_the_rest_is_shown(tmp_path: Path, damage):
    run = full_run(tmp_path / "a")
    for path in [*run.rglob("*.npz"), *run.rglob("*.json")]:
        path.write_bytes(damage)
    text, outline = page_of(run)
    assert "Cannot be read: versions.json" in text
    assert "training" in outline.ids and "map" not in outline.ids


@pytest.mark.parametrize(
    ("keys", "note"),
    [
        ({"state": "failed", "error": "no <space> left"}, "Failed: no &lt;space&gt; left"),
        ({"state": "stopped"}, "Stopped at step 30; --resume continues it."),
        ({"state": "running"}, "Still running"),
        ({"values": [0.1, 0.2, 0.3]}, "Still improving at the end"),
        ({"values": [0.04, 0.05]}, "zero_shot.pets.top1 is not above chance (0.05)."),
        ({"best": "zero_shot.top1"}, "Best step chosen on test, which is also reported"),
        ({}, "Best of 3 chosen on test: optimistic."),
    ],
)
def test_the_page_begins_with_what_a_reader_has_to_know(tmp_path: Path, keys, note):
    assert note in page_of(make_run(tmp_path / "a", **keys))[0]


def test_skipped_steps_are_noted(tmp_path: Path):
    run = make_run(tmp_path / "a")
    with (run / "metrics.csv").open("a") as file:
        file.write("30,train/skipped_steps,4\n")
    assert "4 steps were skipped" in page_of(run)[0]


def test_one_evaluation_is_a_row_and_no_chart(tmp_path: Path):
    text, _ = page_of(make_run(tmp_path / "a", values=[0.2]))
    assert "zero_shot.pets.top1</strong>" not in text and ">top1" in text


def test_words_from_outside_are_escaped(tmp_path: Path):
    hostile = "<img src=x onerror=alert(1)>"
    run = make_run(tmp_path / "a", keys={"data.caption": hostile})
    result = next((run / "results").rglob("step_00000030/*.json"))
    write_shown(result, tmp_path / "p", captions=[hostile])
    (run / "skipped.csv").write_text(f"{hostile},{hostile}\n")
    text, outline = page_of(run)
    assert "<img" not in text and outline.open == []


def test_a_page_has_at_most_80_pictures_and_3_megabytes(tmp_path: Path):
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    gallery = pictures.Gallery()
    for n in range(100):
        file = tmp_path / f"{n}.png"
        Image.fromarray(rng.integers(0, 255, (160, 160, 3), dtype=np.uint8)).save(file)
        gallery.add(file)
    assert 20 < gallery.count <= 80
    assert len(gallery.style) <= pictures.MOST_BYTES + 10_000
    small = pictures.Gallery()
    for n in range(100):
        small.add(f"{n}".encode())
    assert small.count == 80


def test_a_long_run_stays_small(tmp_path: Path):
    run = make_run(tmp_path / "a")
    rows = [f"{step},train/term_{n},{step * n}" for step in range(4_000) for n in range(5)]
    (run / "metrics.csv").write_text("step,name,value\n" + "\n".join(rows) + "\n")
    assert write_report([run]).stat().st_size < 1_000_000


def test_the_comparison_has_table_curves_keys_and_runs(tmp_path: Path):
    folders = []
    for lr in (0.001, 0.1):
        for seed in range(3):
            values = [0.1, 0.3 + lr + seed / 100]
            keys = {"optimizer.lr": lr}
            folders.append(make_run(tmp_path / f"{lr}-{seed}", seed=seed, values=values, keys=keys))
    text, outline = page_of(*folders)
    assert (tmp_path / "comparison.html").is_file()
    assert outline.ids == ["table", "curves", "keys", "runs", "command"]
    assert "lr=0.1" in text and "optimizer.lr" in text and "+0.0990" in text
    assert text.count('class="band') == 4
    assert len(re.findall(r'class="line s\d strong"', text)) == 1


def test_of_many_groups_the_baseline_and_the_best_have_colors(tmp_path: Path):
    folders = [
        make_run(tmp_path / f"{n}", values=[0.1, 0.1 + n / 100], keys={"optimizer.lr": n / 100})
        for n in range(1, 10)
    ]
    text, _ = page_of(*folders)
    table = text[text.index('class="compare"') : text.index("</table>")]
    assert re.findall(r'class="line s(.)"', table) == list("0xxx12345")
    assert "3 other groups, of lower rank" in text and "All 9 runs" not in text


def test_long_values_are_shortened_in_names_and_no_name_is_changed_otherwise(tmp_path: Path):
    def run(name: str, path: str, lr: float) -> Path:
        return make_run(tmp_path / name, keys={"data.path": path, "optimizer.lr": lr})

    long = "/data/" + "a" * 90
    text, _ = page_of(run("a", "x.csv", 0.1), run("b", f"{long}1.csv", 0.2))
    assert "path=" + "a" * 20 + "..." + "a" * 12 + "1.csv lr=0.2: one seed: no spread." in text
    text, _ = page_of(run("c", f"{long}1{'b' * 20}", 0.1), run("d", f"{long}2{'b' * 20}", 0.1))
    assert "c: one seed: no spread." in text and "d: one seed: no spread." in text


def test_what_was_measured_on_other_rows_is_never_the_best_of_a_comparison(tmp_path: Path):
    folders = [
        make_run(tmp_path / f"{lr}", values=[0.1, value], rows=rows, keys={"optimizer.lr": lr})
        for lr, value, rows in ((0.001, 0.3, "aa11"), (0.01, 0.4, "aa11"), (0.1, 0.9, "bb22"))
    ]
    text, _ = page_of(*folders)
    assert "highest mean, lr=0.01" in text and "2 runs over lr, top1" in text


def test_a_page_is_written_where_it_is_asked_for(tmp_path: Path):
    run = make_run(tmp_path / "a")
    output = tmp_path / "deep" / "page.html"
    assert write_report([run], output) == output and output.is_file()
    assert [path.name for path in output.parent.iterdir()] == ["page.html"]
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UserError, match="the report cannot be written"):
        write_report([run], blocked / "page.html")


def test_a_run_leaves_its_page_where_reports_name_it(tmp_path: Path, capsys):
    run = train(tmp_path, tiny_recipe(reports=["csv", "html"], train={"epochs": 1}))
    assert f"Report: {run / 'report.html'}" in capsys.readouterr().out
    text = (run / "report.html").read_text()
    assert "Still running" not in text and "<h2>Training</h2>" in text


def test_a_failed_run_leaves_its_page_too(tmp_path: Path):
    recipe = tiny_recipe(reports=["html"], train={"max_nonfinite_steps": 1}, optimizer={"lr": 1e30})
    with pytest.raises(UserError):
        train(tmp_path, recipe)
    text = (tmp_path / "run" / "report.html").read_text()
    assert "Failed: loss or gradient was not finite" in text
