"""Join trained models over one LLM to a model that hears every clip with each of them, as ALARM-E; nothing is trained.

The result is an ordinary model folder, whose projector is an `EnsembleProjector`.
"""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nemo_desta.config import ModelConfig, PerceptionConfig
from nemo_desta.core import build
from nemo_desta.core.folder import (
    ENCODER_FOLDER,
    FOLDER_FILES,
    PROJECTOR_PREFIX,
    check_trained_names,
    describe,
    find_model,
    load_folder,
    relocate,
    write_folder,
)
from nemo_desta.core.frozen import check_identity, frozen_sources, identify
from nemo_desta.errors import ConfigError
from nemo_desta.perception.build import build_projector_for, encoder_shapes
from nemo_desta.sources import fetch_folder, local_folder

#: ALARM-E's words, to the letter: its models answer by them.
OPENING = (
    "You will hear the same audio {total} times and perceive different aspects of it, e.g., content description, "
    "environment description, speech transcription, sound quality, etc.. Depending on the audio the aspects may "
    "differ.Process all of the information to make a decision.\n\n"
)
HEADER = "This is what you hear in the audio for the ({number}/{total}) time:\n"


class _Member(NamedTuple):
    """A model's folder, its config as saved and as found here, its tensors, and fingerprints of its frozen parts."""

    folder: Path
    saved: ModelConfig
    here: ModelConfig
    tensors: dict[str, Tensor]
    parts: dict[str, dict[str, str]]

    def path_of(self, encoder: str) -> str | None:
        """Where an encoder is here; None for one without files."""
        return self.here.perception.encoders[encoder].get("path")


def join_models(members: Mapping[str, str | Path], output: str | Path, *, llm: str | None = None) -> Path:
    """Write the model folder. The LLM is loaded once, for the embeddings of the text between the members' vectors.

    Args:
        members: model folder, run or hub id of each member, by a name of your choice, in the order of hearing.
        llm: where the LLM is on this machine, if not where the members' configs say.

    Raises:
        ConfigError: fewer than two members; members over different LLMs, with LoRA, or with other prompts or audio
            levels; a member that is an ensemble or whose projector is not one of the known ones; a link that leads out
            of a member's folder.
        ValueError: tensors that do not fit a member's projector.
        IdentityMismatch: a frozen part on this machine that is not the one of a member's training.
        FileNotFoundError: no model folder, or a part that is not on this machine. UntrustedConfig: see `open_model`.
    """
    if len(members) < 2 or not all(map(str.isidentifier, members)):
        raise ConfigError(f"an ensemble has two members or more, named in letters and digits; found {list(members)}")
    found = {name: _open(source, llm) for name, source in members.items()}
    for name, member in found.items():
        _check(name, member, *next(iter(found.items())))
    first = next(iter(found.values()))
    encoders, own, origins = _encoders(found)
    texts = [OPENING + HEADER, *["\n" + HEADER] * (len(found) - 1), "\n"]
    texts = [text.format(number=number, total=len(found)) for number, text in enumerate(texts, start=1)]
    vectors = _embed(texts, first.here)
    tensors = {f"{PROJECTOR_PREFIX}texts.{i}": vector for i, vector in enumerate(vectors)}
    for name, member in found.items():
        for key, tensor in member.tensors.items():
            tensors[f"{PROJECTOR_PREFIX}members.{name}.{key.removeprefix(PROJECTOR_PREFIX)}"] = tensor
    projector = {
        "name": "ensemble",
        "members": {
            name: {"name": "window", **member.saved.perception.projector, "encoders": own[name]}
            for name, member in found.items()
        },
        "texts": [{"text": text, "num_tokens": len(v)} for text, v in zip(texts, vectors, strict=True)],
    }
    limits = [member.saved.perception.sampling_rate for member in found.values()]
    perception = PerceptionConfig(
        encoders=encoders,
        projector=projector,
        sampling_rate=None if None in limits else max(limits),
        dtype=first.saved.perception.dtype,
        normalize_dbfs=first.saved.perception.normalize_dbfs,
    )
    _check_tensors(perception, {new: found[name].path_of(old) for new, (name, old) in origins.items()}, tensors)
    config = ModelConfig(llm=first.saved.llm, perception=perception, prompt=first.saved.prompt)
    parts = {"llm": first.parts.get("llm")}
    parts |= {f"encoders.{new}": found[name].parts.get(f"encoders.{old}") for new, (name, old) in origins.items()}
    output = Path(output)
    description = describe(config, {part: hashes for part, hashes in parts.items() if hashes})
    write_folder(output, description, tensors, build.build_tokenizer(first.here.llm))
    for new, (name, old) in origins.items():
        if (contained := found[name].folder / ENCODER_FOLDER / old).is_dir():
            _copy(contained, output / ENCODER_FOLDER / new, found[name].folder)
    return output


