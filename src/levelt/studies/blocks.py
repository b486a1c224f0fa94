"""Tables gathered block by block: a frame of its own for each of many small blocks costs more than what is in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

Block = Mapping[str, Any]
"""Columns of some rows: arrays of one length (lists, of what is an array itself), and scalars that hold for all."""


def frame(blocks: Sequence[Block], columns: Sequence[str]) -> pd.DataFrame:
    """The rows of all blocks, one block after the other, with these columns; what a block does not have is missing.

    Raises:
        ValueError: the arrays of a block differ in length, or a block has a column that is not asked for.
    """
    sizes = [_rows(block) for block in blocks]
    unknown = sorted({name for block in blocks for name in block} - set(columns))
    if unknown:
        raise ValueError(f"unexpected columns {', '.join(unknown)}")
    table = {}
    for name in columns:
        parts = [_column(block.get(name, np.nan), size) for block, size in zip(blocks, sizes, strict=True)]
        table[name] = np.concatenate(parts) if parts else np.array([], dtype=np.float64)
    return pd.DataFrame(table)


def _rows(block: Block) -> int:
    sizes = {len(value) for value in block.values() if not np.isscalar(value)}
    if len(sizes) > 1:
        raise ValueError(f"columns of {sorted(sizes)} rows in one block")
    return sizes.pop() if sizes else 1


def _column(value: Any, rows: int) -> np.ndarray:
    if isinstance(value, str):
        return np.full(rows, value, dtype=object)
    if isinstance(value, list):
        return np.fromiter(value, dtype=object, count=rows)
    return np.full(rows, value) if np.isscalar(value) else np.asarray(value)
