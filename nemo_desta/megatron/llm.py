"""This rank's part of the frozen LLM: a megatron-core `GPTModel` whose input is embeddings.

Letters: B rows, L text positions, Z positions of the spliced input, D LLM width, V padded vocabulary, N positions.
"""

from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state, tensor_parallel
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig

from nemo_desta.megatron.context import own_positions
from nemo_desta.megatron.layers import block_spec
from nemo_desta.megatron.layout import Layout
from nemo_desta.megatron.mcore_config import check_covered, rotary_frequencies, transformer_config
from nemo_desta.megatron.param_mapping import ARCHITECTURES
from nemo_desta.megatron.weights import load_weights
from nemo_desta.sources import resolve_source


def build_llm(source: str | Path, layout: Layout, *, dtype: torch.dtype, recompute: bool = False) -> "StageLLM":
    """This rank's part of the LLM at ``source``, with its weights; needs megatron-core's groups initialised.

    Raises:
        ConfigError: the LLM is not covered or does not fit the layout; raised before any weight is read.
    """
    config = AutoConfig.from_pretrained(resolve_source(str(source)), trust_remote_code=False).get_text_config()
    check_covered(config)
    layout.check(config, dist.get_world_size())
    llm = StageLLM(config, layout, dtype=dtype, recompute=recompute)
    load_weights(llm.gpt, source, config, layout)
    return llm


