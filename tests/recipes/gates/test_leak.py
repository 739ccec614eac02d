"""The leak check on labelled sentences, what prompts and speakers allow, and the LLM judge over scripted engines."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemo_desta.errors import ConfigError
from nemo_desta.recipes.engines.base import Generation, Request, SamplingConfig
from nemo_desta.recipes.gates.leak import LeakCheck, LeakJudge, read_verdict
from nemo_desta.recipes.gates.leak_lexicon import LEXICON, Rule
from nemo_desta.recipes.items import Rejection

HERE = Path(__file__).parent
#: Sentences that give away that a text was read, and sentences on the same subjects that do not.
LEAKING = (HERE / "leaking.txt").read_text(encoding="utf-8").splitlines()
HARMLESS = (HERE / "harmless.txt").read_text(encoding="utf-8").splitlines()
DESCRIPTION = "[00:00-00:02] I lost the transcript. (Gender: female, Mood swing: mild, Duration: 2s)"


@pytest.fixture(scope="module")
def check() -> LeakCheck:
    return LeakCheck()


def verdict(check: LeakCheck, response: str, prompt: str = "Who speaks?", description: str = "") -> Rejection | None:
    return check.check({"response": response, "prompt": prompt, "seed_description": description})


def test_labelled_sentences_are_told_apart(check: LeakCheck) -> None:
    found = [s for s in LEAKING if check.find(s)]
    wrong = [s for s in HARMLESS if check.find(s)]
    precision, recall = len(found) / (len(found) + len(wrong)), len(found) / len(LEAKING)
    assert min(len(LEAKING), len(HARMLESS)) >= 60 and len({*LEAKING, *HARMLESS}) == len(LEAKING) + len(HARMLESS)
    assert precision >= 0.95 and recall >= 0.95, (sorted({*LEAKING} - {*found}), wrong)


def test_every_rule_finds_something_and_is_triggered_by_it(check: LeakCheck) -> None:
    found = {leak.rule for s in LEAKING for leak in check.find(s)}
    assert found == {rule.name for rule in LEXICON["en"]}
    slow = LeakCheck([Rule(r.name, r.pattern, (), r.asked) for r in LEXICON["en"]])  # tries every rule everywhere
    for sentence in [*LEAKING, *HARMLESS]:
        assert slow.find(sentence) == check.find(sentence)


def test_capitals_and_apostrophes_make_no_difference(check: LeakCheck) -> None:
    for sentence in LEAKING:
        if check.find(sentence):
            assert check.find(sentence.upper()) and check.find(sentence.replace("'", "\u2019"))


def test_leak_says_where_and_what(check: LeakCheck) -> None:
    text = "İt rains. Later, the description says so.\nThe Metadata, too."
    assert [(leak.phrase, leak.rule) for leak in check.find(text)] == [
        ("the description", "description"),
        ("the description says", "written source speaks"),
        ("Metadata", "metadata"),
    ]
    assert all(text[slice(*leak.span)] == leak.phrase for leak in check.find(text))
    assert verdict(check, text) == Rejection(
        "leak", "description: 'İt rains. Later, the description says so. The Metadata, too.'"
    )


@pytest.mark.parametrize(
    ("prompt", "response"),
    [
        ("Transcribe what is said.", "Transcription: hello. The transcript is short."),
        ("Write a description of the scene.", "The description: a street in the rain."),
        ("Caption this.", "The caption: rain on a roof."),
        ("Tag this clip.", "These tags fit: rain, roof. It is tagged as rain."),
        ("Give three labels.", "The labels are rain, roof and wind."),
        ("Answer with 'Gender: <value>'.", "Gender: female"),
        ("List the attributes.", "Gender: female\nEmotion: happy"),
        ("Write subtitles with timestamps.", "[00:00-00:02] Good morning."),
        ("Make a table of the sounds.", "|Rain|"),
        ("Does the following description fit? A dog barks.", "No, the description says a dog, but a cat meows."),
        ("Is the accent mentioned, or unspecified?", "It is unspecified."),
    ],
)
def test_what_the_prompt_asks_for_is_no_leak(check: LeakCheck, prompt: str, response: str) -> None:
    assert check.find(response)
    assert verdict(check, response, prompt) is None
    assert verdict(check, response) is not None


@pytest.mark.parametrize(
    ("prompt", "response"),
    [
        ("Describe the audio.", "The description says that it rains."),
        ("Write a description of the scene.", "According to the metadata, it rains."),
        ("Write a description.", "A street. The description does not mention the weather."),
        ("Transcribe what is said.", "Hello. The metadata says so."),
        ("Answer in JSON.", '{"answer": "according to the text, rain"}'),
        ("List the sounds.", "As described, rain and wind."),
    ],
)
def test_a_prompt_allows_no_more_than_it_asks_for(check: LeakCheck, prompt: str, response: str) -> None:
    assert verdict(check, response, prompt) is not None


def test_words_of_the_clip_are_no_leak(check: LeakCheck) -> None:
    spoken = "She says that she lost the transcript."
    assert verdict(check, spoken) is not None
    assert verdict(check, spoken, description=DESCRIPTION) is None
    assert verdict(check, "According to the transcript, she is sad.", description=DESCRIPTION) is not None
    assert not check.find('He says: "According to the description, it rains."')
    assert check.find('The description says "it rains".')
    assert check.find('"According to the description, it rains."')  # an answer in quotation marks


def test_pairs_copied_from_the_description_are_leaks(check: LeakCheck) -> None:
    response = "It is sad (mood swing: mild)."
    assert verdict(check, response) is None
    assert verdict(check, response, description=DESCRIPTION).detail.startswith("attribute: value: 'Mood swing: mild'")
    assert verdict(check, response, "Answer in the format 'key: value'.", DESCRIPTION) is None
    assert verdict(check, "[00:00-00:02] I lost it.", description=DESCRIPTION).reason == "leak"


def test_thoughts_count_as_much_as_answers(check: LeakCheck) -> None:
    assert verdict(check, "The description says female.\n</think>\n\nA woman speaks.").detail.startswith("description")
    assert verdict(check, "I hear a high voice.\n</think>\n\nA woman speaks.") is None


def test_lexicon_of_ones_own() -> None:
    own = LeakCheck([Rule("blackboard", r"on the blackboard\b", asked=r"\bblackboard\b")])
    assert [leak.rule for leak in own.find("It stands on the blackboard.")] == ["blackboard"]
    assert verdict(own, "It is on the blackboard.", "What is on the blackboard?") is None
    assert not own.find("The description says so.")
    assert len(LeakCheck([*LEXICON["en"], own.rules[0]]).find("The text says it is on the blackboard.")) == 2
    with pytest.raises(ConfigError, match="'bad' has a capturing group"):
        LeakCheck([Rule("bad", "(x)")])
    with pytest.raises(ConfigError, match="no leak lexicon for language 'tlh'; there is one for en"):
        LeakCheck(languages=["tlh"])


@pytest.mark.parametrize(
    ("text", "leaks"),
    [
        ("It speaks of a description.\nYES", True),
        ("Nothing to see.\n\nNO\n", False),
        ("Final answer: **No**", False),
        ("I was asked for YES or NO.\n- My verdict is: yes.\n---\n", True),
        ("<think>\nYES?\n</think>\n\nIt is fine.\nNO.", False),
        ("There is no leak.", None),
        ("YES and NO", None),
        ("NO\nbut let me think about it again", None),
        ("<think>\nYES", None),
        ("", None),
    ],
)
def test_verdicts_are_read_from_the_last_line(text: str, leaks: bool | None) -> None:
    assert read_verdict(text) is leaks


class Judge:
    """Says one thing after the other."""

    name, revision, concurrency, prompts = "judge", None, 8, None

    def __init__(self, *says: str | Generation) -> None:
        self.says = list(says)
        self.requests: list[Request] = []

    async def generate(self, request: Request) -> Generation:
        self.requests.append(request)
        said = self.says.pop(0)
        return said if isinstance(said, Generation) else Generation(said, False)

    async def close(self) -> None: ...


ROW = {"prompt": "Who speaks? {response}", "response": "A woman, says the note."}


def judged(engine: Judge, **options: Any) -> Rejection | None:
    return asyncio.run(LeakJudge(engine, **options)(ROW, seed=4))


def test_judge_keeps_and_drops() -> None:
    assert judged(Judge("Only sounds.\nNO")) is None
    engine = Judge("It mentions a note.\nYES")
    assert judged(engine, sampling=SamplingConfig(99, 0.3)) == Rejection("leak (judge)", "It mentions a note. YES")
    asked = engine.requests[0].messages[0]["content"]
    assert "=== Question ===\nWho speaks? {response}\n=== Reply ===\nA woman, says the note.\n===" in asked
    assert engine.requests[0].sampling.max_new_tokens == 99


def test_rambling_judge_is_asked_again_with_another_seed() -> None:
    engine = Judge("Well, it depends on what you call a leak", "Now I see.\nNO")
    assert judged(engine) is None
    assert engine.requests[0].seed != engine.requests[1].seed
    assert engine.requests[0].messages == engine.requests[1].messages


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("Maybe", "no YES or NO: Maybe"),
        (Generation("Let me think\nNO", True), "cut: Let me think NO"),
        (Generation("", False, "HTTP 500"), "HTTP 500"),
    ],
)
def test_judge_without_verdict_drops_unless_told_to_keep(said: Any, why: str) -> None:
    assert judged(Judge(said, said)) == Rejection("judge unclear", why)
    assert judged(Judge(said), retries=0) == Rejection("judge unclear", why)
    assert judged(Judge(said, said), on_unclear="keep") is None


def test_judge_that_cannot_work_is_refused() -> None:
    with pytest.raises(ConfigError, match="'drop' or 'keep', found 'perhaps'"):
        LeakJudge(Judge(), on_unclear="perhaps")
    with pytest.raises(ConfigError, match="holds no {response}"):
        LeakJudge(Judge(), request="{prompt}?")


def over_http(answer: Callable[[str], Any], rows: list[dict[str, Any]]) -> list[Rejection | None]:
    pytest.importorskip("aiohttp")
    from nemo_desta.recipes.engines.openai import OpenAIEngine
    from nemo_desta.testing.openai_server import Faults, ScriptedServer

    async def judge_all(url: str, model: str) -> list[Rejection | None]:
        engine = OpenAIEngine(url, model, api="chat", first_wait_secs=0.01, longest_wait_secs=0.02)
        judge = LeakJudge(engine)
        try:
            return list(await asyncio.gather(*(judge(row, seed=i) for i, row in enumerate(rows))))
        finally:
            await engine.close()

    with ScriptedServer(answer, faults=Faults(http_500=0.1)) as server:
        return asyncio.run(judge_all(server.url, server.model))


def test_judge_behind_a_server_sorts_good_from_bad() -> None:
    rows = [{"prompt": "What is it?", "response": s} for pair in zip(LEAKING, HARMLESS, strict=False) for s in pair][
        :60
    ]
    bad = {row["response"] for row in rows[::2]}

    def answer(prompt: str) -> str:
        reply = prompt.partition("=== Reply ===\n")[2].partition("\n=== End ===")[0]
        if reply == rows[6]["response"]:
            return "I would rather not say"
        return "It reads from notes.\nYES" if reply in bad else "Only what can be heard.\nNO"

    verdicts = over_http(answer, rows)
    reasons = [found and found.reason for found in verdicts]
    expected = ["leak (judge)" if i % 2 == 0 else None for i in range(60)]
    expected[6] = "judge unclear"
    assert reasons == expected


@pytest.mark.parametrize(
    ("response", "leaks"),
    [
        ("Accent: Scottish.", True),
        ("A woman (accent: Scottish) speaks.", True),
        ("She speaks.\n- Accent: Scottish", True),
        ("Gender: female, Accent: Scottish", True),
        ("The speaker has this accent: Scottish.", False),
    ],
)
def test_a_copied_field_is_told_from_a_sentence(response: str, leaks: bool) -> None:
    row = {"seed_description": "[00:00-00:02] aye (Gender: female, Accent: Scottish, Duration: 2s)"}
    row |= {"prompt": "Who speaks?", "response": response}
    assert (LeakCheck().check(row) is not None) == leaks


@pytest.mark.parametrize("prompt", ["Name three things about this audio as a numbered list.", "Report what you hear."])
def test_a_list_is_not_the_description_itself(check: LeakCheck, prompt: str) -> None:
    copied = "1. The audio is a sound class: rain, Sound group: nature, Duration: 5s"
    assert verdict(check, copied, prompt) is not None
    assert verdict(check, "Gender: male, Emotion: happy", prompt) is not None
    assert verdict(check, "1. Rain\n2. Wind\n3. Accent: none", prompt) is None
    assert verdict(check, "Gender: male, Emotion: happy", "List the attributes.") is None
    assert verdict(check, "Gender: male, Emotion: happy", "Fill in a profile of the speaker.") is None


def test_a_copied_pair_behind_an_article_is_a_leak(check: LeakCheck) -> None:
    assert verdict(check, "She is in a mood swing: mild.", description=DESCRIPTION) is not None
    assert verdict(check, "She has this mood swing: mild.", description=DESCRIPTION) is None
