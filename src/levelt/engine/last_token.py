"""What reaches the last token, and from where: component decode, token lens, heads, and attention knockout.

Everything is read at the last position of a prompt and decoded into the logits of a few tokens with the final norm
frozen at the final residual, so that it adds up (as in `levelt.engine.lens`):

    embedding + sum over layers of (attention + mlp) + constant = linear logit.

token lens: the share of an attention block's contribution that comes from a set of positions,

    output projection (heads side by side: sum over the positions t of weight[h, last, t] * value[h, t]),

behind the block's own norm, frozen, where it has one. Over a partition of all positions, and the projection's bias, it
adds up to the attention decode. heads: the same with one head and all positions.

knockout: the last position's attention weights to some groups are set to zero in every layer and head, behind the
softmax (as published), or the others are scaled up to sum to one again (``renormalise``). Other positions are left
alone, so that what they have read from the groups still arrives. Each run is decoded with its own final norm's scale.

Only the last position differs between a plain run and its knockouts. So a prompt's other tokens are run once, and one
step with the last token, a row for each knockout, gives all the rest. Batches hold prompts of one length, unpadded.

Sources: Yan and Jia, EMNLP 2025 (token lens, knockout read on MLP outputs, heads).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, Int64
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

from levelt.engine.cache import changed_cache, run_prefix
from levelt.engine.run import Prompt
from levelt.files import InputError
from levelt.models import hooks
from levelt.models.linear import FrozenNorm, head_matrices
from levelt.models.loading import Decoder

KERNEL = "levelt_last_token"
REST = "rest"
"""The group of all positions that are in none of the groups asked for."""


@dataclass(frozen=True)
class Knockout:
    """Groups whose attention weights from the last position are removed; none removes nothing.

    renormalise: scale the remaining weights up, so that they sum to one again.
    """

    groups: tuple[str, ...]
    renormalise: bool = False


@dataclass(frozen=True)
class LastToken:
    """What was read, one row per prompt; all values are linear logits of the tokens asked for (before soft-capping).

    embedding, constant, linear: [n, tokens]; constant holds the biases of final norm and output matrix.
    attention, mlp: [n, layers, tokens].
    lens: [n, layers, groups + 1, tokens]; the last group is `REST`.
    weights: [n, layers, groups + 1] attention weight of the group, mean over heads.
    heads: [n, layers, heads, tokens].
    heads_as_released: the same through the transposed projection, as the paper's code has it; None where the
        projection is not square, so that it cannot be transposed by mistake.
    predicted: [n] the most likely next token.
    knocked_attention, knocked_mlp: [n, knockouts, layers, tokens]; knocked_linear: [n, knockouts, tokens].
    """

    embedding: Float32[np.ndarray, "n tokens"]
    constant: Float32[np.ndarray, "n tokens"]
    linear: Float32[np.ndarray, "n tokens"]
    attention: Float32[np.ndarray, "n layers tokens"]
    mlp: Float32[np.ndarray, "n layers tokens"]
    lens: Float32[np.ndarray, "n layers groups_and_rest tokens"]
    weights: Float32[np.ndarray, "n layers groups_and_rest"]
    heads: Float32[np.ndarray, "n layers heads tokens"]
    heads_as_released: Float32[np.ndarray, "n layers heads tokens"] | None
    predicted: Int64[np.ndarray, " n"]
    knocked_attention: Float32[np.ndarray, "n knockouts layers tokens"]
    knocked_mlp: Float32[np.ndarray, "n knockouts layers tokens"]
    knocked_linear: Float32[np.ndarray, "n knockouts tokens"]


@torch.inference_mode()
def read_last_token(
    decoder: Decoder,
    prompts: Sequence[Prompt],
    token_ids: Int[np.ndarray, "n tokens"] | Sequence[Sequence[int]],
    groups: Sequence[str],
    knockouts: Sequence[Knockout] = (),
    batch_tokens: int = 4096,
) -> LastToken:
    """Decode everything that is added to the residual stream at the last token of each prompt.

    Args:
        decoder: the loaded model; its attention kernel is exchanged for the last step and put back.
        prompts: any objects with ``input_ids`` and ``groups``.
        token_ids: [n, tokens] whose logits to decode, of each prompt.
        groups: token groups of the token lens, which every prompt must have and which do not overlap.
        knockouts: what to remove, each in a run of its own.
        batch_tokens: tokens of a batch: rows x length, or rows x (1 + knockouts), whichever is more.

    Raises:
        InputError: nothing to read, ids or groups that do not fit, overlapping groups, or a renormalised knockout that
            leaves the last position nothing to attend to.
    """
    ids = _check(decoder, prompts, token_ids, groups, knockouts)
    layers, heads = len(decoder.parts.layers), decoder.parts.heads
    count, tokens = ids.shape
    square = all(_transposed(module, heads) is not None for module in decoder.parts.projection)
    shapes: dict[str, tuple[int, ...]] = {
        "embedding": (),
        "constant": (),
        "linear": (),
        "attention": (layers,),
        "mlp": (layers,),
        "lens": (layers, len(groups) + 1),
        "heads": (layers, heads),
        "knocked_attention": (len(knockouts), layers),
        "knocked_mlp": (len(knockouts), layers),
        "knocked_linear": (len(knockouts),),
    } | ({"heads_as_released": (layers, heads)} if square else {})
    found: dict[str, Any] = {name: np.zeros((count, *inner, tokens), np.float32) for name, inner in shapes.items()}
    found["weights"] = np.zeros((count, layers, len(groups) + 1), np.float32)
    found["predicted"] = np.zeros(count, np.int64)
    lengths = np.array([len(prompt.input_ids) for prompt in prompts])
    for length in np.unique(lengths)[::-1].tolist():
        same = np.flatnonzero(lengths == length)
        size = max(1, batch_tokens // max(length, 1 + len(knockouts)))
        for begin in range(0, len(same), size):
            rows = same[begin : begin + size]
            batch = _Batch(decoder, [prompts[row] for row in rows], ids[rows], groups, knockouts)
            for name, values in batch.run().items():
                found[name][rows] = values.cpu().numpy()
    return LastToken(**({"heads_as_released": None} | found))


class _Batch:
    """Prompts of one length: the runs of a knockout follow the plain run, prompt by prompt."""

    def __init__(
        self,
        decoder: Decoder,
        prompts: Sequence[Prompt],
        ids: Int64[np.ndarray, "n tokens"],
        groups: Sequence[str],
        knockouts: Sequence[Knockout],
    ) -> None:
        self.decoder, self.parts = decoder, decoder.parts
        device = decoder.model.device
        self.count, self.variants = len(prompts), 1 + len(knockouts)
        self.prompts = torch.tensor([list(prompt.input_ids) for prompt in prompts], device=device)
        table = torch.zeros((self.count, len(groups) + 1, self.prompts.shape[1]), dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            for index, name in enumerate(groups):
                table[row, index, prompt.groups[name].start : prompt.groups[name].stop] = True
        table[:, -1] = ~table.any(1)
        self.members = table.to(device)
        self.removed = torch.zeros((self.variants, self.count, table.shape[2]), dtype=torch.bool, device=device)
        names = [*groups, REST]
        for index, knockout in enumerate(knockouts):
            for name in knockout.groups:
                self.removed[index + 1] |= self.members[:, names.index(name)]
        self.renormalised = torch.tensor([False, *(knockout.renormalise for knockout in knockouts)], device=device)
        norm = FrozenNorm.of(self.parts.final_norm, self.parts.norm)
        chosen = torch.from_numpy(ids).to(device)
        rows = cast(Tensor, self.parts.head.weight)[chosen].float()
        self.directions = norm.transposed(rows)  # [n, tokens, d]; the scale comes after the run
        constant = rows @ norm.bias
        bias = getattr(self.parts.head, "bias", None)
        if isinstance(bias, Tensor):
            constant = constant + bias.float()[chosen]
        self.constant = constant * self.parts.logit_scale
        self.norm = norm
        self.mixed: Float[Tensor, "n groups_and_rest heads width"] | None = None
        self.found: dict[str, list[Tensor]] = {
            name: [] for name in ("attention", "mlp", "lens", "weights", "heads", "heads_as_released")
        }
        self.embedding: list[Tensor] = []
        self.final: list[Tensor] = []

    def run(self) -> dict[str, Float[Tensor, "n ..."]]:
        """The prefix, the last step, and everything decoded."""
        model, parts = self.decoder.model, self.parts
        prefix = run_prefix(model, self.prompts[:, :-1])
        repeated = torch.arange(self.count, device=self.prompts.device).repeat(self.variants)
        cache = changed_cache(prefix, lambda states: states[repeated])
        with ExitStack() as stack:
            stack.enter_context(_listening(model, self))
            stack.enter_context(hooks.inputs(parts.layers[0], self.embedding.append))
            stack.enter_context(hooks.outputs(parts.layers[-1:], lambda _, hidden: self.final.append(hidden)))
            for name, modules in (("attention", parts.attention_contribution), ("mlp", parts.mlp_contribution)):
                stack.enter_context(hooks.outputs(modules, partial(self._keep, name)))
            for layer, projection in enumerate(parts.projection):
                stack.callback(projection.register_forward_hook(partial(self._split, layer)).remove)
            normed = model.base_model(
                input_ids=self.prompts[repeated, -1:], past_key_values=cache, use_cache=True
            ).last_hidden_state[: self.count, -1]
        return self._decoded(normed)

    def see(
        self,
        mixed: Float[Tensor, "rows 1 heads width"],
        weights: Float[Tensor, "rows heads 1 keys"],
        value: Float[Tensor, "rows key_value_heads keys width"],
    ) -> Float[Tensor, "rows 1 heads width"]:
        """Inside an attention block: keep what comes from each group, and remove what is knocked out."""
        count = self.count
        value = value.repeat_interleave(weights.shape[1] // value.shape[1], 1)
        row = weights[:count, :, 0]  # [n, heads, keys]
        member = self.members[..., -row.shape[-1] :].to(row.dtype)
        self.mixed = torch.einsum("nhk,ngk,nhkw->nghw", row.float(), member.float(), value[:count].float())
        self.found["weights"].append(torch.einsum("nhk,ngk->ng", row.float(), member.float()) / row.shape[1])
        if self.variants == 1:
            return mixed
        kept = weights.view(self.variants, count, *weights.shape[1:])
        kept = kept.masked_fill(self.removed[..., None, None, -row.shape[-1] :], 0.0)
        total = kept.sum(-1, keepdim=True)
        if bool((total[self.renormalised] == 0).any()):
            raise InputError("a knockout leaves the last position nothing to attend to inside the attention window")
        kept = torch.where(self.renormalised[:, None, None, None, None], kept / total, kept)
        # the plain run and every knockout go through the same product, so that they differ in the weights alone
        return (kept.flatten(0, 1) @ value).transpose(1, 2).contiguous()

    def _keep(self, name: str, _: int, hidden: Float[Tensor, "rows 1 d"]) -> None:
        vectors = hidden[:, -1].float().view(self.variants, self.count, -1)
        self.found[name].append(torch.einsum("vnd,ntd->nvt", vectors, self.directions))

    def _split(self, layer: int, projection: nn.Module, inputs: tuple[Tensor, ...], projected: Tensor) -> None:
        parts, count = self.parts, self.count
        matrices = head_matrices(projection, parts.heads)
        norm = parts.attention_contribution[layer]
        directions, scale = self.directions, torch.ones((count, 1), device=projected.device)
        if norm is not parts.attention[layer]:
            frozen = FrozenNorm.of(norm, parts.norm)
            directions, scale = frozen.transposed(directions), frozen.scale(projected[:count, -1])
        heads = inputs[0][:count, -1].float().view(count, parts.heads, -1)
        through = torch.einsum("ntd,hwd->nthw", directions, matrices)
        assert self.mixed is not None
        self.found["lens"].append(torch.einsum("nghw,nthw->ngt", self.mixed, through) * scale[..., None])
        self.found["heads"].append(torch.einsum("nhw,nthw->nht", heads, through) * scale[..., None])
        transposed = _transposed(projection, parts.heads)
        if transposed is not None:
            through = torch.einsum("ntd,hwd->nthw", directions, transposed)
            self.found["heads_as_released"].append(torch.einsum("nhw,nthw->nht", heads, through) * scale[..., None])

    def _decoded(self, normed: Float[Tensor, "n d"]) -> dict[str, Float[Tensor, "n ..."]]:
        parts, count = self.parts, self.count
        final = self.final[0][:, -1].float().view(self.variants, count, -1)
        scale = self.norm.scale(final) * parts.logit_scale  # [variants, n, 1]
        first = self.embedding[0][:count, -1].float()
        linear = torch.einsum("vnd,ntd->nvt", final, self.directions) * scale.transpose(0, 1) + self.constant[:, None]
        found = {name: torch.stack(values, 1) for name, values in self.found.items() if values}
        done: dict[str, Tensor] = {"weights": found["weights"], "constant": self.constant}
        done["embedding"] = torch.einsum("nd,ntd->nt", first, self.directions) * scale[0]
        done["linear"], done["knocked_linear"] = linear[:, 0], linear[:, 1:]
        for name in ("attention", "mlp"):  # [n, layers, variants, tokens]
            values = found[name] * scale.transpose(0, 1)[:, None]
            done[name], done[f"knocked_{name}"] = values[:, :, 0], values[:, :, 1:].transpose(1, 2)
        for name in {"lens", "heads", "heads_as_released"} & set(found):
            done[name] = found[name] * scale[0][:, None, None]
        done["predicted"] = parts.head(normed).argmax(-1)
        return done


def _transposed(projection: nn.Module, heads: int) -> Float[Tensor, "heads width d"] | None:
    """The heads' matrices as the released code of the paper takes them: rows of the weight instead of columns."""
    matrix = head_matrices(projection, heads).flatten(0, 1)
    return matrix.T.reshape(heads, -1, matrix.shape[0]) if matrix.shape[0] == matrix.shape[1] else None