class StageLLM(nn.Module):
    """A pipeline stage of the frozen LLM on one tensor-parallel rank. Always in eval mode, no parameter trains.

    ``forward`` maps hidden states to hidden states; only `head` computes logits. Under sequence or context parallelism
    the LLM computes ``layout.padded_length(Z)`` positions: those beyond Z are padding at the end.
    """

    def __init__(self, hf_config: PretrainedConfig, layout: Layout, *, dtype: torch.dtype, recompute: bool = False):
        super().__init__()
        self.hf_config = hf_config
        self.layout = layout
        self.dtype = dtype
        self.hidden_size = hf_config.hidden_size
        scaled = "scaled_embeddings" in ARCHITECTURES[hf_config.model_type]
        self.embedding_scale = hf_config.hidden_size**0.5 if scaled else 1.0
        self.config = transformer_config(hf_config, layout, dtype=dtype, recompute=recompute)
        self.recompute = recompute
        self.needs_input_gradient = False  # with LoRA, recomputation finds its weights only behind such an input
        self.is_first = parallel_state.is_pipeline_first_stage()
        self.is_last = parallel_state.is_pipeline_last_stage()
        stage = parallel_state.get_pipeline_model_parallel_rank()
        num_layers = layout.layers_per_stage(hf_config.num_hidden_layers)[stage]
        self.gpt = GPTModel(
            config=self.config,
            transformer_layer_spec=block_spec(self.config, num_layers),
            vocab_size=layout.padded_vocab_size(hf_config.vocab_size),
            max_sequence_length=hf_config.max_position_embeddings,
            pre_process=self.is_first,
            post_process=self.is_last,
            share_embeddings_and_output_weights=hf_config.tie_word_embeddings,
            position_embedding_type="rope",
            scatter_embedding_sequence_parallel=False,
        )
        # megatron-core's own rope scaling hard-codes the constants of one model
        rotary = self.gpt.rotary_pos_emb
        rotary.inv_freq = rotary_frequencies(hf_config).to(rotary.inv_freq.device)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "StageLLM":
        """Stay in eval mode when the surrounding model switches to training mode."""
        return super().train(False)

    @torch.no_grad()
    def embed(self, ids: Tensor) -> Tensor:
        """(B, L) -> (B, L, D) on the first stage; the same full tensor on every rank that shares the batch."""
        embeds = self.gpt.embedding.word_embeddings(ids)
        return embeds if self.embedding_scale == 1.0 else embeds * torch.tensor(self.embedding_scale).to(embeds)

    def forward(self, embeds: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Hidden states after this stage.

        Args:
            embeds: (B, Z, D) on the first stage, the same on every tensor- and context-parallel rank; other stages
                read the input of `set_input_tensor`. In backward each context-parallel rank gets the gradient of its
                own positions, and zero elsewhere.
            positions: (Z,) for the rotary embeddings, if they are not 0, 1, 2, ...

        Returns:
            (Z', B, D): after the final norm on the last stage, the next stage's input on the others. Under context
            parallelism, the positions of `own_positions`.
        """
        with outside_inference_mode():
            hidden = self._enter(embeds) if self.is_first else None
            local = self.gpt.decoder.input_tensor if hidden is None else hidden
            length = local.shape[0] * self.layout.position_ranks  # rotary_pos_emb takes this rank's part of it
            # megatron-core recomputes in training mode only; that mode changes nothing else in a block without dropout
            self.gpt.decoder.training = self.recompute and torch.is_grad_enabled()
            if positions is None:
                rotary = self.gpt.rotary_pos_emb(length)
            else:
                own = own_positions(F.pad(positions, (0, length - positions.numel())))
                rotary = self.gpt.rotary_pos_emb(int(positions.max()) + 1, packed_seq=True)[own]  # of the whole table
            hidden = self.gpt.decoder(hidden_states=hidden, attention_mask=None, rotary_pos_emb=rotary)
            if self.is_last and self.layout.sequence_parallel:
                # `head` sums the gradients of the ranks' shares of the vocabulary, so they arrive here whole
                hidden = tensor_parallel.gather_from_sequence_parallel_region(
                    hidden, tensor_parallel_output_grad=False
                )
            return hidden

    def set_input_tensor(self, tensor: Tensor | list[Tensor | None] | None) -> None:
        """Called by megatron-core's schedules with the previous stage's hidden states; None on the first stage."""
        self.gpt.set_input_tensor(tensor)

    def head(self, hidden: Tensor) -> Tensor:
        """(N, D) -> (N, V / TP): this rank's share of the logits; -inf at ids of the padded vocabulary."""
        tied_here = self.is_first and self.hf_config.tie_word_embeddings
        weight = self.gpt.shared_embedding_or_output_weight() if tied_here else self.gpt.output_layer.weight
        hidden = tensor_parallel.copy_to_tensor_model_parallel_region(hidden)
        logits = F.linear(hidden, weight)
        start = parallel_state.get_tensor_model_parallel_rank() * weight.shape[0]
        real = max(0, min(weight.shape[0], self.hf_config.vocab_size - start))
        if real == weight.shape[0]:
            return logits
        padding = torch.arange(weight.shape[0], device=logits.device) >= real
        return logits.masked_fill(padding, float("-inf"))

    def _enter(self, embeds: Tensor) -> Tensor:
        """(B, Z, D) -> (this rank's share of Z', B, D)"""
        hidden = embeds.to(self.dtype).transpose(0, 1)
        if missing := self.layout.padded_length(hidden.shape[0]) - hidden.shape[0]:
            hidden = F.pad(hidden, (0, 0, 0, 0, 0, missing))
        hidden = own_positions(hidden).contiguous()
        if self.layout.sequence_parallel:
            hidden = tensor_parallel.scatter_to_sequence_parallel_region(hidden)
        waited_for = not self.is_last or self.layout.expert_parallel_size > 1
        if torch.is_grad_enabled() and (waited_for or self.needs_input_gradient) and not hidden.requires_grad:
            # without audio nothing here requires a gradient, but the next stage and the ranks that share the experts
            # still send one to this rank
            hidden = hidden.detach().requires_grad_()
        return hidden


@contextmanager
def outside_inference_mode():
    """megatron-core keeps rotary tables, buffers and the scale of a mixture's loss. Tensors of inference mode cannot
    be used in backward or changed in place later."""
    grad = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(grad):
        yield
