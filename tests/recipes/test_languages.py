"""Languages: every file has all parts, descriptions and prompts are in it, and its gates judge a written set."""

import asyncio
import dataclasses
import json
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from nemo_desta.errors import ConfigError
from nemo_desta.recipes.describe import describe
from nemo_desta.recipes.gates import FactCheck, GatesConfig, RowGates
from nemo_desta.recipes.gates.facts import FactsConfig
from nemo_desta.recipes.gates.leak import LeakCheck
from nemo_desta.recipes.gates.text import Seen
from nemo_desta.recipes.languages import ENGLISH, Language, Languages, load_language, shipped_languages
from nemo_desta.recipes.prompts import Prompt, answerable, obeys, prompt_set
from nemo_desta.recipes.prompts.fill import _known_values
from nemo_desta.recipes.prompts.prompt import SLOT
from nemo_desta.recipes.run import run_recipe
from nemo_desta.recipes.self_generate import ClipRows, SelfRephrase

FOLDER = Path(load_language.__wrapped__.__code__.co_filename).parent
SENTENCES = Path(__file__).with_name("languages")
OTHERS = [code for code in shipped_languages() if code != "en"]
#: What a written sentence of each kind is rejected for.
REASONS = {
    "refusals": {"refusal"},
    "leaks": {"leak"},
    "other": {"wrong language", "unexpected script"},
    "clean": {None},
}
CLIP = {
    "id": "a",
    "domain": "speech",
    "duration": 2.2,
    "transcript": None,
    "attributes": {
        "gender": "male",
        "emotion": ["happy", "calm"],
        "speaking_speed": "fast",
        "pitch": "low",
        "age": "old",
    },
}
TALK = {
    **{"id": "b", "domain": "speech", "duration": 4.0, "speakers": {"x": {"gender": "female"}}},
    "segments": [{"start": 0, "end": 2, "speaker": "x"}, {"start": 2, "end": 4, "speaker": "y"}],
}


def keys(value: Any) -> Any:
    """The keys of a file down to the names of attributes."""
    return {key: set(part) if isinstance(part, dict) and key != "values" else None for key, part in value.items()}


