"""vLLM in place of the decode loop: `ChatEngine` hands it ids and clips, and reads ids.

Prompts, thinking, stop texts and budgets are those of `ChatEngine`, as with the loop of this package.
"""

import itertools
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from nemo_desta.answering.engine import PreparedChat
from nemo_desta.answering.sampling import vllm_sampling
from nemo_desta.answering.vllm_process import end_waiting_with_the_process
from nemo_desta.config import check_keys
from nemo_desta.types import AUDIO_SLOT

INSTALL = (
    "engine=vllm needs vLLM, in an environment of its own (docs/stacks.md): "
    "pip install -c constraints/vllm.txt -e '.[vllm,recipes,serve,eval]'"
)
#: Our penalty reads the answer alone, vLLM's own the prompt, too. The processor is of vLLM's first model runner.
PENALTY = "nemo_desta.vllm_plugin.penalty:AnswerPenalty"
PENALTY_KEY = "nemo_desta_answer_penalty"
ENVIRONMENT = {"VLLM_PLUGINS": "nemo_desta", "VLLM_USE_V2_MODEL_RUNNER": "0", "VLLM_LOGGING_LEVEL": "WARNING"}


@dataclass
class Running:
    """One conversation in generation. ``forced``: ids to be emitted before vLLM continues after them."""

    chat: PreparedChat
    request_id: str = ""
    written: list[int] = field(default_factory=list)
    forced: list[int] = field(default_factory=list)


class VLLMDecoder:
    """A `TokenDecoder` on a ``vllm.LLMEngine`` that serves a model folder.

    Args:
        engine: see `start`. audio_token_id: of the folder's tokenizer.
    """

    def __init__(self, engine: Any, *, audio_token_id: int) -> None:
        self.engine = engine
        self.audio_token_id = audio_token_id
        self.rows: dict[int, Running] = {}
        self._keys = itertools.count()
        self._requests = itertools.count()
        self._by_request: dict[str, int] = {}
        self._ended: list[int] = []

    @staticmethod
    def start(engine_args: Mapping[str, Any]) -> Any:
        """A ``vllm.LLMEngine``. ``engine_args``: fields of ``vllm.EngineArgs``.

        Raises:
            ImportError: vLLM is not installed; the message says how to get it. ConfigError: an unknown argument.
        """
        for name, value in ENVIRONMENT.items():  # before vLLM is imported, for its processes, too
            os.environ.setdefault(name, value)
        try:
            from vllm import EngineArgs, LLMEngine
        except ImportError as error:
            raise ImportError(INSTALL) from error
        check_keys(engine_args, [one.name for one in fields(EngineArgs) if one.init], "vllm")
        processors = [PENALTY, *(engine_args.get("logits_processors") or ())]
        engine = LLMEngine.from_engine_args(EngineArgs(**{**engine_args, "logits_processors": processors}))
        end_waiting_with_the_process(engine.engine_core)
        return engine

    @property
    def context(self) -> int:
        """Positions of a request, prompt and answer, as vLLM resolved ``max_model_len``."""
        return self.engine.model_config.max_model_len

    def __len__(self) -> int:
        return len(self.rows)

    def join(self, chats: Sequence[PreparedChat]) -> list[int]:
        """Add conversations, all or none; returns their keys."""
        keys = []
        try:
            for chat in chats:
                keys.append(key := next(self._keys))
                self.rows[key] = Running(chat)
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
        if tokens or not self._by_request:
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
        """Keys of the rows that ended without a call of ours since the last call; they get no more tokens."""
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
        """Send a row's request. What was written is part of its prompt, which vLLM has in its caches."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        row = self.rows[key]
        chat, num_written = row.chat, len(row.written)
        limit = chat.sampling.max_new_tokens  # `StreamParser` counts; forced tokens do not count
        if num_written:
            limit = min(limit, self.context - chat.num_prompt_tokens - num_written)
        if limit < 1:
            self._ended.append(key)
            return
        # A seed of its own for the tokens after a forced stretch: the first random numbers would be drawn again.
        seed = chat.sampling.seed
        sampling = replace(
            chat.sampling,
            max_new_tokens=limit,
            seed=None if seed is None else seed + num_written,
            repetition_penalty=1.0,
        )
        penalty = chat.sampling.repetition_penalty
        params = SamplingParams(
            **vllm_sampling(sampling),
            extra_args=None if penalty == 1.0 else {PENALTY_KEY: [penalty, num_written]},
            # `StreamParser` decides where an answer ends, so vLLM ignores end ids. It makes no text either.
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        ids = [self.audio_token_id if token == AUDIO_SLOT else token for token in chat.ids]
        prompt: dict[str, Any] = {"prompt_token_ids": ids + row.written}
        if chat.clips:
            prompt["multi_modal_data"] = {"audio": list(chat.clips)}
        (rendered,) = self.engine.renderer.render_cmpl([prompt])
        row.request_id = str(next(self._requests))
        self.engine.add_request(row.request_id, rendered, params)
        self._by_request[row.request_id] = key

    def _give_up(self, keys: Iterable[int]) -> None:
        requests = [self.rows[key].request_id for key in keys if self.rows[key].request_id in self._by_request]
        for request_id in requests:
            del self._by_request[request_id]
        if requests:
            self.engine.abort_request(requests)
