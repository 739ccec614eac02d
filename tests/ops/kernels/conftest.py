"""On a GPU these tests run the kernels there; on a CPU Triton interprets them, in a process of its own.

`tests.ops.test_kernels` starts that process. A bare checkout on a GPU machine needs torch, triton and pytest only:
``python -m pytest tests/ops/kernels``.
"""

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = [] if torch.cuda.is_available() else ["test_*.py"]
else:
    from triton.runtime import interpreter

    swapped = set()

    def call(self, *args, **kwargs):
        module = self.fn.__module__
        if module.startswith("triton.") and module not in swapped:  # tl.sum and friends; ours are done by the launch
            interpreter._patch_lang(self.fn)
            swapped.add(module)
        return self.rewrite()(*args, **kwargs)

    # A launch swaps triton.language for the interpreter's own; every call of one kernel function by another would swap
    # it again, to the same thing, at some milliseconds each: ten times the arithmetic of these tests.
    interpreter.InterpretedFunction.__call__ = call

    # No offset of these small tensors comes near 2**31, and to check each integer operation is a fifth of the time.
    object.__setattr__(interpreter.interpreter_builder.options, "sanitize_overflow", False)

    numpy_dtypes = {}
    find_dtype = interpreter._get_np_dtype

    def get_np_dtype(kind):
        name = kind.scalar.name
        if name not in numpy_dtypes:
            numpy_dtypes[name] = find_dtype(kind.scalar)
        return numpy_dtypes[name]

    interpreter._get_np_dtype = get_np_dtype  # the interpreter's own builds a dictionary of all types at each call


@pytest.fixture(autouse=True)
def poisoned_memory():
    """`torch.empty` and the like return NaN: a test sees an element that a kernel reads early or never writes."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)
