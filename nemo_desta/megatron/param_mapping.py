"""The table of Hugging Face tensors and megatron-core parameters, and the part that a tensor-parallel rank holds.

Loading and export use the same pieces in opposite directions, so that a round trip is exact.
Letters: G key-value groups, P query heads per group, H head size, D LLM width, F width of the MLP, V vocabulary.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PretrainedConfig

Slices = tuple[slice, ...]

#: Covered architectures (``model_type``) and what they have beyond norms, projections and a gated MLP without biases.
ARCHITECTURES = {"llama": frozenset(), "qwen2": frozenset({"qkv_bias"}), "qwen3": frozenset({"qk_norm"})}

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class Row:
    """One line: a megatron-core parameter (``{}`` stands for the layer), its Hugging Face tensors, and how it is cut.

    ``how``: what one rank holds. "whole": everything. "columns": an equal share of axis 1. "gate_up": an equal share
    of the gate's rows, then the same of the up projection's. "qkv": an equal share of the groups (with more ranks than
    groups: a share of one, with a copy of its key and value); the rows of a group are its query heads, its key, its
    value. "vocab": an equal share of the rows after padding; padded rows are zero.
    ``needs``: the feature without which an LLM has no such tensor. ``fused``: the name in TransformerEngine layers
    where it differs: they keep a norm inside the linear layer that follows.
    """

    local: str
    parts: tuple[str, ...]
    how: str
    needs: str = ""
    fused: str = ""


def _layer(local: str, parts: Sequence[str], how: str, *, needs: str = "", fused: str = "") -> Row:
    own, theirs = "decoder.layers.{}.", "model.layers.{}."
    return Row(own + local, tuple(theirs + part for part in parts), how, needs, own + fused if fused else "")


_QKV, _POST_NORM = "self_attention.linear_qkv", "post_attention_layernorm"
TABLE: tuple[Row, ...] = (
    Row("embedding.word_embeddings.weight", (EMBEDDINGS,), "vocab"),
    _layer("input_layernorm.weight", ["input_layernorm.weight"], "whole", fused=f"{_QKV}.layer_norm_weight"),
    _layer(f"{_QKV}.weight", [f"self_attn.{x}_proj.weight" for x in "qkv"], "qkv"),
    _layer(f"{_QKV}.bias", [f"self_attn.{x}_proj.bias" for x in "qkv"], "qkv", needs="qkv_bias"),
    _layer("self_attention.q_layernorm.weight", ["self_attn.q_norm.weight"], "whole", needs="qk_norm"),
    _layer("self_attention.k_layernorm.weight", ["self_attn.k_norm.weight"], "whole", needs="qk_norm"),
    _layer("self_attention.linear_proj.weight", ["self_attn.o_proj.weight"], "columns"),
    _layer("pre_mlp_layernorm.weight", [f"{_POST_NORM}.weight"], "whole", fused="mlp.linear_fc1.layer_norm_weight"),
    _layer("mlp.linear_fc1.weight", ["mlp.gate_proj.weight", "mlp.up_proj.weight"], "gate_up"),
    _layer("mlp.linear_fc2.weight", ["mlp.down_proj.weight"], "columns"),
    Row("decoder.final_layernorm.weight", ("model.norm.weight",), "whole"),
    Row("output_layer.weight", (HEAD,), "vocab"),
)

#: Tensors of old checkpoints that are computed from the config today: they need no parameter.
COMPUTED = re.compile(r"\.rotary_emb\.inv_freq$")

_NUMBER = re.compile(r"\.layers\.(\d+)\.")


@dataclass(frozen=True)
class Piece:
    """``parameter[target]`` is ``part[source]``, ``part`` a Hugging Face name of the whole model."""

    part: str
    source: Slices
    target: Slices


@dataclass(frozen=True)
class Home:
    """A parameter's shape on this rank and the pieces that fill it."""

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


def rows_of(config: PretrainedConfig) -> list[Row]:
    """The lines of the table that apply to this LLM."""
    return [row for row in TABLE if not row.needs or row.needs in ARCHITECTURES[config.model_type]]


