"""From a recipe's config to its parts and through the pipeline; the only place in the recipes that looks at config."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nemo_desta.config import MISSING, ConfigError, parse
from nemo_desta.recipes.corpus import read_corpus
from nemo_desta.recipes.engines import HFEngine, Sampling
from nemo_desta.recipes.prompts import Prompt, load_prompts, parse_prompts, starter_prompts
from nemo_desta.recipes.self_generate import Summary, self_generate


@dataclass(frozen=True)
class SelfGenerateConfig:
    """The knobs of conf/recipes/self_generate.yaml, which says what each is for."""

    data_root: str = MISSING
    manifests: list[str] = field(default_factory=list)
    splits: list[str] | None = field(default_factory=lambda: ["train"])
    dialect: str = "desta25"
    prompts: Any = None  # path of a JSONL file, list of mappings, or None for the starter pool
    prompts_per_clip: int = 1
    audio_locator_tag: str = "<|AUDIO|>"
    llm: str = MISSING
    device: str = "auto"
    dtype: str = "auto"
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 32
    max_new_tokens: int = 512
    temperature: float = 0.05
    top_p: float = 1.0
    seed: int = 0
    output: str = MISSING
    check: bool = False


def run_self_generate(cfg: DictConfig | Mapping[str, Any]) -> Summary:
    """Run the recipe that ``cfg`` describes.

    Raises ``ConfigError`` for unknown or missing keys, ``FileNotFoundError`` that lists every missing file at once,
    and what `read_corpus` and `load_prompts` raise; all before the LLM is loaded.
    """
    plain = OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else cfg
    if missing := [key for key, value in plain.items() if value == MISSING]:
        raise ConfigError(f"to be given, ??? so far: {', '.join(missing)}")
    config = parse(SelfGenerateConfig, plain, where="self_generate")
    _require_files(config)
    rows = list(read_corpus(config.manifests, config.data_root, splits=config.splits))
    if not rows:
        raise ValueError(f"no rows of splits {config.splits} in {', '.join(config.manifests) or 'no manifests'}")
    engine = None
    if not config.check:
        engine = HFEngine.from_pretrained(
            config.llm,
            device=config.device,
            dtype=config.dtype,
            batch_size=config.batch_size,
            chat_template_kwargs=config.chat_template_kwargs,
        )
    return self_generate(
        rows,
        _prompts(config.prompts),
        engine,
        config.output,
        data_root=config.data_root,
        prompts_per_clip=config.prompts_per_clip,
        sampling=Sampling(config.max_new_tokens, config.temperature, config.top_p, config.seed),
        batch_size=config.batch_size,
        dialect=config.dialect,
        audio_locator_tag=config.audio_locator_tag,
    )


def _require_files(config: SelfGenerateConfig) -> None:
    missing = []
    if not Path(config.data_root).is_dir():
        missing.append(f"data_root: no folder {config.data_root}; manifests name audio files relative to it")
    for manifest in config.manifests:
        if not (Path(config.data_root) / manifest).is_file():
            missing.append(f"manifests: no file {manifest}, in full or below data_root")
    if isinstance(config.prompts, str) and not Path(config.prompts).is_file():
        missing.append(f"prompts: no file {config.prompts}; null takes the starter pool")
    if missing:
        raise FileNotFoundError("self-generation cannot start:\n  " + "\n  ".join(missing))


def _prompts(given: Any) -> list[Prompt]:
    if given is None:
        return starter_prompts()
    return load_prompts(given) if isinstance(given, str) else parse_prompts(given)
