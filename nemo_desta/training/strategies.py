"""Config group ``strategy/`` -> Lightning strategy and the model class that it trains.

Each strategy has its own settings; unknown ones are refused. Nothing here imports package `megatron` at the top: its
parts are named by path and imported when strategy=megatron is used.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch.distributed.device_mesh import init_device_mesh

from nemo_desta.config import ModelConfig, check_keys, check_type, nearest
from nemo_desta.errors import ConfigError
from nemo_desta.models.base import DestaBase

#: Every trained parameter gets a gradient in every step and frozen ones are outside DDP: no search for unused ones.
DDP_OPTIONS = {"find_unused_parameters": False, "gradient_as_bucket_view": True, "broadcast_buffers": False}
#: Trainer settings that a strategy with manual optimisation applies itself: Lightning refuses them there.
STEP_SETTINGS = {"gradient_clip_val": None, "accumulate_grad_batches": 1, "gradient_clip_algorithm": None}


@dataclass(frozen=True)
class Kind:
    """One strategy. ``build`` and ``model``: a callable and a class, or ``module:attribute``.

    ``takes_step``: optimisation is manual; ``build`` also receives the seed and `STEP_SETTINGS`. ``layout``: computes
    the `Split` of the LLM from the model's config, the number of processes and the knobs.
    """

    knobs: tuple[str, ...]
    build: Callable[..., Strategy | str] | str
    model: str = "nemo_desta.models.desta:DestaModel"
    takes_step: bool = False
    layout: Callable[..., "Split"] | str | None = None


class Split(NamedTuple):
    """How an LLM is split: parts and processes of one copy (several may hold the same part), and a description."""

    num_parts: int
    ranks_per_copy: int
    description: str


def build_strategy(
    config: Mapping[str, Any], *, seed: int = 0, step_settings: Mapping[str, Any] | None = None
) -> Strategy | str:
    """Build the strategy ``config["name"]``.

    Args:
        seed: of a strategy that keeps random states. step_settings: the Trainer's, if `takes_step`.

    Raises:
        ConfigError: unknown name or knob, or tensor parallelism outside strategy=megatron.
    """
    kind, knobs = _kind(config)
    if kind.takes_step:
        knobs = {**knobs, "seed": seed, **STEP_SETTINGS, **(step_settings or {})}
    return _resolve(kind.build)(**knobs)


def takes_step(config: Mapping[str, Any]) -> bool:
    """Whether the strategy clips and accumulates itself, so that the Trainer must not."""
    return _kind(config)[0].takes_step


def model_class(config: Mapping[str, Any]) -> type[DestaBase]:
    """The Lightning module that the strategy trains."""
    return _resolve(_kind(config)[0].model)


def check_layout(config: Mapping[str, Any], model: ModelConfig, num_processes: int | None) -> Split | None:
    """How the LLM is split, None if it is not; checked on configs alone, before any weight is read.

    Raises:
        ConfigError: it cannot be split like that.
    """
    kind, knobs = _kind(config)
    if kind.layout is None:
        return None
    return Split(*_resolve(kind.layout)(model, num_processes, **knobs))


class ShardedLLMStrategy(DDPStrategy):
    """DDP for the trained part, FSDP2 for the frozen LLM: every rank holds 1/N of its blocks.

    The trained part is whole on each rank, so checkpoints and optimiser state are those of DDP and of one device.
    """

    def setup_environment(self) -> None:
        super().setup_environment()
        mesh = init_device_mesh(self.root_device.type, (self.world_size,), mesh_dim_names=("data_parallel",))
        self.lightning_module._device_mesh = mesh  # as Lightning's own model-parallel strategy does


def _fsdp2(tensor_parallel_size: int = 1, process_group_backend: str | None = None) -> Strategy:
    if tensor_parallel_size != 1:
        raise ConfigError(
            f"strategy.tensor_parallel_size={tensor_parallel_size}: fsdp2 shards by data only. "
            "For tensor and pipeline parallelism of the LLM use strategy=megatron."
        )
    return ShardedLLMStrategy(process_group_backend=process_group_backend, **DDP_OPTIONS)


def _kind(config: Mapping[str, Any]) -> tuple[Kind, dict[str, Any]]:
    knobs = dict(config)
    name = knobs.pop("name", None)
    if not isinstance(name, str) or name not in STRATEGIES:
        raise ConfigError(f"unknown strategy '{name}'.{nearest(str(name), STRATEGIES)}")
    check_keys(knobs, STRATEGIES[name].knobs, f"strategy({name})")
    for key, value in knobs.items():
        check_type(value, KNOB_TYPES.get(key, int), f"'strategy.{key}'")
    return STRATEGIES[name], knobs


def _resolve(target: Any) -> Any:
    if not isinstance(target, str):
        return target
    module, attribute = target.split(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "megatron":
            raise
        raise ConfigError("strategy=megatron needs megatron-core: pip install 'nemo_desta[megatron]'") from error


#: Types of knobs that are no whole numbers.
KNOB_TYPES = {"process_group_backend": str | None, "sequence_parallel": bool}

STRATEGIES: dict[str, Kind] = {
    "auto": Kind((), lambda: "auto"),
    "ddp": Kind(("process_group_backend",), partial(DDPStrategy, **DDP_OPTIONS)),
    "fsdp2": Kind(("tensor_parallel_size", "process_group_backend"), _fsdp2),
    "megatron": Kind(
        (
            "tensor_parallel_size",
            "pipeline_parallel_size",
            "sequence_parallel",
            "context_parallel_size",
            "expert_parallel_size",
            "process_group_backend",
        ),
        "nemo_desta.megatron.strategy:MegatronStrategy",
        "nemo_desta.megatron.model:MegatronDestaModel",
        takes_step=True,
        layout="nemo_desta.megatron.strategy:describe_layout",
    ),
}
