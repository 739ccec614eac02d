"""Trains the demo's stand-in encoders: small Whisper and BEATs models in their real classes and checkpoint forms.

    python -m nemo_desta.demo.encoders --out FOLDER --corpus FOLDER/manifest.jsonl [--minutes 10]
        [--extra MANIFEST ... --data-root FOLDER] [--init FOLDER to continue from its weights]

They are trained to classify the attributes of labelled clips (training splits only) with linear heads, which are
dropped afterwards. The heads read the last block's frames averaged over windows of 160 ms and over the whole clip.
Writes ``whisper/`` (Hugging Face form), ``beats.pt`` (public form) and ``training.json``.

Letters: B clips, T frames, W windows, C width.
"""

import argparse
import copy
import json
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder as HFWhisperEncoder

from nemo_desta.demo.encoder_data import HEADS, Batch, Clip, load_clips, mask_features, plain_batches, training_batches
from nemo_desta.demo.llm import sha256
from nemo_desta.perception.encoders import BeatsEncoder, WhisperEncoder
from nemo_desta.perception.encoders import fbank as kaldi
from nemo_desta.perception.encoders.beats import FBANK_MEAN, FBANK_STD, FRAMES_PER_STEP
from nemo_desta.perception.encoders.beats_model import BANDS_PER_STEP, Beats, BeatsConfig
from nemo_desta.perception.encoders.log_mel import LogMel
from nemo_desta.perception.masks import zero_beyond
from nemo_desta.progress import Progress

log = logging.getLogger(__name__)

ASSETS = Path(__file__).parent / "assets" / "encoders"
WIDTH, LAYERS, ATTENTION_HEADS = 128, 3, 4
WINDOW_FRAMES = 250  # Whisper's window of 5 s
SHORT_WINDOWS = (48, 128)  # words and crops need no window of 5 s
WHISPER_HOP = 320
LONG_WINDOW_SHARE = 0.15  # of short batches that are padded to the whole window
POOL = 8  # frames of one window of 160 ms
HEAD_WEIGHTS = {"word": 3.0, "sound_class": 2.0}


