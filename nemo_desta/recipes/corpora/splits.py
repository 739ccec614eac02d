"""A validation split for corpora that have none: whole groups of the training clips, chosen by hash and seed."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from nemo_desta.errors import ConfigError

TRAIN, VALID = "train", "valid"
#: Names of splits that count as a validation split.
VALIDATION_NAMES = frozenset({VALID, "validation", "val", "dev"})


@dataclass(frozen=True)
class ValidationConfig:
    """``share`` of the training clips that become the split ``valid`` where a corpus has none; 0: none do."""

    share: float = 0.05
    seed: int = 0

    def check(self) -> None:
        """Raise ``ConfigError`` for a share outside [0, 1)."""
        if not 0 <= self.share < 1:
            raise ConfigError(f"validation.share must be from 0 to below 1, found {self.share!r}")


def group_of(clip: Mapping[str, Any]) -> str:
    """What stays in one split: the clip's group, else its speaker, else the clip itself."""
    return str(clip.get("group") or clip.get("speaker_id") or clip["id"])


def group_hash(group: str, seed: int) -> int:
    """64 bits that are the same on every machine and do not depend on other groups."""
    return int.from_bytes(blake2b(f"{seed}\n{group}".encode(), digest_size=8).digest(), "big")


def validation_groups(sizes: Mapping[int, int], share: float) -> frozenset[int]:
    """The groups that become the validation split.

    ``sizes``: hash of a group -> its clips. Groups are taken in the order of their hashes while they fit into
    ``share`` of all clips; if none fits, the smallest one is taken. One group always remains for training.
    """
    if len(sizes) < 2 or share <= 0:
        return frozenset()
    left = share * sum(sizes.values())
    chosen = set()
    for group in sorted(sizes):
        if sizes[group] <= left and len(chosen) < len(sizes) - 1:
            chosen.add(group)
            left -= sizes[group]
    return frozenset(chosen or {min(sizes, key=lambda group: (sizes[group], group))})
