import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from nemo_desta.perception.encoders import BeatsEncoder, EatEncoder, MuqEncoder, WhisperEncoder
from nemo_desta.testing.perception import tiny_beats, tiny_eat, tiny_muq, tiny_whisper

FIXTURES = Path(__file__).parents[2] / "fixtures"


@pytest.fixture(scope="session")
def read_wav():
    """(S,) float32 of a 16-bit mono file below tests/fixtures."""

    def read(name: str) -> torch.Tensor:
        with wave.open(str(FIXTURES / name)) as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
        return torch.from_numpy(samples.astype(np.float32) / 32768)

    return read


@pytest.fixture(scope="session")
def read_arrays():
    """The numeric arrays of an .npz file below tests/fixtures, by name."""

    def read(name: str) -> dict[str, torch.Tensor]:
        arrays = np.load(FIXTURES / name)
        return {key: torch.from_numpy(value) for key, value in arrays.items() if value.dtype.kind != "U"}

    return read


@pytest.fixture(scope="session")
def whisper_folder(tmp_path_factory):
    """A window of 30 s, 3 blocks."""
    return tiny_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="session")
def beats_path(tmp_path_factory):
    """2 blocks."""
    return tiny_beats(tmp_path_factory.mktemp("beats") / "beats.pt")


@pytest.fixture(scope="session", params=["whisper", "beats", "muq", "eat"])
def encoder(request, whisper_folder, beats_path, tmp_path_factory):
    if request.param == "whisper":
        return WhisperEncoder.from_pretrained(whisper_folder, layer_ids=(1, 3))
    if request.param == "beats":
        return BeatsEncoder.from_checkpoint(beats_path)
    write, kind = {"muq": (tiny_muq, MuqEncoder), "eat": (tiny_eat, EatEncoder)}[request.param]
    return kind.from_pretrained(write(tmp_path_factory.mktemp(request.param)))


@pytest.fixture
def noise():
    """Seconds -> (S,) noise, at 16 kHz unless told, the same for the same length."""

    def make(secs: float, rate: int = 16_000) -> torch.Tensor:
        return torch.randn(round(secs * rate), generator=torch.Generator().manual_seed(7)) * 0.1

    return make


@pytest.fixture
def batch():
    """Clips -> padded audio with rubbish in the padding, and lengths."""

    def make(*clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        lens = torch.tensor([len(clip) for clip in clips])
        audio = torch.full((len(clips), int(lens.max())), float("nan"))
        for row, clip in zip(audio, clips, strict=True):
            row[: len(clip)] = clip
        return audio, lens

    return make
