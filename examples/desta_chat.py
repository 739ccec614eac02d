"""Talk to a trained model, as ``desta chat``.

``python examples/desta_chat.py model=<folder> audio=x.wav prompt="Who is speaking?"``
"""

from nemo_desta.cli.main import script

if __name__ == "__main__":
    script("chat")
