"""The workflow: lint, plans, refusals, and the smoke study from raw prompts to the PDF."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import yaml

from conftest import SMOKE, Checkout, SmokeRun, copy_repository
from levelt import config
from levelt.files import read_json


@contextmanager
def edited(path: Path, old: str, new: str) -> Iterator[None]:
    """Replace text in a file for the time of a test."""
    before = path.read_text(encoding="utf-8")
    assert old in before, f"{old!r} is not in {path.name}"
    path.write_text(before.replace(old, new), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(before, encoding="utf-8")


# --- without running anything ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    return copy_repository(tmp_path_factory.mktemp("checkout"))


def test_lint_finds_nothing_but_the_documented_exception(checkout: Checkout) -> None:
    """docs/workflow.md says why rules name no conda environment or container."""
    done = checkout.snakemake("--lint", check=False)
    findings = re.findall(r"^    \* (.*)$", done.stdout + done.stderr, flags=re.MULTILINE)
    assert findings, done.stdout + done.stderr
    assert set(findings) == {"Specify a conda environment or container for each rule.:"}


def test_bad_config_is_one_sentence_before_anything_runs(checkout: Checkout) -> None:
    with edited(checkout.path / "config/smoke.yaml", "probes:", "probez:"):
        done = checkout.snakemake(*SMOKE, "--dry-run", check=False)
    assert done.returncode != 0
    said = done.stdout + done.stderr  # a dry run talks on stdout
    assert "unknown key `probez`; known keys here:" in said
    assert "Traceback" not in said


def test_no_latex_is_said_before_anything_runs(checkout: Checkout, tmp_path: Path) -> None:
    """On a PATH with the shell and its tools but no LaTeX, the run stops before the first job."""
    for tool in ("bash", "sh", "env", "uname", "cat", "rm", "mkdir"):
        found = next(p for p in (Path("/bin") / tool, Path("/usr/bin") / tool) if p.exists())
        (tmp_path / tool).symlink_to(found)
    command = [sys.executable, "-m", "snakemake", *SMOKE]
    environment = {**checkout.environment, "PATH": str(tmp_path)}
    done = subprocess.run(command, cwd=checkout.path, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "LaTeX is missing" in done.stderr and "levelt latex --install" in done.stderr
    assert not (checkout.path / "data/smoke").exists()
    # the twin: what is made without the report needs none
    done = subprocess.run([*command, "data/smoke/world/summary.json"], cwd=checkout.path, env=environment)
    assert done.returncode == 0 and (checkout.path / "data/smoke/world/summary.json").is_file()
    shutil.rmtree(checkout.path / "data/smoke")


def test_make_refuses_an_unknown_study_before_anything_is_installed(checkout: Checkout) -> None:
    for target in ("study", "plan"):
        command = ["make", target, "STUDY=typo", "PYTHON=false"]
        done = subprocess.run(command, cwd=checkout.path, capture_output=True, text=True)
        assert done.returncode != 0 and "no config for study 'typo'" in done.stderr, done.stderr
        assert not (checkout.path / ".venv").exists()


def test_sections_are_values_without_behaviour() -> None:
    """Rules leave config.py out of their code inputs; that is sound only while its sections are plain values."""
    sections = [c for _, c in inspect.getmembers(config, inspect.isclass) if issubclass(c, config.Section)]
    assert len(sections) > 10
    for section in sections:
        if section is config.Study:  # stages never see the whole study
            continue
        public = [name for name in vars(section) if not name.startswith("_") and name not in section.model_fields]
        assert set(public) <= {"model_config", "model_fields", "model_computed_fields"}, (section, public)


# --- the published setting, and where it runs ------------------------------------------------------------------------


def test_the_published_setting_plans(checkout: Checkout) -> None:
    """Its checkpoints are of a hub, so that nothing of them is needed for a plan; its task files are."""
    tree = yaml.safe_load((checkout.path / "config/published.yaml").read_text(encoding="utf-8"))
    for entry in tree["checkpoints"].values():
        assert entry["path"].startswith("hub:") and re.fullmatch("[0-9a-f]{40}", entry["revision"]), entry
    assert len({entry["revision"] for entry in tree["checkpoints"].values()}) == len(tree["checkpoints"])
    for name, task in tree["tasks"].items():
        task["source"]["path"] = f"tasks/{name}.jsonl"
    (checkout.path / "own.yaml").write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    own = ["--configfile", "own.yaml", "--cores", "2"]
    refused = checkout.snakemake(*own, "--dry-run", check=False)
    assert refused.returncode != 0 and "tasks/blimp.jsonl" in refused.stdout + refused.stderr
    (checkout.path / "tasks").mkdir()
    for name in tree["tasks"]:
        (checkout.path / f"tasks/{name}.jsonl").touch()
    planned = checkout.planned(*own)
    models, tasks = len(tree["checkpoints"]), len(tree["tasks"])
    cells = models * tasks
    expected = {"checkpoint": models, "samples": tasks, "prompts": cells, "read": models, "probe": cells, "tables": 1}
    assert {rule: planned[rule] for rule in expected} == expected


def test_the_slurm_profile_fits_the_rules(root: Path) -> None:
    """A rule that a profile misnames would run with the default memory, without a word."""
    profile = yaml.safe_load((root / "profiles/slurm/config.yaml").read_text(encoding="utf-8"))
    texts = [path.read_text(encoding="utf-8") for path in (root / "rules").glob("*.smk")]
    names = r"^rule (\w+):", r"of_group\(\"(\w+)\", number\)"  # the second: a rule for each group of tasks
    rules = {name for text in texts for pattern in names for name in re.findall(pattern, text, flags=re.MULTILINE)}
    assert {"pretrain", "read"} <= rules
    named = {re.sub(r"_\d$", "", name) for name in (*profile["set-resources"], *profile["groups"])}
    assert named <= rules, named - rules
    assert set(profile["group-components"]) == set(profile["groups"].values())
    always = yaml.safe_load((root / "profiles/default/profile.yaml").read_text(encoding="utf-8"))
    assert not set(always) & set(profile), "profiles/default is used beside it and would win"
    # every job that runs a model takes `engine.threads` threads, asks for the study's GPUs, and has its memory given
    asking = "threads: STUDY.engine.threads\n", "resources:\n", "gpu=GPUS,\n"
    running = [line.strip() + "\n" for text in texts for line in text.splitlines()]
    starts = [i for i, line in enumerate(running) if line == asking[0]]
    assert len(starts) == 4 and all(tuple(running[i : i + 3]) == asking for i in starts)
    assert {"read", "audit", "vectors", "recall"} <= set(profile["set-resources"])


# --- the smoke study -------------------------------------------------------------------------------------------------


@pytest.mark.smoke
def test_smoke_study_makes_everything(smoke: SmokeRun) -> None:
    path = smoke.checkout.path
    assert (path / "paper/smoke/report.pdf").read_bytes().startswith(b"%PDF")
    figures = sorted(p.stem for p in (path / "figures/smoke").glob("*.pdf"))
    assert len(figures) >= 3
    for name in figures:
        assert (path / f"figures/smoke/{name}.png").stat().st_size > 10_000
        assert len(pd.read_csv(path / f"figures/smoke/{name}.csv")) > 0
    for name in ("behaviour", "probes", "correlations"):
        assert len(pd.read_csv(path / f"data/smoke/tables/{name}.csv")) > 0
    print(f"\nsmoke study: {smoke.seconds:.0f} s on 2 cores")  # noqa: T201 (shown with -rP, asserted nowhere)


@pytest.mark.smoke
def test_smoke_tables_are_complete(smoke: SmokeRun) -> None:
    study = config.load(smoke.checkout.path / "config/smoke.yaml")
    probes = pd.read_csv(smoke.checkout.path / "data/smoke/tables/probes.csv")
    cells = probes.groupby(["model", "task", "condition", "role"]).ngroups
    assert cells == len(study.model_ids) * len(study.tasks) * len(study.conditions) * len(study.probes.roles)
    assert probes[["balanced_accuracy", "ci_low", "ci_high"]].notna().all(axis=None)
    assert (probes["bound"] <= study.probes.bound).all()
    behaviour = pd.read_csv(smoke.checkout.path / "data/smoke/tables/behaviour.csv")
    assert behaviour["exact_match"].between(0, 1).all()
    blocking = pd.read_csv(smoke.checkout.path / "data/smoke/tables/blocking.csv")
    nothing = blocking[blocking["condition"] == "block_nothing"]
    assert len(nothing) and (nothing["change"] == 0).all(), "the same kernel with no edge removed changes nothing"
    assert (blocking[blocking["condition"] == "block_instruction_to_all"]["change"] != 0).any()


@pytest.mark.smoke
def test_smoke_models_are_ordinary_checkpoints(smoke: SmokeRun) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for manifest_path in (smoke.checkout.path / "data/smoke/models").glob("*/manifest.json"):
        folder = manifest_path.parent
        manifest = read_json(manifest_path)
        model = AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert model.num_parameters() == manifest["parameters"]
        chat = [{"role": "user", "content": "is it so?"}, {"role": "assistant", "content": "yes"}]
        text = tokenizer.apply_chat_template(chat, tokenize=False)
        assert "is it so?" in text and "yes" in text
        assert not list(folder.glob("*.bin"))


@pytest.mark.smoke
def test_nothing_to_be_done_after_a_run(smoke: SmokeRun) -> None:
    assert smoke.checkout.planned(*SMOKE) == {}


@pytest.mark.smoke
def test_touched_code_is_not_changed_code(smoke: SmokeRun) -> None:
    """Up to date by content: a new file time alone plans nothing."""
    solver = smoke.checkout.path / "src/levelt/probes/solver.py"
    os.utime(solver)
    assert smoke.checkout.planned(*SMOKE) == {}


TABLES_DOWN = {"tables", "layer_tables", "controls", "claims", "figure", "numbers", "report", "all"}
READ, PROBED = ["read", "read_2"], ["probe", "probe_2"]
AUDITED = {"audit", "audit_2", "audit_table"}
OTHER_STUDIES = {"vectors", "vectors_tables", "recall", "recall_tables"}

EDITS = {
    "a probe setting": ("config/smoke.yaml", "probes:", "probes:\n  penalty: 0.02", {*PROBED, *AUDITED, *TABLES_DOWN}),
    "code of the solver": (
        "src/levelt/probes/solver.py",
        '"""L2 logistic regression, many probes',
        '"""Logistic regression, many probes',
        {*PROBED, *AUDITED, *TABLES_DOWN},
    ),
    "code of one figure": (
        "src/levelt/figures/behaviour.py",
        '"""Figure: ',
        '"""Picture: ',
        {"figure", "report", "all"},
    ),
    "the report's prose": ("paper/report.tex", "\\section{Limits}", "\\section{Its limits}", {"report", "all"}),
    "the title": ("config/smoke.yaml", "title: ", "title: New ", {"numbers", "report", "all"}),
    "a setting of the engine": (
        "config/smoke.yaml",
        "engine:",
        "engine:\n  attention: eager",
        {*READ, *PROBED, *AUDITED, *OTHER_STUDIES, *TABLES_DOWN},
    ),
}


