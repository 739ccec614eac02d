"""Trains the demo's small language model: Qwen3 architecture, own tokenizer and chat template, generated text.

    python -m nemo_desta.demo.llm --out FOLDER [--steps 3000] [--seed 0] [--seconds 30 for a miniature]
        [--init FOLDER to continue from its weights] [--reasoning for the variant that thinks first]
        [--head-size 64: with --init, narrower heads are widened; --steps 0 does nothing else]

Writes a Hugging Face folder and ``training.json`` with the seed, the command, the gates and the weights' checksum.
Gates (on the weights as saved, in fp32): attribute accuracy and text cascade, each at least ``GATE``.
"""

import argparse
import copy
import hashlib
import json
import logging
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from nemo_desta.demo.llm_data import conversation, encoded_conversations
from nemo_desta.demo.llm_gates import measure
from nemo_desta.demo.world import load_texts
from nemo_desta.progress import Progress

log = logging.getLogger(__name__)

ASSET = Path(__file__).parent / "assets" / "llm"
REASONING_ASSET = Path(__file__).parent / "assets" / "llm_reasoning"
GATE = 0.98
VOCABULARY = 1200
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
TOKENS_PER_BATCH = 2048
HEAD_SIZE = 64  # vLLM's attention on CPUs has no kernel for fewer

_TEMPLATES = {name: text.replace("\n", "") for name, text in load_texts("training_text.yaml")["templates"].items()}
#: ``enable_thinking=False`` puts an empty think block into the prompt, as Qwen3 does.
CHAT_TEMPLATE = _TEMPLATES["messages"] + _TEMPLATES["prompt"]
#: The prompt opens the think block, as Qwen3's thinking models do.
REASONING_TEMPLATE = _TEMPLATES["messages"] + _TEMPLATES["reasoning_prompt"]


def train(
    out: Path,
    *,
    init: Path | None = None,
    reasoning: bool = False,
    seed: int = 0,
    steps: int = 3000,
    seconds: float | None = None,
    learning_rate: float = 2e-3,
    yes_no: float = 36,
    head_size: int = HEAD_SIZE,
) -> dict[str, Any]:
    """Train, save to ``out`` and measure; returns the record, which is also written to ``out/training.json``.

    ``init``: folder of a model to continue from; its heads are widened to ``head_size``. ``seconds``: time
    limit (the learning rate schedule follows whichever of steps and seconds is further). ``yes_no``: weight of yes/no
    questions, where plain ones weigh 55.
    """
    torch.manual_seed(seed)
    if init is None:
        tokenizer = build_tokenizer(seed)
        model = Qwen3ForCausalLM(model_config(tokenizer, head_size))
    else:
        model, tokenizer = load(init)
        model = widen_heads(model, head_size).train()
    tokenizer.chat_template = REASONING_TEMPLATE if reasoning else CHAT_TEMPLATE
    # fp32 and plain attention: on a CPU without AMX, bf16 autocast and sdpa are slower for so small a model
    model.set_attn_implementation("eager")
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    started, step, tokens = time.monotonic(), 0, 0
    bar = Progress("small LLM", steps, unit="steps", tokens=lambda: tokens)
    for ids, supervised in _batches(tokenizer, seed, reasoning=reasoning, yes_no=yes_no):
        progress = step / steps if steps else 1
        if seconds is not None:
            progress = max(progress, (time.monotonic() - started) / seconds)
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = (
                learning_rate * min(1.0, (step + 1) / 100) * (0.02 + 0.49 * (1 + math.cos(math.pi * progress)))
            )
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state  # (B, L, D)
        logits = model.lm_head(hidden[:, :-1][supervised[:, 1:]])
        loss = F.cross_entropy(logits, ids[:, 1:][supervised[:, 1:]])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step, tokens = step + 1, tokens + ids.numel()
        bar.update()
        if step % 50 == 0:
            bar.note = f"loss {loss.item():.3f}"
    bar.close()
    options = {"--seed": seed, "--steps": steps, "--seconds": seconds, "--lr": learning_rate, "--yes-no": yes_no}
    options["--head-size"] = head_size
    options = " ".join(f"{name} {value:g}" for name, value in options.items() if value is not None)
    record = {
        "command": f"python -m nemo_desta.demo.llm {options}{' --reasoning' if reasoning else ''}",
        "init": json.loads((init / "training.json").read_text()) if init else None,
        "seed": seed,
        "steps": step,
        "tokens": tokens,
        "seconds": round(time.monotonic() - started),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    _save(model, tokenizer, out)
    record["sha256"] = sha256(out / "model.safetensors")
    record["gates"] = measure(*load(out), reasoning=reasoning)
    (out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    return record


def load(folder: Path = ASSET) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """The model in fp32 eval mode and its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval(), tokenizer


def build_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on generated conversations."""
    rng = random.Random(f"{seed}/tokenizer")
    texts = ("\n".join(message["content"] for message in conversation(rng)) for _ in range(12000))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokens = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **tokens)


def model_config(tokenizer: PreTrainedTokenizerFast, head_size: int = HEAD_SIZE) -> Qwen3Config:
    """About 2.0 M parameters, 4.0 MB in bf16."""
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_size,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.04,
    )


