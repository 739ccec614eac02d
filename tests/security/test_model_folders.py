"""A model folder of a stranger is data: what its config asks for is refused by name unless the caller grants it."""

import importlib.util
import json
import shutil
import sys

import pytest
from omegaconf import OmegaConf

from nemo_desta.config import ModelConfig, parse
from nemo_desta.core.fingerprint import fingerprint
from nemo_desta.core.folder import open_model
from nemo_desta.core.frozen import fetch
from nemo_desta.core.trust import Grant, UntrustedConfig, check_model
from nemo_desta.errors import ConfigError
from nemo_desta.models.desta import DestaModel
from nemo_desta.perception.encoders import BeatsEncoder, registry
from nemo_desta.sharing.export import export_model
from tests.security.conftest import change

LOADERS = {
    "model": lambda folder, tmp_path, **grant: DestaModel.from_pretrained(folder, device="cpu", **grant),
    "export": lambda folder, tmp_path, **grant: export_model(folder, tmp_path / "exported", **grant),
}


@pytest.fixture(params=list(LOADERS))
def load(request, tmp_path):
    return lambda folder, **grant: LOADERS[request.param](folder, tmp_path, **grant)


def with_encoder(folder, knobs, name="beats"):
    change(folder, lambda model: model["perception"]["encoders"].update({name: knobs}))


def with_remote_code(folder, evil):
    """An LLM that is Python: its config's and its classes' code makes the canary."""
    lines = (
        "from transformers import Qwen3Config, Qwen3ForCausalLM\n"
        "class Config(Qwen3Config):\n    model_type = 'strange'\n"
        "class Model(Qwen3ForCausalLM):\n    config_class = Config\n"
    )
    (folder / "llm" / "evil.py").write_text(evil + lines)
    auto = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    change(folder / "llm", lambda values: values.update(model_type="strange", auto_map=auto, architectures=["Model"]))
    description = json.loads((folder / "config.json").read_text())
    description["frozen"]["llm"] = fingerprint(folder / "llm")
    (folder / "config.json").write_text(json.dumps(description))


def test_an_llm_that_is_code_is_refused_whatever_the_config_says(folder, evil, canary, tmp_path):
    load = LOADERS["model"]
    with_remote_code(folder, evil)
    with pytest.raises(
        UntrustedConfig, match=r"llm' can only be loaded by running Python files.*trust_remote_code=True"
    ):
        load(folder, tmp_path)
    change(folder, lambda model: model["llm"].update(trust_remote_code=True))
    with pytest.raises(UntrustedConfig, match=r"model\.llm\.trust_remote_code=True \(.*pass trust_remote_code=True\)"):
        load(folder, tmp_path)
    assert not canary.exists()
    load(folder, tmp_path, trust_remote_code=True)
    assert canary.exists()


def test_trust_in_the_config_is_refused_by_every_loader(folder, load):
    change(folder, lambda model: model["llm"].update(trust_remote_code=True))
    with pytest.raises(UntrustedConfig, match=r"model\.llm\.trust_remote_code=True \(.*pass trust_remote_code=True\)"):
        load(folder)
    load(folder, trust_remote_code=True)