def find_home(
    name: str, config: PretrainedConfig, *, layer_offset: int, padded_vocab_size: int, rank: int, size: int
) -> Home | None:
    """The values of parameter ``name`` on tensor-parallel ``rank`` of ``size``; None for a name outside the table.

    Args:
        name: of a `GPTModel` parameter, with either kind of layers.
        layer_offset: layers on earlier pipeline stages; layer numbers of ``name`` count from its own stage.
    """
    found = _NUMBER.search(name)
    pattern = _NUMBER.sub(".layers.{}.", name)
    row = next((row for row in rows_of(config) if pattern in (row.local, row.fused)), None)
    if row is None:
        return None
    layer = int(found.group(1)) + layer_offset if found else 0
    parts = tuple(part.format(layer) for part in row.parts)
    if parts == (HEAD,) and config.tie_word_embeddings:
        parts = (EMBEDDINGS,)
    return _fill(row, parts, config, padded_vocab_size, rank, size)


def part_names(config: PretrainedConfig) -> set[str]:
    """All Hugging Face tensors of this LLM."""
    layers = range(config.num_hidden_layers)
    parts = [part for row in rows_of(config) for part in row.parts]
    names = {part.format(layer) for part in parts for layer in (layers if "{}" in part else [0])}
    return names - {HEAD} if config.tie_word_embeddings else names


def part_shape(name: str, config: PretrainedConfig) -> tuple[int, ...]:
    """Shape of a Hugging Face tensor of the table."""
    D, F, V, H = config.hidden_size, config.intermediate_size, config.vocab_size, head_size(config)
    query, key = config.num_attention_heads * H, config.num_key_value_heads * H
    module, kind = name.split(".")[-2:]
    shapes = {
        **{"q_proj": (query, D), "k_proj": (key, D), "v_proj": (key, D), "o_proj": (D, query)},
        **{"gate_proj": (F, D), "up_proj": (F, D), "down_proj": (D, F)},
        **{"q_norm": (H,), "k_norm": (H,), "embed_tokens": (V, D), "lm_head": (V, D)},
    }
    return shapes[module][:1] if kind == "bias" else shapes.get(module, (D,))


def head_size(config: PretrainedConfig) -> int:
    """Width of an attention head; not every LLM has ``hidden_size = heads x width``."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _fill(
    row: Row, parts: tuple[str, ...], config: PretrainedConfig, padded_vocab_size: int, rank: int, size: int
) -> Home:
    first = part_shape(parts[0], config)
    if row.how == "whole":
        return Home(first, (Piece(parts[0], _all(first), _all(first)),))
    if row.how == "columns":
        start, stop = _share(first[1], rank, size)
        shape = (first[0], stop - start)
        return Home(shape, (Piece(parts[0], (slice(0, first[0]), slice(start, stop)), _all(shape)),))
    if row.how == "vocab":
        start, stop = _share(padded_vocab_size, rank, size)
        real = max(0, min(stop, first[0]) - start)
        shape = (stop - start, first[1])
        pieces = (_rows(parts[0], first, start, 0, real),) if real else ()
        return Home(shape, pieces)
    if row.how == "gate_up":
        start, stop = _share(first[0], rank, size)
        count = stop - start
        pieces = tuple(_rows(part, first, start, index * count, count) for index, part in enumerate(parts))
        return Home((2 * count, first[1]), pieces)
    return _fill_qkv(parts, config, rank, size)


def _fill_qkv(parts: tuple[str, ...], config: PretrainedConfig, rank: int, size: int) -> Home:
    # With more ranks than key-value heads a head's query heads are spread over several groups with a copy of it each.
    H, G = head_size(config), max(config.num_key_value_heads, size)
    P, copies = config.num_attention_heads // G, G // config.num_key_value_heads
    start, stop = _share(G, rank, size)
    shapes = [part_shape(part, config) for part in parts]
    pieces, row = [], 0
    for group in range(start, stop):
        key = group // copies
        for part, shape, first, heads in zip(parts, shapes, (group * P, key, key), (P, 1, 1), strict=True):
            pieces.append(_rows(part, shape, first * H, row, heads * H))
            row += heads * H
    return Home((row, *shapes[0][1:]), tuple(pieces))


def _share(count: int, rank: int, size: int) -> tuple[int, int]:
    return count // size * rank, count // size * (rank + 1)


def _all(shape: tuple[int, ...]) -> Slices:
    return tuple(slice(0, count) for count in shape)


def _rows(part: str, shape: tuple[int, ...], source: int, target: int, count: int) -> Piece:
    rest = _all(shape[1:])
    return Piece(part, (slice(source, source + count), *rest), (slice(target, target + count), *rest))