@torch.no_grad()
def widen_heads(model: Qwen3ForCausalLM, size: int) -> Qwen3ForCausalLM:
    """The same function with heads of ``size`` channels: the new ones are zero.

    A rotary base of ``base ** (size / old)`` gives the old pairs their old angles. The norm of a head divides by a
    smaller root mean square and the scores by a larger root of the head size; the keys' norm takes both up.
    """
    old = model.config.head_dim
    if size == old:
        return model
    config = copy.deepcopy(model.config)
    config.head_dim = size
    base = rotary_base(model.config) ** (size / old)
    if hasattr(config, "rope_theta"):  # transformers 4
        config.rope_theta = base
    else:
        config.rope_parameters = {"rope_type": "default", "rope_theta": base}
    kept = torch.cat([torch.arange(old // 2), size // 2 + torch.arange(old // 2)])  # a pair is (i, i + size / 2)
    state = {}
    for name, weight in model.state_dict().items():
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            wide = weight.new_zeros(len(weight) // old, size, weight.shape[1])
            wide[:, kept] = weight.unflatten(0, (-1, old))
            weight = wide.flatten(0, 1)
        elif name.endswith("o_proj.weight"):
            wide = weight.new_zeros(len(weight), weight.shape[1] // old, size)
            wide[:, :, kept] = weight.unflatten(1, (-1, old))
            weight = wide.flatten(1)
        elif name.endswith(("q_norm.weight", "k_norm.weight")):
            wide = weight.new_ones(size)
            wide[kept] = weight * (math.sqrt(old / size) if "k_norm" in name else 1.0)
            weight = wide
        state[name] = weight
    wide = Qwen3ForCausalLM(config)
    wide.load_state_dict(state)
    return wide


def rotary_base(config: Qwen3Config) -> float:
    """The rotary base of a config of transformers 4 or 5."""
    return float(getattr(config, "rope_theta", None) or config.rope_parameters["rope_theta"])


def sha256(path: Path) -> str:
    """Checksum of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _batches(tokenizer: PreTrainedTokenizerFast, seed: int, **mix: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches (ids (B, L), supervised (B, L)) of about ``TOKENS_PER_BATCH`` positions, sorted by length.

    Right padding needs no mask in a causal model: no supervised position attends to it.
    """
    pool = 0
    while True:
        rng = random.Random(f"{seed}/pool/{pool}")
        rows = sorted(encoded_conversations(tokenizer, rng, 1024, **mix), key=lambda row: len(row[0]))
        batches, batch = [], []
        for row in rows:
            if batch and len(row[0]) * (len(batch) + 1) > TOKENS_PER_BATCH:
                batches.append(batch)
                batch = []
            batch.append(row)
        batches.append(batch)
        rng.shuffle(batches)
        for batch in batches:
            ids, supervised = ([torch.tensor(row) for row in rows] for rows in zip(*batch, strict=True))
            yield pad_sequence(ids, True, tokenizer.pad_token_id), pad_sequence(supervised, True)
        pool += 1


def _save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    model.generation_config.update(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    norms = {name: p.float() for name, p in model.state_dict().items() if "_norm" in name}  # 1 KB: see widen_heads
    model.to(torch.bfloat16).save_pretrained(out, state_dict=model.state_dict() | norms)
    (out / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(out)
    # transformers 5 writes a class name that transformers 4 does not know, and the template as a file of its own
    config_file = out / "tokenizer_config.json"
    config = json.loads(config_file.read_text())
    for key in ("is_local", "local_files_only"):  # how it was loaded
        config.pop(key, None)
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": tokenizer.chat_template}
    config_file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    (out / "chat_template.jinja").unlink(missing_ok=True)
    # transformers 4 reads the rotary base there
    config = json.loads((out / "config.json").read_text())
    config["rope_theta"] = rotary_base(model.config)
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def main() -> None:
    """Command line; exit status 1 when a gate fails (not checked with ``--seconds``)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seconds", type=float, help="stop after this time: a miniature")
    parser.add_argument("--init", type=Path, help="folder of a model to continue from")
    parser.add_argument("--reasoning", action="store_true", help="the variant that thinks first")
    parser.add_argument("--lr", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--yes-no", type=float, default=36, help="weight of yes/no questions (plain ones: 55)")
    parser.add_argument("--head-size", type=int, default=HEAD_SIZE, help="channels of an attention head")
    args = vars(parser.parse_args())
    record = train(args.pop("out"), learning_rate=args.pop("lr"), **args)
    print(json.dumps(record, indent=2))
    failed = [name for name in ("attributes", "text_cascade") if record["gates"][name] < GATE]
    if failed and args["seconds"] is None:
        raise SystemExit(f"gate failed: {', '.join(failed)} below {GATE}; train longer (--steps) or change the seed")


if __name__ == "__main__":
    main()