class Heads(nn.Module):
    """One linear classifier per head, on frames averaged over windows and over the clip."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linears = nn.ModuleDict({name: nn.Linear(width, len(classes)) for name, classes in HEADS.items()})

    def loss(self, frames: torch.Tensor, lens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """frames: (B, T, C), lens: (B,), labels: (B, heads) -> weighted mean over heads of both cross-entropies."""
        windows, valid = _windows(frames, lens)
        losses, weights = [], []
        for number, (name, linear) in enumerate(self.linears.items()):
            known = labels[:, number] >= 0
            if not known.any():
                continue
            truth = labels[known, number]
            clip_loss = F.cross_entropy(linear(self.norm(_mean(windows[known], valid[known]))), truth)
            logits = linear(self.norm(windows[known]))  # (B', W, classes)
            each = F.cross_entropy(
                logits.transpose(1, 2), truth[:, None].expand(-1, logits.shape[1]), reduction="none"
            )
            losses.append(clip_loss + (each * valid[known]).sum() / valid[known].sum())
            weights.append(HEAD_WEIGHTS.get(name, 1.0))
        return (torch.stack(losses) * torch.tensor(weights)).sum() / sum(weights)

    def forward(self, frames: torch.Tensor, lens: torch.Tensor) -> dict[str, torch.Tensor]:
        """frames: (B, T, C), lens: (B,) -> log-probabilities (B, classes) by head."""
        windows, valid = _windows(frames, lens)
        clip = self.norm(_mean(windows, valid))
        return {name: linear(clip).log_softmax(-1) for name, linear in self.linears.items()}


class WhisperStudent(nn.Module):
    """Hugging Face's Whisper encoder with heads; shorter windows share its parameters."""

    def __init__(self) -> None:
        super().__init__()
        config = WhisperConfig(
            d_model=WIDTH,
            encoder_layers=LAYERS,
            encoder_attention_heads=ATTENTION_HEADS,
            encoder_ffn_dim=4 * WIDTH,
            num_mel_bins=80,
            max_source_positions=WINDOW_FRAMES,
            decoder_layers=1,
            decoder_attention_heads=ATTENTION_HEADS,
            decoder_ffn_dim=WIDTH,
            attn_implementation="eager",
            init_std=0.04,
        )
        self.encoder = HFWhisperEncoder(config)
        self.heads = Heads(WIDTH)
        self._log_mel = LogMel(config.num_mel_bins)
        self._windows = {WINDOW_FRAMES: self.encoder}
        for frames in SHORT_WINDOWS:
            config = copy.deepcopy(self.encoder.config)
            config.max_source_positions = frames
            shorter = self._windows[frames] = HFWhisperEncoder(config)  # its sinusoids are the first ones
            for name in ("conv1", "conv2", "layers", "layer_norm"):
                setattr(shorter, name, getattr(self.encoder, name))

    def loss(self, batch: Batch, rng: np.random.Generator) -> torch.Tensor:
        """Loss of one batch, mostly in the shortest window that fits."""
        lens = -(-batch.audio_lens // WHISPER_HOP)
        frames = min(size for size in self._windows if size >= lens.max())
        if rng.random() < LONG_WINDOW_SHARE:
            frames = WINDOW_FRAMES
        mel = self._log_mel(F.pad(batch.audio, (0, frames * WHISPER_HOP - batch.audio.shape[1])))
        hidden = self._windows[frames](mask_features(mel, rng)).last_hidden_state
        return self.heads.loss(hidden, lens, batch.labels)

    def save(self, folder: Path) -> None:
        """The encoder alone, in fp16."""
        copy.deepcopy(self.encoder).half().save_pretrained(folder)
        (folder / "model.safetensors").chmod(0o644)


class BeatsStudent(nn.Module):
    """BEATs with heads; its bands of one step are averaged with the window."""

    def __init__(self) -> None:
        super().__init__()
        config = BeatsConfig(
            encoder_layers=LAYERS,
            encoder_embed_dim=WIDTH,
            encoder_ffn_embed_dim=4 * WIDTH,
            encoder_attention_heads=ATTENTION_HEADS,
            embed_dim=64,
            conv_pos=32,  # the public models' 128 would take half of the time at this width
        )
        self.encoder = Beats(config)
        self.heads = Heads(WIDTH)
        self._fbank = kaldi.KaldiFbank()

    def loss(self, batch: Batch, rng: np.random.Generator) -> torch.Tensor:
        """Loss of one batch; lengths as `BeatsEncoder` counts them."""
        frames = 1 + (batch.audio_lens - kaldi.WINDOW).clamp(min=0).add(kaldi.HOP - 1) // kaldi.HOP
        steps = -(-frames // FRAMES_PER_STEP)
        samples = kaldi.WINDOW + (int(frames.max()) - 1) * kaldi.HOP
        fbank = self._fbank(F.pad(batch.audio, (0, samples - batch.audio.shape[1])))
        fbank = (fbank - FBANK_MEAN) / (2 * FBANK_STD)
        fbank = mask_features(fbank.transpose(1, 2), rng).transpose(1, 2)
        fbank = zero_beyond(fbank, frames)
        fbank = F.pad(fbank, (0, 0, 0, int(steps.max()) * FRAMES_PER_STEP - fbank.shape[1]))
        lens = steps * BANDS_PER_STEP
        return self.heads.loss(self.encoder(fbank, lens)[-1], lens, batch.labels)

    def save(self, path: Path) -> None:
        """The encoder alone, in fp16."""
        copy.deepcopy(self.encoder).half().save_checkpoint(path)


def train(
    corpus: Path,
    out: Path,
    *,
    extra: Sequence[Path] = (),
    data_root: Path | None = None,
    init: Path | None = None,
    seed: int = 0,
    steps: int = 2000,
    minutes: float | None = None,
    learning_rate: float = 1.5e-3,
) -> dict[str, Any]:
    """Train both encoders on the training splits, save them to ``out`` and score their heads on the valid splits.

    ``extra``: further manifests below ``data_root``. ``init``: encoders to start from (with new heads). ``minutes``:
    time limit; the learning rate schedule adapts to it.
    """
    torch.manual_seed(seed)
    started = time.monotonic()
    clips, valid = (
        load_clips([corpus.name], corpus.parent, split) + (load_clips(extra, data_root, split) if extra else [])
        for split in ("train", "valid")
    )
    students = nn.ModuleDict({"whisper": WhisperStudent(), "beats": BeatsStudent()})
    if init is not None:
        students["whisper"].encoder.load_state_dict(HFWhisperEncoder.from_pretrained(init / "whisper").state_dict())
        students["beats"].encoder.load_state_dict(Beats.from_checkpoint(init / "beats.pt").state_dict())
    optimizer = torch.optim.AdamW(students.parameters(), lr=learning_rate, weight_decay=0.02, fused=True)
    rng, step, began = np.random.default_rng([seed, 8]), 0, time.monotonic()
    bar = Progress("stand-in encoders", steps, unit="steps")
    for batch in training_batches(clips, seed):
        progress = step / steps if steps else 1.0  # 0 steps: untrained encoders as a baseline
        if minutes is not None:
            progress = max(progress, (time.monotonic() - began) / (60 * minutes))
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / 100) * (0.51 + 0.49 * math.cos(math.pi * progress))
        losses = {name: student.loss(batch, rng) for name, student in students.items()}
        optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        for student in students.values():
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        step += 1
        bar.update()
        if step % 20 == 0:
            bar.note = ", ".join(f"{name} {loss.item():.2f}" for name, loss in losses.items())
    bar.close()
    out.mkdir(parents=True, exist_ok=True)
    students["whisper"].save(out / "whisper")
    students["beats"].save(out / "beats.pt")
    options = {"--seed": seed, "--steps": steps, "--minutes": minutes, "--lr": learning_rate}
    options = " ".join(f"{name} {value:g}" for name, value in options.items() if value is not None)
    record = {
        "command": f"python -m nemo_desta.demo.encoders {options}",
        "steps": step,
        "init": json.loads((init / "training.json").read_text())["sha256"] if init else None,
        "clips": {source: sum(c.source == source for c in clips) for source in sorted({c.source for c in clips})},
        "seconds": {"loading": round(began - started), "training": round(time.monotonic() - began)},
        "parameters": {name: sum(p.numel() for p in s.encoder.parameters()) for name, s in students.items()},
        "sha256": {name: sha256(out / name) for name in ("whisper/model.safetensors", "beats.pt")},
        "valid_accuracy": score(out, students, valid),
    }
    (out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    return record


@torch.no_grad()
def score(folder: Path, students: nn.ModuleDict, clips: Sequence[Clip]) -> dict[str, dict[str, Any]]:
    """Accuracy of the heads on the saved encoders, loaded by the real classes: "source: head" -> share, and n."""
    encoders = {
        "whisper": WhisperEncoder.from_pretrained(str(folder / "whisper"), layer_ids=[LAYERS], final_norm=True),
        "beats": BeatsEncoder.from_checkpoint(folder / "beats.pt", layer_ids=[LAYERS]),
    }
    right: dict[tuple[str, str], list[dict[str, float]]] = {}
    for source in sorted({clip.source for clip in clips}):
        for batch in plain_batches([clip for clip in clips if clip.source == source]):
            scores = {}
            for name, encoder in encoders.items():
                layers, lens = encoder(batch.audio, batch.audio_lens)
                scores[name] = students[name].heads(layers[0], lens)
            for number, head in enumerate(HEADS):
                both = sum(scores[name][head] for name in encoders)
                for i in (batch.labels[:, number] >= 0).nonzero().flatten().tolist():
                    hits = {
                        name: float(scores[name][head][i].argmax() == batch.labels[i, number]) for name in encoders
                    }
                    hits["both"] = float(both[i].argmax() == batch.labels[i, number])
                    right.setdefault((source, head), []).append(hits)
    return {
        f"{source}: {head}": {name: round(sum(h[name] for h in hits) / len(hits), 3) for name in hits[0]}
        | {"n": len(hits)}
        for (source, head), hits in right.items()
    }


def _windows(frames: torch.Tensor, lens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """frames: (B, T, C), lens: (B,) -> means over windows of ``POOL`` frames (B, W, C), valid (B, W) as 0.0 or 1.0."""
    frames = F.pad(frames, (0, 0, 0, -frames.shape[1] % POOL))
    mask = (torch.arange(frames.shape[1])[None] < lens[:, None]).float()
    counts = mask.unflatten(1, (-1, POOL)).sum(-1)  # (B, W)
    sums = (frames * mask[..., None]).unflatten(1, (-1, POOL)).sum(2)
    return sums / counts.clamp(min=1)[..., None], (counts > 0).float()


def _mean(windows: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    return (windows * valid[..., None]).sum(1) / valid.sum(1, keepdim=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the encoders")
    parser.add_argument("--corpus", type=Path, required=True, help="manifest of a corpus of nemo_desta.demo.corpus")
    parser.add_argument("--extra", type=Path, nargs="*", default=(), help="further manifests")
    parser.add_argument("--data-root", type=Path, help="folder that the further manifests' audio paths start from")
    parser.add_argument("--init", type=Path, help="folder of encoders to start from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--lr", type=float, default=1.5e-3, help="highest learning rate")
    parser.add_argument("--minutes", type=float, help="stop after this time")
    args = parser.parse_args()
    if args.extra and args.data_root is None:
        parser.error("--extra needs --data-root: the folder that the manifests' audio paths start from")
    options = vars(args)
    record = train(options.pop("corpus"), options.pop("out"), learning_rate=options.pop("lr"), **options)
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
