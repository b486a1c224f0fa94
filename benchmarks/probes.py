"""The probe solver's speed beside its peers: ``python -m benchmarks.probes``; the last line is JSON.

One thread. Every ratio is the median over rounds in which ours and theirs take turns, in CPU seconds of the process, so
that a busy machine hits both. Ours is `levelt.probes.grid.fit_sets` as the study calls it, and includes everything from
raw features to certified scores (standardisation, products, certificates); scikit-learn is given standardised features
for nothing. Data: class labels planted along random directions of features with a power-law spectrum, rotated, one of
them 30 times as large as the others and off zero, as residual streams have; later layers add noise; the label noise
differs by problem, so that easy and hard probes mix.

All sizes are those of a study: 4 folds, and per layer, role and condition the three targets (label, answer, unasked).
``..._many`` is the same with 24 problems, about what the controls fit on the one condition that they use; ``..._sure``
the same with labels that can be told apart all but without error.

- speedup_vs_sklearn_default, _converged: n=600 training rows of 800, d=4096, one layer; scikit-learn's lbfgs at its
  default tolerance, and at 1e-10.
- speedup_organism_size: n=1000 training rows of 1333, 5 layers, d=64 and d=128 (the smaller of the two medians),
  scikit-learn at its default.
- speedup_vs_released: n=3000, 750 development and 1250 test rows, d=128: the released trainer (a torch DataLoader,
  Dropout 0.2, Linear, softmax twice, Adam 1e-3, warm-up and decay, batch 16, at most 20 epochs, early stopping on the
  development loss with patience 10, best epoch kept). The release runs it in Lightning, with checkpoints and metrics;
  where `lightning` is installed this does too (``released_by``: "lightning", else "loop"), without progress bars.
  ``..._loop`` is the same training in a bare loop, ``vectorised`` is `levelt.probes.released`. Ours has one training
  set here, as the released trainer does, and 24 problems, and is fitted ten times a turn.
- label_agreement: share of equal predicted labels with scikit-learn converged; max_bound: the worst certificate;
  coefficient_error: the largest relative distance from scikit-learn's coefficients at 1e-10.
- grid_*: the default study's probes on synthetic activations of its size, one model and task.

With ``--cells PROMPTS ACTIVATIONS`` (data/<study>/prompts/<tokenizer>/<task>.parquet and a folder of one model's
activations on it) the same is measured on every condition and role of a study that was made, and nothing else.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import importlib.util
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.fft import dct
from threadpoolctl import threadpool_limits

from levelt.config import Probes, Statistics
from levelt.files import read_arrays
from levelt.probes.designs import TrainingSets
from levelt.probes.grid import fit_sets, held_out_rows
from levelt.probes.memory import Room
from levelt.probes.released import train
from levelt.probes.solver import fit_shared
from levelt.studies.controls import controls_task
from levelt.studies.information import cells_of, probe_task

Floats = npt.NDArray[np.float64]
PENALTY = 0.01
FOLDS = 4
TURN = 10
"""Fits of ours in a turn where one takes only 20 or 30 ms: a single one would partly measure how cold its peer, which
may take seconds, has left memory and caches. A study fits thousands in a row."""
MARGINS = (1.0, 2.0, 4.0)
"""Signal to noise of the planted labels, in turn."""
SURE = (16.0, 60.0, 250.0)
"""The same where classes are told apart all but without error, as most labels that a study finds are."""


def planted(
    rows: int, width: int, problems: int, seed: int, layers: int = 1, margins: Sequence[float] = MARGINS
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Features [rows, layers, width] and labels [problems, rows]."""
    random = np.random.default_rng(seed)
    spectrum = np.arange(1, width + 1) ** -0.7
    hidden = random.normal(size=(rows, width)) * spectrum
    labels = []
    for problem in range(problems):
        direction = random.normal(size=width) * (np.arange(width) < 40)
        score = hidden @ direction
        margin = margins[problem % len(margins)]
        labels.append(score / score.std() * margin + random.logistic(size=rows) > 0)
    features = np.empty((rows, layers, width))
    for layer in range(layers):
        rotated = hidden + 0.2 * layer * random.normal(size=(rows, width)) * spectrum if layer else hidden
        for _ in range(2):  # an orthonormal mixing of the coordinates that costs n d log d
            rotated = dct(rotated * random.choice([-1.0, 1.0], width), axis=1, norm="ortho")
        rotated[:, 0] = 30 * rotated[:, 0] + 5 * rotated.std()
        features[:, layer] = rotated
    return features, np.stack(labels).astype(np.int64)


