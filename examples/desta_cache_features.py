"""Encode all clips of a training config once, as ``desta features``.

``python examples/desta_cache_features.py --config-name desta25 data.feature_cache='{folder: <folder>}' ...``

The training with the same settings then reads the encoders' outputs. The same command resumes after a kill.
"""

from nemo_desta.cli.main import script

if __name__ == "__main__":
    script("features")
