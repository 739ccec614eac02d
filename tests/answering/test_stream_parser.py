"""From ids to text: thinking apart from the answer, stop texts, budgets, and never a half character."""

import pytest

from nemo_desta.answering.sampling import Sampling
from nemo_desta.answering.stream_parser import StreamParser
from nemo_desta.core.prompting import PromptBuilder
from nemo_desta.core.thinking import CUT_SENTENCE, ThinkFormat
from nemo_desta.testing.data import tiny_tokenizer

OPENED = ThinkFormat(opening="<think>\n")
WRITTEN = ThinkFormat()


@pytest.fixture(scope="module")
def prompts():
    return PromptBuilder(tiny_tokenizer("chatml"))


def write(prompts, text, *, format=None, end=True, **sampling):
    """Feed a text's ids; returns the parser, the pieces per step, the ids fed."""
    sampling.setdefault("max_new_tokens", 1000)
    parser = StreamParser(prompts, Sampling(**sampling), format=format, end_ids=[prompts.end_of_turn_id])
    ids = prompts.tokenize(text) + ([prompts.end_of_turn_id] if end else [])
    steps = []
    for token in ids:
        steps.append(parser.push(token))
        if parser.finish:
            break
    return parser, steps, ids


def parts(steps):
    """Thought and answer, put together from the pieces."""
    pieces = [piece for step in steps for piece in step]
    return tuple("".join(p.text for p in pieces if p.thinking is which) for which in (True, False))


@pytest.mark.parametrize(
    "text",
    [
        "Hello, world.",
        "  padded \n text \n\n",
        "naïve café – 東京 🎧🎻 ok",
        "x",
        "a\u0301bc \U0001f468\u200d\U0001f469",
    ],
)
def test_pieces_joined_are_the_text_without_white_space_at_its_ends(prompts, text):
    parser, steps, _ = write(prompts, text)
    assert parts(steps) == ("", text.strip())
    assert parser.finish == "stop"
    assert all("\ufffd" not in piece.text for step in steps for piece in step)


def test_text_comes_out_while_it_is_written(prompts):
    _, steps, ids = write(prompts, "one two three four five six seven")
    assert sum(bool(step) for step in steps) > len(ids) // 2


def test_bytes_that_never_become_a_character_are_not_swallowed(prompts):
    whole = prompts.tokenize("🎧")
    if len(whole) < 2:
        pytest.fail("the tokenizer should need several tokens for this character")
    parser = StreamParser(
        prompts, Sampling(max_new_tokens=len(whole) - 1), format=None, end_ids=[prompts.end_of_turn_id]
    )
    pieces = [piece for token in whole[:-1] for piece in parser.push(token)]
    assert parser.finish == "length"
    assert "".join(piece.text for piece in pieces) == "\ufffd" * len("".join(p.text for p in pieces)) != ""


@pytest.mark.parametrize(
    ("format", "text", "thought", "answer"),
    [
        (OPENED, "It rains.\n</think>\n\nRain.", "It rains.", "Rain."),
        (OPENED, "a < b </thin </think>x</think>y", "a < b </thin", "x</think>y"),
        (OPENED, "never ends", "never ends", ""),
        (WRITTEN, "<think>\nhm\n</think>\nYes.", "hm", "Yes."),
        (WRITTEN, "\n <think>hm</think>Yes.", "hm", "Yes."),
        (WRITTEN, "<thinly sliced>", "", "<thinly sliced>"),
        (WRITTEN, "<thi", "", "<thi"),
        (WRITTEN, "No thought.", "", "No thought."),
        (None, "<think>x</think>y", "", "<think>x</think>y"),
    ],
)
def test_the_thought_is_told_apart(prompts, format, text, thought, answer):
    _, steps, _ = write(prompts, text, format=format)
    assert parts(steps) == (thought, answer)


def test_a_stop_text_ends_the_answer_and_is_left_out(prompts):
    parser, steps, ids = write(prompts, "one, two, three, END four", stop=("END", "never"))
    assert parts(steps) == ("", "one, two, three,")
    assert parser.finish == "stop"
    assert len(steps) < len(ids)


def test_a_stop_text_in_the_thought_does_not_count(prompts):
    _, steps, _ = write(prompts, "the END is near</think>so END it", format=OPENED, stop=("END",))
    assert parts(steps) == ("the END is near", "so")


def test_what_only_looks_like_a_stop_text_is_handed_out(prompts):
    _, steps, _ = write(prompts, "EN EN EN", stop=("END",))
    assert parts(steps) == ("", "EN EN EN")


def test_the_token_limit_is_a_reason_of_its_own(prompts):
    parser, steps, _ = write(prompts, "one two three four five six", max_new_tokens=5)
    assert parser.finish == "length"
    assert parser.num_new_tokens == 5 == len(steps)
    assert "one two three four five six".startswith(parts(steps)[1])


def test_a_thought_over_its_budget_is_told_to_end(prompts):
    parser = StreamParser(
        prompts,
        Sampling(max_new_tokens=100, max_thinking_tokens=6),
        format=OPENED,
        end_ids=[prompts.end_of_turn_id],
    )
    said, forced = [], []
    for token in prompts.tokenize("this thought goes on and on and on without any end in sight"):
        said += parser.push(token)
        if forced := list(parser.forced_ids()):
            break
    assert parser.num_new_tokens == 6
    for token in forced:
        said += parser.push(token)
        assert parser.forced_ids() == ()
    assert parser.num_new_tokens == 6, "what it was made to say is not its own"
    assert not parser.thinking
    for token in prompts.tokenize("\n\nRain.") + [prompts.end_of_turn_id]:
        said += parser.push(token)
    thought, answer = parts([said])
    assert thought.endswith(f"\n\n{CUT_SENTENCE}") and answer == "Rain."
    assert parser.finish == "stop"


def test_a_thought_within_its_budget_and_an_llm_without_thoughts_are_left_alone(prompts):
    for format, text in ((OPENED, "short</think>and a long answer after it"), (None, "no thought but a long answer")):
        parser = StreamParser(
            prompts, Sampling(max_thinking_tokens=8), format=format, end_ids=[prompts.end_of_turn_id]
        )
        for token in prompts.tokenize(text):
            parser.push(token)
            assert parser.forced_ids() == ()


def test_a_thought_in_the_middle_of_its_closing_tag_may_finish_it(prompts):
    text = "hm</think>Yes."
    ids = prompts.tokenize(text)
    inside = next(n for n in range(1, len(ids)) if prompts.tokenizer.decode(ids[:n]).endswith(("</", "</t", "</th")))
    parser = StreamParser(
        prompts, Sampling(max_thinking_tokens=inside), format=OPENED, end_ids=[prompts.end_of_turn_id]
    )
    said = []
    for token in ids:
        said += parser.push(token)
        assert parser.forced_ids() == ()
    said += parser.push(prompts.end_of_turn_id)
    assert parts([said]) == ("hm", "Yes.")