@pytest.mark.smoke
@pytest.mark.parametrize("edit", EDITS)
def test_a_change_reruns_its_consequences_and_nothing_else(smoke: SmokeRun, edit: str) -> None:
    name, old, new, rules = EDITS[edit]
    with edited(smoke.checkout.path / name, old, new):
        planned = smoke.checkout.planned(*SMOKE)
    assert set(planned) == rules
    if edit == "code of one figure":
        assert planned["figure"] == 1


@pytest.mark.smoke
def test_a_templates_wording_reruns_what_depends_on_it(smoke: SmokeRun) -> None:
    """The evaluation template is not one the models were trained with: prompts onwards rerun, training does not."""
    study = config.load(smoke.checkout.path / "config/smoke.yaml")
    assert study.organisms is not None and study.prompts.template not in study.organisms.templates, "by design of smoke"
    wording = study.templates[study.prompts.template].instruction_first
    first = wording.split("{question}")[0]
    with edited(smoke.checkout.path / "config/smoke.yaml", json.dumps(wording), json.dumps("Q" + wording)):
        planned = smoke.checkout.planned(*SMOKE)
    assert first is not None
    assert set(planned) == {"prompts", *READ, *PROBED, "evaluate", *AUDITED, *TABLES_DOWN}
    assert planned["prompts"] == len(study.tasks), "the organisms share their prompts"


