"""English phrases which reveal that the LLM read a text about the clip; `nemo_desta.recipes.gates.leak` uses them.

Patterns are matched against one sentence at a time, in lower case and with straight apostrophes. They have no
capturing groups, and a match never begins inside a word.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """``pattern`` finds the phrase. ``triggers``: lower-case texts of which every match contains one; without triggers
    the rule is tried on every text. ``asked``: the rule does not apply to prompts that match this expression; in it,
    ``{noun}`` stands for the ways to ask for the written thing that the phrase names (`ASKED`).
    """

    name: str
    pattern: str
    triggers: tuple[str, ...] = ()
    asked: str | None = None


#: Written thing in a phrase -> how a prompt asks for it; the answer may then mention it.
ASKED = {
    r"descriptions?": r"descriptions?",
    r"transcri\w*": r"transcri\w*|verbatim|word[- ]for[- ]word|subtitles?|dictation|written (?:down|form)",
    r"caption\w*": r"caption\w*|subtitles?|headlines?|titles?",
    r"(?:tag|label|annotat)\w*": r"(?:tag|label|annotat|keyword|categor|classif|hashtag)\w*",
    r"meta-? ?data": r"meta-? ?data",
    r"text\w*|written": r"texts?|written",
    r"information|info|details|data\b|attributes|input|context|notes": r"information|info|details|data|attributes"
    r"|input|context|notes",
    r"dataset|data set|corpus|file ?name|ground truth": r"dataset|data set|corpus|file ?name|ground truth",
}


def _split(triggers: str) -> tuple[str, ...]:
    return tuple(triggers.split("|"))


def _one_of(words: str) -> str:
    """Alternatives of a regular expression, from several lines."""
    return "|".join(re.split(r"\s*\|\s*", words.strip()))


# Attributes of descriptions; the second list has the keys of copied "key: value" pairs.
_ATTRIBUTES = _one_of("""
    gender|sex|emotions?|emotional (?:tone|state)|accent|age(?: group)?|language|dialect|pitch|volume|loudness
    |duration|length|speed|speaking (?:speed|rate|style)|tempo|intensity|style|mood|tone|genre|instruments?|key
    |melody|sound (?:class|group|source|type)|source|noise(?: level| type)?|snr|nationality|identity|name|location
    |number of speakers|speakers?|topic|time
""")
_KEYS = _one_of("""
    gender|sex|emotion|emotional tone|accent|age|age group|language|dialect|pitch|volume|loudness|duration|speed
    |speaking (?:speed|rate|style)|tempo|intensity|style|mood|genre|instrument|melody
    |sound (?:class|group|source|type)|noise(?: level| type)?|snr|nationality|number of speakers|speaker|arousal
    |valence|intent
""")

# A person in the clip may describe, mention and read things: that is no leak.
_PERSON = _one_of("""
    speakers?|man|woman|men|women|boy|girl|child|person|people|narrator|caller|singer|guide|teacher|host|guest
    |reporter|customer|officer|doctor|lawyer|witness|author|actor|actress|reader|announcer|presenter|operator|agent
    |student
""")
_WRITTEN = "descri|transcri|caption|meta|tag|label|annotat|text|input|data|info|prompt|user"
_BY_THEM = rf"by (?!(?:the |a |an |this |your )?(?:[a-z]+ )?(?:{_WRITTEN}))[a-z]+"
_HEARD = _one_of("""
    audio|clip|recording|sound|song|lyrics?|speech|conversation|dialogue|interview|voice|music|announcement|talk|call
""")
_IN_SOUND = rf"(?:(?:in|on|throughout|during|from|of|by) (?:the|this|that|his|her|their) (?:[a-z-]+ )?(?:{_HEARD})\b)"
_NOT_THEIRS = rf"(?![^.,;:'\"\n]{{0,40}} {_BY_THEM})(?!(?: [a-z]+)? {_IN_SOUND})"

_GIVEN = _one_of("""
    provided|given|supplied|available|above|below|following|accompanying|attached|audio|clip|sound|scene|seed|text
    |textual|written|short|brief|original|input|source|event|emotions?|speaker|gender|language|genre|class|music|song
    |file|full|recording|user's|user-provided|whole|entire|only|first|second|speech|spoken|initial|detailed|simple
    |same|actual|raw
