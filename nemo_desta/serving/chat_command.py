"""The job ``desta chat``: one answer, a conversation, a file of rows or the web page."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from nemo_desta.config import parse
from nemo_desta.errors import ConfigError
from nemo_desta.models.model_source import ModelSource, check_engine

if TYPE_CHECKING:  # imported late, without their log
    from nemo_desta.answering.audio_embeddings import ChatModel
    from nemo_desta.answering.engine import ChatEngine
    from nemo_desta.models.desta import DestaModel


@dataclass(frozen=True)
class SamplingConfig:
    """Fields of `Sampling`; null: the value of the LLM's generation config."""

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: Any = None  # a text, or a list of them
    max_thinking_tokens: int | None = None


@dataclass(frozen=True)
class BatchConfig:
    """How a file of rows is answered; see `answer_rows`."""

    audio_roots: Any = None  # null: the input's folder
    max_batch_size: int = 32
    max_batch_tokens: int = 131_072
    look_ahead: int = 1024
    strict_keys: bool | None = None
    engine: str = "hf"
    vllm: dict[str, Any] = field(default_factory=dict)
    progress: bool = True


@dataclass(frozen=True)
class PageConfig:
    """Address of the web page."""

    host: str = "127.0.0.1"
    port: int = 7860


@dataclass(frozen=True)
class ChatConfig(ModelSource):
    """The settings of conf/use/chat.yaml, which explains each."""

    audio: Any = None
    text: Any = None
    prompt: str | None = None
    system: str | None = None
    transcript: str = "given"
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    show_thinking: bool = False
    input: Any = None
    output: str | None = None
    batch: BatchConfig = field(default_factory=BatchConfig)
    web: bool = False
    page: PageConfig = field(default_factory=PageConfig)


def run_chat(cfg: DictConfig | Mapping[str, Any], *, load: Callable[[ChatConfig], "DestaModel"] | None = None) -> Any:
    """Runs the mode that the config asks for; for a file of rows it returns the summary.

    Raises:
        ConfigError: wrong or contradicting settings. Errors of loading the model or audio are passed on.
    """
    plain = OmegaConf.to_container(cfg, resolve=True) if isinstance(cfg, DictConfig) else dict(cfg)
    config = parse(ChatConfig, plain, where="chat")
    _check(config)
    if config.input is not None and config.batch.engine == "vllm":
        from nemo_desta.vllm_plugin.chat import vllm_chat_engine

        places = config.batch.max_batch_size
        engine = vllm_chat_engine(**config.for_vllm(), max_batch_size=places, **config.batch.vllm)
        return _answer_rows(engine.model, config, engine)
    model = load(config) if load else config.load()
    if config.input is not None:
        return _answer_rows(model, config)
    if config.web:
        from nemo_desta.serving.web import serve_page

        conversation = {"transcript": config.transcript, "system": config.system, "sampling": _sampling(config)}
        return serve_page(model, host=config.page.host, port=config.page.port, **conversation)
    return _talk(model, config)


def _check(config: ChatConfig) -> None:
    ways = {"prompt": config.prompt is not None, "input": config.input is not None, "web": config.web}
    if sum(ways.values()) > 1:
        raise ConfigError(f"{' and '.join(way for way, on in ways.items() if on)}: give only one of them")
    check_engine(config.batch.engine, config.batch.vllm, "batch.")
    if (config.input is None) != (config.output is None):
        raise ConfigError("input (rows to answer) and output (the file of answers) go together")
    if config.audio is not None and (config.input is not None or config.web):
        raise ConfigError("audio goes with a prompt or a conversation in the terminal")
    if config.text is not None and len(_list(config.text)) != len(_list(config.audio)):
        raise ConfigError(f"{len(_list(config.text))} texts for {len(_list(config.audio))} audios; each needs one")


def _talk(model: "DestaModel", config: ChatConfig) -> None:
    from nemo_desta.serving.session import ChatSession
    from nemo_desta.serving.terminal import Terminal

    session = ChatSession(model, system=config.system, transcript=config.transcript, sampling=_sampling(config))
    notes = sys.stdout if config.prompt is None else sys.stderr  # for one answer, standard output holds nothing else
    terminal = Terminal(session, show_thinking=config.show_thinking, notes=notes)
    terminal.attach(_list(config.audio), texts=_list(config.text))
    if config.prompt is not None:
        terminal.answer(config.prompt)
    else:
        terminal.run()


def _answer_rows(model: "ChatModel", config: ChatConfig, engine: "ChatEngine | None" = None) -> Any:
    from nemo_desta.answering.offline import answer_rows
    from nemo_desta.data.rows import expand_paths

    return answer_rows(
        model,
        config.input,
        config.output,
        name=config.model,
        system=config.system,
        audio_roots=config.batch.audio_roots or expand_paths(config.input)[0].parent,
        transcript=config.transcript,
        sampling=_sampling(config),
        max_batch_size=config.batch.max_batch_size,
        max_batch_tokens=config.batch.max_batch_tokens,
        look_ahead=config.batch.look_ahead,
        strict_keys=config.batch.strict_keys,
        engine=engine,
        progress=config.batch.progress,
    )


def _sampling(config: ChatConfig) -> dict[str, Any]:
    return {name: value for name, value in asdict(config.sampling).items() if value is not None}


def _list(value: Any) -> list[str]:
    return [] if value is None else [str(item) for item in value] if isinstance(value, list) else [str(value)]
