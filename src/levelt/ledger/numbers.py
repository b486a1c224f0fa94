"""The numbers of the report: those that were generated agree with the claims, and none was typed by hand."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from levelt.files import read_json
from levelt.ledger.book import Book

Problem = tuple[str, str, str]
"""Path, what is the matter, what to run."""

_VERDICTS = ("supported", "contradicted", "undecided")
_NUMBER = re.compile(r"(-?\d+(?:\.(\d+))?)")
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


def disagreements(macros: Mapping[str, str], claims: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """(macro, what it says, what the claims say) for every generated statement that is not its claim's.

    The sentence of a claim is ``claim.<id>``, with or without the study's prefix in the id. It must name the verdict,
    and each of estimate, ci_low and ci_high must be one of its numbers, rounded. ``verdicts.<verdict>`` counts claims,
    ``verdicts.<paper>.<verdict>`` those of one paper.
    """
    for claim in claims:
        key = next((k for k in (f"claim.{claim['id']}", f"claim.{claim['id'].partition('.')[2]}") if k in macros), None)
        if key is None:
            continue
        numbers = _NUMBER.findall(macros[key].replace(r"\,", "").replace("−", "-"))
        for field in ("estimate", "ci_low", "ci_high"):
            if claim[field] is not None and not any(_rounds_to(claim[field], *number) for number in numbers):
                yield key, macros[key], f"{field} {claim[field]:.6g}"
        if claim["verdict"] not in macros[key]:
            yield key, macros[key], claim["verdict"]
    for key in macros:
        kind, _, counting = key.partition(".")
        paper, _, verdict = counting.rpartition(".")
        if kind != "verdicts" or verdict not in _VERDICTS:
            continue
        counted = sum(
            claim["verdict"] == verdict and claim["estimate"] is not None and paper in ("", claim.get("paper"))
            for claim in claims
        )
        if macros[key] != str(counted):
            yield key, macros[key], str(counted)


def _rounds_to(value: float, shown: str, digits: str) -> bool:
    half = 0.5000001 * 10.0 ** -len(digits)  # half of the last printed digit; the rest is for binary fractions
    return abs(float(shown) - value) <= half


def typed_numbers(text: str) -> Iterator[tuple[int, str]]:
    """(line, number) for every decimal number or percentage typed into the prose of a LaTeX source.

    A source without a document of its own is a part of one: all of it is prose.
    A line that ends in the comment ``% constant`` may have them: chance is 0.5 whatever the study finds.
    """
    body = text.partition(r"\begin{document}")[2] or text  # a part that a document inputs has no beginning of its own
    first = text.count("\n", 0, len(text) - len(body)) + 1
    for number, line in enumerate(body.splitlines(), start=first):
        if re.search(r"% constant\s*$", line):
            continue
        prose = _NO_PROSE.sub("", re.sub(r"(?<!\\)%.*", "", line))
        for match in _TYPED.finditer(prose):
            yield number, match.group()


def generated(path: Path) -> dict[str, str]:
    """Key -> LaTeX of every generated number and table in a file of macros, in its order."""
    parts = re.split(r"^\\leveltset\{([^}]*)\}\{", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {key: value.rstrip().removesuffix("}") for key, value in zip(parts[::2], parts[1::2], strict=True)}
