"""Public BEATs checkpoints: reading and writing ``{'cfg', 'model'[, 'label_dict']}``.

Two things differ from `Beats`: a checkpoint has the table of relative positions under every layer, `Beats` once; and
some checkpoints have the positional convolution in torch's newer weight normalisation, or without one.
"""

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from nemo_desta.perception.tensor_files import load_tensors

CONV = "encoder.pos_conv.0."
NEWER_NAMES = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
TABLE = "encoder.relative_attention_bias.weight"
LAYER_TABLE = "encoder.layers.{}.self_attn.relative_attention_bias.weight"


def load(path: str | Path, *, mmap: bool = False) -> dict[str, Any]:
    """The checkpoint's dictionary, read with ``weights_only=True``; with ``mmap`` tensors are read on first use.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a BEATs checkpoint.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"no BEATs checkpoint at '{path}'; `python -m nemo_desta.perception.download beats` says where to get one"
        )
    checkpoint = load_tensors(path, mmap=mmap and zipfile.is_zipfile(path))  # torch's old format is no zip file
    if not isinstance(checkpoint, dict) or not {"cfg", "model"} <= checkpoint.keys():
        found = sorted(map(str, checkpoint))[:5] if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise ValueError(f"'{path}' is no BEATs checkpoint: expected the keys 'cfg' and 'model', found {found}")
    return checkpoint


def save(
    path: str | Path, *, cfg: dict[str, Any], model: dict[str, torch.Tensor], label_dict: dict[Any, str] | None
) -> None:
    """Write a checkpoint that `load` and the original implementation read."""
    checkpoint: dict[str, Any] = {"cfg": cfg, "model": {name: tensor.cpu() for name, tensor in model.items()}}
    if label_dict is not None:
        checkpoint["label_dict"] = label_dict
    torch.save(checkpoint, Path(path).expanduser())


def from_official(state: Mapping[str, torch.Tensor], names: Iterable[str], *, where: str) -> dict[str, torch.Tensor]:
    """Tensors ``names`` of `Beats` from a checkpoint's ``model``.

    Raises:
        ValueError: a tensor is missing.
    """
    ours = dict(state)
    for newer, name in NEWER_NAMES.items():
        if CONV + newer in ours:
            ours[CONV + name] = ours[CONV + newer]
    if CONV + "weight" in ours:
        ours[CONV + "weight_v"] = ours[CONV + "weight"]
        ours[CONV + "weight_g"] = ours[CONV + "weight"].float().norm(dim=(0, 1), keepdim=True)
    if LAYER_TABLE.format(0) in ours:
        ours[TABLE] = ours[LAYER_TABLE.format(0)]
    names = list(names)
    missing = [name for name in names if name not in ours]
    if missing:
        raise ValueError(f"'{where}': {len(missing)} of {len(names)} BEATs tensors are missing, first '{missing[0]}'")
    return {name: ours[name] for name in names}


def to_official(state: Mapping[str, torch.Tensor], num_layers: int) -> dict[str, torch.Tensor]:
    """The state of `Beats` under the names of public checkpoints."""
    official = {name: tensor.detach() for name, tensor in state.items()}
    table = official.pop(TABLE)
    return official | {LAYER_TABLE.format(layer): table for layer in range(num_layers)}
