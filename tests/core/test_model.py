"""`SpeechLM` from ready parts: no config, no folder on disk, no trainer."""

import ast
import doctest
import subprocess
import sys

import pytest
import torch

import nemo_desta.core.model
import nemo_desta.perception.encoders.base
from nemo_desta.answering.chat import Answer, answer, stream
from nemo_desta.core.model import SpeechLM
from nemo_desta.core.prompting import PromptBuilder
from nemo_desta.errors import ConfigError
from nemo_desta.perception.fused import FusedPerception
from nemo_desta.perception.projector import build_projector
from nemo_desta.testing.models import build_tiny_llm, tiny_config, tiny_speech_lm
from nemo_desta.testing.perception import tiny_encoders

CLIP = {"audio": 0.1 * torch.randn(20_000, generator=torch.Generator().manual_seed(0)), "sampling_rate": 16_000}
QUESTION = [{"role": "user", "content": "<|AUDIO|>\nWhat is it?", "audios": [CLIP]}]


@pytest.fixture(scope="module")
def model():
    return tiny_speech_lm()


def batch_of(model, response="A bell."):
    example = model.prompts.example({"messages": QUESTION, "response": response})
    return {
        "audio": CLIP["audio"][None],
        "audio_lens": torch.tensor([len(CLIP["audio"])]),
        "input_ids": torch.tensor([example.ids]),
        "input_lens": torch.tensor([len(example.ids)]),
        "prompt_lens": torch.tensor([example.prompt_len]),
    }


def test_it_answers_a_question_about_a_clip(model):
    said = answer(model, QUESTION, max_new_tokens=4, do_sample=False)
    assert isinstance(said, Answer) and said.num_new_tokens <= 4
    num_text = len(model.prompts.prompt(QUESTION).ids) - 1
    assert said.num_prompt_tokens == num_text + model.num_audio_tokens(20_000)
    assert "".join(delta.text for delta in stream(model, QUESTION, max_new_tokens=4, do_sample=False)) == said
    assert model.audio_cache.num_encoded == 1 and model.audio_cache.num_hits == 1


def test_only_the_projector_gets_gradients(model):
    model.train()
    loss, num_tokens, _ = model.loss(batch_of(model))
    loss.backward()
    with_grad = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_grad == {f"perception.projector.{name}" for name, _ in model.perception.projector.named_parameters()}
    assert num_tokens > 2 and loss.isfinite()
    assert not model.llm.training and model.perception.projector.training
    model.zero_grad()


def test_logits_of_text_are_bit_identical_to_the_bare_llms():
    llm, tokenizer = build_tiny_llm()
    encoders = tiny_encoders()
    projector = build_projector("window", encoders, llm.config.hidden_size)
    ids = torch.tensor([PromptBuilder(tokenizer).prompt([{"role": "user", "content": "What is it?"}]).ids])
    with torch.no_grad():
        before = llm.eval()(input_ids=ids).logits
        model = SpeechLM(llm, FusedPerception(encoders, projector), PromptBuilder(tokenizer))
        assert torch.equal(model(model.embed_tokens(ids))["logits"], before)


def test_any_projector_fits():
    model = tiny_speech_lm("qformer", num_queries=3, num_layers=1, num_heads=2, feed_forward_size=16, chunk_secs=1)
    assert model.num_audio_tokens(20_000) == 2 * 3
    assert model.embed(batch_of(model)).inputs_embeds.shape[-1] == 32


def test_a_folder_opens_without_a_trainer_and_says_the_same(tmp_path):
    from nemo_desta.models import DestaModel

    nemo = DestaModel(tiny_config(tmp_path))
    folder = nemo.save_pretrained(tmp_path / "model")
    plain = SpeechLM.from_pretrained(folder, device="cpu")
    assert not plain.training and plain.config.llm.tokenizer == str(folder)
    batch = batch_of(plain)
    with torch.no_grad():
        assert torch.equal(plain.loss(batch)[0], nemo.eval().loss(batch)[0])
    found = imported_after(
        f"""
from nemo_desta.core import SpeechLM
import nemo_desta.answering.chat, nemo_desta.data.audio_io, nemo_desta.data.dataset, nemo_desta.data.sources
SpeechLM.from_pretrained({str(folder)!r}, device="cpu")
""",
        "from nemo_desta.megatron import plan; assert plan.main(['--llm', 'qwen3-4b', '--gpus', '1']) == 0",
    )
    assert found == [[], []]


def imported_after(*steps: str) -> list[list[str]]:
    """Trainers' packages that a fresh process has imported after each step. One process: a start takes seconds."""
    barred = {"nemo", "lightning", "lhotse", "hydra", "omegaconf", "megatron"}
    report = f"print('imported', sorted({barred!r} & set(sys.modules)))\n"
    code = "import sys\n" + report.join(f"{step}\n" for step in (*steps, ""))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [ast.literal_eval(line[9:]) for line in done.stdout.splitlines() if line.startswith("imported ")]


@pytest.mark.parametrize("module", [nemo_desta.core.model, nemo_desta.perception.encoders.base])
def test_the_examples_of_docstrings_run(module):
    ran = doctest.testmod(module)
    assert ran.attempted and not ran.failed


def test_parts_that_do_not_fit_are_refused(model):
    encoders = tiny_encoders()
    narrow = FusedPerception(encoders, build_projector("window", encoders, 16))
    with pytest.raises(ConfigError, match="output_size is 16, the embeddings of the LLM are 32 wide"):
        SpeechLM(model.llm, narrow, model.prompts)
    with pytest.raises(ConfigError, match="ready parts and has no Whisper decoder"):
        _ = model.transcriber
