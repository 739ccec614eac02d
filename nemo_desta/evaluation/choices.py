"""The option that an answer chooses: one option or none. The strict mode of every multiple-choice benchmark uses it.

An answer chooses an option when it names that one and no other: by its letter ("(B)", "B. a cat", "the answer is B",
"\\boxed{B}", "<answer>B</answer>") or by its text (whole words; case and punctuation are ignored). Options that are
ruled out ("not a dog", "a dog is wrong") are not chosen. A final statement ("the answer is ...") overrides the text
before it. A letter and a text that disagree choose nothing. No rule uses the position of an option in the list, so the
order of the options cannot change the result.
"""

import re
import string
from collections.abc import Sequence
from functools import lru_cache

from nemo_desta.core.think_tags import without_thought
from nemo_desta.evaluation.option_text import named, normal, plain, without_article

_LETTERS = string.ascii_uppercase
_MAX_CHARS = 20_000  # per answer; of a longer one only both ends are parsed

_BOXES = re.compile(
    r"<answer>(.*?)(?:</answer>|$)|\\boxed\s*\{\s*(?:\\text\s*\{)?([^{}]*)\}", re.DOTALL | re.IGNORECASE
)
_CUE = re.compile(
    r"(?:\b(final )?(?:answers?|options?|choices?)\b[\"'*_]*"
    r"(?: (?:is|was|would be|will be|must be|should be)\b|\s*[:=])|答案(?:是|为|[:：]))[\s:]*",
    re.IGNORECASE,
)
_CUE_WORDS = ("answer", "option", "choice", "答案")  # searched first, which is faster
_SENTENCE_END = re.compile(r"\n|[.!?;。！？](?=\s|$)")

_OPEN, _CLOSE = r"[\s\"'“”‘’«»`*_(\[{<$]*", r"[\s\"'“”‘’«»`*_)\]}>$.,:;!?。，：；！？]*"
_ALONE = re.compile(rf"^{_OPEN}([A-Za-z]){_CLOSE}$")
#: A letter and punctuation at a line start: "B. a cat", "(b) a cat", "**B**: a cat", "B, since ...", "B<tab>a cat".
_AT_START = re.compile(
    r"^[\s\"'“*_]*(?:[(\[]([A-Za-z])[)\]]|([A-Za-z])[*_\"']*\)"
    r"|([A-Z])[*_\"'”]*(?:[.。]|[:,](?=\s|$|[^\x00-\x7f])|\t| [-–—] ))(?!\w\.)",
    re.MULTILINE,
)
#: A letter after such a word: "option B", "choice (c)".
_BY_WORD = re.compile(
    r"\b(?:[Oo]ption|[Cc]hoice|[Ll]etter|[Aa]nswer)[\s*_\"'“(\[]{1,6}([A-Z]|[b-z](?=[)\]\"'*]))(?![\w'’#♯♭])"
)
#: "it is B.", "I pick B!": the letter ends the clause.
_BY_VERB = re.compile(
    r"(?:\b(?:is|be|choose|chose|pick|picked|select|selected|say|with|definitely|certainly|probably|clearly)|[:=：])"
    r"[\s*_\"'“]{0,4}([A-Z])(?=[\"'”*_]*(?:\s*$|[.,;:!?。](?!\w)|\s+(?:because|since|as|and|or)\b))"
)
#: A letter in brackets or quotes anywhere: "(B)", "[B]", "**B**", "“B”".
_SET_OFF = re.compile(
    r"(?<!\w)(?:\(([A-Za-z])\)|\[([A-Za-z])\]|\*\*\(?([A-Za-z])\)?[.:]?\*\*|[\"“]([A-Z])[\"”])(?!\w)"
)
#: A list of letters: "C and D", "A or B", "A/B".
_LIST = re.compile(r"\b([A-Z])\b[\s\"'*_)\]]*(?:,|/|&|\band\b|\bor\b)[\s,\"'*_(\[]*(?:or |and )?\b([A-Z])\b(?!['’])")
_RULED_OUT_LETTER = re.compile(
    r"(?:\bnot|n't|\bexcept|\brather than|\binstead of)(?: (?:an?|the|option|choice))*[\s\"'(*]*$"
)
_CAPITAL = re.compile(r"(?<![\w'])(?:[B-HJ-Z]|A(?! [a-z])|I(?! ))(?![\w'])")
_WRITTEN_NUMBER = re.compile(r"^\s*\(?([0-9]{1,2})[).:]\s+(?=\S)")
_WRITTEN_LABEL = re.compile(r"^\s*(?:[(\[]([A-Za-z])[)\]]|([A-Za-z])[).:])\s+(?=\S)")


