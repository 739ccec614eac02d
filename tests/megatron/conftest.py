import pytest
import torch

from nemo_desta.models.desta import DestaModel
from tests.megatron.fixed_batches import parts_config
from tests.megatron.workplace import MegatronWorkplace


@pytest.fixture(scope="session")
def fixed(tmp_path_factory):
    """NeMo's model section over tiny parts, whose projector starts from a saved model folder."""
    return started(tmp_path_factory.mktemp("fixed"), "qwen3")


@pytest.fixture(scope="session")
def fixed_experts(tmp_path_factory):
    """The same with an LLM that is a mixture of experts."""
    return started(tmp_path_factory.mktemp("fixed_experts"), "qwen3_moe")


@pytest.fixture(scope="session")
def fixed_windows(tmp_path_factory):
    """The same with an LLM some of whose layers attend to a window."""
    return started(tmp_path_factory.mktemp("fixed_windows"), "gemma3")


def started(folder, kind):
    config = parts_config(folder / "parts", kind=kind)
    torch.manual_seed(5)
    DestaModel(config).save_pretrained(folder / "start")
    config["perception"]["init_from"] = str(folder / "start")
    return config


@pytest.fixture(scope="session")
def workplace(tmp_path_factory):
    return MegatronWorkplace(tmp_path_factory.mktemp("megatron"))
