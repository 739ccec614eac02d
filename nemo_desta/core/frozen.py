"""The frozen parts of a model: find them on this machine and check that they are the ones it was trained with.

A projector fits one LLM's embeddings and one encoder's layers. With a different LLM or encoder the output looks fluent
but is wrong. Loading therefore fails and names the part; ``check_identity=False`` loads it anyway.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import AutoConfig

from nemo_desta.config import ModelConfig, check_type, nearest
from nemo_desta.core.fingerprint import TOKENIZER_FILES, IdentityMismatch, differences, fingerprint
from nemo_desta.core.tokenizers import load_tokenizer, without_audio_token
from nemo_desta.core.trust import code_named
from nemo_desta.errors import ConfigError
from nemo_desta.perception.encoders import feature_files
from nemo_desta.sources import inside, is_local, local_folder, resolve_source

#: Tensors whose first dimension is the LLM's width, by kind of projector.
WIDTH_NAMES = re.compile(
    r"perception\.projector\.(?:members\.\w+\.)?(markers\.start|mlp\.2\.weight|output\.weight|fusion\.output\.weight"
    r"|fusion\.outputs\.\w+\.weight|adapters\.\w+\.output\.weight)"
)
Fingerprints = Mapping[str, Mapping[str, str]]


def frozen_sources(config: ModelConfig) -> dict[str, str]:
    """Source of every frozen part by its name in a checkpoint.

    Raises:
        ConfigError: ``use`` names an encoder that the config has not.
    """
    encoders = config.perception.encoders
    sources = {"llm": config.llm.path}
    for name in config.perception.use or list(encoders):
        if name not in encoders:
            raise ConfigError(f"model.perception.use names '{name}'.{nearest(name, encoders)}")
        path = encoders[name].get("path")
        check_type(path, str | None, f"'model.perception.encoders.{name}.path'")
        if path:
            sources[f"encoders.{name}"] = path
    return sources


def setting_of(*parts: str) -> str:
    """The settings of commands, which are arguments of `from_pretrained` too, that say where parts are."""
    encoders = [part.removeprefix("encoders.") for part in parts if part != "llm"]
    named = ", ".join(f"{name}: <path>" for name in encoders)
    return " ".join(["llm=<path>"] * ("llm" in parts) + [f"encoders={{{named}}}"] * bool(encoders))


def identify(config: ModelConfig, *, full: bool = False) -> dict[str, dict[str, str]]:
    """Fingerprints of all frozen parts that are on this machine."""
    found = {}
    for part, source in frozen_sources(config).items():
        folder = local_folder(source)
        if folder is not None:
            found[part] = fingerprint(folder, full=full, more=files_of(part, config))
    return found


def files_of(part: str, config: ModelConfig) -> tuple[str, ...]:
    """Files beside config and weights that decide what a frozen part computes."""
    name = part.removeprefix("encoders.")
    return () if part == "llm" else feature_files({"name": name, **config.perception.encoders[name]})


def check_identity(
    saved: Fingerprints, config: ModelConfig, *, trained: Mapping[str, str] | None = None, repair: str | None = None
) -> None:
    """Compare the frozen parts on this machine with the fingerprints of the parts used in training.

    Args:
        trained: the sources used in training, for the message.
        repair: what the message advises; by default, the settings that name the right part.

    Raises:
        IdentityMismatch: the message names each part and file that differs, with what was expected and found.
    """
    wrong, parts = [], []
    for part, source in frozen_sources(config).items():
        folder = local_folder(source)
        if folder is None or part not in saved:
            continue
        if changed := differences(saved[part], folder):
            before = (trained or {}).get(part, source)
            was = f" ('{before}' then)" if before != source else ""
            files = ", ".join(map(str, changed))
            wrong.append(f"{part}: '{source}' is not what this projector was trained with{was}: {files}")
            parts.append(part)
    if wrong:
        repair = repair or (
            f"Say where the right one is: {setting_of(*parts)}; or load it anyway, with answers that may be wrong: "
            "check_identity=false"
        )
        raise IdentityMismatch(f"{'; '.join(wrong)}. {repair}")


def fetch(saved: Fingerprints, config: ModelConfig) -> None:
    """Download the files of hub parts that will be compared and then loaded.

    Raises:
        FileNotFoundError: the hub does not have them. ConfigError: a fingerprint that names files outside the part.
    """
    from huggingface_hub import snapshot_download

    for part, source in frozen_sources(config).items():
        if is_local(source) or part not in saved:
            continue
        folder = local_folder(source)
        needed = [inside(Path(source), name).name for name in saved[part] if name not in TOKENIZER_FILES]
        if code := [name for name in needed if name.endswith(".py")]:
            raise ConfigError(f"{part}: its fingerprint names a Python file, which is not weights: {code[0]}")
        if absent := [name for name in needed if folder is None or not (folder / name).is_file()]:
            try:
                snapshot_download(source, allow_patterns=absent)
            except OSError as error:
                raise FileNotFoundError(
                    f"{part}: '{source}' is not on this machine, and the hub does not give it "
                    f"({type(error).__name__}). Say where it is: {setting_of(part)}"
                ) from error


def check_llm(config: ModelConfig, tensors: Mapping[str, Tensor], *, compare_vocabulary: bool) -> None:
    """Check that the projector can have been trained for an LLM: its width and, without a fingerprint, its vocabulary.

    ``compare_vocabulary``: compare the tokenizer of ``config``, which came with the projector, with the LLM's own.

    Raises:
        IdentityMismatch: another width or vocabulary.
    """
    source, trust = resolve_source(config.llm.path), config.llm.trust_remote_code
    with code_named(config.llm.path):
        llm = AutoConfig.from_pretrained(source, trust_remote_code=trust).get_text_config()
    repair = f"Say where the right LLM is: {setting_of('llm')}"
    width = trained_width(tensors)
    if width is not None and width != llm.hidden_size:
        raise IdentityMismatch(
            f"llm: the embeddings of '{config.llm.path}' are {llm.hidden_size} wide, this projector was trained for "
            f"{width}. {repair}"
        )
    if not compare_vocabulary or config.llm.tokenizer is None:
        return
    with code_named(config.llm.tokenizer):
        came = load_tokenizer(config.llm.tokenizer, trust_remote_code=trust)
    own = without_audio_token(came).get_vocab()
    if (highest := max(own.values())) >= llm.vocab_size:
        raise IdentityMismatch(
            f"llm: '{config.llm.path}' has {llm.vocab_size} token embeddings, the tokenizer that came with this "
            f"projector ids up to {highest}. {repair}"
        )
    try:
        theirs = load_tokenizer(source, trust_remote_code=trust).get_vocab()
    except (OSError, ValueError):  # an LLM may come without one: the model folder's is used anyway
        return
    if changed := [token for token, i in own.items() if theirs.get(token) != i]:
        raise IdentityMismatch(
            f"llm: the vocabulary of '{config.llm.path}' is not that of the tokenizer that came with this projector: "
            f"{len(changed)} of {len(own)} tokens have another id or none, such as {changed[0]!r}. {repair}; or load "
            "it anyway: check_identity=false"
        )


def trained_width(tensors: Mapping[str, Tensor]) -> int | None:
    """Width of the LLM that a projector's tensors were trained for; None where they do not show it."""
    return next((tensor.shape[0] for name, tensor in tensors.items() if WIDTH_NAMES.fullmatch(name)), None)
