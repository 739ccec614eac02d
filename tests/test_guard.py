"""What the top conftest promises to every test."""

import random
import socket

import numpy as np
import pytest
import torch


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_connection_to_another_machine_is_refused(family):
    host = "192.0.2.1" if family == socket.AF_INET else "2001:db8::1"
    with socket.socket(family) as client:
        with pytest.raises(RuntimeError, match=f"tests must not use the network, found a connection to {host}:80"):
            client.connect((host, 80))
        with pytest.raises(RuntimeError, match="tests must not use the network"):
            client.connect_ex((host, 80))


def test_a_connection_to_this_machine_is_made():
    with socket.create_server(("127.0.0.1", 0)) as server:
        for host in ("127.0.0.1", "localhost"):
            with socket.create_connection((host, server.getsockname()[1]), timeout=5) as client:
                assert client.getpeername() == server.getsockname()


DRAWN = []


@pytest.mark.parametrize("attempt", [0, 1])
def test_random_numbers_are_the_same_for_each_test_and_torch_has_one_thread(attempt):
    DRAWN.append((random.random(), np.random.rand(), torch.rand(()).item()))
    assert len(set(DRAWN)) == 1
    assert torch.get_num_threads() == 1