def _check(
    decoder: Decoder,
    prompts: Sequence[Prompt],
    token_ids: Int[np.ndarray, "n tokens"] | Sequence[Sequence[int]],
    groups: Sequence[str],
    knockouts: Sequence[Knockout],
) -> Int64[np.ndarray, "n tokens"]:
    """The token ids as an array; refuses what cannot be read, before any work."""
    try:
        ids = np.asarray(token_ids, dtype=np.int64)
    except (TypeError, ValueError):  # ragged
        ids = np.empty(0, np.int64)
    if not prompts or ids.ndim != 2 or len(ids) != len(prompts) or not ids.size:
        raise InputError(f"expected a list of token ids for each of {len(prompts)} prompts, all of one length")
    vocabulary, longest = decoder.model.config.vocab_size, decoder.model.config.max_position_embeddings
    if ids.min() < 0 or ids.max() >= vocabulary:
        raise InputError(f"token_ids holds ids outside the vocabulary of {vocabulary}")
    names = [*groups, REST]
    absent = sorted({name for knockout in knockouts for name in knockout.groups} - set(names))
    if absent or len(set(names)) < len(names):
        raise InputError(f"groups {names}: each once, and those knocked out among them; {absent or 'one'} is not")
    for row, prompt in enumerate(prompts):
        length = len(prompt.input_ids)
        if not 0 < length <= longest:
            raise InputError(f"prompt {row} has {length} tokens, expected 1 to {longest}")
        if min(prompt.input_ids) < 0 or max(prompt.input_ids) >= vocabulary:
            raise InputError(f"prompt {row} has token ids outside the vocabulary of {vocabulary}")
        owner = np.full(length, -1)
        for index, name in enumerate(groups):
            if name not in prompt.groups:
                raise InputError(f"prompt {row} has no token group {name}, only {', '.join(prompt.groups.names)}")
            span = prompt.groups[name]
            if not 0 <= span.start < span.stop <= length:
                raise InputError(f"prompt {row}: {name} is [{span.start}, {span.stop}) of {length} tokens")
            if (owner[span.start : span.stop] >= 0).any():
                raise InputError(f"prompt {row}: {name} overlaps another group, so groups would not add up")
            owner[span.start : span.stop] = index
        for knockout in knockouts:
            left = set(owner.tolist()) - {-1 if name == REST else names.index(name) for name in knockout.groups}
            if knockout.renormalise and not left:
                raise InputError(f"prompt {row}: nothing is left to attend to, so weights cannot be renormalised")
    return ids


