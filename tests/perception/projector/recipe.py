"""Weights of the parity fixtures: made again from their recipe, or read where they were stored.

The originals ran with random weights drawn by numpy's frozen legacy generator, seeded by the tensor's name; a checksum
over all tensors of a case proves that these are the very same bits.
"""

import hashlib
import json
import zlib
from pathlib import Path

import numpy as np
import torch

FIXTURES = Path(__file__).parents[2] / "fixtures"


def load_weights(folder: str, case: str) -> dict[str, torch.Tensor]:
    """The original state dict of one case, under the original names."""
    entry = json.loads((FIXTURES / folder / "weights.json").read_text())[case]
    state = {
        name: _draw(kind, name, tuple(shape), entry["seed"])
        for kind, shapes in entry["recipe"].items()
        for name, shape in shapes.items()
    }
    if entry["stored"]:
        with np.load(FIXTURES / folder / "weights_stored.npz") as stored:
            state |= {name: stored[f"{case}/{name}"] for name in entry["stored"]}
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(state[name]).tobytes())
    assert digest.hexdigest() == entry["sha256"], f"{folder}/{case}: the weights are not the original run's"
    return {name: torch.from_numpy(np.array(array)) for name, array in state.items()}


def load_arrays(folder: str, case: str) -> dict[str, torch.Tensor]:
    """Inputs and outputs of one case."""
    with np.load(FIXTURES / folder / f"{case}.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def _draw(kind: str, name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    generator = np.random.RandomState((zlib.crc32(name.encode()) + seed * 7919) % 2**31)
    z = generator.standard_normal(shape).astype(np.float32)
    if kind == "matrix":
        return (z.astype(np.float64) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
    return {"bias": np.float32(0.1) * z, "norm": 1 + np.float32(0.2) * z, "unit": z}[kind]
