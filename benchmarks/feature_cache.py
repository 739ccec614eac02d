"""Seconds per training step without the feature cache, while it is filled, and from it; its size and its equality.

    python -m benchmarks.feature_cache --whisper DIR --llm DIR --manifest FILE... --audio-root DIR [--clips 96]

``--manifest``: JSON lines with ``audio`` (a path below the root). The window projector is trained to one fixed answer
over blocks 2, 4, 6: the LLM's and the encoder's time are those of a real run, the answers mean nothing.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from nemo_desta.config import FeatureCacheConfig, parse
from nemo_desta.config import ModelConfig as Config
from nemo_desta.core.feature_identity import open_feature_cache
from nemo_desta.core.model import SpeechLM
from nemo_desta.data.audio_io import load_audio
from nemo_desta.data.dataset import Batch, LoadedRow, collate
from nemo_desta.perception.feature_cache import GB, clip_key
from nemo_desta.perception.feature_store import shards


def main() -> None:
    args = _parse()
    clips = read_clips(args.manifest, args.audio_root, args.clips)
    hours = sum(map(len, clips)) / 16_000 / 3600
    torch.manual_seed(0)
    model = SpeechLM.from_config(config(args))
    begun = {name: p.clone() for name, p in model.perception.projector.state_dict().items()}
    batches = make_batches(model, clips, args.batch)
    print(f"{len(clips)} clips, {hours * 3600:.0f} s, {args.dtype}, {torch.get_num_threads()} threads, {args.batch=}")
    with tempfile.TemporaryDirectory() as folder:
        losses, means = {}, {}
        for name in ("off", "filled", "read"):
            model.perception.projector.load_state_dict(begun)
            cache = None
            if name != "off":
                settings = FeatureCacheConfig(folder=folder, dtype=args.stored)
                cache = open_feature_cache(settings, model.config)
            model.perception.feature_cache = cache
            losses[name], secs = train(model, batches)
            means[name] = float(np.mean(secs))
            hits = "" if cache is None else cache.summary().partition(":")[2].partition(" from")[0]
            print(f"{name:<7} {means[name]:.3f} s/step{hits}", flush=True)
        size = sum(size for _, size, _ in shards(Path(folder)))
    worst = max(abs(a - b) for name in ("filled", "read") for a, b in zip(losses["off"], losses[name], strict=True))
    print(f"size    {size / GB:.4f} GB, {size / hours / GB:.3f} GB per hour, {size / len(clips) / 1e3:.1f} kB a clip")
    print(f"speed   {means['off'] / means['read']:.2f} times; largest difference of a loss: {worst:.3g}")


def train(model: SpeechLM, batches: list[Batch]) -> tuple[list[float], list[float]]:
    """One epoch with AdamW -> the loss per target token and the seconds of each step."""
    optimizer = torch.optim.AdamW(model.perception.projector.parameters(), lr=1e-3)
    losses, secs = [], []
    for batch in batches:
        began = time.perf_counter()
        loss, count, _ = model.loss(batch)
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()
        secs.append(time.perf_counter() - began)
        losses.append(float(loss.detach()) / count)
    return losses, secs


def make_batches(model: SpeechLM, clips: list[np.ndarray], size: int) -> list[Batch]:
    messages = [{"role": "user", "content": "What do you hear?", "audios": [{"audio": "clip"}]}]
    example = model.prompts.example({"messages": messages, "response": "I hear a short sound."})
    rows = [LoadedRow(str(i), "clips", example.ids, example.prompt_len, [clip]) for i, clip in enumerate(clips)]
    batches = [collate(rows[i : i + size]) for i in range(0, len(rows), size)]
    for i, batch in enumerate(batches):
        batch["audio_keys"] = [clip_key(row.clips[0]) for row in rows[i * size : (i + 1) * size]]
    return batches


def read_clips(manifests: list[str], root: str, count: int) -> list[np.ndarray]:
    """Clips spread evenly over the manifests, those of like lengths together, as the sampler of training has them."""
    found = []
    for manifest in manifests:
        lines = Path(manifest).read_text().splitlines()
        share = -(-count // len(manifests))
        for line in lines[:: max(1, len(lines) // share)][:share]:
            found.append(load_audio(Path(root) / json.loads(line)["audio"]))
    return sorted(found, key=len)[:count]


def config(args: argparse.Namespace) -> Config:
    encoder = {"name": "whisper", "path": args.whisper, "layer_ids": [2, 4, 6]}
    projector = {"name": "window", "tokens_per_second": 12.5, "hidden_size": 1024, "num_queries": 2}
    perception = {"encoders": {"whisper": encoder}, "projector": projector, "dtype": args.dtype}
    return parse(Config, {"llm": {"path": args.llm, "dtype": args.dtype}, "perception": perception})


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--whisper", required=True)
    parser.add_argument("--llm", required=True)
    parser.add_argument("--manifest", nargs="+", required=True)
    parser.add_argument("--audio-root", required=True)
    parser.add_argument("--clips", type=int, default=96)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--stored", default="auto", help="dtype of the cache")
    return parser.parse_args()


if __name__ == "__main__":
    main()
