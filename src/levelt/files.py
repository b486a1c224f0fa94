"""Files written whole and renamed into place, hashes, and the formats of the study.

Parquet for rows, CSV and JSON for small tables people diff, safetensors for arrays. Never pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa


class InputError(Exception):
    """Bad input, said in one sentence: file, line or field, what was found, what was expected.

    The command line prints it without a traceback and exits with status 2.
    """


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is renamed over ``path``, on failure removed."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=target.suffix, dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as JSON (indented, keys in the order given, non-ASCII kept), whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read JSON; a broken file is an InputError that names the line."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: not valid JSON ({error.msg})") from None


def write_csv(path: str | Path, table: pd.DataFrame) -> None:
    """Write a small table: no index, 6 significant digits, so that people can diff it."""
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")


def write_parquet(path: str | Path, table: pd.DataFrame, quick: bool = False) -> None:
    """Write rows as Parquet, small: floats keep 6 significant digits, as in a CSV (their type stays, the bits below are
    zero; floats inside lists are kept whole). The same rows give the same bytes (no time, no host in the file).

    ``quick``: compressed a little in a fraction of the time, for what is neither stored nor sent anywhere.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    floats = [str(name) for name in table if table[name].dtype.kind == "f"]
    table = table.assign(**{name: _shortened(table[name].to_numpy()) for name in floats})
    rows = pa.Table.from_pandas(table, preserve_index=False)
    # a dictionary pays for names and for rates of few samples; long runs of other values compress better without one
    planes = [name for name in floats if table[name].nunique() > len(table) / 4]
    ids = [name for name in table if str(name).endswith("_id")]
    leaves = [leaf for leaf in _leaves(rows.schema) if leaf not in {*planes, *ids}]
    with replacing(path) as temporary:
        pq.write_table(
            rows,
            temporary,
            compression="zstd",
            compression_level=3 if quick else 19,
            use_dictionary=leaves,
            use_byte_stream_split=planes,
        )


def _shortened(values: np.ndarray) -> np.ndarray:
    """Floats rounded to 21 bits of fraction: a relative error below 2.4e-7, so decimals of 6 digits print as before."""
    import numpy as np

    dropped = np.finfo(values.dtype).nmant - 21
    if dropped <= 0:
        return values
    whole = np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")
    half = whole.dtype.type(1 << (dropped - 1))
    short = ((whole + half) >> dropped << dropped).view(values.dtype)
    return np.where(np.isfinite(values) & np.isfinite(short), short, values)


def _leaves(schema: pa.Schema) -> list[str]:
    """Dotted names of a schema's columns as Parquet counts them: a list or a struct has several."""
    import io

    import pyarrow.parquet as pq

    empty = io.BytesIO()
    pq.write_table(schema.empty_table(), empty)
    columns = pq.ParquetFile(empty).schema
    return [columns.column(index).path for index in range(len(columns))]


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
    """Write named arrays as safetensors. ``metadata`` (JSON values) goes under the single key "levelt":
    safetensors keeps metadata in a hash map, so with several keys the same content would give different bytes."""
    import numpy as np
    from safetensors.numpy import save_file

    with replacing(path) as temporary:
        contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        save_file(contiguous, str(temporary), metadata={"levelt": json.dumps(metadata, sort_keys=True)})


def read_arrays(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read a safetensors file: (arrays by name, metadata)."""
    from safetensors import safe_open

    with safe_open(str(path), framework="numpy") as handle:
        names = list(handle.keys())
        metadata = json.loads((handle.metadata() or {}).get("levelt", "{}"))
        return {name: handle.get_tensor(name) for name in names}, metadata


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def manifest_of(paths: Mapping[str, str | Path]) -> dict[str, dict[str, Any]]:
    """{name: {sha256, bytes}} for each named file: the small file that stands beside big ones."""
    return {name: {"sha256": sha256(path), "bytes": Path(path).stat().st_size} for name, path in paths.items()}
