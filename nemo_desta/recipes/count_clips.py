"""``count=true`` of a generating recipe: clips and hours of each corpus, beside the papers' figures. Needs no LLM."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from nemo_desta.recipes.corpora import Corpus, check_audio
from nemo_desta.recipes.corpora.paper_table import Found, paper_table


def count_clips(corpora: Sequence[Corpus], roots: Mapping[str, Path], *, audio: str = "header") -> str:
    """The table, and below it clips that cannot be used, and what happens to splits.

    ``audio``: as `AudioConfig.check`; with "off" only lengths that the metadata states are counted.
    """
    found, notes = {}, []
    for corpus in corpora:
        clips, secs, unknown, unusable = 0, 0.0, 0, Counter[str]()
        for clip in corpus:
            problem, seconds = None, clip.get("duration")
            if audio != "off":
                problem, seconds = check_audio(clip, roots[corpus.name], decode=audio == "decode")
            if problem is not None:
                unusable[problem.reason] += 1
                continue
            clips, secs, unknown = clips + 1, secs + (seconds or 0.0), unknown + (seconds is None)
        known = clips - unknown
        found[corpus.name] = Found(clips, secs / 3600 * clips / known if known else None)
        notes += [f"{corpus.name}: {count:,} clips with {reason} left out" for reason, count in unusable.items()]
        if unknown:
            notes.append(f"{corpus.name}: {unknown:,} clips have no length; hours are those of the others, scaled up")
        notes += corpus.said_of_splits()
    return "\n".join([paper_table(found), *notes])
