"""Fit messages to the roles that a chat template accepts, found by probing the template.

A template may refuse a system message (Gemma 2, Mistral 7B v0.1), leave it out, or refuse two consecutive turns of one
role. No content may get lost: every message's content must appear in the rendered text.
"""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nemo_desta.config import nearest
from nemo_desta.errors import ConfigError, RowError

logger = logging.getLogger(__name__)

Messages = list[dict[str, Any]]
#: Changes to try, in this order, for each `PromptConfig.system_role`; merging only after the template has refused.
STEPS: dict[str, tuple[tuple[str, ...], ...]] = {
    "auto": ((), ("fold",), ("merge",), ("fold", "merge")),
    "keep": ((),),
    "fold": (("fold",), ("fold", "merge")),
    "drop": (("drop",), ("drop", "merge")),
}
_SAID = {
    "fold": "system texts are put before the next user text",
    "drop": "system messages are left out",
    "merge": "consecutive turns of one role become one, with a blank line between them",
}
#: Probe results that are cached, one per sequence of roles.
_MAX_KNOWN = 4096
_MARK = "\ue000"


class TemplateRoles:
    """Changes messages to a form that a chat template accepts.

    Args:
        apply: renders messages by the template; raises `RowError` where it refuses them.
        system_role: see `PromptConfig`.

    Raises:
        ConfigError: an unknown ``system_role``.
    """

    def __init__(self, apply: Callable[[Messages], str], system_role: str = "auto") -> None:
        if system_role not in STEPS:
            raise ConfigError(f"unknown prompt.system_role '{system_role}'.{nearest(str(system_role), STEPS)}")
        self._apply = apply
        self.system_role = system_role
        self._known: dict[tuple[str, ...], tuple[str, ...] | str] = {}
        self._told: set[tuple[str, ...]] = set()

    def fit(self, messages: Sequence[Mapping[str, Any]]) -> Messages:
        """``messages`` (role, content) with no more changes than the template and ``system_role`` need.

        Raises:
            RowError: the template refuses them, or leaves the content of one out.
        """
        roles = tuple(message["role"] for message in messages)
        if (steps := self._known.get(roles)) is None:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            steps = self._known[roles] = self._ask(roles)
        if isinstance(steps, str):
            raise RowError("template", steps)
        return _change(messages, steps) or []

    def _ask(self, roles: tuple[str, ...]) -> tuple[str, ...] | str:
        """The first steps that work for messages of these roles, or why none do."""
        asked = [{"role": role, "content": f"{_MARK}{i}{_MARK}"} for i, role in enumerate(roles)]
        problem, refused, tried = "", False, []
        for steps in STEPS[self.system_role]:
            changed = _change(asked, steps)
            if changed is None or changed in tried or ("merge" in steps and not refused):
                continue
            tried.append(changed)
            try:
                missing = _missing(changed, self._apply(changed))
            except RowError as error:
                refused, problem = True, problem or str(error)
                continue
            if not missing:
                self._tell(steps, problem, changed != asked)
                return steps
            problem = problem or (
                f"the chat template leaves out the content of {', '.join(missing)}: it does not render such a message"
            )
        return problem or "no user message that the system text could be put into (prompt.system_role=fold)"

    def _tell(self, steps: tuple[str, ...], problem: str, changed: bool) -> None:
        if changed and steps not in self._told:
            self._told.add(steps)
            why = f"{problem}; so " if problem else ""
            logger.warning("%s%s (prompt.system_role=%s)", why, " and ".join(map(_SAID.get, steps)), self.system_role)


def _change(messages: Sequence[Mapping[str, Any]], steps: Sequence[str]) -> Messages | None:
    """The messages after ``steps``; None if a system text has no user text after it, or no message is left."""
    result: Messages = []
    folded: list[str] = []
    for message in map(dict, messages):
        if message["role"] == "system" and "drop" in steps:
            continue
        if message["role"] == "system" and "fold" in steps:
            folded.append(message["content"])
            continue
        if folded and message["role"] == "user":
            message["content"] = "\n\n".join([*folded, message["content"]])
            folded = []
        if "merge" in steps and result and result[-1]["role"] == message["role"]:
            result[-1]["content"] += "\n\n" + message["content"]
        else:
            result.append(message)
    return None if folded or not result else result


def _missing(messages: Messages, rendered: str) -> list[str]:
    found = set(re.findall(f"{_MARK}[0-9]+{_MARK}", rendered))
    return [
        f"message {number} ({message['role']})"
        for number, message in enumerate(messages)
        if not found.issuperset(re.findall(f"{_MARK}[0-9]+{_MARK}", message["content"]))
    ]
