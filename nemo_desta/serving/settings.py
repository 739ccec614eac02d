"""The server's settings: its address and its limits."""

import dataclasses
import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_desta.errors import ConfigError
from nemo_desta.models.model_source import ModelSource, check_engine


@dataclass(frozen=True)
class Served(ModelSource):
    """The served model and its engine: see conf/use/serve.yaml."""

    engine: str = "hf"
    vllm: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_engine(self.engine, self.vllm)

    @property
    def public_name(self) -> str:
        """The model's name for clients, if the settings have none: the folder's, or the hub id."""
        return Path(self.model).name if Path(self.model).exists() else self.model


@dataclass(frozen=True)
class ServerSettings:
    """Settings of `nemo_desta.serving.server.serve`: see conf/use/serve.yaml, which explains every field."""

    name: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    allowed_hosts: list[str] = field(default_factory=list)
    max_batch_size: int = 64
    max_batch_tokens: int = 131_072
    max_prefill_tokens: int = 32_768
    max_queue: int = 128
    max_waiting_mb: int = 4096
    max_receiving_mb: int = 1024
    max_connections: int | None = None
    header_timeout_secs: float = 10.0
    keep_alive_secs: float = 5.0
    body_timeout_secs: float = 20.0
    min_body_kb_per_sec: float = 16.0
    send_timeout_secs: float = 60.0
    max_body_mb: float = 64.0
    max_audio_secs: float = 1800.0
    max_audios: int = 32
    max_text_chars: int = 2_000_000
    max_context: int | None = None
    max_new_tokens: int = 512
    request_timeout_secs: float = 600.0
    drain_secs: float = 30.0
    num_workers: int = 4
    transcriber: bool = False

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if isinstance(value, int | float) and item.name not in ("port", "drain_secs", "transcriber"):
                if value <= 0:
                    raise ConfigError(f"serve.{item.name} is {value}; it must be above 0")
        if not 0 <= self.port < 65536:
            raise ConfigError(f"serve.port is {self.port}; it must be 0 (any free one) to 65535")
        places = self.max_batch_size + self.max_queue
        if self.num_connections <= places:
            rule = f"it must be above max_batch_size + max_queue = {places}"
            raise ConfigError(f"serve.max_connections is {self.max_connections}; {rule}")
        if self.max_receiving_mb < self.max_body_mb:
            rule = f"one body of max_body_mb = {self.max_body_mb:g} must fit"
            raise ConfigError(f"serve.max_receiving_mb is {self.max_receiving_mb}; {rule}")

    @property
    def max_body_bytes(self) -> int:
        return int(self.max_body_mb * 2**20)

    @property
    def num_connections(self) -> int:
        """The limit of open connections."""
        return self.max_batch_size + self.max_queue + 256 if self.max_connections is None else self.max_connections

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
