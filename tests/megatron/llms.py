"""Tiny LLMs of the real Hugging Face classes, what they compute, and the same through megatron-core on any layout."""

import contextlib
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

#: Positions of the test input: odd, so that sequence parallelism has to pad.
NUM_ROWS, NUM_POSITIONS = 2, 23

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 16, "tie_word_embeddings": False}

#: Windows shorter than the input, a scale of its own, two rotary bases, one of them stretched.
GEMMA = {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"],
    "sliding_window": 6,
    "query_pre_attn_scalar": 24,
    "head_dim": 16,
    "rope_scaling": {"rope_type": "linear", "factor": 4.0},
}

#: Kind -> (model_type, config). Between them: every architecture, tied and untied, an odd number of layers, heads that
#: are wider than hidden_size / heads, a vocabulary of which the second of two ranks holds nothing but padding.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": False}),
    "llama_scaled_tied": (
        "llama",
        {"tie_word_embeddings": True, "num_hidden_layers": 3, "rope_scaling": LLAMA3_ROPE, "rope_theta": 500000.0},
    ),
    "qwen2": ("qwen2", {"tie_word_embeddings": False, "vocab_size": 300}),
    "qwen2_tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"tie_word_embeddings": False, "head_dim": 16, "vocab_size": 100}),
    "qwen3_tied": ("qwen3", {"tie_word_embeddings": True, "head_dim": 16}),
    "qwen2_one_key": ("qwen2", {"tie_word_embeddings": False, "num_key_value_heads": 1}),
    "qwen3_moe": ("qwen3_moe", {**EXPERTS, "num_experts": 4, "norm_topk_prob": True, "num_hidden_layers": 3}),
    "qwen3_moe_shares": ("qwen3_moe", {**EXPERTS, "num_experts": 4, "norm_topk_prob": False}),
    "gemma3": ("gemma3_text", {**GEMMA, "num_hidden_layers": 5}),
    "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "tie_word_embeddings": False}),
}


#: Layouts of two processes.
TWO_RANKS = {
    "TP2": {"tensor_parallel_size": 2},
    "TP2+SP": {"tensor_parallel_size": 2, "sequence_parallel": True},
    "PP2": {"pipeline_parallel_size": 2},
    "CP2": {"context_parallel_size": 2},
}


def make_config(model_type: str, **changes: Any):
    """A tiny config of the class that transformers registers for ``model_type``."""
    from transformers import AutoConfig

    shape = {
        "vocab_size": 200,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,  # wide enough that a wrong tensor shows
    }
    return AutoConfig.for_model(model_type, **{**shape, **changes})


def write_llm(folder: str | Path, kind: str, *, dtype: torch.dtype = torch.float32, **saving: Any) -> Path:
    """A random LLM of `KINDS` as a Hugging Face folder; norms and biases are random, too."""
    from transformers import AutoModelForCausalLM

    model_type, changes = KINDS[kind]
    torch.manual_seed(7)
    llm = AutoModelForCausalLM.from_config(make_config(model_type, **changes)).eval()
    with torch.no_grad():
        for parameter in llm.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    llm.to(dtype).save_pretrained(folder, **saving)
    return Path(folder)


def positions_of(data_rank: int) -> int:
    """Z of a data-parallel rank: experts that ranks share get different numbers of positions from each."""
    return NUM_POSITIONS - 9 * data_rank


def probe(vocab_size: int, *, upto: int = NUM_POSITIONS) -> tuple[torch.Tensor, torch.Tensor]:
    """ids (B, Z) and a random direction (B, Z, V) along which logits are summed to a loss."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, vocab_size, (NUM_ROWS, NUM_POSITIONS), generator=generator)
    return ids[:, :upto], torch.randn(NUM_ROWS, NUM_POSITIONS, vocab_size, generator=generator)[:, :upto]


def reference(
    folder: str | Path, *, dtype: torch.dtype = torch.float32, upto: int = NUM_POSITIONS
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (B, Z, V) of the Hugging Face model and the loss's gradient at the input embeddings (B, Z, D)."""
    from transformers import AutoModelForCausalLM

    llm = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    ids, direction = probe(llm.config.get_text_config().vocab_size, upto=upto)
    embeds = llm.get_input_embeddings()(ids).detach().requires_grad_()
    logits = llm(inputs_embeds=embeds).logits
    (logits.float() * direction).sum().backward()
    return logits.detach(), embeds.grad


@contextlib.contextmanager
def one_process() -> Iterator[None]:
    """A process group with this process alone in it, behind the stand-in for torch.cuda."""
    from tests.megatron.cuda_standin import cuda_standin

    with cuda_standin(), tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


@contextlib.contextmanager
def groups(tensor: int = 1, pipeline: int = 1, context: int = 1, expert: int = 1) -> Iterator[None]:
    """megatron-core's process groups and seeds for one layout."""
    from megatron.core import parallel_state, tensor_parallel

    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=pipeline,
        context_parallel_size=context,
        expert_model_parallel_size=expert,
        expert_tensor_parallel_size=1,
    )
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    try:
        yield
    finally:
        parallel_state.destroy_model_parallel()


