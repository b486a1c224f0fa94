"""Contrastive tasks as two plain tables: queries with their answers, and instructions with their wordings.

Queries: task, query, instruction_id, answer; each query once for each of its two instructions.
Instructions: task, instruction_id, wording, instruction; wording 0 is the one in use, the others are rephrasings.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd

from levelt.config import ContrastFile, ContrastWorld
from levelt.files import InputError

QUERY_COLUMNS = ["task", "query", "instruction_id", "answer"]
INSTRUCTION_COLUMNS = ["task", "instruction_id", "wording", "instruction"]


def from_world(pairs: pd.DataFrame, task: str, source: ContrastWorld) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of a task of the world.

    Args:
        pairs: the world's contrasts: task, text, question_1, answer_1, question_2, answer_2.
        task: its name in the study.
        source: its name in the world, and the wordings.

    Raises:
        InputError: the world has no such task, or asks differently from the first wording.
    """
    own = pairs[pairs["task"] == source.name]
    if own.empty:
        raise InputError(f"vectors.tasks.{task}: the world has no contrastive task {source.name!r}")
    pattern = re.compile(re.escape(source.wordings[0]).replace(re.escape("{noun}"), "(.+)"))
    queries, instructions = [], []
    for side in ("1", "2"):
        question = str(own[f"question_{side}"].iloc[0])
        found = pattern.fullmatch(question)
        if found is None:
            raise InputError(
                f"vectors.tasks.{task}: the world asks {question!r}, which is not the first wording "
                f"{source.wordings[0]!r}"
            )
        noun = found[1]
        answers = own[f"answer_{side}"]
        queries.append(pd.DataFrame({"task": task, "query": own["text"], "instruction_id": noun, "answer": answers}))
        worded = [wording.replace("{noun}", noun) for wording in source.wordings]
        instructions += [(task, noun, index, text) for index, text in enumerate(worded)]
    table = pd.concat(queries, ignore_index=True)[QUERY_COLUMNS]
    return table, pd.DataFrame(instructions, columns=INSTRUCTION_COLUMNS)


def from_file(task: str, source: ContrastFile) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Any]]:
    """The tables of a task in CSV files, and a report of the queries left out.

    A query that occurs again is left out, as is one whose two answers are the same: it contrasts nothing.

    Raises:
        InputError: a file or column is missing, a cell is empty, or there is nothing left.
    """
    where = f"vectors.tasks.{task}: {source.path}"
    rows = _csv(source.path, f"vectors.tasks.{task}")
    for column in (source.query, *source.instructions):
        if column not in rows:
            raise InputError(f"{where}: column {column} is missing; found {', '.join(rows.columns)}")
        empty = rows.index[rows[column].str.strip() == ""]
        if len(empty):
            raise InputError(f"{where}, row {empty[0] + 2}: `{column}` is empty")
    first, second = source.instructions
    repeated = rows[source.query].duplicated()
    same = rows[first].str.strip().str.lower() == rows[second].str.strip().str.lower()
    kept = rows[~repeated & ~same]
    if kept.empty:
        raise InputError(f"{where}: no query with two different answers")
    queries = [
        pd.DataFrame({"query": kept[source.query].str.strip(), "answer": kept[name].str.strip()}).assign(
            task=task, instruction_id=name
        )
        for name in source.instructions
    ]
    instructions = [(task, name, 0, text) for name, text in source.instructions.items()]
    for name, path in source.rephrasings.items():
        found = _csv(path, f"vectors.tasks.{task}")
        if "instruction" not in found:
            raise InputError(f"{path}: column instruction is missing; found {', '.join(found.columns)}")
        others = dict.fromkeys(text.strip() for text in found["instruction"] if text.strip())
        others.pop(source.instructions[name], None)
        instructions += [(task, name, 1 + index, text) for index, text in enumerate(others)]
    report = {
        "rows": len(rows),
        "kept": len(kept),
        "repeated": rows.loc[repeated, source.query].tolist(),
        "same_answers": rows.loc[same & ~repeated, source.query].tolist(),
    }
    table = pd.concat(queries, ignore_index=True)[QUERY_COLUMNS]
    return table, pd.DataFrame(instructions, columns=INSTRUCTION_COLUMNS), report


def _csv(path: str, where: str) -> pd.DataFrame:
    if not Path(path).is_file():
        raise InputError(f"{where}: no such file: {path}")
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InputError(f"{where}: {path} is not a UTF-8 CSV file ({str(error).splitlines()[0]})") from None
