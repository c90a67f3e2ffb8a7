from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.fakes import FakeTower
from tests.support.text_folders import (
    WIDTH,
    meaning,
    perfect_subject,
    random_subject,
    write_beir,
    write_marco,
)
from vlkd_cli.data.files.passages import Corpus, open_collection, read_queries
from vlkd_cli.errors import DataError
from vlkd_cli.evaluation.suites.passage_retrieval import PassageRetrieval
from vlkd_cli.features.subject import Subject


def test_a_perfect_encoder_finds_every_passage(tmp_path: Path) -> None:
    marco = PassageRetrieval(data=str(write_marco(tmp_path / "msmarco"))).run(perfect_subject())[0]
    assert (marco.dataset, marco.split, marco.primary_metric, marco.num_items) == (
        "msmarco",
        "dev.small",
        "mrr@10",
        10,
    )
    assert all(
        marco.metrics[metric] == 1
        for metric in ("mrr@10", "ndcg@10", "map@100", "recall@10", "accuracy@1")
    )
    beir = PassageRetrieval(data=str(write_beir(tmp_path / "beir")), gain="binary").run(
        perfect_subject()
    )[0]
    assert (beir.primary_metric, beir.metrics["ndcg@10"], beir.metrics["map@100"]) == (
        "ndcg@10",
        1,
        1,
    )
    assert set(beir.hashes) == {"corpus.jsonl", "queries.jsonl", "qrels/test.tsv"}


def test_a_random_encoder_stays_near_chance(tmp_path: Path) -> None:
    result = PassageRetrieval(data=str(write_marco(tmp_path, passages=300, queries=40))).run(
        random_subject()
    )[0]
    for metric, chance in result.chance.items():
        assert abs(result.metrics[metric] - chance) < 0.15, metric


def test_equal_scores_go_to_the_larger_id_so_that_a_constant_encoder_gains_nothing(
    tmp_path: Path,
) -> None:
    root = write_marco(tmp_path / "m", passages=30, queries=5)
    subject = Subject(
        None,
        FakeTower("text", lambda text: torch.ones(4), 4),
        batch_size=7,
        output=tmp_path / "out",
    )  # type: ignore[arg-type]
    result = PassageRetrieval(data=str(root), chunk_size=4, k=[3]).run(subject)[0]
    assert result.metrics["mrr@10"] < 0.15
    lines = (tmp_path / "out" / "passage_retrieval-m-dev.small.run").read_text().splitlines()
    ranked = [line.split()[2] for line in lines if line.startswith("1000 ")]
    # Ids are text: "9" is larger than "29".
    assert ranked == sorted((str(i) for i in range(30)), reverse=True)
    assert lines[0].split() == ["1000", "Q0", "9", "1", "1", "vlkd"]


def write_own_queries(root: Path, judged: list[tuple[str, str, int]]) -> Path:
    """A BEIR folder whose queries are the first passages, as in ArguAna: passage d0 answers d1."""
    passages = [{"_id": f"d{i}", "text": f"topic{i // 2} {i % 2}"} for i in range(12)]
    root.mkdir()
    (root / "corpus.jsonl").write_text("\n".join(map(json.dumps, passages)))
    (root / "queries.jsonl").write_text("\n".join(map(json.dumps, passages[:6:2])))
    (root / "qrels").mkdir()
    lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in judged)]
    (root / "qrels" / "test.tsv").write_text("\n".join(lines))
    return root


def test_the_passage_with_the_query_s_own_id_is_left_out_in_beir_s_format(tmp_path: Path) -> None:
    root = write_own_queries(tmp_path / "own", [(f"d{i}", f"d{i + 1}", 1) for i in range(0, 6, 2)])
    subject = perfect_subject(output=tmp_path / "out")
    (result,) = PassageRetrieval(data=str(root), k=[1, 11]).run(subject)
    assert result.metrics["ndcg@10"] == result.metrics["accuracy@1"] == 1
    assert result.protocol == "exact_cosine_own_passage_left_out"
    lines = [
        line.split()
        for line in (tmp_path / "out").glob("*.run").__next__().read_text().splitlines()
    ]
    assert len(lines) == 3 * 11  # all other passages, though 12 were asked for
    assert all(query != passage for query, _, passage, *_ in lines)