def sizes_of(layout: Any) -> tuple[int, ...]:
    """The arguments of `groups`."""
    return tuple(getattr(layout, f"{kind}_parallel_size") for kind in ("tensor", "pipeline", "context", "expert"))


def run_cases(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """This rank's share of `computed` for each ``{"folder", "layout", ...}``; to be launched on several ranks."""
    from nemo_desta.megatron.layout import Layout

    results = []
    for sizes, same in itertools.groupby(cases, key=lambda case: case["layout"]):  # making groups takes a while
        layout = Layout(**sizes)
        with groups(*sizes_of(layout)):
            for case in same:
                settings = {name: value for name, value in case.items() if name not in ("folder", "layout")}
                results.append(computed(case["folder"], layout, **settings))
    return results


def computed(folder: str, layout: Any, *, recompute: bool = False, inference_first: bool = False) -> dict[str, Any]:
    """``logits`` (B, Z / CP, V / TP, real tokens only) on the last stage, ``gradient`` (B, Z, D) on the first.

    The logits are those of ``positions`` (Z / CP,) and of the tokens from ``first_token`` on. Pipeline stages talk by
    plain sends here. ``inference_first``: a pass in inference mode goes before. The rows of a later data-parallel rank
    have fewer positions, see `positions_of`.
    """
    from megatron.core import parallel_state

    from nemo_desta.megatron.llm import build_llm
    from nemo_desta.megatron.llm_memory import num_parameters

    llm = build_llm(folder, layout, dtype=torch.float32, recompute=recompute)
    llm.train()  # as Lightning does with the model around it
    data_rank = parallel_state.get_data_parallel_rank()
    ids, direction = probe(llm.hf_config.vocab_size, upto=positions_of(data_rank))
    calls = []
    llm.gpt.decoder.layers[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    if inference_first:
        with torch.inference_mode():
            _forward(llm, ids, with_gradient=False)
        calls.clear()
    embeds, received, hidden = _forward(llm, ids, with_gradient=True)
    result: dict[str, Any] = {"trainable": sum(parameter.requires_grad for parameter in llm.parameters())}
    result["data_rank"] = data_rank
    stage = parallel_state.get_pipeline_model_parallel_rank()
    result["surplus"] = sum(p.numel() for p in llm.parameters()) - num_parameters(llm.hf_config, layout, stage)
    if llm.is_last:
        logits, positions, start = _real_logits(llm, hidden, ids.shape[1])
        result.update(logits=logits.detach(), positions=positions, first_token=start)
        (logits * direction[:, positions, start : start + logits.shape[-1]]).sum().backward()
        if received is not None:
            dist.send(received.grad, _neighbour(-1))
    else:
        gradient = torch.empty_like(hidden)
        dist.recv(gradient, _neighbour(1))
        hidden.backward(gradient)
    if llm.is_first:
        # each context-parallel rank has the gradient of its own positions
        dist.all_reduce(embeds.grad, group=parallel_state.get_context_parallel_group())
        result["gradient"] = embeds.grad
        with_text_only = llm.embed(ids)
        result["always_a_graph"] = llm.is_last or llm(with_text_only).requires_grad
    result["layer_calls"] = len(calls) - (1 if llm.is_first and not llm.is_last else 0)
    return result


def _forward(llm: Any, ids: torch.Tensor, *, with_gradient: bool) -> tuple[Any, Any, torch.Tensor]:
    embeds = received = None
    if llm.is_first:
        embeds = llm.embed(ids)
        embeds = embeds.detach().clone().requires_grad_() if with_gradient else embeds
        hidden = llm(embeds)
    else:
        length = llm.layout.padded_length(ids.shape[1]) // llm.layout.position_ranks
        received = torch.empty(length, ids.shape[0], llm.hidden_size)
        dist.recv(received, _neighbour(-1))
        received.requires_grad_(with_gradient)
        llm.set_input_tensor([received])
        hidden = llm()
    if not llm.is_last:
        dist.send(hidden.detach().contiguous(), _neighbour(1))
    return embeds, received, hidden


def _real_logits(llm: Any, hidden: torch.Tensor, Z: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    from megatron.core import parallel_state

    from nemo_desta.megatron.context import own_positions

    positions = own_positions(torch.arange(llm.layout.padded_length(Z)))
    held = positions < Z
    positions = positions[held]
    logits = llm.head(hidden[held].flatten(0, 1)).view(len(positions), NUM_ROWS, -1)
    logits = logits.transpose(0, 1)  # (Z / CP, B, V / TP) -> (B, Z / CP, V / TP)
    start = parallel_state.get_tensor_model_parallel_rank() * logits.shape[-1]
    real = max(0, min(logits.shape[-1], llm.hf_config.vocab_size - start))
    assert torch.isneginf(logits[..., real:]).all(), "padded vocabulary must not enter the softmax"
    return logits[..., :real], positions, start


def _neighbour(step: int) -> int:
    from megatron.core import parallel_state

    return (
        parallel_state.get_pipeline_model_parallel_next_rank()
        if step > 0
        else parallel_state.get_pipeline_model_parallel_prev_rank()
    )
