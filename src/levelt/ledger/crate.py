"""Export a study as an RO-Crate: Provenance Run Crate 0.5 (workflow, its steps, every job that ran), by ro-crate-py."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from levelt.files import InputError
from levelt.ledger.book import Book, Entry
from levelt.ledger.trace import origin

if TYPE_CHECKING:
    from rocrate.rocrate import ROCrate

PROFILES = (
    "https://w3id.org/ro/wfrun/process/0.5",
    "https://w3id.org/ro/wfrun/workflow/0.5",
    "https://w3id.org/ro/wfrun/provenance/0.5",
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0",
)
LICENCE = "https://spdx.org/licenses/Apache-2.0"
WORKFLOW = ["File", "SoftwareSourceCode", "ComputationalWorkflow", "HowTo"]
TERMS = {"sha256": "https://w3id.org/ro/terms/workflow-run#sha256"}


def write_crate(book: Book, out: Path) -> Path:
    """Write the crate into a folder, or a zip file where ``out`` ends in .zip. Files that are not here are only named.

    Raises:
        InputError: ro-crate-py is not installed, or ``out`` exists.
    """
    try:
        from rocrate.rocrate import ROCrate
    except ImportError:
        raise InputError("the export needs ro-crate-py: `pip install rocrate`") from None
    if out.exists():
        raise InputError(f"{out} exists; name a new folder or .zip file")
    crate = ROCrate(version="1.1")
    crate.metadata.extra_terms.update(TERMS)
    _describe(crate, book)
    files = _files(crate, book)
    workflow = crate.add_workflow(
        "Snakefile", "Snakefile", main=True, lang="snakemake", properties={"@type": WORKFLOW, "name": "levelt"}
    )
    workflow["license"] = {"@id": LICENCE}
    tools, steps = _tools(crate, book, workflow)
    engine = _add(crate, "#snakemake", "SoftwareApplication", name="Snakemake", url="https://snakemake.github.io")
    jobs = [_job(crate, book, entry, files, tools) for entry in book.jobs]
    started, ended = min(map(_started, book.jobs)), max(map(_ended, book.jobs))
    made = book.maker
    run = _add(
        crate,
        "#run",
        "CreateAction",
        name=f"the run of study {book.study}",
        instrument=workflow,
        object=[file for path, file in files.items() if path not in made],
        result=[file for path, file in files.items() if path in made],
        startTime=started.isoformat(),
        endTime=ended.isoformat(),
        actionStatus={"@id": "http://schema.org/CompletedActionStatus"},
    )
    controls = []
    for number, (rule, step) in enumerate(steps.items()):
        own = [job for job, entry in zip(jobs, book.jobs, strict=True) if entry.rule == rule]
        controls.append(
            _add(crate, f"#step-{number}", "ControlAction", name=f"step {rule}", instrument=step, object=own)
        )
    _add(crate, "#engine", "OrganizeAction", name="Snakemake", instrument=engine, result=run, object=controls)
    crate.root_dataset["mentions"] = [run]
    if out.suffix == ".zip":
        out.parent.mkdir(parents=True, exist_ok=True)
        crate.write_zip(out)
    else:
        crate.write(out)
    return out


def _describe(crate: ROCrate, book: Book) -> None:
    crate.name = f"levelt study {book.study}"
    crate.description = (
        f"Everything study {book.study} made, and what made it: {len(book.jobs)} jobs, "
        f"{len(book.files)} files, {len(book.figures)} figures."
    )
    crate.datePublished = max(map(_ended, book.jobs))
    crate.license = _add(crate, LICENCE, "CreativeWork", name="Apache License 2.0", identifier=LICENCE)
    for profile in PROFILES:
        version = profile.rsplit("/", 1)[1]
        _add(crate, profile, "CreativeWork", name=f"profile {profile.split('/')[-2]}", version=version)
    crate.root_dataset["conformsTo"] = [{"@id": profile} for profile in PROFILES[:3]]
    crate.root_dataset["author"] = _add(crate, "#levelt", "Organization", name="levelt")


def _files(crate: ROCrate, book: Book) -> dict[str, Any]:
    """Path -> entity of every input and output, code included."""
    entities = {}
    for path, (digest, size) in book.files.items():
        properties = {"name": Path(path).name, "sha256": digest, "contentSize": str(size)}
        if path not in book.maker:
            properties |= {"description": f"origin: {origin(path)['origin']}"}
        if Path(path).is_file() and not path.startswith(".."):
            entities[path] = crate.add_file(path, path, properties=properties)
        else:  # recorded, but not here: an entity without a file
            entities[path] = _add(crate, f"#{path}", "CreativeWork", **properties)
    return entities


def _tools(crate: ROCrate, book: Book, workflow: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Rule -> its command as a tool, and rule -> its step of the workflow."""
    tools, steps = {}, {}
    for position, entry in enumerate({entry.rule: entry for entry in book.jobs}.values()):
        name = " ".join(entry.command.split()[:2])
        tools[entry.rule] = _add(crate, f"#tool-{entry.rule}", "SoftwareApplication", name=name)
        steps[entry.rule] = _add(
            crate, f"Snakefile#{entry.rule}", "HowToStep", position=str(position), workExample=tools[entry.rule]
        )
    workflow["hasPart"] = list(tools.values())
    workflow["step"] = list(steps.values())
    return tools, steps


def _job(crate: ROCrate, book: Book, entry: Entry, files: dict[str, Any], tools: dict[str, Any]) -> Any:
    used: Iterable[str] = (*entry.inputs, *book.code[entry.code])
    settings = [
        _add(crate, f"#setting-{entry.record[:12]}-{key}", "PropertyValue", name=key, value=str(value))
        for key, value in sorted(entry.settings.items())
    ]
    return _add(
        crate,
        f"#job-{entry.record[:12]}",
        "CreateAction",
        name=f"{entry.rule}: {Path(entry.outputs[0]).name}",
        description=entry.command,
        instrument=tools[entry.rule],
        object=[files[path] for path in used if path in files] + settings,
        result=[files[path] for path in entry.outputs],
        startTime=_started(entry).isoformat(),
        endTime=_ended(entry).isoformat(),
        actionStatus={"@id": "http://schema.org/CompletedActionStatus"},
    )


def _add(crate: ROCrate, at: str, kind: str, /, **properties: Any) -> Any:
    from rocrate.model.contextentity import ContextEntity

    entity = crate.add(ContextEntity(crate, at, properties={"@type": kind}))
    for name, value in properties.items():
        entity[name] = value
    return entity


def _started(entry: Entry) -> datetime:
    return datetime.fromisoformat(entry.started)


def _ended(entry: Entry) -> datetime:
    return _started(entry) + timedelta(seconds=round(entry.seconds))
