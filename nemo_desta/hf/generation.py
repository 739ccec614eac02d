"""`generate` of the model class: clips are encoded once, and the LLM generates from the embeddings of the prompt.

Letters: B rows, L positions of the prompt, A clips in reading order, S samples.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import GenerationMixin


class AudioGenerationMixin(GenerationMixin):
    """`GenerationMixin` for a model with ``embed_audio``."""

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        *args: Any,
        input_ids: Tensor | None = None,
        audio: Tensor | None = None,
        audio_lens: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Transformers' `generate` for ids and audio, or for ``inputs_embeds``; clips are encoded once.

        Returns ids (B, L + new) as for any causal LLM; with ``inputs_embeds`` alone only the new ones. Penalties see
        the new tokens only, as in `chat`. ``past_key_values``: of an earlier answer, to continue it; its clips need
        not be given again if ``input_ids`` has no others.

        Raises:
            ValueError: see `forward`; padding on the right; an ``assistant_model``.
        """
        ids, mask = inputs if input_ids is None else input_ids, kwargs.get("attention_mask")
        if mask is not None and mask.ndim == 2 and not mask[:, -1].all():
            raise ValueError("padding on the right: an answer begins where its prompt ends, so pad on the left")
        if kwargs.get("assistant_model") is not None:
            raise ValueError("assistant_model: a model that gets the prompt as text cannot hear its audio")
        if ids is None or kwargs.get("inputs_embeds") is not None:
            if audio is not None:
                raise ValueError("audio needs the input_ids that hold its positions, and no inputs_embeds")
            return super().generate(ids, *args, **kwargs)
        past = kwargs.get("past_key_values")
        cached = 0 if past is None or audio is not None else int(past.get_seq_length())
        new = self.embed_audio(ids[:, cached:], audio, audio_lens)
        kwargs["inputs_embeds"] = pad(new, (0, 0, cached, 0))  # cached positions are not read
        if mask is None:
            kwargs["attention_mask"] = torch.ones_like(ids)
        found = super().generate(None, *args, **kwargs)
        new = found if isinstance(found, Tensor) else found.sequences
        whole = torch.cat([ids.repeat_interleave(len(new) // len(ids), 0).to(new.device), new], 1)
        if isinstance(found, Tensor):
            return whole
        found.sequences = whole
        return found

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, inputs_embeds: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Without a cache, every step reads the prompt's embeddings and the new tokens' again."""
        if inputs_embeds is None or kwargs.get("past_key_values") is not None:
            return super().prepare_inputs_for_generation(input_ids, *args, inputs_embeds=inputs_embeds, **kwargs)
        prepared = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)
        prepared["input_ids"], prepared["position_ids"] = None, None
        prepared["inputs_embeds"] = torch.cat([inputs_embeds, self.get_input_embeddings()(input_ids)], 1)
        return prepared
