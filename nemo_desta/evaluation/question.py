"""One attribute of the user's rows: asked about the audio, about text instead of it, and about wrong audio."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nemo_desta.errors import ConfigError
from nemo_desta.evaluation.attribute_settings import Attribute
from nemo_desta.evaluation.attributes import Accuracy, TaskResult, attribute_accuracy, parse_value, task_result
from nemo_desta.evaluation.breakdown import Scored, by_class, by_corpus, corpus_of, unparsed_examples
from nemo_desta.evaluation.controls import Control, compare, run_controls
from nemo_desta.evaluation.files import Item
from nemo_desta.evaluation.known_aliases import language_of, with_known_aliases
from nemo_desta.evaluation.row_input import value_of
from nemo_desta.evaluation.settings import ControlSettings
from nemo_desta.evaluation.sources import Source

#: A question that is made from the values lists at most so many.
MOST_VALUES = 30
CONSTANT = "best constant"


class Question:
    """Attribute ``name`` of the ``rows`` that hold it. ``left_out``: what is not measured and why, as sentences.

    Raises:
        ConfigError: no row can be asked about, or values and aliases contradict.
    """

    def __init__(self, name: str, attribute: Attribute, rows: list[dict[str, Any]], folder: Path) -> None:
        self.name, self.folder = name, folder / name
        found = [(row, value_of(row, name, attribute.field)) for row in rows]
        known = [(row, value) for row, value in found if value is not None]
        if not known:
            where = attribute.field or f"attributes.{name}"
            elsewhere = "" if attribute.field else f", under '{name}', or in its seed description"
            raise ConfigError(f"rows.attributes.{name}: no row has a value under '{where}'{elsewhere}")
        self.values = attribute.values or sorted({value for _, value in known})
        asked = [(row, value) for row, value in known if value in self.values]
        if not asked:
            others = ", ".join(sorted({value for _, value in known})[:10])
            raise ConfigError(
                f"rows.attributes.{name}.values: no row has one of {', '.join(self.values)}; has: {others}"
            )
        self.rows, self.truth = [row for row, _ in asked], [value for _, value in asked]
        own = {value: words for value, words in (attribute.aliases or {}).items() if value in self.values}
        parse_value("", self.values, own)  # values or aliases that contradict fail before the first question
        languages = {row["id"]: language_of(row["row"]) for row in self.rows}
        tables = {each: with_known_aliases(name, self.values, own, each) for each in set(languages.values())}
        self.aliases = {row_id: tables[language] for row_id, language in languages.items()}
        if attribute.question is None and len(self.values) > MOST_VALUES:
            raise ConfigError(f"rows.attributes.{name} has {len(self.values)} values: give 'question' and 'values'")
        words = name.replace("_", " ")
        made = f"What is the {words} in this recording? Answer with one of these: {', '.join(self.values)}."
        self.question = attribute.question or made
        self.left_out = []
        if less := len(found) - len(known):
            self.left_out.append(f"{name}: {less} of {len(found)} rows have no value")
        if less := len(known) - len(asked):
            self.left_out.append(f"{name}: {less} of {len(found)} rows have a value that is not among 'values'")
        if bare := [row["id"] for row in self.rows if not row["description"]]:
            self.left_out.append(
                f"text cascade of {name}: {len(bare)} of {len(self.rows)} rows have no description, such as {bare[0]} "
                "(a description needs domain, duration and attributes, or a seed_description)"
            )

    def ask(self, source: Source) -> None:
        """Ask about every clip; ``scored`` holds the answers, and so does ``scored.jsonl``."""
        self.source = source
        answers = ask_rows(
            source, [(row["id"], self.question, row["audio"]) for row in self.rows], self.folder / "heard"
        )
        self.scored = [
            Scored(row["id"], corpus_of(row["row"]), truth, answers.get(row["id"]), self._parse(row["id"], answers))
            for row, truth in zip(self.rows, self.truth, strict=True)
        ]
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "scored.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(one._asdict(), ensure_ascii=False) + "\n" for one in self.scored)

    def result(self) -> TaskResult:
        """The accuracy of the answers to `ask`, with its baselines."""
        return task_result(self.name, [one.value for one in self.scored], self.truth)

    def read(self, texts: Mapping[str, str], part: str) -> Accuracy | None:
        """Accuracy of the same LLM on a text (by row id) instead of the audio; None if a row has none."""
        if not all(row["id"] in texts for row in self.rows):
            return None
        asked = [(row["id"], f"{texts[row['id']]}\n{self.question}", None) for row in self.rows]
        answers = ask_rows(self.source, asked, self.folder / part)
        return attribute_accuracy([self._parse(row["id"], answers) for row in self.rows], self.truth)

    def controls(self, settings: ControlSettings, seed: int) -> list[Control]:
        """The best constant answer, and the answers to the wrong audio of ``settings``, as far as there are any."""
        right = {one.id: one.value == one.truth for one in self.scored}
        constant = self.result().constant[0]
        found = [compare(CONSTANT, list(right.values()), [truth == constant for truth in self.truth], seed=seed)]
        if not settings.items:
            return found
        clips = [
            Item(row["id"], Path(row["audio"]), self.question, (), truth, {})
            for row, truth in zip(self.rows, self.truth, strict=True)
        ]

        def ask(kind: str, changed: Sequence[Item]) -> list[bool | None]:
            asked = [(clip.id, self.question, str(clip.audio)) for clip in changed]
            answers = ask_rows(self.source, asked, self.folder / f"control_{kind}")
            if less := len(changed) - len(answers):
                self.left_out.append(f"{kind} control of {self.name}: {less} of {len(changed)} rows were not answered")
            return [self._parse(clip.id, answers) == clip.answer if clip.id in answers else None for clip in changed]

        silence = self.folder.parent / "silence"
        return found + run_controls(
            clips, settings, silence, lambda some: [right[clip.id] for clip in some], ask, seed=seed
        )

    def breakdown(self) -> dict[str, Any]:
        """By true value, by corpus, and examples of unparsed answers."""
        return {
            "by_class": by_class(self.scored),
            "by_corpus": by_corpus(self.scored),
            "unparsed_examples": unparsed_examples(self.scored),
        }

    def _parse(self, row_id: str, answers: Mapping[str, str]) -> str | None:
        return parse_value(answers.get(row_id, ""), self.values, self.aliases[row_id])


def ask_rows(source: Source, asked: Iterable[tuple[str, str, str | None]], folder: Path) -> dict[str, str]:
    """Answers by id. ``asked``: id, text, and the clip that the text is about or None."""
    rows = []
    for row_id, text, audio in asked:
        message: dict[str, Any] = {"role": "user", "content": text}
        if audio is not None:
            message |= {"content": f"{source.tag}\n{text}", "audios": [{"audio": audio}]}
        rows.append({"id": row_id, "messages": [message]})
    return source.ask(rows, folder)


def figures(question: Question, result: TaskResult, controls: Sequence[Control]) -> dict[str, Any]:
    """One attribute's entry in scores.json, without its cascades."""
    return {
        "question": question.question,
        "accuracy": result.accuracy.value,
        "interval": result.accuracy.interval,
        "num_rows": result.accuracy.total,
        "unparsed": result.accuracy.unparsed,
        "best_constant": result.constant,
        "shuffled": result.shuffled.mean,
        "controls": [asdict(control) for control in controls],
        **question.breakdown(),
    }
