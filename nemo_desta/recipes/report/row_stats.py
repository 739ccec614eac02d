"""Statistics over rows, one row at a time. No row stays in memory."""

import random
from collections import Counter, defaultdict
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from nemo_desta.core.think_tags import split_thought, starts_thought
from nemo_desta.data.rows import audio_entries
from nemo_desta.recipes.gates.leak import LeakCheck
from nemo_desta.recipes.hashes import HashList
from nemo_desta.recipes.prompts.constraints import Constraint, obeys
from nemo_desta.recipes.read_description import read_description
from nemo_desta.recipes.report.counters import CappedCounter, Clips, Lengths, top
from nemo_desta.recipes.unicode_scripts import script_of

#: Prompts are also counted by their first words.
_OPENING_WORDS = 2
_NOT_SAID = "not said"


class RowStats:
    """Counts rows. ``leak_rate``: share of the rows that the leak check reads; it is slower than all the rest."""

    def __init__(self, leak_rate: float = 1.0) -> None:
        self.total = 0
        self.fields: dict[str, CappedCounter] = {
            name: CappedCounter(2000) for name in ("corpus", "split", "stage", "llm", "language", "script")
        }
        self.corpus_split: dict[str, Counter[str]] = defaultdict(Counter)
        self.attributes: dict[str, CappedCounter] = defaultdict(lambda: CappedCounter(2000))
        self.kinds, self.openings = CappedCounter(2000), CappedCounter(20_000)
        self.prompts, self.prompt_hashes = CappedCounter(), HashList()
        self.keys, self.responses = HashList(), HashList()
        self.thoughts, self.answers = Lengths(), Lengths()
        self.characters = Lengths()
        # llm -> cut responses without a closing tag, and how its other responses are built
        self.unclosed: dict[str, tuple[Lengths, Counter[str]]] = defaultdict(lambda: (Lengths(), Counter()))
        self.truncated: Counter[str] = Counter()
        self.clips = Clips()
        self.leak_rate, self.leaks, self.leak_examples = leak_rate, Counter[str](), []
        self._find_leak, self._random = LeakCheck().check, random.Random(0)
        self.constraints: dict[str, Counter[bool]] = defaultdict(Counter)

    def add(self, row: Mapping[str, Any], split: str) -> None:
        """Count a checked row of ``split``."""
        self.total += 1
        corpus, fields = short_word(row.get("dataset") or row.get("corpus")), self.fields
        fields["corpus"].add(corpus)
        fields["split"].add(split)
        for name in ("stage", "llm", "language"):
            fields[name].add(short_word(row.get(name)))
        fields["script"].add(script_of(row["response"]))
        if corpus in self.corpus_split or len(self.corpus_split) < 2000:
            self.corpus_split[corpus][split] += 1
        self._prompt(row)
        self._response(row)
        self._description_and_audio(row)
        if self._random.random() < self.leak_rate:
            self._leak(row)
        if row.get("constraint") and not row.get("truncated"):
            self._constraint(row)

    def _prompt(self, row: Mapping[str, Any]) -> None:
        prompt = prompt_of(row)
        self.prompts.add(prompt if len(prompt) <= 500 else f"{prompt[:499]}…")
        self.prompt_hashes.append(prompt)
        self.openings.add(_opening(prompt))
        kinds = row.get("prompt_kind") or row.get("tasks") or ()
        for kind in [kinds] if isinstance(kinds, str) else kinds if isinstance(kinds, list | tuple) else ():
            self.kinds.add(short_word(kind))
        self.keys.append((row.get("dataset", ""), row["id"], prompt))

    def _response(self, row: Mapping[str, Any]) -> None:
        response = row["response"]
        self.responses.append(response)
        self.characters[len(response)] += 1
        thought, answer = split_thought(response)
        cut = bool(row.get("truncated"))
        self.truncated["rows"] += cut
        if thought is not None:
            self.thoughts[len(thought.split())] += 1
            if answer or not cut:
                self.answers[len(answer.split())] += 1
            self._of(row)[1]["closed"] += 1
        elif cut and not starts_thought(response):
            self._of(row)[0][len(response.split())] += 1  # whether thought or answer: see `_lengths`
        elif starts_thought(response):
            self.thoughts[len(response.split())] += 1
            self.truncated["thoughts"] += 1
        else:
            self.answers[len(answer.split())] += 1
            self._of(row)[1]["plain"] += 1

    def _of(self, row: Mapping[str, Any]) -> tuple[Lengths, Counter[str]]:
        llm = short_word(row.get("llm"))
        if llm not in self.unclosed and len(self.unclosed) >= 200:
            llm = _NOT_SAID
        return self.unclosed[llm]

    def _description_and_audio(self, row: Mapping[str, Any]) -> None:
        description = row.get("seed_description")
        facts = read_description(description) if isinstance(description, str) else None
        for name, value in facts.attributes if facts else ():
            if name not in self.attributes and len(self.attributes) >= 100:
                name = "(other attributes)"
            self.attributes[name].add(value if len(value) <= 80 else f"{value[:79]}…")
        entries = audio_entries(row)
        for entry in entries:
            seconds = entry.get("duration")
            if seconds is None and facts and len(entries) == 1:
                seconds = facts.duration
            self.clips.add((row.get("dataset", ""), entry["audio"]), seconds)

    def _leak(self, row: Mapping[str, Any]) -> None:
        self.leaks["checked"] += 1
        if verdict := self._find_leak(row):
            self.leaks["found"] += 1
            if len(self.leak_examples) < 8:
                self.leak_examples.append({"id": row["id"], "detail": verdict.detail[:300]})

    def _constraint(self, row: Mapping[str, Any]) -> None:
        """Whether the answer has the format that the prompt asks for."""
        entry = row["constraint"]
        try:
            name, args = (entry["name"], entry.get("args")) if isinstance(entry, Mapping) else entry
            kept = obeys(Constraint(name, tuple(args or ())), split_thought(row["response"]).answer)
        except (ValueError, TypeError, KeyError):
            return  # a constraint of another version or another project
        if kept is not None:
            self.constraints[name][kept] += 1

    def to_json(self) -> dict[str, Any]:
        thoughts, answers, unfinished = self._lengths()
        return {
            "rows": {
                "total": self.total,
                **{f"by_{name}": counts.most_common() for name, counts in self.fields.items()},
                "by_corpus_and_split": {name: top(splits) for name, splits in sorted(self.corpus_split.items())},
            },
            "attributes": {
                name: {"rows": counts.total, "distinct": len(counts), "values": counts.most_common(20)}
                for name, counts in sorted(self.attributes.items(), key=lambda item: (-item[1].total, item[0]))
            },
            "prompts": {
                "distinct": self.prompt_hashes.num_distinct,
                "by_kind": self.kinds.most_common(),
                "openings": self.openings.most_common(15),
                "frequent": self.prompts.most_common(15),
            },
            "responses": {
                "answer_words": answers.to_json(),
                "thought_words": thoughts.to_json(),
                "characters": self.characters.to_json(),
                "truncated": self.truncated["rows"],
                "truncated_share": share(self.truncated["rows"], self.total),
                "unfinished_thoughts": unfinished,
            },
            "audio": self.clips.to_json(),
            "duplicates": {"rows": self.keys.num_repeated, "responses": self.responses.num_repeated},
            "leaks": {
                "checked": self.leaks["checked"],
                "rows": self.leaks["found"],
                "share": share(self.leaks["found"], self.leaks["checked"]),
                "examples": self.leak_examples,
            },
            "constraints": self._constraints(),
        }

    def _lengths(self) -> tuple[Lengths, Lengths, int]:
        """Lengths of thoughts and of answers, and the number of unfinished thoughts.

        A cut response without tags counts as a thought if most other responses of its LLM have a closed thought.
        """
        thoughts, answers, unfinished = Lengths(self.thoughts), Lengths(self.answers), self.truncated["thoughts"]
        for lengths, seen in self.unclosed.values():
            thinks = seen["closed"] > seen["plain"]
            (thoughts if thinks else answers).update(lengths)
            unfinished += lengths.total() if thinks else 0
        return thoughts, answers, unfinished

    def _constraints(self) -> dict[str, Any] | None:
        if not self.constraints:
            return None
        obeyed = sum(counts[True] for counts in self.constraints.values())
        rows = sum(counts.total() for counts in self.constraints.values())
        kinds = {
            name: {"rows": counts.total(), "obeyed": counts[True], "share": share(counts[True], counts.total())}
            for name, counts in sorted(self.constraints.items())
        }
        return {"rows": rows, "obeyed": obeyed, "share": share(obeyed, rows), "by_kind": kinds}


def prompt_of(row: Mapping[str, Any]) -> str:
    """The prompt of a row, or its last message if it has no such field."""
    prompt = row.get("prompt")
    return prompt if isinstance(prompt, str) and prompt else row["messages"][-1]["content"]


@lru_cache(maxsize=4096)
def _opening(prompt: str) -> str:
    return " ".join(prompt.split(None, _OPENING_WORDS)[:_OPENING_WORDS]).strip(",.:;?!").capitalize()


def share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0


def short_word(value: Any) -> str:
    """``value`` as a key of a counter."""
    if isinstance(value, str) and value:
        return value[:200]
    return _NOT_SAID if value is None or value == "" else str(value)[:200]
