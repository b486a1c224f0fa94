"""The probe solver's speed beside its peers: ``python -m benchmarks.probes``; the last line is JSON.

One thread. Every ratio is the median over rounds in which ours and theirs take turns, in CPU seconds of the process, so
that a busy machine hits both. Ours includes everything from raw features to certified weights (standardisation,
decomposition, certificates); scikit-learn is given standardised features for nothing. Data: class labels planted along
random directions of features with a power-law spectrum, rotated, one of them 30 times as large as the others and off
zero, as residual streams have; the label noise differs by problem, so that easy and hard probes mix.

- speedup_vs_sklearn_default, _converged: n=600 training rows of 800, d=4096; per design (layer and fold) as many
  problems as a study with controls fits on it; scikit-learn's lbfgs at its default tolerance, and at 1e-10.
  ..._alone: the same with the three targets only, so that the decomposition is shared by less.
- speedup_organism_size: n=1000, d=64 and d=128 (the smaller of the two medians), scikit-learn at its default.
  ..._alone: three targets only.
- speedup_vs_released: n=3000, 750 development and 1250 test rows, d=128: the released trainer (a torch DataLoader,
  Dropout 0.2, Linear, softmax twice, Adam 1e-3, warm-up and decay, batch 16, at most 20 epochs, early stopping on the
  development loss, best epoch kept), without the release's Lightning; `vectorised` is `levelt.probes.released`.
- label_agreement: share of equal predicted labels with scikit-learn converged; max_bound: the worst certificate;
  coefficient_error: the largest relative distance from scikit-learn's coefficients at 1e-10.
- grid_*: the default study's probes on synthetic activations of its size, one model and task.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.fft import dct
from threadpoolctl import threadpool_limits

from levelt.config import Probes, Statistics
from levelt.probes.grid import designs_of
from levelt.probes.released import train
from levelt.probes.solver import Batch, fit_batch
from levelt.studies.controls import controls_task
from levelt.studies.information import probe_task

Floats = npt.NDArray[np.float64]
PENALTY = 0.01


def planted(rows: int, width: int, problems: int, seed: int) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Features [rows, width] and labels [problems, rows]."""
    random = np.random.default_rng(seed)
    hidden = random.normal(size=(rows, width)) * np.arange(1, width + 1) ** -0.7
    labels = []
    for problem in range(problems):
        direction = random.normal(size=width) * (np.arange(width) < 40)
        score = hidden @ direction
        margin = [1.0, 2.0, 4.0][problem % 3]
        labels.append(score / score.std() * margin + random.logistic(size=rows) > 0)
    rotated = hidden
    for _ in range(2):  # an orthonormal mixing of the coordinates that costs n d log d
        rotated = dct(rotated * random.choice([-1.0, 1.0], width), axis=1, norm="ortho")
    rotated[:, 0] = 30 * rotated[:, 0] + 5 * rotated.std()
    return rotated, np.stack(labels).astype(np.int64)


