"""Memory of the frozen LLM on one GPU of a pipeline stage: weights, what backward keeps, logits.

The formulas follow this package's code (layers.py, llm.py, loss.py). Formulas for full training do not apply: a
frozen linear layer keeps its weight and not its input, so most of their terms are missing.
See docs/explain/memory_planner.md.

Letters: B rows, Z positions, D LLM width, A query heads, G key-value groups, H head size, F width of the MLP or of an
expert, E experts, V padded vocabulary, N supervised tokens, R rank of LoRA, w bytes per number.
"""

import math
from dataclasses import dataclass

from transformers import PretrainedConfig

from nemo_desta.config import LoraConfig
from nemo_desta.core.cost import num_experts
from nemo_desta.megatron.layout import Layout
from nemo_desta.megatron.param_mapping import (
    ARCHITECTURES,
    expert_width,
    find_home,
    head_size,
    part_shape,
    rows_of,
)

FLOAT32, INT64 = 4, 8
#: Kinds of layers: TransformerEngine's, whose norms keep their input as it is, and the local ones of layers.py.
LAYER_KINDS = ("te", "local")


@dataclass(frozen=True)
class Load:
    """One micro-batch on a rank, and how it is computed.

    ``rows``: B. ``length``: Z before padding. ``targets``: N of the whole micro-batch. ``width``: w. ``layers``: one
    of `LAYER_KINDS`; both compute attention by a fused kernel, which never stores the (Z, Z) scores. ``lora``: None
    without; its dropout is off with recomputation.
    """

    rows: int
    length: int
    targets: int
    width: int = 2
    layers: str = "te"
    recompute: bool = False
    lora: LoraConfig | None = None


def num_parameters(config: PretrainedConfig, layout: Layout, stage: int) -> int:
    """Frozen parameters of a rank on ``stage``, from the table that weights are loaded by."""
    stages = layout.layers_per_stage(config.num_hidden_layers)
    is_first, is_last = stage == 0, stage == len(stages) - 1
    copies = {
        "embedding": is_first,
        "decoder": is_last,  # the final norm
        "output_layer": is_last and not (is_first and config.tie_word_embeddings),
    }
    sizes = {"padded_vocab_size": layout.padded_vocab_size(config.vocab_size), "size": layout.tensor_parallel_size}
    total = 0
    for row in rows_of(config):
        count = stages[stage] if row.per_layer else copies[row.local.partition(".")[0]]
        count *= layout.experts_per_rank(config) if row.per_expert else 1
        home = find_home(row.local.format(layer=0, expert=0), config, layer_offset=0, rank=0, **sizes)
        total += count * math.prod(home.shape)
    return total


def num_lora_parameters(config: PretrainedConfig, layout: Layout, stage: int, lora: LoraConfig | None) -> int:
    """Trained parameters of a rank on ``stage``: every tensor-parallel rank has the whole of A and B."""
    if lora is None:
        return 0
    shapes = [part_shape(f"{name}.weight", config) for name in lora.target_modules]
    return layout.layers_per_stage(config.num_hidden_layers)[stage] * sum(lora.r * sum(shape) for shape in shapes)


