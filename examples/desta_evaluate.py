"""Score a model, as ``desta evaluate``.

``python examples/desta_evaluate.py model=<folder> benchmarks=[mmau] data_root=<dir> output=<dir>``
"""

from nemo_desta.cli.main import script

if __name__ == "__main__":
    script("evaluate")