def cpu(job: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process, and the result."""
    start = time.process_time()
    result = job()
    return time.process_time() - start, result


def ours(features: Floats, labels: npt.NDArray[np.int64], trained: npt.NDArray[np.bool_]) -> Batch:
    """Every problem on every training set, from raw features, in the grid's chunks."""
    parts = []
    for pairs, designs in designs_of(features[:, None], trained):
        weights = trained[[at for _, at in pairs]].astype(np.float64)
        parts.append(fit_batch(designs, np.broadcast_to(labels, (len(pairs), *labels.shape)), weights, PENALTY))
    fields = ("weights", "intercepts", "scores", "bounds")
    return Batch(*(np.concatenate([getattr(part, name) for part in parts]) for name in fields))


def sklearn(features: Floats, labels: npt.NDArray[np.int64], tolerance: float) -> Any:
    """scikit-learn's default solver on standardised features."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=1 / (PENALTY * len(labels)), tol=tolerance, max_iter=100_000).fit(features, labels)


def against_sklearn(
    rows: int, training: int, width: int, problems: int, folds: int, rounds: int, checked: int
) -> dict[str, float]:
    """Seconds per probe of ours and of scikit-learn, and how well they agree."""
    features, labels = planted(rows, width, problems, seed=width)
    random = np.random.default_rng(1)
    trained = np.zeros((folds, rows), dtype=bool)
    for part in trained:
        part[random.permutation(rows)[:training]] = True
    used = trained[0]
    scaled = (features - features[used].mean(0)) / features[used].std(0)
    fitted = np.ascontiguousarray(scaled[used])
    mine, default, converged = [], [], []
    agreement, error, bound = 1.0, 0.0, 0.0
    ours(features, labels, trained)  # warm
    for _ in range(rounds):
        seconds, found = cpu(lambda: ours(features, labels, trained))
        mine.append(seconds / (folds * problems))
        bound = max(bound, float(found.bounds.max()))
        chosen = random.permutation(problems)[:checked]
        seconds, _ = cpu(lambda: [sklearn(fitted, labels[at, used], 1e-4) for at in chosen])  # noqa: B023
        default.append(seconds / len(chosen))
        seconds, peers = cpu(lambda: [sklearn(fitted, labels[at, used], 1e-10) for at in chosen])  # noqa: B023
        converged.append(seconds / len(chosen))
        for at, peer in zip(chosen, peers, strict=True):
            weights = found.weights[0, at, 0]
            error = max(error, float(np.linalg.norm(weights - peer.coef_[0]) / np.linalg.norm(peer.coef_[0])))
            same = (found.scores[0, at, 0] > 0) == (peer.predict(scaled) == 1)
            agreement = min(agreement, float(same.mean()))
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


def against_released(rounds: int, problems: int, epochs: int, rows: int) -> dict[str, float]:
    """Seconds per probe and test accuracies: ours, scikit-learn, the released trainer and its vectorised form."""
    features, labels = planted(rows, 128, problems, seed=7)
    features = features / features.std()  # the scale that is kindest to a trainer that does not standardise
    parts = np.split(np.random.default_rng(2).permutation(rows), [rows * 12 // 20, rows * 15 // 20])
    trained = np.zeros((1, rows), dtype=bool)
    trained[0, parts[0]] = True
    scaled = (features - features[parts[0]].mean(0)) / features[parts[0]].std(0)
    fitted = np.ascontiguousarray(scaled[parts[0]])
    found = ours(features, labels, trained)
    mine, theirs, peer, ratios = [], [], [], []
    for number in range(rounds):
        at = number % problems
        seconds, _ = cpu(lambda: ours(features, labels, trained))
        mine.append(seconds / problems)
        seconds, released = cpu(lambda: released_probe(features, labels[at], parts, epochs))  # noqa: B023
        theirs.append((seconds, released))
        seconds, model = cpu(lambda: sklearn(fitted, labels[at, parts[0]], 1e-4))  # noqa: B023
        peer.append((seconds, float((model.predict(scaled[parts[2]]) == labels[at, parts[2]]).mean())))
        ratios.append(theirs[-1][0] / mine[-1])
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
    right = (found.scores[0, :, 0] > 0) == (labels == 1)
    tried = [number % problems for number in range(rounds)]
    return {
        "ours_ms": 1e3 * statistics.median(mine),
        "ours_accuracy": float(right[np.ix_(tried, parts[2])].mean()),
        "sklearn_ms": 1e3 * statistics.median(s for s, _ in peer),
        "sklearn_accuracy": statistics.mean(a for _, a in peer),
        "released_ms": 1e3 * statistics.median(s for s, _ in theirs),
        "released_accuracy": statistics.mean(a for _, a in theirs),
        "vectorised_ms": 1e3 * seconds,
        "vectorised_accuracy_first": float((layer.said(features[None, parts[2]])[0] == labels[0, parts[2]]).mean()),
        "ratio": statistics.median(ratios),
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
            values, _ = planted(len(prompts), width * layers, 1, seed=number)
            values = values.reshape(len(prompts), layers, width)
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes, to see that it runs; its numbers mean nothing"
    )
    options = parser.parse_args(arguments)
    quick, rounds = options.quick, options.rounds
    warnings.simplefilter("ignore")
    with threadpool_limits(1):
        wide_size = (80, 60, 600) if quick else (800, 600, 4096)
        wide = against_sklearn(*wide_size, problems=24, folds=2, rounds=rounds, checked=3)
        alone = against_sklearn(*wide_size, problems=3, folds=2, rounds=rounds, checked=3)
        narrow = {
            (width, problems): against_sklearn(*((100, 80) if quick else (1000, 1000)), width, problems, 4, rounds, 3)
            for width in ((16,) if quick else (64, 128))
            for problems in (24, 3)
        }
        released = against_released(2 if quick else 3, 3 if quick else 24, 2 if quick else 20, 500 if quick else 5000)
        grid = default_grid(20 if quick else 250, 2 if quick else 9, 16 if quick else 64)
    tables = {"n=600 d=4096, 24 problems": wide, "n=600 d=4096, 3 problems": alone}
    tables |= {f"n=1000 d={width}, {problems} problems": table for (width, problems), table in narrow.items()}
    for name, table in [*tables.items(), ("n=3000 d=128", released), ("default study, a model and task", grid)]:
        print(name)
        print("  " + "  ".join(f"{key} {value:.4g}" for key, value in table.items()))
    print(
        json.dumps(
            {
                "speedup_vs_sklearn_default": round(wide["vs_default"], 1),
                "speedup_vs_sklearn_converged": round(wide["vs_converged"], 1),
                "speedup_vs_sklearn_default_alone": round(alone["vs_default"], 1),
                "speedup_vs_sklearn_converged_alone": round(alone["vs_converged"], 1),
                "speedup_organism_size": round(
                    min(table["vs_default"] for (_, k), table in narrow.items() if k == 24), 1
                ),
                "speedup_organism_size_alone": round(min(t["vs_default"] for (_, k), t in narrow.items() if k == 3), 1),
                "speedup_vs_released": round(released["ratio"]),
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
