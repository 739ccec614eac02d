"""Measure which prompts an LLM answers rightly, as ``desta generate --config-name probe``; writes the ones that work.

``python examples/desta_probe_llm.py llm=... corpus=... data_root=... output=pool.yaml``; then ``prompts=pool.yaml``.
"""

from nemo_desta.cli.main import script

if __name__ == "__main__":
    script("generate", "--config-name", "probe")
