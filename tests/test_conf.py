"""Every config and every combination of groups composes, and none holds a key that nothing reads."""

import itertools
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from nemo_desta.config import ModelConfig, parse
from nemo_desta.data.settings import parse_data
from nemo_desta.perception.projector import PROJECTORS
from nemo_desta.sources import shipped_weights, weights_note
from nemo_desta.training.fit import SECTIONS, VALUES, build_trainer

CONF = Path(__file__).resolve().parents[1] / "conf"
TOP = sorted(path.stem for path in CONF.glob("*.yaml"))
#: LLMs that think unless told not to; their configs tell them.
HYBRID = {"smollm3_3b", *(f"qwen3_{size}" for size in ("0_6b", "1_7b", "4b_hybrid", "8b", "14b", "32b"))}
GIVEN = ["model.perception.encoders.beats.path=beats.pt", "data.audio_roots.default=audio"]


def options(group):
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def composed(name, *overrides):
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose(name, overrides=list(overrides))
    if OmegaConf.is_missing(config, "data_root"):
        config.data_root = "data"
    for encoder in config.model.perception.encoders.values():
        if OmegaConf.is_missing(encoder, "path"):
            encoder.path = "beats.pt"
    return OmegaConf.to_container(config, resolve=True)


def check(settings):
    model = parse(ModelConfig, settings["model"])
    assert model.perception.projector["name"] in PROJECTORS
    parse_data(settings["data"])
    assert set(settings) <= {*SECTIONS, *VALUES}
    assert settings["check"] is False
    return model


@pytest.mark.parametrize("name", TOP)
def test_a_top_config_composes_and_every_key_is_known(name):
    settings = composed(name)
    check(settings)
    trainer = build_trainer({**settings["trainer"], "accelerator": "cpu", "devices": 1}, settings.get("callbacks"), 0)
    assert trainer.max_steps == settings["trainer"]["max_steps"]


def test_every_pair_of_options_of_two_groups_composes():
    """Every pair of the two largest groups, with the options of the third in turn. So do the LLMs take turns."""
    groups = {group: options(group) for group in ("encoders", "projector", "strategy")}
    (first, a), (second, b), (third, c) = sorted(groups.items(), key=lambda group: -len(group[1]))
    combinations = [
        [(first, a[i]), (second, b[j]), (third, c[(i + j) % len(c)])]
        for i, j in itertools.product(range(len(a)), range(len(b)))
    ]
    pairs = {pair for row in combinations for pair in itertools.combinations(row, 2)}
    assert len(pairs) == sum(len(a) * len(b) for a, b in itertools.combinations(groups.values(), 2)) >= 50
    llms = options("llm")
    combinations += [[(group, found[0]) for group, found in groups.items()]] * max(0, len(llms) - len(combinations))
    with initialize_config_dir(str(CONF), version_base=None):
        for llm, row in zip(itertools.cycle(llms), combinations):
            config = compose("desta25", overrides=[f"llm={llm}", *(f"{group}={option}" for group, option in row)])
            wanted = dict(row)
            assert config.trainer.strategy.name == wanted["strategy"]
            chosen = OmegaConf.load(CONF / "projector" / f"{wanted['projector']}.yaml")
            assert config.model.perception.projector.name == chosen.name
            assert config.model.llm.path not in ("???", "")
            thinks = config.model.prompt.get("chat_template_kwargs")
            assert thinks == ({"enable_thinking": False} if llm in HYBRID else None), llm


def test_the_laptop_configs_compose_with_other_parts():
    with_beats = "+model.perception.encoders.beats={path: beats.pt, layer_ids: [3, 6, 9, 12]}"
    settings = composed("laptop_360m", with_beats)
    model = check(settings)
    assert "360M" in model.llm.path and model.llm.dtype == model.perception.dtype == "fastest"
    assert list(model.perception.encoders) == ["whisper", "beats"]
    assert parse_data(settings["data"]).feature_cache.folder == "runs/features"
    groups = {group: options(group) for group in ("encoders", "projector", "strategy", "llm")}
    with initialize_config_dir(str(CONF), version_base=None):
        for turn in range(max(len(groups[group]) for group in ("encoders", "projector", "strategy"))):
            chosen = [f"{group}={found[turn % len(found)]}" for group, found in groups.items()]
            config = compose(("laptop", "laptop_360m")[turn % 2], overrides=chosen)
            parse(ModelConfig, OmegaConf.to_container(config.model, resolve=True))
            assert (
                config.trainer.max_steps
                == config.model.lr_scheduler.max_steps
                > config.model.lr_scheduler.warmup_steps
            )


def test_the_docs_list_every_top_config():
    page = (CONF.parent / "docs" / "configs.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \| ", page.split("## Which config")[1].split("\n## ")[0], re.M)) == set(TOP)


@pytest.mark.parametrize("name", TOP)
def test_an_llm_config_may_set_the_prompt_in_every_top_config(name):
    prompt = composed(name, "llm=smollm3_3b")["model"]["prompt"]
    assert prompt["chat_template_kwargs"] == {"enable_thinking": False}
    assert prompt["system_role"] == "auto"