def content(code: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{code}.yaml").read_text(encoding="utf-8"))


def written(code: str, held_out: bool = False) -> list[tuple[str, str, str]]:
    """(kind, prompt, answer) of the sentences in ``languages/<code>.yaml``."""
    found = yaml.safe_load((SENTENCES / f"{code}.yaml").read_text(encoding="utf-8"))
    lists = found["held_out"] if held_out else found
    entries = [(kind, one) for kind in REASONS for one in lists[kind]]
    return [(kind, *(one if isinstance(one, list) else (found["prompt"], one))) for kind, one in entries]


def misjudged(code: str, sentences: list[tuple[str, str, str]]) -> list[tuple[str, str, Any]]:
    """(kind, answer, verdict) of the sentences that the gates judge otherwise than written."""
    gates, language, wrong = RowGates(languages=Languages(code)), load_language(code), []
    for kind, prompt, answer in sentences:
        row = {"prompt": prompt, "response": answer, "seed_description": describe(CLIP, language=language)}
        verdict = gates.check({**row, "text_language": code}, {**CLIP, "language": code})
        if (verdict and verdict.reason) not in REASONS[kind]:
            wrong.append((kind, answer, verdict))
    return wrong


def test_the_six_languages_ship() -> None:
    assert shipped_languages() == ["de", "en", "es", "fr", "ja", "zh"]


@pytest.mark.parametrize("code", OTHERS)
def test_a_file_has_all_keys_of_the_english_one(code: str) -> None:
    own, english = content(code), content("en")
    assert keys({**own, "refusals": None, "leak": None}) == keys({**english, "refusals": None, "leak": None})
    assert set(own["description"]["names"]) == set(english["description"]["names"])
    assert set(own["facts"]["synonyms"]) == set(english["facts"]["synonyms"])
    names = (
        {rule["name"] for rule in yaml.safe_load((FOLDER.parent / own["leak"]).read_text())["rules"]}
        if isinstance(own["leak"], str)
        else {rule["name"] for rule in own["leak"]["rules"]}
    )
    assert names >= {"times in brackets", "attribute: value", "caption in bars"}


@pytest.mark.parametrize("code", OTHERS)
@pytest.mark.parametrize("dialect", ["desta25", "alarm"])
def test_a_description_has_no_english_word(code: str, dialect: str) -> None:
    language = load_language(code)
    english = {*"male female happy calm fast low old duration speaker speech first gender emotion".split()} - {
        "emotion"
    }
    for clip in (CLIP, TALK):
        text = describe(clip, dialect, language=language)
        assert english.isdisjoint(re.findall(r"[a-z]+", text.lower()))
        assert language.words.names["duration"].lower() in text.lower() and "[00:00-00:02" in text
    assert describe(CLIP, dialect) != text and language.value("gender", "male") in describe(CLIP, language=language)


@pytest.mark.parametrize("code", OTHERS)
def test_every_value_of_the_choices_has_a_word_and_is_translated_once(code: str) -> None:
    language = load_language(code)
    for name, lists in _known_values(ENGLISH).items():
        for value in (
            {v for one in lists for group in one.groups for v in group} if name in ("gender", "pitch") else ()
        ):
            assert language.value(name, value) != value or value in ("normal",)
    for name in language.values:
        for word in language.values[name].values():
            assert language.value(name, word) == word, (name, word)
    assert {"emotion", "gender", "instrument", "genre", "sound_class", "speaking_speed", "pitch"} <= {
        name for name, lists in _known_values(language).items() if any(len(one.groups) > 1 for one in lists)
    }


@pytest.mark.parametrize("code", OTHERS)
def test_names_and_values_of_the_shipped_cards_have_words(code: str) -> None:
    language, lacking = load_language(code), set()
    for path in (FOLDER.parent / "corpora/cards").glob("*.yaml"):
        card = yaml.safe_load(path.read_text(encoding="utf-8"))
        names = set(card.get("attributes") or ()) - set(card.get("not_audible") or ())
        lacking |= {name for name in names - {"actor"} if name not in language.description.names}
        for name in names & set(card.get("values") or ()):
            known = language.values.get("any", {}) | language.values.get(name, {})
            lacking |= {v for v in map(str, filter(None, card["values"][name].values())) if v.lower() not in known}
    assert {text for text in lacking if not text.isdigit()} == set()


@pytest.mark.parametrize("code", OTHERS)
def test_the_pool_is_valid_and_of_every_kind(code: str) -> None:
    language, english = load_language(code), prompt_set("pool")
    pool = prompt_set("pool", language=language)
    texts = [prompt.prompt for prompt in pool]
    assert len(set(texts)) == len(texts) >= 40
    assert {prompt.kind for prompt in pool} == {prompt.kind for prompt in english}
    assert {name for prompt in pool for name in prompt.requires} <= {name for p in english for name in p.requires}
    assert {domain for prompt in pool for domain in prompt.domains} == {"speech", "sound", "music"}
    assert {prompt.requires[0] for prompt in pool if SLOT.search(prompt.prompt)} <= set(_known_values(language))
    assert all(obeys(p.constraint, "") is False for p in pool if p.kind == "format")
    left = re.compile(r"\{\w")
    assert [text for text in texts if left.search(SLOT.sub("", text))] == []
    leaks = LeakCheck.in_language(language)
    composed = prompt_set("composed", language=language)
    assert len(composed) > 2 * len(pool) and [p.prompt for p in composed if leaks.find(p.prompt)] == []
    assert len(answerable(pool, {**CLIP, "attributes": {}})) >= 20


@pytest.mark.parametrize("code", OTHERS)
def test_choices_are_in_the_language(code: str) -> None:
    language = load_language(code)
    prompts = [Prompt(slot, f"{{{slot}}}", requires=("gender",)) for slot in ("options_or_none", "pair", "value")]
    drawn = prompt_set(prompts, language=language).draw(language.localize(CLIP), 3, seed=1)
    shown = " ".join(prompt.prompt for prompt in drawn)
    assert len(drawn) == 3 and language.choices.none in shown and not re.search(r"\b(?:male|female|or|of)\b", shown)


@pytest.mark.parametrize("code", OTHERS)
def test_the_gates_judge_the_written_set(code: str) -> None:
    sentences = written(code)
    assert len(sentences) >= 70 and misjudged(code, sentences) == []


@pytest.mark.parametrize("code", OTHERS)
def test_the_gates_judge_most_of_the_sentences_held_out(code: str) -> None:
    """docs/languages.md has the numbers."""
    sentences = written(code, held_out=True)
    missed = Counter(kind for kind, *_ in misjudged(code, sentences))
    assert len(sentences) == 33 and missed["clean"] == 0
    assert missed["refusals"] <= 3 and missed["leaks"] <= 2 and missed["other"] <= 2


@pytest.mark.parametrize("code", OTHERS)
def test_sentences_of_the_pool_pass_as_answers(code: str) -> None:
    pool = prompt_set("pool", language=load_language(code))
    asked = [p.prompt for p in pool if p.kind != "translate" and not SLOT.search(p.prompt)]
    assert len(asked) >= 60 and misjudged(code, [("clean", asked[0], answer) for answer in asked[1:]]) == []


@pytest.mark.parametrize("code", OTHERS)
def test_the_fact_check_compares_in_the_language(code: str) -> None:
    language = load_language(code)
    check = FactCheck({"gender": {"male", "female"}}, FactsConfig(), language)
    male, female = language.value("gender", "male"), language.value("gender", "female")

    def verdict(answer: str) -> Any:
        row = {"prompt": "?", "response": answer, "prompt_requires": ["gender"], "text_language": code}
        return check(Seen(row, CLIP, language=language))

    assert verdict(female).reason == "contradicts attributes"
    assert verdict(male) is None and verdict(f"{male}, {female}") is None


@pytest.mark.parametrize("code", OTHERS)
def test_short_answers_in_other_languages_are_found(code: str) -> None:
    """Prompts of the other pools and their parts, as answers; docs/languages.md has the shares."""
    gates, found = RowGates(GatesConfig(refusals=None, leak=False), languages=Languages(code)), {}
    for other in shipped_languages():
        pool = [p.prompt for p in prompt_set("pool", language=load_language(other)) if p.kind != "translate"][:250]
        whole = [prompt for prompt in pool if "{" not in prompt]
        parts = [part.strip() for prompt in whole for part in re.split(r"[.?!。？！,，、：:;]", prompt)]
        for text in dict.fromkeys([*whole, *filter(None, parts)]):
            verdict = gates.check({"prompt": "x?", "response": text, "text_language": code})
            length = len(re.findall(r"[^\W\d_]+", text))
            size = (
                "without blanks" if other in ("zh", "ja") else "1-2" if length < 3 else "3-5" if length < 6 else "6+"
            )
            found.setdefault("own" if other == code else size, []).append(verdict is not None)
    share = {size: sum(hits) / len(hits) for size, hits in found.items()}
    assert share["own"] == 0
    assert share["3-5"] > 0.75 and share["6+"] > 0.9 and share["without blanks"] > 0.85


def test_answers_in_another_script_than_a_file_less_language_are_still_found() -> None:
    gates = RowGates(languages=Languages("it"))
    row = {"prompt": "Come si sente la persona che parla?", "text_language": "it"}
    german = "Der Sprecher klingt fröhlich und erzählt, dass die Kinder vor der Tür miteinander reden."
    assert gates.check({**row, "response": german}).reason == "wrong language"
    assert gates.check({**row, "response": "La persona che parla sembra felice e dice che i bambini giocano."}) is None
    assert (
        gates.absent(load_language("it")) == ["refusals", "leak", "grounded"]
        and gates.absent(load_language("de")) == []
    )
    assert gates.absent(Language(code="eo")) == ["language", "refusals", "leak", "grounded"]
    off = RowGates(
        GatesConfig(leak=False, refusals=None, grounded=None, facts=FactsConfig({"gender": ["male", "female"]}))
    )
    assert off.absent(load_language("it")) == ["facts"]


def test_the_clips_own_language_chooses_when_the_setting_says_clip() -> None:
    languages = Languages("clip")
    codes = [languages.of_clip({"language": said}).code for said in ("de", "zh-CN", "German", None, "it", "Klingon")]
    assert codes == ["de", "zh", "de", "en", "it", "unknown"]
    assert Languages("de").of_clip({"language": "fr"}).code == "de"  # the speech may be in any language
    rows = ClipRows(draw=lambda clip, count: [Prompt("a", clip["attributes"]["gender"])], languages=languages)
    (wanted,) = rows({**CLIP, "language": "de"})
    assert wanted.item.prompt.prompt == "männlich" and "Dauer: 2 s" in wanted.item.description


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("code: xx\nnames: {}", "names"),
        ("code: german", "two or three letters"),
        ("code: xx\nvalues: {any: {yes: oui}}", "values.any must be texts"),
        ("code: xx\nprompts: prompts/pool/any.yaml", "prompts must be a list in the file itself"),
        ("code: xx\nfacts: {hedged: '('}", "no regular expression"),
        ("code: xx\nleak: {rules: [{name: a, pattern: '('}]}", "no regular expression"),
        ("code: xx\nprompts: ['prompts/pool/any.yaml']", "prompts must be a list"),
        ("code: xx\nlanguage: {scripts: [Hann]}", "Did you mean 'Han'"),
        ("code: [", "not YAML"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        language = load_language(str(tmp_path / "own.yaml"))
        RowGates(languages=Languages(str(tmp_path / "own.yaml")))
        prompt_set("pool", language=language)


def test_the_example_of_the_docs_is_a_language(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/languages.md").read_text(encoding="utf-8")
    (tmp_path / "it.yaml").write_text(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1], encoding="utf-8")
    language = load_language(str(tmp_path / "it.yaml"))
    gates = RowGates(languages=Languages(str(tmp_path / "it.yaml")))
    row = {"prompt": "Chi parla?", "text_language": "it"}
    assert gates.absent(language) == [] and gates.check({**row, "response": "Un uomo."}) is None
    assert gates.check({**row, "response": "Non posso ascoltare la registrazione."}).reason == "refusal"
    assert gates.check({**row, "response": "Nella descrizione parla un uomo."}).reason == "leak"
    assert (
        "(Sesso: maschile, " in describe(CLIP, language=language) and len(prompt_set("pool", language=language)) == 1
    )


@pytest.mark.parametrize("given", ["deutsch", "nowhere.yaml"])
def test_a_wrong_setting_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="language"):
        load_language(given)
    with pytest.raises(ConfigError, match="no pool in language 'it'"):
        prompt_set("pool", language=load_language("it"))


def recipe(root: Path, llm: Path, **more: Any) -> dict[str, Any]:
    sampling = {"max_new_tokens": 8, "temperature": 1.0}
    base = {"corpus": "m.jsonl", "data_root": str(root), "llm": str(llm), "output": str(root / "out")}
    base |= {"engine": {"name": "hf", "batch_size": 8}, "request": {"sampling": sampling}, "progress": False}
    return {**base, "gates": {"language": None, "not_text": False}, "report": False, "max_attempts": 1, **more}


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in (folder / "rows").iterdir() for line in path.open(encoding="utf-8")]


