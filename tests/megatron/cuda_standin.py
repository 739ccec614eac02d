"""A stand-in for torch.cuda so that megatron-core runs on a CPU. For tests only; does nothing where a GPU exists.

megatron-core asks torch.cuda for the current device, streams and random states; here the device is the CPU, streams
do nothing and the random state is the CPU's.
"""

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode


class _Stream:
    """A stream on which everything has already happened."""

    def __init__(self, *args, **kwargs):
        self.cuda_stream = 0

    def record_event(self, event=None):
        return self  # an event has the methods of a stream that are used

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None


class _CudaMeansCpu(TorchFunctionMode):
    """``device="cuda"`` becomes the CPU, whatever creates or moves the tensor; pinned memory is ordinary memory."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.to:
            args = tuple(_cpu(value) for value in args)
        if "device" in kwargs:
            kwargs["device"] = _cpu(kwargs["device"])
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        return func(*args, **kwargs)


def _cpu(value):
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    if isinstance(value, str) and value.split(":")[0] == "cuda":
        return "cpu"
    return value


def _get_state(device=None, clone=False, graph_safe=False):
    return torch.get_rng_state()


def _set_state(new_state, device=None, graph_safe=False):
    torch.set_rng_state(new_state)


def _move_to_cpu(tensor, as_numpy=False, record_stream=False):
    """megatron-core's function of that name converts only what is on a GPU; gloo's all-to-all needs the numbers."""
    return tensor.numpy() if as_numpy and isinstance(tensor, torch.Tensor) else tensor


@contextlib.contextmanager
def cuda_standin() -> Iterator[None]:
    """Stand in for torch.cuda inside the block, in this thread; afterwards everything is as before."""
    if torch.cuda.is_available():
        yield
        return
    cpu = torch.device("cpu")
    functions = {
        "current_device": lambda: cpu,
        "set_device": lambda device: None,
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "manual_seed": torch.manual_seed,
        "manual_seed_all": lambda seed: None,  # torch.manual_seed calls it
        "get_rng_state": _get_state,
        "set_rng_state": _set_state,
        "Stream": _Stream,
        "stream": lambda stream=None: contextlib.nullcontext(),
        "current_stream": lambda device=None: _Stream(),
        "default_stream": lambda device=None: _Stream(),
        "memory_allocated": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 0,
    }
    with contextlib.ExitStack() as stack:
        for name, function in functions.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, function))
        stack.enter_context(mock.patch.object(torch.Tensor, "cuda", lambda self, *args, **kwargs: self))
        stack.enter_context(mock.patch.object(torch.nn.Module, "cuda", lambda self, *args, **kwargs: self))
        import megatron.core.tensor_parallel.random as megatron_random
        import megatron.core.transformer.moe.token_dispatcher as token_dispatcher

        stack.enter_context(mock.patch.object(megatron_random, "_get_cuda_rng_state", _get_state))
        stack.enter_context(mock.patch.object(megatron_random, "_set_cuda_rng_state", _set_state))
        stack.enter_context(mock.patch.object(token_dispatcher, "maybe_move_tensor_to_cpu", _move_to_cpu))
        stack.enter_context(_CudaMeansCpu())
        yield
