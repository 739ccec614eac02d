"""The local engine: a transformers LLM on any device that PyTorch supports.

It uses the decode loop of `answering`: a row joins the batch when others have ended. Each row has its own random
numbers, so its answer does not depend on the batch.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from nemo_desta.answering.decoder import Decoder
from nemo_desta.answering.sampling import own_sampling
from nemo_desta.ops.dtypes import as_dtype, dtype_name, suggest_fastest
from nemo_desta.recipes.engines.base import Generation
from nemo_desta.recipes.engines.local import LocalEngine, llm_identity
from nemo_desta.recipes.engines.scheduler import Job, Result
from nemo_desta.sources import resolve_source

logger = logging.getLogger(__name__)

#: Requests that are sorted by length together, in batches: rows of like length need little padding.
_BATCHES_SORTED_TOGETHER = 16
#: Tokens after which `HFEngine.advance` returns at the latest, so that new requests need not wait for a row to end.
_STEPS = 8
#: Rows join when this share of the batch is free. Each time, the prompts go through the LLM and the cache is copied.
_FREE_SHARE = 1 / 4


class HFEngine(LocalEngine):
    """A frozen causal LLM in this process.

    ``model``: a transformers causal LLM; ``local``: ``name``, ``revision``, ``chat_template_kwargs`` of `LocalEngine`.
    A batch that does not fit the GPU's memory is halved and retried, and later batches are kept smaller.
    """

    def __init__(self, model: Any, tokenizer: Any, *, batch_size: int = 32, **local: Any) -> None:
        super().__init__(
            tokenizer,
            end_ids=model.generation_config.eos_token_id,
            context=model.config.get_text_config().max_position_embeddings,
            batch_size=batch_size,
            concurrency=batch_size * _BATCHES_SORTED_TOGETHER,
            **local,
        )
        self.model = model.eval().requires_grad_(False)
        self.dtype = dtype_name(model.dtype)
        self.too_many_tokens: int | None = None  # a batch of so many (rows x longest) once ran out of memory
        self._reset()

    @classmethod
    def from_pretrained(cls, path: str, *, device: str = "auto", dtype: str = "auto", **options: Any) -> "HFEngine":
        """Load from a hub id, a folder, or ``package:<path>``; ``options`` go to the constructor.

        ``device`` auto: the GPU if there is one. ``dtype``: see `as_dtype`. Raises ``FileNotFoundError`` for a folder
        without tokenizer, ``ConfigError`` for an unknown dtype.
        """
        source = resolve_source(path)
        folder = Path(source)
        if folder.is_dir() and not any(folder.glob("tokenizer*")):
            raise FileNotFoundError(f"LLM folder {path!r} holds no tokenizer (tokenizer.json, tokenizer_config.json)")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        number_format = as_dtype(dtype, device)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=number_format, trust_remote_code=False).to(device)
        suggest_fastest(dtype, model, "engine.dtype")
        return cls(model, **llm_identity(path), **options)

    def own_sampling(self) -> dict[str, Any]:
        # Without the config's repetition penalty: targets come from the bare LLM.
        return own_sampling(self.model.generation_config)

    async def close(self) -> None:
        await super().close()
        self._reset()

    def advance(self, jobs: list[Job]) -> list[tuple[Job, Result]]:
        """Generate until a row ends, `_STEPS` tokens at most."""
        try:
            self._decoder.remove({key for key, job in self._rows.items() if job not in jobs})
            self._rows = {key: job for key, job in self._rows.items() if job in jobs}
            self._add([job for job in jobs if job not in self._rows.values()], max(job.positions for job in jobs))
            ended: list[int] = []
            for _ in range(_STEPS):
                for key, token in self._decoder.step():
                    job = self._rows[key]
                    job.new.append(token)
                    self.new_tokens += 1
                    if token in self.end_ids or len(job.new) == job.sampling.max_new_tokens:
                        ended.append(key)
                if ended:
                    break
            self._decoder.remove(set(ended))
            return [(job, job.new) for job in map(self._rows.pop, ended)]
        except torch.cuda.OutOfMemoryError as error:
            problem = str(error).partition(".")[0]
        except Exception:
            self._reset()
            raise
        # Outside the except block, where the exception's frames no longer hold the batch's tensors.
        return self._make_smaller(problem)

    def _add(self, waiting: list[Job], longest: int) -> None:
        """Let jobs join if there is enough room: a quarter of the batch, or an empty one."""
        size = self.batch_size
        if self.too_many_tokens is not None:
            size = min(size, max(1, (self.too_many_tokens - 1) // longest))
        free = size - len(self._rows)
        if not waiting or self._rows and free < max(1, size * _FREE_SHARE):
            return
        jobs = waiting[:free]
        width = max(len(job.ids) for job in jobs)
        pad = self.end_ids[0]  # masked, so that any id does
        device = self.model.device
        ids = torch.tensor([[pad] * (width - len(job.ids)) + job.ids for job in jobs], device=device)
        lens = torch.tensor([len(job.ids) for job in jobs], device=device)
        mask = torch.arange(width, device=device) >= width - lens[:, None]
        for job in jobs:
            job.new.clear()
        self._joining = jobs
        self._rows |= zip(self._decoder.add(ids, mask, [job.sampling for job in jobs]), jobs, strict=True)
        self._joining = []

    def _make_smaller(self, problem: str) -> list[tuple[Job, Result]]:
        """Start all rows again in smaller batches; a row that was alone does not fit at all."""
        jobs = [*self._rows.values(), *self._joining]
        self._reset()
        tokens, size = max(job.positions for job in jobs), len(jobs) // 2
        if not size:
            return [(jobs[0], Generation("", False, f"{tokens} tokens do not fit the GPU's memory: {problem}"))]
        self.too_many_tokens = tokens * size + 1
        found = f"{len(jobs)} answers of up to {tokens} tokens did not fit the GPU's memory"
        logger.warning("%s: trying %d (batch_size is too large)", found, size)
        return []

    def _reset(self) -> None:
        """Forget all rows and free their cache."""
        self._rows: dict[int, Job] = {}  # by key of the decoder
        self._joining: list[Job] = []
        self._decoder = Decoder(self.model)
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