def test_a_passage_that_is_judged_relevant_stays_whatever_its_id(tmp_path: Path) -> None:
    judged = [("d0", "d0", 1), ("d2", "d3", 1), ("d4", "d5", 1), ("d4", "d4", 0)]
    root = write_own_queries(tmp_path / "own", judged)
    (result,) = PassageRetrieval(data=str(root), k=[1]).run(perfect_subject())
    assert result.metrics["accuracy@1"] == 1


def test_ms_marco_numbers_queries_and_passages_apart(tmp_path: Path) -> None:
    root = write_marco(tmp_path / "m", passages=40, queries=4)
    names = {str(i) for i in range(1000, 1004)}
    text = (root / "collection.tsv").read_text()
    assert not names & {line.partition("\t")[0] for line in text.splitlines()}
    (before,) = PassageRetrieval(data=str(root), k=[1]).run(perfect_subject())
    assert before.protocol == "exact_cosine"
    # The passage that answers query 1000 gets that very id, and still answers it.
    (root / "collection.tsv").write_text(text.replace("0\t", "1000\t", 1))
    qrels = root / "qrels.dev.small.tsv"
    qrels.write_text(qrels.read_text().replace("1000\t0\t0\t", "1000\t0\t1000\t"))
    (after,) = PassageRetrieval(data=str(root), k=[1]).run(perfect_subject())
    assert after.metrics == before.metrics and after.metrics["accuracy@1"] == 1


def test_chunks_and_batches_move_no_score(tmp_path: Path) -> None:
    root = write_beir(tmp_path, passages=70)
    whole = PassageRetrieval(data=str(root)).run(random_subject())[0].metrics
    for chunk in (1, 9, 64):
        assert (
            PassageRetrieval(data=str(root), chunk_size=chunk).run(random_subject())[0].metrics
            == whole
        )


def test_what_was_embedded_before_an_interruption_is_not_embedded_again(tmp_path: Path) -> None:
    root = write_marco(tmp_path / "data", passages=40)

    class Interrupted(FakeTower):
        def features(self, inputs: object) -> torch.Tensor:
            if self.encoded >= 30:
                raise KeyboardInterrupt
            return super().features(inputs)

    def subject(tower: type[FakeTower]) -> Subject:
        return Subject(None, tower("text", meaning, WIDTH), batch_size=5, cache=tmp_path / "cache")  # type: ignore[arg-type]

    suite = PassageRetrieval(data=str(root), chunk_size=10)
    with pytest.raises(KeyboardInterrupt):
        suite.run(subject(Interrupted))
    again = subject(FakeTower)
    assert suite.run(again)[0].metrics["mrr@10"] == 1
    # 10 queries and 20 passages were selected.
    assert again.text is not None and again.text.encoded == 20  # type: ignore[attr-defined]


def test_only_the_small_queries_count_where_judgments_cover_more(tmp_path: Path) -> None:
    result = PassageRetrieval(data=str(write_marco(tmp_path, small=False))).run(perfect_subject())[
        0
    ]
    assert (result.num_items, result.metrics["mrr@10"]) == (10, 1)
    assert "qrels.dev.tsv" in result.hashes


def test_a_judged_query_without_text_counts_as_zero_and_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_marco(tmp_path)
    with open(root / "qrels.dev.small.tsv", "a") as file:
        file.write("3000\t0\t1\t1\n")
    result = PassageRetrieval(data=str(root)).run(perfect_subject())[0]
    assert result.metrics["mrr@10"] == pytest.approx(10 / 11)
    assert "1 judged queries have no text" in capsys.readouterr().err


def test_a_smaller_collection_contains_the_relevant_passages_and_is_named(tmp_path: Path) -> None:
    root = write_marco(tmp_path / "m", passages=80)
    result = PassageRetrieval(data=str(root), limit=20).run(perfect_subject())[0]
    assert (result.dataset, result.metrics["recall@10"], result.settings["passages"]) == (
        "m[20]",
        1,
        20,
    )


