"""Files are written whole or not at all, and the same content gives the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from levelt.files import (
    InputError,
    manifest_of,
    read_arrays,
    read_json,
    replacing,
    sha256,
    write_arrays,
    write_csv,
    write_json,
    write_parquet,
)


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), replacing(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_successful_write_replaces(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.txt"
    with replacing(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o644


def test_arrays_round_trip_and_are_byte_stable(tmp_path: Path) -> None:
    arrays = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array([1, 2], dtype=np.int32)}
    metadata = {f"key{i}": i for i in range(20)}
    write_arrays(tmp_path / "1.safetensors", arrays, metadata)
    write_arrays(tmp_path / "2.safetensors", arrays, dict(reversed(metadata.items())))
    assert sha256(tmp_path / "1.safetensors") == sha256(tmp_path / "2.safetensors")
    read, described = read_arrays(tmp_path / "1.safetensors")
    assert described == metadata
    assert all((read[name] == arrays[name]).all() for name in arrays)
    write_arrays(tmp_path / "3.safetensors", {**arrays, "a": np.array([1, 3], dtype=np.int32)}, metadata)
    assert sha256(tmp_path / "3.safetensors") != sha256(tmp_path / "1.safetensors")


def test_tables_are_byte_stable(tmp_path: Path) -> None:
    table = pd.DataFrame({"x": [1.23456789, np.nan], "name": ["ü", "‘b’"], "ids": [[1, 2], [3]]})
    for write, suffix in ((write_parquet, "parquet"), (write_csv, "csv")):
        for name in "12":
            write(tmp_path / f"{name}.{suffix}", table)
        assert sha256(tmp_path / f"1.{suffix}") == sha256(tmp_path / f"2.{suffix}")
    assert "1.23457" in (tmp_path / "1.csv").read_text()


def test_parquet_keeps_six_digits_types_and_what_is_not_a_number(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    exact = np.array([0.0, -0.0, 1.0, 0.528, -2.5e-300, 1e300, np.nan, np.inf, -np.inf, np.finfo(np.float64).max])
    table = pd.DataFrame(
        {
            "few": np.resize(exact, 1000),
            "many": rng.normal(size=1000),
            "narrow": rng.normal(size=1000).astype(np.float32),
            "n": rng.integers(0, 2**62, 1000),
            "prompt_id": [f"p{i}" for i in range(1000)],
            "hits": [rng.normal(size=3).astype(np.float32) for _ in range(1000)],
            "messages": [[{"role": "user", "content": "ü"}]] * 1000,
        }
    )
    write_parquet(tmp_path / "t.parquet", table)
    read = pd.read_parquet(tmp_path / "t.parquet")
    assert list(read.dtypes) == list(table.dtypes)
    assert [f"{x:.6g}" for x in read["few"]] == [f"{x:.6g}" for x in table["few"]], "six digits print as before"
    for name in ("few", "many", "narrow"):
        np.testing.assert_allclose(read[name], table[name], rtol=2.4e-7)
    assert not (read["many"] == table["many"]).all(), "twin: digits beyond them are gone"
    assert (read["few"].iloc[[0, 2]] == [0.0, 1.0]).all() and np.signbit(read["few"].iloc[1])
    assert (read["n"] == table["n"]).all() and (read["prompt_id"] == table["prompt_id"]).all()
    assert all((a == b).all() for a, b in zip(read["hits"], table["hits"], strict=True))
    assert list(read["messages"].iloc[0]) == table["messages"].iloc[0]


def test_json_refuses_nan_and_names_broken_lines(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not (tmp_path / "a.json").exists()
    (tmp_path / "b.json").write_text('{\n"a": 1,\n}')
    with pytest.raises(InputError, match=r"b\.json, line 3"):
        read_json(tmp_path / "b.json")


def test_manifest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    entry = manifest_of({"a": tmp_path / "a"})["a"]
    assert entry == {"sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", "bytes": 3}