def test_a_tokenizer_that_is_code_is_refused(folder, evil, canary, load):
    (folder / "evil.py").write_text(
        evil
        + "from transformers import PreTrainedTokenizerFast\nclass Tokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    auto = {"tokenizer_class": "Tokenizer", "auto_map": {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}}
    change(folder, lambda values: values.update(auto), file="tokenizer_config.json")
    change(folder, lambda model: model["llm"].update(trust_remote_code=True))
    with pytest.raises(UntrustedConfig, match="trust_remote_code"):
        load(folder)
    change(folder, lambda model: model["llm"].update(trust_remote_code=False))
    try:  # transformers 5 refuses, others may read tokenizer.json without the class
        load(folder)
    except ConfigError as error:
        assert "trust_remote_code=True" in str(error)
    assert not canary.exists()
    shutil.rmtree(folder.parent / "exported", ignore_errors=True)
    load(folder, trust_remote_code=True)
    assert canary.exists()


def nested(canary):
    return {"_target_": "builtins.dict", "x": {"_target_": "builtins.open", "file": str(canary), "mode": "w"}}


@pytest.mark.parametrize("key", ["_target_", "name"])
def test_an_encoder_that_is_any_function_is_refused(folder, canary, load, key):
    with_encoder(folder, {key: "hydra.utils.instantiate", "config": nested(canary)})
    with pytest.raises(UntrustedConfig) as caught:
        load(folder)
    assert f"model.perception.encoders.beats.{key}='hydra.utils.instantiate'" in str(caught.value)
    assert "allow_targets=['hydra.utils.instantiate']" in str(caught.value)
    assert "model.perception.encoders.beats.config.x._target_='builtins.open'" in str(caught.value)
    assert not canary.exists()


def test_the_name_of_an_encoders_section_is_a_name(folder, canary, load):
    with_encoder(folder, {"file": str(canary), "mode": "w"}, name="builtins.open")
    with pytest.raises(UntrustedConfig, match=r"the key model\.perception\.encoders\.builtins\.open='builtins\.open'"):
        load(folder)
    assert not canary.exists()


@pytest.mark.parametrize("key", ["_target_", "name"])
@pytest.mark.parametrize("part", ["encoders", "projector"])
def test_a_module_in_the_current_folder_is_not_imported(folder, evil, canary, load, monkeypatch, key, part):
    """Whoever works inside a folder of a stranger has its Python files in the current folder."""
    (folder / "own_part.py").write_text(evil + "def part(*_, **__): pass\n")
    monkeypatch.chdir(folder)
    if part == "encoders":
        with_encoder(folder, {key: "own_part.part"})
    else:
        change(folder, lambda model: model["perception"].update(projector={key: "own_part.part"}))
    with pytest.raises(UntrustedConfig, match=rf"{key}='own_part\.part' .*allow_targets=\['own_part\.part'\]"):
        load(folder)
    assert not canary.exists() and "own_part" not in sys.modules and str(folder) not in sys.path


def test_torch_hub_is_refused(folder, evil, canary, load):
    (folder / "hubconf.py").write_text(evil + "def evil(**_): pass\n")
    hub = {"_target_": "torch.hub.load", "repo_or_dir": str(folder), "model": "evil", "source": "local"}
    with_encoder(folder, hub)
    with pytest.raises(
        UntrustedConfig, match=r"beats\._target_='torch\.hub\.load' .*allow_targets=\['torch\.hub\.load'\]"
    ):
        load(folder)
    assert not canary.exists()


@pytest.mark.parametrize("key", ["_target_", "name"])
def test_a_granted_encoder_is_built(folder, tiny, key):
    target = "nemo_desta.perception.encoders.BeatsEncoder.from_checkpoint"
    with_encoder(folder, {key: target, "path": tiny["perception"]["encoders"]["beats"]["path"]})
    with pytest.raises(UntrustedConfig, match="allow_targets"):
        DestaModel.from_pretrained(folder, allow_targets=["my_package.Other"])
    model = DestaModel.from_pretrained(folder, device="cpu", allow_targets=[target])
    assert isinstance(model.perception.encoders["beats"], BeatsEncoder)


def test_a_config_of_ones_own_needs_no_grant_and_its_folder_says_what_to_pass(tiny, tmp_path):
    target = "nemo_desta.perception.encoders.BeatsEncoder.from_checkpoint"
    beats = {"_target_": target, "path": tiny["perception"]["encoders"]["beats"]["path"]}
    encoders = {**tiny["perception"]["encoders"], "beats": beats}
    llm = {**tiny["llm"], "trust_remote_code": True}
    own = DestaModel({**tiny, "llm": llm, "perception": {**tiny["perception"], "encoders": encoders}})
    folder = own.save_pretrained(tmp_path / "own")
    with pytest.raises(UntrustedConfig) as caught:
        DestaModel.from_pretrained(folder, device="cpu")
    assert f"pass allow_targets=['{target}']" in str(caught.value)
    assert "pass trust_remote_code=True" in str(caught.value)
    DestaModel.from_pretrained(folder, device="cpu", trust_remote_code=True, allow_targets=[target])


def test_registered_names_and_entry_points_need_no_grant(folder, tiny, monkeypatch):
    path = tiny["perception"]["encoders"]["beats"]["path"]
    monkeypatch.setattr(registry.ENCODERS, "factories", dict(registry.ENCODERS.factories))
    registry.register_encoder("my.own.ear")(BeatsEncoder.from_checkpoint)
    with_encoder(folder, {"_target_": "my.own.ear", "path": path})
    model = DestaModel.from_pretrained(folder, device="cpu")
    assert any(isinstance(encoder, BeatsEncoder) for encoder in model.perception.encoders.values())


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "${oc.decode:x}", "a ${llm.path} b"])
def test_interpolations_are_refused(folder, load, text):
    change(folder, lambda model: model["prompt"].update(audio_locator_tag=text))
    with pytest.raises(UntrustedConfig) as caught:
        load(folder, trust_remote_code=True, allow_targets=[text])
    assert f"model.prompt.audio_locator_tag={text!r}" in str(caught.value)


