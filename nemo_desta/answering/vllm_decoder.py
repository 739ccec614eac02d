"""vLLM in place of the decode loop: an unmodified LLM reads embeddings. An optional extra: pip install vllm.

`AudioFrontend` embeds the prompts, so only vLLM loads the LLM. `ChatEngine` is the same for both: prompts, thinking,
stop texts, budgets, chat, batches and the server.
"""

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nemo_desta.answering.audio_frontend import AudioFrontend
from nemo_desta.answering.engine import ChatEngine
from nemo_desta.answering.sampling import Sampling
from nemo_desta.sources import resolve_source

INSTALL = (
    "serving with vLLM needs vLLM: pip install vllm (a GPU machine; a separate environment is wise, it pins torch)"
)


@dataclass
class Running:
    """One row in generation. ``forced``: ids to be emitted before vLLM continues after them."""

    prompt: Tensor  # (Z, D)
    sampling: Sampling
    request_id: str
    written: list[int] = field(default_factory=list)
    forced: list[int] = field(default_factory=list)


class VLLMDecoder:
    """A `TokenDecoder` on a ``vllm.LLMEngine``.

    Args:
        engine: made with ``enable_prompt_embeds=True``.
        embed_tokens: the LLM's embedding table, for texts that continue after forced tokens.
        make_params: makes the settings of a request from ``temperature, top_p, top_k, min_p, repetition_penalty, seed,
            max_tokens``; see `from_engine_args`.
    """

    def __init__(self, engine: Any, embed_tokens: nn.Embedding, make_params: Callable[..., Any]) -> None:
        self.engine = engine
        self.embed_tokens = embed_tokens
        self.make_params = make_params
        self.rows: dict[int, Running] = {}
        self._keys = itertools.count()
        self._requests = itertools.count()
        self._by_request: dict[str, int] = {}
        self._ended: list[int] = []

    @classmethod
    def from_engine_args(cls, embed_tokens: nn.Embedding, **engine_args: Any) -> "VLLMDecoder":
        """Start vLLM. ``engine_args`` are those of ``vllm.EngineArgs``: ``model``, ``tensor_parallel_size``, ...

        Raises:
            ImportError: vLLM is not installed; the message says how to get it.
        """
        try:
            from vllm import EngineArgs, LLMEngine, SamplingParams
            from vllm.sampling_params import RequestOutputKind
        except ImportError as error:
            raise ImportError(INSTALL) from error
        # `StreamParser` decides where an answer ends, so vLLM ignores end ids. It makes no text either.
        make_params = partial(SamplingParams, output_kind=RequestOutputKind.DELTA, detokenize=False, ignore_eos=True)
        engine = LLMEngine.from_engine_args(EngineArgs(enable_prompt_embeds=True, **engine_args))
        return cls(engine, embed_tokens, make_params)

    @property
    def context(self) -> int:
        """Positions of a request, prompt and answer, as vLLM resolved ``max_model_len``."""
        return self.engine.model_config.max_model_len

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, prompts: Tensor, attention_mask: Tensor, samplings: Sequence[Sampling]) -> list[int]:
        """Add prompts, embeddings (B, Z, D) left-padded with mask (B, Z) bool; returns the rows' keys."""
        keys = []
        try:
            for embeds, mask, sampling in zip(prompts, attention_mask, samplings, strict=True):
                keys.append(key := next(self._keys))
                self.rows[key] = Running(embeds[mask].cpu(), sampling, "")
                self._ask(key)
        except Exception:
            self.remove(keys)
            raise
        return keys

    def step(self) -> list[tuple[int, int]]:
        """New tokens as (key, id): forced ones, or those that vLLM has ready. A row may have several or none."""
        tokens = []
        for key, row in self.rows.items():
            if row.forced:
                tokens += [(key, token) for token in row.forced]
                row.written += row.forced
                row.forced = []
                self._ask(key)
        if tokens or not self.rows:
            return tokens
        for output in self.engine.step():
            key = self._by_request.get(output.request_id)
            if key is not None:
                new = list(output.outputs[0].token_ids)
                self.rows[key].written += new
                tokens += [(key, token) for token in new]
                if output.finished:  # vLLM's own reason: its context, or an abort
                    del self._by_request[output.request_id]
                    self._ended.append(key)
        return tokens

    def take_ended(self) -> list[int]:
        """Keys of the rows that vLLM ended since the last call; they get no more tokens."""
        ended, self._ended = [key for key in self._ended if key in self.rows], []
        return ended

    def force(self, key: int, ids: Iterable[int]) -> None:
        """Make ``ids`` the next tokens of a row: its request is aborted, and a new request continues after them."""
        self._give_up([key])
        self._ended = [other for other in self._ended if other != key]
        self.rows[key].forced += ids

    def remove(self, keys: Collection[int]) -> None:
        """Drop rows."""
        keys = [key for key in keys if key in self.rows]
        self._give_up(keys)
        for key in keys:
            del self.rows[key]

    def _ask(self, key: int) -> None:
        row = self.rows[key]
        prompt = row.prompt
        if row.written:
            table = self.embed_tokens
            ids = torch.tensor(row.written, device=table.weight.device)
            prompt = torch.cat([prompt, table(ids).detach().cpu().to(prompt.dtype)])
        # A seed of its own for the tokens after a forced stretch: the first random numbers would be drawn again.
        seed = row.sampling.seed
        settings = replace(row.sampling, seed=None if seed is None else seed + len(row.written))
        row.request_id = str(next(self._requests))
        params = self.make_params(**vllm_sampling(settings))
        num_prompt, num_written = len(row.prompt), len(row.written)
        # Penalties read ids: what was written, and for the prompt an id beyond the vocabulary. Without ids vLLM reads
        # those of an earlier request.
        ids = {
            "prompt_token_ids": [self.embed_tokens.num_embeddings] * num_prompt + row.written,
            "prompt_is_token_ids": torch.tensor([False] * num_prompt + [True] * num_written),
        }
        self.engine.add_request(row.request_id, {"prompt_embeds": prompt, **ids}, params)
        self._by_request[row.request_id] = key

    def _give_up(self, keys: Iterable[int]) -> None:
        requests = [self.rows[key].request_id for key in keys if self.rows[key].request_id in self._by_request]
        for request_id in requests:
            del self._by_request[request_id]
        if requests:
            self.engine.abort_request(requests)


