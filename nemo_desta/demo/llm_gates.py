"""Gates of the small language model's training: its abilities, measured on random descriptions."""

import random
from collections.abc import Container, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nemo_desta.demo.llm_data import random_row
from nemo_desta.demo.prompts import FORMATS, YES_NO, Prompt, follows_format, formats_of, make_prompt, true_answer
from nemo_desta.demo.reasoning import rephrase_messages, thoughts
from nemo_desta.demo.world import TASKS, gold, parse_answer, parse_yes_no, tasks_of
from nemo_desta.recipes.describe import describe

#: Style of a random row -> tasks of the text cascade, as in the real-audio run.
CASCADE = {
    "digit": ("digit", "gender", "accent"),
    "emotion": ("emotion", "gender"),
    "audiobook": ("gender",),
    "sound": ("sound_class",),
}


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    count: int = 240,
    seed: int = 1,
    reasoning: bool = False,
    groups: Container[str] | None = None,
) -> dict[str, Any]:
    """Shares in [0, 1], each over about ``count`` prompts; ``groups``: measure these alone (and ``rephrase``).

    ``attributes``: correct value, plain questions in training wordings, any row. ``held_out_wordings``: the same in
    untrained wordings. ``text_cascade``: correct value, plain first wording, rows like those of the public corpora.
    ``yes_no``: correct verdict. ``transcript``: exact text. ``formats``: per format [share obeyed, share exact].
    ``rephrase`` (reasoning variant): exact rewritings; ``rephrase_heard``: rewritings with the exact thought, whatever
    the answer after it. Only the part of an answer after its think block counts.
    """
    rng = random.Random(f"{seed}/gates")
    cascade = [(style, task) for style, tasks in CASCADE.items() for task in tasks for _ in range(count // 6)]
    cases: dict[str, list[tuple[dict[str, Any], Prompt]]] = {
        "attributes": [_value_case(rng, wording=None) for _ in range(count)],
        "held_out_wordings": [_value_case(rng, wording=-1) for _ in range(count)],
        "text_cascade": [(random_row(rng, style), make_prompt(task)) for style, task in cascade],
        "yes_no": [_case(rng, "yes_no", "plain", list(YES_NO)) for _ in range(count)],
        "transcript": [_case(rng, "value", "plain", ["transcript"]) for _ in range(count // 2)],
    }
    for format in [name for name in FORMATS if not (reasoning and name == "think")]:
        cases[f"formats/{format}"] = [_case(rng, "value", format, None) for _ in range(count // 2)]

    if groups is not None:
        cases = {name: group for name, group in cases.items() if name.split("/")[0] in groups}
    everything = [case for group in cases.values() for case in group]
    requests = [[{"role": "user", "content": f"{describe(row)}\n{prompt.text}"}] for row, prompt in everything]
    answers = iter(answer(model, tokenizer, requests))
    result: dict[str, Any] = {"formats": {}}
    for name, group in cases.items():
        verdicts = [_verdict(name, row, prompt, next(answers)) for row, prompt in group]
        if name.startswith("formats/"):
            obeyed, exact = (round(sum(v) / len(group), 4) for v in zip(*verdicts, strict=True))
            result["formats"][name.split("/")[1]] = [obeyed, exact]
        else:
            result[name] = round(sum(verdicts) / len(group), 4)
    if reasoning:
        pairs = []
        for _ in range(count // 2):
            row, prompt = _case(rng, "value", "plain", None)
            pairs.append(rephrase_messages(*thoughts(row, prompt, rng), true_answer(row, prompt), rng))
        texts = answer(model, tokenizer, [pair[:1] for pair in pairs])
        done = [(_final(text), _final(pair[1]["content"])) for text, pair in zip(texts, pairs, strict=True)]
        result["rephrase"] = round(sum(text == wanted for text, wanted in done) / len(done), 4)
        heard = [_thought(text) == _thought(wanted) for text, wanted in done]
        result["rephrase_heard"] = round(sum(heard) / len(heard), 4)
    return result


@torch.no_grad()
def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[list[dict[str, str]]],
    *,
    max_new_tokens: int = 96,
    batch_size: int = 64,
    **template: Any,
) -> list[str]:
    """Greedy answers to chat conversations, in order; ``template``: keywords of the chat template."""
    prompts = [
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **template)
        for messages in conversations
    ]
    ids = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    answers = [""] * len(ids)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = tokenizer.pad({"input_ids": [ids[i] for i in chosen]}, padding_side="left", return_tensors="pt")
        output = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
        texts = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :])
        for i, text in zip(chosen, texts, strict=True):
            answers[i] = text.split("<|im_end|>")[0].replace("<|endoftext|>", "")
    return answers


def _value_case(rng: random.Random, wording: int | None) -> tuple[dict[str, Any], Prompt]:
    row = random_row(rng)
    task = rng.choice([task for task in tasks_of(row) if TASKS[task].values])
    return row, make_prompt(task, wording=wording, rng=rng)


def _case(rng: random.Random, kind: str, format: str, tasks: Sequence[str] | None) -> tuple[dict[str, Any], Prompt]:
    while True:
        row = random_row(rng)
        known = [
            t for t in tasks_of(row) if (t in tasks if tasks else TASKS[t].values) and format in formats_of(t, kind)
        ]
        if known:
            task = rng.choice(known)
            truth = gold(row, task)
            return row, make_prompt(task, kind, format, truth=truth, wording=None, format_wording=None, rng=rng)


def _verdict(name: str, row: dict[str, Any], prompt: Prompt, text: str) -> Any:
    if name.startswith("formats/"):
        return follows_format(prompt.format, text), _final(text) == _final(true_answer(row, prompt))
    if name == "yes_no":
        return parse_yes_no(text) == parse_yes_no(true_answer(row, prompt))
    if name == "transcript":
        return _final(text) == true_answer(row, prompt)
    return parse_answer(prompt.task, text) == gold(row, prompt.task)


def _final(text: str) -> str:
    return text.rsplit("</think>", 1)[-1].strip()


def _thought(rewritten: str) -> str:
    """The rewritten thought with its opening neutral tag."""
    return rewritten[: rewritten.find("</")]
