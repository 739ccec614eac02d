"""One process of a copy of the LLM reads the data and broadcasts each batch to the others (TP x CP x PP).

If every rank read the data, ranks could get different batches (a file that is missing on one node, a row that decodes
differently), and the run would hang. Audio goes to the first pipeline stage only, which has the encoders.
megatron-core's model-parallel group is TP x PP: the other context-parallel ranks are reached in a second hop.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

AUDIO = "audio"


def reads_data() -> bool:
    """Whether this process is the reader: the first rank of its copy of the LLM, which has the encoders."""
    is_first = dist.get_rank() == parallel_state.get_model_parallel_src_rank()
    return is_first and parallel_state.get_context_parallel_rank() == 0


class BroadcastLoader:
    """A loader whose batches come from the group's first rank; the loaders of other ranks are not used.

    Adds ``vector_lens`` (A,): number of vectors of each clip, which stages without encoders cannot compute.

    Args:
        loader: the data module's. num_audio_tokens: samples of a clip -> vectors; called on the reading rank.
        device: of the batches.
    """

    def __init__(self, loader: Any, *, num_audio_tokens: Callable[[int], int], device: torch.device) -> None:
        self.loader = loader
        self.num_audio_tokens = num_audio_tokens
        self.device = device
        self._length = _share(lambda: len(loader) if hasattr(loader, "__len__") else None)

    def __len__(self) -> int:
        if self._length is None:
            raise TypeError("this loader has no length")
        return self._length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        source = iter(self.loader) if reads_data() else None
        while (batch := self._next(source)) is not None:
            yield batch

    @property
    def _iterator(self) -> Any:
        """Lightning shuts down data workers through an attribute of this name."""
        return getattr(self.loader, "_iterator", None)

    @_iterator.setter
    def _iterator(self, value: Any) -> None:
        self.loader._iterator = value

    def _next(self, source: Iterator[dict[str, Any]] | None) -> dict[str, Any] | None:
        own: dict[str, torch.Tensor] = {}

        def header() -> tuple[dict[str, Any], dict[str, tuple[torch.Size, torch.dtype]]] | None:
            if (batch := next(source, None)) is None:
                return None
            counts = [self.num_audio_tokens(int(samples)) for samples in batch["audio_lens"]]
            batch = {**batch, "vector_lens": torch.tensor(counts, dtype=torch.int64)}
            own.update({name: value for name, value in batch.items() if isinstance(value, torch.Tensor)})
            plain = {name: value for name, value in batch.items() if name not in own}
            return plain, {name: (tensor.shape, tensor.dtype) for name, tensor in own.items()}

        if (found := _share(header)) is None:
            return None
        batch, shapes = dict(found[0]), found[1]
        for name, (shape, dtype) in shapes.items():
            if name == AUDIO and not parallel_state.is_pipeline_first_stage():
                batch[name] = torch.zeros(0, 0, dtype=dtype, device=self.device)
                continue
            empty = torch.empty(shape, dtype=dtype, device=self.device)
            tensor = own[name].to(self.device, non_blocking=True) if name in own else empty
            for group in _hops(audio=name == AUDIO) if tensor.numel() else ():
                dist.broadcast(tensor, src=dist.get_global_rank(group, 0), group=group)
            batch[name] = tensor
        return batch


def from_first(tensor: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """The tensor of the group's first rank on all of them; that of the others may have another shape."""
    if group.size() == 1:
        return tensor
    first = dist.get_global_rank(group, 0)
    shape = [tensor.shape]
    dist.broadcast_object_list(shape, src=first, group=group)
    tensor = tensor.contiguous() if group.rank() == 0 else tensor.new_empty(shape[0])
    dist.broadcast(tensor, src=first, group=group)
    return tensor


def _hops(*, audio: bool = False) -> list[dist.ProcessGroup]:
    """The groups in which this rank takes part when the reader broadcasts, in order; ``audio``: to the first stage."""
    first = parallel_state.get_tensor_model_parallel_group() if audio else parallel_state.get_model_parallel_group()
    hops = [first] if parallel_state.get_context_parallel_rank() == 0 else []
    return [group for group in [*hops, parallel_state.get_context_parallel_group()] if group.size() > 1]


def _share(make: Callable[[], Any]) -> Any:
    """Call ``make`` on the reading rank and broadcast its result; if it fails, every rank of the copy raises."""
    if not (hops := _hops()):
        return make()
    answer: list[Any] = [None, None]
    failed: Exception | None = None
    if reads_data():
        try:
            answer[1] = make()
        except Exception as error:  # broadcast it, or the other ranks would wait for ever; raised below
            what = f"{type(error).__name__}: {error}"
            failed, answer[0] = error, f"rank {dist.get_rank()}, which reads the data for this rank, failed: {what}"
    for group in hops:
        dist.broadcast_object_list(answer, src=dist.get_global_rank(group, 0), group=group)
    if failed is not None:
        raise failed
    if answer[0] is not None:
        raise RuntimeError(answer[0])
    return answer[1]
