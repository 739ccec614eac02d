"""The common part of the engines whose LLM runs in this process: messages to ids, ids to the model, ids to text.

`hf.HFEngine` and `vllm.VLLMEngine` add how the model answers a batch.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_desta.answering.sampling import Sampling
from nemo_desta.core.prompting import PromptBuilder
from nemo_desta.errors import RowError
from nemo_desta.recipes.engines.base import Generation, Request
from nemo_desta.recipes.engines.scheduler import Job, Result, Scheduler
from nemo_desta.sources import local_folder, resolve_source, sampled_blocks

#: Files that decide what an LLM answers; all that exist go into its revision.
_SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "chat_template.jinja",
)


class LocalEngine:
    """An `Engine` over a model in this process; subclasses define `advance` and `own_sampling`.

    ``end_ids``: those of the LLM's generation config; the tokenizer's and the template's are added.
    ``context``: positions that the LLM has for prompt and answer together.
    ``batch_size``, ``concurrency``: requests in a batch, and requests that are sorted by length together.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        name: str,
        revision: str | None,
        end_ids: int | Sequence[int] | None,
        context: int,
        batch_size: int,
        concurrency: int,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if not tokenizer.chat_template:
            raise ValueError(f"the tokenizer of {name!r} has no chat template; use an instruct or reasoning LLM")
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

    def advance(self, jobs: list[Job]) -> Iterable[tuple[Job, Result]]:
        """Work on the answers to ``jobs``; see `Scheduler`. Ids after an end id are ignored."""
        raise NotImplementedError

    def own_sampling(self) -> dict[str, Any]:
        """Temperature and filters that the LLM's authors recommend, as fields of `answering.sampling.Sampling`."""
        raise NotImplementedError

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
        if asked.temperature is None:
            how = self.own_sampling()
        else:
            how = {"temperature": asked.temperature, "top_p": asked.top_p, "top_k": asked.top_k or 0}
        sampling = Sampling(max_new_tokens=asked.max_new_tokens, seed=request.seed, **how)
        # Ids become text here and not in the worker thread: two threads must not use the tokenizer at a time.
        new = await self._scheduler.submit(Job(ids, sampling))
        return new if isinstance(new, Generation) else self._decode(len(ids), new)

    async def close(self) -> None:
        await self._scheduler.close()

    def _decode(self, prompt_tokens: int, new: Sequence[int]) -> Generation:
        end = next((i for i, token in enumerate(new) if token in self.end_ids), None)
        text = self.tokenizer.decode(new[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if end is not None:
            return Generation(text, False, None, prompt_tokens, end + 1)
        # A cut inside a character of several bytes would leave a replacement mark that the LLM did not generate.
        return Generation(text.rstrip("\ufffd"), True, None, prompt_tokens, len(new))


def llm_name(path: str) -> str:
    """The LLM's name in rows: the hub id, or a folder's last part, since its path differs from machine to machine."""
    folder = Path(resolve_source(path)).expanduser()
    return folder.resolve().name if folder.is_dir() else path


def llm_revision(path: str) -> str | None:
    """12 characters for weights, tokenizer and settings: the hub's commit, or a hash of the folder.

    The hash covers config and tokenizer, and of every weights file its size and blocks spread over it, the first one
    (in safetensors: the header) among them. It is quick for any size. None for an LLM that is not on this machine.
    """
    folder = local_folder(path)
    if folder is None:
        return None
    if folder.parent.name == "snapshots":
        return folder.name[:12]
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.name in _SMALL_FILES:
            digest.update(file.name.encode() + file.read_bytes())
        elif file.suffix in (".safetensors", ".bin"):
            digest.update(f"{file.name} {file.stat().st_size}".encode())
            for block in sampled_blocks(file):
                digest.update(block)
    return digest.hexdigest()[:12]