def test_the_search_goes_through_the_head(tmp_path: Path) -> None:
    root = write_marco(tmp_path)
    torch.manual_seed(0)
    head = nn.Linear(WIDTH, 1)
    subject = Subject(None, FakeTower("text", meaning, WIDTH, head=head, output_width=1))  # type: ignore[arg-type]
    after = PassageRetrieval(data=str(root)).run(subject)[0].metrics["mrr@10"]
    backbone = (
        PassageRetrieval(data=str(root), features="backbone").run(subject)[0].metrics["mrr@10"]
    )
    assert after < backbone == 1


def test_a_title_precedes_its_text_by_default(tmp_path: Path) -> None:
    collection = open_collection(write_beir(tmp_path, passages=3, queries=2), None)
    ((_, texts),) = Corpus(collection).texts(10, lambda chunk: True)
    assert texts[0] == "title 0 topic0 0"
    ((_, texts),) = Corpus(collection, title=False).texts(10, lambda chunk: True)
    assert texts[0] == "topic0 0"


def test_keys_follow_the_ids_as_text(tmp_path: Path) -> None:
    corpus = Corpus(open_collection(write_marco(tmp_path, passages=12, queries=2), None))
    assert [corpus.id_of(key) for key in range(12)] == sorted(str(i) for i in range(12))
    assert corpus.num_missing(np.array([b"3", b"99", b"11"])) == 1


def test_a_collection_is_found_below_the_root_and_several_are_asked_about(tmp_path: Path) -> None:
    write_beir(tmp_path / "retrieval" / "one")
    assert PassageRetrieval().run(perfect_subject(data_root=tmp_path))[0].dataset == "one"
    write_marco(tmp_path / "retrieval" / "two")
    with pytest.raises(
        DataError, match=r"several collections; choose one with `dataset:`\. Found: one, two"
    ):
        PassageRetrieval().run(perfect_subject(data_root=tmp_path))
    assert (
        PassageRetrieval(dataset="two").run(perfect_subject(data_root=tmp_path))[0].dataset == "two"
    )


def test_what_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"holds no collection\.tsv \(MS MARCO\) or corpus\.jsonl \(BEIR\)"
    ):
        PassageRetrieval(data=str(tmp_path)).run(perfect_subject())
    root = write_beir(tmp_path / "b")
    with pytest.raises(DataError, match=r"lacks qrels/dev\.tsv\. Splits with judgments: test"):
        PassageRetrieval(data=str(root), split="dev").run(perfect_subject())
    with open(root / "corpus.jsonl", "a") as file:
        file.write('{"_id": "d1", "text": "again"}\n')
    with pytest.raises(DataError, match="passage id 'd1' occurs more than once"):
        PassageRetrieval(data=str(root)).run(perfect_subject())
    (root / "corpus.jsonl").write_text("")
    with pytest.raises(DataError, match="holds no passages"):
        PassageRetrieval(data=str(root)).run(perfect_subject())


def test_ids_of_a_beir_folder_may_hold_blanks(tmp_path: Path) -> None:
    root = write_beir(tmp_path)
    for file, old, new in (
        ("corpus.jsonl", '"d1"', '"d 1"'),
        ("queries.jsonl", '"q1"', '"q 1"'),
        ("qrels/test.tsv", "q1\td1\t", "q 1\td 1\t"),
    ):
        (root / file).write_text((root / file).read_text().replace(old, new))
    (root / "qrels/test.tsv").write_text(
        (root / "qrels/test.tsv").read_text().replace("q1\t", "q 1\t")
    )
    assert (
        PassageRetrieval(data=str(root), gain="binary").run(perfect_subject())[0].metrics["map@100"]
        == 1
    )


@pytest.mark.parametrize("file", ["collection.tsv", "queries.dev.small.tsv", "qrels.dev.small.tsv"])
def test_byte_order_marks_and_windows_line_ends_belong_to_no_id(tmp_path: Path, file: str) -> None:
    path = write_marco(tmp_path) / file
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert PassageRetrieval(data=str(tmp_path)).run(perfect_subject())[0].metrics["mrr@10"] == 1


