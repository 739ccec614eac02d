"""Multiple choice: how items hold their options, and the strict rule: right when an answer clearly chooses the true
option."""

from collections.abc import Callable, Iterable, Sequence

from nemo_desta.evaluation.choices import choose
from nemo_desta.evaluation.scores import Item, ItemError, Scores, Verdict, answer_of, name_of, need, strict_scores

#: An item and its position -> its options and the true one's text.
ReadOptions = Callable[[Item, int], tuple[list[str], str]]


def strict_multiple_choice(items: Sequence[Item], key: str, read: ReadOptions, fields: Iterable[str]) -> Scores:
    """Every item counts; an answer that is missing, or chooses no option or several, is unparsed and wrong.

    Raises:
        ItemError: no options, or the true answer is none of them.
    """
    return strict_scores(items, [strict_verdict(item, i, key, *read(item, i)) for i, item in enumerate(items)], fields)


def strict_verdict(
    item: Item, position: int, key: str, options: Sequence[str], truth: str, *, letters: bool = True
) -> Verdict:
    """Whether the answer under ``key`` chooses the true option; None if it is missing or chooses none or several."""
    gold = true_option(options, truth, name_of(item, position))
    answer = answer_of(item, key, position)
    chosen = choose(answer, options, letters=letters) if answer is not None else None
    return None if chosen is None else options[chosen] == options[gold]


def true_option(options: Sequence[str], truth: str, name: str) -> int:
    """Index of the true answer among the options.

    Compared are the exact text, then the text without case and outer white space, then the option that the text
    chooses as an answer (some true answers of MMAU are "(B)" or "(B) a cat" where the option is "a cat").

    Raises:
        ItemError: the true answer is none of the options.
    """
    if truth in options:
        return options.index(truth)
    plain = [option.strip().casefold() for option in options]
    if truth.strip().casefold() in plain:
        return plain.index(truth.strip().casefold())
    chosen = choose(truth, options)
    if chosen is not None:
        return chosen
    raise ItemError(name, f"the answer {truth!r} is none of the choices {', '.join(map(repr, options))}")


def listed_choices(item: Item, position: int) -> tuple[list[str], str]:
    """``choices`` (a list of texts) and ``answer``, as MMAU and MMAR write them."""
    return choices_of(item, position), need(item, "answer", position)


def choices_of(item: Item, position: int) -> list[str]:
    """The texts under ``choices``."""
    choices = need(item, "choices", position, list)
    if not choices or not all(isinstance(choice, str) for choice in choices):
        raise ItemError(name_of(item, position), "'choices' must be a list of one text or more")
    return choices


def lettered_choices(item: Item, position: int) -> tuple[list[str], str]:
    """``choice_a`` ... ``choice_d`` (the last may be missing or null) and ``answer_gt``, as AIR-Bench and MMSU."""
    present = [letter for letter in "abcd" if item.get(f"choice_{letter}") is not None]
    if present != list("abcd"[: len(present)]) or not present:
        raise ItemError(name_of(item, position), "needs choice_a, choice_b, ... without a gap")
    return [need(item, f"choice_{letter}", position) for letter in present], need(item, "answer_gt", position)


def letter_of(response: str) -> tuple[str, str | None]:
    """The text that AIR-Bench's (foundation) and MMSU's official scripts look at, and the letter A-D in it.

    Outer white space and line breaks are removed; "" and "None" are no answer. The letter is the first character, or
    else the last but one; None if neither is A to D.
    """
    text = response.strip().replace("\n", "")
    if text[:1] in set("ABCD"):
        return text, text[0]
    if text[-2:-1] in set("ABCD"):
        return text, text[-2]
    return text, None
