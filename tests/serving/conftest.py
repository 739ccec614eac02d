"""One tiny model for all server, session and terminal tests."""

import pytest

from tests.serving.serving_tools import tiny_model


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))
