import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nemo_desta.models.desta import DestaModel
from nemo_desta.testing.models import tiny_config

RECORD = {
    "steps": 1200,
    "seed": 3,
    "epoch": 1,
    "batches_done": 40,
    "accumulate_grad_batches": 2,
    "plan": {"batch_tokens": 8192, "max_batch_size": 12, "num_ranks": 8, "rows": [["train-00000", 5200, None]]},
    "datasets": {"train-00000": {"org/birds": 5000, "bells|whistles": 200}},
    "bad_rows": {"num_rows": 9000, "num_bad": 7},
    "validation": {"val_loss": 1.25},
}


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """Tiny parts, a model trained over them, and one with LoRA weights that are not zero."""
    place = tmp_path_factory.mktemp("place")
    config = tiny_config(place / "parts")
    torch.manual_seed(1)
    model = DestaModel(config)
    model.save_pretrained(place / "run" / "model")
    (place / "run" / "model" / "training.json").write_text(json.dumps(RECORD))
    lora = DestaModel({**config, "llm": {**config["llm"], "lora": {"r": 4, "dropout": 0.0}}})
    with torch.no_grad():
        for name, parameter in lora.named_parameters():
            if ".lora_B." in name:  # zeros at first: such LoRA says nothing
                parameter.normal_(std=0.3)
    lora.save_pretrained(place / "lora_model")
    return SimpleNamespace(path=place, config=config, model=model.eval(), lora=lora.eval())


@pytest.fixture
def parts(place):
    """Where the parts are, for who opens an export."""
    folder = place.path / "parts"
    encoders = {"whisper": str(folder / "whisper"), "beats": str(folder / "beats.pt")}
    return {"llm": str(folder / "llm"), "encoders": encoders, "device": "cpu"}


@pytest.fixture(scope="session")
def alarm_configs(tmp_path_factory):
    """A folder per encoder of the tiny ALARM models with its config and no weights."""
    folder = tmp_path_factory.mktemp("configs")
    for name in ("whisper", "w2vbert", "muq", "sslam"):
        (folder / name).mkdir()
        for file in Path(__file__).parents[1].joinpath("fixtures", "alarm_encoders", name).glob("*config.json"):
            shutil.copy(file, folder / name)
    return {path.name: str(path) for path in folder.iterdir()}
