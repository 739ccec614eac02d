"""FSDP2 for the frozen LLM of the plain model: its blocks are sharded over the data-parallel ranks.

Embedding table, final norm and head are replicated on every rank, since they are also called outside the LLM's forward
(embedding of text around audio, head on supervised positions), where FSDP would not gather them. The projector is
replicated too: it is small, and DDP averages its gradients.
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
    fully_shard(
        decoder, mesh=mesh, ignored_params=whole
    )  # one root: the next block is gathered during the current one
