"""The manifest of a checkpoint folder: its shape, and a hash of every file that decides what it computes.

No torch here.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from levelt.files import InputError, manifest_of, read_json
from levelt.models.anatomy import anatomy_of

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
_UNSAFE = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.msgpack", "*.h5")
_BUFFERS = ("inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")
"""Endings of tensor names that old checkpoints store but that are not parameters (masks, rotary tables)."""


def weight_files(folder: str | Path) -> list[Path]:
    """The safetensors files that hold a folder's weights: model.safetensors, or the shards its index names.

    Raises:
        InputError: there are none, or a shard is missing.
    """
    folder = Path(folder)
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if index.is_file():
        shards = [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
        missing = [shard.name for shard in shards if not shard.is_file()]
        if missing:
            raise InputError(f"{index}: names {len(shards)} shards, but {missing[0]} is missing")
        return shards
    unsafe = sorted(path.name for pattern in _UNSAFE for path in folder.glob(pattern))
    if unsafe:
        raise InputError(
            f"{folder}: the weights are in {unsafe[0]}, and only safetensors is accepted; convert once, if you "
            f"trust it, with AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
        )
    raise InputError(f"{folder}: no weights, expected model.safetensors (or model.safetensors.index.json and shards)")


def folder_manifest(
    id: str,
    path: str | Path,
    family: str,
    size: str,
    stage: str,
    *,
    recorded_path: str | None = None,
    revision: str | None = None,
) -> dict[str, Any]:
    """Describe a checkpoint folder from its config and its safetensors headers; no weight is loaded.

    Args:
        id, family, size, stage: names of the checkpoint in tables.
        path: the folder. It is recorded relative to the working directory where it lies below it.
        recorded_path, revision: what to record instead of the folder, for a hub checkpoint and its commit.

    Returns:
        {id, path, revision, family, size, stage, parameters, layers, hidden_size, vocabulary, architecture,
        files: {name: {sha256, bytes}}}; the same folder always gives the same manifest.

    Raises:
        InputError: the folder is missing, lacks config, weights or tokenizer, or is of an unsupported kind.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"checkpoint {id}: no such folder: {folder}")
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: no config.json, so this is not a Hugging Face checkpoint")
    config = read_json(folder / "config.json")
    where = str(folder / "config.json")
    anatomy = anatomy_of(config, where)
    if config.get("quantization_config"):
        raise InputError(f"{where}: quantised weights are not supported (`quantization_config`)")
    weights = weight_files(folder)
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise InputError(f"{folder}: no tokenizer, expected one of {', '.join(_TOKENIZERS)}")
    names = [name for name in _COMPANIONS if (folder / name).is_file()]
    index = folder / "model.safetensors.index.json"
    if index.is_file() and (folder / "model.safetensors") not in weights:
        names.append(index.name)
    files = {name: folder / name for name in sorted([*names, *(weight.name for weight in weights)])}
    return {
        "id": id,
        "path": recorded_path or _relative(folder),
        "revision": revision,
        "family": family,
        "size": size,
        "stage": stage,
        "parameters": _parameters(weights, tied=bool(config.get("tie_word_embeddings", anatomy.tied))),
        "layers": _number(config, where, "num_hidden_layers", "n_layer"),
        "hidden_size": _number(config, where, "hidden_size", "n_embd"),
        "vocabulary": _number(config, where, "vocab_size"),
        "architecture": config["model_type"],
        "files": manifest_of(files),
    }


def tensor_shapes(path: str | Path) -> dict[str, list[int]]:
    """{tensor name: shape} from the header of a safetensors file; its data is not read.

    Raises:
        InputError: the file is not safetensors, or is shorter than its header says.
    """
    path = Path(path)
    try:
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if not 0 < length <= path.stat().st_size - 8:
                raise ValueError("the header is longer than the file")
            header = json.loads(handle.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        found = path.stat().st_size - 8 - length
        if found != end:
            raise ValueError(f"expected {end} bytes of data, found {found}")
        return {name: list(entry["shape"]) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a whole safetensors file ({error})") from None


def _parameters(weights: list[Path], tied: bool) -> int:
    """Parameters of the model: every stored tensor but buffers, and a tied output matrix only once."""
    shapes: dict[str, list[int]] = {}
    for path in weights:
        shapes |= tensor_shapes(path)
    heads = ("lm_head.weight", "embed_out.weight") if tied else ()
    return sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith(_BUFFERS) and name not in heads)


def _number(config: dict[str, Any], where: str, *names: str) -> int:
    for name in names:
        if isinstance(config.get(name), int):
            return int(config[name])
    raise InputError(f"{where}: `{names[0]}` is missing")


def _relative(folder: Path) -> str:
    absolute, here = folder.absolute(), Path.cwd()
    return absolute.relative_to(here).as_posix() if absolute.is_relative_to(here) else folder.as_posix()
