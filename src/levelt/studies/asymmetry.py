"""The asymmetry study: do instructions change what a model knows at the sample tokens, or at the output tokens?

Every table of the study, from raw results of all models and tasks; docs/statistics.md lists tables and columns.
"""

from __future__ import annotations

import pandas as pd

from levelt.config import Statistics
from levelt.studies.behaviour import agreement_table, behaviour_table
from levelt.studies.conditions import (
    blocking_layers_table,
    blocking_table,
    codebook_table,
    selection_layers_table,
    selection_table,
    spread_table,
    unrelated_table,
)
from levelt.studies.correlations import correlations_table
from levelt.studies.estimates import Resampling
from levelt.studies.evidence import Evidence
from levelt.studies.layers import best_layers_table, depth_table
from levelt.studies.quantities import information_table, layer_estimates, layer_means, outcome_estimates
from levelt.studies.scope import with_models
from levelt.studies.training import scale_table, stage_layers_table, stages_table


def study_tables(
    evidence: Evidence, probes: pd.DataFrame, statistics: Statistics, seed: int
) -> dict[str, pd.DataFrame]:
    """All tables by name. A comparison that the study has no models, conditions or tasks for has no rows.

    Args:
        evidence: raw results, aligned (`levelt.studies.evidence.collect`).
        probes: probe scores of all models and tasks.
        statistics, seed: settings.
    """
    return comparisons(evidence, statistics, seed) | by_layer(evidence, probes, statistics, seed)


def comparisons(evidence: Evidence, statistics: Statistics, seed: int) -> dict[str, pd.DataFrame]:
    """The tables with one number for a model, task and condition, whatever the layer."""
    resampling = Resampling(evidence.samples, statistics, seed)
    controls = statistics.control_tasks
    layers = layer_estimates(evidence)
    both = outcome_estimates(evidence), layer_means(layers)
    return {
        "behaviour": behaviour_table(evidence, resampling),
        "agreement": agreement_table(evidence, resampling, controls),
        "information": information_table(*both, resampling, controls),
        "spread": spread_table(*both, resampling, controls),
        "correlations": correlations_table(evidence, *both, resampling, controls),
        "blocking": blocking_table(*both, resampling, controls),
        "unrelated": unrelated_table(*both, resampling, controls),
        "selection": selection_table(both[1], resampling, controls),
        "codebook": codebook_table(*both, resampling, controls),
        "scale": scale_table(*both, resampling, controls),
        "stages": stages_table(*both, layers, resampling, controls),
    }


def by_layer(evidence: Evidence, probes: pd.DataFrame, statistics: Statistics, seed: int) -> dict[str, pd.DataFrame]:
    """The tables with a row for each layer, and the best layers."""
    resampling = Resampling(evidence.samples, statistics, seed)
    controls = statistics.control_tasks
    layers = layer_estimates(evidence)
    return {
        "probes": probes_table(probes, evidence.models),
        "best_layers": best_layers_table(evidence, resampling, controls),
        "depth": depth_table(layers, resampling, controls),
        "blocking_layers": blocking_layers_table(layers, resampling, controls),
        "selection_layers": selection_layers_table(layers, resampling, controls),
        "stage_layers": stage_layers_table(layers, resampling, controls),
    }


def probes_table(probes: pd.DataFrame, models: pd.DataFrame) -> pd.DataFrame:
    """Probe results with the models' columns and relative depth (layer / number of layers)."""
    table = with_models(probes, models, extra=["layers"])
    table.insert(list(table.columns).index("layer") + 1, "depth", table["layer"] / table["layers"])
    return table.drop(columns="layers")