# --- what transformers calls --------------------------------------------------------------------------------------

_IN_FORCE: ContextVar[_Batch | None] = ContextVar("levelt_last_token", default=None)


@contextmanager
def _listening(model: PreTrainedModel, batch: _Batch) -> Iterator[None]:
    """The last step in this module's kernel; the ordinary one is back afterwards, whatever happens."""
    ordinary = model.config._attn_implementation
    token = _IN_FORCE.set(batch)
    try:
        model.set_attn_implementation(KERNEL)
        if model.config._attn_implementation != KERNEL:
            raise InputError(f"{model.config.model_type} models have no attention interface to read weights from")
        yield
    finally:
        model.set_attn_implementation(ordinary)
        _IN_FORCE.reset(token)


def _kernel(
    module: nn.Module,
    query: Float[Tensor, "rows heads 1 width"],
    key: Float[Tensor, "rows key_value_heads keys width"],
    value: Float[Tensor, "rows key_value_heads keys width"],
    attention_mask: Bool[Tensor, "rows 1 1 keys"] | None,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """The model's own eager attention of one query position, whose weights are seen, and changed where knocked out."""
    batch = _IN_FORCE.get()
    if batch is None:
        raise RuntimeError("this attention kernel runs only inside `read_last_token`")
    run: Callable[..., tuple[Tensor, Tensor]] = sys.modules[type(module).__module__].eager_attention_forward  # type: ignore[attr-defined]
    mixed, weights = run(module, query, key, value, attention_mask, **others)
    return batch.see(mixed, weights, value), weights


AttentionInterface.register(KERNEL, _kernel)
AttentionMaskInterface.register(KERNEL, eager_mask)
