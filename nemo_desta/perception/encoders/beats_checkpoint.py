"""Public BEATs checkpoints: reading and writing ``{'cfg', 'model'[, 'label_dict']}``, and the two names that differ.

Here the positional convolution has a plain weight, where a checkpoint has a weight-normalised one (``weight_g``,
``weight_v``; or torch's newer parametrisation), and the table of relative positions exists once, where a checkpoint
repeats it under every layer.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

CONV = "encoder.pos_conv.0."
#: (magnitude, direction) under torch's old and new weight normalisation.
NORMED = (("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1"))
TABLE = "encoder.relative_attention_bias.weight"
LAYER_TABLE = "encoder.layers.{}.self_attn.relative_attention_bias.weight"


def load(path: str | Path) -> dict[str, Any]:
    """The checkpoint's dictionary, read with ``weights_only=True``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a BEATs checkpoint.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"no BEATs checkpoint at '{path}'; `python -m nemo_desta.perception.download beats` says where to get one"
        )
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(checkpoint, dict) or not {"cfg", "model"} <= checkpoint.keys():
        found = sorted(map(str, checkpoint))[:5] if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise ValueError(f"'{path}' is no BEATs checkpoint: expected the keys 'cfg' and 'model', found {found}")
    return checkpoint


def save(
    path: str | Path, *, cfg: dict[str, Any], model: dict[str, torch.Tensor], label_dict: dict[Any, str] | None
) -> None:
    """Write a checkpoint that `load` and the original implementation read."""
    checkpoint: dict[str, Any] = {"cfg": cfg, "model": model}
    if label_dict is not None:
        checkpoint["label_dict"] = label_dict
    torch.save(checkpoint, Path(path).expanduser())


def from_official(state: Mapping[str, torch.Tensor], names: Iterable[str], *, where: str) -> dict[str, torch.Tensor]:
    """Tensors ``names`` of `Beats` out of a checkpoint's ``model``.

    Raises:
        ValueError: a tensor is missing.
    """
    ours = dict(state)
    for magnitude, direction in NORMED:
        if CONV + direction in ours:
            g, v = ours.pop(CONV + magnitude).float(), ours.pop(CONV + direction).float()
            ours[CONV + "weight"] = g * v / v.norm(dim=(0, 1), keepdim=True)
    if LAYER_TABLE.format(0) in ours:
        ours[TABLE] = ours[LAYER_TABLE.format(0)]
    names = list(names)
    missing = [name for name in names if name not in ours]
    if missing:
        raise ValueError(f"'{where}': {len(missing)} of {len(names)} BEATs tensors are missing, first '{missing[0]}'")
    return {name: ours[name] for name in names}


def to_official(state: Mapping[str, torch.Tensor], num_layers: int) -> dict[str, torch.Tensor]:
    """The state of `Beats` under the names of public checkpoints; tensors are detached, on the CPU."""
    official = {name: tensor.detach().cpu() for name, tensor in state.items()}
    weight = official.pop(CONV + "weight")
    official[CONV + "weight_g"] = weight.norm(dim=(0, 1), keepdim=True)
    official[CONV + "weight_v"] = weight
    table = official.pop(TABLE)
    return official | {LAYER_TABLE.format(layer): table for layer in range(num_layers)}