@pytest.mark.smoke
def test_one_tasks_question_reruns_only_that_task(smoke: SmokeRun) -> None:
    study = config.load(smoke.checkout.path / "config/smoke.yaml")
    task = next(iter(study.tasks))
    line = next(
        line
        for line in (smoke.checkout.path / "config/smoke.yaml").read_text().splitlines()
        if line.strip().startswith(f"{task}:") and "source" in line
    )
    changed = line.rstrip().removesuffix("}") + ', question: "Well?", negated_question: "Not?"}'
    with edited(smoke.checkout.path / "config/smoke.yaml", line, changed):
        planned = smoke.checkout.planned(*SMOKE)
    assert set(planned) == {"samples", "prompts", "read", "probe", "audit", "audit_table", *TABLES_DOWN}
    assert planned["samples"] == planned["prompts"] == 1
    assert study.engine.tasks_per_job == study.probes.tasks_per_job == 2
    for rule in ("read", "probe"):
        assert planned[rule] == len(study.model_ids), "a job is of two tasks, and both are made again"


@pytest.mark.smoke
def test_rerunning_a_job_gives_the_same_bytes(smoke: SmokeRun) -> None:
    """Every stage but training again (training has its own test): no output changes."""
    from levelt.files import sha256

    path = smoke.checkout.path
    kept = [p for folder in ("data/smoke", "figures/smoke", "paper/smoke") for p in (path / folder).rglob("*")]
    before = {p: sha256(p) for p in kept if p.is_file()}
    rules = ["world", "samples", "prompts", *READ, *PROBED, "tables", "layer_tables", "figure", "numbers", "report"]
    smoke.checkout.snakemake(
        *SMOKE, "--forcerun", *rules, "--omit-from", "instructions", "tokenizer", "pretrain", "tune"
    )
    changed = [str(p.relative_to(path)) for p, digest in before.items() if sha256(p) != digest]
    assert changed == []


