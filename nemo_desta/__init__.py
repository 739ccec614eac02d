"""nemo_desta: a NeMo plugin that gives a frozen text LLM ears (DeSTA self-generation, ALARM self-rephrasing)."""

from nemo_desta.package_info import __version__

__all__ = ["__version__"]
