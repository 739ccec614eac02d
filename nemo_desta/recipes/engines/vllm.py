"""The offline vLLM engine, for a GPU machine without a server. An optional extra: pip install vllm.

Requests go to ``LLM.generate`` in large windows, and vLLM batches them. A window ends with its longest answer, so
``vllm serve`` with the `openai` engine uses the GPU better.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from nemo_desta.answering.sampling import vllm_sampling
from nemo_desta.recipes.engines.local import LocalEngine, llm_identity
from nemo_desta.recipes.engines.scheduler import Job, Result
from nemo_desta.sources import resolve_source

INSTALL = "the vllm engine needs vLLM: pip install vllm (a GPU machine; a separate environment is wise, it pins torch)"


class VLLMEngine(LocalEngine):
    """A frozen LLM in vLLM.

    ``llm``: a ``vllm.LLM``; ``local``: see `LocalEngine`. ``window``: requests per call; rows get their answers when
    the whole window is done. With ``temperature`` None, vLLM takes temperature, top-p, top-k and min-p from the LLM's
    generation config. It samples even if that config says ``do_sample: false``.
    """

    def __init__(
        self, llm: Any, tokenizer: Any, *, end_ids: int | Sequence[int] | None = None, window: int = 2048, **local: Any
    ) -> None:
        # Newer versions of vLLM have the model's config as an attribute of the LLM.
        config = getattr(llm, "model_config", None) or llm.llm_engine.model_config
        super().__init__(
            tokenizer, end_ids=end_ids, context=config.max_model_len, batch_size=window, concurrency=window, **local
        )
        self.llm = llm
        self.dtype = str(getattr(config, "dtype", None) or "").removeprefix("torch.") or None

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
        llm = LLM(model=source, **engine_args)
        options = {"end_ids": end_ids, "window": window, "chat_template_kwargs": chat_template_kwargs}
        return cls(llm, **llm_identity(path), **options)

    def own_sampling(self) -> dict[str, Any]:
        own = self.llm.get_default_sampling_params()
        return {"temperature": own.temperature, "top_p": own.top_p, "top_k": max(own.top_k, 0), "min_p": own.min_p}

    def advance(self, jobs: list[Job]) -> list[tuple[Job, Result]]:
        """All answers in one call."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        prompts = [TokensPrompt(prompt_token_ids=job.ids) for job in jobs]
        common = {"stop_token_ids": self.end_ids, "detokenize": False}  # ids become text as in every other engine
        params = [SamplingParams(**vllm_sampling(job.sampling), **common) for job in jobs]
        outputs = self.llm.generate(prompts, params, use_tqdm=False)
        answers = [list(output.outputs[0].token_ids) for output in outputs]
        self.new_tokens += sum(map(len, answers))
        return list(zip(jobs, answers, strict=True))
