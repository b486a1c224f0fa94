"""The exported crate against the profiles it declares, as the RO-Crate validator (roc-validator 0.13) reads them.

Skipped, with the reason, where the validator is not installed; `make oracles` installs it and skips nothing. Nothing is
fetched: the validator runs in its offline mode, and its cache holds the one context a crate names.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from levelt.files import read_json
from toy import make_toy

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("rocrate_validator") is None, reason="the oracle roc-validator is not installed"
)

CONTEXT = "https://w3id.org/ro/crate/1.1/context"
SCHEMA = """
    ComputerLanguage ControlAction CreateAction CreativeWork Dataset HowTo HowToStep Organization OrganizeAction
    PropertyValue SoftwareApplication SoftwareSourceCode about actionStatus author contentSize datePublished description
    endTime hasPart identifier instrument license mainEntity mentions name object position programmingLanguage result
    startTime step url value version workExample
"""
TERMS = {word: f"http://schema.org/{word}" for word in SCHEMA.split()} | {
    "File": "http://schema.org/MediaObject",
    "ComputationalWorkflow": "https://bioschemas.org/ComputationalWorkflow",
    "conformsTo": "http://purl.org/dc/terms/conformsTo",
}
"""Those terms of the context that a crate of levelt uses, with the meanings that its version 1.1.3 gives them. A term
that is not among them is reported. (ro-crate-py bundles the context of RO-Crate 1.3, which names workflows otherwise.)
"""

PROFILES = {
    "https://w3id.org/ro/crate/1.1": "ro-crate-1.1",
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": "workflow-ro-crate",
    "https://w3id.org/ro/wfrun/process/0.5": "process-run-crate",
    "https://w3id.org/ro/wfrun/workflow/0.5": "workflow-run-crate",
    "https://w3id.org/ro/wfrun/provenance/0.5": "provenance-run-crate",
}
"""What a crate says it conforms to -> the validator's word for it. The last includes all others."""

WITHOUT = [  # entity (the first whose @id begins so), property taken from it (none: all of it), profile that reports it
    ("./", "license", "ro-crate-1.1"),
    ("ro-crate-metadata.json", "about", "ro-crate-1.1"),
    ("./", "mainEntity", "workflow-ro-crate-1.0"),
    ("Snakefile", "programmingLanguage", "workflow-ro-crate-1.0"),
    ("#job-", "instrument", "process-run-crate-0.5"),
    ("#run", "instrument", "workflow-run-crate-0.5"),
    ("Snakefile", "hasPart", "provenance-run-crate-0.5"),
    ("#engine", "result", "provenance-run-crate-0.5"),
    ("#tool-", None, "process-run-crate-0.5"),
    ("#run", None, "workflow-run-crate-0.5"),
    ("Snakefile#", None, "provenance-run-crate-0.5"),
    ("#job-", None, "provenance-run-crate-0.5"),
]


def fill_cache(cache: Path) -> None:
    """Put the context into the cache from which the validator reads when it is offline."""
    from requests.structures import CaseInsensitiveDict
    from requests_cache import CachedRequest, CachedResponse
    from rocrate_validator.utils.http import HttpRequester

    response = CachedResponse(
        status_code=200,
        url=CONTEXT,
        headers=CaseInsensitiveDict({"Content-Type": "application/ld+json"}),
        content=json.dumps({"@context": TERMS}).encode(),
        request=CachedRequest(method="GET", url=CONTEXT),
    )
    HttpRequester.initialize_cache(cache_path=str(cache), cache_max_age=-1).session.cache.save_response(response)


def issues(crate: Path, tree: dict[str, Any], profile: str, cache: Path) -> dict[str, list[str]]:
    """Profile -> what it requires and ``tree`` does not have, as the metadata of the files in ``crate``."""
    from rocrate_validator.models import Severity, ValidationSettings
    from rocrate_validator.services import validate

    settings = ValidationSettings(
        rocrate_uri=None,
        metadata_dict=tree,
        package_root=crate,
        profile_identifier=profile,
        requirement_severity=Severity.REQUIRED,
        offline=True,
        cache_path=cache,
    )
    found: dict[str, list[str]] = {}
    for issue in validate(settings).get_issues():
        found.setdefault(issue.check.requirement.profile.identifier, []).append(str(issue.message).strip())
    return found


def test_the_validator_agrees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The crate of a recorded study has no issue; every twin, with one required thing removed, has one."""

    def refuse(*_: object) -> None:
        pytest.fail("something wants the network")

    toy, crate, cache = make_toy(tmp_path / "toy"), tmp_path / "crate", tmp_path / "http"
    done = toy.ledger("crate", "--out", str(crate))
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    fill_cache(cache)
    tree = read_json(crate / "ro-crate-metadata.json")
    declared = [
        profile["@id"]
        for entity in tree["@graph"]
        if entity["@id"] in ("./", "ro-crate-metadata.json")
        for profile in entity["conformsTo"]
    ]
    assert sorted(declared) == sorted(PROFILES)
    for profile in PROFILES.values():
        assert issues(crate, tree, profile, cache) == {}, profile

    whole = PROFILES["https://w3id.org/ro/wfrun/provenance/0.5"]
    for start, name, profile in WITHOUT:
        twin = copy.deepcopy(tree)
        entity = next(entity for entity in twin["@graph"] if entity["@id"].startswith(start))
        if name is None:
            twin["@graph"].remove(entity)
        else:
            del entity[name]
        assert profile in issues(crate, twin, whole, cache), (start, name)
    twin = copy.deepcopy(tree)
    twin["@graph"][0]["unheard"] = "of"
    assert any('"unheard"' in text for text in issues(crate, twin, whole, cache)["ro-crate-1.1"])
    (crate / "raw.csv").unlink()
    assert any("raw.csv" in text for text in issues(crate, tree, whole, cache)["ro-crate-1.1"])
