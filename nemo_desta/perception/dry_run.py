"""Encoders and projector run on a clip without numbers: the FLOPs, and the bytes that backward keeps. No weights.

Floating tensors are torch's fake tensors, which have a shape and no values. Lengths and indices are real, because the
number of windows depends on them. Any registered encoder and projector runs like this.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from nemo_desta.perception.projector import Projector, WindowProjector
from nemo_desta.types import EncoderOutput

aten = torch.ops.aten


@dataclass(frozen=True)
class Cost:
    """Of one clip. ``kept``: bytes that the projector's backward keeps, the encoders' layers included.

    ``vectors``: the LLM's positions. FLOPs are of matrix products, convolutions and attention; a multiplication and an
    addition are two. ``projector_flops``: forward and backward.
    """

    encoder_flops: int
    projector_flops: int
    kept: int
    vectors: int


def dry_run(encoders: Mapping[str, nn.Module], projector: Projector, secs: float, sampling_rate: int) -> Cost:
    """Run a clip of ``secs`` through ``encoders`` and ``projector``; their own weights are not touched or read.

    Dropout is off. The window projector's pooling counts as its GPU kernel, which keeps the layers and what it pools.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    num_samples = max(1, round(secs * sampling_rate))
    lens = torch.tensor([num_samples])
    layers: dict[str, EncoderOutput] = {}
    counter = _Counter()
    for name, encoder in encoders.items():
        samples = -(-num_samples * encoder.sampling_rate // sampling_rate)
        with fake:
            audio = torch.empty(1, samples)
        with counter, torch.no_grad():
            inputs = (audio, torch.tensor([samples]))
            layers[name] = torch.func.functional_call(encoder, _fakes(encoder, fake), inputs)
    encoder_flops, counter.flops = counter.flops, 0
    training = projector.training
    projector.eval()
    weights = _fakes(projector, fake)
    kept = _Kept(weights.values())
    try:
        with counter, torch.enable_grad(), kept.watching(projector):
            given = {"audio_lens": lens, "sampling_rate": sampling_rate}
            vectors, _ = torch.func.functional_call(projector, weights, (layers,), given)
            vectors.sum().backward()
    finally:
        projector.train(training)
    return Cost(encoder_flops, counter.flops, kept.bytes, projector.num_tokens(num_samples, sampling_rate))


def _fakes(module: nn.Module, fake: FakeTensorMode) -> dict[str, Tensor]:
    """A fake tensor for each floating parameter and buffer."""
    found = {}
    with fake:
        for name, real in (*module.named_parameters(), *module.named_buffers()):
            if real.is_floating_point():
                found[name] = torch.empty(real.shape, dtype=real.dtype).requires_grad_(real.requires_grad)
    return found


class _Counter(TorchDispatchMode):
    """Counts the FLOPs of everything that runs, forward or backward."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
            args = (args[0], _without_masks(args[1]), *args[2:])
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **kwargs, out_val=out)
        elif packet is aten._scaled_dot_product_flash_attention_for_cpu:
            self.flops += sdpa_flop_count(*(x.shape for x in args[:3]))
        elif packet is aten._scaled_dot_product_flash_attention_for_cpu_backward:
            self.flops += sdpa_backward_flop_count(*(x.shape for x in args[:4]))
        return out


def _without_masks(indices: Any) -> list[Tensor | None]:
    """Masks with values as numbers: an index by a mask has a shape that only values tell."""
    found: list[Tensor | None] = []
    for index in indices:
        is_mask = index is not None and index.dtype is torch.bool and not isinstance(index, FakeTensor)
        found += index.nonzero().unbind(1) if is_mask else [index]
    return found


class _Kept:
    """Bytes of the storages that a graph holds, ``weights`` left out; a storage counts once."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self.left_out = {tensor.untyped_storage()._cdata for tensor in weights}
        self.held: dict[int, torch.UntypedStorage] = {}
        self.pooling = False

    @property
    def bytes(self) -> int:
        return sum(storage.nbytes() for storage in self.held.values())

    @contextmanager
    def watching(self, projector: Projector) -> Iterator[None]:
        pools = projector.pools.values() if isinstance(projector, WindowProjector) else ()
        hooks = [pool.register_forward_pre_hook(self._pool_begins) for pool in pools]
        hooks += [pool.register_forward_hook(self._pool_ends) for pool in pools]
        try:
            with saved_tensors_hooks(self._pack, lambda tensor: tensor):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _keep(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.left_out:
            self.held[storage._cdata] = storage

    def _pack(self, tensor: Tensor) -> Tensor:
        if not self.pooling:
            self._keep(tensor)
        return tensor

    def _pool_begins(self, pool: nn.Module, args: Any) -> None:
        self.pooling = True
        for layer in args[0].layers:
            self._keep(layer)

    def _pool_ends(self, pool: nn.Module, args: Any, output: Tensor) -> None:
        self.pooling = False
        self._keep(output)
