"""FSDP2 for the plain model: the LLM's blocks and the projector are sharded over the data-parallel ranks.

Embedding table, final norm and head stay whole on every rank: they are used outside the LLM's forward too (embedding
of text around audio, head on gathered positions), where a sharded module would not be gathered.
"""

from typing import Any

from torch.distributed.fsdp import fully_shard


def shard(model: Any, device_mesh: Any) -> None:
    """Apply FSDP2 to a `DestaModel` in place.

    Raises:
        ValueError: the mesh asks for tensor parallelism.
    """
    tensor_parallel = device_mesh["tensor_parallel"].size()
    if tensor_parallel > 1:
        raise ValueError(
            f"strategy.tensor_parallel_size={tensor_parallel}: this model class shards by data only. "
            "Tensor and pipeline parallelism of the LLM come with strategy=megatron."
        )
    mesh = device_mesh["data_parallel"]
    if mesh.size() == 1:
        return
    for layer in model.llm.base_model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model.perception.projector, mesh=mesh)
