"""The numbers of the report: those that were generated agree with the claims, and none was typed by hand."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from levelt.files import read_json
from levelt.ledger.book import Book

Problem = tuple[str, str, str]
"""Path, what is the matter, what to run."""

_MACRO = re.compile(r"^\\leveltset\{([^}]*)\}\{(.*)\}$", re.MULTILINE)
_NO_PROSE = re.compile(
    r"\\(?:includegraphics|[vh]space|setlength|resizebox|href|url|label|ref|cite\w*)\*?(\[[^]]*\])?\{[^}]*\}"
)
_TYPED = re.compile(
    r"(?<![\w.{\\])\d+(?:\.\d+|(?=(?:\\,|~|\s)*(?:\\%|percent)))(?!\s*(?:\\\w*(?:width|height)|cm|pt|em|ex|mm|in\b))"
)


def number_findings(book: Book, here: Mapping[str, Any]) -> Iterator[Problem]:
    """Check generated numbers against the claims, and look for typed ones in the sources of documents."""
    rerun = f"snakemake --cores all --configfile {book.config}"
    macros = [path for path in here if path in book.maker and Path(path).name == "numbers.tex"]
    claims = [path for path in here if path in book.maker and Path(path).name == "claims.json"]
    for numbers in macros:
        values = dict(_MACRO.findall(Path(numbers).read_text(encoding="utf-8")))
        for path in claims:
            for key, said, meant in disagreements(values, read_json(path)):
                yield numbers, f"{key} says {said}, {path} says {meant}", f"rm {numbers} && {rerun}"
    made = book.maker
    for source in sorted({path for entry in book.jobs for path in entry.inputs if path.endswith(".tex")} - set(made)):
        if Path(source).is_file():
            for line, number in typed_numbers(Path(source).read_text(encoding="utf-8")):
                yield source, f"line {line}: the number {number} is typed, not generated", "quote it as \\levelt{key}"


def disagreements(macros: Mapping[str, str], claims: Any) -> Iterator[tuple[str, str, str]]:
    """(macro, what it says, what the claim says) for every macro ``claim.<id>.<field>`` that differs from its claim.

    A macro is a rounded number, maybe in percent or percentage points: it agrees when the claim's value, or a hundred
    times it, rounds to it. Text (the verdict) must be the same.
    """
    for claim in claims if isinstance(claims, list) else claims.get("claims", []):
        for field, value in claim.items():
            key = f"claim.{claim['id']}.{field}"
            if key not in macros or isinstance(value, list | dict):
                continue
            if not _agrees(macros[key], value):
                yield key, macros[key], str(value)


def _agrees(text: str, value: Any) -> bool:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return (isinstance(value, str) and _plain(text) == _plain(value)) or value is None or isinstance(value, bool)
    found = re.search(r"-?\d+(?:\.(\d+))?", text.replace(r"\,", "").replace("−", "-"))
    if found is None:
        return not math.isfinite(value)
    half = 0.5000001 * 10.0 ** -len(found.group(1) or "")  # printed digits; the rest for binary fractions
    return any(abs(float(found.group()) - scale * value) <= half for scale in (1, 100))


def _plain(text: str) -> str:
    return re.sub(r"[\\{}$\s]|texttt|emph", "", text)


def typed_numbers(text: str) -> Iterator[tuple[int, str]]:
    """(line, number) for every decimal number or percentage typed into the prose of a LaTeX source.

    A line that ends in the comment ``% constant`` may have them: chance is 0.5 whatever the study finds.
    """
    body = text.partition(r"\begin{document}")[2]
    first = text.count("\n", 0, len(text) - len(body)) + 1
    for number, line in enumerate(body.splitlines(), start=first):
        if re.search(r"% constant\s*$", line):
            continue
        prose = _NO_PROSE.sub("", re.sub(r"(?<!\\)%.*", "", line))
        for match in _TYPED.finditer(prose):
            yield number, match.group()
