"""The workflow's DAG as plain data: jobs with their rule, files and settings, read from Snakemake itself.

The rules are the only source of truth; everything the ledger says about what depends on what is derived from here.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from levelt.files import InputError


@dataclass(frozen=True)
class Job:
    """One job: rule name, files relative to the working directory, the config keys it may use, its log and threads, and
    the inputs whose file times do not count (``ancient``)."""

    rule: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    keys: tuple[str, ...]
    log: str = ""
    threads: int = 1
    ancient: tuple[str, ...] = ()


def read_jobs(snakefile: Path, configfile: Path) -> Sequence[Job]:
    """All jobs that make the default target of a study, in no particular order. Nothing is run.

    Raises:
        InputError: Snakemake cannot build the DAG; the message is Snakemake's.
    """
    from snakemake.api import SnakemakeApi
    from snakemake.exceptions import RuleException, WorkflowError
    from snakemake.settings.enums import Quietness
    from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, ResourceSettings

    logging.disable(logging.WARNING)  # the dry run would print every job
    try:
        with SnakemakeApi(OutputSettings(quiet={Quietness.ALL})) as api:
            workflow = api.workflow(
                resource_settings=ResourceSettings(cores=1),
                config_settings=ConfigSettings(configfiles=[configfile]),
                snakefile=snakefile,
            )
            workflow.dag(dag_settings=DAGSettings(forceall=True)).execute_workflow(executor="dryrun")
            jobs = list(workflow._workflow.dag.jobs)  # the API has no public way to ask for the jobs
    except (WorkflowError, RuleException) as error:
        said = " ".join(str(error).split())  # a missing input is a RuleException of many lines
        raise InputError(f"{snakefile} with {configfile}: {said}") from None
    finally:
        logging.disable(logging.NOTSET)
    return [
        Job(
            job.rule.name,
            tuple(map(str, job.input)),
            tuple(map(str, job.output)),
            tuple(sorted(json.loads(job.params.get("settings", "{}")))),
            str(next(iter(job.log), "")),
            int(job.rule.resources["_cores"].value),
            tuple(str(path) for path in job.input if path.is_ancient),
        )
        for job in jobs
    ]
