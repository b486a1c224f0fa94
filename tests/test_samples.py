"""Samples from files and from the world: kept verbatim, checked, refused or dropped by line."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from levelt.cli import main
from levelt.config import FileSource, Task, load, settings_json
from levelt.files import InputError, sha256
from levelt.prompts.samples import COLUMNS, load_samples

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT / "../shared/data/processing_production/blimp.jsonl"
GOOD = [{"text": "a cat sleeps.", "label": "yes"}, {"text": "a cat sleep.", "label": "no"}]


def task(path: Path, **source) -> Task:
    return Task(source=FileSource(path=str(path), **source), question="is it ‘good’?")


def jsonl(folder: Path, *rows: object) -> Path:
    path = folder / "rows.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in (*GOOD, *rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def table_of(folder: Path, text: str, **source) -> pd.DataFrame:
    path = folder / "rows.csv"
    path.write_bytes(text.encode())
    return load_samples("t", task(path, **source))[0]


BAD = {
    "": "empty line",
    '{"text": "x"': "malformed JSON",
    '{"text": "x", "text": "y", "label": "yes"}': "malformed JSON",
    '{"text": "x", "label": NaN}': "malformed JSON",
    "[1]": "not a JSON object",
    '{"text": "x"}': "without 'label'",
    '{"label": "yes"}': "without 'text'",
    '{"text": "x", "label": null}': "without a label",
    '{"text": "x", "label": ""}': "without a label",
    '{"text": "x", "label": ["yes"]}': "label is not a single value",
    '{"text": "x", "label": "maybe"}': "label 'maybe' is not among ['yes', 'no']",
    '{"text": " \\t ", "label": "yes"}': "blank text",
    '{"text": null, "label": "yes"}': "blank text",
    '{"text": 12, "label": "yes"}': "text is not a string",
    '{"text": "\\ud800", "label": "yes"}': "text is not valid Unicode (half of a surrogate pair)",
    '{"text": "a cat sleeps.", "label": "yes"}': "duplicate (same text, question and label)",
}


@pytest.mark.parametrize(("line", "reason"), BAD.items())
def test_bad_rows_are_refused_by_line_or_dropped_and_listed(tmp_path, line, reason):
    path = jsonl(tmp_path, line)
    with pytest.raises(InputError) as error:
        load_samples("t", task(path))
    assert str(path) in str(error.value) and f"line 3: {reason}" in str(error.value)
    table, report = load_samples("t", task(path, bad_rows="drop"))
    assert len(table) == report["rows_used"] == 2 and report["rows_in"] == 3
    assert report["refused"] == {reason: 1} and report["refused_rows"] == [{"line": 3, "reason": reason}]


def test_contradictory_duplicates_all_go(tmp_path):
    path = jsonl(tmp_path, {"text": "z", "label": "yes"}, {"text": "z", "label": "no"}, {"text": "z", "label": "no"})
    with pytest.raises(InputError, match=r"3 row.*line 3: contradictory"):
        load_samples("t", task(path))
    table, report = load_samples("t", task(path, bad_rows="drop"))
    assert list(table["line"]) == [1, 2] and [row["line"] for row in report["refused_rows"]] == [3, 4, 5]


def test_same_text_with_another_question_is_no_duplicate(tmp_path):
    rows = [{"text": "a", "label": label, "q": f"{label}?", "id": i} for i, label in enumerate(["yes", "no"])]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    source = FileSource(path=str(path), columns={"question": "q", "id": "id"})
    table, report = load_samples("t", Task(source=source))
    assert (
        report["rows_in"] == 2 and list(table["question"]) == ["yes?", "no?"] and list(table["sample_id"]) == ["0", "1"]
    )


def test_only_the_first_bad_rows_are_named(tmp_path):
    with pytest.raises(InputError, match=r"9 row\(s\).*line 7: empty line; and 4 more.*bad_rows: drop"):
        load_samples("t", task(jsonl(tmp_path, *[""] * 9)))


@pytest.mark.parametrize("identity", [1477550715795123200, -(2**63), 2**64 + 1, "007", " x ", "1e5", "ü"])
def test_ids_are_kept_exactly(tmp_path, identity):
    rows = [
        {"text": "a", "label": "yes", "id": identity, "p": 2**60 + 1},
        {"text": "b", "label": "no", "id": "o", "p": 3},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    table, _ = load_samples("t", task(path, columns={"id": "id", "pair": "p"}))
    assert list(table["sample_id"]) == [str(identity), "o"] and list(table["pair_id"]) == [str(2**60 + 1), "3"]


@pytest.mark.parametrize(
    ("identity", "reason"),
    [
        ("1.5e18", "fractional"),
        ("1.0", "fractional"),
        ("null", "without id"),
        ("true", "not a string or an integer"),
        ("2", "id occurs twice"),
    ],
)
def test_ids_that_cannot_be_trusted_are_refused(tmp_path, identity, reason):
    path = tmp_path / "rows.jsonl"
    ids = ["1", "2", identity]
    labels = ["yes", "no", "no"]
    rows = zip("abc", labels, ids, strict=True)
    path.write_text("\n".join(f'{{"text": "{t}", "label": "{la}", "id": {i}}}' for t, la, i in rows), encoding="utf-8")
    with pytest.raises(InputError, match=f"line 3: .*{reason}"):
        load_samples("t", task(path, columns={"id": "id"}))


def test_labels_are_compared_as_strings(tmp_path):
    path = tmp_path / "rows.jsonl"
    labels = ["true", "1", '"yes"', "false", "0", '"no"']
    path.write_text("\n".join(f'{{"text": "{i}", "label": {x}}}' for i, x in enumerate(labels)), encoding="utf-8")
    names = {"true": "yes", "1": "yes", "yes": "yes", "false": "no", "0": "no", "no": "no"}
    table, report = load_samples("t", task(path, labels=names))
    assert list(table["label"]) == ["yes"] * 3 + ["no"] * 3 and report["labels"] == {"yes": 3, "no": 3}


def test_bare_yaml_booleans_are_explained_and_integers_accepted(tmp_path):
    with pytest.raises(ValueError, match="put it in quotes"):
        FileSource(path="x.csv", labels={True: "yes", False: "no"})
    assert FileSource(path="x.csv", labels={1: "yes", 0: "no"}).labels == {"1": "yes", "0": "no"}
    with pytest.raises(ValueError, match="no entry of labels"):
        task(tmp_path, labels={"yes": "yes"})


def test_a_column_that_exists_nowhere_is_an_error_even_when_dropping(tmp_path):
    with pytest.raises(InputError, match=r"no column 'sentence' \(source.columns.text\); found 'text', 'label'"):
        load_samples("t", task(jsonl(tmp_path), columns={"text": "sentence"}, bad_rows="drop"))
    with pytest.raises(InputError, match="no column 'label'"):
        table_of(tmp_path, "text,lable\na,yes\n", bad_rows="drop")


def test_text_is_verbatim(tmp_path):
    texts = [
        "  ‘curly’ “quotes”  ",
        "e\u0301 is not é",
        "line\nbreak\r\n",
        "\u2028separator\u0085",
        "🙂\u200d",
        'a,"b"',
    ]
    rows = [{"text": text, "label": "yes"} for text in texts]
    table, _ = load_samples("t", task(jsonl(tmp_path, *rows)))
    assert list(table["text"])[2:] == texts and list(table["line"]) == list(range(1, 9))
    assert set(table["question"]) == {"is it ‘good’?"} and table["negated_question"].isna().all()


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), unique=True, min_size=2))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_text_survives_both_formats(tmp_path_factory, texts):
    import csv

    folder = tmp_path_factory.mktemp("any")
    texts = [text for text in texts if text.strip()]
    rows = [{"text": text, "label": "yes"} for text in texts] + [{"text": "≠ the others ≠", "label": "no"}]
    with (folder / "r.csv").open("w", encoding="utf-8-sig", newline="") as handle:
        writer = csv.DictWriter(handle, ["text", "label"])
        writer.writeheader()
        writer.writerows(rows)
    (folder / "r.jsonl").write_text(
        "\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8", newline=""
    )
    if len(rows) > 1:
        for name in ("r.csv", "r.jsonl"):
            table, _ = load_samples("t", task(folder / name))
            assert list(table["text"]) == [row["text"] for row in rows]


def test_csv_lines_are_physical_lines(tmp_path):
    text = 'text,label\r\n"two\r\nlines",yes\r\nplain,no\r\n\r\n"three\n\nlines",maybe\nx\n'
    with pytest.raises(InputError, match=r"line 5: empty line; line 6: label 'maybe'.*; line 9: 1 fields instead of 2"):
        table_of(tmp_path, text)
    table = table_of(tmp_path, text, bad_rows="drop")
    assert list(table["line"]) == [2, 4] and table["text"][0] == "two\r\nlines"
    assert list(table["sample_id"]) == ["2", "4"]


def test_csv_byte_order_mark_and_long_integers(tmp_path):
    table = table_of(tmp_path, "\ufefftext,label,id\na,yes,1477550715795123201\nb,no,0010\n", columns={"id": "id"})
    assert list(table["sample_id"]) == ["1477550715795123201", "0010"]


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b'text,label\na,yes\n"lost quote,no\nb,no\n', "r.csv", "line 3: not valid CSV"),
        (b"text,text,label\n", "r.csv", "'text' occurs more than once"),
        (b"text,label\n", "r.csv", "no rows"),
        (b"", "r.csv", "no rows"),
        (b"", "r.jsonl", "no rows"),
        (b'{"text": "a", "label": "yes"}\n{"text": "\xe9", "label": "no"}\n', "r.jsonl", "line 2: not UTF-8"),
        (b"text,label\na,yes\n\xff,no\n", "r.csv", "line 3: not UTF-8"),
        (b"x", "r.txt", "expected a .jsonl or .csv file"),
        (b'{"text": "a", "label": "yes"}\n{"text": "b", "label": "yes"}\n', "r.jsonl", "labelled 'no'.*check source"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, content, name, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        load_samples("t", task(path, bad_rows="drop"))
    assert name in str(error.value)


def test_missing_file_and_too_few_pairs(tmp_path):
    with pytest.raises(InputError, match=r"none.jsonl: no such file"):
        load_samples("t", task(tmp_path / "none.jsonl"))
    rows = [{"text": text, "label": label, "p": 1} for text, label in (("a", "yes"), ("b", "no"))]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(InputError, match=r"found 1 pair.*expected at least 2.*columns.pair"):
        load_samples("t", task(path, columns={"pair": "p"}))


def test_limit_reads_the_first_rows_only(tmp_path):
    path = jsonl(tmp_path, "{broken")
    assert load_samples("t", task(path, limit=2))[1]["rows_in"] == 2


# --- world ---------------------------------------------------------------------------------------------------------


def world(path: Path, **change: object) -> Path:
    rows = [
        {
            "sample_id": f"s{i}",
            "pair_id": f"p{i // 2}",
            "text": f"text {i}",
            "label": ("yes", "no")[i % 2],
            "question": "is it?",
            "negated_question": "is it not?",
            "unasked": None if i else "yes",
            "unasked_question": None if i else "is it that?",
            "unasked_negated_question": None,
            "line": i + 1,
        }
        for i in range(8)
    ]
    rows[3].update(change)
    pd.DataFrame(rows).to_parquet(path)
    return path


def test_world_samples_pass_and_questions_can_be_replaced(tmp_path):
    of_world = Task(source={"kind": "world", "name": "t"}, question="other?")
    table, report = load_samples("t", of_world, world(tmp_path / "w.parquet"))
    assert list(table.columns) == list(COLUMNS) and set(table["question"]) == {"other?"}
    assert set(table["negated_question"]) == {"is it not?"} and report["pairs"] == 4
    assert list(table["unasked"].isna()) == [False] + [True] * 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": " "}, "line 4: blank text"),
        ({"label": "maybe"}, "line 4: label"),
        ({"sample_id": "s0"}, "more than once"),
    ],
)
def test_broken_world_tables_are_refused(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        load_samples("t", Task(source={"kind": "world", "name": "t"}), world(tmp_path / "w.parquet", **change))


def test_a_file_task_reads_the_file_it_names(tmp_path):
    with pytest.raises(InputError, match=r"--source is other.csv, but the task names"):
        load_samples("t", task(jsonl(tmp_path)), "other.csv")


def test_world_task_without_a_world():
    with pytest.raises(InputError, match="--source"):
        load_samples("t", Task(source={"kind": "world", "name": "t"}))


# --- the command ---------------------------------------------------------------------------------------------------


def test_command_writes_the_same_bytes_twice(tmp_path, capsys):
    path = jsonl(tmp_path, "")
    for bad_rows, status in (("refuse", 2), ("drop", 0)):
        text = json.dumps({"tasks.t": task(path, bad_rows=bad_rows).model_dump(mode="json")})
        digests = []
        for run in range(2):
            out, report = tmp_path / f"{run}.parquet", tmp_path / f"{run}.json"
            arguments = [
                "samples",
                "--settings",
                text,
                "--task",
                "t",
                "--source",
                str(path),
                "--out",
                str(out),
                "--report",
                str(report),
            ]
            assert main(arguments) == status
            digests.append(status or (sha256(out), sha256(report)))
        assert digests[0] == digests[1]
    assert "line 3: empty line" in capsys.readouterr().err
    assert json.loads((tmp_path / "0.json").read_text())["refused"] == {"empty line": 1}


def test_samples_import_neither_torch_nor_transformers():
    code = "import sys, levelt.commands.samples; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


@pytest.mark.published
@pytest.mark.skipif(not PUBLISHED.exists(), reason="needs the published blimp.jsonl in ../shared/data")
def test_published_file(monkeypatch):
    monkeypatch.chdir(ROOT)
    study = load(ROOT / "config/examples/blimp.yaml")
    assert json.loads(settings_json(study, "tasks.blimp"))
    begin = time.perf_counter()
    table, report = load_samples("blimp", study.tasks["blimp"])
    assert time.perf_counter() - begin < 3  # about 0.2 s on a quiet core
    assert report["rows_in"] == report["rows_used"] == 5000 and report["labels"] == {"yes": 2463, "no": 2537}
    assert table["sample_id"][0] == "1477550715795123200" and table["question"].str.contains("‘yes’").all()
