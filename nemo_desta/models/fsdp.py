"""FSDP2 for the frozen LLM of the plain model: its blocks are sharded over the data-parallel ranks.

Embedding table, final norm and head stay whole on every rank: they are used outside the LLM's forward too (embedding
of text around audio, head on gathered positions), where a sharded module would not be gathered. The projector stays
whole, too: it is small, and DDP averages its gradients.
"""

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard


def shard_llm(llm: nn.Module, mesh: DeviceMesh) -> None:
    """Shard the blocks of a Hugging Face causal LLM in place over a one-dimensional mesh."""
    if mesh.size() == 1:
        return
    decoder = llm.base_model
    for layer in decoder.layers:
        fully_shard(layer, mesh=mesh)
    blocks = {id(parameter) for parameter in decoder.layers.parameters()}
    whole = {parameter for parameter in decoder.parameters() if id(parameter) not in blocks}
    fully_shard(decoder, mesh=mesh, ignored_params=whole)  # one root: the next block is gathered while one computes
