"""The table of Hugging Face tensors and megatron-core parameters, and the part that one rank holds.

Loading and export use the same pieces in opposite directions, so that a round trip is exact.
Letters: G key-value groups, P query heads per group, H head size, D LLM width, F width of the MLP or of an expert,
E experts, V vocabulary.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from transformers import PretrainedConfig

from nemo_desta.core.cost import num_experts

Slices = tuple[slice, ...]

#: Covered architectures (``model_type``) and what they have beyond norms and projections without biases. "mlp": a
#: gated MLP. "qwen_experts", "mixtral_experts": a router and gated experts, by the names of that family. "two_norms":
#: before attention and MLP; "four_norms": after them, too, and all norms by 1 + weight. "windows": layers that attend
#: to a window, with rotary angles of their own. "scaled_embeddings": by the square root of D.
ARCHITECTURES = {
    "llama": frozenset({"mlp", "two_norms"}),
    "qwen2": frozenset({"mlp", "two_norms", "qkv_bias"}),
    "qwen3": frozenset({"mlp", "two_norms", "qk_norm"}),
    "qwen3_moe": frozenset({"qwen_experts", "two_norms", "qk_norm"}),
    "mixtral": frozenset({"mixtral_experts", "two_norms"}),
    "gemma3_text": frozenset({"mlp", "four_norms", "qk_norm", "windows", "scaled_embeddings"}),
}

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class Row:
    """One line: a megatron-core parameter, its Hugging Face tensors, and how it is cut.

    ``{layer}`` stands for the layer, ``{expert}`` for the expert: megatron-core's names count the rank's own experts,
    Hugging Face's all of them. ``how``: what one rank holds; an expert is never cut. "whole": everything. "columns":
    an equal share of axis 1. "gate_up": an equal share of the gate's rows, then the same of the up projection's.
    "qkv": an equal share of the groups (with more ranks than groups: a share of one, with a copy of its key and
    value); the rows of a group are its query heads, its key, its value. "vocab": an equal share of the rows after
    padding; padded rows are zero.
    ``needs``: the feature without which an LLM has no such tensor. ``fused``: the name in TransformerEngine layers
    where it differs: they keep a norm inside the linear layer that follows, and all experts in one module.
    """

    local: str
    parts: tuple[str, ...]
    how: str
    needs: str = ""
    fused: str = ""

    @property
    def per_layer(self) -> bool:
        return "{layer}" in self.local

    @property
    def per_expert(self) -> bool:
        return "{expert}" in self.local


def _layer(local: str, parts: Sequence[str], how: str, *, needs: str = "", fused: str = "") -> Row:
    own, theirs = "decoder.layers.{layer}.", "model.layers.{layer}."
    return Row(own + local, tuple(theirs + part for part in parts), how, needs, own + fused if fused else "")


def _experts(needs: str, module: str, gate: str, up: str, down: str) -> tuple[Row, ...]:
    """Router and experts of a family that keeps them in ``module``, with its names of an expert's three matrices."""
    own, grouped = "mlp.experts.local_experts.{expert}.", "mlp.experts."
    gate, up, down = (f"{module}.experts.{{expert}}.{name}.weight" for name in (gate, up, down))
    return (
        _layer("mlp.router.weight", [f"{module}.gate.weight"], "whole", needs=needs),
        _layer(
            own + "linear_fc1.weight", [gate, up], "gate_up", needs=needs, fused=grouped + "linear_fc1.weight{expert}"
        ),
        _layer(own + "linear_fc2.weight", [down], "whole", needs=needs, fused=grouped + "linear_fc2.weight{expert}"),
    )


