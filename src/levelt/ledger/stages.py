"""dvc.yaml and .dvcignore, derived from the DAG: coarse stages whose outs are the folders of a study.

Snakemake runs, DVC keeps the ledger (design.md, decision 5). Nothing here names a rule: a stage is a folder that rules
fill (data/<study>/probes, figures/<study>, ...), so that dvc.yaml stays readable whatever the rules are. Folders that
one rule fills together, or that need each other, are one stage.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from levelt.ledger.graph import Job

LOCAL_ONLY = frozenset({"activations", "corpus", "hits", "recall", "tokens", "vectors"})
"""Rooms whose hashes are recorded but whose files are neither cached nor pushed: big, and made again in minutes from
the models (the corpus and its tokens: from code)."""

RECORDS = ".snakemake/metadata"
"""Snakemake's records travel with the artifacts: with them, a fresh clone is judged by content, not by file times."""

HEADER = "# Generated from the rules by `levelt ledger stages`; a test fails when it is out of date. Do not edit.\n"
_BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def folder_of(path: str) -> str:
    """The folder that is versioned as one: the first three parts of data/<study>/<room>/..., two of figures/<study>."""
    parts = Path(path).parts
    return "/".join(parts[: 3 if parts[0] == "data" else 2])


def stages(
    jobs: Sequence[Job], configfile: str, config: Mapping[str, Any], local_only: Iterable[str] = LOCAL_ONLY
) -> dict[str, Any]:
    """The content of dvc.yaml for one study.

    Args:
        jobs: from `read_jobs`.
        configfile: path of the study's config, as DVC finds it.
        config: the config file's own tree; only keys written there can be tracked as parameters (defaults are in
            config.py, and reach a job through the parameters that Snakemake records).
        local_only: rooms that are hashed but not stored.
    """
    of_folder = _stages_of_folders(jobs)
    tree: dict[str, Any] = {}
    for stage in dict.fromkeys(of_folder.values()):
        outs = sorted(folder for folder, of in of_folder.items() if of == stage)
        own = [job for job in jobs if any(folder_of(path) in outs for path in job.outputs)]
        inputs = {path for job in own for path in job.inputs}
        deps = {folder_of(path) if folder_of(path) in of_folder else path for path in inputs} - set(outs)
        keys = sorted({key for job in own for key in job.keys if _written(key, config)})
        tree[stage] = {
            "cmd": f"snakemake --cores all --configfile {configfile} --until {' '.join(sorted({j.rule for j in own}))}",
            "deps": sorted(deps),
            **({"params": [{configfile: keys}]} if keys else {}),
            "outs": [{folder: _options(folder, frozenset(local_only))} for folder in outs],
        }
    needed = {dep for stage in tree.values() for dep in stage["deps"]}
    tree["records"] = {
        "cmd": f"snakemake --cores all --configfile {configfile}",
        "deps": sorted(set(of_folder) - needed),
        "outs": [{RECORDS: {"persist": True}}],
    }
    return {"stages": tree}


def render(tree: Mapping[str, Any]) -> str:
    """The text of dvc.yaml."""
    return HEADER + yaml.safe_dump(dict(tree), sort_keys=False, width=120, allow_unicode=True)


def ignored(jobs: Sequence[Job]) -> str:
    """The text of .dvcignore: what lies among the artifacts without being one.

    Snakemake keeps the records of all studies in one folder, each named by the URL-safe base64 of its output's path.
    DVC sees those whose path begins with one of this study's folders, so that running another study changes nothing.
    """
    roots = sorted({"/".join(Path(path).parts[:2]) + "/" for job in jobs for path in job.outputs})
    patterns = [_beginning(root) for root in roots]
    lines = [
        "# Snakemake's time stamps and the state of interrupted or failed trainings are not results",
        ".snakemake_timestamp",
        "*.partial",
        "*.failed",
        f"# of Snakemake's records (named by base64 of a path) only this study's: {' '.join(roots)}",
        f"/{RECORDS}/*",
        *(f"!/{RECORDS}/{at}{pattern}*" for pattern in patterns for at in ("", "@")),  # @: a name cut in parts
    ]
    return HEADER + "\n".join(lines) + "\n"


def _stages_of_folders(jobs: Sequence[Job]) -> dict[str, str]:
    """Folder -> stage, in an order in which every stage comes after those it needs."""
    needs: dict[str, set[str]] = {folder_of(path): set() for job in jobs for path in job.outputs}
    for job in jobs:
        filled = {folder_of(path) for path in job.outputs}
        for folder in filled:  # folders that one job fills need each other: one stage
            needs[folder] |= filled | ({folder_of(path) for path in job.inputs} & set(needs))
    for through in needs:
        for folder in needs:
            if through in needs[folder]:
                needs[folder] |= needs[through]
    together = {folder: sorted({f for f in needs[folder] if folder in needs[f]} | {folder}) for folder in needs}
    order = sorted(needs, key=lambda folder: (len(needs[folder] - set(together[folder])), together[folder], folder))
    return {folder: _name(together[folder]) for folder in order}


def _name(folders: Iterable[str]) -> str:
    return "-".join(sorted({parts[2] if len(parts := Path(folder).parts) > 2 else parts[0] for folder in folders}))


def _written(key: str, config: Mapping[str, Any]) -> bool:
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return False
        node = node[part]
    return True


def _options(folder: str, local_only: frozenset[str]) -> dict[str, bool]:
    # persist: `dvc repro` must not delete what Snakemake would then have to make again
    local = folder.rsplit("/", 1)[-1] in local_only
    # not `push: false`: `dvc pull` of a fresh clone would fail on what was never pushed
    return {**({"cache": False} if local else {}), "persist": True}


def _beginning(prefix: str) -> str:
    """A glob that matches the URL-safe base64 of every text that begins with ``prefix`` (and is longer)."""
    data = prefix.encode()
    whole, rest = data[: len(data) // 3 * 3], data[len(data) // 3 * 3 :]
    pattern = base64.urlsafe_b64encode(whole).decode()
    if rest:  # the last bits of the prefix share a character with what follows: any of a range
        first = base64.urlsafe_b64encode(rest + b"\x00\x00").decode()[: len(rest) + 1]
        free = 1 << (4 if len(rest) == 1 else 2)
        start = _BASE64.index(first[-1])
        choices = sorted(_BASE64[start : start + free], key=lambda letter: letter == "-")  # a minus must come last
        pattern += first[:-1] + f"[{''.join(choices)}]"
    return pattern
