"""The whole model at tiny size: the LLM stays what it was, only the projector learns, labels and loss are exact."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from nemo_desta.core.prompting import PromptBuilder
from nemo_desta.errors import ConfigError
from nemo_desta.models.desta import DestaModel
from nemo_desta.testing.models import tiny_config

SECOND = 16_000


@pytest.fixture(scope="module")
def model(tiny):
    torch.manual_seed(1)
    return DestaModel(tiny)


def messages(text="What is it?", clips=1):
    audios = [{"audio": "unused.wav"}] * clips
    return [{"role": "user", "content": "<|AUDIO|>" * clips + "\n" + text, **({"audios": audios} if clips else {})}]


def batch_of(model, rows, clip_secs):
    """Rows of (messages, response) and the clips' lengths as a batch of the data layer."""
    examples = [model.prompts.example({"id": str(i), "messages": m, "response": r}) for i, (m, r) in enumerate(rows)]
    longest = max(len(e.ids) for e in examples)
    generator = torch.Generator().manual_seed(0)
    lens = torch.tensor([int(s * SECOND) for s in clip_secs], dtype=torch.int64)
    audio = torch.zeros(len(lens), int(lens.max()) if len(lens) else 0)
    for i, n in enumerate(lens.tolist()):
        audio[i, :n] = 0.1 * torch.randn(n, generator=generator)
    return {
        "audio": audio,
        "audio_lens": lens,
        "input_ids": torch.tensor([e.ids + [0] * (longest - len(e.ids)) for e in examples]),
        "input_lens": torch.tensor([len(e.ids) for e in examples]),
        "prompt_lens": torch.tensor([e.prompt_len for e in examples]),
        "row_ids": [str(i) for i in range(len(rows))],
    }


def pick(batch, row, clips):
    """One row of a batch alone, padded as it was."""
    one = {k: batch[k][row : row + 1] for k in ("input_ids", "input_lens", "prompt_lens")}
    return {**one, "audio": batch["audio"][clips], "audio_lens": batch["audio_lens"][clips], "row_ids": [str(row)]}


def test_logits_without_audio_are_bit_identical_to_the_bare_llm(model, tiny):
    bare = AutoModelForCausalLM.from_pretrained(tiny["llm"]["path"]).eval()
    ids = torch.tensor([model.prompts.prompt(messages(clips=0)).ids])
    with torch.no_grad():
        ours = model(model.embed_tokens(ids))["logits"]
        theirs = bare(input_ids=ids).logits
    assert torch.equal(ours, theirs)


def test_gradients_reach_every_projector_parameter_and_nothing_else(model):
    model.train()
    loss, num_tokens, _ = model.loss(batch_of(model, [(messages(), "A bell."), (messages(), "Rain.")], [1.0, 2.3]))
    loss.backward()
    with_grad = {name for name, p in model.named_parameters() if p.grad is not None}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert with_grad == trained
    assert trained and all(name.startswith("perception.projector.") for name in trained)
    assert not model.llm.training
    model.zero_grad()


def test_loss_is_the_mean_of_target_logprobs_of_the_plain_forward(model):
    batch = batch_of(model, [(messages(), "A bell."), (messages(clips=2), "Rain and wind.")], [1.0, 0.4, 2.3])
    model.eval()
    with torch.no_grad():
        loss, num_tokens, num_correct = model.loss(batch)
        inputs = model.embed(batch)
        logits = model(inputs.inputs_embeds, inputs.attention_mask.long())["logits"]
    expected, count, correct = 0.0, 0, 0
    for row in range(2):
        target = batch["input_ids"][row, batch["prompt_lens"][row] : batch["input_lens"][row]]
        length = int(inputs.attention_mask[row].sum())
        predicted = logits[row, length - len(target) - 1 : length - 1]
        expected += F.cross_entropy(predicted, target, reduction="sum").item()
        count += len(target)
        correct += int((predicted.argmax(-1) == target).sum())
    assert num_tokens == count
    assert int(num_correct) == correct
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_first_loss_is_at_most_ln_vocabulary_plus_a_little(model):
    """Random weights know nothing, but right labels never cost much more than a uniform guess."""
    loss, num_tokens, _ = model.loss(batch_of(model, [(messages(), "A bell rings.")], [1.0]))
    assert loss.item() / num_tokens < math.log(model.llm.config.vocab_size) * 1.1


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gemma2"])
def test_left_and_right_padding_give_the_same_loss(tmp_path, kind):
    model = DestaModel(tiny_config(tmp_path, kind=kind)).eval()
    batch = batch_of(model, [(messages(), "A bell."), (messages(), "Rain, wind and more.")], [2.0, 0.3])
    with torch.no_grad():
        right = model.loss(batch, padding_side="right")[0]
        left = model.loss(batch, padding_side="left")[0]
        alone = sum(model.loss(pick(batch, i, slice(i, i + 1)))[0] for i in range(2))
    assert left.item() == pytest.approx(right.item(), rel=1e-5)
    assert alone.item() == pytest.approx(right.item(), rel=1e-5)


