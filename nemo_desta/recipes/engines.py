"""Engines: what turns chat messages into an LLM's raw answers. One protocol, one engine so far: local transformers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LogitsProcessor, LogitsProcessorList

from nemo_desta.data.prompting import PromptBuilder
from nemo_desta.sources import resolve_source

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Sampling:
    """How to draw an answer; ``temperature`` 0 takes the likeliest token. The defaults are DeSTA2.5-Audio's."""

    max_new_tokens: int = 512
    temperature: float = 0.05
    top_p: float = 1.0
    seed: int = 0


class Generation(NamedTuple):
    """``text``: the raw continuation of the generation prompt, special tokens such as a closing think tag kept, the
    end-of-turn token left out. ``truncated``: the token limit came before the end of the turn. ``error``: why there is
    no text, None when there is.
    """

    text: str
    truncated: bool
    error: str | None = None


class Engine(Protocol):
    """``name`` goes into the rows as their ``llm``."""

    name: str

    def generate(
        self, conversations: Sequence[Messages], sampling: Sampling, seeds: Sequence[int] | None = None
    ) -> list[Generation]:
        """One answer per conversation, in their order. ``seeds``: one per conversation, ``sampling.seed`` + position
        when None; an answer's random numbers follow from its seed alone, however answers are batched.
        """
        ...


class HFEngine:
    """A frozen causal LLM in this process; batches are left-padded and sorted by length.

    ``model``: a transformers causal LLM; ``tokenizer``: its tokenizer, with a chat template. ``chat_template_kwargs``
    must be those of the training that will read the answers. ``progress`` shows a bar over the batches of one call.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        batch_size: int = 32,
        progress: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if not tokenizer.chat_template:
            raise ValueError(f"the tokenizer of {name!r} has no chat template; use an instruct or reasoning LLM")
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self.batch_size = batch_size
        self.progress = progress
        # Prompts are rendered and tokenised by the code that will train on the answers.
        self.prompts = PromptBuilder(tokenizer, chat_template_kwargs=chat_template_kwargs)
        self.end_ids = _end_ids(model, self.prompts)

    @classmethod
    def from_pretrained(cls, path: str, *, device: str = "auto", dtype: str = "auto", **options: Any) -> "HFEngine":
        """Load from a hub id, a folder, or ``package:<path>``; further ``options`` go to the constructor.

        ``auto``: the GPU if there is one; bfloat16 on it, float32 on a CPU. Raises ``FileNotFoundError`` for a folder
        without tokenizer.
        """
        source = resolve_source(path)
        folder = Path(source)
        if folder.is_dir() and not any(folder.glob("tokenizer*")):
            raise FileNotFoundError(f"LLM folder {path!r} holds no tokenizer (tokenizer.json, tokenizer_config.json)")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if dtype == "auto":
            dtype = "float32" if device == "cpu" else "bfloat16"
        model = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype)).to(device)
        # A folder's place differs from machine to machine; its last part is what rows should say.
        name = folder.resolve().name if folder.is_dir() else path
        return cls(model, AutoTokenizer.from_pretrained(source), name=name, **options)

    def generate(
        self, conversations: Sequence[Messages], sampling: Sampling, seeds: Sequence[int] | None = None
    ) -> list[Generation]:
        """See `Engine`. A prompt that leaves no room for ``max_new_tokens`` in the LLM's context becomes an error."""
        seeds = [sampling.seed + i for i in range(len(conversations))] if seeds is None else seeds
        prompts = [self.prompts.tokenize(self.prompts.render(messages)) for messages in conversations]
        results: list[Generation | None] = [None] * len(prompts)
        room = self.model.config.get_text_config().max_position_embeddings - sampling.max_new_tokens
        for i, ids in enumerate(prompts):
            if len(ids) > room:
                error = f"prompt of {len(ids)} tokens, the context leaves {room} beside max_new_tokens"
                results[i] = Generation("", False, error)
        todo = sorted((i for i, result in enumerate(results) if result is None), key=lambda i: -len(prompts[i]))
        for first in tqdm(range(0, len(todo), self.batch_size), "answers", disable=not self.progress):
            batch = todo[first : first + self.batch_size]
            answers = self._answer([prompts[i] for i in batch], sampling, [seeds[i] for i in batch])
            for i, answer in zip(batch, answers, strict=True):
                results[i] = answer
        return [result for result in results if result is not None]

    def _answer(self, prompts: list[list[int]], sampling: Sampling, seeds: list[int]) -> list[Generation]:
        width = max(len(ids) for ids in prompts)
        pad = self.end_ids[0]  # masked, so that any id does
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.model.device)
        processors = LogitsProcessorList([_RowSampler(sampling, seeds, width)] if sampling.temperature > 0 else [])
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
        return [self._decode(new) for new in output[:, width:].tolist()]

    def _decode(self, new: list[int]) -> Generation:
        end = next((i for i, token in enumerate(new) if token in self.end_ids), None)
        text = self.tokenizer.decode(new[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        # A cut inside a character of several bytes would leave a replacement mark that the LLM did not write.
        return Generation(text, False) if end is not None else Generation(text.rstrip("\ufffd"), True)


class _RowSampler(LogitsProcessor):
    """Draws each row's next token by its own random numbers and leaves only that token possible."""

    def __init__(self, sampling: Sampling, seeds: list[int], prompt_width: int) -> None:
        self.sampling = sampling
        self.prompt_width = prompt_width
        draws = [
            torch.rand(sampling.max_new_tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            for seed in seeds
        ]
        self.draws = torch.stack(draws)  # (B, max_new_tokens)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """``input_ids``: (B, L) so far; ``scores``: (B, V) logits of the next token."""
        probs = (scores.double() / self.sampling.temperature).softmax(-1)
        if self.sampling.top_p < 1:
            ranked, order = probs.sort(-1, descending=True)
            beyond = ranked.cumsum(-1) - ranked >= self.sampling.top_p
            probs = probs.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), 0.0)
        cumulative = probs.cumsum(-1)
        draw = self.draws[:, input_ids.shape[1] - self.prompt_width].to(scores.device)
        token = torch.searchsorted(cumulative, (draw * cumulative[:, -1])[:, None], right=True)
        token = token.clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, float("-inf")).scatter(-1, token, 0.0)


def _end_ids(model: Any, prompts: PromptBuilder) -> list[int]:
    """Every id that ends a turn: by the chat template, the tokenizer and the generation config."""
    configured = model.generation_config.eos_token_id
    ids = [prompts.end_of_turn_id, prompts.tokenizer.eos_token_id]
    ids += configured if isinstance(configured, list) else [configured]
    return list(dict.fromkeys(token for token in ids if token is not None))
