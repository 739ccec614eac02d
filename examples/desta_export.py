"""Export a trained model as one folder to share, as ``desta export``.

``python examples/desta_export.py model=runs/x output=my_model``
"""

from nemo_desta.cli.main import script

if __name__ == "__main__":
    script("export")
