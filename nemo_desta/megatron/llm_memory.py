"""Memory of the frozen LLM on one GPU of a pipeline stage: weights, what backward keeps, logits.

The formulas follow this package's code (layers.py, llm.py, loss.py). Formulas for full training do not apply: a
frozen linear layer keeps its weight and not its input, so most of their terms are missing.
See docs/explain/memory_planner.md.

Letters: B rows, Z positions, D LLM width, A query heads, G key-value groups, H head size, F MLP width, V padded
vocabulary, N supervised tokens, w bytes per number.
"""

import math
from dataclasses import dataclass

from transformers import PretrainedConfig

from nemo_desta.megatron.layout import Layout
from nemo_desta.megatron.param_mapping import ARCHITECTURES, find_home, head_size, rows_of

FLOAT32 = 4
#: Kinds of layers: TransformerEngine's, whose norms keep their input as it is, and the local ones of layers.py.
LAYER_KINDS = ("te", "local")


@dataclass(frozen=True)
class Load:
    """One micro-batch on a rank, and how it is computed.

    ``rows``: B. ``length``: Z before padding. ``targets``: N of the whole micro-batch. ``width``: w. ``layers``: one
    of `LAYER_KINDS`; both compute attention by a fused kernel, which never stores the (Z, Z) scores.
    """

    rows: int
    length: int
    targets: int
    width: int = 2
    layers: str = "te"
    recompute: bool = False


def num_parameters(config: PretrainedConfig, layout: Layout, stage: int) -> int:
    """Parameters of a rank on ``stage``, from the table that weights are loaded by."""
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


def layer_bytes(config: PretrainedConfig, layout: Layout, load: Load) -> int:
    """What backward keeps of one layer for one micro-batch without recomputation."""
    D, F, H = config.hidden_size, config.intermediate_size, head_size(config)
    A, G = config.num_attention_heads, config.num_key_value_heads
    tensor, w = layout.tensor_parallel_size, load.width
    Z, own, positions = _positions(layout, load)
    heads = w * (A + G) * H  # query and key after rotation
    heads += w * (A + 2 * G) * H  # the packed projection, of which value is a view
    heads += w * A * H + FLOAT32 * A  # attention's output, and its log-sum-exp
    if "qk_norm" in ARCHITECTURES[config.model_type]:
        heads += _norm_bytes(A * H, load) + FLOAT32 * A + FLOAT32 * G
        # in float32 the key's norm reads the packed projection itself
        heads += 0 if load.layers == "local" and w == FLOAT32 else _norm_bytes(G * H, load)
    gated = w * 4 * F  # gate and up, silu(gate), and up again: megatron-core adds an offset of zero to it
    rotary = w * 4 * H * Z  # cosines and sines, once for queries and once for keys
    norms = 2 * (_norm_bytes(D, load) + FLOAT32)
    return own * norms + positions * (heads + gated) // tensor + rotary


def kept_bytes(config: PretrainedConfig, layout: Layout, stage: int, load: Load) -> int:
    """What backward keeps of one micro-batch on ``stage``."""
    stages = layout.layers_per_stage(config.num_hidden_layers)
    Z, own, positions = _positions(layout, load)
    D, w = config.hidden_size, load.width
    # a rank's share of the LLM's input is a view: a first layer that keeps it keeps all positions
    whole = (positions - own) * D * w if stage == 0 and (load.recompute or _reads_input_itself(load)) else 0
    if load.recompute:
        # each layer's input, and the rotary angles that all layers share; the final norm's input is freed by then
        return whole + stages[stage] * own * D * w + FLOAT32 * head_size(config) * Z
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
    """The last stage's logits of a micro-batch, and their float32 copy that becomes softmax and gradient in place."""
    share = layout.padded_vocab_size(config.vocab_size) // layout.tensor_parallel_size
    return load.targets * share * (FLOAT32 + (load.width if load.width < FLOAT32 else 0))


def working_bytes(config: PretrainedConfig, layout: Layout, load: Load) -> int:
    """Temporary memory inside one layer: gradients of the MLP and of the residual, and the recomputed layer."""
    D, F, w = config.hidden_size, config.intermediate_size, load.width
    _, own, positions = _positions(layout, load)
    gradients = positions * 4 * F * w // layout.tensor_parallel_size + own * D * w
    if layout.tensor_parallel_size > 1:
        gradients += positions * D * w  # gradient of the MLP's input, before the sum over the ranks
    if not load.recompute:
        return gradients
    return gradients + layer_bytes(config, layout, load) - (own * D * w if _reads_input_itself(load) else 0)


def _positions(layout: Layout, load: Load) -> tuple[int, int, int]:
    """Z computed; B x Z of this rank between layers (sequence parallel: a share); B x Z inside them."""
    Z = layout.padded_length(load.length)
    share = layout.tensor_parallel_size if layout.sequence_parallel else 1
    return Z, load.rows * Z // share, load.rows * Z


def _reads_input_itself(load: Load) -> bool:
    """Whether a layer's first norm keeps the layer's input itself and not a copy."""
    return load.layers == "te" or load.width == FLOAT32


def _norm_bytes(size: int, load: Load) -> int:
    """What a norm keeps of its input: TransformerEngine the input, ours a float32 copy."""
    return size * (load.width if load.layers == "te" else FLOAT32)
