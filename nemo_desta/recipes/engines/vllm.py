"""The LLM in vLLM, without a server. An optional extra: pip install 'nemo_desta[vllm]'.

Each request is handed to vLLM as soon as there is one, and its row gets the answer when vLLM ends it. vLLM decides how
many requests run together, and reads prompts that begin alike from its prefix cache.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from nemo_desta.answering.sampling import vllm_sampling
from nemo_desta.answering.vllm_process import end_waiting_with_the_process
from nemo_desta.recipes.engines.base import EngineError, Generation
from nemo_desta.recipes.engines.local import LocalEngine, llm_identity
from nemo_desta.recipes.engines.scheduler import Job, Result
from nemo_desta.sources import resolve_source

INSTALL = "the vllm engine needs vLLM: pip install vllm (a GPU machine; a separate environment is wise, it pins torch)"
#: Steps of vLLM after which `VLLMEngine.advance` returns at the latest, so that new requests need not wait.
_STEPS = 8
#: vLLM gives the new tokens of a request after so many of them: a list per token and request would cost time.
_TOKENS_TOGETHER = 16


class VLLMEngine(LocalEngine):
    """A frozen LLM in vLLM.

    ``llm``: a ``vllm.LLM``; ``local``: see `LocalEngine`. ``window``: requests that vLLM has at once; it runs some and
    queues the others. With ``temperature`` None, vLLM takes temperature, top-p, top-k and min-p from the LLM's
    generation config. It samples even if that config says ``do_sample: false``.
    """

    def __init__(
        self, llm: Any, tokenizer: Any, *, end_ids: int | Sequence[int] | None = None, window: int = 2048, **local: Any
    ) -> None:
        config = llm.model_config
        super().__init__(
            tokenizer, end_ids=end_ids, context=config.max_model_len, batch_size=window, concurrency=window, **local
        )
        self.llm = llm
        self.dtype = str(config.dtype).removeprefix("torch.")
        self._numbers = itertools.count()
        self._running: dict[str, Job] = {}  # by vLLM's id of the request
        end_waiting_with_the_process(llm.llm_engine.engine_core)

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        *,
        window: int = 2048,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **engine_args: Any,
    ) -> "VLLMEngine":
        """Load from a hub id, a folder, or ``package:<path>``; ``engine_args`` go to ``vllm.LLM``. Raises
        `ImportError` if vLLM is not installed; the message says how to get it."""
        try:
            from vllm import LLM
        except ImportError as error:
            raise ImportError(INSTALL) from error
        from transformers import GenerationConfig

        source = resolve_source(path)
        try:
            end_ids = GenerationConfig.from_pretrained(source).eos_token_id
        except OSError:  # an LLM without generation config
            end_ids = None
        llm = LLM(model=source, **{"stream_interval": _TOKENS_TOGETHER, **engine_args})
        options = {"end_ids": end_ids, "window": window, "chat_template_kwargs": chat_template_kwargs}
        return cls(llm, **llm_identity(path), **options)

    def own_sampling(self) -> dict[str, Any]:
        own = self.llm.get_default_sampling_params()
        return {"temperature": own.temperature, "top_p": own.top_p, "top_k": max(own.top_k, 0), "min_p": own.min_p}

    async def close(self) -> None:
        await super().close()
        self._abort(list(self._running))

    def advance(self, jobs: list[Job]) -> list[tuple[Job, Result]]:
        """Hand new requests to vLLM and let it work until an answer is there, `_STEPS` steps at most."""
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            wanted, known = set(jobs), set(self._running.values())
            self._abort([request for request, job in self._running.items() if job not in wanted])
            ended = self._ask([job for job in jobs if job not in known])
            for _ in range(_STEPS):
                if ended or not self._running:
                    break
                ended = self._step()
            return ended
        except BaseException as error:
            with suppress(Exception):  # vLLM may be gone
                self._abort(list(self._running))
            self._running.clear()
            if isinstance(error, EngineDeadError):
                raise EngineError("vLLM's process has ended; its own messages, if any, are above") from error
            raise

    def params(self, job: Job) -> Any:
        """The ``vllm.SamplingParams`` of a request."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        # Ids become text as in every other engine.
        common = {"stop_token_ids": self.end_ids, "detokenize": False, "output_kind": RequestOutputKind.DELTA}
        return SamplingParams(**vllm_sampling(job.sampling), **common)

    def _ask(self, jobs: Iterable[Job]) -> list[tuple[Job, Result]]:
        """Hand new requests to vLLM; returns those that it refuses."""
        from vllm.exceptions import VLLMClientError
        from vllm.inputs import tokens_input

        refused = []
        for job in jobs:
            request, params = str(next(self._numbers)), self.params(job)
            try:
                self.llm.llm_engine.add_request(request, tokens_input(job.ids), params)
                self._running[request] = job
            except (VLLMClientError, ValueError) as error:
                refused.append((job, Generation("", False, f"vLLM refuses this request: {error}", len(job.ids))))
        return refused

    def _step(self) -> list[tuple[Job, Result]]:
        """One step of vLLM; returns the jobs that ended in it."""
        ended: list[tuple[Job, Result]] = []
        for output in self.llm.llm_engine.step():
            job = self._running.get(output.request_id)
            if job is None:  # aborted
                continue
            answer = output.outputs[0]
            job.new += answer.token_ids
            self.new_tokens += len(answer.token_ids)
            if output.finished:
                del self._running[output.request_id]
                reason = answer.finish_reason
                failure = Generation("", False, f"vLLM ended this request: {reason}", len(job.ids), len(job.new))
                ended.append((job, job.new if reason in ("stop", "length") else failure))
        return ended

    def _abort(self, requests: Sequence[str]) -> None:
        if requests:
            self.llm.llm_engine.abort_request(requests)
        for request in requests:
            del self._running[request]
