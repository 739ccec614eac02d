"""The demo's prompts in the recipes' form: every training wording of every task, in the given formats.

    python -m nemo_desta.demo.pool > nemo_desta/demo/assets/prompts.jsonl

writes the prompts of conf/recipes/demo_rephrase.yaml.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict

from nemo_desta.demo.prompts import DESCRIBE, FORMATS, WORDINGS, formats_of
from nemo_desta.demo.world import TASKS
from nemo_desta.recipes.prompts import Prompt

#: Attributes that a description needs for a task's question, where it is not the task's own name.
REQUIRES = {"transcript": ("transcript",), "domain": ()}
#: Tasks without an attribute: a description does not say whether a transcript is one word or a sentence.
UNMARKED = ("word",)


def prompt_pool(formats: Sequence[str] = ("plain",), tasks: Iterable[str] | None = None) -> list[Prompt]:
    """Prompts for self-generation, without the held-out wordings.

    ``formats``: each wording comes once per format. ``tasks``: None means all tasks of the demo.
    """
    pool = []
    for task in (name for name in TASKS if name not in UNMARKED) if tasks is None else tasks:
        requires = REQUIRES.get(task, (task,))
        domains = () if TASKS[task].domain == "any" else (TASKS[task].domain,)
        for number, (question, _) in enumerate(WORDINGS[task][:-1]):
            for name in formats:
                if name in formats_of(task, "value"):
                    text = f"{question} {FORMATS[name][0]}".strip()
                    pool.append(Prompt(f"{task}-{number}-{name}", text, (task,), requires, domains))
    pool += [Prompt(f"describe-{i}", text, ("describe",)) for i, text in enumerate(DESCRIBE[:-1])]
    return pool


def rephrase_pool() -> list[Prompt]:
    """Plain questions whose answers the reasoning variant can rewrite; transcripts are left out."""
    return prompt_pool(("plain",), [name for name in TASKS if name not in (*UNMARKED, "transcript")])


if __name__ == "__main__":
    for prompt in rephrase_pool():
        print(json.dumps(asdict(prompt), ensure_ascii=False))