# --- real input: a file of one's own, a checkpoint of one's own ------------------------------------------------------


@pytest.mark.smoke
def test_a_file_task_on_a_local_checkpoint(smoke: SmokeRun) -> None:
    """The published example's config, with a file in the published schema, on a checkpoint the smoke study made."""
    path = smoke.checkout.path
    tree = yaml.safe_load((path / "config/examples/blimp.yaml").read_text(encoding="utf-8"))
    question = "Is the text fine? Answer only with ‘yes’ or ‘no’."
    rows = []
    for number in range(40):
        for good in (True, False):
            label = "yes" if good else "no"
            text = f"The cat number {number} {'sleeps' if good else 'sleep'} “well” — naïve ✓."
            row = {"context": text, "question": question, "label": label, "element_id": 2**62 + 2 * number + good}
            row["order_id"] = number
            rows.append(json.dumps(row, ensure_ascii=number % 2 == 0))
    bad = ["", '{"context": "no label", "question": "?", "element_id": 1, "label": null}', rows[0]]
    (path / "mine.jsonl").write_text("\n".join([*rows, *bad]) + "\n", encoding="utf-8")
    tree["study"] = "mine"
    tree["tasks"]["blimp"]["source"]["path"] = "mine.jsonl"
    tree["checkpoints"] = {
        "own": {"path": "data/smoke/models/llama-xs-sft", "family": "f", "size": "s", "stage": "sft"}
    }
    tree["statistics"] = {"draws": 200}
    (path / "mine.yaml").write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    smoke.checkout.snakemake("--configfile", "mine.yaml", "--cores", "2")
    report = read_json(path / "data/mine/samples/blimp.json")
    assert (report["rows_in"], report["rows_used"], sum(report["refused"].values())) == (83, 80, 3)
    assert [row["line"] for row in report["refused_rows"]] == [81, 82, 83]
    samples = pd.read_parquet(path / "data/mine/samples/blimp.parquet")
    assert str(2**62 + 1) in set(samples["sample_id"]), "64-bit ids survive"
    assert (samples.groupby("pair_id").size() == 2).all() and samples["pair_id"].nunique() == 40
    behaviour = pd.read_csv(path / "data/mine/tables/behaviour.csv")
    assert (behaviour["n"] == 80).all() and len(behaviour) == 3
    assert (path / "paper/mine/report.pdf").stat().st_size > 50_000
    assert smoke.checkout.planned("--configfile", "mine.yaml", "--cores", "2") == {}


@pytest.mark.smoke
def test_a_checkpoint_without_weights_is_one_sentence(smoke: SmokeRun, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(smoke.checkout.path / "data/smoke/models/llama-xs-sft", broken)
    (broken / "model.safetensors").unlink()
    entry = {"path": str(broken), "family": "f", "size": "s", "stage": "sft"}
    arguments = [
        "--settings",
        json.dumps({"seed": 0, "checkpoints.own": entry}),
        "--id",
        "own",
        "--out",
        str(tmp_path / "m.json"),
    ]
    done = smoke.checkout.levelt("checkpoint", *arguments)
    assert done.returncode == 2 and "safetensors" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "m.json").exists()
