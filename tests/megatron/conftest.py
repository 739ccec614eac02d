import pytest
import torch

from nemo_desta.models.desta import DestaModel
from tests.megatron.fixed_batches import parts_config
from tests.megatron.workplace import MegatronWorkplace


@pytest.fixture(scope="session")
def fixed(tmp_path_factory):
    """NeMo's model section over tiny parts, whose projector starts from a saved model folder."""
    folder = tmp_path_factory.mktemp("fixed")
    config = parts_config(folder / "parts")
    torch.manual_seed(5)
    DestaModel(config).save_pretrained(folder / "start")
    config["perception"]["init_from"] = str(folder / "start")
    return config


@pytest.fixture(scope="session")
def workplace(tmp_path_factory):
    return MegatronWorkplace(tmp_path_factory.mktemp("megatron"))
