"""Training text of the demo's small language model: random descriptions, conversations about them, token ids.

Descriptions come from the recipes' ``describe``, applied to random rows. A conversation is one to three questions
about one description. The prompt is ``description + "\\n" + question``; the audio pipeline renders the same with the
clip instead of the description.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerFast

from nemo_desta.demo.prompts import YES_NO, Prompt, formats_of, make_prompt, true_answer
from nemo_desta.demo.reasoning import rephrase_messages, thoughts
from nemo_desta.demo.world import COMMANDS, DIGITS, SENTENCES, SOUND_GROUPS, TASKS, gold, load_texts, tasks_of
from nemo_desta.recipes.describe import describe

_TEXTS = load_texts("training_text.yaml")
EMPTY_THINK, OPEN_THINK = "<think>\n\n</think>\n\n", "<think>\n"
FORMAT_WEIGHTS = {"plain": 42, "short": 12, "caps": 12, "json": 10, "prefix": 6, "end": 6, "think": 6, "chatty": 6}

_COMMON, _SYLLABLES = _TEXTS["common"].split(), _TEXTS["syllables"].split()
#: Letters with about their frequency in English.
_LETTERS = "eeeeettttaaaaooooiiinnnsssshhhrrrddlllcuumwfgypbvk" + "etaoinshrdlcumwfgypbvkjxqz"


def random_row(rng: random.Random, style: str | None = None) -> dict[str, Any]:
    """A random manifest row. ``style``: digit, emotion, audiobook or sound for the attributes of a public corpus."""
    styles = {"digit": 12, "emotion": 12, "audiobook": 6, "sound": 15, "speech": 30, "free sound": 10, "music": 15}
    style = style or rng.choices(list(styles), list(styles.values()))[0]
    row: dict[str, Any] = {"id": "made-up", "domain": "speech", "transcript": None, "duration": rng.uniform(0.2, 9.0)}
    if style in ("sound", "free sound"):
        names = list(SOUND_GROUPS)
        sound = rng.choice(names[:10] if style == "sound" else names)
        attributes = {"sound_class": sound, "sound_group": SOUND_GROUPS[sound]}
        if style == "free sound":
            keep = rng.choices((["sound_class", "sound_group"], ["sound_class"], ["sound_group"]), (6, 4, 1))[0]
            attributes = {name: attributes[name] for name in rng.sample(keep, len(keep))}
        row |= {"domain": "sound", "attributes": attributes}
    elif style == "music":
        row |= {"domain": "music", "attributes": _some(rng, {"instrument": 0.95, "tempo": 0.7, "melody": 0.6})}
    elif style == "digit":
        digit = rng.randrange(10)
        row |= {"transcript": DIGITS[digit], "duration": rng.uniform(0.1, 2.0)}
        row["attributes"] = _values(rng, ("gender", "accent")) | {"digit": digit}
    elif style == "emotion":
        row["transcript"] = rng.choice(SENTENCES["English"][:2])
        row["attributes"] = _values(rng, ("gender", "accent", "emotion", "intensity"))
        row["attributes"]["accent"] = "North American English"
    elif style == "audiobook":
        row["transcript"] = rng.choice((None, _text(rng), _text(rng)))
        row["duration"] = rng.uniform(1.5, 25.0)
        row["attributes"] = {"gender": rng.choice(TASKS["gender"].values)}
        if rng.random() < 0.3:
            row["attributes"]["accent"] = "American English"
        row["attributes"]["style"] = "read audiobook"
    else:
        row |= _speech(rng)
    return row


def random_prompts(row: dict[str, Any], rng: random.Random, count: int, yes_no: float = 36) -> list[Prompt]:
    """Different questions about one row in training wordings; a few ask for an attribute that the row lacks.

    ``yes_no``: weight of yes/no questions, where plain ones weigh 55.
    """
    known = tasks_of(row)
    asked = rng.sample(known, min(count, len(known)))
    prompts = []
    for task in asked:
        if rng.random() < 0.03:
            missing = [t for t in TASKS if t not in known and TASKS[t].domain in (row["domain"], "any")]
            task = rng.choice(missing or [task])
        truth = gold(row, task)
        kinds = {"value": 55, "describe": 6}
        if task in YES_NO and truth in (TASKS[task].values or ()):
            kinds |= {"yes_no": yes_no, "choice": 8}
        kind = rng.choices(list(kinds), list(kinds.values()))[0]
        allowed = formats_of(task, kind)
        format = rng.choices(allowed, [FORMAT_WEIGHTS[name] for name in allowed])[0]
        prompts.append(make_prompt(task, kind, format, truth=truth, wording=None, format_wording=None, rng=rng))
    return prompts


def conversation(rng: random.Random, *, reasoning: bool = False, yes_no: float = 36) -> list[dict[str, str]]:
    """Chat messages: perhaps a system prompt, then one to three questions with their true answers.

    ``reasoning``: the last answer is a thought, ``</think>`` and the answer (the template has opened the block);
    every fifth conversation is a text to be rephrased.
    """
    row = random_row(rng)
    prompts = random_prompts(row, rng, rng.choices((1, 2, 3), (40, 30, 30))[0], yes_no)
    if reasoning:
        prompts = [replace(p, format="plain") if p.format == "think" else p for p in prompts]
        reader, listener = thoughts(row, prompts[-1], rng)
        if rng.random() < 0.2:
            return rephrase_messages(reader, listener, true_answer(row, prompts[-1]), rng)
    messages = [{"role": "system", "content": rng.choice(_TEXTS["system_prompts"])}] if rng.random() < 0.12 else []
    for number, prompt in enumerate(prompts):
        content = prompt.text if number else f"{describe(row)}\n{prompt.text}"
        messages += [
            {"role": "user", "content": content},
            {"role": "assistant", "content": true_answer(row, prompt)},
        ]
    if reasoning:
        messages[-1]["content"] = f"{reader}\n</think>\n\n{messages[-1]['content']}"
    return messages


def encode(
    messages: Sequence[dict[str, str]], tokenizer: PreTrainedTokenizerFast, *, opening: str = ""
) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation and a mask of the supervised ones: answers and their end-of-turn tokens.

    Equals the chat template's generation prompt of each turn followed by the raw answer; the pieces are tokenised
    separately, as in training on audio. The template removes earlier think blocks, so only the last answer may have
    one. ``opening``: end of the last generation prompt (an empty or an open think block); if it is given, only the
    last answer is supervised.
    """
    ids: list[int] = []
    supervised: list[bool] = []

    def add(text: str, target: bool = False) -> None:
        piece = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids.extend(piece)
        supervised.extend([target] * len(piece))

    for number, message in enumerate(messages):
        last = number == len(messages) - 1
        if message["role"] != "assistant":
            add(f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n")
            continue
        add(f"<|im_start|>assistant\n{opening if last else ''}")
        add(f"{message['content']}<|im_end|>", target=last or not opening)
        add("\n")
    return ids, supervised


def encoded_conversations(
    tokenizer: PreTrainedTokenizerFast, rng: random.Random, count: int, *, reasoning: bool = False, yes_no: float = 36
) -> Iterator[tuple[list[int], list[bool]]]:
    """``count`` random conversations as (ids, supervised); think blocks only in a last answer."""
    made = 0
    while made < count:
        messages = conversation(rng, reasoning=reasoning, yes_no=yes_no)
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        if any(answer.startswith("<think>") for answer in answers[:-1]):
            continue
        if reasoning:
            opening = OPEN_THINK
        else:
            opening = EMPTY_THINK if not answers[-1].startswith("<think>") and rng.random() < 0.15 else ""
        yield encode(messages, tokenizer, opening=opening)
        made += 1


def _values(rng: random.Random, names: Sequence[str]) -> dict[str, Any]:
    return {name: rng.choice(TASKS[name].values) for name in names}


def _some(rng: random.Random, chances: dict[str, float]) -> dict[str, Any]:
    """Random values of a random subset of attributes, in random order; at least one."""
    names = [name for name, chance in chances.items() if rng.random() < chance] or [next(iter(chances))]
    rng.shuffle(names)
    return _values(rng, names)


def _speech(rng: random.Random) -> dict[str, Any]:
    """Free speech: a word, a sentence in some language, or any text; any subset of attributes in any order."""
    chances = {"gender": 0.8, "accent": 0.4, "emotion": 0.4, "intensity": 0.2, "style": 0.2}
    chances |= {"language": 0.5, "speaking_speed": 0.5, "pitch": 0.5}
    attributes = _some(rng, chances)
    kind = rng.choices(("digit", "command", "sentence", "grammar", "text", "none"), (28, 12, 20, 14, 18, 8))[0]
    if kind == "digit":
        digit = rng.randrange(10)
        if rng.random() < 0.4:
            attributes["digit"] = digit
        return {"transcript": DIGITS[digit], "attributes": attributes}
    if kind == "sentence":
        language = attributes.get("language") or rng.choice(list(SENTENCES))
        return {"transcript": rng.choice(SENTENCES[language]), "attributes": attributes}
    text = None
    if kind == "command":
        text = rng.choice(COMMANDS)
    elif kind == "grammar":
        subject, verb, position = (rng.choice(_TEXTS[name]) for name in ("subjects", "verbs", "places"))
        text = f"{subject.capitalize()} are {verb} by {position}."
    elif kind == "text":
        text = _text(rng)
    return {"transcript": text, "attributes": attributes}


def _text(rng: random.Random) -> str:
    """Common and invented words, up to the length of an audiobook sentence, so that the model learns to copy text."""
    words = []
    for _ in range(rng.choice((2, 3, 5, 8, 12, 20))):
        kind = rng.random()
        if kind < 0.5:
            words.append(rng.choice(_COMMON))
        elif kind < 0.7:
            words.append("".join(rng.sample(_SYLLABLES, rng.choice((1, 2, 3)))))
        else:
            words.append("".join(rng.choices(_LETTERS, k=rng.choice((1, 3, 4, 5, 6, 8)))))
        if rng.random() < 0.08:
            words[-1] += rng.choice((",", ";", "'s"))
    text = " ".join(words)
    return text[:1].upper() + text[1:] + rng.choice((".", ""))
