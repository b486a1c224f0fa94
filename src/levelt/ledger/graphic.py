"""A chain of jobs as a small SVG: a box per rule, arrows along the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

BOX = (150, 44)
GAP = (60, 22)


def chain_svg(jobs: Sequence[Mapping[str, Any]]) -> str:
    """Draw the jobs of a trace, raw end on the left. The same trace gives the same text.

    Args:
        jobs: the ``jobs`` of `trace`: rule, inputs, outputs, seconds.
    """
    maker = {file["path"]: job["rule"] for job in jobs for file in job["outputs"]}
    needs: dict[str, set[str]] = {job["rule"]: set() for job in reversed(jobs)}
    for job in jobs:
        needs[job["rule"]] |= {maker[file["path"]] for file in job["inputs"] if file["path"] in maker} - {job["rule"]}
    column = dict.fromkeys(needs, 0)
    for _ in needs:  # the longest way from the raw end; rules that need each other stay where they are after that
        column = {rule: max([column[rule], *(column[n] + 1 for n in needs[rule])]) for rule in needs}
        column = {rule: min(c, len(needs) - 1) for rule, c in column.items()}
    rows: dict[int, list[str]] = {}
    for rule in needs:
        rows.setdefault(column[rule], []).append(rule)
    ordered = sorted(rows)
    place = {
        rule: (10 + ordered.index(c) * (BOX[0] + GAP[0]), 10 + row * (BOX[1] + GAP[1]))
        for c in ordered
        for row, rule in enumerate(rows[c])
    }
    width = 20 + len(ordered) * BOX[0] + (len(ordered) - 1) * GAP[0]
    height = 20 + max(len(of) for of in rows.values()) * (BOX[1] + GAP[1]) - GAP[1]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#888"/></marker></defs>',
    ]
    for rule in needs:
        for source in sorted(needs[rule]):
            x, y = place[source][0] + BOX[0], place[source][1] + BOX[1] / 2
            to_x, to_y = place[rule][0], place[rule][1] + BOX[1] / 2
            bend = GAP[0] / 2
            curve = f"M{x} {y:g}C{x + bend:g} {y:g} {to_x - bend:g} {to_y:g} {to_x} {to_y:g}"
            parts.append(f'<path d="{curve}" fill="none" stroke="#aaa" marker-end="url(#tip)"/>')
    for rule, (x, y) in place.items():
        own = [job for job in jobs if job["rule"] == rule]
        seconds = sum(job["seconds"] for job in own)
        said = f"{len(own)} job{'s' if len(own) > 1 else ''}, {seconds:.0f} s"
        parts.append(
            f'<a href="#{escape(rule)}"><rect x="{x}" y="{y}" width="{BOX[0]}" height="{BOX[1]}" rx="5" fill="#eef3f8" '
            f'stroke="#4a78a8"/><text x="{x + BOX[0] / 2:g}" y="{y + 19}" text-anchor="middle">{escape(rule)}</text>'
            f'<text x="{x + BOX[0] / 2:g}" y="{y + 35}" text-anchor="middle" class="small">{said}</text></a>'
        )
    return "\n".join([*parts, "</svg>"])
