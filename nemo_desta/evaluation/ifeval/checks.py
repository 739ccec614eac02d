"""One function per kind of instruction: ``(text, tools, *, <arguments under their official names>) -> bool``.

The functions reproduce the behaviour of the original rules, edge cases included: keywords are patterns, a title needs
no line of its own, only "at least" and "less than" exist.
"""

import inspect
import json
import random
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_desta.evaluation.ifeval.texts import split_sentences, split_words, tell_language


@dataclass(frozen=True)
class Tools:
    """Functions and switches that the rules use.

    Attributes:
        detect: text -> language code, None for an undetectable language.
        sentences, words: split a text; the original uses NLTK's Punkt and word tokenizer.
        keywords_are_patterns: as in the original, where "c++" is no valid keyword; else they are plain text.
        letters: draws the letter that the original checks in place of a symbol ("!" or "#"); without it the symbol
            itself is counted.
    """

    detect: Callable[[str], str | None] = tell_language
    sentences: Callable[[str], Sequence[str]] = split_sentences
    words: Callable[[str], Sequence[str]] = split_words
    keywords_are_patterns: bool = True
    letters: random.Random | None = None


Rule = Callable[..., bool]


def arguments(instruction_id: str, rule: Rule, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """``kwargs`` without None values, checked against the rule's parameters.

    Raises:
        ValueError: a missing or unknown argument, or an unknown relation.
    """
    given = {name: value for name, value in kwargs.items() if value is not None}
    wanted = [name for name, p in inspect.signature(rule).parameters.items() if p.kind is p.KEYWORD_ONLY]
    missing = [name for name in wanted if name not in given]
    unknown = [name for name in given if name not in wanted]
    if missing or unknown:
        faults = [f"lacks {name}" for name in missing] + [f"has unknown {name}" for name in unknown]
        raise ValueError(f"instruction '{instruction_id}' {', '.join(faults)}; it takes {', '.join(wanted) or 'none'}")
    for name in ("relation", "let_relation", "capital_relation"):
        if given.get(name, "at least") not in ("at least", "less than"):
            raise ValueError(
                f"instruction '{instruction_id}': {name} '{given[name]}' is not 'at least' or 'less than'"
            )
    return given


# ---- keywords


def keywords_existence(text: str, tools: Tools, *, keywords: Sequence[str]) -> bool:
    return all(_pattern(keyword, tools).search(text) for keyword in keywords)


def keywords_frequency(text: str, tools: Tools, *, keyword: str, frequency: int, relation: str) -> bool:
    return _compare(len(_pattern(keyword.strip(), tools).findall(text)), frequency, relation)


def keywords_forbidden_words(text: str, tools: Tools, *, forbidden_words: Sequence[str]) -> bool:
    return not any(_pattern(word, tools, whole=True).search(text) for word in forbidden_words)


def keywords_letter_frequency(text: str, tools: Tools, *, letter: str, let_frequency: int, let_relation: str) -> bool:
    letter = letter.strip()
    if tools.letters is not None and not re.fullmatch("[A-Za-z]", letter):
        letter = tools.letters.choice(string.ascii_letters)
    return _compare(text.lower().count(letter.lower()), let_frequency, let_relation)


# ---- language and case


def response_language(text: str, tools: Tools, *, language: str) -> bool:
    return tools.detect(text) in (language, None)


def english_capital(text: str, tools: Tools) -> bool:
    return text.isupper() and tools.detect(text) in ("en", None)


def english_lowercase(text: str, tools: Tools) -> bool:
    return text.islower() and tools.detect(text) in ("en", None)


def capital_word_frequency(text: str, tools: Tools, *, capital_frequency: int, capital_relation: str) -> bool:
    return _compare(sum(word.isupper() for word in tools.words(text)), capital_frequency, capital_relation)


# ---- length


def number_sentences(text: str, tools: Tools, *, num_sentences: int, relation: str) -> bool:
    return _compare(len(tools.sentences(text)), num_sentences, relation)


def number_words(text: str, tools: Tools, *, num_words: int, relation: str) -> bool:
    return _compare(len(re.findall(r"\w+", text)), num_words, relation)


def number_paragraphs(text: str, tools: Tools, *, num_paragraphs: int) -> bool:
    return _count_parts(re.split(r"\s?\*\*\*\s?", text)) == num_paragraphs


def nth_paragraph_first_word(
    text: str, tools: Tools, *, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> bool:
    parts, nth_paragraph = text.split("\n\n"), int(nth_paragraph)
    count = sum(bool(part.strip()) for part in parts)
    # As in the original: empty paragraphs are not counted, but the index includes them.
    if nth_paragraph > count or not parts[nth_paragraph - 1].strip():
        return False
    word = parts[nth_paragraph - 1].split()[0].lstrip("'").lstrip('"')
    return count == num_paragraphs and re.split(r"""[.,?!'"]""", word)[0].lower() == first_word.lower()


# ---- content


def number_placeholders(text: str, tools: Tools, *, num_placeholders: int) -> bool:
    count = 0
    for line in text.split("\n"):  # as the pattern \[.*?\] finds them, in linear time
        start = line.find("[")
        while start >= 0 and (end := line.find("]", start)) >= 0:
            count += 1
            start = line.find("[", end)
    return count >= num_placeholders


def postscript(text: str, tools: Tools, *, postscript_marker: str) -> bool:
    marker = postscript_marker.strip()
    spelled = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    if marker in spelled:
        return re.search(spelled[marker], text.lower()) is not None
    return _pattern(marker.lower(), tools).search(text.lower()) is not None


# ---- format


def number_bullet_lists(text: str, tools: Tools, *, num_bullets: int) -> bool:
    return _count_bullets(text) == num_bullets


def constrained_response(text: str, tools: Tools) -> bool:
    return any(f"My answer is {answer}." in text for answer in ("yes", "no", "maybe"))


def number_highlighted_sections(text: str, tools: Tools, *, num_highlights: int) -> bool:
    single = sum(bool(found.strip("*").strip()) for found in re.findall(r"\*[^\n*]*\*", text))
    double = sum(bool(found[2:-2].strip()) for found in re.findall(r"\*\*[^\n*]*\*\*", text))
    return single + double >= num_highlights


def multiple_sections(text: str, tools: Tools, *, section_spliter: str, num_sections: int) -> bool:
    keyword = _pattern(section_spliter.strip(), tools).pattern
    return len(re.findall(rf"(?:{keyword})\s?\d+", text)) >= num_sections


def json_format(text: str, tools: Tools) -> bool:
    text = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):  # the latter by a thousand open brackets
        return False
    return True


def title(text: str, tools: Tools) -> bool:
    for line in text.split("\n"):  # as the pattern <<[^\n]+>> finds them, in linear time
        start, end = line.find("<<"), line.rfind(">>")
        if 0 <= start < end - 2 and line[start : end + 2].lstrip("<").rstrip(">").strip():
            return True
    return False


# ---- combination, start and end, punctuation


def two_responses(text: str, tools: Tools) -> bool:
    parts = text.split("******")
    if any(not part.strip() for part in parts[1:-1]):
        return False
    answers = [part.strip() for part in parts if part.strip()]
    return len(answers) == 2 and answers[0] != answers[1]


def repeat_prompt(text: str, tools: Tools, *, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def end_checker(text: str, tools: Tools, *, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation(text: str, tools: Tools) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def no_comma(text: str, tools: Tools) -> bool:
    return "," not in text


# ---- what Speech-IFEval changed


def speech_number_bullet_lists(text: str, tools: Tools, *, num_bullets: int) -> bool:
    """The bullet dot and lines that begin with a digit also count."""
    return _count_bullets(text) + len(re.findall(r"^[^\S\n]*[\u2022\d]", text, flags=re.MULTILINE)) == num_bullets


def speech_number_paragraphs(text: str, tools: Tools, *, num_paragraphs: int) -> bool:
    """Any line break also separates paragraphs."""
    return _count_parts(re.split(r"\s?\*\*\*\s?|\n+", text)) == num_paragraphs


def speech_repeat_prompt(text: str, tools: Tools, *, prompt_to_repeat: str) -> bool:
    """Quotation marks around the response are ignored."""
    return repeat_prompt(text.strip().strip("\"'"), tools, prompt_to_repeat=prompt_to_repeat)


def speech_english_capital(text: str, tools: Tools) -> bool:
    """In any language."""
    return text.isupper()


def speech_english_lowercase(text: str, tools: Tools) -> bool:
    """In any language."""
    return text.islower()


def _count_bullets(text: str) -> int:
    stars = re.findall(r"^[^\S\n]*\*[^*].*$", text, flags=re.MULTILINE)
    return len(stars) + len(re.findall(r"^[^\S\n]*-", text, flags=re.MULTILINE))


def _count_parts(parts: Sequence[str]) -> int:
    """Number of parts with text; -1 if an inner part is empty, which equals no wanted number."""
    if any(not part.strip() for part in parts[1:-1]):
        return -1
    return sum(bool(part.strip()) for part in parts)


def _compare(found: int, limit: int, relation: str) -> bool:
    return found < limit if relation == "less than" else found >= limit


def _pattern(keyword: str, tools: Tools, *, whole: bool = False) -> re.Pattern[str]:
    edge = r"\b" if whole else ""
    if tools.keywords_are_patterns:
        try:
            return re.compile(f"{edge}{keyword}{edge}", re.IGNORECASE)
        except re.error:
            pass  # the original stops here; we count it as plain text
    left = r"(?<!\w)" if whole else ""
    right = r"(?!\w)" if whole else ""
    return re.compile(f"{left}{re.escape(keyword)}{right}", re.IGNORECASE)


CHECKS: dict[str, Rule] = {
    "keywords:existence": keywords_existence,
    "keywords:frequency": keywords_frequency,
    "keywords:forbidden_words": keywords_forbidden_words,
    "keywords:letter_frequency": keywords_letter_frequency,
    "language:response_language": response_language,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:number_words": number_words,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": number_bullet_lists,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:number_highlighted_sections": number_highlighted_sections,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:json_format": json_format,
    "detectable_format:title": title,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeat_prompt,
    "startend:end_checker": end_checker,
    "startend:quotation": quotation,
    "change_case:capital_word_frequency": capital_word_frequency,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "punctuation:no_comma": no_comma,
}
SPEECH_CHECKS: dict[str, Rule] = {
    "detectable_format:number_bullet_lists": speech_number_bullet_lists,
    "length_constraints:number_paragraphs": speech_number_paragraphs,
    "combination:repeat_prompt": speech_repeat_prompt,
    "change_case:english_capital": speech_english_capital,
    "change_case:english_lowercase": speech_english_lowercase,
}
