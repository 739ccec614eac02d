"""The common part of the engines whose LLM runs in this process: messages to ids, ids to the model, ids to text.

`hf.HFEngine` and `vllm.VLLMEngine` add how the model answers a batch.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from nemo_desta.answering.sampling import Sampling
from nemo_desta.core.fingerprint import short_fingerprint
from nemo_desta.core.prompting import PromptBuilder
from nemo_desta.errors import RowError
from nemo_desta.recipes.engines.base import Generation, Request
from nemo_desta.recipes.engines.scheduler import Advance, Job, Scheduler
from nemo_desta.sources import local_folder, resolve_source


class LocalEngine:
    """An `Engine` over a model in this process. Subclasses define ``advance``, see `Scheduler` (it may return more ids
    after an end id), and ``own_sampling``: temperature and filters that the LLM's authors recommend, as fields of
    `answering.sampling.Sampling`.

    ``new_tokens``: ``advance`` counts its tokens there.
    ``end_ids``: those of the LLM's generation config; the tokenizer's and the template's are added.
    ``context``: positions that the LLM has for prompt and answer together.
    ``batch_size``, ``concurrency``: requests in a batch, and requests that are sorted by length together.
    ``chat_template_kwargs``: must be those of the training that will read the answers.
    """

    advance: Advance
    own_sampling: Callable[[], dict[str, Any]]

    def __init__(
        self,
        tokenizer: Any,
        *,
        name: str,
        revision: str | None = None,
        end_ids: int | Sequence[int] | None,
        context: int,
        batch_size: int,
        concurrency: int,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if not tokenizer.chat_template:
            raise ValueError(f"the tokenizer of {name!r} has no chat template; use an instruct or reasoning LLM")
        self.new_tokens = 0
        self.name = name
        self.revision = revision
        self.batch_size = batch_size
        self.concurrency = concurrency
        # Prompts are rendered and tokenised by the code that will train on the answers.
        self.prompts = PromptBuilder(tokenizer, chat_template_kwargs=chat_template_kwargs)
        self.tokenizer = self.prompts.tokenizer
        self.end_ids = self.prompts.end_ids(end_ids)
        self.context = context
        self._scheduler = Scheduler(self.advance, size=batch_size, window=concurrency)

    async def generate(self, request: Request) -> Generation:
        """See `Engine`. A prompt that leaves no room for ``max_new_tokens`` in the LLM's context becomes an error."""
        try:
            prompt = self.prompts.text_prompt(request.messages, request.prefix)
        except RowError as error:
            return Generation("", False, str(error))
        ids = self.prompts.tokenize(prompt) if isinstance(prompt, str) else prompt
        asked = request.sampling
        room = self.context - asked.max_new_tokens
        if len(ids) > room:
            error = f"prompt of {len(ids)} tokens, the context leaves {room} beside max_new_tokens"
            return Generation("", False, error, len(ids))
        given = {"temperature": asked.temperature, "top_p": asked.top_p, "top_k": asked.top_k or 0}
        how = self.own_sampling() if asked.temperature is None else given
        sampling = Sampling(max_new_tokens=asked.max_new_tokens, seed=request.seed, **how)
        # Ids become text here and not in the worker thread: two threads must not use the tokenizer at a time.
        new = await self._scheduler.submit(Job(ids, sampling))
        if isinstance(new, Generation):
            return new
        end = next((i for i, token in enumerate(new) if token in self.end_ids), None)
        text = self.tokenizer.decode(new[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if end is not None:
            return Generation(text, False, None, len(ids), end + 1)
        # A cut inside a character of several bytes would leave a replacement mark that the LLM did not generate.
        return Generation(text.rstrip("\ufffd"), True, None, len(ids), len(new))

    async def close(self) -> None:
        await self._scheduler.close()


def llm_name(path: str) -> str:
    """The LLM's name in rows: the hub id, or a folder's last part, since its path differs from machine to machine."""
    folder = Path(resolve_source(path)).expanduser()
    return folder.resolve().name if folder.is_dir() else path


def llm_identity(path: str) -> dict[str, Any]:
    """The LLM's ``tokenizer``, ``name`` and ``revision``.

    ``revision``: 12 characters for weights, tokenizer and settings: the hub's commit, or a hash of the folder. None
    for an LLM that is not on this machine.
    """
    tokenizer = AutoTokenizer.from_pretrained(resolve_source(path), trust_remote_code=False)
    revision, folder = None, local_folder(path)
    if folder is not None:
        revision = folder.name[:12] if folder.parent.name == "snapshots" else short_fingerprint(folder)
    return {"tokenizer": tokenizer, "name": llm_name(path), "revision": revision}