@pytest.mark.parametrize("pad", ["own", "eos", "none"])
@pytest.mark.parametrize("template", ["chatml", "thinking", "llama3"])
def test_labels_do_not_depend_on_the_pad_token(tmp_path, template, pad):
    model = DestaModel(tiny_config(tmp_path, template=template, pad=pad))
    response = "<think>\nhm\n</think>\n\nA bell." if template == "thinking" else "A bell."
    batch = batch_of(model, [(messages(), response), (messages("Longer question here?"), "Rain.")], [0.5, 0.5])
    inputs = model.embed(batch)
    first = inputs.target_ids[inputs.target_rows == 0].tolist()
    assert model.tokenizer.decode(first[:-1], skip_special_tokens=False) == response
    assert first[-1] == model.prompts.end_of_turn_id
    assert not torch.isnan(model.loss(batch)[0])


def test_a_truncated_row_has_no_end_of_turn(model):
    row = {"id": "x", "messages": messages(), "response": "cut", "truncated": True}
    assert model.prompts.example(row).ids[-1] != model.prompts.end_of_turn_id


def test_accumulated_micro_batches_give_the_gradients_of_one_big_batch(model):
    rows = [(messages(), "A bell."), (messages(), "Rain, wind and a long answer."), (messages(), "No.")]
    batch = batch_of(model, rows, [1.0, 0.4, 2.0])
    parameters = dict(model.trained_parameters())

    def gradients(parts, divided_by):
        model.zero_grad()
        for part in parts:
            loss, num_tokens, _ = model.loss(part)
            (loss / divided_by).backward()
            model.window.add(num_tokens, part["row_ids"])
        model.window.close(parameters.values(), averaged_over=divided_by, device=torch.device("cpu"))
        return {name: p.grad.clone() for name, p in parameters.items()}

    whole = gradients([batch], 1)
    split = gradients([pick(batch, i, slice(i, i + 1)) for i in range(3)], 3)
    loss, num_tokens, _ = model.loss(batch)
    direct = torch.autograd.grad(loss / num_tokens, list(parameters.values()))
    for (name, mine), reference in zip(whole.items(), direct, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-7, msg=name)
        torch.testing.assert_close(split[name], reference, rtol=1e-3, atol=1e-6, msg=name)
    model.zero_grad()


def test_a_window_without_targets_leaves_no_gradient(model):
    batch = batch_of(model, [(messages(), "A bell.")], [1.0])
    batch["prompt_lens"] = batch["input_lens"]
    loss, num_tokens, _ = model.loss(batch)
    loss.backward()
    model.window.add(num_tokens, ["empty"])
    parameters = [p for _, p in model.trained_parameters()]
    assert model.window.close(parameters, averaged_over=1, device=torch.device("cpu")) == 0
    assert num_tokens == 0 and loss.item() == 0.0
    assert all(p.grad is None for p in parameters)


def test_a_freeze_pattern_that_matches_nothing_is_an_error(tiny):
    with pytest.raises(ConfigError, match="'no_such_part' matches no trainable parameter"):
        DestaModel({**tiny, "freeze": ["no_such_part"]})


def test_a_frozen_part_is_still_saved(tiny, tmp_path):
    model = DestaModel({**tiny, "freeze": ["layer_"]})
    frozen = [name for name, p in model.trained_parameters() if not p.requires_grad]
    assert frozen
    assert set(frozen) <= set(model.state_dict())


