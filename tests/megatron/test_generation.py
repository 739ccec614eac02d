"""Generation with a cache gives the ids of Hugging Face's own, row by row, on every layout."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.megatron.launch import launch
from tests.megatron.llms import TWO_RANKS, groups, one_process, probe, write_llm

#: Lengths of the prompts, and new tokens; three rows, so that sequence parallelism has to pad a step.
ROW_LENS, NUM_NEW, PAD = (9, 23, 4), 12, 0
KINDS = ("qwen3", "llama_scaled_tied", "qwen2", "qwen3_moe", "gemma3")


def prompts(vocab_size):
    """(B, Z) ids, right padded."""
    ids, _ = probe(vocab_size)
    return torch.cat([ids, ids[:1].flip(1)])


def written(folder, layout, end_ids):
    """What `write_greedily` writes after the prompts; to be called on every rank."""
    from nemo_desta.megatron.generation import write_greedily
    from nemo_desta.megatron.layout import Layout
    from nemo_desta.megatron.llm import build_llm

    layout = Layout(**layout)
    with groups(layout.tensor_parallel_size, layout.pipeline_parallel_size, layout.context_parallel_size):
        llm = build_llm(folder, layout, dtype=torch.float32)
        attentions = [layer.self_attention.core_attention for layer in llm.gpt.decoder.layers]
        ids = prompts(llm.hf_config.vocab_size)
        with torch.inference_mode():  # as Lightning validates
            embeds = llm.embed(ids) if llm.is_first else None
            lens = torch.tensor(ROW_LENS)
            found = write_greedily(llm, embeds, lens, max_new_tokens=NUM_NEW, end_ids=end_ids, pad_id=PAD)
        assert attentions == [layer.self_attention.core_attention for layer in llm.gpt.decoder.layers]
    return found


def written_for_all(cases):
    return [written(*case) for case in cases]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """Kind -> (folder, an id that ends one row early, what Hugging Face writes (B, at most M))."""
    root, found = tmp_path_factory.mktemp("llms"), {}
    for kind in KINDS:
        folder = write_llm(root / kind, kind)
        llm = AutoModelForCausalLM.from_pretrained(folder).eval()
        rows = [row[None, :length] for row, length in zip(prompts(llm.config.vocab_size), ROW_LENS, strict=True)]
        end = int(greedy(llm, rows[0], [])[3])
        ended = [greedy(llm, row, [end]) for row in rows]
        found[kind] = str(folder), end, torch.nn.utils.rnn.pad_sequence(ended, batch_first=True, padding_value=PAD)
    return found


def greedy(llm, row, end_ids):
    settings = {"max_new_tokens": NUM_NEW, "do_sample": False, "pad_token_id": PAD, "eos_token_id": end_ids}
    return llm.generate(row, attention_mask=torch.ones_like(row), **settings)[0, row.shape[1] :]


def test_one_rank_writes_what_hugging_face_writes(expected):
    with one_process():
        for folder, end, ids in expected.values():
            assert torch.equal(written(folder, {}, [end]), ids)


@pytest.mark.slow
def test_two_ranks_write_what_hugging_face_writes(expected):
    names = [(kind, name) for kind in expected for name in TWO_RANKS if (kind, name) != ("gemma3", "CP2")]
    cases = [(expected[kind][0], TWO_RANKS[name], [expected[kind][1]]) for kind, name in names]
    for found in launch("tests.megatron.test_generation.written_for_all", 2, cases=cases):
        for (kind, name), ids in zip(names, found, strict=True):
            assert torch.equal(ids, expected[kind][2]), f"{kind} on {name}"
