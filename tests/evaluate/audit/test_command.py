"""`dsjax audit` reports what stands in a corpus, and refuses in a sentence what it cannot read."""

import json
import subprocess
import sys

import pytest

from dsjax.cli.main import main
from experiments.contamination import planted


@pytest.fixture
def made(tmp_path):
    """A task of forty items, a corpus with a copy of the first and one of the second, changed."""
    rows = planted.items(40, 90, least=40, most=60)
    task = planted.write_lines(tmp_path / "riddles-test.jsonl", rows)
    changed = rows[1]["question"].split()
    changed[9::10] = ["other"] * len(changed[9::10])
    plants = [rows[0]["question"], " ".join(changed)]
    lines = [{"text": text} for text in planted.corpus(plants, 91, 6)]
    return task, planted.write_lines(tmp_path / "corpus.jsonl", lines), rows


def run(capsys, *argv, status=0):
    assert main(["audit", *map(str, argv)]) == status
    return capsys.readouterr()


def test_the_report_has_both_kinds_beside_their_passages(made, tmp_path, monkeypatch, capsys):
    task, corpus, rows = made
    monkeypatch.chdir(tmp_path)
    told = run(capsys, corpus.name, "--against", task, "--out", tmp_path / "out", "--worst", 2).out
    assert "riddles-test q0 (exact" in told
    assert "riddles-test q1 (near" in told
    assert "corpus.jsonl:1 at" in told
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["tasks"]["riddles-test"] | {"worst": 0} == {
        "items": 40, "short": 0, "exact": 1, "near": 2, "dirty": 2, "share": 0.05,
        "common_only": 0, "worst": 0}
    assert (report["documents"], report["documents_with_hits"]) == (6, 2)
    lines = (tmp_path / "out" / "dirty.jsonl").read_text().splitlines()
    first, second = map(json.loads, lines)
    assert (first["task"], first["id"], second["id"]) == ("riddles-test", "q0", "q1")
    match = first["exact"]["match"]
    text = json.loads(corpus.read_text().splitlines()[0])["text"]
    assert match["text"] == rows[0]["question"]
    assert text[match["start"] : match["stop"]] == match["passage"] == match["text"]
    assert second["exact"] is None
    assert 0.85 <= second["near"]["similarity"] <= 0.95


def test_json_is_what_the_folder_holds(made, tmp_path, capsys):
    task, corpus, _ = made
    told = json.loads(run(capsys, corpus, "--against", task, "--json", "--out", tmp_path / "o").out)
    assert told == json.loads((tmp_path / "o" / "report.json").read_text())
    plain = json.loads(run(capsys, corpus, "--against", task, "--json", "--no-near").out)
    assert plain["tasks"]["riddles-test"]["near"] == 0
    assert plain["tasks"]["riddles-test"]["exact"] == 1


def test_scores_are_told_of_clean_and_dirty_items(made, tmp_path, capsys):
    task, corpus, rows = made
    logs = tmp_path / "scores"
    logs.mkdir()
    planted.write_lines(logs / "riddles.jsonl", [
        {"id": row["id"], "answers": [{"verdicts": {"exact_match": {"is_right": i < 2 or i == 9}}}]}
        for i, row in enumerate(rows)])
    told = run(capsys, corpus, "--against", task, "--json", "--scores", logs).out
    (score,) = json.loads(told)["scores"]
    assert score["dirty"] == {"items": 2, "value": 1.0, "stderr": 0.0}
    assert (score["clean"]["items"], score["clean"]["value"]) == (38, 1 / 38)
    planted.write_lines(logs / "riddles.jsonl", [
        {"id": row["id"], "measures": {"acc": i % 2, "acc_norm": 1.0}}
        for i, row in enumerate(rows)])
    shown = run(capsys, corpus, "--against", task, "--worst", 0, "--scores", logs).out
    assert "acc_norm" in shown
    assert "0.5000 +- 0.5000" in shown