def choose(prediction: str, options: Sequence[str], *, letters: bool = True) -> int | None:
    """The index of the one option that ``prediction`` clearly chooses (the first of equal ones); None when it chooses
    none or several.

    ``letters=False``: the model did not see the options in an order, so a letter means nothing.
    """
    known = _prepared(tuple(options), letters)
    text = without_thought(prediction)
    if len(text) > _MAX_CHARS:
        text = text[: _MAX_CHARS // 2] + "\n" + text[-_MAX_CHARS // 2 :]
    text = normal(text).strip()
    boxes = [inner for pair in _BOXES.findall(text) for inner in pair if inner.strip()]
    if boxes:
        return _only({_read(box, known) for box in boxes})
    return _read(text, known)


class _Options:
    """The options, prepared for the search."""

    def __init__(self, options: tuple[str, ...], letters: bool) -> None:
        numbers = [_WRITTEN_NUMBER.match(option) for option in options]
        if options and all(numbers) and len({m[1] for m in numbers}) == len(options):  # "1. a dog": no number
            options = tuple(option[m.end() :] for option, m in zip(options, numbers, strict=True))
        labels = [_WRITTEN_LABEL.match(option) for option in options]
        written = [(m[1] or m[2]).upper() for m in labels if m]
        if options and len(set(written)) == len(options):  # "(a) dog": their own letters, not their positions
            self.letters = {letter: i for i, letter in enumerate(written)}
            options = tuple(option[m.end() :] for option, m in zip(options, labels, strict=True))
        else:
            self.letters = dict(zip(_LETTERS, range(len(options)), strict=False))
        firsts = [i for i, option in enumerate(options) if options.index(option) == i]  # one wording is one option
        self.letters = {letter: options.index(options[i]) for letter, i in self.letters.items()}
        texts = [plain(normal(options[i])) for i in firsts]
        self.exact: dict[str, int | None] = {}
        for i, text in zip(firsts, texts, strict=True):
            if text:  # an empty answer must not choose an option of punctuation alone
                self.exact[text] = None if text in self.exact else i
        short = [without_article(text) for text in texts]
        texts = [s if short.count(s) == 1 else t for s, t in zip(short, texts, strict=True)]
        # Longest first: "not happy" is searched before "happy". Texts that differ only in punctuation are left out.
        names = [(t, i) for t, i in zip(texts, firsts, strict=True) if t and texts.count(t) == 1]
        self.names = sorted(names, key=lambda pair: -len(pair[0]))
        if not letters or any(len(text) == 1 and text.isalpha() for text in texts):
            self.letters = {}  # the options are letters themselves
        #: With "C minor" among the options, "it is C" may be a musical key; "option C" is still a letter.
        self.capitals = any(_CAPITAL.search(option) for option in options if not option.islower())
        self.longest = max(map(len, texts), default=0) + 200  # a longer answer is not just an option and punctuation


_prepared = lru_cache(maxsize=4096)(_Options)


def _read(text: str, options: _Options) -> int | None:
    """Tries the whole answer, then its final statement, then all options that it mentions."""
    if len(text) <= options.longest:
        wording = plain(text)
        if wording in options.exact:
            return options.exact[wording]
        alone = _ALONE.match(text)
        if alone and options.letters:
            return options.letters.get(alone[1].upper())
    lower = text.lower()
    cues = list(_CUE.finditer(text)) if any(word in lower for word in _CUE_WORDS) else ()
    if cues:
        ends = [cue.start() for cue in cues[1:]] + [len(text)]
        final = any(cue[1] for cue in cues)
        spans = [(cue.end(), end) for cue, end in zip(cues, ends, strict=True) if cue[1] or not final]
        stated = {_statement(text[start:end], options) for start, end in spans} - {None}
        if stated:
            return _only(stated)
    return _only(_mentioned(text, options))


def _statement(rest: str, options: _Options) -> int | None:
    """The option in the text after "the answer is": tries its first sentence, then all of it."""
    end = _SENTENCE_END.search(rest)
    pieces = [rest[: end.start()], rest] if end and end.start() else [rest]
    for piece in pieces:
        wording = plain(piece)
        if wording in options.exact:
            return options.exact[wording]
        alone = _ALONE.match(piece)
        if alone and options.letters:
            return options.letters.get(alone[1].upper())
        found = _mentioned(piece, options)
        if found:
            return _only(found)
    return None


def _mentioned(text: str, options: _Options) -> set[int]:
    """Every option that the text names and does not rule out, by letter or by text; -1 for a letter of no option."""
    found = named(text, options.names)
    if options.letters:
        for letter in _letters(text, options):
            if letter in options.letters or letter != "I":  # "I, for one, hear ..."
                found.add(options.letters.get(letter, -1))
    return found


def _letters(text: str, options: _Options) -> set[str]:
    found: set[str] = set()
    patterns = [_AT_START, _BY_WORD, _SET_OFF]
    if not options.capitals:
        patterns.append(_BY_VERB)
    for pattern in patterns:
        for match in pattern.finditer(text):
            if not _RULED_OUT_LETTER.search(text[max(0, match.start() - 40) : match.start()]):
                found.add(match[match.lastindex].upper())
    if found or not options.capitals:
        for match in _LIST.finditer(text):
            found.update(letter for letter in match.groups() if letter in options.letters)
    return found


def _only(found: set[int | None]) -> int | None:
    if len(found) != 1:
        return None
    (one,) = found
    return None if one is None or one < 0 else one
