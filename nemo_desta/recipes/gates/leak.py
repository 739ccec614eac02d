"""Rejects leaks: answers that reveal that the LLM read a text description.

In training the model gets audio in place of the description, so a leaking answer teaches it to talk about a text that
does not exist. `LeakCheck` searches for phrases (`leak_lexicon`); `LeakJudge` queries an LLM.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from nemo_desta.core.think_tags import split_thought, starts_thought
from nemo_desta.errors import ConfigError
from nemo_desta.recipes.engines.base import Engine, Request, SamplingConfig
from nemo_desta.recipes.gates.leak_lexicon import ASKED, LEXICON, Rule, language_lexicon
from nemo_desta.recipes.gates.quotations import QUOTED, QUOTED_ANY, without_quotations
from nemo_desta.recipes.items import Rejection
from nemo_desta.recipes.languages import ENGLISH, Language

_SENTENCE = re.compile(r"[^\n]+?(?:[.!?](?=\s)|$)", re.MULTILINE)
#: The same with the full stops of Chinese and Japanese.
_SENTENCE_ANY = re.compile(r"[^\n]+?(?:[.!?](?=\s)|[\u3002\uff01\uff1f]|$)", re.MULTILINE)
_PAIR_ANY = re.compile(r"(?<=[(,]) ?([^\W\d_][^:,()]{0,40}: [^,()]{1,60})(?=[,)])")
_PAIR = re.compile(r"(?<=[(,]) ?([A-Za-z][^:,()]{0,40}: [^,()]{1,60})(?=[,)])")
_COPIES = ("times in brackets", "attribute: value", "caption in bars")


class Leak(NamedTuple):
    """``span``: start and end in the text; ``phrase``: the text between them; ``rule``: the rule that matched."""

    span: tuple[int, int]
    phrase: str
    rule: str


class LeakCheck:
    """The lexical check.

    Args:
        lexicon: rules to use instead of the shipped ones; ``[*LEXICON["en"], Rule(...)]`` adds to them.
        languages: languages whose shipped rules are used when ``lexicon`` is None.
    """

    def __init__(self, lexicon: Sequence[Rule] | None = None, languages: Sequence[str] = ("en",)) -> None:
        if unknown := [name for name in languages if name not in LEXICON]:
            raise ConfigError(f"no leak lexicon for language {unknown[0]!r}; there is one for {', '.join(LEXICON)}")
        self.rules = list(lexicon if lexicon is not None else (rule for name in languages for rule in LEXICON[name]))
        self._asked, self._words = ASKED, True
        self._sentence, self._quoted, self._pair = _SENTENCE, QUOTED, _PAIR
        self._prepare()

    @classmethod
    def in_language(cls, language: Language) -> "LeakCheck | None":
        """The check with the rules of a language file; None if it has none."""
        if language is ENGLISH:
            return cls()
        if (found := language_lexicon(language, "leak")) is None:
            return None
        check = cls(found[1])
        check._asked, check._words = found[0], language.spaces
        check._sentence, check._quoted, check._pair = _SENTENCE_ANY, QUOTED_ANY, _PAIR_ANY
        check._prepare()
        return check

    def _prepare(self) -> None:
        self._by_name = {rule.name: rule for rule in self.rules}
        before = r"(?<!\w)" if self._words else ""
        self._patterns = [re.compile(rf"{before}(?:{rule.pattern})") for rule in self.rules]
        for rule, pattern in zip(self.rules, self._patterns, strict=True):
            if pattern.groups:
                raise ConfigError(f"leak rule {rule.name!r} has a capturing group; write (?:...) for (...)")
        # Most texts contain triggers of at most two rules, and text search is much faster than regular expressions.
        bits: dict[str, int] = {}  # trigger -> its rules as a bit mask
        for number, rule in enumerate(self.rules):
            for trigger in rule.triggers:
                bits[trigger] = bits.get(trigger, 0) | 1 << number
        self._triggers = list(bits.items())
        self._always = sum(1 << number for number, rule in enumerate(self.rules) if not rule.triggers)

    def find(self, text: str) -> list[Leak]:
        """Every phrase that matches a rule, whatever the prompt was. Several rules may match at one position.

        Quoted text is skipped: it is speech from the clip.
        """
        plain, leaks = _lower(without_quotations(text, self._quoted)), []
        triggers = [(trigger, rules) for trigger, rules in self._triggers if trigger in plain]
        if not triggers and not self._always:
            return []
        for sentence in self._sentence.finditer(plain):
            start, end = sentence.span()
            held, bits = sentence[0], self._always
            for trigger, rules in triggers:
                if trigger in held:
                    bits |= rules
            for number, pattern in enumerate(self._patterns) if bits else ():
                if bits >> number & 1:
                    for match in pattern.finditer(plain, start, end):
                        leaks.append(Leak(match.span(), text[slice(*match.span())], self.rules[number].name))
        return sorted(leaks)

    def check(self, row: Mapping[str, Any]) -> Rejection | None:
        """The first leak in ``row["response"]``, including its thought, with the reason "leak".

        ``prompt`` and ``seed_description`` may be missing. A phrase is no leak if the prompt asks for it or the
        clip's speaker says it. A "Key: value" pair that is copied from the description is a leak.
        """
        text, prompt, description = row["response"], row.get("prompt") or "", row.get("seed_description") or ""
        rules = self._by_name
        for leak in self.find(text):
            spoken = leak.rule not in _COPIES and leak.phrase.lower() in description.lower()
            if not spoken and not self._asked_for(leak, rules[leak.rule], prompt):
                start, end = leak.span
                around = " ".join(text[max(0, start - 30) : end + 30].split())
                return Rejection("leak", f"{leak.rule}: {around!r}")
        return self._copied_pair(text, prompt, description) if ":" in text or "\uff1a" in text else None

    def _asked_for(self, leak: Leak, rule: Rule | None, prompt: str) -> bool:
        if rule is None or rule.asked is None or not prompt:
            return False
        wanted = rule.asked
        if "{noun}" in wanted:
            edge = r"\b" if self._words else ""
            named = self._asked.items()
            nouns = [asked for noun, asked in named if re.search(rf"{edge}(?:{noun})", leak.phrase, re.IGNORECASE)]
            if not nouns:
                return False
            wanted = wanted.replace("{noun}", "|".join(nouns))
        return re.search(wanted, prompt, re.IGNORECASE) is not None

    def _copied_pair(self, text: str, prompt: str, description: str) -> Rejection | None:
        lower = text.lower()
        if self._pair is _PAIR_ANY:
            lower = re.sub(r" ?[:\uff1a] ?", ": ", lower)
        for pair in self._pair.findall(description):
            # Only as a field or behind an article: "she has this accent: Scottish" is a sentence.
            small = re.escape(pair.lower())
            if pair.lower() in lower and re.search(rf"(?:^|[^\w\s']|\b(?:an?|the|of))\s*{small}", lower, re.MULTILINE):
                leak = Leak((0, 0), pair, "attribute: value")
                if not self._asked_for(leak, self._by_name.get("attribute: value"), prompt):
                    return Rejection("leak", f"attribute: value: {pair!r} as in the description")
        return None


#: The judge's request. ``{prompt}`` and ``{response}`` stand for the row's.
JUDGE_REQUEST = Path(__file__).with_name("leak_judge.txt").read_text(encoding="utf-8").rstrip("\n")

_VERDICT = re.compile(r"\W*(?:(?:my |the )?(?:final )?(?:answer|verdict)(?: is)?\W+)?(yes|no)\W*", re.IGNORECASE)


@dataclass(eq=False)
class LeakJudge:
    """Queries an LLM whether the response reveals that a text was read.

    Args:
        engine: the judge; it may be the LLM that generates the rows.
        sampling: default: the judge's own generation config. At temperature 0 a retry gives the same result.
        on_unclear: "drop" or "keep" a row for which the judge gives no verdict.
        retries: number of retries, with other seeds, before that.
        request: the text that the judge gets; it must contain ``{prompt}`` and ``{response}``.

    Raises ``ConfigError`` for another ``on_unclear``, and for a request without these two.
    """

    engine: Engine
    _: KW_ONLY
    sampling: SamplingConfig = SamplingConfig(2048, None)
    on_unclear: str = "drop"
    retries: int = 1
    request: str = JUDGE_REQUEST

    def __post_init__(self) -> None:
        if self.on_unclear not in ("drop", "keep"):
            raise ConfigError(f"on_unclear must be 'drop' or 'keep', found {self.on_unclear!r}")
        if missing := [mark for mark in ("{prompt}", "{response}") if mark not in self.request]:
            raise ConfigError(f"the judge's request holds no {missing[0]}")

    async def __call__(self, row: Mapping[str, Any], *, seed: int) -> Rejection | None:
        """Reason "leak (judge)" with the judge's text, "judge unclear" with its cause, or None for no leak."""
        marks = {"{prompt}": row.get("prompt") or "", "{response}": row["response"]}
        content = re.sub(r"\{prompt\}|\{response\}", lambda mark: marks[mark[0]], self.request)
        why = ""
        for attempt in range(self.retries + 1):
            own = random.Random(f"{seed}/judge/{attempt}").getrandbits(32)
            said = await self.engine.generate(Request([{"role": "user", "content": content}], self.sampling, own))
            if said.error is None and not said.truncated:
                leaks = read_verdict(said.text)
                if leaks is not None:
                    return Rejection("leak (judge)", _shortened(said.text)) if leaks else None
            why = said.error or ("cut: " if said.truncated else "no YES or NO: ") + _shortened(said.text)
        return Rejection("judge unclear", why) if self.on_unclear == "drop" else None


def read_verdict(text: str) -> bool | None:
    """True for YES and False for NO, alone on the last non-empty line or as "Verdict: YES"; None otherwise.

    The think block is skipped; a thought that never ends has no verdict.
    """
    text = split_thought(text).answer
    if starts_thought(text):
        return None
    lines = [line for line in text.splitlines() if line.strip(" \t`*_#=-.")]
    found = _VERDICT.fullmatch(lines[-1]) if lines else None
    return None if found is None else found[1].lower() == "yes"


def _lower(text: str) -> str:
    """Lower case with straight apostrophes; the length stays the same."""
    lower = text.replace("\u2019", "'").lower()
    return lower if len(lower) == len(text) else "".join(c.lower() if len(c.lower()) == 1 else c for c in text)


def _shortened(text: str) -> str:
    """The end of the text, which has the reason and the verdict."""
    flat = " ".join(text.split())
    return flat if len(flat) <= 160 else f"... {flat[-160:]}"