def test_items_of_one_name_are_told_apart_by_their_order(made, tmp_path, capsys):
    _, corpus, rows = made
    twice = [row | {"id": "same"} if i in (0, 5) else row for i, row in enumerate(rows)]
    again, logs = tmp_path / "twice.jsonl", tmp_path / "scores"
    planted.write_lines(again, twice)
    logs.mkdir()
    planted.write_lines(logs / "twice.jsonl", [
        {"index": i, "id": row["id"], "measures": {"acc": float(i == 5)}}
        for i, row in reversed([*enumerate(twice)])])
    (score,) = json.loads(run(capsys, corpus, "--against", again, "--json", "--scores",
                              logs).out)["scores"]
    assert score["dirty"] == {"items": 2, "value": 0.0, "stderr": 0.0}
    assert score["clean"]["items"] == 38


def test_tasks_go_by_the_names_that_evaluate_gives_them(tmp_path, capsys):
    rows = planted.items(4, 97)
    planted.write_lines(tmp_path / "gsm8k-test.jsonl", [
        {"question": row["question"], "answer": f"{row['answer']} #### 7"} for row in rows])
    planted.write_lines(tmp_path / "hellaswag-val.jsonl", [
        {"ind": 40 + i, "activity_label": "A", "ctx_a": row["question"], "ctx_b": "he",
         "ctx": row["question"] + " he", "endings": [row["answer"], "sits"], "label": "0"}
        for i, row in enumerate(planted.items(4, 98))])
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(rows[2]["question"])
    logs = tmp_path / "scores"
    logs.mkdir()
    planted.write_lines(logs / "gsm8k.jsonl", [{"id": f"line {i + 1}", "measures": {"em": i == 2}}
                                               for i in range(4)])
    told = json.loads(run(capsys, corpus, "--against", "gsm8k,hellaswag", "--data", tmp_path,
                          "--scores", logs, "--json", "--out", tmp_path / "out").out)
    assert {name: task["dirty"] for name, task in told["tasks"].items()} == {
        "gsm8k": 1, "hellaswag": 0}
    assert told["scores"][0]["dirty"] == {"items": 1, "value": 1.0, "stderr": None}
    (line,) = (tmp_path / "out" / "dirty.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "line 3"


def test_a_clean_corpus_comes_with_the_command(made, tmp_path, capsys):
    task, corpus, _ = made
    out = tmp_path / "clean"
    run(capsys, corpus, "--against", task, "--clean", out, "--cut", "documents")
    assert len((out / "corpus.jsonl").read_text().splitlines()) == 4
    again = json.loads(run(capsys, out, "--against", task, "--json").out)
    assert again["tasks"]["riddles-test"]["dirty"] == 0


def test_what_was_found_is_kept_where_nothing_clean_is_left(made, tmp_path, capsys):
    task, corpus, _ = made
    dirty = planted.write_lines(tmp_path / "all.jsonl", [
        json.loads(line) for line in corpus.read_text().splitlines()[:1]])
    told = run(capsys, dirty, "--against", task, "--out", tmp_path / "out", "--clean",
               tmp_path / "clean", "--cut", "documents", status=2)
    assert "every document has hits" in told.err
    assert not (tmp_path / "clean").exists()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["tasks"]["riddles-test"]["dirty"] == 1


REFUSED = {
    "no task": ([], "--against"),
    "missing task": (["--against", "gone.jsonl"], "gone.jsonl"),
    "no name of lines": (["--against", "t.csv"], ".jsonl"),
    "no such task": (["--against", "gsm9k"], "no task 'gsm9k'"),
    "no data": (["--against", "gsm8k", "--data", "nowhere"], "--data nowhere"),
    "no file of a task": (["--against", "mmlu", "--data", "sub"], "mmlu-test.jsonl"),
    "words": (["--against", "t.jsonl", "--words", "0"], "--words 0"),
    "common": (["--against", "t.jsonl", "--common", "0"], "--common 0"),
    "similarity": (["--against", "t.jsonl", "--similarity", "2"], "--similarity 2"),
    "worst": (["--against", "t.jsonl", "--worst", "-1"], "--worst -1"),
    "scores": (["--against", "t.jsonl", "--scores", "nowhere"], "--scores nowhere"),
    "there": (["--against", "t.jsonl", "--clean", "t.jsonl"], "t.jsonl is there"),
    "out": (["--against", "t.jsonl", "--out", "t.jsonl"], "t.jsonl is a file"),
    "missing": (["--against", "nope.jsonl"], "nope.jsonl is not there; name a file"),
    "twice": (["--against", "t.jsonl", "sub/t.jsonl"], "rename one"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_refused_in_a_sentence(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for path in ("t.jsonl", "sub/t.jsonl", "t.csv"):
        (tmp_path / path).write_text('{"question": "one two three"}\n')
    (tmp_path / "c.txt").write_text("some text")
    before = sorted(tmp_path.rglob("*"))
    words, said = REFUSED[name]
    told = run(capsys, "c.txt", *words, status=2)
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert said in told.err
    assert sorted(tmp_path.rglob("*")) == before, "and nothing is left"


@pytest.mark.parametrize(("line", "said"), [
    ("{", "line 2 is not JSON"), ("[1]", "line 2 is list"), ('{"label": 3}', "line 2 has no text"),
    ('{"question": {"a": 1}}', "line 2 has dict in field 'question'"),
    ('{"question": "\\ud800"}', "line 2 has half of a surrogate"),
])
def test_a_malformed_line_is_named_by_its_number(line, said, tmp_path, capsys):
    task = tmp_path / "t.jsonl"
    task.write_text('{"question": "one two"}\n' + line + "\n")
    (tmp_path / "c.txt").write_text("some text")
    assert said in run(capsys, tmp_path / "c.txt", "--against", task, status=2).err
    lines = tmp_path / "c.jsonl"
    lines.write_text('{"text": "fine"}\n{"text": 3}\n')
    task.write_text('{"question": "one two"}\n')
    assert "c.jsonl line 2" in run(capsys, lines, "--against", task, status=2).err


def test_empty_files_and_logs_of_other_items_are_refused(made, tmp_path, capsys):
    task, corpus, _ = made
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    assert "holds no items" in run(capsys, corpus, "--against", empty, status=2).err
    assert "no text" in run(capsys, empty, "--against", task, status=2).err
    logs = tmp_path / "scores"
    logs.mkdir()
    assert "no log" in run(capsys, corpus, "--against", task, "--scores", logs, status=2).err
    planted.write_lines(logs / "riddles.jsonl", [{"id": "x9", "measures": {"acc": 1}}])
    told = run(capsys, corpus, "--against", task, "--scores", logs, status=2).err
    assert "line 1 is of item 'x9'" in told


MEMORY = """
import resource, sys
from dsjax.evaluate.audit import corpus, items, scan
from pathlib import Path
looked = scan.Looked(items.tasks([Path(sys.argv[1])]), scan.Settings())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = scan.scan(looked, corpus.pieces([sys.argv[2]], "text", looked.overlap))
assert found.characters > 190e6, found.characters
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3)
"""


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_a_corpus_of_200_mb_takes_the_memory_of_a_piece(kind, made, tmp_path):
    task, _, _ = made
    part = "\n".join(planted.corpus([None] * 100, 95))
    path = tmp_path / f"large.{kind}"
    with path.open("w") as file:
        while file.tell() < 200e6:
            file.write(json.dumps({"text": part}) + "\n" if kind == "jsonl" else part)
    told = subprocess.run([sys.executable, "-c", MEMORY, str(task), str(path)], check=True,
                          capture_output=True, text=True, timeout=600)
    assert float(told.stdout) < 60, "megabytes"
