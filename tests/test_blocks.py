"""Tables made of blocks hold what a frame for each block would."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from levelt.studies.blocks import frame


def test_a_table_of_blocks_is_the_frames_one_after_the_other() -> None:
    blocks = [
        {"kind": "a", "layer": np.array([0, 1]), "rate": np.array([0.25, 0.5]), "draw": 3},
        {"kind": "b", "layer": np.array([2]), "rate": np.array([1.0])},
    ]
    expected = pd.concat([pd.DataFrame(block) for block in blocks], ignore_index=True)
    columns = ["kind", "layer", "draw", "rate"]
    pd.testing.assert_frame_equal(frame(blocks, columns), expected.reindex(columns=columns))
    assert frame(blocks[::-1], columns)["kind"].tolist() == ["b", "a", "a"]


def test_a_list_holds_arrays_as_values() -> None:
    hits = [np.array([1.0, 0.0]), np.array([0.5, 0.5])]
    table = frame([{"id": np.array(["p", "q"], dtype=object), "hits": hits}], ["id", "hits"])
    assert all(np.array_equal(one, other) for one, other in zip(table["hits"], hits, strict=True))


def test_blocks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="columns of \\[1, 2\\] rows"):
        frame([{"a": np.zeros(2), "b": np.zeros(1)}], ["a", "b"])
    with pytest.raises(ValueError, match="unexpected columns c"):
        frame([{"a": np.zeros(2), "c": 1}], ["a"])
    assert list(frame([], ["a", "b"]).columns) == ["a", "b"]
