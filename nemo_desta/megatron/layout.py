"""How the frozen LLM is split over ranks, checked against its config before any weight is read."""

import math
from dataclasses import dataclass

from transformers import PretrainedConfig

from nemo_desta.errors import ConfigError
from nemo_desta.megatron.param_mapping import num_experts

#: Each tensor-parallel rank's vocabulary is padded to a multiple of this, for efficient matrix sizes on a GPU.
VOCAB_MULTIPLE = 128


@dataclass(frozen=True)
class Layout:
    """The sizes of config group ``strategy``. The data-parallel size is the world size / (TP x PP).

    Expert parallelism takes no processes of its own: it spreads the experts of a stage over its TP x DP ranks.
    """

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    sequence_parallel: bool = False
    context_parallel_size: int = 1
    expert_parallel_size: int = 1

    def check(self, llm_config: PretrainedConfig, world_size: int) -> int:
        """The data-parallel size, if this LLM and this number of ranks fit the layout.

        Raises:
            ConfigError: they do not fit; the message names the numbers.
        """
        self._check_sizes()
        llm_config = llm_config.get_text_config()
        tensor, pipeline = self.tensor_parallel_size, self.pipeline_parallel_size
        names = ["num_attention_heads", "num_key_value_heads"]
        if not num_experts(llm_config):  # a rank holds whole experts
            names.append("intermediate_size")
        divided = {name: getattr(llm_config, name) for name in names}
        for name, count in divided.items():
            if count % tensor:
                common = math.gcd(*divided.values())
                sizes = ", ".join(str(size) for size in range(1, common + 1) if common % size == 0)
                raise ConfigError(
                    f"strategy.tensor_parallel_size={tensor} does not divide the LLM's {name}={count}: every rank "
                    f"holds an equal share. Sizes that work: {sizes}"
                )
        num_layers = llm_config.num_hidden_layers
        if num_layers < pipeline:
            raise ConfigError(
                f"strategy.pipeline_parallel_size={pipeline} is more than the LLM's num_hidden_layers={num_layers}: "
                "every stage holds at least one layer"
            )
        if world_size % (tensor * pipeline):
            raise ConfigError(
                f"{world_size} processes cannot be split into copies of the LLM on {tensor} x {pipeline} = "
                f"{tensor * pipeline} (strategy.tensor_parallel_size x strategy.pipeline_parallel_size): start a "
                "multiple of that"
            )
        self._check_experts(llm_config, world_size // pipeline)
        return world_size // (tensor * pipeline)

    def experts_per_rank(self, llm_config: PretrainedConfig) -> int:
        """Experts of each layer on one rank; 0 where there are none."""
        return num_experts(llm_config) // self.expert_parallel_size

    def layers_per_stage(self, num_layers: int) -> list[int]:
        """Layers of each pipeline stage. Later stages get the remainder, because the first stage has the encoders."""
        share, rest = divmod(num_layers, self.pipeline_parallel_size)
        return [share + (0 < stage <= rest) for stage in range(self.pipeline_parallel_size)]

    def padded_vocab_size(self, vocab_size: int) -> int:
        """Rows of the embedding table over all tensor-parallel ranks, with padding."""
        multiple = VOCAB_MULTIPLE * self.tensor_parallel_size
        return -(-vocab_size // multiple) * multiple

    def padded_length(self, length: int) -> int:
        """``length`` rounded up to what the LLM computes: sequence parallelism needs a multiple of TP."""
        multiple = self.tensor_parallel_size if self.sequence_parallel else 1
        return -(-length // multiple) * multiple

    def _check_sizes(self) -> None:
        for kind in ("tensor", "pipeline", "context", "expert"):
            if (size := getattr(self, f"{kind}_parallel_size")) < 1:
                raise ConfigError(f"strategy.{kind}_parallel_size must be at least 1, found {size}")
            if kind == "context" and size != 1:
                raise ConfigError(
                    f"strategy.{kind}_parallel_size={size}: {kind} parallelism is out of scope until it can be run "
                    "and tested here; only 1 works. Tensor, sequence and pipeline parallelism are supported"
                )
        if self.sequence_parallel and self.tensor_parallel_size == 1:
            raise ConfigError(
                "strategy.sequence_parallel=true with strategy.tensor_parallel_size=1: it splits positions over the "
                "tensor-parallel ranks, so there must be at least 2"
            )

    def _check_experts(self, llm_config: PretrainedConfig, ranks_per_stage: int) -> None:
        expert, count = self.expert_parallel_size, num_experts(llm_config)
        if expert == 1:
            return
        if not count:
            raise ConfigError(
                f"strategy.expert_parallel_size={expert}: an LLM of type '{llm_config.model_type}' has no experts"
            )
        if count % expert:
            raise ConfigError(
                f"strategy.expert_parallel_size={expert} does not divide the LLM's {count} experts: every rank holds "
                "an equal share"
            )
        if ranks_per_stage % expert:
            raise ConfigError(
                f"strategy.expert_parallel_size={expert} does not divide the {ranks_per_stage} processes of a "
                "pipeline stage (tensor x data parallel), over which the experts are spread"
            )
