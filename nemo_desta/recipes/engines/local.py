"""What the engines whose LLM runs in this process share: messages to ids, ids through the batcher, ids to text.

`hf.HFEngine` and `vllm.VLLMEngine` add how a batch is run and how requests are cut into batches.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nemo_desta.core.prompting import PromptBuilder
from nemo_desta.errors import RowError
from nemo_desta.recipes.engines.base import Generation, Request, Sampling
from nemo_desta.recipes.engines.batcher import Batcher
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


class Job(NamedTuple):
    """A request as ids. ``ids``: of the rendered prompt and prefix."""

    ids: list[int]
    sampling: Sampling
    seed: int


class LocalEngine:
    """An `Engine` over a model in this process; subclasses give `run` and `plan`.

    ``end_ids``: those of the LLM's generation config, beside which the tokenizer and the template have theirs.
    ``context``: positions that the LLM has for prompt and answer together.
    ``window``: requests that are cut into batches together.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        name: str,
        revision: str | None,
        end_ids: int | Sequence[int] | None,
        context: int,
        window: int,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if not tokenizer.chat_template:
            raise ValueError(f"the tokenizer of {name!r} has no chat template; use an instruct or reasoning LLM")
        self.name = name
        self.revision = revision
        self.concurrency = window
        # Prompts are rendered and tokenised by the code that will train on the answers.
        self.prompts = PromptBuilder(tokenizer, chat_template_kwargs=chat_template_kwargs)
        self.tokenizer = self.prompts.tokenizer
        self.end_ids = self.prompts.end_ids(end_ids)
        self.context = context
        self._batcher: Batcher[Job, Sequence[int] | Generation] = Batcher(self.run, self.plan, window=window)

    def run(self, jobs: list[Job]) -> Sequence[Sequence[int] | Generation]:
        """The new ids of each job (whatever follows an end id is ignored), or what became of it instead."""
        raise NotImplementedError

    def plan(self, jobs: list[Job]) -> list[list[int]]:
        """Positions of the jobs that make up each batch."""
        raise NotImplementedError

    async def generate(self, request: Request) -> Generation:
        """See `Engine`. A prompt that leaves no room for ``max_new_tokens`` in the LLM's context becomes an error."""
        try:
            prompt = self.prompts.text_prompt(request.messages, request.prefix)
        except RowError as error:
            return Generation("", False, str(error))
        ids = self.prompts.tokenize(prompt) if isinstance(prompt, str) else prompt
        room = self.context - request.sampling.max_new_tokens
        if len(ids) > room:
            error = f"prompt of {len(ids)} tokens, the context leaves {room} beside max_new_tokens"
            return Generation("", False, error, len(ids))
        # Ids become text here and not in the worker thread, so that no two threads use the tokenizer at a time.
        new = await self._batcher.submit(Job(ids, request.sampling, request.seed))
        return new if isinstance(new, Generation) else self._decode(len(ids), new)

    async def close(self) -> None:
        await self._batcher.close()

    def _decode(self, prompt_tokens: int, new: Sequence[int]) -> Generation:
        end = next((i for i, token in enumerate(new) if token in self.end_ids), None)
        text = self.tokenizer.decode(new[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if end is not None:
            return Generation(text, False, None, prompt_tokens, end + 1)
        # A cut inside a character of several bytes would leave a replacement mark that the LLM did not write.
        return Generation(text.rstrip("\ufffd"), True, None, prompt_tokens, len(new))


def llm_name(path: str) -> str:
    """What rows call the LLM: a folder's place differs from machine to machine, so its last part; else the hub id."""
    folder = Path(resolve_source(path)).expanduser()
    return folder.resolve().name if folder.is_dir() else path


def llm_revision(path: str) -> str | None:
    """Which weights, tokenizer and settings are meant, in 12 characters: the hub's commit, or a hash of the folder.

    The hash covers config and tokenizer, and of every weights file its size and blocks spread over it, the head (in
    safetensors: the header) among them: quick for any size. None for an LLM that is not on this machine.
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
