"""Every kind of mistake in a config is one sentence that names the field; generated files are up to date."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from levelt.config import Settings, load, reference, schema, settings_json, validate
from levelt.files import InputError

TREE: dict[str, Any] = {
    "study": "s",
    "title": "T",
    "templates": {
        "plain": {
            "instruction_first": "{question}\n{text}",
            "sample_first": "{text}\n{question}",
            "no_instruction": "{text}",
        }
    },
    "tasks": {"t": {"source": {"kind": "file", "path": "x.jsonl"}, "question": "Good?"}},
    "checkpoints": {"m": {"path": "models/m", "family": "llama", "size": "8b", "stage": "base"}},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The valid tree with one value set (removed, when it is ...; several at the top, when the path is empty)."""
    tree = copy.deepcopy(TREE)
    if not path:
        return {**tree, **value}
    node = tree
    *parents, last = path.split("/")
    for part in parents:
        node = node.setdefault(part, {})
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return tree


MISTAKES = {
    "wrong key": ("probez", {}, r"unknown key `probez`; known keys here: .*probes"),
    "wrong nested key": ("probes/fold", 3, r"unknown key `probes\.fold`; known keys here: .*folds"),
    "wrong key of a task's source": ("tasks/t/source/paht", "x", r"unknown key `tasks\.t\.source\.paht`"),
    "missing": ("title", ..., r"`title` is missing"),
    "wrong type": ("seed", "abc", r"`seed`: input should be a valid integer.*found \"abc\""),
    "out of range": ("probes/folds", 1, r"`probes\.folds`: .*greater than or equal to 2, found 1"),
    "not a choice": ("prompts/variations", ["upside_down"], r"`prompts\.variations\.0`: .*'instruction_first'"),
    "bad name": ("study", "My Study", r"`study`: .*pattern"),
    "no model": ("checkpoints", {}, r"no model"),
    "unknown template": ("prompts/template", "fancy", r"prompts\.template names 'fancy'.*\['plain'\]"),
    "template without text": ("templates/plain/no_instruction", "hm", r"no_instruction must contain \{text\} 1"),
    "template in the wrong order": (
        "templates/plain/sample_first",
        "{question} {text}",
        r"sample_first has \{question\} and \{text\} in the wrong order",
    ),
    "no question": ("tasks/t/question", ..., r"tasks\.t needs `question`"),
    "label outside the options": ("tasks/t/source/labels", {"1": "maybe"}, r"\['maybe'\].*options \['yes', 'no'\]"),
    "world missing": ("tasks/t/source", {"kind": "world", "name": "belief"}, r"`world` is missing"),
    "no such world task": (
        "",
        {"world": {}, "tasks": {"t": {"source": {"kind": "world", "name": "music"}}}},
        r"tasks\.t: the world has no task 'music'; it has \['acceptability'",
    ),
    "mixed without negation": ("prompts/polarity", "mixed", r"tasks\.t needs `negated_question`"),
    "unknown intervention": ("engine/interventions", ["block_all"], r"`engine\.interventions\.0`: .*'block_nothing'"),
    "an intervention twice": ("engine/interventions", ["block_nothing"] * 2, r"each intervention once"),
    "an unrelated instruction without its question": (
        "prompts/variations",
        ["unrelated_instruction"],
        r"`unrelated_question` is needed",
    ),
    "the other property of texts from a file": (
        "prompts/variations",
        ["instruction_first", "other_instruction"],
        r"tasks\.t: other_instruction asks about a second property",
    ),
    "an id that is a folder of the workflow": (
        "checkpoints/organisms",
        TREE["checkpoints"]["m"],
        r"\['organisms'\] have the id of an organism, or that of a folder",
    ),
    "the folder of the bundled remote": ("study", "remote", r"study must have another name than 'remote'"),
    "unpinned hub": ("checkpoints/m/path", "hub:a/b", r"hub:a/b needs `revision`"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake: str) -> None:
    path, value, message = MISTAKES[mistake]
    validate(TREE)
    with pytest.raises(InputError, match=message) as caught:
        validate(changed(path, value), "c.yaml")
    assert str(caught.value).startswith("c.yaml: ")
    assert "\n" not in str(caught.value)


def test_interventions_need_the_prompts_they_change() -> None:
    tree = changed("engine/interventions", ["isolate_sample", "block_nothing"])
    assert validate(tree).conditions[-2:] == ["isolate_sample", "block_nothing"]
    assert validate(TREE).conditions == validate(TREE).prompts.variations
    appended = changed("engine/random_answer", True)
    assert validate(appended).conditions == [*validate(TREE).conditions, "random_answer"]
    for wanting in (tree, appended):
        wanting["prompts"] = {"variations": ["sample_first"]}
        with pytest.raises(InputError, match=r"engine\.interventions .* instruction_first .*\['sample_first'\]"):
            validate(wanting)
    other = changed("engine/interventions", ["other_block_instruction_to_all"])
    with pytest.raises(InputError, match=r"engine\.interventions .* other_instruction .*\['instruction_first'"):
        validate(other)


def test_files_that_are_not_configs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such config file"):
        load(tmp_path / "none.yaml")
    (tmp_path / "a.yaml").write_text("study: [")
    with pytest.raises(InputError, match=r"a\.yaml, line \d+: not valid YAML"):
        load(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("- 1")
    with pytest.raises(InputError, match="expected a mapping"):
        load(tmp_path / "b.yaml")


def test_shipped_configs_are_valid(root: Path) -> None:
    shipped = list((root / "config").rglob("*.yaml"))
    assert len(shipped) >= 5
    for path in shipped:
        assert load(path).study == path.stem


@pytest.mark.parametrize(("name", "generate"), [("config/schema.json", schema), ("docs/config.md", reference)])
def test_generated_files_are_up_to_date(root: Path, name: str, generate: Any) -> None:
    assert (root / name).read_text(encoding="utf-8") == generate(), f"{name} is out of date: run `make schema`"


def test_settings_carry_only_what_was_asked() -> None:
    study = validate(TREE)
    settings = Settings.from_json(settings_json(study, "seed", "probes.folds", "tasks.t"))
    assert settings.seed == 0
    assert settings["probes.folds"] == 4
    assert settings["tasks.t"] == study.tasks["t"]
    with pytest.raises(InputError, match="not given `engine`"):
        _ = settings.engine
    with pytest.raises(InputError, match="--settings"):
        Settings.from_json("{nonsense")


def test_names_may_contain_dots() -> None:
    tree = changed("checkpoints/llama-3.1-8b", TREE["checkpoints"]["m"])
    settings = Settings.from_json(settings_json(validate(tree), "checkpoints.llama-3.1-8b"))
    assert settings["checkpoints.llama-3.1-8b"].size == "8b"


def test_settings_see_only_their_keys() -> None:
    """The twin: a change elsewhere leaves a rule's parameter alone, a change inside does not."""
    before = settings_json(validate(TREE), "probes", "tasks.t")
    assert settings_json(validate(changed("engine/batch_tokens", 128)), "probes", "tasks.t") == before
    assert settings_json(validate(changed("tasks/t/question", "Bad?")), "probes", "tasks.t") != before


def test_optional_sections_resolve(root: Path) -> None:
    study = load(root / "config" / "organisms.yaml")
    shape = next(iter(study.organisms.shapes)) if study.organisms else ""
    settings = Settings.from_json(settings_json(study, f"organisms.shapes.{shape}", "organisms.base", "world"))
    assert settings[f"organisms.shapes.{shape}"].layers >= 1
    assert settings["organisms.base"].steps >= 1


def test_yaml_of_the_tests_is_what_people_write() -> None:
    assert validate(yaml.safe_load(yaml.safe_dump(TREE))) == validate(TREE)