def test_a_query_may_hold_a_carriage_return_and_further_tabs(tmp_path: Path) -> None:
    root = write_marco(tmp_path)
    with open(root / "queries.dev.small.tsv", "ab") as file:
        file.write(b"77\twhat is\rtopic1\tor so\n")
    assert read_queries(open_collection(root, None))["77"] == "what is\rtopic1\tor so"


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        (
            "queries.jsonl",
            '{"_id": "q1", "text": "again"}',
            r"queries\.jsonl:11: query id 'q1' occurs more than once",
        ),
        (
            "queries.jsonl",
            '{"_id": "q99", "text": null}',
            r"queries\.jsonl:11: a record needs '_id' and 'text'",
        ),
        (
            "corpus.jsonl",
            '{"_id": null, "text": "a"}',
            r"corpus\.jsonl:51: a record needs '_id' and 'text'",
        ),
        (
            "corpus.jsonl",
            '{"_id": "d99", "text": ["a"]}',
            r"corpus\.jsonl:51: a record needs '_id' and 'text'",
        ),
        (
            "qrels/test.tsv",
            "q1\td9\tinf",
            r"test\.tsv:22: the grade should be a number and is 'inf'",
        ),
        (
            "qrels/test.tsv",
            "q1\td9",
            r"test\.tsv:22: has 2 fields; expected query-id corpus-id score",
        ),
    ],
)
def test_a_damaged_line_is_reported_with_its_position(
    tmp_path: Path, file: str, line: str, message: str
) -> None:
    root = write_beir(tmp_path)
    with open(root / file, "a") as opened:
        opened.write(line + "\n")
    with pytest.raises(DataError, match=message):
        PassageRetrieval(data=str(root)).run(perfect_subject())


def test_lone_surrogates_of_a_beir_folder_are_replaced(tmp_path: Path) -> None:
    root = write_beir(tmp_path)
    for file, key, lone in (
        ("corpus.jsonl", '"_id": "d1"', '"_id": "d1\\ud83d"'),
        ("corpus.jsonl", '"text": "', '"title": "\\ude00", "text": "\\ud83d '),
        ("queries.jsonl", '"text": "', '"text": "\\ud83d '),
    ):
        (root / file).write_text((root / file).read_text().replace(key, lone))
    path = root / "qrels/test.tsv"
    path.write_text(path.read_text().replace("\td1\t", "\td1\ufffd\t"), encoding="utf-8")
    collection = open_collection(root, None)
    assert all("\ufffd" in text for text in read_queries(collection).values())
    corpus = Corpus(collection)
    assert "d1\ufffd" in {corpus.id_of(key) for key in range(len(corpus))}
    [(_, texts)] = corpus.texts(len(corpus), lambda _: True)
    assert all(text.startswith("\ufffd \ufffd ") for text in texts)
    assert PassageRetrieval(data=str(root)).run(perfect_subject())[0].num_items


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
@pytest.mark.parametrize("file", ["queries.jsonl", "corpus.jsonl", "qrels/test.tsv"])
def test_a_beir_file_in_another_encoding_is_named_with_the_line(
    tmp_path: Path, file: str, encoding: str
) -> None:
    path = write_beir(tmp_path) / file
    line, other = ('{"_id": "é", "text": "é"}', "é\td1\t1")[file.endswith("tsv")], path.read_text()
    path.write_bytes(f"{other}{line}\n".encode(encoding))
    number = other.count("\n") + 1 if encoding == "latin-1" else 1
    with pytest.raises(DataError, match=rf"{path.name}:{number}: [^\n]*$"):
        PassageRetrieval(data=str(tmp_path)).run(perfect_subject())


@pytest.mark.parametrize("row", [b"caf\xe9\ta text\n", b"99\tcaf\xe9\n", b"9\x009\ta text\n"])
def test_a_marco_file_in_another_encoding_is_named_with_the_line(
    tmp_path: Path, row: bytes
) -> None:
    path = write_marco(tmp_path) / "collection.tsv"
    number = path.read_bytes().count(b"\n") + 1
    with open(path, "ab") as file:
        file.write(row)
    with pytest.raises(DataError, match=rf"collection\.tsv:{number}: "):
        PassageRetrieval(data=str(tmp_path)).run(perfect_subject())


def test_judgments_of_other_queries_only_are_refused(tmp_path: Path) -> None:
    root = write_beir(tmp_path)
    (root / "queries.jsonl").write_text('{"_id": "other", "text": "a"}\n')
    with pytest.raises(
        DataError,
        match=r"test\.tsv: judges queries that queries\.jsonl has no text for, such as 'q0'",
    ):
        PassageRetrieval(data=str(root)).run(perfect_subject())
