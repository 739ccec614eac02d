"""Joins the trained part of all pipeline stages for a checkpoint, and takes a stage's own out of one.

A checkpoint is that of the plain model, with LoRA in front of the projector; so it fits every layout. Every rank calls
these functions; the pipeline of rank 0, which writes, gathers.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from nemo_desta.core.folder import is_trained_name
from nemo_desta.core.lora import split_lora


def in_order(names: Iterable[str]) -> list[str]:
    """Trained names of the stages in turn -> the order in which the plain model has them."""
    projector, lora = split_lora(dict.fromkeys(names))
    return [*lora, *projector]


def all_names(own: Iterable[str]) -> list[str]:
    """The trained names of all stages, in the plain model's order, on every rank."""
    found: list[Any] = [None] * _group().size()
    dist.all_gather_object(found, [name for name in own if is_trained_name(name)], group=_group())
    return in_order(name for names in found for name in names)


def join_tensors(own: Mapping[str, Any]) -> dict[str, Any]:
    """The trained tensors, or optimiser states, of all stages by name on rank 0; on other ranks their own."""
    stages = _gather(dict(own))
    joined = {name: value for stage in stages for name, value in stage.items() if is_trained_name(name)}
    return {name: joined[name] for name in in_order(joined)}


def join_optimizer(own: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """The optimiser's state dict of the plain model on rank 0; ``names``: of this stage's optimised parameters."""
    states = join_tensors({name: own["state"].get(index) for index, name in enumerate(names)})
    (group,) = own["param_groups"]
    return {
        "state": {index: state for index, state in enumerate(states.values()) if state is not None},
        "param_groups": [{**group, "params": list(range(len(states)))}],
    }


def own_optimizer(saved: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """What a stage's optimiser loads of a whole state dict; ``names``: of the stage's optimised parameters.

    Raises:
        ValueError: the state is that of another number of parameters.
    """
    everything = all_names(names)
    (group,) = saved["param_groups"]
    if len(group["params"]) != len(everything):
        raise ValueError(f"optimiser state of {len(group['params'])} parameters, this model trains {len(everything)}")
    numbers = {name: number for number, name in enumerate(everything)}
    found = {index: saved["state"].get(numbers.get(name)) for index, name in enumerate(names)}
    return {
        "state": {index: state for index, state in found.items() if state is not None},
        "param_groups": [{**group, "params": list(range(len(names)))}],
    }


def _gather(own: dict[str, Any]) -> list[dict[str, Any]]:
    group = _group()
    ranks = dist.get_process_group_ranks(group)
    if group.size() == 1 or ranks[0] != 0:
        return [own]
    stages: list[Any] | None = [None] * group.size() if dist.get_rank() == 0 else None
    dist.gather_object(_on_cpu(own), stages, dst=0, group=group)
    return [own, *stages[1:]] if stages else [own]


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    return {key: _on_cpu(item) for key, item in value.items()} if isinstance(value, dict) else value


def _group() -> dist.ProcessGroup:
    return parallel_state.get_pipeline_model_parallel_group()
