"""The demo: a small closed world in which every part of the real pipeline runs on a laptop.

All modules use ``world`` (tasks and values) and ``prompts`` (questions and answers):
``corpus`` (clips from ``speech`` and ``sounds``), ``llm`` (the small language model) and ``encoders`` (stand-ins of
Whisper and BEATs).
"""