def vllm_sampling(sampling: Sampling) -> dict[str, Any]:
    """The arguments of ``vllm.SamplingParams`` that a `Sampling` stands for."""
    same = {key: getattr(sampling, key) for key in ("temperature", "top_p", "min_p", "repetition_penalty", "seed")}
    # top_k -1: all tokens, in old versions and new ones
    return {**same, "top_k": sampling.top_k or -1, "max_tokens": sampling.max_new_tokens}


def vllm_chat_engine(
    folder: str | Path,
    *,
    llm: str | None = None,
    encoders: Mapping[str, str] | None = None,
    check_identity: bool = True,
    trust_remote_code: bool = False,
    allow_targets: Sequence[str] = (),
    max_batch_size: int = 256,
    **engine_args: Any,
) -> ChatEngine:
    """A `ChatEngine` whose LLM runs in vLLM, from a model folder or hub id; its ``model`` is an `AudioFrontend`.

    ``engine_args`` go to vLLM (``tensor_parallel_size``, ``gpu_memory_utilization``, ``max_model_len``, ...); leave
    room on the GPU for encoders and projector.
    """
    frontend = AudioFrontend.from_pretrained(
        folder,
        llm=llm,
        encoders=encoders,
        check_identity=check_identity,
        trust_remote_code=trust_remote_code,
        allow_targets=allow_targets,
    )
    engine_args = {
        "model": resolve_source(frontend.config.llm.path),
        "trust_remote_code": trust_remote_code,
        "dtype": frontend.embed_tokens.weight.dtype,
        "skip_tokenizer_init": True,
        **engine_args,
    }
    decoder = VLLMDecoder.from_engine_args(frontend.embed_tokens, **engine_args)
    frontend.engine_context = decoder.context
    return ChatEngine(frontend, decoder=decoder, max_batch_size=max_batch_size)
