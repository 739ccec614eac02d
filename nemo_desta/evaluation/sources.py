"""The evaluated model: a model folder (own decode loop or vLLM), or a model behind a server. Both resume after a
kill."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_desta.errors import ConfigError
from nemo_desta.evaluation.settings import EvaluateSettings

if TYPE_CHECKING:
    from nemo_desta.answering.engine import ChatEngine
    from nemo_desta.models.desta import DestaModel


logger = logging.getLogger(__name__)


@dataclass
class Source:
    """``model``: a model loaded in this process. ``tag``: marks the position of an audio in a message."""

    settings: EvaluateSettings
    model: "DestaModel | None" = None
    engine: "ChatEngine | None" = None

    @property
    def tag(self) -> str:
        listener = self.engine.model if self.engine is not None else self.model
        return listener.audio_locator_tag if listener is not None else "<|AUDIO|>"

    def about(self) -> dict[str, Any]:
        """The model's entry in the report."""
        if self.settings.endpoint is not None:
            return {"model": self.settings.endpoint.model, "endpoint": self.settings.endpoint.base_url}
        return {"folder": "/".join(Path(str(self.settings.model)).parts[-3:]), "engine": self.settings.engine}

    def tell_cache(self) -> None:
        """Log how many clips the feature cache spared the encoders, if there is one."""
        if self.model is not None and (cache := self.model.perception.feature_cache) is not None:
            logger.info(cache.summary())

    def ask(self, rows: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, str]:
        """Answers by row id. A row that could not be answered is missing and named in ``answers.rejected.jsonl``.

        Rows hold absolute audio paths. Rows with an answer in ``folder`` are not asked again.
        """
        folder.mkdir(parents=True, exist_ok=True)
        prompts, answers = folder / "prompts.jsonl", folder / "answers.jsonl"
        if prompts.is_file() and answers.is_file():
            _check_same(prompts, rows)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        partial = prompts.with_suffix(".part")
        partial.write_text(text, encoding="utf-8")
        partial.replace(prompts)  # atomic: a kill leaves the old file
        self._answer(prompts, answers, _roots(rows))
        wanted = {row["id"] for row in rows}
        return {line["id"]: line["answer"] for line in _read(answers) if line["id"] in wanted}

    def _answer(self, prompts: Path, answers: Path, roots: dict[str, str]) -> None:
        settings = self.settings
        if settings.endpoint is not None:
            from nemo_desta.evaluation.endpoint import answer_rows_at

            sampling = {key: value for key, value in settings.sampling.items() if value is not None}
            if "max_new_tokens" in sampling:
                sampling["max_tokens"] = sampling.pop("max_new_tokens")
            more = {"tag": self.tag, "sampling": sampling, "progress": settings.progress}
            answer_rows_at(settings.endpoint, prompts, answers, **more)
            return
        from nemo_desta.answering.offline import answer_rows

        answer_rows(
            self.engine.model if self.engine is not None else self.model,
            prompts,
            answers,
            name=str(settings.model),
            audio_roots=roots,
            transcript=settings.transcript,
            sampling=settings.sampling,
            engine=self.engine,
            progress=settings.progress,
            **settings.batch,
        )


def open_source(settings: EvaluateSettings) -> Source:
    """Loads the model, or refers to its server."""
    if settings.endpoint is not None:
        return Source(settings)
    if settings.engine == "vllm":
        from nemo_desta.vllm_plugin.chat import vllm_chat_engine

        places = {"max_batch_size": settings.batch["max_batch_size"]} if "max_batch_size" in settings.batch else {}
        return Source(settings, engine=vllm_chat_engine(**settings.for_vllm(), **places, **settings.vllm))
    return Source(settings, model=settings.load())


def _read(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file. Its bytes are split, because str.splitlines would also split at U+2028."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def _check_same(prompts: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Raises ConfigError if the folder holds answers to other prompts of the same ids."""
    before = {row["id"]: row["messages"] for row in _read(prompts)}
    for row in rows:
        if row["id"] in before and before[row["id"]] != json.loads(json.dumps(row["messages"])):
            raise ConfigError(
                f"{prompts.parent} holds answers to other prompts (the prompt of item '{row['id']}' differs). Give "
                "another output, or the same prompts and data_root"
            )


def _roots(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The folders of the rows' clips. The clips were resolved inside the data root when the items were read."""
    clips = [Path(audio["audio"]) for row in rows for m in row["messages"] for audio in m.get("audios") or ()]
    folders = sorted({str(clip.parent) for clip in clips}) or ["."]
    return {"default": folders[0], **{f"folder {i}": folder for i, folder in enumerate(folders[1:])}}
