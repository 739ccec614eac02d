"""VoiceBench's BBH rules: parse yes or no, or first or second, from an answer.

The official file holds some 400 literal phrases collected from models' answers. This package does not contain them.
`OWN` has rules of our own for the forms that most of them have. With the path of the official file, its phrases are
parsed from the source code, which is never run, and the verdicts are exactly the official ones.
"""

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from nemo_desta.evaluation.attributes import parse_value
from nemo_desta.evaluation.choices import choose
from nemo_desta.evaluation.scorers.voicebench_mcq import UNKNOWN_OPTIONS
from nemo_desta.evaluation.scores import texts_of


class Rule(NamedTuple):
    """``how``: contains, equals, starts, ends or matches; ``value``: 1 for yes or (b), 0 for no or (a)."""

    how: str
    text: str
    value: int | None


Rules = Mapping[str, Sequence[Rule]]

_TESTS: dict[str, Callable[[str, str], bool]] = {
    "contains": lambda answer, text: text in answer,
    "equals": lambda answer, text: answer == text,
    "starts": lambda answer, text: answer.startswith(text),
    "ends": lambda answer, text: answer.endswith(text),
    "matches": lambda answer, text: re.search(text, answer) is not None,
}
#: Task -> the method of the official file.
TASKS = {
    "sports_understanding": "extract_answer_sports",
    "hyperbaton": "extract_answer_hyperbaton",
    "navigate": "extract_answer_navigate",
    "web_of_lies": "extract_answer_lies",
}


def read_bbh(response: str, item_id: str, rules: Rules) -> int | None:
    """0 or 1; None where the official script draws a value. Raises ValueError: the id names none of the four tasks."""
    task = next((task for task in TASKS if task in item_id), None)
    if task is None:
        raise ValueError(f"the id names none of the tasks {', '.join(TASKS)}")
    answer = _normalize(response)
    for rule in rules[task]:
        if _TESTS[rule.how](answer, rule.text):
            return rule.value
    return None


@cache
def official_rules(path: str | Path) -> Rules:
    """The phrases in the official ``src/evaluator/bbh.py``, read as data.

    Raises:
        ValueError: the file has another form than the known revision.
    """
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    methods = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    missing = [name for name in (*TASKS.values(), "extract_answer_yn") if name not in methods]
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}; VoiceBench's src/evaluator/bbh.py is expected")
    return {task: _chain(methods[name], methods, path) for task, name in TASKS.items()}


def read_clearly(response: str, *, lettered: bool) -> int | None:
    """0 or 1 for an answer that clearly states one of them: a letter, yes or no, or the task's wording of it."""
    if lettered:
        return choose(response, UNKNOWN_OPTIONS[:2])
    said = choose(response, ("No", "Yes"))
    if said is not None:
        return said
    worded = parse_value(response, ("no", "yes"), _TEXTS["wordings"])
    return None if worded is None else int(worded == "yes")


def _chain(method: ast.FunctionDef, methods: Mapping[str, ast.FunctionDef], path: str | Path) -> list[Rule]:
    """The rules of one method, in order. A call of the yes-no method inserts the rules of that method."""
    rules: list[Rule] = []
    for statement in method.body:
        if isinstance(statement, ast.Assign):
            rules += _chain(methods["extract_answer_yn"], methods, path)
        node: ast.stmt | None = statement
        while isinstance(node, ast.If):
            if (rule := _rule(node)) is not None:
                rules.append(rule)
            elif node.orelse or not isinstance(node.test, ast.Compare):
                raise ValueError(f"{path}:{node.lineno}: unknown form of a condition")
            node = node.orelse[0] if node.orelse else None
    return rules


def _rule(node: ast.If) -> Rule | None:
    """The condition of one branch and the number that it returns."""
    returned = node.body[-1]
    if not (isinstance(returned, ast.Return) and isinstance(returned.value, ast.Constant)):
        return None
    value, test = returned.value.value, node.test
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        if isinstance(test.ops[0], ast.In) and isinstance(test.left, ast.Constant):
            return Rule("contains", test.left.value, value)
        if isinstance(test.ops[0], ast.Eq) and isinstance(test.comparators[0], ast.Constant):
            return Rule("equals", test.comparators[0].value, value)
    if isinstance(test, ast.Call) and isinstance(test.func, ast.Attribute) and isinstance(test.args[0], ast.Constant):
        how = {"startswith": "starts", "endswith": "ends", "search": "matches"}.get(test.func.attr)
        return Rule(how, test.args[0].value, value) if how else None
    return None


def _normalize(response: str) -> str:
    text = response.lower()
    if text.endswith("<|user|>"):
        text = text[: -len("<|user|>")].strip()
    if text.startswith(("<1>", "<2>", "<3>")):
        text = text[3:].strip()
    text = text.replace("<|turn_end|>", "").replace("**", " ")
    return " ".join(re.sub(r"[:\"\-,.\uff1a]", " ", text).split())


def _rules_of(group: Any) -> list[Rule]:
    """The rules of one group of voicebench_bbh.yaml."""
    if isinstance(group, list):
        return [Rule(*rule) for rule in group]
    return [
        Rule("matches", pattern.replace("@", f"(?:{words})"), value)
        for pattern in group["patterns"]
        for value, words in enumerate(group["words"])
    ]


_TEXTS = texts_of(__file__)
OWN: Rules = {task: [r for group in groups for r in _rules_of(group)] for task, groups in _TEXTS["tasks"].items()}