def _open(source: str | Path, llm: str | None) -> _Member:
    folder = find_model(local_folder(str(source)) or fetch_folder(str(source), FOLDER_FILES))
    saved, tensors, frozen = load_folder(folder)
    here = relocate(saved, folder, llm=llm)
    check_identity(frozen, here, trained=frozen_sources(saved))
    return _Member(folder, saved, here, tensors, {**frozen, **identify(here)})


def _check(name: str, member: _Member, first_name: str, first: _Member) -> None:
    """Compare what all members share with the first member's."""
    if member.here.llm.lora is not None:
        raise ConfigError(f"'{name}' has LoRA, which changes the LLM that the other members read")
    pairs = {
        "LLM": [one.parts.get("llm") or one.here.llm.path for one in (member, first)],
        "model.prompt": [one.saved.prompt for one in (member, first)],
        "model.perception.dtype": [one.saved.perception.dtype for one in (member, first)],
        "model.perception.normalize_dbfs": [one.saved.perception.normalize_dbfs for one in (member, first)],
    }
    for what, (own, other) in pairs.items():
        if own != other:
            raise ConfigError(f"'{name}' and '{first_name}' cannot be joined, since they differ in {what}")


def _encoders(
    members: Mapping[str, _Member],
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, str]], dict[str, tuple[str, str]]]:
    """The encoders of all members; equal ones are one, so that they encode a clip once.

    Returns:
        Their settings by new name; for every member, the new name of each of its own; where each new one comes from
        (member, its name there).
    """
    encoders: dict[str, dict[str, Any]] = {}
    own: dict[str, dict[str, str]] = {}
    origins: dict[str, tuple[str, str]] = {}
    identities: dict[str, Any] = {}
    for member, one in members.items():
        perception, parts = one.saved.perception, one.parts
        own[member] = {}
        for name in perception.use or perception.encoders:
            knobs = {"name": name, **perception.encoders[name]}
            source = parts.get(f"encoders.{name}") or one.path_of(name)
            identity = {**knobs, "path": source}
            new = next((new for new, known in identities.items() if known == identity), name)
            while identities.get(new, identity) != identity:
                new = f"{member}_{new}"
            identities[new], own[member][name] = identity, new
            if new not in encoders:
                encoders[new], origins[new] = knobs, (member, name)
    return encoders, own, origins


def _check_tensors(
    perception: PerceptionConfig, paths: Mapping[str, str | None], tensors: Mapping[str, Tensor]
) -> None:
    """Build the projector without weights, and compare names. ``paths``: where the encoders are here."""
    width = len(tensors[f"{PROJECTOR_PREFIX}texts.0"][0])
    here = {name: {**knobs, "path": paths[name]} for name, knobs in perception.encoders.items()}
    perception = replace(perception, encoders=here)
    with torch.device("meta"):
        projector = build_projector_for(perception, encoder_shapes(perception), width)
    check_trained_names((PROJECTOR_PREFIX + name for name in projector.state_dict()), tensors)


def _copy(source: Path, target: Path, folder: Path) -> None:
    """Copy the files of an encoder that a model's folder contains; links may lead into it and into the hub's cache."""
    inside = (folder.resolve(), folder.resolve().parents[1] / "blobs")
    target.mkdir(parents=True)
    for file in source.iterdir():
        if not any(file.resolve().is_relative_to(place) for place in inside):
            raise ConfigError(f"'{file}' is a link that leads out of '{folder}'")
        if file.is_file():
            shutil.copyfile(file, target / file.name)


@torch.no_grad()
def _embed(texts: list[str], config: ModelConfig) -> list[Tensor]:
    """The LLM's embeddings (L, D) of each text, in float32."""
    prompts = build.build_prompts(build.build_tokenizer(config.llm), config.prompt)
    llm = build.build_llm(config.llm)
    build.check_reads_embeddings(llm)
    table = llm.get_input_embeddings()
    return [table(torch.tensor(prompts.tokenize(text))).float() for text in texts]
