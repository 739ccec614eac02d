"""The strict rule of every multiple-choice benchmark: right when the answer clearly chooses the true option."""

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
    verdicts: list[Verdict] = []
    for i, item in enumerate(items):
        options, truth = read(item, i)
        gold = true_option(options, truth, name_of(item, i))
        answer = answer_of(item, key, i)
        chosen = choose(answer, options) if answer is not None else None
        verdicts.append(None if chosen is None else options[chosen] == options[gold])
    return strict_scores(items, verdicts, fields)


def true_option(options: Sequence[str], truth: str, name: str) -> int:
    """Where the true answer stands among the options: as it is, but for case and outer white space, or as an answer
    would choose it (some true answers of MMAU are "(B)" or "(B) a cat" where the option is "a cat").

    Raises:
        ItemError: nowhere.
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
    choices = need(item, "choices", position, list)
    if not choices or not all(isinstance(choice, str) for choice in choices):
        raise ItemError(name_of(item, position), "'choices' must be a list of one text or more")
    return choices, need(item, "answer", position)


def lettered_choices(item: Item, position: int) -> tuple[list[str], str]:
    """``choice_a`` ... ``choice_d`` (the last may be missing or null) and ``answer_gt``, as AIR-Bench and MMSU."""
    present = [letter for letter in "abcd" if item.get(f"choice_{letter}") is not None]
    if present != list("abcd"[: len(present)]) or not present:
        raise ItemError(name_of(item, position), "needs choice_a, choice_b, ... without a gap")
    return [need(item, f"choice_{letter}", position) for letter in present], need(item, "answer_gt", position)
