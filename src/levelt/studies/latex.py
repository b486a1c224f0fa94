"""Numbers, intervals, text and tables as LaTeX."""

from __future__ import annotations

import math
from collections.abc import Sequence

_ESCAPES = {
    "\\": r"\textbackslash{}",
    **{character: "\\" + character for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "τ": r"$\tau$",
    "|": r"\textbar{}",
    "\u2018": "`",
    "\u2019": "'",
    "\u201c": "``",
    "\u201d": "''",
}


def escape(text: str) -> str:
    """Plain text as LaTeX text; characters pdfLaTeX cannot set become [U+XXXX]."""
    out = []
    for character in text:
        if character in _ESCAPES:
            out.append(_ESCAPES[character])
        elif ord(character) < 0x250:
            out.append(character)
        else:
            out.append(f"[U+{ord(character):04X}]")
    return "".join(out)


def decimal(value: float, digits: int = 2) -> str:
    """A number with a fixed number of decimals and a real minus sign; an en dash where it is undefined."""
    if value is None or not math.isfinite(value):
        return "--"
    text = f"{value:.{digits}f}"
    text = text.lstrip("-") if float(text) == 0 else text
    return f"${text}$" if text.startswith("-") else text


def interval(low: float, high: float, digits: int = 2) -> str:
    """An interval in brackets, or nothing where it is undefined."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f"[{decimal(low, digits)}, {decimal(high, digits)}]"


def tabular(header: Sequence[str], rows: Sequence[Sequence[str]], alignment: str) -> str:
    """A booktabs table body; cells are LaTeX already. An empty row becomes a thin rule."""
    lines = [rf"\begin{{tabular}}{{@{{}}{alignment}@{{}}}}", r"\toprule", " & ".join(header) + r" \\", r"\midrule"]
    # a cell that begins with a bracket would be read as an argument of the line break before it
    lines += [("{}" * row[0].startswith("[") + " & ".join(row) + r" \\") if row else r"\addlinespace" for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])
