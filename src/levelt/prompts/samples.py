"""Samples in: texts with a label and a pair id, from the synthetic world or from a JSON Lines or CSV file.

Texts, questions and ids are kept verbatim: no number passes through a float, no quote is straightened, no blank is
stripped. What cannot be used is refused in one sentence, or, if the config says so, left out and listed by line.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd

from levelt.config import FileSource, Task, WorldSource
from levelt.files import InputError, sha256

_ASKED = ("sample_id", "pair_id", "text", "label", "question", "negated_question")
COLUMNS = (*_ASKED, "unasked", "unasked_question", "unasked_negated_question", "line")
"""Columns of a samples table; all strings but ``line``, the 1-based line of the source where the row begins."""

_SHOWN = 5  # bad rows named in an error; the report lists them all


@dataclass(frozen=True)
class _Row:
    """One row as it stands in the file: its first line, and its values by column or why there are none."""

    line: int
    values: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None


def load_samples(
    name: str, task: Task, source: str | Path | None = None, least_pairs: int = 2
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The samples of the task ``name`` and the report on what was read.

    Args:
        name: the task's name, for messages.
        task: where the samples come from and how they are labelled.
        source: the file read. A world task needs it (the world's samples table of this task); a file task reads the
            file it names, and another one is an error.
        least_pairs: fewest minimal pairs that the study can use.

    Returns:
        A table with ``COLUMNS``, rows in the order of the source, and the report: source, source_sha256, rows_in,
        rows_used, refused {reason: count}, refused_rows [{line, reason}], labels {option: count}, pairs.

    Raises:
        InputError: the source cannot be used, or rows of it cannot and ``bad_rows`` is "refuse".
    """
    if isinstance(task.source, WorldSource):
        if source is None:
            raise InputError(f"tasks.{name}: the samples come from the world, but no table of it was given (--source)")
        path = Path(source)
        table, rows_in, refused = _from_world(path, task)
    else:
        path = Path(task.source.path)
        if source is not None and Path(source) != path:
            raise InputError(f"tasks.{name}: --source is {source}, but the task names {path}")
        table, rows_in, refused = _from_file(path, task, task.source)
    labels = Counter(table["label"])
    report = {
        "source": str(path),
        "source_sha256": sha256(path),
        "rows_in": rows_in,
        "rows_used": len(table),
        "refused": dict(sorted(Counter(reason for _, reason in refused).items())),
        "refused_rows": [{"line": line, "reason": reason} for line, reason in refused],
        "labels": {option: labels[option] for option in task.options},
        "pairs": int(table["pair_id"].nunique()),
    }
    _check_enough(path, report, least_pairs)
    return table, report


def _check_enough(path: Path, report: dict[str, Any], least_pairs: int) -> None:
    absent = [option for option, count in report["labels"].items() if not count]
    if absent:
        raise InputError(
            f"{path}: none of the {report['rows_used']} usable rows is labelled {absent[0]!r}, but both labels are "
            f"needed; check source.labels and source.limit, or add rows"
        )
    if report["pairs"] < least_pairs:
        raise InputError(
            f"{path}: found {report['pairs']} pair(s), expected at least {least_pairs}; add rows, raise source.limit, "
            f"or check source.columns.pair"
        )


def _table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(list(rows), columns=list(COLUMNS))
    # The string type also for columns without any value, so that the file's types do not depend on its rows.
    return table.astype({column: "int32" if column == "line" else "str" for column in COLUMNS})


# --- world tasks ---------------------------------------------------------------------------------------------------


