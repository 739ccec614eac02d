"""The offline vLLM engine, for a GPU machine without a server. An optional extra: pip install vllm.

Requests go to ``LLM.generate`` in large windows, and vLLM batches them. A window ends with its longest answer, so
``vllm serve`` with the `openai` engine uses the GPU better.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from nemo_desta.answering.vllm_decoder import vllm_sampling
from nemo_desta.recipes.engines.local import LocalEngine, llm_name, llm_revision
from nemo_desta.recipes.engines.scheduler import Job, Result
from nemo_desta.sources import resolve_source

INSTALL = "the vllm engine needs vLLM: pip install vllm (a GPU machine; a separate environment is wise, it pins torch)"


class VLLMEngine(LocalEngine):
    """A frozen LLM in vLLM.

    ``llm``: a ``vllm.LLM``. ``end_ids``: further ids that end a turn, beside the tokenizer's and the template's.
    ``window``: requests per call; rows get their answers when the whole window is done. With ``temperature`` None,
    vLLM takes temperature, top-p, top-k and min-p from the LLM's generation config. It samples even if that config
    says ``do_sample: false``.
    """

    def __init__(
        self,
        llm: Any,
        tokenizer: Any,
        *,
        name: str,
        revision: str | None = None,
        end_ids: Sequence[int] = (),
        window: int = 2048,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            tokenizer,
            name=name,
            revision=revision,
            end_ids=end_ids,
            context=_model_config(llm).max_model_len,
            batch_size=window,
            concurrency=window,
            chat_template_kwargs=chat_template_kwargs,
        )
        self.llm = llm

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        *,
        window: int = 2048,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **engine_args: Any,
    ) -> "VLLMEngine":
        """Load from a hub id, a folder, or ``package:<path>``; ``engine_args`` go to ``vllm.LLM``.

        Raises:
            ImportError: vLLM is not installed; the message says how to get it.
        """
        try:
            from vllm import LLM
        except ImportError as error:
            raise ImportError(INSTALL) from error
        from transformers import AutoTokenizer

        source = resolve_source(path)
        return cls(
            LLM(model=source, **engine_args),
            AutoTokenizer.from_pretrained(source, trust_remote_code=False),
            name=llm_name(path),
            revision=llm_revision(path),
            end_ids=_configured_end_ids(source),
            window=window,
            chat_template_kwargs=chat_template_kwargs,
        )

    def own_sampling(self) -> dict[str, Any]:
        own = self.llm.get_default_sampling_params()
        return {"temperature": own.temperature, "top_p": own.top_p, "top_k": max(own.top_k, 0), "min_p": own.min_p}

    def advance(self, jobs: list[Job]) -> list[tuple[Job, Result]]:
        """All answers in one call."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        prompts = [TokensPrompt(prompt_token_ids=job.ids) for job in jobs]
        # detokenize: ids become text as in every other engine.
        params = [
            SamplingParams(**vllm_sampling(job.sampling), stop_token_ids=self.end_ids, detokenize=False)
            for job in jobs
        ]
        outputs = self.llm.generate(prompts, params, use_tqdm=False)
        return [(job, list(output.outputs[0].token_ids)) for job, output in zip(jobs, outputs, strict=True)]


def _configured_end_ids(source: str) -> list[int]:
    """The end ids of the generation config, if the LLM has one."""
    from transformers import GenerationConfig

    try:
        configured = GenerationConfig.from_pretrained(source).eos_token_id
    except OSError:
        return []
    return configured if isinstance(configured, list) else [] if configured is None else [configured]


def _model_config(llm: Any) -> Any:
    """Newer versions of vLLM have it as an attribute of the LLM."""
    return getattr(llm, "model_config", None) or llm.llm_engine.model_config
