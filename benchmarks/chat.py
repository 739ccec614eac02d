"""Speed of answering conversations: batches and cached audio against a naive loop; and audio by the minute.

    python -m benchmarks.chat [--model FOLDER] [--conversations 48] [--turns 3] [--batch 16] [--minutes 1 2 5 10]

The naive loop answers one conversation at a time with transformers' `generate` and encodes all audio again at every
turn, as released demo scripts do. Our code answers in batches and encodes each clip once. Both must give the same
answers. Without ``--model``: the demo's encoders and LLM with an untrained projector, which costs the same. Seconds
are wall time; on a shared machine, compare ratios within one run.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from nemo_desta.models.desta import DestaModel

SEED = 0
PIECE_SECS = (1.0, 12.0)  # clips, uniform
QUESTIONS = (
    "What do you hear?",
    "Who is speaking, and how?",
    "Is there music?",
    "Describe the sound in one sentence.",
)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the command line; returns what is printed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chat", description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="model folder; the demo's parts by default")
    parser.add_argument("--conversations", type=int, default=48)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--minutes", type=float, nargs="*", default=[1, 2, 5, 10], help="lengths of one long clip")
    parser.add_argument("--one-length", type=float, help=argparse.SUPPRESS)  # in a process of its own: its peak memory
    args = parser.parse_args(argv)
    if args.one_length is not None:
        print(json.dumps(hear_minutes(open_model(args.model), args.one_length)))
        return {}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU {platform.machine()}"
    report: dict[str, Any] = {"device": device, "torch": torch.__version__, "threads": torch.get_num_threads()}
    if args.conversations:
        report["throughput"] = throughput(open_model(args.model), args)
    report["long_audio"] = [_in_own_process(args.model, minutes) for minutes in args.minutes]
    print(json.dumps({k: v for k, v in report.items() if k not in ("throughput", "long_audio")}))
    print(table(report))
    return report


def open_model(folder: str | None) -> "DestaModel":
    """The model that is measured."""
    from nemo_desta.models.desta import DestaModel

    if folder is not None:
        return DestaModel.from_pretrained(folder)
    assets = "package:demo/assets/"
    encoders = {
        "whisper": {"name": "whisper", "path": assets + "encoders/whisper"},
        "beats": {"name": "beats", "path": assets + "encoders/beats.pt"},
    }
    torch.manual_seed(SEED)
    model = DestaModel({"llm": {"path": assets + "llm"}, "perception": {"encoders": encoders}}).eval()
    model.llm.config.max_position_embeddings = 1 << 16  # long clips: more than the small LLM was made for
    return model


def throughput(model: "DestaModel", args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of both ways for all turns of all conversations."""
    rng = np.random.default_rng(SEED)
    clips = [noise(rng, rng.uniform(*PIECE_SECS)) for _ in range(args.conversations)]
    settings = {"max_new_tokens": args.new_tokens, "do_sample": False}
    model.chat(question(0, clips[0]), **settings)  # warm up

    def ours() -> list[str]:
        model.audio_cache.clear()
        chats, answers = [[] for _ in clips], []
        for turn in range(args.turns):
            chats = [chat + question(turn, clip) for chat, clip in zip(chats, clips, strict=True)]
            said = model.chat(chats, max_batch_size=args.batch, **settings)
            chats = [chat + [{"role": "assistant", "content": str(a)}] for chat, a in zip(chats, said, strict=True)]
            answers += [str(a) for a in said]
        return answers

    def naive() -> list[str]:
        answers: list[list[str]] = [[] for _ in range(args.turns)]
        for clip in clips:
            chat: list[dict[str, Any]] = []
            for turn in range(args.turns):
                chat += question(turn, clip)
                answers[turn].append(naive_answer(model, chat, args.new_tokens))
                chat.append({"role": "assistant", "content": answers[turn][-1]})
        return [a for turn in answers for a in turn]

    seconds, answers = {}, {}
    for name, way in (("ours", ours), ("naive", naive)):
        started = time.perf_counter()
        answers[name] = way()
        seconds[name] = time.perf_counter() - started
    same = sum(a == b for a, b in zip(answers["ours"], answers["naive"], strict=True))
    total = args.conversations * args.turns
    return {
        "answers": total,
        "same": same,
        "batch": args.batch,
        **{f"{name}_secs": value for name, value in seconds.items()},
        "ratio": seconds["naive"] / seconds["ours"],
    }


