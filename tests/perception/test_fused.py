import math

import pytest
import torch
from torch import nn

from nemo_desta.perception.encoders import BeatsEncoder, WhisperEncoder
from nemo_desta.perception.fused import FusedPerception
from nemo_desta.perception.projector import WindowProjector
from nemo_desta.testing.perception import tiny_beats, tiny_whisper
from nemo_desta.types import EncoderOutput, FrameGrid


class Meter(nn.Module):
    """An encoder whose frames are the mean of 10 ms of its input, so that tests can read what reached it."""

    def __init__(self, sampling_rate: int):
        super().__init__()
        self.sampling_rate, self.hop = sampling_rate, sampling_rate // 100
        self.frame_grid = FrameGrid(sampling_rate, self.hop)
        self.frame_rate, self.hidden_size, self.num_layers, self.layer_ids = 100.0, 1, 1, (1,)
        self.weight = nn.Parameter(torch.ones(1), requires_grad=False)

    def num_frames(self, num_samples: int) -> int:
        return max(1, -(-num_samples // self.hop))

    def forward(self, audio, audio_lens):
        self.heard, self.heard_lens = audio, audio_lens
        padded = nn.functional.pad(audio, (0, -audio.shape[1] % self.hop))
        frames = padded.view(len(audio), -1, self.hop).mean(-1, keepdim=True)
        return EncoderOutput((frames,), torch.tensor([self.num_frames(n) for n in audio_lens.tolist()]))


class Sum(nn.Module):
    """A projector that hands its only encoder's frames on, times a learned weight."""

    output_size = 1

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, features, *, audio_lens, sampling_rate):
        self.asked = audio_lens, sampling_rate
        layers, lens = next(iter(features.values()))
        return layers[0] * self.weight, lens

    def num_tokens(self, num_samples: int, sampling_rate: int) -> int:
        return math.ceil(num_samples * 100 / sampling_rate)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    encoders = {
        "whisper": WhisperEncoder.from_pretrained(tiny_whisper(folder / "whisper", window_secs=4), layer_ids=(1, 3)),
        "beats": BeatsEncoder.from_checkpoint(tiny_beats(folder / "beats.pt"), layer_ids=(2,)),
    }
    torch.manual_seed(0)
    return FusedPerception(encoders, WindowProjector(encoders, 24))


def clips(*secs: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise of these lengths in one batch, NaN in the padding."""
    lens = torch.tensor([round(s * 16_000) for s in secs])
    audio = torch.full((len(secs), int(lens.max())), float("nan"))
    for number, length in enumerate(lens.tolist()):
        audio[number, :length] = 0.1 * torch.randn(length, generator=torch.Generator().manual_seed(number))
    return audio, lens


def tone(rate: int) -> torch.Tensor:
    """One second of 440 and 3,000 Hz, faded in and out."""
    time = torch.arange(rate, dtype=torch.float64) / rate
    wave = sum(torch.sin(2 * math.pi * hertz * time) for hertz in (440, 3_000)) / 2
    return (wave * torch.hann_window(rate, dtype=torch.float64)).float()


def test_clip_in_a_batch_equals_the_clip_alone(real):
    audio, lens = clips(0.05, 9.3, 4.0, 1.234)
    vectors, counts = real(audio, lens)
    assert counts.tolist() == [real.num_tokens(n) for n in lens.tolist()]
    assert vectors.shape == (4, max(counts), 24)
    for row, length in enumerate(lens.tolist()):
        alone, count = real(audio[row : row + 1, :length], lens[row : row + 1])
        assert count[0] == counts[row]
        torch.testing.assert_close(vectors[row, : counts[row]], alone[0], atol=1e-5, rtol=1e-4)


def test_gradients_reach_the_projector_only(real):
    real(*clips(1.0))[0].square().sum().backward()
    assert all(p.grad is not None for name, p in real.named_parameters() if name.startswith("projector."))
    assert all(p.grad is None for name, p in real.named_parameters() if name.startswith("encoders."))
    real.zero_grad()


def test_parameter_names(real):
    assert {name.split(".")[0] for name in real.state_dict()} == {"encoders", "projector"}
    assert {name.split(".")[1] for name in real.state_dict() if name.startswith("encoders")} == {"whisper", "beats"}


def test_no_clips(real):
    vectors, lens = real(torch.zeros(0, 0), torch.zeros(0, dtype=torch.int64))
    assert vectors.shape == (0, 0, 24) and lens.shape == (0,)


def test_names_of_nemo(real):
    audio, lens = clips(1.0)
    ours, theirs = real(audio, lens), real(input_signal=audio, input_signal_length=lens)
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
    assert real.preprocessor.featurizer.sample_rate == 16_000
    assert real.token_equivalent_duration == pytest.approx(0.16)
    with pytest.raises(TypeError, match="needs audio and audio_lens"):
        real(audio)


@pytest.mark.parametrize("rate", [8_000, 24_000, 44_100])
def test_encoder_gets_audio_at_its_own_rate(rate):
    meter = Meter(rate)
    perception = FusedPerception({"meter": meter}, Sum())
    audio = torch.full((2, 20_000), float("nan"))
    audio[0] = 0.0
    audio[1, :16_000] = tone(16_000)
    perception(audio, torch.tensor([20_000, 16_000]))
    assert meter.heard_lens.tolist() == [math.ceil(20_000 * rate / 16_000), rate]
    torch.testing.assert_close(meter.heard[1, :rate], tone(rate), atol=5e-5, rtol=0)
    assert perception.projector.asked[1] == 16_000


def test_resampled_clip_in_a_batch_equals_the_clip_alone():
    perception = FusedPerception({"meter": Meter(24_000)}, Sum())
    audio, lens = clips(0.5, 0.7301)
    vectors, counts = perception(audio, lens)
    alone, count = perception(audio[:1, : lens[0]], lens[:1])
    torch.testing.assert_close(vectors[0, : counts[0]], alone[0], atol=1e-6, rtol=0)
    assert count[0] == counts[0]


def test_levels_are_normalised_clip_by_clip():
    meter = Meter(16_000)
    perception = FusedPerception({"meter": meter}, Sum(), normalize_dbfs=-20.0)
    audio, lens = clips(1.0, 0.5, 0.5)
    audio[1] *= 0.01
    audio[2, :8_000] = 0.0
    perception(audio, lens)
    assert meter.heard[0].square().mean().sqrt().item() == pytest.approx(0.1, rel=1e-4)
    assert meter.heard[1, :8_000].square().mean().sqrt().item() == pytest.approx(0.1, rel=1e-4)
    assert (meter.heard[2] == 0).all()


@pytest.mark.parametrize("name", ["items", "whisper.large", "", "2nd"])
def test_encoder_names_that_cannot_be_parameter_names(name):
    with pytest.raises(ValueError, match="cannot be part of parameter names"):
        FusedPerception({name: Meter(16_000)}, Sum())


def test_no_encoder():
    with pytest.raises(ValueError, match="at least one encoder"):
        FusedPerception({}, Sum())
