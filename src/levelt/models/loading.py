"""Loading a decoder and its tokenizer from a folder or the hub, and describing a checkpoint.

Safetensors only, no remote code, and nothing half-loaded: missing weights are an error. torch is imported when a
model is loaded, so that describing a checkpoint does not pay for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from levelt.config import Checkpoint
from levelt.files import InputError, read_json, sha256
from levelt.models.anatomy import Parts, anatomy_of, locate
from levelt.models.manifest import folder_manifest
from levelt.randomness import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HUB = "hub:"


@dataclass(frozen=True)
class Decoder:
    """A loaded checkpoint: model (in evaluation mode), its parts, tokenizer, and the ids that end an answer."""

    model: PreTrainedModel
    parts: Parts
    tokenizer: PreTrainedTokenizerBase
    stop_ids: tuple[int, ...]


def checkpoint_manifest(checkpoint_id: str, checkpoint: Checkpoint, seed: int) -> dict[str, Any]:
    """The manifest (see `folder_manifest`) of a checkpoint of the config; one of the hub is downloaded once.

    ``random_weights`` in it is the seed of the weights that replace the stored ones, derived from the study's seed;
    null for the stored ones.

    Raises:
        InputError: the checkpoint cannot be found or cannot be used; one sentence says why.
    """
    folder, commit = resolve(checkpoint.path, checkpoint.revision)
    manifest = folder_manifest(
        checkpoint_id,
        folder,
        checkpoint.family,
        checkpoint.size,
        checkpoint.stage,
        recorded_path=checkpoint.path if commit else None,
        revision=commit,
    )
    drawn = derive_seed(seed, "random weights", checkpoint_id) if checkpoint.random_weights else None
    return manifest | {"random_weights": drawn}


def resolve(path: str, revision: str | None = None) -> tuple[Path, str | None]:
    """The local folder of a checkpoint, and its commit if it is from the hub (downloaded into the hub's cache).

    Raises:
        InputError: the hub has no such repository or revision, or cannot be reached.
    """
    if not path.startswith(HUB):
        return Path(path), None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository = path.removeprefix(HUB)

    def download(*patterns: str) -> Path:
        # "*/*" keeps copies of the weights in other formats, which live in subfolders, where they are
        return Path(
            snapshot_download(repository, revision=revision, allow_patterns=list(patterns), ignore_patterns=["*/*"])
        )

    try:
        folder = download("config.json")
        if (folder / "config.json").is_file():  # refuse before gigabytes are downloaded
            anatomy_of(read_json(folder / "config.json"), f"{path}: config.json")
        folder = download("*.json", "*.jinja", "*.model", "merges.txt", "*.safetensors")
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        kind = type(error).__name__
        raise InputError(f"{path} at {revision}: cannot be downloaded ({kind}: {_reason(error)})") from None
    return folder, folder.name


def verify(manifest: Mapping[str, Any], folder: Path) -> None:
    """Check that a folder still holds the files that its manifest was made of.

    Raises:
        InputError: names the first file that is missing or differs.
    """
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise InputError(f"{path}: missing, but the manifest of {manifest['id']} names it")
        if path.stat().st_size != expected["bytes"] or sha256(path) != expected["sha256"]:
            raise InputError(f"{path}: differs from the manifest of {manifest['id']}; make the manifest again")


def load_model(
    source: Mapping[str, Any] | str | Path,
    dtype: str = "float32",
    device: str = "auto",
    attention: str = "sdpa",
    revision: str | None = None,
) -> Decoder:
    """Load a decoder for reading, and check it (`levelt.models.selfcheck`).

    Args:
        source: a manifest (its files are verified; its ``random_weights`` are drawn), a folder, or ``hub:owner/name``.
        dtype: float32 or bfloat16.
        device: cpu, cuda, or auto (cuda where there is one).
        attention: sdpa or eager.
        revision: hub commit, when the source is not a manifest.

    Raises:
        InputError: the checkpoint is not usable; one sentence says why.
    """
    import torch

    from levelt.models.selfcheck import self_check

    drawn = None
    if isinstance(source, Mapping):
        missing = [key for key in ("id", "path", "revision", "files") if key not in source]
        if missing:
            raise InputError(f"model manifest: `{missing[0]}` is missing")
        folder, _ = resolve(source["path"], source["revision"])
        verify(source, folder)
        drawn = source.get("random_weights")
    else:
        folder, _ = resolve(str(source), revision)
        folder_manifest("checkpoint", folder, "", "", "")  # for its errors
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise InputError("engine.device is cuda, but torch sees no CUDA device here")
    tokenizer = _tokenizer(folder)
    model = _stored(folder, dtype, attention) if drawn is None else _untrained(folder, dtype, attention, drawn)
    found = model.config._attn_implementation
    if found != attention:
        raise InputError(f"{folder}: asked for {attention} attention, but {model.config.model_type} uses {found}")
    if found == "sdpa" and getattr(model.config, "attn_logit_softcapping", None):
        # before 5.23, transformers takes sdpa here and leaves the soft-capping out
        raise InputError(f"{folder}: sdpa attention has no soft-capping, which this model needs; choose eager")
    if len(tokenizer) > model.config.vocab_size:
        raise InputError(
            f"{folder}: the tokenizer has {len(tokenizer)} entries, but the model only {model.config.vocab_size}"
        )
    model = model.to(device).eval()
    parts = locate(model)
    self_check(model, parts)
    return Decoder(model, parts, tokenizer, stop_ids(model, tokenizer))


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Every token id that ends an answer: the tokenizer's, and all of the generation config's.

    Instruct models have several, such as end of turn beside end of text.
    """
    found: list[int] = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    configured = getattr(model.generation_config, "eos_token_id", None)
    if configured is not None:
        found += configured if isinstance(configured, list) else [configured]
    return tuple(sorted(set(found)))


def _stored(folder: Path, dtype: str, attention: str) -> PreTrainedModel:
    """The model with the weights of its folder."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (ValueError, ImportError) as error:
        raise InputError(f"{folder}: cannot be loaded with {attention} attention ({_reason(error)})") from None
    except (OSError, RuntimeError, KeyError) as error:
        raise InputError(f"{folder}: cannot be loaded ({_reason(error)})") from None
    if report["missing_keys"]:
        absent = sorted(report["missing_keys"])
        raise InputError(f"{folder}: {len(absent)} weights are missing from the safetensors files, such as {absent[0]}")
    return model


def _untrained(folder: Path, dtype: str, attention: str, seed: int) -> PreTrainedModel:
    """The model with new weights, drawn in float32 on the CPU by its own initialiser."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)
        except (ValueError, ImportError) as error:
            raise InputError(f"{folder}: cannot be built with {attention} attention ({_reason(error)})") from None
    if (folder / "generation_config.json").is_file():  # it may name more tokens that end an answer
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model.to(getattr(torch, dtype))


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception for a broken tokenizer.json
        raise InputError(f"{folder}: the tokenizer cannot be loaded ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    """The first line of an error of a library."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