def layer_bytes(config: PretrainedConfig, layout: Layout, load: Load) -> int:
    """What backward keeps of one layer for one micro-batch without recomputation."""
    D, H = config.hidden_size, head_size(config)
    tensor, w = layout.tensor_parallel_size, load.width
    A, G = config.num_attention_heads, max(config.num_key_value_heads, tensor)  # each rank has a whole head
    Z, own, positions = _positions(layout, load)
    reads_packed = "qk_norm" in ARCHITECTURES[config.model_type] and load.layers == "local" and w == FLOAT32
    heads = w * A * H + FLOAT32 * A  # attention's output, and its log-sum-exp
    heads += w * A * H  # query after rotation
    if layout.context_parallel_size > 1 and load.layers == "local":
        heads += w * 2 * G * H * layout.context_parallel_size  # keys and values of all positions
        heads += w * (A + 2 * G) * H if reads_packed else 0
    else:
        heads += w * G * H  # key after rotation
        heads += w * (A + 2 * G) * H  # the packed projection, of which value is a view
    if "qk_norm" in ARCHITECTURES[config.model_type]:
        heads += _norm_bytes(A * H, load) + FLOAT32 * A + FLOAT32 * G
        # in float32 the key's norm reads the packed projection itself
        heads += 0 if reads_packed else _norm_bytes(G * H, load)
    if num_experts(config):
        mlp = own * _routed_bytes(config, load) + (FLOAT32 * num_experts(config) * D if w < FLOAT32 else 0)
    else:
        mlp = positions * _gated_bytes(config.intermediate_size, w) // tensor
    rotary = w * 4 * H * Z  # cosines and sines, once for queries and once for keys
    norms = 2 * (_norm_bytes(D, load) + FLOAT32)
    if "four_norms" in ARCHITECTURES[config.model_type]:
        norms += 2 * (D + 1) * FLOAT32  # of what attention and MLP return, with either kind of layers
    kept = own * norms + positions * heads // tensor + mlp + rotary + lora_bytes(config, layout, load)
    windows = (getattr(config, "layer_types", None) or []).count("sliding_attention")
    if windows and load.layers == "local" and Z > config.sliding_window:
        kept += w * Z * Z * windows // config.num_hidden_layers  # a mask, on average over the layers
    return kept


def lora_bytes(config: PretrainedConfig, layout: Layout, load: Load) -> int:
    """What backward keeps in addition of one layer with LoRA: the inputs of A and of B, and B as a rank reads it.

    Dropout gives each adapter an input and a mask of its own.
    """
    if load.lora is None:
        return 0
    _, own, positions = _positions(layout, load)
    tensor, w, R = layout.tensor_parallel_size, load.width, load.lora.r
    dropout = bool(load.lora.dropout) and not load.recompute
    kept = 0
    for targets in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("o_proj",), ("down_proj",)):
        adapted = [name for name in targets if name in load.lora.target_modules]
        if not adapted:
            continue
        shapes = {name: part_shape(f"{name}.weight", config) for name in targets}
        inputs, narrow = shapes[targets[0]][1], len(adapted) * R
        copies = 2 * len(adapted) if dropout else 1
        if len(targets) > 1:  # column-parallel
            outputs = sum(shape[0] for shape in shapes.values()) // tensor
            kept += copies * own * inputs * w + positions * narrow * w + outputs * narrow * w
            if load.layers == "te":  # the norm inside the fused layer is computed once more, in float32
                kept += own * (inputs + 1) * FLOAT32
        else:
            joined = load.layers == "local" and layout.context_parallel_size > 1
            if targets == ("o_proj",) and not dropout and not joined:
                copies = 0  # attention keeps its output already
            kept += copies * positions * inputs // tensor * w + own * narrow * w
    return kept


def kept_bytes(config: PretrainedConfig, layout: Layout, stage: int, load: Load) -> int:
    """What backward keeps of one micro-batch on ``stage``."""
    stages = layout.layers_per_stage(config.num_hidden_layers)
    Z, own, positions = _positions(layout, load)
    D, w = config.hidden_size, load.width
    # a rank's share of the LLM's input is a view: a first layer that keeps it keeps all positions
    whole = (positions - own) * D * w if stage == 0 and (load.recompute or _reads_input_itself(load)) else 0
    if load.recompute:
        # each layer's input, and the rotary angles that all layers share; the final norm's input is freed by then
        angles = FLOAT32 * head_size(config) * Z * (2 if "windows" in ARCHITECTURES[config.model_type] else 1)
        return whole + stages[stage] * own * D * w + angles
    final_norm = own * (_norm_bytes(D, load) + FLOAT32) if stage == len(stages) - 1 else 0
    return whole + stages[stage] * layer_bytes(config, layout, load) + final_norm


def sent_bytes(config: PretrainedConfig, layout: Layout, stage: int, load: Load) -> int:
    """What megatron-core's 1F1B schedule holds of one micro-batch in addition: the stage's output and input."""
    last = layout.pipeline_parallel_size - 1
    hidden = _positions(layout, load)[1] * load.width * config.hidden_size
    input_is_kept = load.recompute or _reads_input_itself(load)  # `kept_bytes` counts it
    return hidden * ((stage < last) + (stage > 0 and not input_is_kept))


