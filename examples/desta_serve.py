"""Serve a trained model over OpenAI's chat API, as ``desta serve``.

``python examples/desta_serve.py model=<folder>``
"""

from nemo_desta.cli.main import script

if __name__ == "__main__":
    script("serve")
