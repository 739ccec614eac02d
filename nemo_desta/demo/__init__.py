"""The embedded default: a small closed world in which every part of the real pipeline runs on a laptop.

``world`` (what there is to hear) and ``prompts`` (how it is asked and answered) are read by everything else:
``corpus`` (clips from ``speech`` and ``sounds``), ``llm`` (the small language model) and ``encoders`` (stand-ins of
Whisper and BEATs).
"""
