"""How AIR-Bench (foundation) and MMSU read a letter: the first character, or the last but one."""


def letter_of(response: str) -> tuple[str, str | None]:
    """The text that the official scripts look at, and the letter A-D in it (None: none found).

    White space around it and line ends inside are gone; "" and "None" are no answer.
    """
    text = response.strip().replace("\n", "")
    if text[:1] in set("ABCD"):
        return text, text[0]
    if text[-2:-1] in set("ABCD"):
        return text, text[-2]
    return text, None