def test_a_kernel_from_the_hub_is_code(folder, load):
    change(folder, lambda model: model["llm"].update(attn_implementation="someone/kernel"))
    with pytest.raises(UntrustedConfig, match="attn_implementation='someone/kernel'.*pass trust_remote_code=True"):
        load(folder)


OPTIMIZERS = [
    "os.system",
    "torch.hub.load",
    "torch.load",
    "torch.optim.adam.torch.load",
    "torch.optim.optimizer.functools.partial",
    "torch.optim.lr_scheduler.types.FunctionType",
    "torch.optim.Nothing",
    "nemo.utils.exp_manager.exp_manager",
    "transformers.optimization.os.system",
    5,
]


@pytest.mark.parametrize("section", ["optimizer", "lr_scheduler"])
@pytest.mark.parametrize("target", OPTIMIZERS)
def test_an_optimiser_that_is_none_is_refused_on_every_stack(section, target):
    """The check is ours and needs no NeMo, whose 2.7 would call anything."""
    with pytest.raises(UntrustedConfig) as caught:
        check_model({section: {"_target_": target}}, "folder", Grant())
    assert f"model.{section}._target_={target!r}" in str(caught.value)
    check_model({section: {"_target_": target}}, "folder", Grant(allow_targets=[target]))


@pytest.mark.parametrize(
    ("section", "target"),
    [
        ("optimizer", "torch.optim.AdamW"),
        ("optimizer", "torch.optim.adam.Adam"),
        ("lr_scheduler", "torch.optim.lr_scheduler.LinearLR"),
        ("lr_scheduler", "nemo.core.optim.lr_scheduler.CosineAnnealing"),
        ("lr_scheduler", "transformers.optimization.get_cosine_schedule_with_warmup"),
    ],
)
def test_optimisers_and_schedules_of_the_stack_need_no_grant(section, target):
    config = {section: {"_target_": target}}
    assert check_model(config, "folder", Grant()) == config


def test_a_schedule_of_a_package_that_is_not_installed_needs_no_grant(monkeypatch):
    """The folders that our own configs train name NeMo's schedule; they also open where there is no NeMo."""
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "nemo" else found(name, *more)
    )
    config = {"lr_scheduler": {"_target_": "nemo.core.optim.lr_scheduler.CosineAnnealing"}}
    assert check_model(config, "folder", Grant()) == config
    for target in ("nemo.utils.exp_manager.exp_manager", "torch.optim.adam.torch.load", "os.system"):
        with pytest.raises(UntrustedConfig):
            check_model({"lr_scheduler": {"_target_": target}}, "folder", Grant())


def test_what_an_optimiser_is_given_is_checked_too(folder, canary, load):
    change(folder, lambda model: model["optimizer"].update(params=nested(canary)["x"]))
    with pytest.raises(UntrustedConfig, match=r"model\.optimizer\.params\._target_='builtins\.open'"):
        load(folder)
    assert not canary.exists()


def test_opening_builds_no_optimiser(folder, monkeypatch):
    monkeypatch.setattr("torch.optim.AdamW.__init__", lambda *_, **__: pytest.fail("an optimiser was built"))
    DestaModel.from_pretrained(folder, device="cpu")


def test_everything_that_is_refused_is_named_at_once():
    model = {
        "llm": {"trust_remote_code": "yes"},
        "perception": {"encoders": {"a.b": {}, "c": {"name": "d.e"}, "f": {"x": [{"_target_": "g"}]}}},
    }
    with pytest.raises(UntrustedConfig) as caught:
        check_model(model, "folder", Grant())
    for part in ("llm.trust_remote_code=yes", "encoders.a.b='a.b'", "c.name='d.e'", "f.x[0]._target_='g'"):
        assert part in str(caught.value)
    assert "docs/security.md" in str(caught.value)


