"""The decode loop against transformers' own `generate`, and rows that come and go without anybody noticing."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from nemo_desta.answering.decoder import Decoder
from nemo_desta.answering.sampling import Drawer, Sampling, draw, resolve_sampling
from nemo_desta.errors import ConfigError
from nemo_desta.testing.models import tiny_llm

WIDTH = 32


@pytest.fixture(scope="module", params=["qwen3", "llama", "gemma2"])
def llm(request, tmp_path_factory):
    llm = AutoModelForCausalLM.from_pretrained(tiny_llm(tmp_path_factory.mktemp("llm"), kind=request.param)).eval()
    with torch.no_grad():  # larger than the initial weights: the answers differ, and no two logits nearly tie
        for parameter in llm.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4.0)
    llm.generation_config.eos_token_id = None
    return llm


def prompts(lens, seed=0):
    """Left-padded (B, Z, D) with garbage in the padding, and the mask."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lens)
    embeds = torch.randn(len(lens), longest, WIDTH, generator=generator)
    mask = torch.arange(longest)[None] >= longest - torch.tensor(lens)[:, None]
    return embeds, mask


def generate(llm, embeds, mask, count):
    out = llm.generate(
        inputs_embeds=embeds, attention_mask=mask.long(), max_new_tokens=count, do_sample=False, pad_token_id=0
    )
    return out.tolist()


def steps(decoder, count):
    """Ids per key."""
    written = {}
    for _ in range(count):
        for key, token in decoder.step():
            written.setdefault(key, []).append(token)
    return written


def test_ids_are_those_of_generate_in_a_ragged_batch(llm):
    embeds, mask = prompts([3, 17, 9])
    decoder = Decoder(llm)
    keys = decoder.add(embeds, mask, [Sampling()] * 3)
    written = steps(decoder, 24)
    assert [written[key] for key in keys] == generate(llm, embeds, mask, 24)
    assert len({tuple(ids) for ids in written.values()}) == 3, "rows that all say the same would prove nothing"


def test_rows_write_the_same_whoever_joins_and_leaves(llm):
    embeds, mask = prompts([12, 5, 30, 8])
    alone = [generate(llm, embeds[i : i + 1][:, mask[i]], mask[i : i + 1][:, mask[i]], 20)[0] for i in range(4)]
    decoder = Decoder(llm)

    def join(i):
        return decoder.add(embeds[i : i + 1][:, mask[i]], mask[i : i + 1][:, mask[i]], [Sampling()])[0]

    written = {}

    def go(count):
        for key, ids in steps(decoder, count).items():
            written.setdefault(key, []).extend(ids)

    first = join(0)
    go(3)
    second = join(1)  # shorter than what is there
    go(2)
    third = join(2)  # longer than what is there
    go(4)
    decoder.remove({first})  # the first column of the longest goes on
    go(1)
    decoder.remove({third})  # now many columns are nobody's
    fourth = join(3)
    go(6)
    for key, reference in zip((first, second, third, fourth), alone, strict=True):
        assert written[key] == reference[: len(written[key])]
    assert [len(written[key]) for key in (first, second, third, fourth)] == [9, 13, 5, 6]


def test_columns_that_nobody_uses_are_freed(llm):
    embeds, mask = prompts([40, 4])
    decoder = Decoder(llm)
    long, _ = decoder.add(embeds, mask, [Sampling()] * 2)
    decoder.step()
    assert decoder._cache.layers[0].keys.shape[2] == 40
    decoder.remove({long})
    assert decoder._cache.layers[0].keys.shape[2] == 4
    assert len(decoder) == 1


def test_a_forced_row_says_what_it_must_and_goes_on_from_there(llm):
    embeds, mask = prompts([6])
    decoder = Decoder(llm)
    (key,) = decoder.add(embeds, mask, [Sampling()])
    first = steps(decoder, 2)[key]
    decoder.force(key, [7, 11, 13])
    then = steps(decoder, 8)[key]
    assert then[:3] == [7, 11, 13]
    known = llm.get_input_embeddings()(torch.tensor([first + [7, 11, 13]]))
    with torch.no_grad():
        whole = torch.cat([embeds, known], dim=1)
    assert then[3:] == generate(llm, whole, torch.ones(whole.shape[:2]), 5)[0]