def test_the_docs_list_every_encoder_config():
    page = (CONF.parent / "docs" / "encoders.md").read_text()
    listed = [name for row in re.findall(r"^\| (`[^|]+) \|", page, re.M) for name in re.findall(r"`(\w+)`", row)]
    assert sorted(listed) == options("encoders")


def test_the_configs_say_size_and_licence_of_every_encoder():
    notes = {source: one.note for source, one in shipped_weights().items() if "encoders=" in str(one.users)}
    assert len(notes) > 10 and weights_note("OpenMuQ/MuQ-large-msd-iter").startswith(
        " (333 M parameters, 1.3 GB; CC-BY-NC"
    )
    for source, note in notes.items():
        if source != "???" and not source.startswith("package:"):
            assert re.search(r"\d M parameters.*\d GB.*licence", note), (source, note)


def test_alarms_four_encoders_compose_with_any_projector():
    for projector in options("projector"):
        model = check(composed("alarm", "encoders=alarm", f"projector={projector}"))
        assert model.perception.sampling_rate is None  # the encoders' highest, 24 kHz
        assert {name: (one["name"], one["layer_ids"]) for name, one in model.perception.encoders.items()} == {
            "whisper": ("whisper", [7, 15, 23, 31]),
            "w2vbert": ("w2vbert", [6, 10, 15, 20, 24]),
            "muq": ("muq", [4, 8, 12]),
            "sslam": ("eat", [4, 8, 12]),
        }


@pytest.mark.parametrize(
    ("name", "count", "still"),
    [
        ("alarm_whisper_instruct", 18_625_028, 0),
        ("alarm_w2vbert", 17_313_285, 0),
        ("alarm_muq", 4_723_203, 0),
        ("alarm_sslam", 18_100_739, 0),
        ("alarm_ca", 63_503_872, 58_762_255),
        ("alarm_p", 81_228_288 + 5 + 3 + 3, 18_625_028),
    ],
)
def test_a_stage_of_alarm_trains_and_freezes_what_alarms_does(name, count, still):
    """Over real shapes on the meta device; the BatchNorm of a frozen adapter stays in eval mode."""
    import torch

    from nemo_desta.core.build import freeze_by_pattern
    from nemo_desta.perception.encoders import EncoderShape
    from nemo_desta.perception.encoders.whisper import GRID
    from nemo_desta.perception.projector import build_projector
    from nemo_desta.perception.projector.base import list_parts
    from nemo_desta.types import FrameGrid

    model = check(composed(name))
    widths = {"whisper": 1280, "w2vbert": 1024, "muq": 1024, "sslam": 768}
    shapes = {
        encoder: EncoderShape(
            widths[encoder], tuple(knobs["layer_ids"]), 32, FrameGrid(24_000, 960) if encoder == "muq" else GRID
        )
        for encoder, knobs in model.perception.encoders.items()
    }
    knobs = dict(model.perception.projector)
    with torch.device("meta"):
        projector = build_projector(knobs.pop("name"), shapes, 2560, **knobs)
    parameters = {f"perception.projector.{name}": p for name, p in projector.named_parameters()}
    freeze_by_pattern(parameters, model.freeze)
    assert sum(p.numel() for p in parameters.values() if p.requires_grad) == count
    assert sum(p.numel() for p in parameters.values() if not p.requires_grad) == still
    if name == "alarm_ca":  # what check=true prints
        adapters = {"whisper": "18,625,028", "w2vbert": "17,313,285", "muq": "4,723,203", "sslam": "18,100,739"}
        said = [f"adapters.{encoder} (frozen) {size}" for encoder, size in adapters.items()]
        assert list_parts(projector) == ", ".join([*said, "fusion 63,503,872"])
    frozen = {encoder for encoder, adapter in projector.train().adapters.items() if not adapter.training}
    assert set(model.perception.init_from or ()) == frozen <= set(widths)
    norms = [part for part in projector.modules() if isinstance(part, torch.nn.BatchNorm1d)]
    assert {norm.training for norm in norms} <= {"whisper" not in frozen}


def test_the_docs_list_every_llm_config():
    page = (CONF.parent / "docs" / "llms.md").read_text()
    listed = {name: path for path, name in re.findall(r"^\| `([\w-]+/[\w.-]+)` \| `(\w+)` \|", page, re.M)}
    files = {name: OmegaConf.load(CONF / "llm" / f"{name}.yaml") for name in options("llm")}
    paths = {name: file.get("path") or file.llm.path for name, file in files.items()}
    assert listed == {name: path for name, path in paths.items() if name != "demo"}


