"""Weights straight from safetensors shards into a rank's parameters, slice by slice, and back out again.

A rank reads only what it holds; on the host it never has more than one slice beyond that. A tensor without a home, on
either side, is an error that names it.
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from megatron.core import parallel_state
from safetensors import safe_open
from torch import nn
from transformers import PretrainedConfig

from nemo_desta.config import ConfigError
from nemo_desta.megatron.layout import Layout
from nemo_desta.megatron.names import COMPUTED, EMBEDDINGS, HEAD, Home, find_home, part_names, part_shape
from nemo_desta.sources import local_folder, resolve_source

logger = logging.getLogger(__name__)

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
#: Elements that `embedding_rms` reads at a time.
CHUNK_ELEMENTS = 1 << 22


class Shards:
    """The tensors of a Hugging Face folder by name, read slice by slice from its safetensors files."""

    def __init__(self, folder: Path):
        self.folder = folder
        index = folder / INDEX_FILE
        if index.exists():
            self.files: dict[str, str] = json.loads(index.read_text())["weight_map"]
        elif (folder / SINGLE_FILE).exists():
            with safe_open(folder / SINGLE_FILE, framework="pt") as file:
                self.files = dict.fromkeys(file.keys(), SINGLE_FILE)
        else:
            raise ConfigError(f"no {SINGLE_FILE} or {INDEX_FILE} in '{folder}': the LLM's weights must be safetensors")
        self._open: dict[str, safe_open] = {}

    def __getitem__(self, name: str):
        file = self.files[name]
        if file not in self._open:
            self._open[file] = safe_open(self.folder / file, framework="pt")
        return self._open[file].get_slice(name)

    def close(self) -> None:
        """Let go of the mapped files."""
        self._open.clear()


def weights_folder(source: str | Path) -> Path:
    """Folder of the LLM's safetensors: a local one, or the hub's snapshot, which is fetched when it is not here."""
    folder = local_folder(str(source))
    if folder is not None and any(folder.glob("*.safetensors")):
        return folder
    if folder is not None and Path(resolve_source(str(source))).exists():
        return folder
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(source), allow_patterns=["*.safetensors", INDEX_FILE]))


@torch.no_grad()
def load_weights(gpt: nn.Module, source: str | Path, config: PretrainedConfig, layout: Layout) -> None:
    """Fill this rank's parameters from the shards at ``source``.

    Raises:
        ConfigError: a tensor of the checkpoint without a parameter, or the other way round, or of another shape.
    """
    shards = Shards(weights_folder(source))
    _check_names(shards, config)
    for name, parameter, home in homes(gpt, config, layout):
        if tuple(parameter.shape) != home.shape:
            raise ConfigError(f"{name}: the model has shape {tuple(parameter.shape)}, the table says {home.shape}")
        filled = 0
        for piece in home.pieces:
            values = shards[piece.part]
            if tuple(values.get_shape()) != part_shape(piece.part, config):
                raise ConfigError(
                    f"'{piece.part}' in '{shards.folder}' has shape {tuple(values.get_shape())}, "
                    f"its config.json says {part_shape(piece.part, config)}"
                )
            target = parameter[piece.target]
            target.copy_(values[piece.source])
            filled += target.numel()
        if filled < parameter.numel():  # rows of the padded vocabulary
            parameter[filled // parameter[0].numel() :] = 0
    shards.close()


def homes(gpt: nn.Module, config: PretrainedConfig, layout: Layout) -> Iterator[tuple[str, nn.Parameter, Home]]:
    """Every parameter of this rank with what fills it."""
    stages = layout.layers_per_stage(config.num_hidden_layers)
    offset = sum(stages[: parallel_state.get_pipeline_model_parallel_rank()])
    for name, parameter in gpt.named_parameters():
        home = find_home(
            name,
            config,
            layer_offset=offset,
            padded_vocab_size=layout.padded_vocab_size(config.vocab_size),
            rank=parallel_state.get_tensor_model_parallel_rank(),
            size=layout.tensor_parallel_size,
        )
        if home is None:
            raise ConfigError(f"parameter '{name}' of the megatron-core model has no Hugging Face name in the table")
        yield name, parameter, home


def embedding_rms(source: str | Path) -> float:
    """RMS of the LLM's input embeddings, read from the shards in chunks; the same number on every rank."""
    shards = Shards(weights_folder(source))
    table = shards[EMBEDDINGS]
    num_rows, width = table.get_shape()
    step = max(1, CHUNK_ELEMENTS // width)
    total = sum(table[start : start + step].double().pow(2).sum().item() for start in range(0, num_rows, step))
    shards.close()
    return (total / (num_rows * width)) ** 0.5


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
    embeddings, head = shards[EMBEDDINGS], shards[HEAD]
    num_rows, width = embeddings.get_shape()
    step = max(1, CHUNK_ELEMENTS // width)
    same = embeddings.get_shape() == head.get_shape() and all(
        torch.equal(embeddings[i : i + step], head[i : i + step]) for i in range(0, num_rows, step)
    )
    if not same:
        raise ConfigError(
            f"config.json in '{shards.folder}' ties the head to the embeddings (tie_word_embeddings), but the files "
            f"hold a '{HEAD}' of their own: one of the two is wrong"
        )
