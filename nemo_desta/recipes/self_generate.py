"""Self-generation (DeSTA): a frozen LLM answers prompts about seed descriptions. Its answers are the training targets.

clip -> audio check -> description -> prompts (drawn from a pool, or proposed by an LLM) -> answer -> [self-rephrasing]
-> gates -> row. `SelfGenerate` is the stage; the driver in `nemo_desta.recipes.pipeline` owns files and resume.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from nemo_desta.errors import RowError, row_guard
from nemo_desta.recipes.ask import Answerer, Judge, first_problem
from nemo_desta.recipes.describe import NOT_AUDIBLE, describe
from nemo_desta.recipes.engines.base import Generation
from nemo_desta.recipes.items import Item, Outcome, Rejection, Wanted
from nemo_desta.recipes.languages import ENGLISH, Languages
from nemo_desta.recipes.prompts import Prompt
from nemo_desta.recipes.rephrase import Rephraser

#: (attempt, seed) -> the row as far as it got, and why it is rejected.
Draft = Callable[[int, int], Awaitable[tuple[dict[str, Any] | None, Rejection | None]]]


@dataclass
class ClipRows:
    """Which rows a clip becomes, before any LLM is queried.

    ``draw`` returns up to so many prompts for a clip; None leaves them to an LLM. ``check_clip`` and ``check_audio``
    say why the clip is unusable or None; ``check_audio`` also returns its length in seconds. ``draw`` gets the clip
    with its values in the row's language. ``spoken``: the clip's transcript stands in place of a description.
    ``max_secs``: longer clips are left out.
    """

    draw: Callable[[Mapping[str, Any], int], Sequence[Prompt]] | None
    rows_per_clip: int = 1
    check_clip: Callable[[Mapping[str, Any]], Rejection | None] | None = None
    check_audio: Callable[[Mapping[str, Any]], tuple[Rejection | None, float | None]] | None = None
    dialect: str = "desta25"
    not_audible: Collection[str] = NOT_AUDIBLE
    seed: int = 0
    languages: Languages = field(default_factory=Languages)
    spoken: bool = False
    max_secs: float | None = None

    def __call__(self, unit: Mapping[str, Any]) -> list[Wanted]:
        """``rows_per_clip`` rows; a row that cannot be made carries the reason. An error in a clip's data rejects only
        its own rows ("unusable clip")."""
        ids, clip = [f"{unit['id']}-p{k}" for k in range(self.rows_per_clip)], dict(unit)
        try:
            with row_guard():
                if (problem := self._problem(clip)) is None:
                    return self._wanted(clip, ids)
        except RowError as error:
            problem = Rejection("unusable clip", str(error))
        return [Wanted(row_id, None, problem) for row_id in ids]

    def _wanted(self, clip: dict[str, Any], ids: list[str]) -> list[Wanted]:
        language = self.languages.of_clip(clip)
        if self.spoken:
            description = str(clip["transcript"])
        else:
            description = describe(clip, self.dialect, exclude=self.not_audible, language=language)
        prompts = [None] * len(ids) if self.draw is None else self.draw(language.localize(clip), len(ids))
        lacking = Rejection("no fitting prompt", f"{len(prompts)} of {len(ids)} prompts fit")
        return [
            Wanted(row_id, Item(row_id, clip, description, prompts[k], row_seed(self.seed, row_id), language))
            if k < len(prompts)
            else Wanted(row_id, None, lacking)
            for k, row_id in enumerate(ids)
        ]

    def _problem(self, clip: dict[str, Any]) -> Rejection | None:
        """Why the clip is rejected, or None. Fills in the clip's length when the corpus does not state it."""
        problem = self.check_clip(clip) if self.check_clip else None
        if problem is None and self.check_audio is not None:
            problem, seconds = self.check_audio(clip)
            if clip.get("duration") is None:
                clip["duration"] = seconds
        if problem is None and clip.get("duration") is None:
            problem = Rejection("unknown duration", "neither the corpus nor the audio file's header states it")
        if problem is None and self.max_secs is not None and clip["duration"] >= self.max_secs:
            problem = Rejection("long audio", f"{clip['duration']:g} s, the limit is {self.max_secs:g} s")
        return problem


@dataclass(kw_only=True)
class _Attempts:
    """What both stages do with a draft of a row: gate it, and draft it again where another sample may help.

    ``gate`` checks the finished row, then ``judge``, an LLM. A row that is rejected for one of the ``regenerable``
    reasons is made again, at most ``max_attempts`` times in all. ``provenance``: further fields of every row.
    ``absent_gates`` names the gates that cannot judge a row for lack of words in its language.
    """

    gate: Callable[[Mapping[str, Any], Mapping[str, Any]], Rejection | None]
    judge: Judge | None = None
    max_attempts: int = 3
    regenerable: Collection[str] = frozenset()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    absent_gates: Callable[[Mapping[str, Any]], list[str]] = lambda row: []

    def _about_language(self, row: dict[str, Any]) -> None:
        """Write into a row in another language than English which gates are absent."""
        if absent := self.absent_gates(row) if "text_language" in row else []:
            row["gates_absent"] = absent
        else:
            row.pop("gates_absent", None)

    async def _outcome(self, draft: Draft, seed: int, clip: Mapping[str, Any], used: list[int]) -> Outcome:
        """``used``: prompt tokens and new tokens, to which ``draft`` adds its own."""
        row = None
        for attempt in range(self.max_attempts):
            seed_now = seed if attempt == 0 else row_seed(seed, f"attempt {attempt}")
            drafted, verdict = await draft(attempt, seed_now)
            row = drafted or row
            verdict = verdict or self.gate(row, clip)
            if verdict is None and self.judge is not None:
                verdict = await self.judge(row, seed=seed_now)
            if verdict is None or verdict.reason not in self.regenerable:
                break
        return Outcome(row, verdict, attempt + 1, *used)