def in_flight(layout: Layout, stage: int, num_micro_batches: int) -> int:
    """Most micro-batches between their forward and their backward pass under 1F1B; the last stage has the fewest."""
    return min(layout.pipeline_parallel_size - stage, num_micro_batches)


def logits_bytes(config: PretrainedConfig, layout: Layout, load: Load) -> int:
    """The last stage's logits of a micro-batch, and their float32 copy that becomes softmax and gradient in place.

    Context-parallel ranks are taken to have the targets in equal shares.
    """
    share = layout.padded_vocab_size(config.vocab_size) // layout.tensor_parallel_size
    targets = -(-load.targets // layout.context_parallel_size)
    return targets * share * (FLOAT32 + (load.width if load.width < FLOAT32 else 0))


def working_bytes(config: PretrainedConfig, layout: Layout, load: Load) -> int:
    """Temporary memory inside one layer: gradients of the MLP and of the residual, and the recomputed layer."""
    D, F, w = config.hidden_size, config.intermediate_size, load.width
    _, own, positions = _positions(layout, load)
    if num_experts(config):
        # copies in the order of positions, of experts, and both for what the experts return; under expert parallelism
        # those that arrive from other ranks
        copies = 5 if layout.expert_parallel_size > 1 else 4
        at_once = layout.experts_per_rank(config) if load.layers == "local" else 1  # local experts take turns
        routed = own * config.num_experts_per_tok * w * (copies * D + 4 * expert_width(config) // at_once)
        gradients = routed + own * D * w
    else:
        gradients = positions * 4 * F * w // layout.tensor_parallel_size + own * D * w
    if layout.context_parallel_size > 1 and load.layers == "local":  # or keys and values, while they are gathered
        G, H = max(config.num_key_value_heads, layout.tensor_parallel_size), head_size(config)
        gathered = 2 * G * H * positions * layout.context_parallel_size * w // layout.tensor_parallel_size
        gradients = max(gradients, 3 * gathered)
    if layout.tensor_parallel_size > 1:
        gradients += positions * D * w  # gradient of the MLP's input, before the sum over the ranks
    if not load.recompute:
        return gradients
    return gradients + layer_bytes(config, layout, load) - (own * D * w if _reads_input_itself(load) else 0)


def _positions(layout: Layout, load: Load) -> tuple[int, int, int]:
    """Of this rank: its share of Z; B x Z between layers (sequence parallelism: a share of it), and inside them."""
    Z = layout.padded_length(load.length)
    inside = Z // layout.context_parallel_size
    return inside, load.rows * Z // layout.position_ranks, load.rows * inside


def _reads_input_itself(load: Load) -> bool:
    """Whether a layer's first norm keeps the layer's input itself and not a copy."""
    return load.layers == "te" or load.width == FLOAT32


def _gated_bytes(width: int, w: int) -> int:
    """Of a position: gate and up, silu(gate), and up again: megatron-core adds an offset of zero to it."""
    return 4 * width * w


def _routed_bytes(config: PretrainedConfig, load: Load) -> int:
    """Of a position in a mixture of experts, all ranks' experts loaded alike: they get as many copies as they send.

    A copy: its product before it is scaled, its weight, its place in both orders. A position: the router's shares of
    its experts, or of all where they are not scaled to one, and of all experts once more with a mask.
    """
    copies, experts = config.num_experts_per_tok, num_experts(config)
    copy = _gated_bytes(expert_width(config), load.width) + expert_width(config) * load.width + FLOAT32 + 2 * INT64
    shares = copies if getattr(config, "norm_topk_prob", True) else experts
    return copies * copy + FLOAT32 * shares + (FLOAT32 + 1) * experts


def _norm_bytes(size: int, load: Load) -> int:
    """What a norm keeps of its input: TransformerEngine the input, ours a float32 copy."""
    return size * (load.width if load.layers == "te" else FLOAT32)
