"""Loading, manifests, the anatomy table and the load-time self-check."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from levelt.cli import main
from levelt.config import Checkpoint
from levelt.files import InputError
from levelt.models.anatomy import ARCHITECTURES, locate
from levelt.models.loading import checkpoint_manifest, load_model, resolve
from levelt.models.manifest import folder_manifest, tensor_shapes
from levelt.models.selfcheck import readout, self_check
from models_local import FAMILIES, kernel, save, tiny


@cache
def model(family: str):
    return tiny(family)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(model("llama"), tmp_path / "tiny")


# --- anatomy and self-check ----------------------------------------------------------------------------------------


def test_every_supported_architecture_has_a_tiny_model():
    assert set(FAMILIES) == set(ARCHITECTURES)


@pytest.mark.parametrize("family", FAMILIES)
def test_self_check_passes(family: str):
    self_check(model(family), locate(model(family)))


@pytest.mark.parametrize("family", FAMILIES)
def test_self_check_passes_in_bfloat16(family: str):
    half = tiny(family).to(torch.bfloat16)
    self_check(half, locate(half))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["olmo2", "gemma2", "gemma3_text"])
def test_self_check_refuses_raw_attention_outputs_of_models_that_norm_them(family: str, dtype: torch.dtype):
    """Twin: the same models with the table of Llama (trap 11)."""
    wrong = tiny(family).to(dtype)
    parts = locate(wrong)
    with pytest.raises(InputError, match="residual plus contributions differ from the residual after layer 1"):
        self_check(wrong, replace(parts, attention_contribution=parts.attention))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox"])
def test_self_check_refuses_a_wrong_final_norm(family: str):
    parts = replace(locate(model(family)), final_norm=nn.Identity())
    with pytest.raises(InputError, match="differs from the logits"):
        self_check(model(family), parts)


def test_self_check_refuses_a_missing_softcap():
    parts = locate(model("gemma2"))
    assert parts.softcap
    with pytest.raises(InputError, match="differs from the logits"):
        self_check(model("gemma2"), replace(parts, softcap=None, final_norm=nn.Sequential(parts.final_norm, Scale(9))))


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * self.factor


@pytest.mark.parametrize(
    ("family", "norm"), [("llama", "rms+1"), ("gemma3_text", "rms"), ("gpt2", "rms"), ("cohere", "rms")]
)
def test_self_check_refuses_a_wrong_kind_of_norm(family: str, norm: str):
    parts = replace(locate(model(family)), norm=norm)
    with pytest.raises(InputError, match="the final norm is not the rms"):
        self_check(model(family), parts)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma2"])
def test_self_check_refuses_heads_that_are_not_what_attention_adds(family: str):
    """Twins: projections of other layers."""
    parts = locate(model(family))
    with pytest.raises(InputError, match="heads of layer 1 add up to something else than its attention contribution"):
        self_check(model(family), replace(parts, projection=parts.projection[::-1]))


def test_self_check_refuses_a_missing_logit_scale():
    parts = locate(model("cohere"))
    assert parts.logit_scale == 0.5
    with pytest.raises(InputError, match="differs from the logits"):
        self_check(model("cohere"), replace(parts, logit_scale=1.0))


def test_self_check_refuses_a_wrong_number_of_layers():
    parts = locate(model("llama"))
    with pytest.raises(InputError, match="found 2 layers, the config says 3"):
        self_check(model("llama"), replace(parts, layers=parts.layers[:2]))


def test_self_check_leaves_no_hooks():
    self_check(model("qwen2"), locate(model("qwen2")))
    with pytest.raises(InputError):
        self_check(model("qwen2"), replace(locate(model("qwen2")), final_norm=nn.Identity()))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model("qwen2").modules())


def test_readout_gives_the_models_logits():
    ids = torch.tensor([[5, 9, 11]])
    gemma = model("gemma2")
    with torch.inference_mode():
        seen: list[torch.Tensor] = []
        handle = gemma.model.layers[-1].register_forward_hook(lambda _m, _i, output: seen.append(output))
        logits = gemma(ids).logits
        handle.remove()
        assert torch.allclose(readout(locate(gemma), seen[0]), logits, atol=1e-6)


# --- manifests -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_manifest_describes_the_model(family: str, tmp_path: Path):
    save(model(family), tmp_path)
    manifest = folder_manifest("x", tmp_path, "fam", "s", "base")
    assert manifest["parameters"] == sum(parameter.numel() for parameter in model(family).parameters())
    assert (manifest["layers"], manifest["hidden_size"], manifest["vocabulary"]) == (3, 32, 97)
    assert manifest["architecture"] == family
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= set(manifest["files"])
    assert manifest == folder_manifest("x", tmp_path, "fam", "s", "base")


def test_manifest_counts_a_stored_tied_matrix_once(tmp_path: Path):
    from safetensors.torch import load_file, save_file

    save(tiny("qwen2", tie_word_embeddings=True), tmp_path)
    expected = folder_manifest("x", tmp_path, "f", "s", "base")["parameters"]
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(weights, tmp_path / "model.safetensors")
    assert folder_manifest("x", tmp_path, "f", "s", "base")["parameters"] == expected


def test_manifest_records_a_path_relative_to_the_working_directory(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder.parent)
    assert folder_manifest("x", folder, "f", "s", "base")["path"] == "tiny"
    assert folder_manifest("x", "tiny", "f", "s", "base")["path"] == "tiny"
    monkeypatch.chdir(folder)
    assert folder_manifest("x", folder, "f", "s", "base")["path"] == "."


def test_manifest_covers_the_shards_of_an_index(tmp_path: Path):
    save(model("llama"), tmp_path)
    whole = folder_manifest("x", tmp_path, "f", "s", "base")
    sharded = tmp_path / "sharded"
    save(model("llama"), sharded)
    (sharded / "model.safetensors").unlink()
    model("llama").save_pretrained(sharded, max_shard_size="40KB")
    manifest = folder_manifest("x", sharded, "f", "s", "base")
    shards = [name for name in manifest["files"] if name.endswith(".safetensors")]
    assert len(shards) > 1
    assert "model.safetensors.index.json" in manifest["files"]
    assert manifest["parameters"] == whole["parameters"]
    load_model(manifest, device="cpu")
    (sharded / shards[0]).unlink()
    with pytest.raises(InputError, match=f"{shards[0]} is missing"):
        folder_manifest("x", sharded, "f", "s", "base")


def test_checkpoint_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    entry = {"path": str(folder), "family": "llama", "size": "xs", "stage": "sft"}
    arguments = ["checkpoint", "--id", "mine", "--out", str(tmp_path / "out/manifest.json"), "--settings"]
    assert main([*arguments, json.dumps({"seed": 7, "checkpoints.mine": entry})]) == 0
    written = json.loads((tmp_path / "out/manifest.json").read_text())
    assert written == folder_manifest("mine", folder, "llama", "xs", "sft") | {"random_weights": None}
    assert list(written)[:6] == ["id", "path", "revision", "family", "size", "stage"]
    assert main([*arguments, json.dumps({"seed": 7, "checkpoints.mine": entry | {"path": "nowhere"}})]) == 2
    assert capsys.readouterr().err.strip() == "levelt checkpoint: checkpoint mine: no such folder: nowhere"


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "olmo2"])
def test_random_weights_keep_everything_but_the_weights(family: str, tmp_path: Path):
    """The control of an untrained model: the same seed gives the same weights, another one others; no draw leaks."""
    folder = save(model(family), tmp_path / "tiny", end=[2, 5])
    entry = Checkpoint(path=str(folder), family="f", size="s", stage="untrained", random_weights=True)
    before = torch.random.get_rng_state()
    first, again, other = (
        load_model(checkpoint_manifest("x", entry, seed), device="cpu", attention=kernel(family)) for seed in (7, 7, 8)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    stored = load_model(folder, device="cpu", attention=kernel(family))
    assert first.model.config.to_dict() == stored.model.config.to_dict()
    assert first.stop_ids == stored.stop_ids == (2, 5)
    name = next(name for name, value in stored.model.named_parameters() if value.dim() > 1)
    weights = [loaded.model.get_parameter(name) for loaded in (first, again, other, stored)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2]) and not torch.equal(weights[0], weights[3])
    spread = stored.model.config.initializer_range
    assert 0.8 * spread < float(weights[0].detach().std()) < 1.2 * spread
    half = load_model(checkpoint_manifest("x", entry, 7), "bfloat16", "cpu", kernel(family))
    assert torch.equal(half.model.get_parameter(name), weights[0].to(torch.bfloat16))


def test_random_weights_are_a_stage_of_their_own():
    with pytest.raises(ValueError, match="has stage `untrained`, not 'base'"):
        Checkpoint(path="x", family="f", size="s", stage="base", random_weights=True)


# --- hub -----------------------------------------------------------------------------------------------------------


def test_hub_checkpoint_records_the_commit(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    snapshot = tmp_path / "snapshots" / "0123abc"
    snapshot.parent.mkdir()
    folder.rename(snapshot)
    asked: list[dict] = []

    def download(repository: str, **options: object) -> str:
        asked.append({"repository": repository, **options})
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    entry = Checkpoint(path="hub:lab/model", revision="main", family="f", size="s", stage="base")
    manifest = checkpoint_manifest("x", entry, 0)
    assert (manifest["path"], manifest["revision"]) == ("hub:lab/model", "0123abc")
    assert {ask["repository"] for ask in asked} == {"lab/model"}
    assert asked[0]["allow_patterns"] == ["config.json"]
    assert not any(".bin" in pattern for ask in asked for pattern in ask["allow_patterns"])
    load_model(manifest, device="cpu")
    assert asked[-1]["revision"] == "0123abc"


def test_hub_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("cannot reach the hub\nlong story")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(InputError, match=r"hub:lab/model at abc: cannot be downloaded .*cannot reach the hub") as error:
        resolve("hub:lab/model", "abc")
    assert "\n" not in str(error.value)

    def config_only(*_: object, allow_patterns: list[str], **__: object) -> str:
        assert allow_patterns == ["config.json"], "weights were asked for before the architecture was known"
        (tmp_path / "config.json").write_text('{"model_type": "t5", "is_encoder_decoder": true}')
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", config_only)
    with pytest.raises(InputError, match="encoder-decoder"):
        resolve("hub:lab/model", "abc")


# --- refusals ------------------------------------------------------------------------------------------------------


def edit(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in (config | changes).items() if v is not None}))


def damage(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    match how:
        case "no config":
            (folder / "config.json").unlink()
        case "broken config":
            (folder / "config.json").write_text("{")
        case "no weights":
            weights.unlink()
        case "bin":
            weights.rename(folder / "pytorch_model.bin")
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "not safetensors":
            weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
        case "no tokenizer":
            (folder / "tokenizer.json").unlink()
        case "broken tokenizer":
            (folder / "tokenizer.json").write_text("{}")
        case "unsupported":
            edit(folder, model_type="mamba")
        case "encoder-decoder":
            edit(folder, is_encoder_decoder=True)
        case "no type":
            edit(folder, model_type=None)
        case "quantised":
            edit(folder, quantization_config={"quant_method": "fp8"})
        case "missing tensor":
            from safetensors.torch import load_file, save_file

            tensors = load_file(weights)
            del tensors["model.layers.1.mlp.up_proj.weight"]
            save_file(tensors, weights)
        case "wrong shape":
            edit(folder, intermediate_size=64)
        case "small vocabulary":
            edit(folder, vocab_size=50)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("no config", "no config.json"),
        ("broken config", "config.json, line 1: not valid JSON"),
        ("no weights", "no weights, expected model.safetensors"),
        ("bin", "the weights are in pytorch_model.bin, and only safetensors is accepted; convert"),
        ("truncated", "not a whole safetensors file"),
        ("not safetensors", "not a whole safetensors file"),
        ("no tokenizer", "no tokenizer, expected one of tokenizer.json"),
        ("broken tokenizer", "the tokenizer cannot be loaded"),
        ("unsupported", "architecture 'mamba' is not supported; supported are cohere, gemma2, gemma3_text, gpt2"),
        ("encoder-decoder", "is an encoder-decoder"),
        ("no type", "no `model_type`"),
        ("quantised", "quantised weights are not supported"),
        ("missing tensor", "1 weights are missing .* model.layers.1.mlp.up_proj.weight"),
        ("wrong shape", "cannot be loaded"),
        ("small vocabulary", "cannot be loaded"),
    ],
)
def test_unusable_checkpoints_are_refused_in_one_sentence(folder: Path, how: str, sentence: str):
    damage(folder, how)
    with pytest.raises(InputError, match=sentence) as error:
        load_model(folder, device="cpu")
    assert "\n" not in str(error.value)


def test_a_changed_folder_no_longer_fits_its_manifest(folder: Path):
    manifest = folder_manifest("x", folder, "f", "s", "base")
    load_model(manifest, device="cpu")
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(InputError, match=r"model.safetensors: differs from the manifest of x"):
        load_model(manifest, device="cpu")
    weights.unlink()
    with pytest.raises(InputError, match=r"model.safetensors: missing"):
        load_model(manifest, device="cpu")


def test_loading(folder: Path):
    decoder = load_model(folder, device="cpu")
    assert decoder.model.dtype == torch.float32 and not decoder.model.training
    assert decoder.model.config._attn_implementation == "sdpa"
    assert load_model(folder, device="cpu", attention="eager").model.config._attn_implementation == "eager"
    assert load_model(folder, device="cpu", dtype="bfloat16").model.dtype == torch.bfloat16
    ids = torch.tensor([[5, 9, 11]])
    with torch.inference_mode():
        assert torch.equal(decoder.model(ids).logits, model("llama")(ids).logits)


def test_a_kernel_the_architecture_lacks_is_refused(tmp_path: Path):
    save(tiny("gemma2"), tmp_path)
    assert kernel("gemma2") == "eager"
    load_model(tmp_path, device="cpu", attention="eager")
    with pytest.raises(InputError, match="sdpa attention"):
        load_model(tmp_path, device="cpu", attention="sdpa")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_cuda_without_a_gpu_is_refused(folder: Path):
    with pytest.raises(InputError, match="torch sees no CUDA device"):
        load_model(folder, device="cuda")


def test_every_end_token_counts(tmp_path: Path):
    save(tiny("llama"), tmp_path, end=[7, 9])
    assert load_model(tmp_path, device="cpu").stop_ids == (2, 7, 9)


def test_describing_a_checkpoint_does_not_import_torch():
    code = "import sys, levelt.models.manifest, levelt.commands.checkpoint; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_tensor_shapes_come_from_the_header(folder: Path):
    assert tensor_shapes(folder / "model.safetensors")["model.norm.weight"] == [32]
