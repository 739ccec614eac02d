"""LoRA on the split LLM: PEFT's weights under PEFT's names, and each rank's share of their product.

Every rank of a stage holds the whole A and B of the stage's layers, which are small; so checkpoints are those of the
plain model. For its part of a fused linear layer a rank uses the slices that the names table gives.

What a rank adds, with a sum over the tensor-parallel ranks where the columns of a weight are split:

    column-parallel (q, k, v, gate, up):  y += (x A^T) B[rows]^T      gradients of B[rows] and of A x are shares
    row-parallel (o, down):               y += sum(x A[:, columns]^T) B^T

Letters: S positions, B rows of the batch, D width of the input, R rank, T adapted layers in a fused one, O outputs.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from megatron.core import parallel_state, tensor_parallel
from torch import Tensor, nn
from transformers import PretrainedConfig

from nemo_desta.config import LoraConfig
from nemo_desta.errors import ConfigError
from nemo_desta.megatron.llm import StageLLM
from nemo_desta.megatron.param_mapping import Piece, part_names, part_shape
from nemo_desta.megatron.weights import homes

#: Linear layers that can have LoRA, in the order in which PEFT makes their weights.
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

#: Hugging Face name of a linear layer -> its A and B.
Adapters = dict[str, tuple[nn.Linear, nn.Linear]]


def adapted_layers(config: PretrainedConfig, lora: LoraConfig) -> list[str]:
    """Hugging Face names of all linear layers with LoRA, in PEFT's order.

    Raises:
        ConfigError: a target that the LLM does not have, that is not covered, or that is inside an expert.
    """
    if lora.r < 1:
        raise ConfigError(f"model.llm.lora.r must be at least 1, found {lora.r}")
    if unknown := sorted(set(lora.target_modules) - set(TARGETS)):
        raise ConfigError(
            f"model.llm.lora.target_modules with strategy=megatron: {', '.join(TARGETS)}; found {', '.join(unknown)}"
        )
    names = [name.removesuffix(".weight") for name in part_names(config) if name.endswith("_proj.weight")]
    found = [name for name in names if name.rpartition(".")[2] in lora.target_modules]
    if inside := sorted({name.rpartition(".")[2] for name in found if "expert" in name}):
        raise ConfigError(
            f"model.llm.lora.target_modules with strategy=megatron: {', '.join(inside)} of this LLM are inside the "
            "experts of a mixture, which stay frozen; the attention's layers can have LoRA"
        )
    if missing := sorted(set(lora.target_modules) - {name.rpartition(".")[2] for name in found}):
        raise ConfigError(f"model.llm.lora.target_modules: this LLM has no {', '.join(missing)}")
    return sorted(found, key=lambda name: (_layer_number(name), TARGETS.index(name.rpartition(".")[2])))


class SplitLora:
    """LoRA of one pipeline stage. Its weights become submodules of the `StageLLM`, with PEFT's names.

    Weights are drawn as the plain model draws them, so the same random state gives the same LoRA.

    Args:
        llm: the stage; hooks are added to its linear layers.
        dropout: of the input of A, in training; 0 when activations are recomputed, as in the plain model.
    """

    def __init__(self, llm: StageLLM, lora: LoraConfig, *, dropout: float) -> None:
        self.dropout = dropout
        self.sequence_parallel = llm.layout.sequence_parallel
        self._generators: dict[bool, torch.Generator] = {}
        names = adapted_layers(llm.hf_config, lora)
        places = {}  # fused linear layer -> the pieces of its weight
        for name, _, home in homes(llm.gpt, llm.hf_config, llm.layout):
            if name.endswith(".weight") and {_layer_name(piece) for piece in home.pieces} & set(names):
                places[name.removesuffix(".weight")] = home.pieces
        own = {_layer_name(piece) for pieces in places.values() for piece in pieces}
        adapters: Adapters = {}
        for name in names:
            first, second = _draw(llm.hf_config, name, lora.r)
            if name in own:
                first, second = first.to(llm.dtype), second.to(llm.dtype)
                _add(llm, f"{name}.lora_A.default", first)
                _add(llm, f"{name}.lora_B.default", second)
                adapters[name] = first, second
        for name, pieces in places.items():
            branch = _Rows if name.endswith(("linear_proj", "linear_fc2")) else _Columns
            llm.gpt.get_submodule(name).register_forward_hook(branch(self, pieces, adapters, lora.alpha / lora.r))
        self.linears = [linear for pair in adapters.values() for linear in pair]
        llm.needs_input_gradient = True

    def seed(self, numbers: tuple[int, ...], device: torch.device) -> None:
        """Start the random numbers of dropout from ``numbers``, the same on the ranks that share a batch."""
        stage = parallel_state.get_pipeline_model_parallel_rank()
        for shared in (True, False):
            rank = -1 if shared else parallel_state.get_tensor_model_parallel_rank()
            self._generators[shared] = torch.Generator(device)
            self._generators[shared].manual_seed(hash((*numbers, stage, rank)) & 0x7FFF_FFFF_FFFF_FFFF)

    def drop(self, x: Tensor, *, shared: bool) -> Tensor:
        """Dropout in training. ``shared``: every tensor-parallel rank has this ``x``, and needs the same mask."""
        if not self.dropout or not torch.is_grad_enabled():
            return x
        kept = torch.empty_like(x).bernoulli_(1 - self.dropout, generator=self._generators[shared])
        return x * kept / (1 - self.dropout)

    def average(self, weights: Iterable[nn.Parameter]) -> None:
        """Divide gradients that are whole on every tensor-parallel rank, since all gradients are summed over them."""
        size = parallel_state.get_tensor_model_parallel_world_size()
        if size > 1 and not self.sequence_parallel:  # with it, a rank sees its share of the positions
            for weight in weights:
                weight.register_hook(lambda gradient: gradient / size)


class _Columns:
    """Forward hook of a column-parallel layer, whose outputs are those of one or more Hugging Face layers in turn."""

    def __init__(self, lora: SplitLora, pieces: Sequence[Piece], adapters: Adapters, scale: float) -> None:
        self.lora, self.pieces, self.scale = lora, pieces, scale
        names = dict.fromkeys(_layer_name(piece) for piece in pieces)
        self.adapters = {name: adapters[name] for name in names if name in adapters}
        lora.average(first.weight for first, _ in self.adapters.values())

    def __call__(self, linear: nn.Module, inputs: tuple[Tensor], output: tuple[Tensor, Tensor | None]):
        """inputs: (S, B, D), a share of S under sequence parallelism -> output: (S, B, O), and a bias that is None."""
        x, shared = _normalised(linear, inputs[0]), not self.lora.sequence_parallel
        narrow = [F.linear(self.lora.drop(x, shared=shared), first.weight) for first, _ in self.adapters.values()]
        narrow = torch.cat(narrow, dim=-1)  # (S, B, T * R)
        if shared:
            narrow = tensor_parallel.copy_to_tensor_model_parallel_region(narrow)
        else:
            narrow = tensor_parallel.gather_from_sequence_parallel_region(narrow)
        return output[0] + F.linear(narrow, self._second()) * self.scale, output[1]

    def _second(self) -> Tensor:
        """(O, T * R): B of the adapted layers for this rank's outputs, zero where an output is another layer's."""
        order = list(self.adapters)
        _, second = next(iter(self.adapters.values()))
        rank, blocks = second.in_features, []
        for piece in self.pieces:
            rows, _ = piece.source
            if (name := _layer_name(piece)) in self.adapters:
                before = order.index(name) * rank
                values = self.adapters[name][1].weight[rows]
                blocks.append(F.pad(values, (before, (len(order) - 1) * rank - before)))
            else:
                blocks.append(second.weight.new_zeros(rows.stop - rows.start, len(order) * rank))
        return torch.cat(blocks)


class _Rows:
    """Forward hook of a row-parallel layer: one Hugging Face layer, of whose inputs the rank has a share."""

    def __init__(self, lora: SplitLora, pieces: Sequence[Piece], adapters: Adapters, scale: float) -> None:
        (piece,) = pieces
        self.lora, self.scale, self.columns = lora, scale, piece.source[1]
        self.first, self.second = adapters[_layer_name(piece)]
        lora.average([self.second.weight])

    def __call__(self, linear: nn.Module, inputs: tuple[Tensor], output: tuple[Tensor, Tensor | None]):
        """inputs: (S, B, D / TP) -> output: (S, B, O), a share of S under sequence parallelism, and None."""
        narrow = F.linear(self.lora.drop(inputs[0], shared=False), self.first.weight[:, self.columns])
        if self.lora.sequence_parallel:
            narrow = tensor_parallel.reduce_scatter_to_sequence_parallel_region(narrow)
        else:
            narrow = tensor_parallel.reduce_from_tensor_model_parallel_region(narrow)
        return output[0] + F.linear(narrow, self.second.weight) * self.scale, output[1]


def _normalised(linear: nn.Module, x: Tensor) -> Tensor:
    """The input of the weight: TransformerEngine's layers keep an RMS norm before it, which is computed again here."""
    weight = getattr(linear, "layer_norm_weight", None)
    if weight is None:
        return x
    if linear.zero_centered_gamma:
        weight = weight + 1
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + linear.eps)).to(x.dtype) * weight


def _draw(config: PretrainedConfig, name: str, rank: int) -> tuple[nn.Linear, nn.Linear]:
    """A and B with PEFT's initial values, by the same draws: both as linear layers, then A again; B is zero."""
    outputs, inputs = part_shape(f"{name}.weight", config)
    first, second = nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs, bias=False)
    first.reset_parameters()
    nn.init.zeros_(second.weight)
    return first, second


def _add(root: nn.Module, path: str, module: nn.Module) -> None:
    """Register ``module`` under a dotted path."""
    *parents, last = path.split(".")
    for part in parents:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root._modules[part]
    root.add_module(last, module)


def _layer_name(piece: Piece) -> str:
    return piece.part.removesuffix(".weight")


def _layer_number(name: str) -> int:
    return next(int(part) for part in name.split(".") if part.isdigit())
