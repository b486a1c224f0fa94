"""Claims C1 to C5 from planted results: what was planted is found, and a study without it says otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from levelt.config import Statistics
from levelt.studies.scope import describe_models
from levelt.studies.vectors.claims import CLAIMS
from levelt.studies.vectors.stages import stages_table

STATISTICS = Statistics(draws=400)
LAYERS, HEADS, QUERIES = 4, 3, 24


def manifest(model: str, family: str, stage: str) -> dict[str, object]:
    return {"id": model, "family": family, "size": "m", "parameters": 1, "stage": stage, "layers": LAYERS, "seed": 0}


MODELS = describe_models(
    [manifest(f"{family}-{stage}", family, stage) for family, stage in
     [("a", "base"), ("a", "sft"), ("b", "sft"), ("c", "sft")]]
)  # fmt: skip


def effects(last: float, other: float, together: float, random: np.random.Generator) -> pd.DataFrame:
    """Effects on the own answer: ``last`` at layers 1 and 2 of the last token, ``other`` of the one before."""
    cells = [(a,) for a in range(1, LAYERS + 1)] + [(a, b) for a in range(1, LAYERS) for b in range(a + 1, LAYERS + 1)]
    rows = []
    for task in ("one", "two"):
        for instruction in ("x", "y"):
            for token, strength in ((0, last), (-1, other)):
                noise = 0.05 * random.normal(size=(LAYERS, QUERIES))
                for cell in cells:
                    acting = [layer for layer in cell if layer < LAYERS]
                    value = np.zeros(QUERIES)
                    for layer in acting:
                        value += (strength if layer <= LAYERS / 2 else 0.5 * strength) + noise[layer]
                    if len(acting) == 2:
                        value += together + 0.01 * random.normal(size=QUERIES)
                    names = {"task": task, "instruction_id": instruction, "receiver": "filler_query", "token": token}
                    names |= dict(zip(("first", "second", "third"), [*cell, 0, 0][:3], strict=True))
                    numbers = {"effect": value, "other_effect": 0.0, "to_full": value - 3.0}
                    numbers |= {"reciprocal_rank": 0.0, "gap": 0.0, "sample": np.arange(QUERIES)}
                    rows.append(pd.DataFrame(names | numbers))
    return pd.concat(rows, ignore_index=True)


def write(folder: Path, *, last: float, other: float, together: float, selects: float, seed: int) -> None:
    """The files of `levelt vectors` for one model. selects: how far instructions move the heads of layers 3 and 4."""
    random = np.random.default_rng(seed)
    samples = np.arange(QUERIES)
    behaviour, tokens, heads, sums = [], [], [], []
    for task in ("one", "two"):
        for side, instruction in enumerate(("x", "y")):
            names = {"task": task, "instruction_id": instruction}
            for wording in (0, 1):
                right = random.random(QUERIES) < 0.9
                behaviour.append(pd.DataFrame(names | {"wording": wording, "sample": samples, "correct": right}))
                for source in ("instruction", "query"):
                    for measure in ("activity", "flow"):
                        base = np.full((QUERIES, LAYERS, HEADS), 0.3) + 0.01 * random.normal(
                            size=(QUERIES, LAYERS, HEADS)
                        )
                        base[:, 2:, side] += selects
                        _, layer, head = np.indices(base.shape)
                        which = {"sample": np.repeat(samples, LAYERS * HEADS), "layer": layer.ravel() + 1}
                        plan = {"wording": wording, "mode": "exact", "keys": 1, "source": source, "measure": measure}
                        heads.append(pd.DataFrame(names | plan | which | {"head": head.ravel(), "value": base.ravel()}))
            for group, share in (("instruction", 0.1), ("instruction", 0.2), ("instruction_last", 0.2 + last)):
                high = 10 * (share + 0.01 * random.normal(size=QUERIES))
                plan = {"wording": 0, "mode": "exact", "keys": 1, "sample": samples, "group": group}
                tokens.append(pd.DataFrame(names | plan | {"high": high, "paths": 10}))
            for mode, error in (("exact", 1e-6), ("paper", 20.0)):
                spread = error * np.exp(0.1 * random.normal(size=QUERIES))
                sums.append(pd.DataFrame(names | {"mode": mode, "sample": samples, "error": spread}))
    separability = pd.DataFrame(
        [
            {"method": method, "labels": labels, "split": "held_out", "layer": layer, "n": 48}
            | {"accuracy": mean, "ci_low": mean - 0.1, "ci_high": mean + 0.1}
            for method in ("logistic", "lda")
            for labels, layer, mean in (("true", -1, 0.8), ("shuffled", 0, 0.9), ("shuffled", 1, 0.2), ("true", 1, 0.8))
        ]
    )
    folder.mkdir(parents=True)
    pd.concat(behaviour).to_parquet(folder / "behaviour.parquet")
    effects(last, other, together, random).to_parquet(folder / "effects.parquet")
    pd.concat(tokens).to_parquet(folder / "tokens.parquet")
    pd.concat(heads).to_parquet(folder / "heads.parquet")
    pd.concat(sums).to_parquet(folder / "sums.parquet")
    separability.to_parquet(folder / "separability.parquet")


def table(folder: Path, *, last: float, other: float, together: float, selects: float) -> pd.DataFrame:
    """Models of family c have half of what is planted, those of stage base nothing."""
    folders = {}
    for seed, (model, family, stage) in enumerate(MODELS[["model", "family", "stage"]].itertuples(index=False)):
        folders[model] = folder / model
        factor = 0.0 if stage == "base" else 0.5 if family == "c" else 1.0
        planted = {"last": last * factor, "other": other * factor, "together": together * factor}
        write(folders[model], **planted, selects=selects * factor, seed=seed)
    return stages_table(folders, MODELS, STATISTICS, 0)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return table(tmp_path_factory.mktemp("planted"), last=0.4, other=0.1, together=0.2, selects=0.3)


def row(found: pd.DataFrame, quantity: str, stage: str = "sft", earlier: str = "none", task: str = "all") -> pd.Series:
    chosen = found.query("quantity == @quantity and stage == @stage and earlier_stage == @earlier and task == @task")
    assert len(chosen) == 1
    return chosen.iloc[0]


def test_planted_quantities_are_found(found: pd.DataFrame) -> None:
    mean = (1 + 1 + 0.5) / 3  # over the three families of stage sft
    acting = (1 + 1 + 0.5) / 3  # two early layers and a late one that can act
    expected = {
        "effect_last": 0.4 * acting * mean,
        "last_minus_other": 0.3 * acting * mean,
        "early_minus_late": 0.2 * mean,
        "interaction_last": 0.2 * mean,
        "paths_last_minus_other": (0.05 + 0.4 * mean),
        "full": 3.0,
        "error_exact": -6.0,
        "separable.lda": 0.5,  # above shuffled labels of layer 1 (0.2 + 0.1), whatever the embedding says
    }
    for quantity, value in expected.items():
        one = row(found, quantity)
        assert one["estimate"] == pytest.approx(value, abs=0.02), quantity
        assert one["ci_low"] <= one["estimate"] <= one["ci_high"]
        assert one["models"] == 3
    assert row(found, "effect_last")["n"] == 2 * QUERIES and row(found, "effect_last", task="one")["n"] == QUERIES


def test_stages_are_compared_on_models_that_have_both(found: pd.DataFrame) -> None:
    change = row(found, "effect_last", earlier="base")
    assert change["models"] == 1
    assert change["estimate"] == pytest.approx(0.4 * (1 + 1 + 0.5) / 3, abs=0.02)  # of family a alone


def test_planted_claims_hold_and_without_them_they_do_not(found: pd.DataFrame, tmp_path: Path) -> None:
    def verdicts(of: pd.DataFrame) -> dict[str, str]:
        return {claim.name.removeprefix("vectors."): claim.judge({"vectors_stages": of}).verdict for claim in CLAIMS}

    assert {name for name, verdict in verdicts(found).items() if verdict != "supported"} == {"c4.released"}
    without = verdicts(table(tmp_path, last=-0.1, other=0.4, together=-0.2, selects=0.0))
    fallen = {name for name, verdict in without.items() if verdict == "contradicted"}
    assert {"c1.effect", "c1.specific", "c1.place", "c1.early", "c1.tuning", "c1.paths"} <= fallen
    assert {"c3.last", "c3.acting", "c3.tuning"} <= fallen
    assert all(without[name] != "supported" for name in without if name.startswith("c5."))
