import pytest

from nemo_desta.testing.models import tiny_config


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """NeMo's model section over tiny parts on disk."""
    return tiny_config(tmp_path_factory.mktemp("tiny"))