def test_using_one_encoder_only_just_works(tiny):
    perception = {**tiny["perception"], "use": ["whisper"]}
    model = DestaModel({**tiny, "perception": perception})
    assert list(model.perception.encoders) == ["whisper"]
    loss, _, _ = model.loss(batch_of(model, [(messages(), "A bell.")], [1.0]))
    loss.backward()


def test_saved_and_reopened_model_answers_the_same(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    again = DestaModel.from_pretrained(tmp_path / "model", device="cpu")
    audio = torch.randn(1, SECOND) * 0.1
    lens = torch.tensor([SECOND])
    conversation = [[{"role": "user", "content": "<|AUDIO|>\nWhat?"}]]
    first = model.generate(conversation, audio, lens, max_new_tokens=8, do_sample=False)
    second = again.generate(conversation, audio, lens, max_new_tokens=8, do_sample=False)
    assert torch.equal(first, second)
    assert {p.name for p in (tmp_path / "model").iterdir()} >= {"config.json", "projector.safetensors"}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_a_batch_of_conversations_answers_like_each_alone(model):
    generator = torch.Generator().manual_seed(3)
    clips = [0.1 * torch.randn(n, generator=generator).numpy() for n in (SECOND, 2 * SECOND + 77)]
    chats = [
        [{"role": "user", "content": f"<|AUDIO|>\n{text}", "audios": [clip]}]
        for text, clip in zip(["What?", "And what is that noise over there?"], clips, strict=True)
    ] + [[{"role": "user", "content": "Say hello."}]]
    together = model.chat(chats, max_new_tokens=8, do_sample=False)
    assert together == [model.chat(chat, max_new_tokens=8, do_sample=False) for chat in chats]


def test_text_only_answers_equal_the_bare_llm(model, tiny):
    bare = AutoModelForCausalLM.from_pretrained(tiny["llm"]["path"]).eval()
    prompts = PromptBuilder(model.tokenizer)
    ids = torch.tensor([prompts.prompt(messages(clips=0)).ids])
    theirs = bare.generate(input_ids=ids, max_new_tokens=12, do_sample=False, eos_token_id=model.text_eos_id)
    ours = model.generate([messages(clips=0)], max_new_tokens=12, do_sample=False)
    assert torch.equal(ours, theirs[:, ids.shape[1] :])


def test_a_checkpoint_of_another_shape_of_model_is_refused(model):
    state = dict(model.state_dict())
    name, tensor = next(iter(state.items()))
    with pytest.raises(ValueError, match="surplus"):
        model.load_state_dict({**state, "perception.projector.ghost": tensor})
    state.pop(name)
    with pytest.raises(ValueError, match="missing"):
        model.load_state_dict(state)


def test_stage_wise_start_takes_every_tensor_of_the_source(model, tiny, tmp_path):
    with torch.no_grad():
        for parameter in dict(model.trained_parameters()).values():
            parameter.add_(0.01)
    model.save_pretrained(tmp_path / "stage1")
    perception = {**tiny["perception"], "init_from": str(tmp_path / "stage1")}
    second = DestaModel({**tiny, "perception": perception})
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_lora_trains_beside_the_projector_when_asked_for(tiny):
    model = DestaModel({**tiny, "llm": {**tiny["llm"], "lora": {"r": 4}}})
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert any(".lora_A." in name for name in names)
    model.train()
    model.loss(batch_of(model, [(messages(), "A bell.")], [1.0]))[0].backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if p.requires_grad)
    assert set(model.state_dict()) == set(names)


def test_activation_checkpointing_changes_memory_not_gradients(tiny):
    grads = []
    for recompute in (False, True):
        torch.manual_seed(1)
        model = DestaModel({**tiny, "activation_checkpointing": recompute})  # Lightning's fit leaves its mode alone
        assert model.plain_head  # the LLM is asked before the first loss
        norm, runs = model.llm.base_model.layers[0].input_layernorm, []
        norm.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        model.loss(batch_of(model, [(messages(), "A bell.")], [1.0]))[0].backward()
        assert len(runs) == (2 if recompute else 1)
        grads.append([p.grad for _, p in model.trained_parameters()])
    for plain, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_the_optimiser_holds_what_trains_and_nothing_else(model):
    optimizer = model.configure_optimizers()["optimizer"]
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert [id(parameter) for parameter in held] == [id(parameter) for _, parameter in model.trained_parameters()]
