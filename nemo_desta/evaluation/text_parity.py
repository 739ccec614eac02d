"""Compares the model with its bare LLM on text alone, to show that the LLM is unchanged.

Both answer prompts with instructions that a rule can check (kinds of IFEval), and both compute the perplexity of some
texts. The LLM is frozen, so every difference in logits, answers and verdicts must be exactly zero. With LoRA it is
not, and the differences show by how much.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from nemo_desta.evaluation.ifeval import check
from nemo_desta.evaluation.settings import TextSettings
from nemo_desta.progress import track
from nemo_desta.recipes.prompts.compose import base_prompts
from nemo_desta.sources import resolve_source

if TYPE_CHECKING:
    from nemo_desta.models.desta import DestaModel

MAX_NEW_TOKENS = 128
_TEXTS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
TOPICS: list[str] = _TEXTS["topics"]
#: An instruction, its IFEval kind and the kind's arguments.
INSTRUCTIONS: list[tuple[str, str, dict[str, Any]]] = [tuple(one) for one in _TEXTS["instructions"]]


def instruction_prompts(count: int) -> list[tuple[str, str, dict[str, Any]]]:
    """Prompts with the kind and arguments that check their answers; kinds and topics rotate."""
    prompts = []
    for i in range(count):
        wish, kind, kwargs = INSTRUCTIONS[i % len(INSTRUCTIONS)]
        topic = TOPICS[(i + i // len(INSTRUCTIONS)) % len(TOPICS)]
        prompts.append((f"Write a few sentences about {topic}. {wish}", kind, kwargs))
    return prompts


@torch.no_grad()
def text_parity(model: "DestaModel", settings: TextSettings, *, progress: bool = True) -> dict[str, Any]:
    """Loads the bare LLM beside the model and compares; returns figures, and a ``sentence`` for the report."""
    bare = AutoModelForCausalLM.from_pretrained(
        resolve_source(model.config.llm.path),
        dtype=model.llm.dtype,
        attn_implementation=model.config.llm.attn_implementation,
        trust_remote_code=model.config.llm.trust_remote_code,
    )
    bare = bare.to(model.llm.device).eval()
    prompts = instruction_prompts(settings.prompts)
    ends = model.prompts.end_ids(model.generation_config.eos_token_id)
    passed = {"model": 0, "bare": 0}
    differing, largest = 0, 0.0
    for text, kind, kwargs in track(prompts, "text", len(prompts), unit="prompts", shown=progress):
        ids = torch.tensor([model.prompts.prompt([{"role": "user", "content": text}]).ids], device=model.llm.device)
        ours, theirs = model(model.embed_tokens(ids))["logits"], bare(input_ids=ids).logits
        largest = max(largest, float((ours.float() - theirs.float()).abs().max()))
        limits = {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False}
        new = bare.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            eos_token_id=ends,
            pad_token_id=model.text_pad_id,
            **limits,
        )[0, ids.shape[1] :]
        mine = model.generate([[{"role": "user", "content": text}]], **limits)[0]
        said = {}
        for who, written in (("model", mine), ("bare", new)):
            kept = [token for token in written.tolist() if token not in ends]
            said[who] = model.tokenizer.decode(kept, skip_special_tokens=True).strip()
            passed[who] += bool(said[who]) and check(kind, kwargs, said[who])
        differing += said["model"] != said["bare"]
    losses = [_losses(model, bare, prompt.prompt) for prompt in base_prompts()[: settings.texts]]
    found: dict[str, Any] = {
        "prompts": len(prompts),
        "passed": passed,
        "answers_that_differ": differing,
        "largest_logit_difference": largest,
    }
    sentence = (
        f"Text kept: {passed['model']} of {len(prompts)} instructions followed, bare LLM {passed['bare']}; "
        f"{differing} answers differ, largest difference of a logit {largest:g}"
    )
    if losses:
        perplexity = [math.exp(sum(pair[i] for pair in losses) / len(losses)) for i in (0, 1)]
        found["perplexity"] = {"texts": len(losses), "model": perplexity[0], "bare": perplexity[1]}
        found["perplexity"]["difference"] = perplexity[0] - perplexity[1]
        sentence += f"; perplexity of {len(losses)} texts {perplexity[0]:.4f} and {perplexity[1]:.4f}"
    found["untouched"] = not differing and largest == 0.0 and found.get("perplexity", {}).get("difference", 0.0) == 0.0
    sentence += ". Exactly the same." if found["untouched"] else ". NOT the same: the text LLM has changed."
    return {**found, "sentence": sentence}


def _losses(model: "DestaModel", bare: Any, text: str) -> tuple[float, float]:
    """Mean cross-entropy per token of a text, by the model and by its bare LLM."""
    ids = torch.tensor([model.prompts.tokenize(text)], device=model.llm.device)
    ours, theirs = model(model.embed_tokens(ids))["logits"], bare(input_ids=ids).logits
    ours, theirs = (cross_entropy(logits[0, :-1].float(), ids[0, 1:]).item() for logits in (ours, theirs))
    return ours, theirs
