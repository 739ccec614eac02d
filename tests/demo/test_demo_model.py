"""The model of ``make demo`` as it ships: its parts fit, it starts sane, and its LLM is untouched by training."""

import json
import math

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM

from nemo_desta.demo import run
from nemo_desta.demo.corpus import build_corpus
from nemo_desta.demo.prompts import make_prompt, true_answer
from nemo_desta.models.desta import DestaModel
from nemo_desta.sources import resolve_source


@pytest.fixture(scope="module")
def model():
    return DestaModel(OmegaConf.to_container(run.compose("demo", []), resolve=True)["model"])


def batch_of(model, num_rows=8):
    from nemo_desta.data.dataset import LoadedRow, collate

    rng, rows = np.random.default_rng(0), []
    for i in range(num_rows):
        gender = ("male", "female")[i % 2]
        row = {"id": str(i), "domain": "speech", "attributes": {"gender": gender}, "transcript": None}
        prompt = make_prompt("gender")
        message = {"role": "user", "content": f"<|AUDIO|>\n{prompt.text}", "audios": [{"audio": "x", "text": None}]}
        example = model.prompts.example({"id": str(i), "messages": [message], "response": true_answer(row, prompt)})
        clip = (0.1 * rng.standard_normal(16_000 + 100 * i)).astype(np.float32)
        rows.append(LoadedRow(str(i), "toy", example.ids, example.prompt_len, [clip]))
    return collate(rows)


def test_the_first_loss_is_at_most_ln_vocabulary(model):
    with torch.no_grad():
        loss, num_tokens, _ = model.loss(batch_of(model))
    assert loss.item() / num_tokens <= math.log(model.llm.config.vocab_size)


def test_a_step_changes_the_projector_and_not_one_bit_of_the_llm(model):
    bare = AutoModelForCausalLM.from_pretrained(resolve_source(run.LLM), dtype=torch.float32).eval()
    before = {name: p.detach().clone() for name, p in model.trained_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    loss, _, _ = model.loss(batch_of(model))
    loss.backward()
    optimizer.step()
    assert any(not torch.equal(before[name], p) for name, p in model.trained_parameters())
    for name, parameter in bare.named_parameters():
        assert torch.equal(parameter, model.llm.get_parameter(name)), name
    ids = torch.tensor([model.prompts.prompt([{"role": "user", "content": "Which digit is spoken?"}]).ids])
    with torch.no_grad():
        assert torch.equal(model(model.embed_tokens(ids))["logits"], bare(input_ids=ids).logits)


@pytest.mark.slow
def test_the_demo_runs_to_its_table_and_a_second_run_reuses_everything(tmp_path, capsys):
    """Few clips and steps: the way, not the figures."""
    work_dir = tmp_path / "demo"
    arguments = ["--work-dir", str(work_dir), "--clips", "150", "--steps", "6", "--prompts-per-clip", "1"]
    assert run.main(arguments) == 0
    first = capsys.readouterr().out
    for part in ("| digit", "text cascade", "linear probe", "shuffled", "Three conversations", "Try next"):
        assert part in first
    assert (work_dir / "loss.png").stat().st_size > 1000
    answers = [json.loads(line) for line in (work_dir / "answers.jsonl").read_text().splitlines()]
    assert {answer["task"] for answer in answers} >= {"digit", "gender", "sound_class"}
    rows = work_dir / "rows_train/rows/train-00000.jsonl"
    written = (rows.stat().st_mtime_ns, rows.read_bytes())
    assert build_corpus(work_dir / "corpus", seed=0, clips=150).exists()
    assert run.main(arguments) == 0
    second = capsys.readouterr().out
    assert "reusing" in second
    assert (rows.stat().st_mtime_ns, rows.read_bytes()) == written