def _from_world(path: Path, task: Task) -> tuple[pd.DataFrame, int, list[tuple[int, str]]]:
    try:
        table = pd.read_parquet(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; `levelt world` writes it") from None
    absent = [column for column in COLUMNS if column not in table.columns]
    if absent:
        raise InputError(f"{path}: column(s) {absent} are missing; found {list(table.columns)}")
    plain = table[list(COLUMNS)].astype(object).where(table[list(COLUMNS)].notna(), None)
    rows = [{str(column): value for column, value in row.items()} for row in plain.to_dict("records")]
    for row in rows:
        row["question"] = task.question if task.question is not None else row["question"]
        row["negated_question"] = (
            task.negated_question if task.negated_question is not None else row["negated_question"]
        )
        for column in ("sample_id", "pair_id", "text", "question"):
            if not isinstance(row[column], str) or not row[column].strip():
                raise InputError(f"{path}, line {row['line']}: blank {column}")
        if row["label"] not in task.options:
            raise InputError(f"{path}, line {row['line']}: label {row['label']!r}, expected one of {task.options}")
    twice = [key for key, count in Counter(row["sample_id"] for row in rows).items() if count > 1]
    if twice:
        raise InputError(f"{path}: sample_id {twice[0]!r} occurs more than once")
    return _table(rows), len(rows), []


# --- file tasks ----------------------------------------------------------------------------------------------------


def _from_file(path: Path, task: Task, source: FileSource) -> tuple[pd.DataFrame, int, list[tuple[int, str]]]:
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv}
    if path.suffix.lower() not in readers:
        raise InputError(f"{path}: expected a .jsonl or .csv file")
    found: dict[str, None] = {}  # an ordered set of the column names met
    rows: list[_Row] = []
    try:
        for row in readers[path.suffix.lower()](path, found):
            rows.append(row)
            if len(rows) == source.limit:
                break
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; tasks.*.source.path names it") from None
    except (IsADirectoryError, PermissionError) as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}, line {_undecodable_line(path)}: not UTF-8; save the file as UTF-8") from None
    if not rows:
        raise InputError(f"{path}: the file has no rows")
    _check_columns(path, source, found)
    samples, refused = _judge(rows, task, source)
    if refused and source.bad_rows == "refuse":
        _refuse(path, refused)
    return _table(samples), len(rows), refused


def _columns(source: FileSource) -> dict[str, str]:
    """Name in the config -> column in the file, for the columns that are used."""
    columns = source.columns.model_dump()
    return {what: column for what, column in columns.items() if column is not None}


def _check_columns(path: Path, source: FileSource, found: dict[str, None]) -> None:
    if not found:  # every line is malformed: the rows say more than the columns
        return
    absent = {what: column for what, column in _columns(source).items() if column not in found}
    if absent:
        named = ", ".join(f"{column!r} (source.columns.{what})" for what, column in absent.items())
        raise InputError(f"{path}: no column {named}; found {', '.join(map(repr, found))}")


def _refuse(path: Path, refused: list[tuple[int, str]]) -> NoReturn:
    shown = "; ".join(f"line {line}: {reason}" for line, reason in refused[:_SHOWN])
    more = f"; and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
    raise InputError(
        f"{path}: {len(refused)} row(s) cannot be used ({shown}{more}); correct them, or set `bad_rows: drop` to leave "
        f"them out"
    )


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key occurs twice")
    return values


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _read_jsonl(path: Path, found: dict[str, None]) -> Iterator[_Row]:
    # A kept literal instead of a float: an id such as 1.5e18 has lost digits once it is a double.
    decode = json.JSONDecoder(
        object_pairs_hook=_unique_keys, parse_float=_Number, parse_int=_Number, parse_constant=_no_constant
    ).decode
    # Lines end with \n only: a JSON string may hold U+2028 and its like, at which str.splitlines would cut.
    with path.open(encoding="utf-8-sig", newline="\n") as handle:
        for line, text in enumerate(handle, start=1):
            text = text.strip(" \t\r\n")
            if not text:
                yield _Row(line, reason="empty line")
                continue
            try:
                values = decode(text)
            except (ValueError, RecursionError):
                yield _Row(line, reason="malformed JSON")
                continue
            if not isinstance(values, dict):
                yield _Row(line, reason="not a JSON object")
                continue
            found.update(dict.fromkeys(values))
            yield _Row(line, values)


class _Number(str):
    """A JSON number as it is written."""

    __slots__ = ()


