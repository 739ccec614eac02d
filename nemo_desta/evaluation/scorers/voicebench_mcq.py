"""VoiceBench's multiple-choice rule: the letter that it parses from an answer.

The rule searches the lower-cased answer for about 150 literal fragments around a letter, in a fixed order. The first
fragment that occurs decides, and within it the smallest letter. The table holds the text around the letter, in the
official order. VoiceBench is under Apache-2.0. Fragments that an earlier one covers are left out, which changes no
verdict.
"""

from functools import cache

LETTERS = "abcd"
#: Options for `choices.choose` when the option texts are unknown, so that only letters can match.
UNKNOWN_OPTIONS = ("\ue000\ue001", "\ue002\ue003", "\ue004\ue005", "\ue006\ue007")

#: Text before the letter and text after it, each with alternatives separated by |. @ is a line break.
_GROUPS: tuple[tuple[str, str], ...] = (
    ("答案是|答案是 |答案是选项|答案应该是|答案应该是 |答案就是选项|答案是'", ""),
    ("是", "："), ("答案选", ""), ("", "是正确"), ("选项", "是最合适的"),
    ("answer is: **|answer is **|the answer to the question is: **", ""),
    ("the answer to the multiple-choice question is **", ""),
    ("the answer is '", "'"), ("", " is the best answer"), ("the answer is |the correct answer is ", ""),
    ("would select |would choose |would select option |would choose option ", ""),
    ('is "', '"|.'), ("is: **", ")"), ("is **", ",|:|)"), ("is: **", ".|:"), ("is **", "."), ("be **", ","),
    ("is: **", "**"), ("is therefore option **", ":"), ("is: @@**", ")"), ("as **", ":"), ("be **", ")|:"),
    ("is: @@**", "**"), ("suggests **", ")"), ("be option **", ":"), ("with **", ")"), ('is typically "', ")"),
    ("be to **", ")"), ("is: @@", ")"), ("is likely to be: **", "."), ("is **", " ("),
    ("is option **|is likely **", "**"), ("is:@**|is:@@**", "."), ("would be |would be option ", ""),
    ("would be (|would be option (", ")"), ("is ", ","), ("is typically ", ",|."), ("i'd say ", "."),
    ("option ", ".|:|,"), ("the answer is:@**", ""), ("is ", ":|."), ("is: ", "."), ("is (", ")"), ("is:@**", ")"),
    ("is likely **", ":"), ("is the **", ")"), (":@", ".|)|,"), (": @|:  @|:@@", "."), (":@@", ")"),
    ("is most likely **", ":"), (":@@", ","), (": @@", "."), ("(", ") would be"), ("is |is: ", ")"), ("is:@@", ":"),
    ("is: **", ","), ("(option ", ")"), ('select option "', '"'), ("is: ", ""), ("is typically **", ","),
    ("is **", "**"), ("is likely '|is option '", "'"), ("is:@**", ":"), ("is \\( \\boxed{", " "), ("would be '", "'"),
    ("is the **", "** "), ("question is ", " ("), ("is:@@**", ")"), ("closest to option **", "**"),
    ("is most likely **", ")"), ("the answer to the question is '", "'"),
    ("known as '", "'"), ("is '", ")"), ("is typically **", ":"), ("is \\( \\boxed{\\text{", "}} \\)"),
    ("is \\( \\text{", ") }|} \\)|:|)"), ("is \\(\\text{", "."), ("is:@@**", ""), ("is \\( \\text{", ".}|."),
    ("is \\( \\boxed{", "}"), ("is:@\\[ \\boxed{\\text{", "}}"), ("is:@\\[ \\text{|is:@@\\[ \\text{", ")"),
    ("is \\( \\textbf{", ")"), ("is \\( \\text{", "}"), ("is: \\( \\text{", "."), ("corresponds to:@- **", ":"),
    ("would be: **", "**."), ("is \\( ", " \\)"), ("is:@**", " "), ("corresponds to option **|be **", "**"),
    ("be: @@", ")"), ("is:@\\[ \\boxed{", "}"), ("is:  @**", ":"), ("is: \\( \\text{", ")"), ("is likely: **", ","),
    ("is } \\mathbf{", "."), ("is \\( \\boxed{", ")"), ("is \\( \\textbf{", "}"), ("is \\(", "\\)"),
    ("is:@  @**", ":"), ("is option **", " "), ("is:@\\( \\textbf{", "."), ("is \\( \\mathbf{", "}"),
    ("was option **", "**"), ('is likely "', ")"), ("option **", ":"), ('is "', ")"), ("is most likely **", ","),
    ("is often **", ":"), ("is:  @", ")"), (" ", ".|,|:|)"), ("**", ".|)"), ('"', ".|,|:"), ("(", ")"), ('"', '"'),
)  # fmt: skip


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
        for befores, behinds in _GROUPS
        for before in befores.split("|")
        for behind in behinds.split("|")
    )
