import pytest
import torch

from nemo_desta.perception.encoders.fbank import POVEY_POWER, KaldiFbank, hann_window, mel_bands, num_fbank_frames


def test_tables_equal_kaldis(read_arrays):
    edges = read_arrays("beats/fbank_edges_raw.npz")
    torch.testing.assert_close(mel_bands(), edges["mel_banks"], atol=2e-5, rtol=0)
    torch.testing.assert_close(hann_window(POVEY_POWER), edges["povey_window_400"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("num_samples", [400, 401, 559, 560, 561, 2959, 2960])
def test_edge_lengths(num_samples, read_wav, read_arrays):
    expected = read_arrays("beats/fbank_edges_raw.npz")[f"n{num_samples}"]
    found = KaldiFbank()(read_wav("beats/a.wav")[None, :num_samples])[0]
    assert len(found) == num_fbank_frames(num_samples)
    torch.testing.assert_close(found, expected, atol=5e-4, rtol=0)


@pytest.mark.parametrize("num_samples", [16_000, 16_001])
def test_frame_counts(num_samples, read_arrays):
    expected = read_arrays("beats/fbank_edges_raw.npz")[f"n{num_samples}"]
    assert list(KaldiFbank()(torch.zeros(1, num_samples)).shape[1:]) == expected.tolist()


@pytest.mark.parametrize("num_samples", [0, 1, 399])
def test_no_whole_window_gives_no_frame(num_samples):
    assert KaldiFbank()(torch.zeros(2, num_samples)).shape == (2, 0, 128)
    assert num_fbank_frames(num_samples) == 0


def test_silence_is_the_floor(read_arrays):
    torch.testing.assert_close(
        KaldiFbank()(torch.zeros(1, 1000))[0], read_arrays("beats/fbank_edges_raw.npz")["silence1000"]
    )
