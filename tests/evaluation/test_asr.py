"""Error rates of recognition: against counts done by hand, and the message when a package is missing."""

import gzip
import json
import sys
from pathlib import Path

import pytest

from nemo_desta.evaluation.asr import error_rates, text_normalizer


def test_rates_of_all_texts_together_when_counted_by_hand():
    references = ["the cat sat on the mat", "Good morning, Mr. Smith!"]
    hypotheses = ["the cat sat on mat", "good morning mister Smith today"]
    found = error_rates(references, hypotheses)
    # "the" deleted, "today" inserted in ten words; the English normaliser writes "mr" out.
    assert (found["deletions"], found["insertions"], found["substitutions"], found["num_words"]) == (1, 1, 0, 10)
    assert found["wer"] == pytest.approx(0.2)
    assert error_rates(references, hypotheses, normalizer="basic")["substitutions"] == 1
    assert error_rates(["abcd"], ["abxd"], normalizer="none")["cer"] == pytest.approx(0.25)


def test_words_heard_where_nothing_is_said_are_insertions():
    found = error_rates(["[noise]", "new words"], ["hello there you", ""])
    assert found["insertions"] == 3 and found["deletions"] == 2
    assert found["wer"] == pytest.approx(5 / 2)
    assert found["cer"] == pytest.approx((9 + 15) / 9)


def test_unusable_texts_are_refused():
    with pytest.raises(ValueError, match="1 hypotheses for 2 references"):
        error_rates(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="none of 1 references has a word"):
        error_rates(["(laughs)"], ["ha"])
    with pytest.raises(ValueError, match="Did you mean 'english'"):
        error_rates(["a"], ["a"], normalizer="englsh")


@pytest.mark.parametrize("module", ["jiwer", "whisper_normalizer.english"])
def test_a_missing_package_is_named_with_its_install_line(module, monkeypatch):
    text_normalizer.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{module.split('.')[0]}: pip install 'nemo_desta\[eval\]'"):
        error_rates(["a b"], ["a b"])
    text_normalizer.cache_clear()


def test_basic_normaliser_agrees_with_speech_ifeval_on_every_text():
    packed = Path(__file__).parents[1] / "fixtures" / "scorers" / "speech_ifeval.json.gz"
    even = text_normalizer("basic")
    for text, expected in json.loads(gzip.decompress(packed.read_bytes()))["normalize_text"]:
        assert even(text.replace("<", "").replace(">", "")) == expected
