"""ALARM-E: several trained projectors over one frozen LLM. A clip's vectors are theirs in turn, text between.

`nemo_desta.sharing.join` makes one of trained models. It is not for training.
Letters: B clips, W vectors of the longest clip, D LLM width, L tokens of one text.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from nemo_desta.config import check_keys, nearest
from nemo_desta.errors import ConfigError
from nemo_desta.perception.projector.base import Encoders, Projector
from nemo_desta.perception.projector.registry import build_projector
from nemo_desta.perception.registry import PROJECTORS
from nemo_desta.types import EncoderOutput

WHERE = "model.perception.projector.members"


class EnsembleProjector(Projector):
    """Text, the vectors of the first member, text, those of the second, ..., text.

    The texts are kept as their vectors in the LLM's embedding table, buffers ``texts.0`` to ``texts.<members>``.
    """

    def __init__(
        self,
        encoders: Encoders,
        output_size: int,
        *,
        members: Mapping[str, Mapping[str, Any]],
        texts: Sequence[Mapping[str, Any]] | None = None,
    ):
        """Build every member.

        Args:
            members: by name, in order: the settings of a projector (``name`` and its knobs), and in ``encoders`` which
                of this model's encoders each of its own is, ``{whisper: ca_whisper}``; without it, all by their names.
            texts: before, between and after the members' vectors: ``{text: for readers, num_tokens: L}`` each.

        Raises:
            ConfigError: an unknown projector or encoder, another number of texts than one more than members, or a
                member that is an ensemble or an imported name.
        """
        super().__init__(encoders, output_size)
        texts = [{"num_tokens": 0}] * (len(members) + 1) if texts is None else texts
        if not members or len(texts) != len(members) + 1:
            raise ConfigError(
                f"{len(texts)} texts for {len(members)} members; each member has one before, the last one after"
            )
        self.members = nn.ModuleDict()
        self._own: dict[str, dict[str, str]] = {}
        for member, settings in members.items():
            kind, knobs = PROJECTORS.read(settings)
            own = knobs.pop("encoders", None) or {name: name for name in encoders}
            known = sorted(set(PROJECTORS) - {"ensemble"})
            if kind not in known:  # the settings of a model folder are not trusted: nothing is imported here
                raise ConfigError(f"{WHERE}.{member}: unknown projector '{kind}'.{nearest(kind, known)}")
            check_keys(own.values(), encoders, f"{WHERE}.{member}.encoders")
            self._own[member] = own
            named = {name: encoders[here] for name, here in own.items()}
            self.members[member] = build_projector(kind, named, output_size, **knobs)
        self.reads_padding = any(member.reads_padding for member in self.members.values())
        self.texts = nn.Module()
        for i, text in enumerate(texts):
            check_keys(text, ("text", "num_tokens"), f"model.perception.projector.texts.{i}")
            self.texts.register_buffer(str(i), torch.zeros(text["num_tokens"], output_size))

    def project(
        self, features: dict[str, EncoderOutput], audio_lens: torch.Tensor, sampling_rate: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Projector.project`; vectors (B, W, D), zero beyond each clip's."""
        first, *rest = self.texts.buffers()
        clips = [[first] for _ in audio_lens]
        for (name, member), text in zip(self.members.items(), rest, strict=True):
            own = {theirs: features[here] for theirs, here in self._own[name].items()}
            vectors, lens = member(own, audio_lens=audio_lens, sampling_rate=sampling_rate)
            for clip, row, length in zip(clips, vectors, lens.tolist(), strict=True):
                clip += [row[:length], text]
        joined = [torch.cat([part.to(vectors.dtype) for part in clip]) for clip in clips]
        lens = torch.tensor([len(clip) for clip in joined], device=audio_lens.device)
        return pad_sequence(joined, batch_first=True), lens

    def num_vectors(self, num_samples: int, sampling_rate: int) -> int:
        """See `Projector.num_vectors`."""
        heard = sum(member.num_tokens(num_samples, sampling_rate) for member in self.members.values())
        return heard + sum(len(text) for text in self.texts.buffers())