def test_rephrased_rows_name_the_gates_that_are_absent_now() -> None:
    async def same(response: str, *, truncated: bool, seed: int) -> SimpleNamespace:
        return SimpleNamespace(prompt_tokens=0, new_tokens=0, error=None, text=response, truncated=truncated)

    gates = RowGates()
    stage = SelfRephrase(rephraser=same, gate=gates.check, absent_gates=gates.absent_for)
    for code, before, now in (("it", [], ["refusals", "leak", "grounded"]), ("de", ["leak"], None)):
        row = {"id": "a", "prompt": "?", "response": "Roma", "text_language": code, "gates_absent": before}
        assert asyncio.run(stage.make(row)).row.get("gates_absent") == now


def test_a_german_recipe_writes_rows_that_name_the_language(corpus: Path, llm_folder: Path) -> None:
    summary = run_recipe(recipe(corpus, llm_folder, language="de"))
    rows = rows_of(corpus / "out")
    assert len(rows) == summary.written > 5 and not summary.gates_absent
    assert {row["text_language"] for row in rows} == {"de"} and not any("gates_absent" in row for row in rows)
    assert all("Geschlecht: " in row["seed_description"] for row in rows)
    ours = {prompt.prompt_id for prompt in prompt_set("composed", language=load_language("de"))}
    assert {row["prompt_id"] for row in rows} <= ours


