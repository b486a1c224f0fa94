"""dvc.yaml, derived from the DAG: coarse stages whose outs are the folders of a study.

Snakemake runs, DVC keeps the ledger (design.md, decision 5). A stage owns whole folders (data/<study>/probes, ...), so
that the file stays readable; a folder that two stages would own is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from levelt.files import InputError
from levelt.ledger.graph import Job

STAGES = {
    "world": ["world", "instructions"],
    "samples": ["samples"],
    "models": ["tokenizer", "pretrain", "tune", "checkpoint"],
    "prompts": ["prompts"],
    "activations": ["read"],
    "probes": ["probe"],
    "recall": ["recall"],
    "correlations": ["tables", "recall_tables"],
    "figures": ["figure"],
    "paper": ["numbers", "report"],
}
"""Stage -> the rules it runs. A rule that is missing here is an error, never silently left out."""

LOCAL_ONLY = {"activations"}
"""Folders that are cached but never pushed: big, and cheap to recompute."""

HEADER = "# Generated from the rules by `levelt ledger stages`; a test fails when it is out of date. Do not edit.\n"


def folder_of(path: str) -> str:
    """The folder that is versioned as one: the first three parts of data/<study>/<room>/..., two of figures/<study>."""
    parts = Path(path).parts
    return "/".join(parts[: 3 if parts[0] == "data" else 2])


def stages(jobs: Sequence[Job], study: str, configfile: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The content of dvc.yaml for one study.

    Args:
        jobs: from `read_jobs`.
        study: name of the study.
        configfile: path of its config, as DVC finds it.
        config: the config file's own tree; only keys written there can be tracked as parameters (defaults are in
            config.py, which is a dependency as code).

    Raises:
        InputError: a rule belongs to no stage, or a folder belongs to two.
    """
    stage_of = {rule: stage for stage, rules in STAGES.items() for rule in rules}
    unknown = sorted({job.rule for job in jobs} - set(stage_of) - {"all"})
    if unknown:
        raise InputError(f"rules {unknown} belong to no DVC stage; name them in levelt.ledger.stages.STAGES")
    owner: dict[str, str] = {}
    for job in jobs:
        for path in job.outputs:
            if owner.setdefault(folder_of(path), stage_of[job.rule]) != stage_of[job.rule]:
                raise InputError(
                    f"{folder_of(path)} would belong to the stages {owner[folder_of(path)]} and {job.rule}"
                )
    tree: dict[str, Any] = {}
    for stage, rules in STAGES.items():
        own = [job for job in jobs if job.rule in rules]
        if not own:
            continue
        outs = sorted(folder for folder, of in owner.items() if of == stage)
        inputs = {path for job in own for path in job.inputs}
        sources = {path for path in inputs if folder_of(path) not in owner}
        deps = sorted(sources | {folder_of(path) for path in inputs - sources} - set(outs))
        keys = sorted({key for job in own for key in job.keys if _written(key, config)})
        tree[stage] = {
            "cmd": f"snakemake --cores all --configfile {configfile} --until {' '.join(_running(rules, own))}",
            "deps": deps,
            **({"params": [{configfile: keys}]} if keys else {}),
            "outs": [_out(folder) for folder in outs],
        }
    return {"stages": tree}


def render(tree: Mapping[str, Any]) -> str:
    """The text of dvc.yaml."""
    return HEADER + yaml.safe_dump(dict(tree), sort_keys=False, width=120, allow_unicode=True)


def _running(rules: Sequence[str], jobs: Sequence[Job]) -> list[str]:
    """Those of the rules that have a job in this study."""
    return [rule for rule in rules if any(job.rule == rule for job in jobs)]


def _written(key: str, config: Mapping[str, Any]) -> bool:
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return False
        node = node[part]
    return True


def _out(folder: str) -> dict[str, dict[str, bool]]:
    # persist: `dvc repro` must not delete what Snakemake would then have to make again
    options = {"persist": True}
    if folder.rsplit("/", 1)[-1] in LOCAL_ONLY:
        options["push"] = False
    return {folder: options}
