"""The local engine: a transformers LLM, batched by length; it runs wherever PyTorch does.

Answers are drawn by each row's own random numbers, so that a row does not depend on the batch it came in.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LogitsProcessorList

from nemo_desta.config import nearest
from nemo_desta.errors import ConfigError
from nemo_desta.recipes.engines.base import Generation, Sampling
from nemo_desta.recipes.engines.local import Job, LocalEngine, llm_name, llm_revision
from nemo_desta.recipes.engines.sampler import Draw, RowSampler
from nemo_desta.sources import resolve_source

logger = logging.getLogger(__name__)

DTYPES = ("auto", "float32", "bfloat16", "float16")
#: Batches are cut from this many at a time, sorted by length, so that little of a batch is padding.
_BATCHES_SORTED_TOGETHER = 16


class HFEngine(LocalEngine):
    """A frozen causal LLM in this process; batches are left-padded and hold requests of one sampling.

    ``model``: a transformers causal LLM; ``tokenizer``: its tokenizer, with a chat template. ``chat_template_kwargs``
    must be those of the training that will read the answers. A batch that does not fit the GPU's memory is halved
    and tried again, and later ones are kept smaller.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        revision: str | None = None,
        batch_size: int = 32,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            tokenizer,
            name=name,
            revision=revision,
            end_ids=model.generation_config.eos_token_id,
            context=model.config.get_text_config().max_position_embeddings,
            window=batch_size * _BATCHES_SORTED_TOGETHER,
            chat_template_kwargs=chat_template_kwargs,
        )
        self.model = model.eval().requires_grad_(False)
        self.batch_size = batch_size
        self.too_many_tokens: int | None = None  # a batch of so many (rows x longest) once ran out of memory

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int = 32,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> "HFEngine":
        """Load from a hub id, a folder, or ``package:<path>``.

        ``auto``: the GPU if there is one; bfloat16 on it, float32 on a CPU. Raises ``FileNotFoundError`` for a folder
        without tokenizer, ``ConfigError`` for an unknown dtype.
        """
        source = resolve_source(path)
        folder = Path(source)
        if folder.is_dir() and not any(folder.glob("tokenizer*")):
            raise FileNotFoundError(f"LLM folder {path!r} holds no tokenizer (tokenizer.json, tokenizer_config.json)")
        if dtype not in DTYPES:
            raise ConfigError(f"unknown dtype {dtype!r}.{nearest(dtype, DTYPES)}")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if dtype == "auto":
            dtype = "float32" if device == "cpu" else "bfloat16"
        model = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype), trust_remote_code=False)
        model = model.to(device)
        return cls(
            model,
            AutoTokenizer.from_pretrained(source, trust_remote_code=False),
            name=llm_name(path),
            revision=llm_revision(path),
            batch_size=batch_size,
            chat_template_kwargs=chat_template_kwargs,
        )

    def plan(self, jobs: list[Job]) -> list[list[int]]:
        """One sampling per batch, the longest prompts first: what does not fit the memory shows at once."""
        groups: dict[Sampling, list[int]] = {}
        for i, job in enumerate(jobs):
            groups.setdefault(job.sampling, []).append(i)
        batches = []
        for group in groups.values():
            group.sort(key=lambda i: -len(jobs[i].ids))
            batches += [group[first : first + self.batch_size] for first in range(0, len(group), self.batch_size)]
        return batches

    def run(self, jobs: list[Job]) -> list[Sequence[int] | Generation]:
        """``jobs``: of one sampling, the longest first."""
        answers: list[Sequence[int] | Generation] = []
        while len(answers) < len(jobs):
            tokens = len(jobs[len(answers)].ids) + jobs[0].sampling.max_new_tokens
            size = len(jobs) - len(answers)
            if self.too_many_tokens is not None:
                size = min(size, max(1, (self.too_many_tokens - 1) // tokens))
            try:
                answers += self._answer(jobs[len(answers) : len(answers) + size])
                continue
            except torch.cuda.OutOfMemoryError as error:
                problem = str(error).partition(".")[0]
            # Outside the except block, where the exception's frames no longer hold the batch's tensors.
            torch.cuda.empty_cache()
            if size == 1:
                answers.append(Generation("", False, f"{tokens} tokens do not fit the GPU's memory: {problem}"))
                continue
            self.too_many_tokens = tokens * (size // 2) + 1
            logger.warning(
                "%d answers of up to %d tokens did not fit the GPU's memory: trying %d (batch_size is too large)",
                size,
                tokens,
                size // 2,
            )
        return answers

    def _answer(self, jobs: list[Job]) -> list[list[int]]:
        sampling = jobs[0].sampling
        draw = own_draw(self.model.generation_config) if sampling.temperature is None else Draw.of(sampling)
        width = max(len(job.ids) for job in jobs)
        pad = self.end_ids[0]  # masked, so that any id does
        ids = torch.tensor([[pad] * (width - len(job.ids)) + job.ids for job in jobs], device=self.model.device)
        mask = torch.tensor(
            [[0] * (width - len(job.ids)) + [1] * len(job.ids) for job in jobs], device=self.model.device
        )
        processors = LogitsProcessorList()
        if draw is not None:
            processors.append(RowSampler(draw, [job.seed for job in jobs], sampling.max_new_tokens, width))
        # The LLM's own generation config would add penalties and limits of its own: targets come from the bare LLM.
        search = GenerationConfig(
            max_new_tokens=sampling.max_new_tokens, do_sample=False, eos_token_id=self.end_ids, pad_token_id=pad
        )
        own, self.model.generation_config = self.model.generation_config, search
        try:
            with torch.inference_mode():
                output = self.model.generate(input_ids=ids, attention_mask=mask, logits_processor=processors)
        finally:
            self.model.generation_config = own
        return output[:, width:].tolist()


def own_draw(config: GenerationConfig) -> Draw | None:
    """How the LLM's makers want it sampled, None for the likeliest token (``do_sample`` is off)."""
    if not config.do_sample:
        return None
    # Unset values are those that transformers itself falls back to; its versions differ in when they fill them in.
    return Draw(
        temperature=1.0 if config.temperature is None else config.temperature,
        top_p=1.0 if config.top_p is None else config.top_p,
        top_k=50 if config.top_k is None else config.top_k,
        min_p=config.min_p or 0.0,
    )