@dataclass
class SelfGenerate(_Attempts):
    """The stage from clips to rows.

    ``answerer`` queries the LLM; ``rephraser``, if given, rewrites its answer before the gates. ``propose`` lets an
    LLM write the prompts (`PromptProposer`). ``system``: the system message that rows begin with, may be empty.
    """

    rows: ClipRows
    answerer: Answerer
    propose: Any | None = None
    rephraser: Rephraser | None = None
    system: str | None = None
    audio_locator_tag: str = "<|AUDIO|>"

    @property
    def rows_per_unit(self) -> int:
        return self.rows.rows_per_clip

    def wanted(self, unit: Mapping[str, Any]) -> list[Wanted]:
        """The rows of one clip, see `ClipRows`."""
        return self.rows(unit)

    async def make(self, item: Item) -> Outcome:
        """The row of one clip and one prompt."""
        used = [0, 0]
        prompt = item.prompt
        if prompt is None:
            proposed = await self.propose(item.id, item.clip, item.description, 1, seed=item.seed)
            used = [proposed.prompt_tokens, proposed.new_tokens]
            if not proposed.prompts:
                detail = "; ".join(f"{text[:60]!r}: {why}" for text, why in proposed.rejected[:3]) or "none written"
                return Outcome(None, Rejection("no usable proposal", detail), 0, *used)
            prompt = proposed.prompts[0]

        async def draft(attempt: int, seed: int) -> tuple[dict[str, Any] | None, Rejection | None]:
            answer = await self.answerer(item.description, prompt, seed=seed)
            used[:] = used[0] + answer.prompt_tokens, used[1] + answer.new_tokens
            if problem := first_problem(answer):
                return None, problem
            row = self._row(item, prompt, answer, attempt)
            return row, await _rephrase(row, self.rephraser, seed, used) if self.rephraser else None

        return await self._outcome(draft, item.seed, item.clip, used)

    def _row(self, item: Item, prompt: Prompt, answer: Generation, attempt: int) -> dict[str, Any]:
        clip = item.clip
        audio = {"audio": clip["audio"], "text": clip.get("transcript"), "duration": clip["duration"]}
        row = {
            "id": item.id,
            "dataset": clip["source"],
            "seed_description": item.description,
            "prompt": prompt.prompt,
            "messages": [
                *([] if self.system is None else [{"role": "system", "content": self.system}]),
                {
                    "role": "user",
                    "content": f"{self.audio_locator_tag}\n{prompt.prompt}".rstrip("\n"),
                    "audios": [audio],
                },
            ],
            "response": answer.text,
            "truncated": answer.truncated,
            "stage": "self_generate",
            "prompt_id": prompt.prompt_id,
            "prompt_kind": prompt.kind,
            "prompt_requires": list(prompt.requires),
        }
        if prompt.constraint is not None:
            row["constraint"] = prompt.constraint
        if item.language is not ENGLISH:
            row["text_language"] = item.language.code
            self._about_language(row)
        row |= {"seed": item.seed, "attempt": attempt}
        row |= {name: clip.get(name) for name in ("language", "split", "group", "corpus", "corpus_version")}
        row |= dict(self.provenance)
        limit = self.answerer.sampling_for(prompt).max_new_tokens
        if "sampling" in row:
            row["sampling"] = {**row["sampling"], "max_new_tokens": limit}
        return row


@dataclass
class SelfRephrase(_Attempts):
    """The stage on rows of an earlier self-generation: each row's response is rewritten, the rest is unchanged."""

    rephraser: Rephraser
    seed: int = 0
    rows_per_unit: int = 1

    def wanted(self, unit: Mapping[str, Any]) -> list[Wanted]:
        """One row per row."""
        return [Wanted(unit["id"], unit)]

    async def make(self, item: Mapping[str, Any]) -> Outcome:
        """The row with its response rewritten."""
        used = [0, 0]

        async def draft(attempt: int, seed: int) -> tuple[dict[str, Any], Rejection | None]:
            row = {**item, "attempt": attempt, **self.provenance}
            self._about_language(row)
            return row, await _rephrase(row, self.rephraser, seed, used)

        return await self._outcome(draft, row_seed(self.seed, item["id"]), {}, used)


async def _rephrase(row: dict[str, Any], rephraser: Rephraser, seed: int, used: list[int]) -> Rejection | None:
    """Rewrite ``row``'s response in place and keep the original as ``first_response``; adds the tokens to ``used``."""
    rewritten = await rephraser(row["response"], truncated=bool(row.get("truncated")), seed=seed)
    used[:] = used[0] + rewritten.prompt_tokens, used[1] + rewritten.new_tokens
    if rewritten.error is not None:
        return rewritten.error
    row |= {"first_response": row["response"], "response": rewritten.text, "truncated": rewritten.truncated}
    row["stage"] = "self_rephrase"
    return None


def row_seed(seed: int, row_id: str) -> int:
    """The seed of a row, derived from the recipe's seed and the row's id."""
    return int.from_bytes(blake2b(f"{seed}:{row_id}".encode(), digest_size=4).digest(), "big")
