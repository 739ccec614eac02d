"""Make training rows from a labelled corpus, as ``desta generate``; the same command resumes a killed run.

``python examples/desta_generate_data.py corpus=... llm=... output=...``
"""

from nemo_desta.cli.main import script

if __name__ == "__main__":
    script("generate")
