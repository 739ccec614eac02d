"""Bytes that torch really holds during a training step of a stage of the LLM: kept for backward, and alive at most."""

import contextlib
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Kept:
    """Storages that autograd graphs hold, parameters left out; each counts once however many views are kept."""

    def __init__(self, parameters: Any) -> None:
        self.left_out = {parameter.untyped_storage().data_ptr() for parameter in parameters}
        self.uses: Counter[int] = Counter()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    @contextlib.contextmanager
    def watching(self) -> Iterator["Kept"]:
        with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda held: held.tensor):
            yield self

    def _pack(self, tensor: torch.Tensor) -> Any:
        held = _Held(tensor)
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        if place in self.left_out:
            return held
        if not self.uses[place]:
            self.sizes[place] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
        self.uses[place] += 1
        weakref.finalize(held, self._let_go, place)
        return held

    def _let_go(self, place: int) -> None:
        self.uses[place] -= 1
        if not self.uses[place]:
            self.now -= self.sizes[place]


class _Held:
    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


class Alive(TorchDispatchMode):
    """Storages made inside the block and still there, parameters left out."""

    def __init__(self, parameters: Any) -> None:
        super().__init__()
        self.known: dict[int, Any] = {parameter.untyped_storage()._cdata: None for parameter in parameters}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(given):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        self.peak = max(self.peak, self.now)
        return given

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.known:
            size = storage.nbytes()
            self.known[key] = weakref.finalize(storage, self._gone, key, size)
            self.now += size

    def _gone(self, key: int, size: int) -> None:
        del self.known[key]
        self.now -= size


def step_bytes(cases: list[dict[str, Any]]) -> list[dict[str, int]]:
    """This rank's `measured` of each case; to be launched on as many ranks as the layouts have."""
    from nemo_desta.megatron.layout import Layout
    from tests.megatron.llms import groups

    found = []
    for case in cases:
        case = dict(case)
        layout = Layout(**case.pop("layout"))
        sizes = (layout.tensor_parallel_size, layout.pipeline_parallel_size, layout.context_parallel_size)
        with groups(*sizes, layout.expert_parallel_size):
            found.append(measured(layout, **case))
    return found


def measured(
    layout: Any,
    *,
    model_type: str,
    sizes: dict[str, Any],
    dtype: str,
    recompute: bool,
    rows: int,
    length: int,
    targets: int,
    micro_batches: int,
    lora: dict[str, Any] | None = None,
) -> dict[str, int]:
    """``weights`` (bytes), and what a step through megatron-core's schedule had at most: ``kept``, ``alive``."""
    from nemo_desta.megatron import attention
    from nemo_desta.megatron.llm import StageLLM
    from nemo_desta.megatron.step import run_losses
    from tests.megatron.llms import make_config

    torch.manual_seed(0)
    config = make_config(model_type, **sizes)
    llm = StageLLM(config, layout, dtype=getattr(torch, dtype), recompute=recompute)
    llm.config.calculate_per_token_loss = True
    for parameter in llm.parameters():
        parameter.data.normal_(0, 0.02)
    frozen = list(llm.parameters())
    if lora is not None:
        from nemo_desta.config import LoraConfig
        from nemo_desta.megatron.lora import SplitLora

        adapters = SplitLora(llm, LoraConfig(**lora), dropout=0.0 if recompute else lora["dropout"])
        adapters.seed((1,), torch.device("cpu"))
    attention.causal_lower_right = _causal_mask  # a subclass of tensors cannot be made while `Alive` watches
    start = torch.zeros(config.hidden_size, dtype=llm.dtype, requires_grad=True)  # stands for the projector
    batch = {
        "input_ids": torch.randint(0, config.vocab_size, (rows, length)),
        "input_lens": torch.full((rows,), length),
        "prompt_lens": torch.full((rows,), length - targets // rows),
        "vector_lens": torch.zeros(0, dtype=torch.int64),
    }

    def step() -> None:
        run_losses(llm, lambda batch: llm.embed(batch["input_ids"]) + start, [batch] * micro_batches, train=True)

    step()  # what megatron-core builds once and keeps is there now
    with Kept(llm.parameters()).watching() as kept:
        step()
    with Alive(llm.parameters()) as alive:
        step()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in frozen)
    trained = sum(parameter.numel() for parameter in llm.parameters()) - sum(p.numel() for p in frozen)
    return {"weights": weights, "trained": trained, "kept": kept.peak, "alive": alive.peak}


def _causal_mask(num_queries: int, num_keys: int) -> torch.Tensor:
    """What torch's ``causal_lower_right`` becomes on a CPU."""
    return torch.ones(num_queries, num_keys, dtype=torch.bool).tril(num_keys - num_queries)
