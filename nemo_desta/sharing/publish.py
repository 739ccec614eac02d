"""Uploads an exported folder to the Hugging Face hub with the user's own token."""

from pathlib import Path
from typing import Any

from nemo_desta.errors import ConfigError
from nemo_desta.sharing.references import HUB_ID


def push_folder(folder: str | Path, repo_id: str | None, *, private: bool = False, api: Any = None) -> str:
    """Upload a folder as a model repository, created if it does not exist; returns its URL.

    ``api``: a `huggingface_hub.HfApi`; by default one with the token of ``HF_TOKEN`` or of the hub's login.

    Raises:
        ConfigError: ``repo_id`` is not ``owner/name``, no token, or a public repository with ``private=True``.
        ConnectionError: the hub refuses or cannot be reached.
    """
    check_repo_id(repo_id)
    api = api or open_api()
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        is_public = private and not api.repo_info(repo_id).private
        if not is_public:
            # A model without LoRA must not keep the LoRA folder of an earlier upload.
            api.upload_folder(
                folder_path=str(folder), repo_id=repo_id, commit_message="Model export", delete_patterns="lora/*"
            )
    except Exception as error:  # the hub's client raises its own errors, its transport's and the system's
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no reason given"]
        raise ConnectionError(f"upload to '{repo_id}' failed: {type(error).__name__}: {lines[0]}") from None
    if is_public:
        raise ConfigError(f"'{repo_id}' is on the hub and public, private=true was asked for: nothing was uploaded")
    return str(url)


def check_repo_id(repo_id: str | None) -> None:
    """Raise `ConfigError` unless it is ``owner/name``."""
    if not HUB_ID.fullmatch(repo_id or ""):
        raise ConfigError(f"push=true needs repo_id=owner/name, found {repo_id!r}")


def open_api() -> Any:
    """The hub's client with the user's token.

    Raises:
        ConfigError: there is no token.
    """
    from huggingface_hub import HfApi, get_token

    token = get_token()
    if token is None:
        raise ConfigError("push=true needs a token of the Hugging Face hub: set HF_TOKEN, or log in (hf auth login)")
    return HfApi(token=token)