def test_an_empty_decoder_has_nothing_to_say_and_may_be_used_again(llm):
    embeds, mask = prompts([5])
    decoder = Decoder(llm)
    assert decoder.step() == []
    runs = []
    for _ in range(2):
        (key,) = decoder.add(embeds, mask, [Sampling()])
        runs.append(steps(decoder, 5)[key])
        decoder.remove({key})
        assert decoder.step() == []
    assert runs[0] == runs[1]


def test_a_seed_fixes_an_answer_whatever_else_is_in_the_batch(llm):
    embeds, mask = prompts([9, 14, 6], seed=5)
    sampling = Sampling(temperature=1.5, top_p=0.95, seed=11)
    alone = Decoder(llm)
    (key,) = alone.add(embeds[:1][:, mask[0]], mask[:1][:, mask[0]], [sampling])
    reference = steps(alone, 15)[key]
    together = Decoder(llm)
    keys = together.add(embeds, mask, [sampling, Sampling(temperature=2.0), Sampling()])
    written = steps(together, 15)
    assert written[keys[0]] == reference
    assert written[keys[2]] == generate(llm, embeds, mask, 15)[2]
    another = Decoder(llm)
    (key,) = another.add(embeds[:1][:, mask[0]], mask[:1][:, mask[0]], [Sampling(temperature=1.5, seed=12)])
    assert steps(another, 15)[key] != reference


def test_drawn_tokens_have_the_probabilities_that_the_filters_leave():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    drawer = Drawer(Sampling(temperature=2.0, top_k=3, seed=0))
    counts = torch.zeros(4)
    for _ in range(4000):
        counts[draw(logits, [drawer], [[]])[0]] += 1
    expected = torch.tensor([1.0, 0.5, 0.0]).softmax(0)
    assert counts[3] == 0
    torch.testing.assert_close(counts[:3] / 4000, expected, atol=0.03, rtol=0)  # 4 standard deviations


def test_repetition_penalty_counts_what_was_written(llm):
    """By the formula of CTRL (section 4.1), on a whole forward pass for every token."""
    embeds, mask = prompts([8])
    decoder = Decoder(llm)
    (key,) = decoder.add(embeds, mask, [Sampling(repetition_penalty=1.8)])
    written = steps(decoder, 20)[key]
    expected: list[int] = []
    for _ in range(20):
        with torch.no_grad():
            said = llm.get_input_embeddings()(torch.tensor([expected], dtype=torch.int64))
            logits = llm(inputs_embeds=torch.cat([embeds, said], dim=1)).logits[0, -1]
        for token in set(expected):
            logits[token] = logits[token] / 1.8 if logits[token] > 0 else logits[token] * 1.8
        expected.append(int(logits.argmax()))
    assert written == expected
    assert written != generate(llm, embeds, mask, 20)[0]


def test_a_recurrent_llm_is_refused():
    class Recurrent(torch.nn.Module):
        _is_stateful = True

    with pytest.raises(ValueError, match="Recurrent keeps a recurrent state"):
        Decoder(Recurrent())


class TestResolve:
    """What the caller leaves open comes from the LLM's generation config."""

    @staticmethod
    def config(**values):
        from transformers import GenerationConfig

        return GenerationConfig(**values)

    def test_a_sampling_config_is_followed(self):
        config = self.config(do_sample=True, temperature=0.6, top_p=0.95, top_k=20)
        assert resolve_sampling(config) == Sampling(temperature=0.6, top_p=0.95, top_k=20)
        assert resolve_sampling(config, temperature=0.2, max_new_tokens=7).temperature == 0.2
        assert resolve_sampling(config, do_sample=False).greedy

    def test_a_greedy_config_filters_nothing_when_a_temperature_is_asked_for(self):
        config = self.config(do_sample=False)
        assert resolve_sampling(config).greedy
        assert resolve_sampling(config, temperature=0.7) == Sampling(temperature=0.7)
        assert resolve_sampling(config, do_sample=True).temperature == 1.0

    def test_none_is_not_given_and_one_stop_text_is_a_list_of_one(self):
        sampling = resolve_sampling(self.config(), temperature=None, stop="END")
        assert sampling.stop == ("END",) and sampling.greedy

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"temprature": 1.0}, "Did you mean 'temperature'"),
            ({"temperature": -1.0}, "temperature is -1.0; it must be 0 or more"),
            ({"top_p": 0.0}, "top_p is 0.0"),
            ({"max_new_tokens": 0}, "max_new_tokens is 0"),
            ({"stop": [""]}, "stop is"),
        ],
    )
    def test_wrong_settings_are_named(self, given, message):
        with pytest.raises(ConfigError, match=message):
            resolve_sampling(self.config(), **given)