""")
_THE = rf"(?:the|this|that|these|those|your|any)(?: (?:{_GIVEN})){{0,3}}"
_PAPER = r"descriptions?|transcripts?|transcriptions?|captions?|meta-?data|meta data|tags?|labels?|annotations?"
_SAYS = _one_of("""
    say|state|mention|indicate|note|describe|specif(?:y|ie)|list|read|show|tell|give|provide|include|contain|suggest
    |label|tag|identif(?:y|ie)|reveal|impl(?:y|ie)|report|refer|explain|confirm|call|put|use|point|mark|name|talk
""")
_ADVERBS = _one_of("""
    clearly|only|also|explicitly|simply|just|itself|themselves|already|even|never|doesn't|does not|do not|don't
    |did not|didn't|seems? to|here|further|specifically|actually|directly|merely|and|provided|given|above|below
    |literally|still|you provided|you gave|you gave me|i was given|i have|so far|both
""")
_SPEAKS = rf"(?: (?:{_ADVERBS})){{0,3}} (?:{_SAYS})(?:s|es|d|ed|ing)?\b"
_ONLY = "(?:solely |only |purely |entirely |simply )?"
_GOING_BY = (
    rf"according to|{_ONLY}based {_ONLY}(?:up)?on|going by|judging (?:by|from)|as per|per|given|relying {_ONLY}on"
)
_IS = r"(?:is|are|was|were|isn't|aren't|wasn't|weren't|been|being|it's)"
_MANNERS = _one_of("""
    not|never|only|also|simply|clearly|explicitly|just|further|specifically|directly|being|been|even|otherwise
    |anywhere|actually
