"""Load a rank's parameters from safetensors shards, slice by slice, and export them again.

A rank reads only its own slices, in blocks: beyond its parameters it needs host memory for one block. A tensor without
a parameter, or a parameter without a tensor, is an error that names it.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor, nn
from transformers import PretrainedConfig

from nemo_desta.errors import ConfigError
from nemo_desta.megatron.layout import Layout
from nemo_desta.megatron.param_mapping import COMPUTED, EMBEDDINGS, HEAD, Home, find_home, part_names, part_shape
from nemo_desta.megatron.shards import INDEX_FILE, Shards, weights_folder
from nemo_desta.perception.tensor_files import save_tensors

#: Approximate bytes of a file that `export_weights` writes.
FILE_BYTES = 4 << 30


@torch.no_grad()
def load_weights(gpt: nn.Module, source: str | Path, config: PretrainedConfig, layout: Layout) -> None:
    """Fill this rank's parameters from the shards at ``source``.

    Raises:
        ConfigError: a tensor without a parameter, a parameter without a tensor, or a wrong shape.
    """
    shards = Shards(weights_folder(source))
    _check_names(shards, config)
    for name, parameter, home in homes(gpt, config, layout):
        if tuple(parameter.shape) != home.shape:
            raise ConfigError(f"{name}: the model has shape {tuple(parameter.shape)}, the table says {home.shape}")
        filled = 0
        for piece in home.pieces:
            if shards.shape(piece.part) != part_shape(piece.part, config):
                raise ConfigError(
                    f"'{piece.part}' in '{shards.folder}' has shape {shards.shape(piece.part)}, "
                    f"its config.json says {part_shape(piece.part, config)}"
                )
            target = parameter[piece.target]
            for start, values in shards.blocks(piece.part, piece.source):
                target[start : start + values.shape[0]].copy_(values)
                del values  # unmap it before the next block is mapped
            filled += target.shape[0]
        parameter[filled:] = 0  # rows of the padded vocabulary
    shards.close()


@torch.no_grad()
def export_weights(gpt: nn.Module, folder: str | Path, config: PretrainedConfig, layout: Layout) -> Path:
    """Write the LLM as a Hugging Face folder; every rank calls this.

    The first rank of each stage writes its layers, the first rank that holds an expert writes that expert.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written: dict[str, str] = {}
    num_bytes = 0
    for number, tensors in enumerate(_files(_gathered(gpt, config, layout))):
        name = f"model-rank{dist.get_rank():03d}-{number:03d}.safetensors"
        save_tensors(tensors, folder / name)
        written.update(dict.fromkeys(tensors, name))
        num_bytes += sum(tensor.nbytes for tensor in tensors.values())
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, (written, num_bytes))
    if dist.get_rank() == 0:
        weight_map = {name: file for names, _ in everywhere for name, file in names.items()}
        index = {"metadata": {"total_size": sum(size for _, size in everywhere)}, "weight_map": weight_map}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")
        config.save_pretrained(folder)
    dist.barrier()
    return folder


def embedding_rms(source: str | Path) -> float:
    """RMS of the LLM's input embeddings, read from the shards block by block; equal on every rank."""
    shards = Shards(weights_folder(source))
    shape = shards.shape(EMBEDDINGS)
    blocks = shards.blocks(EMBEDDINGS, tuple(slice(0, count) for count in shape))
    total = sum(values.double().pow(2).sum().item() for _, values in blocks)
    shards.close()
    return math.sqrt(total / math.prod(shape))


def homes(gpt: nn.Module, config: PretrainedConfig, layout: Layout) -> Iterator[tuple[str, nn.Parameter, Home]]:
    """Every parameter of this rank with the pieces that fill it."""
    rank = parallel_state.get_tensor_model_parallel_rank()
    for name, parameter in gpt.named_parameters():
        yield name, parameter, _home(name, config, layout, rank)


