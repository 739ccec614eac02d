"""VoiceBench's multiple-choice rule: the letter that it parses from an answer.

The rule searches the lower-cased answer for about 150 literal fragments around a letter, in a fixed order. The first
fragment that occurs decides, and within it the smallest letter. They are in voicebench_mcq.yaml.
"""

from functools import cache

from nemo_desta.evaluation.scores import texts_of

LETTERS = "abcd"
#: Options for `choices.choose` when the option texts are unknown, so that only letters can match.
UNKNOWN_OPTIONS = ("\ue000\ue001", "\ue002\ue003", "\ue004\ue005", "\ue006\ue007")


def read_letter(response: str) -> str | None:
    """A to D by the official rule; None where the official script draws a letter."""
    text = response.lower()
    if text.startswith(("<1>", "<2>", "<3>")):
        text = text[3:].strip()
    for before, behind in fragments():
        for letter in LETTERS:
            if before + letter + behind in text:
                return letter.upper()
    if text in LETTERS and len(text) == 1 or text[:1] in LETTERS and text[1:2] in tuple(".,:)"):
        return text[0].upper()
    return None


@cache
def fragments() -> tuple[tuple[str, str], ...]:
    """(before, after) of every fragment, in order."""
    return tuple(
        (before.replace("@", "\n"), behind)
        for befores, behinds in texts_of(__file__)["fragments"]
        for before in befores.split("|")
        for behind in behinds.split("|")
    )
