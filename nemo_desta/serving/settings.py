"""What a server is told at its start: where it listens, and how much of everything it takes."""

import dataclasses
import ipaddress
from dataclasses import dataclass, field

from nemo_desta.config import ConfigError


@dataclass(frozen=True)
class ServerSettings:
    """Settings of `nemo_desta.serving.server.serve`; ``docs/serving.md`` has them as a table.

    ``name``: what clients call the model, null takes the folder's name. ``allowed_hosts``: Host headers that are
    answered beside this machine's own while the server listens on loopback only. ``max_batch_size``: conversations
    answered side by side, ``max_batch_tokens``: their number times the longest one's positions (what the LLM's cache
    must hold), ``max_prefill_tokens``: the same for prompts that are read in one go. ``max_queue``: requests that are
    being received, prepared or waiting. ``max_waiting_mb``: memory that bodies and clips of these may take together.
    ``max_audio_secs``, ``max_audios``, ``max_text_chars``: of one request. ``max_context``: positions of prompt and
    answer, null takes the LLM's. ``max_new_tokens``: of an answer whose request does not say. ``drain_secs``: how long
    running answers may take after SIGTERM. ``num_workers``: threads that decode audio and tokenise. ``transcriber``:
    whether clients may ask for Whisper's transcripts.
    """

    name: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    allowed_hosts: list[str] = field(default_factory=list)
    max_batch_size: int = 64
    max_batch_tokens: int = 131_072
    max_prefill_tokens: int = 32_768
    max_queue: int = 128
    max_waiting_mb: int = 4096
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

    @property
    def max_body_bytes(self) -> int:
        return int(self.max_body_mb * 2**20)

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
