"""Lightning strategy around megatron-core's process groups: which rank reads data, holds parameters, writes.

Ranks count tensor-parallel first, then context-parallel, then data-parallel, then pipeline stages (megatron-core's
order). So rank 0 always has the encoders and the projector, and it writes the checkpoints, in DestaModel's format.
"""

from collections.abc import Mapping
from typing import Any

from lightning import Trainer
from lightning.pytorch.strategies import DDPStrategy
from megatron.core import parallel_state, tensor_parallel
from torch import nn
from torch.optim import Optimizer
from transformers import AutoConfig, PretrainedConfig

from nemo_desta.config import ModelConfig
from nemo_desta.core.folder import check_trained_names
from nemo_desta.errors import ConfigError
from nemo_desta.megatron.broadcast import BroadcastLoader, reads_data
from nemo_desta.megatron.layout import Layout
from nemo_desta.megatron.lora import adapted_layers
from nemo_desta.megatron.stages import all_names, join_optimizer, join_tensors, own_optimizer
from nemo_desta.sources import resolve_source


class MegatronStrategy(DDPStrategy):
    """Tensor, sequence, context, pipeline and data parallelism for `MegatronDestaModel`.

    Args:
        seed: of megatron-core's random states.
        gradient_clip_val, accumulate_grad_batches, gradient_clip_algorithm: the Trainer's, which refuses them under
            manual optimisation.
        sizes: fields of `Layout`.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        gradient_clip_val: float | None = None,
        accumulate_grad_batches: int = 1,
        gradient_clip_algorithm: str | None = None,
        process_group_backend: str | None = None,
        **sizes: Any,
    ) -> None:
        if gradient_clip_algorithm not in (None, "norm"):
            raise ConfigError(
                f"trainer.gradient_clip_algorithm={gradient_clip_algorithm} with strategy=megatron: gradients are "
                "clipped by their global norm; leave it null"
            )
        if accumulate_grad_batches < 1:
            raise ConfigError(f"trainer.accumulate_grad_batches must be at least 1, found {accumulate_grad_batches}")
        super().__init__(process_group_backend=process_group_backend)
        self.layout = Layout(**sizes)
        self.seed = seed
        self.gradient_clip_val = gradient_clip_val
        self.accumulate_grad_batches = accumulate_grad_batches

    def setup_environment(self) -> None:
        """Check the layout, start the process group and split it, before any weight is read."""
        if self.precision_plugin.precision != "32-true":
            raise ConfigError(
                f"trainer.precision={self.precision_plugin.precision} with strategy=megatron: must be 32-true, the "
                "projector's; the frozen parts have model.llm.dtype and model.perception.dtype"
            )
        self.layout.check(_llm_config(self.lightning_module.config), self.num_nodes * self.num_processes)
        super().setup_environment()
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=self.layout.tensor_parallel_size,
            pipeline_model_parallel_size=self.layout.pipeline_parallel_size,
            context_parallel_size=self.layout.context_parallel_size,
            expert_model_parallel_size=self.layout.expert_parallel_size,
            expert_tensor_parallel_size=1,
            create_gloo_process_groups=False,
        )
        tensor_parallel.model_parallel_cuda_manual_seed(self.seed)

    def setup(self, trainer: Trainer) -> None:
        super(DDPStrategy, self).setup(trainer)  # DDP's own would copy rank 0's model to all

    def _setup_model(self, model: nn.Module) -> nn.Module:
        return model

    def teardown(self) -> None:
        super().teardown()
        parallel_state.destroy_model_parallel()

    # ---- data

    @property
    def distributed_sampler_kwargs(self) -> dict[str, int]:
        """Rank and size for the sampler: the ranks of a copy of the LLM have one reader."""
        return {
            "num_replicas": parallel_state.get_data_parallel_world_size(),
            "rank": parallel_state.get_data_parallel_rank(),
        }

    @property
    def reads_data(self) -> bool:
        return reads_data()

    def process_dataloader(self, dataloader: Any) -> BroadcastLoader:
        return BroadcastLoader(
            dataloader, num_audio_tokens=self.lightning_module.num_audio_tokens, device=self.root_device
        )

    # ---- checkpoints: rank 0 writes the state of all stages, in the plain model's format; each stage loads its own

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return join_tensors(super().lightning_module_state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return join_optimizer(super().optimizer_state(optimizer), self._optimised())

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        saved, own = checkpoint["state_dict"], self.lightning_module.state_dict()
        check_trained_names(all_names(own), saved)
        super().load_model_state_dict({"state_dict": {name: saved[name] for name in own}}, strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        states = [own_optimizer(state, self._optimised()) for state in checkpoint["optimizer_states"]]
        super().load_optimizer_state_dict({"optimizer_states": states})

    def _optimised(self) -> list[str]:
        """Names of this stage's parameters, in the order of its optimiser."""
        return [name for name, parameter in self.lightning_module.named_parameters() if parameter.requires_grad]


def describe_layout(
    model: ModelConfig, num_processes: int | None, *, process_group_backend: str | None = None, **sizes: Any
) -> tuple[int, int, str]:
    """Number of parts of the LLM, ranks per copy, and the layout in words; ``num_processes``: None if not known yet.

    Raises:
        ConfigError: the LLM or the processes do not fit the layout.
    """
    layout = Layout(**sizes)
    num_parts = layout.tensor_parallel_size * layout.pipeline_parallel_size
    config = _llm_config(model)
    if model.llm.lora is not None:
        adapted_layers(config, model.llm.lora)
    copies = layout.check(config, num_processes or layout.ranks_per_copy)
    context = f"context {layout.context_parallel_size} x " if layout.context_parallel_size > 1 else ""
    words = (
        f"tensor {layout.tensor_parallel_size} x {context}pipeline {layout.pipeline_parallel_size} x data "
        f"{copies if num_processes else '?'}; layers per stage {layout.layers_per_stage(config.num_hidden_layers)}"
    )
    return num_parts, layout.ranks_per_copy, words + ("; sequence parallel" if layout.sequence_parallel else "")


def _llm_config(model: ModelConfig) -> PretrainedConfig:
    config = AutoConfig.from_pretrained(resolve_source(model.llm.path), trust_remote_code=False)
    text = config.get_text_config()
    if model.llm.lora is not None and text is not config:
        raise ConfigError(
            f"model.llm.lora with strategy=megatron: '{config.model_type}' has parts beside the text LLM, and "
            "its layers have other names in an adapter; use strategy=ddp"
        )
    return text