def test_the_docs_say_which_llms_megatron_covers():
    from nemo_desta.megatron.param_mapping import ARCHITECTURES

    kinds = {"llama": "llama", "smollm2": "llama", "nemotron_nano_8b": "llama", "nemotron_nano_9b": "nemotron_h"}
    kinds |= {"qwen3": "qwen3", "qwen3_30b": "qwen3_moe", "gemma3": "gemma3_text", "smollm3": "smollm3"}
    kinds |= {"phi4": "phi3", "gpt_oss": "gpt_oss"}
    page = (CONF.parent / "docs" / "llms.md").read_text()
    for name, covered in re.findall(r"^\| `[^`]+` \| `(\w+)` \| [^|]+ \| (yes|no) \|", page, re.M):
        kind = kinds[max((start for start in kinds if name.startswith(start)), key=len)]
        assert covered == ("yes" if kind in ARCHITECTURES else "no"), name
        said = (CONF / "llm" / f"{name}.yaml").read_text()
        assert ("strategy=megatron refuses" in said) == (covered == "no"), name


def test_every_setting_that_the_docs_show_can_be_overridden():
    page = (CONF.parent / "docs" / "configs.md").read_text()
    block = page.split("## What you will change most")[1].split("```bash\n")[1].split("```")[0]
    shown = [line.split("#")[0].strip().replace("'", "") for line in block.splitlines() if line.strip()]
    overrides = [line for line in shown if "<" not in line]
    assert len(overrides) >= 6
    settings = composed("desta25", *overrides, *GIVEN)
    assert settings["model"]["perception"]["use"] == ["whisper"]
    assert settings["model"]["llm"]["lora"] == {"r": 16}
    check({**settings, "model": {**settings["model"], "freeze": []}})


@pytest.mark.parametrize(
    ("name", "count"),
    [("desta25_qformer", 131_540_224), ("desta2", 22_251_776), ("alarm", 18_625_028)],
)
def test_a_papers_config_has_the_papers_number_of_trainable_parameters(name, count):
    """Projector of the config over encoders and LLM of the real shapes, on the meta device."""
    import torch

    from nemo_desta.perception.encoders import EncoderShape
    from nemo_desta.perception.encoders.whisper import GRID
    from nemo_desta.perception.projector import build_projector

    whisper = composed(name)["model"]["perception"]["encoders"]["whisper"]
    width = {"openai/whisper-large-v3": 1280, "openai/whisper-small": 768}[whisper["path"]]
    shape = EncoderShape(width, tuple(whisper["layer_ids"]), num_layers=32, frame_grid=GRID)
    knobs = dict(composed(name)["model"]["perception"]["projector"])
    llm_width = {"desta25_qformer": 4096, "desta2": 4096, "alarm": 2560}[name]
    with torch.device("meta"):
        projector = build_projector(knobs.pop("name"), {"whisper": shape}, llm_width, output_rms=1.0, **knobs)
    assert sum(p.numel() for p in projector.parameters()) == count


def mixes():
    return [name for name in options("data") if "rows_root" in (CONF / "data" / f"{name}.yaml").read_text()]


def test_the_mixes_of_the_papers_compose_and_name_cards():
    from nemo_desta.data.sources import read_input_cfg
    from nemo_desta.recipes.corpora.card import read_card, shipped_cards

    papers = {name: read_card(name).papers for name in shipped_cards()}
    assert mixes() == ["alarm", "alarm_music", "alarm_questions", "alarm_sounds", "alarm_speech", "desta25"]
    for name in mixes():
        settings = composed("alarm_ca", f"data={name}", "data_root=/d", "rows_root=/r")
        check(settings)
        items = read_input_cfg(settings["data"]["train_ds"]["input_cfg"])
        for group in [item for item in items if item.get("type") == "group"]:
            items += read_input_cfg(group["input_cfg"])
        items = [item for item in items if item.get("type") != "group"]
        paper = name.split("_")[0]
        for item in items:
            card = item["name"]
            assert item["rows"] == f"/r/{card}/rows/train-*.jsonl" and item["audio_roots"] == {"default": f"/d/{card}"}
            share = 0.2 if (name, card) == ("alarm_sounds", "audioset") else 1.0
            weight = item.get("weight")
            assert weight is None or weight == pytest.approx(papers[card][paper].rows * share, abs=1)
        used = {item["name"] for item in items}
        assert used <= set(papers) and (name == paper) == (used == {c for c, p in papers.items() if paper in p})


def test_alarms_figures_on_the_cards_add_up_to_the_papers():
    """All of the paper's table but FMA, which has no card: 84,213 rows, 695.47 h."""
    from nemo_desta.recipes.corpora.card import read_card, shipped_cards

    found = [one for card in shipped_cards() if (one := read_card(card).papers.get("alarm")) and one.rows]
    assert sum(one.rows for one in found) == 5_507_853 - 84_213
    assert sum(one.hours for one in found) == pytest.approx(17_871.84 - 695.47, abs=0.05)


def test_the_public_rows_compose():
    settings = composed("desta25", "data=aqa5m", "data.train_ds.input_cfg.aqa5m.datasets=[VCTK, GLOBE]")
    check(settings)
    assert settings["data"]["train_ds"]["input_cfg"]["aqa5m"]["datasets"] == ["VCTK", "GLOBE"]