def cpu(job: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process, and the result."""
    start = time.process_time()
    result = job()
    return time.process_time() - start, result


def ours(
    features: Floats, labels: npt.NDArray[np.int64], trained: npt.NDArray[np.bool_], room: Room
) -> list[tuple[int, int, Floats, Floats]]:
    """Every problem on every layer and training set, from raw features, as the study asks for them: all cells of a task
    share ``room``."""
    return list(fit_sets(features, labels, trained, PENALTY, 1e-8, room))


def sklearn(features: Floats, labels: npt.NDArray[np.int64], tolerance: float) -> Any:
    """scikit-learn's default solver on standardised features."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=1 / (PENALTY * len(labels)), tol=tolerance, max_iter=100_000).fit(features, labels)


def against_sklearn(
    rows: int,
    width: int,
    problems: int,
    layers: int,
    rounds: int,
    checked: int,
    turn: int = 1,
    margins: Sequence[float] = MARGINS,
) -> dict[str, float]:
    """Seconds per probe of ours, fitted ``turn`` times a turn, and of scikit-learn, and how well they agree."""
    features, labels = planted(rows, width, problems, seed=width, layers=layers, margins=margins)
    random = np.random.default_rng(1)
    fold = random.permutation(np.arange(rows) % FOLDS)
    trained = fold != np.arange(FOLDS)[:, None]
    mine, default, converged = [], [], []
    agreement, error, bound = 1.0, 0.0, 0.0
    by_layer = np.ascontiguousarray(features.transpose(1, 0, 2))
    repeated = np.broadcast_to(labels, (layers, *labels.shape))
    weights = fit_shared(
        by_layer, repeated, TrainingSets.of(trained.astype(float), width), PENALTY
    ).weights  # warm, too
    room = Room()
    for _ in range(rounds):
        seconds, found = cpu(lambda: [ours(features, labels, trained, room) for _ in range(turn)][-1])
        mine.append(seconds / (turn * layers * FOLDS * problems))
        bound = max(bound, max(float(certified.max()) for *_, certified in found))
        layer, at, scores, _ = found[random.integers(len(found))]
        values, used = features[:, layer], trained[at]
        scaled = (values - values[used].mean(0)) / values[used].std(0)
        fitted = np.ascontiguousarray(scaled[used])
        chosen = random.permutation(problems)[:checked]
        seconds, _ = cpu(lambda: [sklearn(fitted, labels[k, used], 1e-4) for k in chosen])  # noqa: B023
        default.append(seconds / len(chosen))
        seconds, peers = cpu(lambda: [sklearn(fitted, labels[k, used], 1e-10) for k in chosen])  # noqa: B023
        converged.append(seconds / len(chosen))
        for k, peer in zip(chosen, peers, strict=True):
            coefficients = weights[layer, at * problems + k, 0] * values[used].std(0) / values.std(0)
            distance = np.linalg.norm(coefficients - peer.coef_[0]) / np.linalg.norm(peer.coef_[0])
            error = max(error, float(distance))
            agreement = min(agreement, float(((scores[k] > 0) == (peer.predict(scaled) == 1)).mean()))
    return {
        "ours_ms": 1e3 * statistics.median(mine),
        "default_ms": 1e3 * statistics.median(default),
        "converged_ms": 1e3 * statistics.median(converged),
        "vs_default": statistics.median(b / a for a, b in zip(mine, default, strict=True)),
        "vs_converged": statistics.median(b / a for a, b in zip(mine, converged, strict=True)),
        "agreement": agreement,
        "coefficient_error": error,
        "bound": bound,
    }


def released_probe(
    features: Floats, labels: npt.NDArray[np.int64], parts: Sequence[npt.NDArray[np.int64]], epochs: int
) -> float:
    """Test accuracy of one probe trained as released, in torch."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    torch.set_num_threads(1)
    torch.manual_seed(0)
    sets = [
        TensorDataset(torch.tensor(features[rows], dtype=torch.float32), torch.tensor(labels[rows])) for rows in parts
    ]
    model = nn.Sequential(nn.Dropout(0.2), nn.Linear(features.shape[1], 2))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    batches = DataLoader(sets[0], batch_size=16, shuffle=True)
    total = len(batches) * epochs
    warm = round(0.1 * total)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: step / max(1, warm) if step < warm else (total - step) / max(1, total - warm)
    )
    softmax, criterion = nn.Softmax(dim=1), nn.CrossEntropyLoss()
    least, waited, best = float("inf"), 0, copy.deepcopy(model.state_dict())
    for _ in range(epochs):
        model.train()
        for inputs, truth in batches:
            optimiser.zero_grad()
            criterion(softmax(model(inputs)), truth).backward()
            optimiser.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            losses = [
                float(criterion(softmax(model(inputs)), truth)) for inputs, truth in DataLoader(sets[1], batch_size=300)
            ]
        if (value := statistics.mean(losses)) < least:
            least, waited, best = value, 0, copy.deepcopy(model.state_dict())
        else:
            waited += 1
            if waited >= 10:
                break
    model.load_state_dict(best)
    model.eval()
    with torch.no_grad():
        said = model(sets[2].tensors[0]).argmax(1)
    return float((said == sets[2].tensors[1]).float().mean())


def released_probe_in_lightning(
    features: Floats, labels: npt.NDArray[np.int64], parts: Sequence[npt.NDArray[np.int64]], epochs: int
) -> float:
    """`released_probe` as the release runs it: a Lightning module and trainer, logged and checkpointed every epoch."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader

    lightning = importlib.import_module("lightning.pytorch")
    callbacks = importlib.import_module("lightning.pytorch.callbacks")
    loggers = importlib.import_module("lightning.pytorch.loggers")
    for name in ("lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    total = -(-len(parts[0]) // 16) * epochs
    warm = 0.1 * total

    def collate(rows: Sequence[tuple[Floats, int]]) -> tuple[Any, Any]:
        return torch.tensor(np.stack([row for row, _ in rows])), torch.tensor([label for _, label in rows])

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Dropout(0.2), nn.Linear(features.shape[1], 2))
            self.right: list[Any] = []

        def said(self, batch: Any) -> Any:
            return nn.functional.softmax(self.layers(batch[0]), dim=1)

        def training_step(self, batch: Any, number: int) -> Any:
            return nn.functional.cross_entropy(self.said(batch), batch[1])

        def validation_step(self, batch: Any, number: int) -> None:
            said = self.said(batch)
            self.log("loss", nn.functional.cross_entropy(said, batch[1]), on_epoch=True)
            self.log("accuracy", (said.argmax(1) == batch[1]).float().mean(), on_epoch=True)

        def test_step(self, batch: Any, number: int) -> None:
            self.right.append(self.said(batch).argmax(1) == batch[1])

        def configure_optimizers(self) -> Any:
            optimiser = torch.optim.Adam(self.parameters(), lr=1e-3)
            rate = torch.optim.lr_scheduler.LambdaLR(
                optimiser, lambda step: step / max(1, warm) if step < warm else (total - step) / max(1, total - warm)
            )
            return {"optimizer": optimiser, "lr_scheduler": {"scheduler": rate, "interval": "step"}}

    values = features.astype(np.float32)
    sets = [[(values[row], int(labels[row])) for row in rows] for rows in parts]
    loaders = [
        DataLoader(rows, batch_size=16 if part == 0 else 300, shuffle=part == 0, collate_fn=collate)  # type: ignore[arg-type]
        for part, rows in enumerate(sets)
    ]
    module = Module()
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            devices=1,
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=loggers.CSVLogger(folder),
            callbacks=[
                callbacks.ModelCheckpoint(monitor="loss", mode="min", dirpath=folder),
                callbacks.EarlyStopping(monitor="loss", mode="min", patience=10),
            ],
        )
        trainer.fit(module, loaders[0], loaders[1])
        trainer.test(module, loaders[2], ckpt_path="best", verbose=False)
    return float(torch.cat(module.right).float().mean())


