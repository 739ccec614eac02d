"""How the frozen LLM is cut over ranks, and whether it can be: checked on the config, before any weight is read."""

from dataclasses import dataclass

from transformers import PretrainedConfig

from nemo_desta.errors import ConfigError

#: The vocabulary is padded to a multiple of this on every tensor-parallel rank: matrix sizes that a GPU likes.
VOCAB_MULTIPLE = 128


@dataclass(frozen=True)
class Layout:
    """What the user asks for under ``strategy``. The data-parallel size is what the world size leaves over."""

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    sequence_parallel: bool = False
    context_parallel_size: int = 1
    expert_parallel_size: int = 1

    def check(self, llm_config: PretrainedConfig, world_size: int) -> int:
        """Whether this LLM fits this layout on this many ranks; the data-parallel size.

        Raises:
            ConfigError: it does not; the message names the numbers.
        """
        self._check_sizes()
        llm_config = llm_config.get_text_config()
        tensor, pipeline = self.tensor_parallel_size, self.pipeline_parallel_size
        for what, count in _divided(llm_config).items():
            if count % tensor:
                raise ConfigError(
                    f"strategy.tensor_parallel_size={tensor} does not divide the LLM's {what}={count}: every rank "
                    f"holds an equal share. Sizes that work: {_common_divisors(llm_config)}"
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
        return world_size // (tensor * pipeline)

    def layers_per_stage(self, num_layers: int) -> list[int]:
        """Layers of every pipeline stage. What does not divide evenly goes to later stages: the first has encoders."""
        share, rest = divmod(num_layers, self.pipeline_parallel_size)
        return [share + (0 < stage <= rest) for stage in range(self.pipeline_parallel_size)]

    def padded_vocab_size(self, vocab_size: int) -> int:
        """Rows of the embedding table over all tensor-parallel ranks, those that no token has included."""
        multiple = VOCAB_MULTIPLE * self.tensor_parallel_size
        return -(-vocab_size // multiple) * multiple

    def padded_length(self, length: int) -> int:
        """Positions that the LLM computes for ``length`` given ones: sequence parallelism needs a multiple of TP."""
        multiple = self.tensor_parallel_size if self.sequence_parallel else 1
        return -(-length // multiple) * multiple

    def _check_sizes(self) -> None:
        for name in (
            "tensor_parallel_size",
            "pipeline_parallel_size",
            "context_parallel_size",
            "expert_parallel_size",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"strategy.{name} must be at least 1, found {getattr(self, name)}")
        for name in ("context_parallel_size", "expert_parallel_size"):
            if (size := getattr(self, name)) != 1:
                raise ConfigError(
                    f"strategy.{name}={size}: {name.split('_')[0]} parallelism is out of scope until it can be run "
                    "and tested here; only 1 works. Tensor, sequence and pipeline parallelism are there"
                )
        if self.sequence_parallel and self.tensor_parallel_size == 1:
            raise ConfigError(
                "strategy.sequence_parallel=true with strategy.tensor_parallel_size=1: it splits positions over the "
                "tensor-parallel ranks, so there must be at least 2"
            )


def _divided(llm_config: PretrainedConfig) -> dict[str, int]:
    names = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    return {name: getattr(llm_config, name) for name in names}


def _common_divisors(llm_config: PretrainedConfig) -> str:
    counts = _divided(llm_config).values()
    return ", ".join(str(size) for size in range(1, min(counts) + 1) if all(count % size == 0 for count in counts))
