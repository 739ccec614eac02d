"""ALARM-E: joined models against prompts, logits and texts that the original wrote at a tiny size."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from nemo_desta.answering.audio_embeddings import embed_prompts
from nemo_desta.answering.chat import answer
from nemo_desta.answering.engine import ChatEngine, prepare
from nemo_desta.answering.sampling import Sampling
from nemo_desta.answering.stream_parser import StreamParser
from nemo_desta.config import PerceptionConfig
from nemo_desta.core.folder import load_folder, open_model
from nemo_desta.core.model import SpeechLM
from nemo_desta.core.thinking import think_format
from nemo_desta.errors import ConfigError
from nemo_desta.perception import fused
from nemo_desta.perception.build import token_counter
from nemo_desta.sharing.export_command import run_export
from nemo_desta.sharing.join import join_models
from nemo_desta.sharing.released import write_released
from nemo_desta.sharing.released_alarm import THINKING_END
from tests.perception.encoders.test_muq_encoder import by_torchaudio
from tests.sharing.test_released_alarm import SOURCE, WithFirstInput, close, released_folder

SYSTEM = "You are an audio-understanding model. Listen to the audio and respond to the query."
QUESTIONS = {"a": "What is heard?", "b": "How many sounds? Answer in one word."}
MEMBERS = {"alarm_e": ("alarm_ca", "al_whisper"), "alarm_e_three": ("alarm_ca", "al_whisper", "alarm_p")}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    """The LLM of the recorded models, with the tokenizer of the recording: an id per character."""
    folder = tmp_path_factory.mktemp("llm")
    vocabulary = {"<unk>": 0, "<eos>": 1, **{chr(number): 2 + number for number in range(158)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", chat_template=TEMPLATE)
    tokenizer.save_pretrained(folder)
    settings = json.loads((SOURCE / "alarm_ca" / "config.json").read_text())
    known = {name: value for name, value in settings.items() if "audio" not in str((name, value))}
    model = Qwen3ForCausalLM(Qwen3Config(**known))
    weights = load_file(SOURCE / "alarm_ca" / "model.safetensors")
    missing, _ = model.load_state_dict({n: t for n, t in weights.items() if ".audio_" not in n}, strict=False)
    assert set(missing) <= {"lm_head.weight"}
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def members(llm, alarm_configs, tmp_path_factory):
    """Model folder of each released model."""
    folder = tmp_path_factory.mktemp("members")
    for kind in MEMBERS["alarm_e_three"]:
        source = released_folder(kind, folder / f"{kind}_released")
        used = alarm_configs if kind != "al_whisper" else {"whisper": alarm_configs["whisper"]}
        write_released("alarm", source, folder / kind, llm=llm, encoders=used)
    return folder


def open_joined(folder):
    config, tensors = open_model(str(folder))
    model = SpeechLM.from_config(config)
    missing, surplus = model.load_state_dict(tensors, strict=False)
    assert not surplus and not [name for name in missing if name.startswith("perception.projector.")]
    model.perception.encoders["w2vbert"].__class__ = WithFirstInput
    model.perception.sampling_rate = 16_000  # of the recorded clips: each encoder is to get them resampled once
    return model.eval()


@pytest.fixture(scope="module", params=MEMBERS)
def case(request, members, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "joined"
    join_models({f"m{i}": members / kind for i, kind in enumerate(MEMBERS[request.param])}, folder)
    with np.load(SOURCE / "prompts" / f"{request.param}.npz") as recorded:
        return open_joined(folder), dict(recorded), MEMBERS[request.param], folder


@pytest.fixture(autouse=True)
def as_torchaudio(monkeypatch):
    """Our resampler is another one; the recorded clips reached MuQ by torchaudio's."""

    def resample(audio, old_rate, new_rate):
        return audio if old_rate == new_rate else torch.stack([by_torchaudio(clip) for clip in audio])

    monkeypatch.setattr(fused, "resample", resample)


def asked(clip):
    question = {"role": "user", "content": QUESTIONS[clip], "audios": [str(SOURCE / f"{clip}.wav")]}
    return [{"role": "system", "content": SYSTEM}, question]


