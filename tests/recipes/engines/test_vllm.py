"""The vLLM engine against a stand-in for vLLM, which needs a GPU build: same names, same signatures, checked calls."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from nemo_desta.recipes.engines import EngineError, Request, Sampling, VLLMEngine, build_engine, generate_all

CONVERSATIONS = [[{"role": "user", "content": "what is this? " * n}] for n in (1, 5, 2)]
FILTERS = {"temperature", "top_p", "top_k", "min_p", "repetition_penalty"}
PARAMS = FILTERS | {"max_tokens", "seed", "stop_token_ids", "detokenize"}


class SamplingParams:
    """Those of vLLM 0.6 to 0.2x that are used; a name that vLLM does not know is refused."""

    def __init__(self, **params: Any) -> None:
        assert set(params) <= PARAMS, set(params) - PARAMS
        self.temperature, self.top_p, self.top_k, self.min_p = 1.0, 1.0, -1, 0.0
        self.__dict__.update(params)


class LLM:
    """Answers with the prompt's last ids backwards; ``<|im_end|>`` stands where a stop would be."""

    def __init__(self, model: str, **engine_args: Any) -> None:
        self.model, self.engine_args, self.calls = model, engine_args, []
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=200))
        self.end = AutoTokenizer.from_pretrained(model).eos_token_id

    def get_default_sampling_params(self) -> SamplingParams:
        return SamplingParams(temperature=0.6, top_p=0.95, top_k=20, max_tokens=32768)

    def generate(self, prompts: Any, sampling_params: Any = None, *, use_tqdm: bool = True) -> list[Any]:
        assert isinstance(sampling_params, list) and len(sampling_params) == len(prompts)
        self.calls.append((prompts, sampling_params))
        outputs = []
        for prompt, params in zip(prompts, sampling_params, strict=True):
            if len(prompt["prompt_token_ids"]) + params.max_tokens > 200:
                raise ValueError("prompt is too long")
            new = [i for i in reversed(prompt["prompt_token_ids"]) if i != self.end][:6]
            new = [*new, self.end][: params.max_tokens]
            reason = "stop" if new[-1] == self.end else "length"
            outputs.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(new), finish_reason=reason)]))
        return outputs


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    package, inputs = ModuleType("vllm"), ModuleType("vllm.inputs")
    package.LLM, package.SamplingParams = LLM, SamplingParams
    inputs.TokensPrompt = lambda *, prompt_token_ids: {"prompt_token_ids": prompt_token_ids}
    monkeypatch.setitem(sys.modules, "vllm", package)
    monkeypatch.setitem(sys.modules, "vllm.inputs", inputs)


@pytest.mark.usefixtures("vllm")
def test_a_window_is_one_call_with_ids_and_seeds_of_each_row(llm_folder: Path) -> None:
    engine = VLLMEngine.from_pretrained(str(llm_folder), gpu_memory_utilization=0.5)
    samplings = [Sampling(7), Sampling(4, None), Sampling(7, 0.0)]
    requests = [Request(m, s, 10 + i) for i, (m, s) in enumerate(zip(CONVERSATIONS, samplings, strict=True))]
    requests.append(Request(CONVERSATIONS[0], Sampling(7, 0.5, 0.9, 12), 13, prefix="<think>\nso"))
    answers = generate_all(engine, requests)

    assert (engine.llm.model, engine.llm.engine_args) == (str(llm_folder), {"gpu_memory_utilization": 0.5})
    [(prompts, params)] = engine.llm.calls
    rendered = [engine.prompts.render(request.messages) + request.prefix for request in requests]
    assert [p["prompt_token_ids"] for p in prompts] == [engine.prompts.tokenize(text) for text in rendered]
    common = {"stop_token_ids": engine.end_ids, "detokenize": False, "repetition_penalty": 1.0}
    assert [vars(p) for p in params] == [
        {"temperature": 0.05, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "max_tokens": 7, "seed": 10, **common},
        {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.0, "max_tokens": 4, "seed": 11, **common},
        {"temperature": 0.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "max_tokens": 7, "seed": 12, **common},
        {"temperature": 0.5, "top_p": 0.9, "top_k": 12, "min_p": 0.0, "max_tokens": 7, "seed": 13, **common},
    ]
    assert [(answer.text, answer.truncated, answer.new_tokens) for answer in answers] == [
        ("\ntnats", False, 7),
        ("\ntna", True, 4),
        ("\ntnats", False, 7),
        ("os\n<think>\nt", False, 7),
    ]


@pytest.mark.usefixtures("vllm")
def test_prompt_beyond_the_context_never_reaches_vllm(llm_folder: Path) -> None:
    engine = VLLMEngine.from_pretrained(str(llm_folder))
    long = [{"role": "user", "content": "x" * 300}]
    answers = generate_all(engine, [Request(m, Sampling(7), 0) for m in (CONVERSATIONS[0], long)])
    assert answers[0].error is None and "context leaves 193" in answers[1].error
    assert len(engine.llm.calls[0][0]) == 1


@pytest.mark.usefixtures("vllm")
def test_exception_in_vllm_reaches_the_callers(llm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = VLLMEngine.from_pretrained(str(llm_folder))

    def broken(*args: Any, **options: Any) -> None:
        raise RuntimeError("EngineCore died")

    monkeypatch.setattr(engine.llm, "generate", broken)
    with pytest.raises(EngineError, match="EngineCore died"):
        generate_all(engine, [Request(CONVERSATIONS[0], Sampling(7), 0)])


@pytest.mark.usefixtures("vllm")
def test_answer_that_vllm_loses_reaches_the_callers(llm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = VLLMEngine.from_pretrained(str(llm_folder))
    monkeypatch.setattr(engine.llm, "generate", lambda *args, **options: [])
    with pytest.raises(EngineError, match="zip"):
        generate_all(engine, [Request(CONVERSATIONS[0], Sampling(7), 0)])


@pytest.mark.usefixtures("vllm")
def test_settings_leave_vllm_its_defaults(llm_folder: Path) -> None:
    settings = {"name": "vllm", "tensor_parallel_size": 2, "window": 64, "engine_args": {"enforce_eager": True}}
    engine = build_engine(settings, str(llm_folder))
    assert engine.llm.engine_args == {"tensor_parallel_size": 2, "enforce_eager": True}
    assert (engine.name, engine.concurrency, len(engine.revision)) == ("tiny-qwen3", 64, 12)


@pytest.mark.usefixtures("vllm")
def test_turns_end_where_the_generation_config_says_too(llm_folder: Path, tmp_path: Path) -> None:
    for file in llm_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [96, 5]}')
    engine = VLLMEngine.from_pretrained(str(tmp_path))
    assert engine.end_ids == [engine.tokenizer.convert_tokens_to_ids("<|im_end|>"), 5] == [96, 5]
    (tmp_path / "generation_config.json").unlink()
    assert VLLMEngine.from_pretrained(str(tmp_path)).end_ids == [96]


def test_absence_of_vllm_is_named_with_the_way_to_get_it(llm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match="pip install vllm"):
        VLLMEngine.from_pretrained(str(llm_folder))