@torch.no_grad()
def naive_answer(model: "DestaModel", chat: list[dict[str, Any]], new_tokens: int) -> str:
    """One conversation, encoded anew, answered by transformers."""
    from nemo_desta.answering.chat import encode

    inputs = model.embed(encode(model, [chat]), padding_side="left")
    ids = model.llm.generate(
        inputs_embeds=inputs.inputs_embeds,
        attention_mask=inputs.attention_mask.long(),
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=model.prompts.end_ids(model.generation_config.eos_token_id),
        pad_token_id=model.text_pad_id,
    )[0].tolist()
    ends = set(model.prompts.end_ids(model.generation_config.eos_token_id))
    return model.tokenizer.decode([i for i in ids if i not in ends], clean_up_tokenization_spaces=False).strip()


def hear_minutes(model: "DestaModel", minutes: float) -> dict[str, float]:
    """One clip of that length: vectors, seconds to an answer, and the process's memory before and at its peak."""
    clip = noise(np.random.default_rng(SEED), 60 * minutes)
    model.chat(question(0, clip[:16_000]), max_new_tokens=2)
    before = _memory_mb(peak=False)
    started = time.perf_counter()
    answer = model.chat(question(0, clip), max_new_tokens=8, do_sample=False)
    return {
        "minutes": minutes,
        "vectors": model.num_audio_tokens(len(clip)),
        "prompt_positions": answer.num_prompt_tokens,
        "secs": time.perf_counter() - started,
        "more_memory_mb": _memory_mb(peak=True) - before,
    }


def question(turn: int, clip: np.ndarray) -> list[dict[str, Any]]:
    """The user's message of a turn; the clip comes with the first."""
    text = QUESTIONS[turn % len(QUESTIONS)]
    if turn:
        return [{"role": "user", "content": text}]
    return [{"role": "user", "content": f"<|AUDIO|>\n{text}", "audios": [clip]}]


def noise(rng: np.random.Generator, secs: float) -> np.ndarray:
    """What is in a clip costs nothing and nobody anything."""
    return (0.1 * rng.standard_normal(int(secs * 16_000))).astype(np.float32)


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = []
    if found := report.get("throughput"):
        lines += [
            "| answers | naive loop, s | ours, s | ratio | equal answers |",
            "|---:|---:|---:|---:|---:|",
            f"| {found['answers']} | {found['naive_secs']:.1f} | {found['ours_secs']:.1f} | {found['ratio']:.1f} | "
            f"{found['same']} |",
            "",
        ]
    if report["long_audio"]:
        lines += ["| minutes | vectors | positions | s | more memory, MB |", "|---:|---:|---:|---:|---:|"]
        lines += [
            f"| {r['minutes']:g} | {r['vectors']} | {r['prompt_positions']} | {r['secs']:.1f} | "
            f"{r['more_memory_mb']:.0f} |"
            for r in report["long_audio"]
        ]
    return "\n".join(lines)


def _in_own_process(folder: str | None, minutes: float) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.chat", "--one-length", str(minutes)]
    command += ["--model", folder] if folder else []
    result = subprocess.run(command, text=True, capture_output=True, check=False, cwd=Path(__file__).parents[1])
    if result.returncode:
        raise RuntimeError(f"{minutes} minutes failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def _memory_mb(*, peak: bool) -> float:
    """What this process holds now, or the most that it has held: on the GPU if there is one."""
    if torch.cuda.is_available():
        return (torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()) / 2**20
    if peak:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


if __name__ == "__main__":
    main()