def test_gates_without_words_are_named_in_rows_and_counted(corpus: Path, llm_folder: Path) -> None:
    own = corpus / "mine.yaml"
    own.write_text(
        "code: it\ndescription: {names: {gender: genere, duration: durata}}\nvalues: {any: {male: maschio}}"
    )
    prompts = [{"prompt_id": "chi", "prompt": "Chi parla?"}]
    summary = run_recipe(recipe(corpus, llm_folder, language=str(own), prompts=prompts))
    rows = rows_of(corpus / "out")
    assert all(
        row["gates_absent"] == ["refusals", "leak", "grounded"] and row["text_language"] == "it" for row in rows
    )
    assert any("Genere: maschio, Durata: 1s" in row["seed_description"] for row in rows)
    assert summary.gates_absent == dict.fromkeys(
        ("refusals", "leak", "grounded"), len(rows)
    ) and "gate leak absent" in str(summary)
    assert run_recipe(recipe(corpus, llm_folder, language=str(own), prompts=prompts)).gates_absent
    with pytest.raises(ConfigError, match="no pool in language 'it'"):
        run_recipe(recipe(corpus, llm_folder, language="it", output=str(corpus / "b")))


def test_english_rows_and_settings_do_not_mention_a_language(corpus: Path, llm_folder: Path) -> None:
    run_recipe(recipe(corpus, llm_folder))
    assert not any({"text_language", "gates_absent"} & set(row) for row in rows_of(corpus / "out"))
    assert "language" not in json.loads((corpus / "out/recipe.json").read_text())
    assert "gates_absent" not in json.loads((corpus / "out/summary.json").read_text())
    assert dataclasses.asdict(ENGLISH)["code"] == "en"
