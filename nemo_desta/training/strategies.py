"""Config group ``strategy/`` -> Lightning strategy. Each name has its own knobs; unknown ones are refused."""

from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch.distributed.device_mesh import init_device_mesh

from nemo_desta.config import ConfigError, check_keys, nearest

#: Every trained parameter takes part in every step, and frozen ones are outside DDP: nothing to search for.
DDP_OPTIONS = {"find_unused_parameters": False, "gradient_as_bucket_view": True, "broadcast_buffers": False}


def build_strategy(config: Mapping[str, Any]) -> Strategy | str:
    """Build the strategy that ``config["name"]`` asks for.

    Raises:
        ConfigError: unknown name or knob, or tensor parallelism outside strategy=megatron.
    """
    knobs = dict(config)
    name = knobs.pop("name", None)
    if name not in STRATEGIES:
        raise ConfigError(f"unknown strategy '{name}'.{nearest(str(name), STRATEGIES)}")
    known, build = STRATEGIES[name]
    check_keys(knobs, known, f"strategy({name})")
    return build(**knobs)


class ShardedLLMStrategy(DDPStrategy):
    """DDP for what trains, FSDP2 for the frozen LLM: every rank holds 1/N of its blocks.

    The trained part stays whole on each rank, so checkpoints and optimiser state are those of DDP and of one device.
    """

    def setup_environment(self) -> None:
        super().setup_environment()
        mesh = init_device_mesh(self.root_device.type, (self.world_size,), mesh_dim_names=("data_parallel",))
        self.lightning_module._device_mesh = mesh  # as Lightning's own model-parallel strategy does


def _auto() -> str:
    return "auto"


def _ddp(process_group_backend: str | None = None) -> Strategy:
    return DDPStrategy(process_group_backend=process_group_backend, **DDP_OPTIONS)


def _fsdp2(tensor_parallel_size: int = 1, process_group_backend: str | None = None) -> Strategy:
    if tensor_parallel_size != 1:
        raise ConfigError(
            f"strategy.tensor_parallel_size={tensor_parallel_size}: fsdp2 shards by data only. "
            "Tensor and pipeline parallelism of the LLM come with strategy=megatron."
        )
    return ShardedLLMStrategy(process_group_backend=process_group_backend, **DDP_OPTIONS)


STRATEGIES: dict[str, tuple[tuple[str, ...], Callable[..., Strategy | str]]] = {
    "auto": ((), _auto),
    "ddp": (("process_group_backend",), _ddp),
    "fsdp2": (("tensor_parallel_size", "process_group_backend"), _fsdp2),
}