_QKV, _POST_NORM, _PRE_MLP = "self_attention.linear_qkv", "post_attention_layernorm.weight", "pre_mlp_layernorm.weight"
_FUSED_PRE_MLP = "mlp.linear_fc1.layer_norm_weight"
TABLE: tuple[Row, ...] = (
    Row("embedding.word_embeddings.weight", (EMBEDDINGS,), "vocab"),
    _layer("input_layernorm.weight", ["input_layernorm.weight"], "whole", fused=f"{_QKV}.layer_norm_weight"),
    _layer(f"{_QKV}.weight", [f"self_attn.{x}_proj.weight" for x in "qkv"], "qkv"),
    _layer(f"{_QKV}.bias", [f"self_attn.{x}_proj.bias" for x in "qkv"], "qkv", needs="qkv_bias"),
    _layer("self_attention.q_layernorm.weight", ["self_attn.q_norm.weight"], "whole", needs="qk_norm"),
    _layer("self_attention.k_layernorm.weight", ["self_attn.k_norm.weight"], "whole", needs="qk_norm"),
    _layer("self_attention.linear_proj.weight", ["self_attn.o_proj.weight"], "columns"),
    _layer(_PRE_MLP, [_POST_NORM], "whole", needs="two_norms", fused=_FUSED_PRE_MLP),
    _layer("self_attn_bda.norm.weight", [_POST_NORM], "whole", needs="four_norms"),
    _layer(_PRE_MLP, ["pre_feedforward_layernorm.weight"], "whole", needs="four_norms", fused=_FUSED_PRE_MLP),
    _layer("mlp_bda.norm.weight", ["post_feedforward_layernorm.weight"], "whole", needs="four_norms"),
    _layer("mlp.linear_fc1.weight", ["mlp.gate_proj.weight", "mlp.up_proj.weight"], "gate_up", needs="mlp"),
    _layer("mlp.linear_fc2.weight", ["mlp.down_proj.weight"], "columns", needs="mlp"),
    *_experts("qwen_experts", "mlp", "gate_proj", "up_proj", "down_proj"),
    *_experts("mixtral_experts", "block_sparse_moe", "w1", "w3", "w2"),
    Row("decoder.final_layernorm.weight", ("model.norm.weight",), "whole"),
    Row("output_layer.weight", (HEAD,), "vocab"),
)

#: Tensors of old checkpoints that are computed from the config today: they need no parameter.
COMPUTED = re.compile(r"\.rotary_emb\.inv_freq$")


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
    name: str,
    config: PretrainedConfig,
    *,
    layer_offset: int,
    padded_vocab_size: int,
    rank: int,
    size: int,
    expert_offset: int = 0,
) -> Home | None:
    """The values of parameter ``name`` on tensor-parallel ``rank`` of ``size``; None for a name outside the table.

    Args:
        name: of a `GPTModel` parameter, with either kind of layers.
        layer_offset: layers on earlier pipeline stages; layer numbers of ``name`` count from its own stage.
        expert_offset: experts of each layer on earlier expert-parallel ranks.
    """
    patterns = ((row, pattern) for row in rows_of(config) for pattern in (row.local, row.fused))
    found = ((row, _indices(pattern, name)) for row, pattern in patterns)
    row, indices = next(((row, indices) for row, indices in found if indices is not None), (None, {}))
    if row is None:
        return None
    layer, expert = indices.get("layer", 0) + layer_offset, indices.get("expert", 0) + expert_offset
    parts = tuple(part.format(layer=layer, expert=expert) for part in row.parts)
    if parts == (HEAD,) and config.tie_word_embeddings:
        parts = (EMBEDDINGS,)
    if row.per_expert:
        rank, size = 0, 1
    return _fill(row, parts, config, padded_vocab_size, rank, size)


def part_names(config: PretrainedConfig) -> set[str]:
    """All Hugging Face tensors of this LLM."""
    layers, experts = range(config.num_hidden_layers), range(num_experts(config))
    names = {
        part.format(layer=layer, expert=expert)
        for row in rows_of(config)
        for part in row.parts
        for layer, expert in itertools.product(layers if row.per_layer else [0], experts if row.per_expert else [0])
    }
    return names - {HEAD} if config.tie_word_embeddings else names


def part_shape(name: str, config: PretrainedConfig) -> tuple[int, ...]:
    """Shape of a Hugging Face tensor of the table."""
    D, V, H, E = config.hidden_size, config.vocab_size, head_size(config), num_experts(config)
    F = expert_width(config) if E else config.intermediate_size
    query, key = config.num_attention_heads * H, config.num_key_value_heads * H
    module, kind = name.split(".")[-2:]
    shapes = {
        **{"q_proj": (query, D), "k_proj": (key, D), "v_proj": (key, D), "o_proj": (D, query)},
        **{"gate_proj": (F, D), "up_proj": (F, D), "down_proj": (D, F)},
        **{"gate": (E, D), "w1": (F, D), "w3": (F, D), "w2": (D, F)},
        **{"q_norm": (H,), "k_norm": (H,), "embed_tokens": (V, D), "lm_head": (V, D)},
    }
    return shapes[module][:1] if kind == "bias" else shapes.get(module, (D,))


def expert_width(config: PretrainedConfig) -> int:
    """F of an expert."""
    return getattr(config, "moe_intermediate_size", None) or config.intermediate_size


def head_size(config: PretrainedConfig) -> int:
    """Width of an attention head; not every LLM has ``hidden_size = heads x width``."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _indices(pattern: str, name: str) -> dict[str, int] | None:
    """``{"layer": 3, "expert": 5}``, as far as ``pattern`` has them; None if ``name`` is not of the pattern."""
    found = _regex(pattern).fullmatch(name)
    return found and {key: int(value) for key, value in found.groupdict().items()}


@cache
def _regex(pattern: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>\\d+)", re.escape(pattern)))


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
