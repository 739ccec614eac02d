"""Config group ``strategy/`` -> Lightning strategy. Each name has its own knobs; unknown ones are refused."""

from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy

from nemo_desta.config import ConfigError, check_keys, nearest


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


def _auto() -> str:
    return "auto"


def _ddp(process_group_backend: str | None = None) -> Strategy:
    # Every trained parameter takes part in every step, and frozen ones are outside DDP: nothing to search for.
    return DDPStrategy(
        process_group_backend=process_group_backend,
        find_unused_parameters=False,
        gradient_as_bucket_view=True,
        broadcast_buffers=False,
    )


def _fsdp2(
    data_parallel_size: int | str = "auto", tensor_parallel_size: int = 1, process_group_backend: str | None = None
) -> Strategy:
    if tensor_parallel_size != 1:
        raise ConfigError(
            f"strategy.tensor_parallel_size={tensor_parallel_size}: fsdp2 shards by data only. "
            "Tensor and pipeline parallelism of the LLM come with strategy=megatron."
        )
    return ModelParallelStrategy(
        data_parallel_size=data_parallel_size,
        tensor_parallel_size=1,
        save_distributed_checkpoint=False,
        process_group_backend=process_group_backend,
    )


STRATEGIES: dict[str, tuple[tuple[str, ...], Callable[..., Strategy | str]]] = {
    "auto": ((), _auto),
    "ddp": (("process_group_backend",), _ddp),
    "fsdp2": (("data_parallel_size", "tensor_parallel_size", "process_group_backend"), _fsdp2),
}
