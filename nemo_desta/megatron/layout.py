"""How the frozen LLM is split over ranks, checked against its config before any weight is read."""

from dataclasses import dataclass

from transformers import PretrainedConfig

from nemo_desta.core.cost import num_experts
from nemo_desta.errors import ConfigError

#: Each tensor-parallel rank's vocabulary is padded to a multiple of this, for efficient matrix sizes on a GPU.
VOCAB_MULTIPLE = 128


@dataclass(frozen=True)
class Layout:
    """The sizes of config group ``strategy``. The data-parallel size is the world size / `ranks_per_copy`.

    Expert parallelism takes no processes of its own: it spreads the experts of a stage over its TP x CP x DP ranks.
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
        tensor, context, pipeline = self.tensor_parallel_size, self.context_parallel_size, self.pipeline_parallel_size
        if why := _tensor_misfit(tensor, llm_config):
            sizes = range(1, llm_config.num_attention_heads + 1)
            fitting = ", ".join(str(size) for size in sizes if not _tensor_misfit(size, llm_config))
            raise ConfigError(f"strategy.tensor_parallel_size={tensor} {why}. Sizes that work: {fitting}")
        num_layers = llm_config.num_hidden_layers
        if num_layers < pipeline:
            raise ConfigError(
                f"strategy.pipeline_parallel_size={pipeline} is more than the LLM's num_hidden_layers={num_layers}: "
                "every stage holds at least one layer"
            )
        kinds = set(getattr(llm_config, "layer_types", None) or []) - {"full_attention"}
        if context > 1 and kinds:
            raise ConfigError(
                f"strategy.context_parallel_size={context} covers full causal attention; the LLM's layer_types has "
                f"{', '.join(sorted(kinds))}"
            )
        if world_size % self.ranks_per_copy:
            raise ConfigError(
                f"{world_size} processes cannot be split into copies of the LLM on {tensor} x {context} x {pipeline} "
                f"= {self.ranks_per_copy} (strategy.tensor_parallel_size x context_parallel_size x "
                "pipeline_parallel_size): start a multiple of that"
            )
        self._check_experts(llm_config, world_size // pipeline)
        return world_size // self.ranks_per_copy

    @property
    def ranks_per_copy(self) -> int:
        """Ranks that work on one batch together: TP x CP x PP."""
        return self.tensor_parallel_size * self.context_parallel_size * self.pipeline_parallel_size

    @property
    def position_ranks(self) -> int:
        """Ranks that share the positions between layers: CP, under sequence parallelism CP x TP."""
        return self.context_parallel_size * (self.tensor_parallel_size if self.sequence_parallel else 1)

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
        """``length`` rounded up to what the LLM computes: equal shares, under context parallelism of two chunks."""
        multiple = self.position_ranks * (2 if self.context_parallel_size > 1 else 1)
        return -(-length // multiple) * multiple

    def _check_sizes(self) -> None:
        for kind in ("tensor", "pipeline", "context", "expert"):
            if (size := getattr(self, f"{kind}_parallel_size")) < 1:
                raise ConfigError(f"strategy.{kind}_parallel_size must be at least 1, found {size}")
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
                "pipeline stage (tensor x context x data parallel), over which the experts are spread"
            )


def _tensor_misfit(size: int, config: PretrainedConfig) -> str:
    """Why a layer cannot be split over ``size`` tensor-parallel ranks; empty if it can."""
    for name in ("num_attention_heads", *(() if num_experts(config) else ("intermediate_size",))):  # experts are whole
        if (count := getattr(config, name)) % size:
            return f"does not divide the LLM's {name}={count}: every rank holds an equal share"
    if (heads := config.num_key_value_heads) % size and size % heads:
        return (
            f"neither divides nor is a multiple of the LLM's num_key_value_heads={heads}: every rank holds an equal "
            "share of them, or a copy of one"
        )
    return ""
