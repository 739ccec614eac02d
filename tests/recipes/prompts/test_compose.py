"""The composer, and sets of prompts by name."""

from collections import Counter
from pathlib import Path

import pytest

from nemo_desta.recipes.prompts import Constraint, Prompt, compositions, obeys, prompt_set
from nemo_desta.recipes.prompts.compose import _formats, base_prompts, compose
from nemo_desta.recipes.prompts.wording import leak


def test_the_composed_set_holds_the_pool_and_thousands_of_different_prompts() -> None:
    pool, composed = prompt_set("pool"), prompt_set("composed")
    assert list(composed[: len(pool)]) == list(pool)
    texts = {prompt.prompt for prompt in composed}
    assert len(texts) >= 3000 and len(texts) > 0.999 * len(composed)
    assert len({prompt.prompt_id for prompt in composed}) == len(composed)


def test_each_domain_alone_is_composed_to_thousands() -> None:
    for domain in ("speech", "sound", "music"):
        bases = [prompt for prompt in base_prompts() if prompt.domains == (domain,)]
        assert len({prompt.prompt for prompt in compositions(bases[::3])}) >= 3000


def test_the_seed_chooses_among_the_compositions() -> None:
    bases = base_prompts()[:40]
    everything = {prompt.prompt_id: prompt for prompt in compositions(bases)}
    one, same, other = compose(bases), compose(bases), compose(bases, seed=1)
    assert one == same and len(one) == len(other)
    assert all(everything[prompt.prompt_id] == prompt for prompt in [*one, *other])
    assert sum(a == b for a, b in zip(one, other, strict=True)) < 0.6 * len(one)


def test_a_composition_is_its_base_with_a_format_that_it_says() -> None:
    bases = {prompt.prompt_id: prompt for prompt in base_prompts()}
    counts: Counter[str] = Counter()
    for prompt in compose(base_prompts()):
        base = bases[prompt.prompt_id.partition("+")[0]]
        assert base.prompt in prompt.prompt and base.constraint is None
        assert (prompt.kind, prompt.requires, prompt.domains) == (base.kind, base.requires, base.domains)
        assert obeys(prompt.constraint, "") in (False, None)
        said = prompt.prompt.replace(base.prompt, "").casefold()
        assert all(str(arg).casefold() in said for arg in prompt.constraint.args), said
        counts[prompt.constraint.name] += 1
    assert len(counts) >= 20 and min(counts.values()) >= 20


def test_wordings_of_formats_speak_of_sound_and_leave_no_holes() -> None:
    base = Prompt("b", "Which mood?", requires=("emotion",))
    for form in _formats():
        for wording in form.wordings:
            text = form.put(base, form.arguments(base)[0], wording).prompt
            assert leak(text) is None and not any(hole in text for hole in ("{0}", "{1}", "{all}", "{prompt}"))


def test_only_formats_that_suit_a_prompt_are_put_to_it() -> None:
    def names(prompt: Prompt) -> set[str]:
        return {composed.constraint.name for composed in compose([prompt])}

    gender = Prompt("g", "Man or woman?", requires=("gender",), kind="ask")
    assert "one_word" in names(gender) and "letter" not in names(gender)
    assert Constraint("json_keys", ("gender",)) in {composed.constraint for composed in compose([gender])}
    assert "one_word" not in names(Prompt("t", "What is said?", requires=("transcript",), kind="ask"))
    assert "letter" in names(Prompt("m", "{options}", requires=("gender",), kind="multiple_choice"))
    assert names(Prompt("f", "In one word?", kind="ask", constraint=Constraint("one_word"))) == set()
    assert names(Prompt("x", "?", kind="of my own")) == set()


def test_sets_by_path_and_by_list(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("- prompts: [Who?, What?]\n")
    assert [prompt.prompt for prompt in prompt_set(file)] == ["Who?", "What?"]
    assert list(prompt_set(str(file))) == list(prompt_set([{"prompts": ["Who?", "What?"]}]))
    assert list(prompt_set([Prompt("a", "?")])) == [Prompt("a", "?")]
    with pytest.raises(FileNotFoundError, match="'compsed' is no file and none of the sets composed, pool"):
        prompt_set("compsed")
    with pytest.raises(ValueError, match="no prompts"):
        prompt_set([])