""")
_HOW = rf"(?: (?:{_MANNERS}))*"
_PRESENTED = r"\b(?:the|this|that|following|given|provided|above|below)\s+(?:\w+\s+){0,2}(?:{noun})\b|\b(?:{noun})\s*:"

ENGLISH = (
    # The written thing speaks: "the description doesn't mention", "the text says", "the given information suggests".
    Rule(
        "written source speaks",
        rf"(?:{_THE} (?:{_PAPER}|text|input|data|information|info|attributes|details|prompt)"
        r"|(?:the|this|that|all) (?:provided|given|available|supplied) (?:[a-z]+ )?(?:context|notes|facts)"
        r"|(?:clip|audio|recording|speaker|segment|snippet)'s (?:info|information|details|data|metadata|attributes))"
        rf"{_SPEAKS}"
        r"|the passage (?:doesn't |does not |never |only )?(?:says?|mentions?|states?)\b|the prompt has\b",
        _split(
            "descri|transcri|caption|metadata|meta|tag|label|annotat|text|input|data|info|attributes|"
            "prompt|context|details|notes|passage"
        ),
        _PRESENTED,
    ),
    # It is gone by: "according to the text", "based on the information", "in the tags".
    Rule(
        "going by a written source",
        rf"(?:(?:{_GOING_BY}) (?:all |only )?(?:{_THE}|what the) (?:{_PAPER}|text|input|data|information|info"
        rf"|attributes|details)\b"
        rf"|(?:{_GOING_BY}) (?:the|this|these|all) (?:provided|given|available|supplied) (?:[a-z]+ )?"
        r"(?:context|notes|clues|facts)\b"
        rf"|(?:in|from|within) {_THE} (?:text|tags|labels|annotations|input|data)\b(?! cent| base|-)"
        rf"|(?:in|from) (?:the|this) (?:prompt|input)\b"
        r"|(?:i|let me|we|after|by|when|just|me|as i) (?:re-?)?read(?:ing)? (?:the|this|that|your)(?: [a-z]+)? text\b"
        r")(?!-| (?:messages?|tones?|notifications?|alerts?|books?|editor)\b)"
        rf"(?!(?: that| which)? (?:(?:he|she|they|the (?:{_PERSON})) |(?:is|being) (?:read|sung|spoken)))"
        rf"{_NOT_THEIRS}",
        _split(
            "descri|transcri|caption|metadata|meta|tag|label|annotat|text|input|data|info|attributes|"
            "prompt|context|details|notes|clues|facts"
        ),
        _PRESENTED,
    ),
    # It was provided: "the information provided", "no details are given", "there is no mention of".
    Rule(
        "provided information",
        r"(?:(?:provided|given|available|supplied) (?:information|info|details|data|text|context|description|input)\b"
        rf"|(?:information|info|details|data|text|context|input)(?: that)?(?: {_IS}| has been| have been)?{_HOW} "
        r"(?:provided|given|supplied|specified|listed|included)\b"
        r"|there(?:'s| is| was| are|'re) no(?: further| additional| other| specific| explicit| direct)* "
        r"(?:mention|information|info|details|data)\b"
        r"|(?:the|all the|these) (?:given|provided) (?:clues|facts|values|sentence|words)\b"
        r"|(?:only|all)(?: the)? (?:information|info|details|data)(?: that)? (?:i|we) (?:have|got|was|were|am"
        r"|can see)\b"
        r"|(?:clip|audio|recording|speaker|segment|snippet)(?:'s)? (?:info|information|details|metadata|attributes)\b"
        r"|(?:the|these|those|its|certain|some|with|following) (?:[a-z]+ )?attributes\b"
        r"|(?:sentence|words?|content|speech|line|utterance|phrase)(?: is| are| was)? (?:given|provided"
        r"|listed) (?:is|are|as|here)\b|(?:the|two|three|these) values (?:are|is)\b)"
        rf"{_NOT_THEIRS}(?! (?:[a-z']+ ){{0,4}}{_IN_SOUND})",
        _split(
            "provided|given|available|supplied|specified|listed|included|mention|info|details|data|attributes|values"
        ),
        r"\b(?:information|info|details|data|text|context|input|passage|mention\w*)\b",
    ),
    Rule(
        "as described",
        r"as (?:is |was |it is |it was |i was )?(?:(?:described|indicated|specified|labell?ed|tagged|provided|listed"
        r"|annotated|captioned)\b(?! (?:earlier|before|previously))"
        r"|(?:mentioned|noted|stated|given|written)\b(?! (?:earlier|before|previously|above|that|the|a)\b))"
        + _NOT_THEIRS,
        _split(
            "as described|as indicated|as specified|as label|as tagged|as provided|as listed|as annotat|"
            "as captioned|as mentioned|as noted|as stated|as given|as written|as is |as was |as it is |"
            "as it was |as i was "
        ),
        r"\bas (?:described|mentioned|stated|given|provided|noted|written)\b",
    ),
    Rule(
        "is described as",
        rf"{_IS}{_HOW} (?:(?:described|listed|specified|stated|marked|noted|given|indicated|mentioned"
        rf"|reported) (?:as|to be)"
        r"|(?:labell?ed|tagged|annotated|captioned|transcribed))\b(?! along| out)"
        rf"{_NOT_THEIRS}",
        _split(
            "described|listed|specified|stated|marked|noted|given|indicated|mentioned|reported|label|"
            "tagged|annotated|captioned|transcribed"
        ),
        r"\b(?:tag|label|caption|annotat|transcri|described as)\w*",
    ),
    Rule(
        "labelled clip",
        r"(?:audio|clip|sound|recording|speaker|segment|file|event|music|emotion|voice|it)(?: clip| file| event)? "
        r"(?:labell?ed|tagged|annotated|captioned)(?: as| with| simply| [\"'])"
        r"|(?:labell?ed|tagged|annotated|captioned) (?:audio|clip|recording|as)\b"
        r"|(?:the |this )(?:audio|clip|recording|sound)(?: clip)? is described\b"
        r"|(?:sample|clip|audio|recording|sound) is (?:categori[sz]ed|classified|identified) as\b"
        rf"|the (?:listed|stated|specified|mentioned|given|provided|indicated|labell?ed|tagged|noted"
        rf"|annotated) (?:{_KEYS})\b"
        r"|listed (?:under|there|here|as)\b",
        _split(
            "label|tagged|annotated|captioned|described|listed|stated|specified|mentioned|given|"
            "provided|indicated|noted|categori|classified|identified"
        ),
        r"\b(?:tag|label|caption|annotat|categor|classif)\w*",
    ),
    # What is not specified was looked for in writing: "the accent is not specified", "isn't explicitly stated".
    Rule(
        "attribute is specified",
        rf"(?:(?:{_ATTRIBUTES})(?: of (?:the|this|her|his|their|each)(?: [a-z]+){{1,2}})?(?: itself)? {_IS}{_HOW} "
        r"(?:specified|stated|listed|provided|indicated|mentioned|given|supplied|described|detailed|disclosed)\b"
        rf"|{_IS}(?: not| never)? (?:explicitly|specifically) (?:stated|mentioned|specified|given|listed|described"
        rf"|noted"
        r"|indicated|provided|labell?ed)\b"
        r"|it(?:'s| is| was| isn't)(?: not| also| only| explicitly| clearly)* (?:mentioned|stated|noted|indicated"
        r"|specified|given|written|described|listed)(?= (?:that|here|in the|whether|if|who|how|what|where|which)\b)"
        r"|(?:unspecified|not specified|not stated|not provided)\b)" + _NOT_THEIRS,
        _split(
            "specified|stated|listed|provided|indicated|mentioned|given|supplied|described|detailed|"
            "disclosed|noted|label|written"
        ),
        r"\b(?:specified|stated|mentioned|unspecified|not (?:provided|stated|given)|unknown)\b",
    ),
    Rule(
        "it says",
        r"(?:it|which) (?:also |only |just |clearly |explicitly |doesn't |does not )?"
        r"(?:says?|reads|states?|mentions?|lists?|specif(?:y|ies)|notes?|describes?) "
        rf"(?:here\b|(?:that )?(?:the |it's |it is |this |a )?(?:speaker'?s? )?(?:(?:{_KEYS}|clip|audio|recording) "
        rf"|speaker is\b))",
        _split(
            "it say|it read|it state|it mention|it list|it specif|it note|it describe|which |it also |"
            "it only |it just |it clearly |it explicitly |it does"
        ),
    ),
    # The written thing is named at all.
    Rule("metadata", r"(?:meta-?data|meta data)\b", ("metadata", "meta data", "meta-data"), r"\b(?:{noun})\b"),
    Rule(
        "transcript",
        rf"(?:(?:{_THE}|provided|given|audio|no|in|from) (?:transcripts?|transcriptions?)\b"
        r"|transcribed (?:text|speech|words|content|version|audio)\b)"
        rf"(?! (?:of|from) (?:his|her|their|my|a|an|the (?:court|trial|meeting|phone|hearing))\b){_NOT_THEIRS}",
        ("transcri",),
        r"\b(?:{noun})\b",
    ),
    Rule(
        "description",
        rf"(?:{_THE}|provided|given|audio|in|clip's|audio's|recording's) (?:descriptions?|captions?)\b"
        rf"(?! of (?:his|her|their|my|how (?:he|she|they))\b| on (?:the|its|his|her|a)\b)"
        rf"(?!(?: that| which)? (?:he|she|they|the (?:{_PERSON}))\b)"
        rf"{_NOT_THEIRS}",
        ("description", "caption"),
        r"\b(?:{noun})\b",
    ),
    Rule(
        "tag of an attribute",
        rf"(?:{_KEYS}|emotional|class|event) (?:tags?|labels?|fields?|attributes?|annotations?|entry|column"
        rf"|metadata)\b(?!-)"
        r"|annotations?\b|(?:the|these|those) (?:tags|labels)\b(?! (?:on|of (?:his|her|their))\b)"
        rf"|(?:tag|label|field|entry) (?:for|of) (?:the )?(?:{_KEYS})\b|with the (?:tag|label)\b" + _NOT_THEIRS,
        _split("tag|label|field|attribute|annotation|entry|column|metadata"),
        r"\b(?:{noun})\b|\bfields?\b|\battributes?\b|\bcolumns?\b",
    ),
    Rule(
        "somebody wrote it down",
        r"(?:the )?(?:user|you|prompt|question|request)(?:'s|'ve| has| have| had)?(?: just| only| also| already)? "
        r"(?:gave|gives?|given|provided?s?|shared?s?|wrote|writes|includes?|described|describes|supplied|supplies"
        r"|typed|pasted|sent)(?: me| us)?(?: with)?(?: an?| the| some| this| only| their)?(?: [a-z-]+){0,3} "
        r"(?:descriptions?|transcripts?|transcriptions?|texts?|captions?|metadata|information|details|tags|labels"
        r"|summary)\b"
        rf"|(?:the )?user(?:'s| has| had)? (?:mentioned|mentions|said|says|stated|states|specified|noted|listed"
        rf"|indicated|told me) "
        rf"(?:that )?(?:the|this|it's|it is|there's|there is|an?) (?:audio|clip|recording|sound|speaker|voice"
        rf"|{_KEYS})\b"
        r"|(?:i|we)(?:'m| am| are| was| were|'ve been| have been)(?: only| just)? (?:given|provided with|shown|handed)"
        r" (?:only |just )?(?:an?|the|this|some)\b(?! (?:choice|option))"
        r"|(?:i|we)(?: only| just)? (?:have|had|see|got|received)(?: only| just)? (?:the|an?) (?:[a-z]+ )?"
        r"(?:text|description|transcript|metadata|caption|transcription)\b"
        r"|you(?:'ve| have)? (?:described|typed)\b|your (?:text|written [a-z]+)\b",
        _split(
            "descri|transcri|text|caption|metadata|info|details|tags|labels|summary|given|"
            "provided with|shown|handed|typed|your written|user"
        ),
        r"\b(?:descriptions?|texts?|transcripts?|caption|summary|details|information|given)\b",
    ),
    Rule(
        "described clip",
        r"(?:the |this )?described (?:audio|sounds?|clip|scene|speaker|recording|events?|voice|music|segment)\b"
        r"|(?:described|given|provided|listed|stated|specified) (?:above|below)\b"
        r"|what(?:'s| is| was| has been) (?:described|written|provided|given|stated|listed)\b"
        r"(?! (?:away|up|back|off|to (?:him|her|them)))"
        r"|(?:written|textual) (?:descriptions?|texts?|words|content|summary|form|information|sentence)\b"
        rf"|{_IS} written (?:as|in|here|out|down)\b" + _NOT_THEIRS,
        _split("described|above|below|written|textual|what"),
        r"\b(?:written|write|described|above|below|spell)\b",
    ),
    Rule(
        "brackets",
        r"(?:in|inside|within|between|the) (?:the |square |round )*(?:parenthes[ie]s|brackets)\b|parenthetical\b"
        r"|bracketed\b",
        ("parenthe", "bracket"),
        r"\b(?:parenthe\w*|brackets?|format)\b",
    ),
    Rule(
        "data set",
        r"(?:the|this|a) (?:[a-z]+ )?(?:dataset|data set|corpus)\b|ground[- ]truth\b|file ?names?\b",
        _split("dataset|data set|corpus|ground|file"),
        r"\b(?:{noun})\b",
    ),
    # The author says that there was no sound.
    Rule(
        "no audio",
        r"(?:as|being|i'm|i am|only) (?:a|an) (?:text(?:-based|-only)?|language|ai|large language)(?: ai"
        r"| language)?(?: model| assistant)\b|text[- ](?:only|based)\b"
        r"|(?:can(?:no|')t|cannot|can not|unable to|not able to|couldn't)(?: actually| directly| really| physically)? "
        r"(?:listen to|play|process|access|open|hear) (?:audio|(?:the|this|your|any) (?:actual |original )?"
        r"(?:audio|clip|recording|file|sound file))\b|there(?:'s| is| was) no actual (?:audio|sound|recording|clip)\b"
        r"|no (?:audio|sound file|recording|clip)(?: file| clip)? (?:was|is|has been|were)(?: actually)? "
        r"(?:provided|attached|given|shared|included|uploaded|supplied|available)\b"
        r"|(?:don't|do not|didn't) (?:actually )?have (?:direct |any )?(?:access|the ability)"
        r" to (?:the |any |actual |this |listen|hear)"
        r"|without (?:actually |directly )?(?:hearing|listening to|having|access to)(?: the| any| this)?(?: actual)? "
        r"(?:audio|clip|recording|sound)\b"
        r"|(?:the )?actual (?:audio|recording|sound)(?: file| clip)? (?:isn't|is not|wasn't|was not)\b",
        _split(
            "model|assistant|text-|text only|text based|cannot |can't |can not |couldn't |unable|"
            "not able|access|ability|without |actual|no audio|no sound|no recording|no clip"
        ),
    ),
    # Pieces of the description itself.
    Rule(
        "times in brackets",
        r"time ?-?stamps?\b|\[\d{1,2}:\d{2}(?::\d{2})?(?:\.\d+)? ?[-\u2013\u2014] ?\d{1,2}:\d{2}(?::\d{2})?(?:\.\d+)?",
        ("[", "stamp"),
        r"\b(?:time ?-?stamp\w*|brackets?|segment\w*|subtitles?|srt|transcri\w*|diari[sz]\w*|when|time (?:codes?"
        r"|spans?|ranges?))\b",
    ),
    Rule(
        "attribute: value",
        rf"(?<![\w*-] )(?<![\w*])(?:{_KEYS}): ?(?!(?:i|it|the|he|she|a|an|they|there|my|this|that)\b)"
        r"[a-z0-9][\w'/%-]*(?: [\w'/%-]+){0,2}(?=[,;.)\]]|$)|duration: ?\d+(?:\.\d+)? ?s\b",
        (":",),
        r"\b(?:json|yaml|xml|csv|tables?|formats?|list\w*|bullets?|fields?|keys?|colons?|fill|forms?|template|label\w*"
        r"|structured|profile|card|labels?|tags?|attributes?|report|sheet|properties|begin|starts?|starting)\b|:",
    ),
    Rule(
        "caption in bars",
        r"(?<!\|)\|[a-z][^|\n]{0,60}[a-z]\|(?![^\n]*\|)",
        ("|",),
        r"\b(?:tables?|markdown|columns?|format|bars?|pipes?|separat\w*)\b",
    ),
)

#: Language -> rules.
LEXICON = {"en": ENGLISH}
