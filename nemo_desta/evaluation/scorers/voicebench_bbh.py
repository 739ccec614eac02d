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
from typing import NamedTuple

from nemo_desta.evaluation.attributes import parse_value
from nemo_desta.evaluation.choices import choose
from nemo_desta.evaluation.scorers.voicebench_mcq import UNKNOWN_OPTIONS

TASKS = ("sports_understanding", "hyperbaton", "navigate", "web_of_lies")


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
_WORDINGS = {
    "yes": ("plausible", "tells the truth", "is telling the truth", "return to the starting point"),
    "no": (
        *("not plausible", "implausible", "lies", "is lying", "does not tell the truth", "is not telling the truth"),
        *(f"{verb} return to the starting point" for verb in ("do not", "don't", "will not", "won't", "would not")),
    ),
}
_METHODS = {
    "sports_understanding": "extract_answer_sports",
    "hyperbaton": "extract_answer_hyperbaton",
    "navigate": "extract_answer_navigate",
    "web_of_lies": "extract_answer_lies",
}


def read_bbh(response: str, item_id: str, rules: Rules) -> int | None:
    """0 or 1; None where the official script draws a value.

    Raises:
        ValueError: the id names none of the four tasks.
    """
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
    missing = [name for name in (*_METHODS.values(), "extract_answer_yn") if name not in methods]
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}; VoiceBench's src/evaluator/bbh.py is expected")
    return {task: _chain(methods[name], methods, path) for task, name in _METHODS.items()}


def read_clearly(response: str, *, lettered: bool) -> int | None:
    """0 or 1 for an answer that clearly states one of them: a letter, yes or no, or the task's wording of it."""
    if lettered:
        return choose(response, UNKNOWN_OPTIONS[:2])
    said = choose(response, ("No", "Yes"))
    if said is not None:
        return said
    worded = parse_value(response, ("no", "yes"), _WORDINGS)
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


def _either(*patterns: str, values: tuple[str, str] = ("no|false", "yes|true")) -> list[Rule]:
    """Two rules per pattern: its @ is replaced by the words for 0, then by the words for 1."""
    return [Rule("matches", p.replace("@", f"(?:{v})"), i) for p in patterns for i, v in enumerate(values)]


_YES_NO = _either(
    r"answer is @",
    r"(?:answer|conclusion) @",
    r"answer (?:to the question|without any modification) is @|answer is (?:without any modification|directly) @",
    r"answer is \$?\\boxed\{(?:\\text\{)?@",
)
_BY_END = [Rule("starts", "no", 0), Rule("starts", "yes", 1), Rule("ends", "no", 0), Rule("ends", "yes", 1)]
_IS_GOOD = r"(?:is|seems|appears to be|seems to be)(?: generally| likely)?(?: an?| the)? (?:plausible|possible|true)"
OWN: Rules = {
    "sports_understanding": [
        *_YES_NO,
        Rule("matches", r"(?:^|the (?:following |original )?sentence is |it s |therefore )not "
                        r"(?:a |particularly |entirely )?(?:plausible|possible|accurate)", 0),
        Rule("matches", r"making it (?:an )?implausible|(?:it seems|it s) unlikely|sentence (?:.+? )?is unlikely", 0),
        Rule("contains", "making it plausible", 1),
        Rule("contains", "the following sentence is plausible", 1),
        Rule("matches", rf"(?:points|factors|elements|analysis|context|steps|say|say that|yes) the sentence (?:.+? )?"
                        rf"{_IS_GOOD}", 1),
        # The official file has the wrong number here.
        Rule("matches", r"the sentence .+? is not plausible", 1),
        *_BY_END,
    ],
    "hyperbaton": [
        # A lone "b" counts as (a): a mistake in the official file.
        Rule("equals", "a", 0), Rule("equals", "b", 0),
        *_either(
            r"(?:answer|option|sentence|order|one|options)(?: directly)? (?:is|would be|should be)"
            r"(?: without any modification)?(?: found| provided)?(?: in)? [(\[]?(?:option |sentence )?\(?@",
            r"final answer @",
            r"(?:option|sentence) \(?@\)? (?:is|has|follows|uses|would be|correctly|seems to)\b.*?"
            r"(?:correct|accurate|order|sequence|logical|match)",
            r"in the correct order for @",
            values=("a", "b"),
        ),
        *_either(r"(?:typical order is|order is in) the @ option", values=("first", "second")),
        *(Rule("starts", f"{letter}{end}", i) for end in " )" for i, letter in enumerate("ab")),
    ],
    "navigate": [
        *_YES_NO,
        Rule("matches", r"you (?:do not|cannot|will not) return to the starting point|(?:did|does) not return "
                        r"(?:us )?to the|you are not (?:back |facing )?(?:at )?the starting point", 0),
        Rule("matches", r"you return to the starting point|(?:you|we) end up back at the starting point|"
                        r"we (?:are (?:now )?back at|have now returned to) the starting point|"
                        r"indeed (?:returns?|bring) (?:us |you )?(?:back )?to the starting point", 1),
        *_BY_END,
    ],
    "web_of_lies": [
        *_YES_NO,
        Rule("matches", r"answer is .+? (?:tells a lie|lies|says lie|(?:does|did) not tell the truth)", 0),
        Rule("matches", r"answer is .+? (?:tells|does tell) the truth", 1),
        *_either(r"answer to the question .+? is @", values=("no", "yes")),
        Rule("matches", r"(?:does not tell the truth|cannot be telling the truth|is lying|tells the lie)$", 0),
        Rule("matches", r"(?:is also telling|must be telling|tells) the truth$", 1),
        # As in the official file, although "must be lying" means no.
        Rule("ends", "must be lying", 1),
        Rule("ends", "lies", 0),
        *_BY_END,
    ],
}  # fmt: skip
