"""A trained model inside lmms-eval, for users of that harness.

    LMMS_EVAL_PLUGINS=nemo_desta.evaluation.lmms lmms-eval --model desta --model_args pretrained=<folder> --tasks mmau

The decode loop is that of the rest of the package. The harness has its own prompts, extraction and scorers, which
differ from the official ones, so its numbers are not comparable with theirs.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lmms_eval.api.model import lmms

if TYPE_CHECKING:
    from nemo_desta.models.desta import DestaModel

#: lmms-eval's generation settings that a `DestaModel` supports; the others (num_beams) are ignored.
KNOWN = ("max_new_tokens", "temperature", "top_p", "top_k", "do_sample")


class Desta(lmms):
    """lmms-eval's interface. ``pretrained``: model folder or hub id. ``llm``: path or hub id of the frozen LLM."""

    def __init__(self, pretrained: str, device: str | None = None, batch_size: int | str = 16, llm: str | None = None):
        from nemo_desta.models.desta import DestaModel

        super().__init__()
        self._model = DestaModel.from_pretrained(pretrained, device=device, llm=llm)
        self.batch_size = int(batch_size)

    @property
    def model(self) -> "DestaModel":
        return self._model

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers to the harness's requests, in their order; requests of equal settings share a batch."""
        answers: dict[int, str] = {}
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items(), key=str)), []).append(i)
        for members in groups.values():
            chats = [self._chat(*requests[i].args) for i in members]
            settings = _settings(requests[members[0]].args[1])
            said = self._model.chat(chats, max_batch_size=self.batch_size, **settings)
            answers.update(zip(members, map(str, said), strict=True))
        return [answers[i] for i in range(len(requests))]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not supported."""
        raise NotImplementedError("multi-round conversations are not supported in lmms-eval")

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not supported: benchmarks of audio models use generated answers."""
        raise NotImplementedError("log-likelihoods are not supported in lmms-eval")

    def _chat(
        self, context: str, settings: dict[str, Any], doc_to_visual: Any, doc_id: Any, task: str, split: str
    ) -> list[dict[str, Any]]:
        """One user message: the clips before the harness's text, as it does for other audio models."""
        clips = doc_to_visual(self.task_dict[task][split][doc_id])
        clips = [clip for clip in clips if clip is not None] if isinstance(clips, list | tuple) else [clips]
        tag = self._model.audio_locator_tag
        text = context.replace(tag, "").strip()  # a tag in the text would count as a clip
        if not clips:
            return [{"role": "user", "content": text}]
        audios = [{"array": clip["array"], "sampling_rate": clip["sampling_rate"]} for clip in clips]
        return [{"role": "user", "content": f"{tag * len(clips)}\n{text}", "audios": audios}]


def _settings(asked: dict[str, Any]) -> dict[str, Any]:
    """lmms-eval's settings as ours; a temperature of 0 is greedy."""
    settings = {name: asked[name] for name in KNOWN if asked.get(name) is not None}
    if settings.get("top_k") == -1:
        settings.pop("top_k")
    until = asked.get("until") or []
    stop = [text for text in ([until] if isinstance(until, str) else until) if text]
    return {"max_new_tokens": 256, "temperature": 0.0, "stop": stop, **settings}
