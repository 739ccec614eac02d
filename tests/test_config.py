"""Configs are refused early, by name, with the nearest known key."""

import pytest

from nemo_desta.config import ModelConfig, parse, to_dict
from nemo_desta.errors import ConfigError


def minimal(**llm):
    return {"llm": {"path": "folder", **llm}}


def test_parse_reads_back_what_to_dict_wrote():
    config = parse(ModelConfig, {**minimal(lora={"r": 8}), "freeze": ["x"]})
    assert parse(ModelConfig, to_dict(config)) == config
    assert config.llm.lora.r == 8


def test_an_unknown_key_is_refused_with_the_nearest_known_one():
    with pytest.raises(ConfigError, match=r"unknown key 'model.llm.dtpye'. Did you mean 'dtype'\?"):
        parse(ModelConfig, minimal(dtpye="auto"))


def test_a_missing_value_is_named():
    with pytest.raises(ConfigError, match="'model.llm.path' must be given"):
        parse(ModelConfig, {"llm": {"path": "???"}})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("activation_checkpointing", "yes", "'model.activation_checkpointing' must be true or false, found 'yes'"),
        ("freeze", "a", "'model.freeze' must be a list of texts"),
        ("llm", 3, "'model.llm' must be a mapping"),
    ],
)
def test_a_wrong_type_is_named(key, value, message):
    with pytest.raises(ConfigError, match=message):
        parse(ModelConfig, {**minimal(), key: value})
