"""The tokenizer of a model folder, and the audio's token in it, whose id holds an audio's positions for transformers.

The frozen LLM has no row for this token; its id may lie beyond the LLM's vocabulary. Our own prompts never contain it:
`PromptBuilder` puts `AUDIO_SLOT` there, and a locator tag that data spell is text. So the token is added when a folder
is written, and taken away when its tokenizer is loaded for prompts.
"""

import copy
import json
from pathlib import Path
from typing import Any

from transformers import AddedToken, AutoTokenizer, PretrainedConfig

#: What config.json of a model folder has as ``model_type``.
MODEL_TYPE = "nemo_desta"
#: Key of tokenizer_config.json that holds the tag which `with_audio_token` added.
ADDED_KEY = "added_by_nemo_desta"


def load_tokenizer(source: str | Path, *, trust_remote_code: bool) -> Any:
    """The tokenizer of an LLM or of a model folder, as it is on disk; errors as transformers' own loader."""
    # With a config of its own, or transformers looks for a class of ours and may run code that the folder carries.
    config = {"config": PretrainedConfig()} if _is_ours(Path(source) / "config.json") else {}
    return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code, use_fast=True, **config)


def with_audio_token(tokenizer: Any, tag: str) -> tuple[Any, int | None]:
    """A copy of a tokenizer in which ``tag`` is one token, and the token's id.

    A tokenizer that has such a token is returned as it is, and so is one of Python code, with None.
    """
    if not getattr(tokenizer, "is_fast", False):
        return tokenizer, None
    if tag not in {token.content for token in tokenizer.added_tokens_decoder.values()}:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.add_tokens([AddedToken(tag, special=True, normalized=False)], special_tokens=True)
        tokenizer.init_kwargs[ADDED_KEY] = tag
    return tokenizer, tokenizer.convert_tokens_to_ids(tag)


def without_audio_token(tokenizer: Any) -> Any:
    """A copy of a tokenizer without the token that `with_audio_token` added; the given one if it added none."""
    tag = tokenizer.init_kwargs.get(ADDED_KEY)
    if tag is None:
        return tokenizer
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] != tag]
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))
    del tokenizer.init_kwargs[ADDED_KEY]
    tokenizer.init_kwargs.pop("added_tokens_decoder", None)
    return tokenizer


def _is_ours(file: Path) -> bool:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("model_type") == MODEL_TYPE