def embedded(model, *chats):
    """The prompts (B, Z, D), padded on the left."""
    prepared = [prepare(model, chat, Sampling()) for chat in chats]
    model.audio_cache.clear()
    inputs = embed_prompts(model, [(one.ids, one.clips) for one in prepared]).inputs_embeds
    assert inputs.shape[1] == max(one.num_prompt_tokens for one in prepared)
    return inputs


@torch.no_grad()
def test_prompt_and_logits_are_the_originals(case):
    model, recorded, *_ = case
    inputs = embedded(model, asked("b"))
    close(inputs[0], recorded["b__prompt"])
    close(model(inputs)["logits"][0, -1], recorded["b__last_logits"])


def test_a_clip_alone_is_in_the_prompt_what_the_originals_hear(case):
    """The original asked about both clips in one batch, in which the shorter one reads the longer one's silence."""
    model, recorded, kinds, _ = case
    expected = recorded["a__prompt"]
    for kind in kinds:
        with np.load(SOURCE / kind / "audio.npz") as heard:
            batch, alone = heard["batch__emb_a"], heard["a__emb_a"]
        places = (i for i in range(len(expected)) if np.array_equal(expected[i : i + len(batch)], batch))
        start = next(places)
        expected[start : start + len(batch)] = alone
    close(embedded(model, asked("a"))[0], expected)


@torch.no_grad()
def test_a_thought_over_its_budget_ends_in_the_originals_words(case):
    model, recorded, *_ = case
    format = think_format(model.prompts)
    parser = StreamParser(model.prompts, Sampling(max_thinking_tokens=1), format=format, end_ids=[])
    thought = model.prompts.tokenize("I hear a tone. It may be")
    parser.push(thought[0])
    appended = model.embed_tokens(torch.tensor([*thought, *parser.forced_ids()]))
    assert torch.equal(appended, torch.as_tensor(recorded["a__after_budget"]))
    said = answer(model, asked("a"), max_new_tokens=9, max_thinking_tokens=3, do_sample=False)
    assert said.thinking.endswith(THINKING_END.partition("</think>")[0].strip()) and said.num_new_tokens == 9


def test_an_end_of_thoughts_without_the_tag_is_refused(case, monkeypatch):
    model, *_ = case
    monkeypatch.setattr(model.prompts, "thinking_end", "enough")
    with pytest.raises(ConfigError, match="thinking_end has no </think>"):
        ChatEngine(model)


def test_a_prompt_in_a_batch_is_the_prompt_alone(case):
    model, *_ = case
    together, alone = embedded(model, asked("a"), asked("b")), embedded(model, asked("a"))
    close(together[0, -alone.shape[1] :], alone[0])


def test_equal_encoders_are_one_and_the_folder_can_be_moved(case, members):
    *_, folder = case
    config, tensors, _ = load_folder(folder)
    names = ["whisper", "w2vbert", "muq", "sslam"]
    assert list(config.perception.encoders) == names
    assert sorted(path.name for path in (folder / "encoders").iterdir()) == sorted(names)
    found = config.perception.projector["members"]
    assert found["m1"]["encoders"] == {"whisper": "whisper"}
    moved = folder.rename(folder.with_name("moved"))
    try:
        places = open_model(str(moved))[0].perception.encoders
        assert {knobs["path"] for knobs in places.values()} == {str(moved / "encoders" / name) for name in names}
    finally:
        moved.rename(folder)
    assert any(name.startswith("perception.projector.members.m0.fusion.") for name in tensors)


