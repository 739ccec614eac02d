"""Runs the micro-batches of a step through megatron-core's schedule: 1F1B over pipeline stages, or one after another.

The last stage broadcasts its results to all stages of its pipeline, and context-parallel ranks add up theirs, so that
every rank logs and decides the same.
Letters: B rows, Z positions, D LLM width, N supervised tokens.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from nemo_desta.core.splice import place
from nemo_desta.megatron.llm import StageLLM, outside_inference_mode
from nemo_desta.megatron.loss import argmax, predicting_states, summed_cross_entropy

Batch = dict[str, Any]
#: Micro-batch -> the first stage's input (B, Z, D).
Embed = Callable[[Batch], Tensor]


def run_losses(llm: StageLLM, embed: Embed, batches: Sequence[Batch], *, train: bool) -> Tensor:
    """(K, 3) float64 on every rank of the copy: summed loss, targets and correct predictions of K micro-batches.

    With ``train`` it accumulates gradients of the summed losses and does not count correct predictions (NaN).
    """

    def last_stage(batch: Batch, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        places = place(batch["input_ids"], batch["input_lens"], batch["prompt_lens"], batch["vector_lens"])
        states, target_ids = predicting_states(hidden, places)
        num_tokens = hidden.new_tensor(target_ids.numel(), dtype=torch.int)
        num_correct = hidden.new_tensor(float("nan") if train else 0, dtype=torch.double)
        if target_ids.numel():
            logits = llm.head(states)
            if not train:
                correct = argmax(logits, group=parallel_state.get_tensor_model_parallel_group()) == target_ids
                num_correct = correct.sum()
            loss = summed_cross_entropy(logits, target_ids)
        else:
            loss = hidden[:0].sum().float()  # zero, but in the graph: other ranks wait in its backward pass
        return loss, num_tokens, torch.stack([loss.detach().double(), num_tokens.double(), num_correct.double()])

    found = run_schedule(llm, embed, batches, last_stage, forward_only=not train, collect=False)
    return from_last_stage(found, (len(batches), 3), torch.float64, llm, over_context=dist.ReduceOp.SUM)


def from_last_stage(
    found: list[Tensor], shape: tuple[int, ...], dtype: torch.dtype, llm: StageLLM, *, over_context: dist.ReduceOp
) -> Tensor:
    """The last stage's tensors, stacked, broadcast to every stage, and reduced over the context-parallel ranks."""
    device = next(llm.parameters()).device
    values = torch.stack(found).to(dtype) if found else torch.zeros(shape, dtype=dtype, device=device)
    group = parallel_state.get_pipeline_model_parallel_group()
    if group.size() > 1:
        dist.broadcast(values, src=parallel_state.get_pipeline_model_parallel_last_rank(), group=group)
    if parallel_state.get_context_parallel_world_size() > 1:
        dist.all_reduce(values, op=over_context, group=parallel_state.get_context_parallel_group())
    return values


def run_schedule(
    llm: StageLLM,
    embed: Embed,
    batches: Sequence[Batch],
    last_stage: Callable[..., Any],
    *,
    forward_only: bool,
    collect: bool,
    positions: Tensor | None = None,
) -> list[Any]:
    """Run the schedule; returns the reports of ``last_stage(batch, hidden)``, nothing on other stages.

    ``last_stage`` returns (loss, number of tokens, report), or with ``collect`` only the report. ``positions``: as in
    `StageLLM.forward`.
    """

    def forward_step(iterator: Any, model: Any) -> tuple[Tensor, Callable[..., Any]]:
        batch = next(iterator)
        return llm(embed(batch) if llm.is_first else None, positions), partial(last_stage, batch)

    with outside_inference_mode():
        return get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iter(batches),
            model=llm.gpt,
            num_microbatches=len(batches),
            seq_length=1,  # unused: with variable_seq_lengths stages send each other the shapes
            micro_batch_size=1,
            forward_only=forward_only,
            collect_non_loss_data=collect,
        )
