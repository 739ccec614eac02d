"""A tiny LLM that vLLM can run on a CPU, a recipe over clips without audio, and its rows by transformers."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nemo_desta.recipes.pipeline import RecipeFolder
from nemo_desta.recipes.run import run_recipe
from nemo_desta.testing.data import character_tokenizer
from nemo_desta.testing.models import tiny_llm
from tests.vllm_plugin.conftest import HEAD_SIZE

#: Few requests run at once, so that most of them wait in vLLM's queue.
VLLM = {"name": "vllm", "dtype": "float32", "engine_args": {"enforce_eager": True, "max_num_seqs": 4}}
CONTEXT, CLIPS, START_SECS = 512, 24, 900
PROMPTS = [
    {"prompt_id": "who", "prompt": "Who?", "requires": ["gender"], "kind": "ask"},
    {"prompt_id": "said", "prompt": "What is said?", "requires": ["transcript"], "kind": "describe"},
]


@pytest.fixture(scope="session")
def llm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llm") / "tiny"
    shape = {"head_dim": HEAD_SIZE, "max_position_embeddings": CONTEXT, "tie_word_embeddings": False}
    # Wide initial weights: with transformers' own, every prompt gets the same answer.
    ids = {"pad_token_id": None, "bos_token_id": None, "initializer_range": 0.2}
    return tiny_llm(folder, tokenizer=character_tokenizer(), **shape, **ids)


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[None]:
    """vLLM runs in this process, without plugins."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        patch.setenv("VLLM_PLUGINS", "nemo_desta")  # vLLM loads plugins once per process, and other tests need it
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setenv("VLLM_NO_USAGE_STATS", "1")
        yield


@pytest.fixture(scope="session")
def expected(llm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe's folder by the engine of transformers."""
    root = tmp_path_factory.mktemp("hf")
    summary = run_recipe(settings(root, llm_folder, {"name": "hf", "dtype": "float32"}))
    assert summary.written > CLIPS and summary.rejected["LLM error"] == 2
    return root / "out"


def settings(root: Path, llm: Path, engine: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Of a recipe with `CLIPS` clips and two rows for each; one clip's transcript is longer than the LLM's context."""
    (root / "m.jsonl").write_text("".join(json.dumps(clip(number)) + "\n" for number in range(CLIPS)))
    request = {"sampling": {"max_new_tokens": 40, "temperature": 0.0}, "max_new_tokens_by_kind": {"ask": 6}}
    base = {"corpus": "m.jsonl", "data_root": str(root), "llm": str(llm), "prompts": PROMPTS, "prompts_per_clip": 2}
    base |= {"engine": engine, "output": str(root / "out"), "request": request, "audio": {"check": "off"}}
    return {**base, "gates": {"grounded": None}, "progress": False, "report": False, "shard_size": 10, **more}


def clip(number: int) -> dict[str, Any]:
    about = {"source": "toy", "split": "train", "domain": "speech", "audio": f"{number}.wav", "duration": 0.3}
    words = "word " * (CONTEXT if number == 7 else number % 5) + str(number)
    return {"id": f"c{number}", **about, "transcript": words, "attributes": {"gender": ("male", "female")[number % 2]}}


def files(folder: Path, without: tuple[str, ...] = ()) -> dict[str, list[dict[str, Any]]]:
    """The kept and the rejected rows of a recipe, ``without`` these keys."""
    found = {}
    for path in sorted(folder.glob("r*/*.jsonl")):
        found[path.parent.name + path.name] = rows = [json.loads(line) for line in path.open()]
        for row in rows:
            for key in without:
                row.pop(key, None)
                (row.get("row") or {}).pop(key, None)
    return found


def settled(folder: RecipeFolder) -> int:
    """Rows in the journals and in finished shards."""
    return sum(len(path.read_bytes().splitlines()) for path in folder.shards.glob("0*") if path.suffix != ".lock")
