"""From settings to an engine: one of three, every knob checked, nothing imported before it is needed."""

import subprocess
import sys
from pathlib import Path

import pytest

from nemo_desta.errors import ConfigError
from nemo_desta.recipes.engines import (
    EngineError,
    HFEngine,
    OpenAIEngine,
    Request,
    SamplingConfig,
    build_engine,
    generate_all,
)
from nemo_desta.testing.openai_server import ScriptedServer


def test_hf_settings_reach_the_engine(llm_folder: Path) -> None:
    settings = {"name": "hf", "batch_size": 2, "dtype": "float32", "device": "cpu"}
    engine = build_engine(settings, str(llm_folder), chat_template_kwargs={"enable_thinking": False})
    assert isinstance(engine, HFEngine)
    assert (engine.batch_size, engine.concurrency) == (2, 32)
    assert engine.prompts.chat_template_kwargs == {"enable_thinking": False}


def test_openai_engine_knows_its_server_once_it_is_built(llm_folder: Path) -> None:
    with ScriptedServer(lambda prompt: "yes", model="served") as server:
        settings = {"name": "openai", "base_url": server.url, "model": "served", "concurrency": 3}
        engine = build_engine(settings, str(llm_folder))
        assert isinstance(engine, OpenAIEngine)
        assert (engine.name, engine.revision, engine.concurrency) == ("served", "scripted-root", 6)
        assert (
            generate_all(engine, [Request([{"role": "user", "content": "?"}], SamplingConfig(), 0)])[0].text == "yes"
        )
        del settings["model"]
        assert build_engine(settings, "served", tokenizer=str(llm_folder)).name == "served"
        assert build_engine({**settings, "api": "chat"}, "served").prompts is None


def test_unknown_engine_or_knob_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(ConfigError, match="unknown engine 'vlm'.*Did you mean 'vllm'"):
        build_engine({"name": "vlm"}, "x")
    with pytest.raises(ConfigError, match="unknown key 'engine.batchsize'.*Did you mean 'batch_size'"):
        build_engine({"name": "hf", "batchsize": 4}, "x")
    with pytest.raises(ConfigError, match="hf engine reads the LLM's own tokenizer"):
        build_engine({"name": "hf"}, "x", tokenizer="y")
    with pytest.raises(ConfigError, match="'engine.base_url' must be given"):
        build_engine({"name": "openai"}, "x")
    with pytest.raises(ConfigError, match="'engine.concurrency' must be a whole number"):
        build_engine({"name": "openai", "base_url": "http://localhost:1", "concurrency": "many"}, "x")


def test_no_server_is_found_out_while_building(llm_folder: Path) -> None:
    settings = {"name": "openai", "base_url": "http://127.0.0.1:9/v1", "first_wait_secs": 0.001}
    with pytest.raises(EngineError, match="no server answers at http://127.0.0.1:9/v1"):
        build_engine(settings, str(llm_folder))


@pytest.mark.slow
def test_engines_are_imported_when_they_are_asked_for() -> None:
    code = (
        "import sys, nemo_desta.recipes.engines as engines\n"
        "assert not {'transformers', 'aiohttp', 'vllm'} & set(sys.modules), sorted(sys.modules)\n"
        "engines.OpenAIEngine\n"
        "assert not {'aiohttp', 'vllm', 'nemo_desta.recipes.engines.hf'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
