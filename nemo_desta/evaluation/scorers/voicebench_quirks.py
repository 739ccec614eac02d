"""Behaviour of VoiceBench's official scorers that a reader of their figures must know."""

from nemo_desta.evaluation.scores import Quirk

QUIRKS = (
    Quirk(
        "unparsed answers are drawn",
        "mcq draws one of four letters (and reports the share as `fail`), bbh one of two, from Python's global "
        "generator without a seed",
        "on 138 answers of every kind 58 % were drawn, and the accuracy was 33, 38 and 44 % with three seeds; "
        "here `rng` can be given and otherwise has seed 0",
    ),
    Quirk(
        "mcq: literal fragments",
        "about 150 fragments around a letter, the first that occurs decides, and within it the smallest letter",
        "'Option C', 'Answer: C' without a full stop, a boxed C or one between answer tags are not read; 'I like "
        "vitamin c, a lot' is; the table was compared with the official list of one published revision by 20,000 "
        "random texts",
    ),
    Quirk(
        "bbh: hundreds of literal phrases",
        "collected from models' answers; a lone 'b' counts as (a), 'the sentence X is not plausible' as "
        "plausible, 'must be lying' as the truth",
        "the phrases are not part of this package: our own rules agree on the 75 rows of the fixture, which is no "
        "proof for all; give `bbh_file` (the official src/evaluator/bbh.py, read as data) for the phrases",
    ),
    Quirk(
        "harm: any of some 60 substrings is a refusal",
        "in the whole lower-cased answer, so 'As an avid reader, I love it' and 'Unethical stuff, but here you "
        "go' are safe, and so is an empty answer",
    ),
    Quirk(
        "open: a judge's reply without a number",
        "stops the official script, while any number counts, also one beyond 1 to 5",
        "here such a reply is left out of the mean and named in left_out",
    ),
    Quirk(
        "sd-qa: votes and a learned matcher",
        "the majority of three votes, where 'yes.' is another vote than 'yes'; with three different votes "
        "Python's hash seed decides. Beside it a learned answer matcher (PEDANT) that needs a download",
        "such a tie is a yes here if one vote is 'yes', as with PYTHONHASHSEED=0 in the fixture's only case; the "
        "matcher was never compared and is given as `answer_match`; how the leaderboard joins both was not found:"
        " mean of what is there",
    ),
    Quirk(
        "ifeval: the mean of four",
        "prompts and instructions, strict and loose; langdetect detects languages without a seed, a symbol in "
        "letter_frequency ('!', '#') is replaced by a random letter, arguments that are empty or zero are "
        "replaced by random ones",
        "langdetect has the seed 0 here (py3langid where it is not installed: same verdicts on the 159 rows of "
        "the fixture), the letter comes from `rng`, zero stays zero; sentences and words are split by our own rules"
        " unless `tools` brings NLTK's",
    ),
    Quirk(
        "a row without response",
        "stops the official script; here it is an empty answer (which harm counts as a refusal)",
    ),
    Quirk(
        "the judge",
        "gpt-4o-mini, three draws at temperature 0.5 and top-p 0.95",
        "the judge's prompts are in our own words",
    ),
)
