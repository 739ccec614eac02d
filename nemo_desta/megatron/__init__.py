"""The frozen LLM as a megatron-core model: tensor, sequence and pipeline parallelism, and training through it."""