def _read_csv(path: Path, found: dict[str, None]) -> Iterator[_Row]:
    with path.open(encoding="utf-8-sig", newline="") as handle:
        reader = csv.reader(handle, strict=True)
        begin = 1
        try:
            header = next(reader, [])
            twice = [column for column, count in Counter(header).items() if count > 1]
            if twice:
                raise InputError(f"{path}, line 1: the column {twice[0]!r} occurs more than once")
            found.update(dict.fromkeys(header))
            begin = reader.line_num + 1
            for cells in reader:
                if len(cells) == len(header):
                    yield _Row(begin, dict(zip(header, cells, strict=True)))
                elif not any(cell.strip() for cell in cells):
                    yield _Row(begin, reason="empty line")
                else:
                    yield _Row(begin, reason=f"{len(cells)} fields instead of {len(header)}")
                begin = reader.line_num + 1
        except csv.Error as error:
            # Not a bad row: after a lost quote nobody knows where the next row begins.
            raise InputError(f"{path}, line {begin}: not valid CSV ({error})") from None


def _undecodable_line(path: Path) -> int:
    with path.open("rb") as handle:
        for line, raw in enumerate(handle, start=1):
            try:
                raw.decode("utf-8")
            except UnicodeDecodeError:
                return line
    return 1


def _judge(rows: Sequence[_Row], task: Task, source: FileSource) -> tuple[list[dict[str, Any]], list[tuple[int, str]]]:
    """The usable rows as samples, and (line, reason) of the others in the order of the file."""
    refused: dict[int, str] = {row.line: row.reason for row in rows if row.reason is not None}
    samples: list[dict[str, Any]] = []
    for row in rows:
        if row.reason is not None:
            continue
        try:
            samples.append(_sample(row, task, source))
        except ValueError as error:
            refused[row.line] = str(error)
    labels: dict[tuple[str, str], set[str]] = {}
    for sample in samples:
        labels.setdefault((sample["text"], sample["question"]), set()).add(sample["label"])
    kept: list[dict[str, Any]] = []
    seen: set[tuple[str, str]] = set()
    ids: set[str] = set()
    for sample in samples:
        key = (sample["text"], sample["question"])
        if len(labels[key]) > 1:  # which of them is right is unknown, so all go
            refused[sample["line"]] = "contradictory duplicate (same text and question, another label)"
        elif key in seen:
            refused[sample["line"]] = "duplicate (same text, question and label)"
        elif sample["sample_id"] in ids:
            refused[sample["line"]] = "id occurs twice"
        else:
            seen.add(key)
            ids.add(sample["sample_id"])
            kept.append(sample)
    return kept, sorted(refused.items())


def _sample(row: _Row, task: Task, source: FileSource) -> dict[str, Any]:
    """One sample.

    Raises:
        ValueError: why the row cannot be used.
    """
    columns = source.columns
    for column in _columns(source).values():
        if column not in row.values:
            raise ValueError(f"without {column!r}")
    text = _string(row.values[columns.text], "text")
    label = _scalar(row.values[columns.label], "label")
    if label not in source.labels:
        raise ValueError(f"label {label[:40]!r} is not among {list(source.labels)}")
    question = task.question
    if question is None and columns.question is not None:
        question = _string(row.values[columns.question], "question")
    identity = str(row.line) if columns.id is None else _identity(row.values[columns.id], "id")
    return {
        "sample_id": identity,
        "pair_id": identity if columns.pair is None else _identity(row.values[columns.pair], "pair id"),
        "text": text,
        "label": source.labels[label],
        "question": question,
        "negated_question": task.negated_question,
        "unasked": None,
        "unasked_question": None,
        "unasked_negated_question": None,
        "line": row.line,
    }


def _string(value: Any, what: str) -> str:
    if value is None:
        raise ValueError(f"blank {what}")
    if not isinstance(value, str) or isinstance(value, _Number):
        raise ValueError(f"{what} is not a string")
    if not value.strip():
        raise ValueError(f"blank {what}")
    return _encodable(value, what)


def _scalar(value: Any, what: str) -> str:
    if value is None or value == "":
        raise ValueError(f"without a {what}")
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str):
        raise ValueError(f"{what} is not a single value")
    return _encodable(str(value), what)


def _identity(value: Any, what: str) -> str:
    if value is None or value == "":
        raise ValueError(f"without {what}")
    if not isinstance(value, str):
        raise ValueError(f"{what} is not a string or an integer")
    if isinstance(value, _Number) and not value.lstrip("-").isdigit():
        raise ValueError(f"{what} is a fractional number, which may have lost digits")
    return _encodable(str(value), what)


def _encodable(value: str, what: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{what} is not valid Unicode (half of a surrogate pair)") from None
    return value
