"""Time per part of a step: marks on one timeline, forward and backward, without changing the measured code.

Time between two marks belongs to the later mark's name. On a GPU marks are CUDA events on the step's stream, so a
share is time on the device's timeline, idle gaps included; on a CPU they are clock readings. Backward is split where
gradients arrive: from the loss to the LLM's last hidden state it is "loss", from there to its input embeddings "llm",
the rest "projector" (the encoders have none).
"""

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

PARTS = ("data", "encoder", "projector", "llm", "loss", "optimizer", "other")


class Timeline:
    """Marks of one or more steps on one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: list[tuple[str | None, Any]] = []

    def start(self) -> None:
        """Start: time before this is not counted."""
        self._add(None)

    def mark(self, part: str) -> None:
        """Time since the last mark was spent on ``part``."""
        self._add(part)

    def shares(self) -> dict[str, float]:
        """Fraction of the marked time per part of `PARTS`."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        spent = dict.fromkeys(PARTS, 0.0)
        for (_, begin), (part, end) in zip(self._marks, self._marks[1:], strict=False):
            if part is not None:
                spent[part] += begin.elapsed_time(end) if self.device.type == "cuda" else end - begin
        total = sum(spent.values())
        return {part: secs / total for part, secs in spent.items()}

    def _add(self, part: str | None) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((part, event))
        else:
            self._marks.append((part, time.perf_counter()))


@contextmanager
def watched(timeline: Timeline, perception: nn.Module, llm: nn.Module) -> Iterator[None]:
    """In this context, marks around the forward and backward passes of encoders, projector and LLM.

    The caller marks the end of the loss as "loss" and the end of the backward as "projector".
    """
    handles = []
    for part, modules in (("encoder", perception.encoders.values()), ("projector", [perception.projector])):
        for module in modules:
            handles.append(module.register_forward_pre_hook(lambda *_: timeline.mark("other")))
            handles.append(module.register_forward_hook(lambda *_, part=part: timeline.mark(part)))

    def before_llm(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        timeline.mark("other")
        kwargs["inputs_embeds"].register_hook(_marking(timeline, "llm"))

    def after_llm(_module: nn.Module, _args: Any, output: Any) -> None:
        timeline.mark("llm")
        output.last_hidden_state.register_hook(_marking(timeline, "loss"))

    handles.append(llm.base_model.register_forward_pre_hook(before_llm, with_kwargs=True))
    handles.append(llm.base_model.register_forward_hook(after_llm))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _marking(timeline: Timeline, part: str) -> Callable[[torch.Tensor], None]:
    def hook(_grad: torch.Tensor) -> None:
        timeline.mark(part)

    return hook


@contextmanager
def counted_waits(device: torch.device, waits: Counter[str]) -> Iterator[None]:
    """Count in ``waits``, by file and line, each wait of the host for the GPU; does nothing on a CPU."""
    if device.type != "cuda":
        yield
        return
    previous = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(previous)
    for warning in caught:
        if "synchroniz" in str(warning.message):
            waits[f"{'/'.join(warning.filename.split('/')[-3:])}:{warning.lineno}"] += 1