def _home(name: str, config: PretrainedConfig, layout: Layout, rank: int) -> Home:
    """``rank``: of the tensor-parallel group."""
    stages = layout.layers_per_stage(config.num_hidden_layers)
    home = find_home(
        name,
        config,
        layer_offset=sum(stages[: parallel_state.get_pipeline_model_parallel_rank()]),
        padded_vocab_size=layout.padded_vocab_size(config.vocab_size),
        rank=rank,
        size=layout.tensor_parallel_size,
        expert_offset=parallel_state.get_expert_model_parallel_rank() * layout.experts_per_rank(config),
    )
    if home is None:
        raise ConfigError(f"parameter '{name}' of the megatron-core model has no Hugging Face name in the table")
    return home


def _gathered(gpt: nn.Module, config: PretrainedConfig, layout: Layout) -> Iterator[tuple[str, Tensor]]:
    """Hugging Face tensors that this rank writes."""
    group = parallel_state.get_tensor_model_parallel_group()
    in_first_copy = parallel_state.get_data_parallel_rank(with_context_parallel=True) == 0
    is_writer = in_first_copy and parallel_state.get_tensor_model_parallel_rank() == 0
    for name, parameter, home in homes(gpt, config, layout):
        if ".experts." in name:  # whole on this rank
            if parallel_state.get_expert_data_parallel_rank() == 0:
                yield from _whole([parameter.detach()], [home], config)
            continue
        if not in_first_copy:
            continue
        ranks = [torch.empty_like(parameter) for _ in range(layout.tensor_parallel_size)] if is_writer else None
        dist.gather(parameter.detach(), ranks, dst=dist.get_global_rank(group, 0), group=group)
        if not is_writer or (name.startswith("output_layer.") and config.tie_word_embeddings):
            continue
        yield from _whole(ranks, [_home(name, config, layout, rank) for rank in range(len(ranks))], config)


def _whole(ranks: list[Tensor], homes: list[Home], config: PretrainedConfig) -> Iterator[tuple[str, Tensor]]:
    """The Hugging Face tensors of a parameter, from its values on the ranks that share it."""
    names = sorted({piece.part for home in homes for piece in home.pieces})
    whole = {part: torch.empty(part_shape(part, config), dtype=ranks[0].dtype) for part in names}
    for values, home in zip(ranks, homes, strict=True):
        for piece in home.pieces:
            whole[piece.part][piece.source] = values[piece.target].cpu()
    yield from whole.items()


def _files(tensors: Iterator[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Tensors in groups of about FILE_BYTES."""
    group: dict[str, Tensor] = {}
    for name, tensor in tensors:
        group[name] = tensor
        if sum(tensor.nbytes for tensor in group.values()) >= FILE_BYTES:
            yield group
            group = {}
    if group:
        yield group


def _check_names(shards: Shards, config: PretrainedConfig) -> None:
    found = {name for name in shards.files if not COMPUTED.search(name)}
    needed = part_names(config)
    if config.tie_word_embeddings and HEAD in found:
        _check_tied(shards)
        found.discard(HEAD)
    if homeless := sorted(found - needed):
        raise ConfigError(
            f"'{shards.folder}' holds {len(homeless)} tensors that a {config.model_type} LLM has no place for: "
            f"{', '.join(homeless[:5])}"
        )
    if missing := sorted(needed - found):
        raise ConfigError(
            f"'{shards.folder}' lacks {len(missing)} tensors of a {config.model_type} LLM: {', '.join(missing[:5])}"
        )


def _check_tied(shards: Shards) -> None:
    shape = shards.shape(EMBEDDINGS)
    whole = tuple(slice(0, count) for count in shape)
    same = shards.shape(HEAD) == shape and all(
        torch.equal(values, next(shards.blocks(HEAD, (slice(start, start + values.shape[0]), *whole[1:])))[1])
        for start, values in shards.blocks(EMBEDDINGS, whole)
    )
    if not same:
        raise ConfigError(
            f"config.json in '{shards.folder}' ties the head to the embeddings (tie_word_embeddings), but the files "
            f"hold a '{HEAD}' of their own: one of the two is wrong"
        )