def test_a_grant_of_one_text_is_refused():
    with pytest.raises(ConfigError, match="allow_targets is a list"):
        Grant(allow_targets="os.system")


def test_fingerprints_name_files_of_their_part_only(folder, tmp_path):
    (tmp_path / "secret").write_text("x")
    for name in ("../secret", "/etc/hostname", "..", "*.py"):
        description = json.loads((folder / "config.json").read_text())
        description["frozen"]["llm"] = {name: "0" * 64}
        (folder / "config.json").write_text(json.dumps(description))
        with pytest.raises(ConfigError, match="outside its folder"):
            DestaModel.from_pretrained(folder, device="cpu")


def test_python_is_not_fetched_as_weights(tiny):
    config = parse(ModelConfig, {**tiny, "llm": {"path": "someone/llm"}})
    with pytest.raises(ConfigError, match="its fingerprint names a Python file.*evil.py"):
        fetch({"llm": {"evil.py": "0" * 64}}, config)


def test_only_data_is_fetched_from_the_hub(folder, evil, canary, monkeypatch):
    """`snapshot_download` is told which files: no Python among them."""
    import huggingface_hub

    (folder / "evil.py").write_text(evil)
    asked = []

    def download(repo, allow_patterns=None, **_):
        asked.extend(allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    open_model("someone/model")
    assert asked and not [pattern for pattern in asked if pattern.endswith((".py", "*"))]
    assert not canary.exists() and "evil" not in sys.modules


def test_commands_pass_the_grants_on(folder, tmp_path, monkeypatch):
    """Keys of conf/use arrive at the loader, from the files themselves."""
    from pathlib import Path

    from nemo_desta.evaluation.settings import EvaluateSettings
    from nemo_desta.evaluation.sources import open_source
    from nemo_desta.serving import server
    from nemo_desta.serving.chat_command import run_chat
    from nemo_desta.serving.vllm_server import serve_with_vllm
    from nemo_desta.sharing.export_command import run_export

    conf = Path(__file__).resolve().parents[2] / "conf" / "use"
    granted = {"trust_remote_code": True, "allow_targets": ["a.b"]}

    def settings(name, **values):
        plain = OmegaConf.to_container(OmegaConf.load(conf / f"{name}.yaml"), resolve=False)
        assert plain["trust_remote_code"] is False and plain["allow_targets"] == []
        return {**plain, "model": str(folder), **granted, **values}

    seen = []

    class Opened(Exception):
        pass

    def opening(*_, **given):
        seen.append({name: given[name] for name in granted})
        raise Opened

    monkeypatch.setattr("nemo_desta.core.model.open_model", opening)
    monkeypatch.setattr("nemo_desta.vllm_plugin.chat.open_model", opening)
    served = parse(server.Served, {"model": str(folder), **granted}, "serve")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("")
    batch = {"input": str(rows), "output": str(tmp_path / "out.jsonl")}
    evaluated = parse(EvaluateSettings, settings("evaluate", output=str(tmp_path)), "evaluate")
    on_vllm = parse(EvaluateSettings, settings("evaluate", output=str(tmp_path), engine="vllm"), "evaluate")
    runs = [
        lambda: run_chat(settings("chat", prompt="x")),
        lambda: run_chat({**settings("chat", **batch), "batch": {"engine": "vllm"}}),
        lambda: server._open(served),
        lambda: serve_with_vllm(served, server.ServerSettings(), None),
        lambda: open_source(evaluated),
        lambda: open_source(on_vllm),
    ]
    for run in runs:
        with pytest.raises(Opened):
            run()
    assert seen == [granted] * len(runs)

    change(folder, lambda model: model["llm"].update(trust_remote_code=True))
    export = settings("export", output=str(tmp_path / "exported"))
    assert "exported to" in run_export(export)
    with pytest.raises(UntrustedConfig):
        run_export({**export, "trust_remote_code": False, "overwrite": True})


def test_the_users_config_is_not_checked(tiny):
    own = {
        **tiny,
        "optimizer": {"_target_": "my_package.Optimizer"},
        "llm": {**tiny["llm"], "trust_remote_code": True},
    }
    assert parse(ModelConfig, own).llm.trust_remote_code