def against_released(rounds: int, problems: int, epochs: int, rows: int) -> dict[str, float]:
    """Seconds per probe and test accuracies: ours, scikit-learn, the released trainer and its vectorised form."""
    layered, labels = planted(rows, 128, problems, seed=7)
    features = layered[:, 0] / layered.std()  # the scale that is kindest to a trainer that does not standardise
    parts = np.split(np.random.default_rng(2).permutation(rows), [rows * 12 // 20, rows * 15 // 20])
    trained = np.zeros((1, rows), dtype=bool)
    trained[0, parts[0]] = True
    scaled = (features - features[parts[0]].mean(0)) / features[parts[0]].std(0)
    fitted = np.ascontiguousarray(scaled[parts[0]])
    peers = {"loop": released_probe, "sklearn": None}
    if importlib.util.find_spec("lightning") is not None:
        peers = {"lightning": released_probe_in_lightning, **peers}
    room = Room()
    [(_, _, scores, _)] = ours(features[:, None], labels, trained, room)
    right = (scores > 0) == (labels == 1)
    mine: list[float] = []
    took: dict[str, list[float]] = {name: [] for name in peers}
    accuracy: dict[str, list[float]] = {name: [] for name in ("ours", *peers)}
    for number in range(rounds):
        at = number % problems
        seconds, _ = cpu(lambda: [ours(features[:, None], labels, trained, room) for _ in range(TURN)])
        mine.append(seconds / problems / TURN)
        accuracy["ours"].append(float(right[at, parts[2]].mean()))
        for name, peer in peers.items():
            if peer is not None:
                seconds, test = cpu(lambda: peer(features, labels[at], parts, epochs))  # noqa: B023
            else:
                seconds, model = cpu(lambda: sklearn(fitted, labels[at, parts[0]], 1e-4))  # noqa: B023
                test = float((model.predict(scaled[parts[2]]) == labels[at, parts[2]]).mean())
            took[name].append(seconds)
            accuracy[name].append(test)
    seconds, layer = cpu(
        lambda: train(
            features[None, parts[0]],
            labels[0, parts[0]],
            features[None, parts[1]],
            labels[0, parts[1]],
            np.random.default_rng(0),
            epochs=epochs,
        )
    )
    return {
        "ours_ms": 1e3 * statistics.median(mine),
        **{f"{name}_ms": 1e3 * statistics.median(times) for name, times in took.items()},
        "vectorised_ms": 1e3 * seconds,
        **{f"{name}_accuracy": statistics.mean(tests) for name, tests in accuracy.items()},
        "vectorised_accuracy_first": float((layer.said(features[None, parts[2]])[0] == labels[0, parts[2]]).mean()),
        **{
            f"vs_{name}": statistics.median(b / a for a, b in zip(mine, times, strict=True))
            for name, times in took.items()
        },
    }


def default_grid(pairs: int, conditions: int, width: int) -> dict[str, float]:
    """`levelt probe` on synthetic activations of one model and task: CPU seconds and probes, controls apart."""
    import pandas as pd

    random = np.random.default_rng(0)
    rows = [
        {
            "prompt_id": f"{pair}-{label}",
            "sample_id": f"{pair}-{label}",
            "pair_id": f"{pair}",
            "condition": "instruction_first",
            "template": "plain",
            "label": label,
            "answer": label if pair % 2 else {"yes": "no", "no": "yes"}[label],
            "unasked": random.choice(["yes", "no"]),
            "options": ["yes", "no"],
            "input_ids": random.integers(0, 200, 40),
            "groups": [{"name": "sample", "start": 10, "stop": 34}],
        }
        for pair in range(pairs)
        for label in ("yes", "no")
    ]
    prompts = pd.DataFrame(rows)
    sites = {"sample.residual": 5, "output.attention": 4, "decision.residual": 5}
    truth = (prompts["label"] == "yes").to_numpy()
    activations = {}
    for number in range(conditions):
        arrays = {}
        for site, layers in sites.items():
            values, _ = planted(len(prompts), width, 1, seed=number, layers=layers)
            values[:, :, 1] += truth[:, None] * values[:, :, 1].std() * np.arange(layers)
            arrays[site] = values.astype(np.float32)
        activations["instruction_first" if number == 0 else f"block_{number}"] = arrays
    probes, draws = Probes(), Statistics()
    grid, result = cpu(lambda: probe_task(prompts, activations, probes, draws, 0, "task"))
    controls, _ = cpu(lambda: controls_task(prompts, activations, probes, 0, "task"))
    count = len(result.probes) * probes.folds * probes.repeats
    return {
        "grid_probes": count,
        "grid_seconds": grid,
        "grid_probes_per_second": count / grid,
        "controls_seconds": controls,
    }


def study_cells(prompts: Path, folder: Path, rounds: int) -> dict[str, float]:
    """Milliseconds per probe on the cells of one model and task, scikit-learn's on one probe of each cell."""
    import pandas as pd

    activations = {path.stem: read_arrays(path)[0] for path in sorted(folder.glob("*.safetensors"))}
    cells = list(cells_of(pd.read_parquet(prompts), activations, Probes(), 0, prompts.stem))
    jobs = [(cell.values, np.stack([*cell.labels.values()]), ~held_out_rows(cell.folds)) for cell in cells]
    count = sum(values.shape[1] * len(labels) * len(trained) for values, labels, trained in jobs)
    random = np.random.default_rng(0)
    took: dict[str, list[float]] = {"ours": [], "default": [], "converged": []}
    agreement = 1.0
    room = Room()
    sklearn(random.normal(size=(9, 2)), np.arange(9) % 2, 1e-4)  # its import
    for _ in range(rounds):
        seconds, found = cpu(lambda: [ours(*job, room) for job in jobs])
        took["ours"].append(seconds / count)
        theirs = {1e-4: 0.0, 1e-10: 0.0}
        for (values, labels, trained), probes in zip(jobs, found, strict=True):
            layer, at, scores, _ = probes[random.integers(len(probes))]
            k, used = random.integers(len(labels)), trained[at]
            spread = values[used, layer].std(0, dtype=np.float64)
            centred = values[:, layer] - values[used, layer].mean(0, dtype=np.float64)
            scaled = np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 1e-12)
            for tolerance in theirs:
                seconds, peer = cpu(lambda: sklearn(scaled[used], labels[k, used], tolerance))  # noqa: B023
                theirs[tolerance] += seconds / len(jobs)
            said = peer.decision_function(scaled)
            clear = np.abs(said) > 1e-4  # where a prompt says nothing all rows are on the boundary
            agreement = min(agreement, float(((scores[k] > 0) == (said > 0))[clear].mean()) if clear.any() else 1.0)
        took["default"].append(theirs[1e-4])
        took["converged"].append(theirs[1e-10])
    return {
        "cells": len(jobs),
        "probes": count,
        **{f"{name}_ms": 1e3 * statistics.median(times) for name, times in took.items()},
        "vs_default": statistics.median(b / a for a, b in zip(took["ours"], took["default"], strict=True)),
        "vs_converged": statistics.median(b / a for a, b in zip(took["ours"], took["converged"], strict=True)),
        "agreement": agreement,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, to see that it runs; its numbers mean nothing"
    )
    parser.add_argument("--cells", type=Path, nargs=2, metavar=("PROMPTS", "ACTIVATIONS"), help="see above")
    options = parser.parse_args(arguments)
    quick, rounds = options.quick, options.rounds
    warnings.simplefilter("ignore")
    if options.cells:
        with threadpool_limits(1):
            print(json.dumps({name: round(value, 3) for name, value in study_cells(*options.cells, rounds).items()}))
        return
    with threadpool_limits(1):
        wide = {
            problems: against_sklearn(*((80, 600) if quick else (800, 4096)), problems, 1, rounds, checked=3)
            for problems in (3, 24)
        }
        narrow = {
            (width, kind): against_sklearn(
                100 if quick else 1333, width, 24 if kind == "24" else 3, 5, rounds, 3, TURN, margins
            )
            for width in ((16,) if quick else (64, 128))
            for kind, margins in {"3": MARGINS, "3 sure": SURE, "24": MARGINS}.items()
        }
        released = against_released(2 if quick else 3, 3 if quick else 24, 2 if quick else 20, 500 if quick else 5000)
        grid = default_grid(20 if quick else 250, 2 if quick else 11, 16 if quick else 64)
    tables = {f"n=600 d=4096, {problems} problems": table for problems, table in wide.items()}
    tables |= {f"n=1000 d={width}, {kind} problems": table for (width, kind), table in narrow.items()}
    for name, table in [*tables.items(), ("n=3000 d=128", released), ("default study, a model and task", grid)]:
        print(name)
        print("  " + "  ".join(f"{key} {value:.4g}" for key, value in table.items()))
    by = "lightning" if "vs_lightning" in released else "loop"
    organism = {
        kind: min(table["vs_default"] for (_, of), table in narrow.items() if of == kind)
        for kind in ("3", "3 sure", "24")
    }
    print(
        json.dumps(
            {
                "speedup_vs_sklearn_default": round(wide[3]["vs_default"], 1),
                "speedup_vs_sklearn_converged": round(wide[3]["vs_converged"], 1),
                "speedup_organism_size": round(organism["3"], 1),
                "speedup_organism_size_sure": round(organism["3 sure"], 1),
                "speedup_vs_sklearn_default_many": round(wide[24]["vs_default"], 1),
                "speedup_vs_sklearn_converged_many": round(wide[24]["vs_converged"], 1),
                "speedup_organism_size_many": round(organism["24"], 1),
                "speedup_vs_released": round(released[f"vs_{by}"]),
                "speedup_vs_released_loop": round(released["vs_loop"]),
                "released_by": by,
                "label_agreement": min(table["agreement"] for table in tables.values()),
                "max_bound": float(f"{max(table['bound'] for table in tables.values()):.1e}"),
                "coefficient_error": float(f"{max(table['coefficient_error'] for table in tables.values()):.1e}"),
                "grid_probes_per_second": round(grid["grid_probes_per_second"]),
                "grid_seconds": round(grid["grid_seconds"], 2),
            }
        )
    )


if __name__ == "__main__":
    main()