def changed(members, folder, change):
    """A copy of the Whisper model with another config or other tensors."""
    shutil.copytree(members / "al_whisper", folder, ignore=shutil.ignore_patterns("encoders"))
    content = json.loads((folder / "config.json").read_text())
    content["model"]["perception"]["encoders"]["whisper"]["path"] = str(
        members / "al_whisper" / "encoders" / "whisper"
    )
    change(content["model"])
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def test_unlike_encoders_of_one_name_stay_apart(members, tmp_path):
    other = changed(
        members,
        tmp_path / "other",
        lambda model: model["perception"]["encoders"]["whisper"].update(original_masks=False),
    )
    join_models({"one": members / "al_whisper", "two": other}, tmp_path / "joined")
    config, tensors, _ = load_folder(tmp_path / "joined")
    assert list(config.perception.encoders) == ["whisper", "two_whisper"]
    assert config.perception.projector["members"]["two"]["encoders"] == {"whisper": "two_whisper"}
    texts = [tensors[f"perception.projector.texts.{i}"] for i in range(3)]
    count, alone = (token_counter(open_model(str(f))[0].perception, 32)(20_000) for f in (tmp_path / "joined", other))
    assert count - sum(map(len, texts)) in (2 * alone - 1, 2 * alone, 2 * alone + 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model["prompt"].update(thinking_end=None), "'two' and 'one' .* differ in model.prompt"),
        (lambda model: model["perception"].update(normalize_dbfs=-20.0), "differ in .*normalize_dbfs"),
        (lambda model: model["llm"].update(lora={"r": 2}), "'two' has LoRA"),
    ],
)
def test_what_cannot_be_joined_is_refused(members, tmp_path, change, message):
    other = changed(members, tmp_path / "other", change)
    with pytest.raises(ConfigError, match=message):
        join_models({"one": members / "al_whisper", "two": other}, tmp_path / "joined")


def test_another_llm_is_refused(members, llm, tmp_path):
    other = shutil.copytree(llm, tmp_path / "llm")
    weights = load_file(other / "model.safetensors")
    save_file({name: 2 * tensor for name, tensor in weights.items()}, other / "model.safetensors", {"format": "pt"})
    sources = {"one": members / "al_whisper", "two": members / "alarm_ca"}
    with pytest.raises(ConfigError, match="llm: .* is not what this projector was trained with"):
        join_models(sources, tmp_path / "joined", llm=str(other))


@pytest.mark.parametrize("kind", ["os.system", "ensemble", "tests.sharing.test_join.Evil"])
@pytest.mark.parametrize("key", ["name", "_target_"])
def test_a_member_of_a_folder_imports_nothing(kind, key):
    member = {"name": "conv", key: kind}
    config = PerceptionConfig(
        encoders={"whisper": {"path": str(SOURCE / "whisper")}},
        projector={"name": "ensemble", "members": {"one": member}},
    )
    with pytest.raises(ConfigError, match=f"members.one: unknown projector '{kind}'"):
        token_counter(config, 8)


def test_a_link_out_of_a_members_folder_is_not_followed(members, tmp_path):
    folder = shutil.copytree(members / "al_whisper", tmp_path / "member")
    (tmp_path / "secret").write_text("secret")
    (folder / "encoders" / "whisper" / "notes.json").symlink_to(tmp_path / "secret")
    with pytest.raises(ConfigError, match="notes.json' is a link that leads out of"):
        run_export({"join": {"one": str(folder), "two": str(folder)}, "output": str(tmp_path / "joined")})
    assert not (tmp_path / "joined").exists()


def test_an_ensemble_is_no_member(case, members, tmp_path):
    *_, folder = case
    with pytest.raises(ConfigError, match="members.two: unknown projector 'ensemble'"):
        join_models({"one": members / "al_whisper", "two": folder}, tmp_path / "joined")
    assert not (tmp_path / "joined").exists()


class Evil:
    def __init__(self, *_, **__):
        raise AssertionError("code of a member ran")


def test_the_command_joins(members, tmp_path):
    sources = {name: str(members / "al_whisper") for name in ("one", "two")}
    line = run_export({"join": sources, "output": str(tmp_path / "joined")})
    assert line == f"one, two written to {tmp_path / 'joined'}"
    assert list(load_folder(tmp_path / "joined")[0].perception.projector["members"]) == ["one", "two"]
    with pytest.raises(FileExistsError, match="exists already"):
        run_export({"join": sources, "output": str(tmp_path / "joined")})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "x"}, "give model=<folder> to export"),
        ({"source": "x"}, "source: not for join"),
        ({"check_identity": False}, "check_identity=false is not for join"),
        ({"push": True}, "push: for exports"),
        ({"join": {"one": "x"}}, "two members or more"),
        ({"join": {"../one": "x", "two": "y"}}, "named in letters and digits"),
    ],
)
def test_settings_that_do_not_go_with_join(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        run_export({"join": {"one": "x", "two": "y"}, "output": str(tmp_path / "joined"), **settings})
