"""What differs between megatron-core 0.16 and 0.19, and nothing else."""

from functools import partial
from typing import Any

from megatron.core.transformer.spec_utils import ModuleSpec


def submodules_of(spec: ModuleSpec | partial) -> Any:
    """The submodules of a specification; 0.17 and later describe some modules by a partial call."""
    return spec.keywords["submodules"] if isinstance(spec, partial) else spec.submodules
