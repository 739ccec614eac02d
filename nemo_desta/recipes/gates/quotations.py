"""Masks quoted speech: what somebody says in the clip is neither a leak nor a refusal."""

import re

#: Quotation marks of English texts.
QUOTED = re.compile('"[^"\n]{1,400}"|\u201c[^\u201c\u201d\n]{1,400}\u201d')
#: Those of other languages, too.
QUOTED_ANY = re.compile(
    QUOTED.pattern + "|\u201e[^\u201c\u201d\n]{1,400}[\u201c\u201d]|\u00ab[^\u00ab\u00bb\n]{1,400}\u00bb"
    "|\u300c[^\u300c\u300d\n]{1,400}\u300d|\u300e[^\u300e\u300f\n]{1,400}\u300f"
)
_STRUCTURED = re.compile(r"\s*(?:```|[{\[]\s*[\"{\[])")


def without_quotations(text: str, quoted: re.Pattern[str] = QUOTED) -> str:
    """The text with quotations masked by underscores of equal length. Quoted text as a whole and JSON stay."""
    if quoted is QUOTED and '"' not in text and "\u201c" not in text:
        return text
    if _STRUCTURED.match(text):
        return text
    whole = len(text.strip())
    return quoted.sub(lambda m: m[0] if len(m[0]) > whole - 3 else '"' + "_" * (len(m[0]) - 2) + '"', text)
