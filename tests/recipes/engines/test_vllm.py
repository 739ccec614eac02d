"""The vLLM engine where vLLM is not installed; tests/vllm_plugin/recipes runs it in the real vLLM."""

import sys
from pathlib import Path

import pytest

from nemo_desta.recipes.engines import VLLMEngine


def test_absence_of_vllm_is_named_with_the_way_to_get_it(llm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match="pip install vllm"):
        VLLMEngine.from_pretrained(str(llm_folder))
