import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def image():
    """The Dockerfile's helper, constraints/image.py."""
    spec = importlib.util.spec_from_file_location(
        "image", Path(__file__).resolve().parents[2] / "constraints" / "image.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
