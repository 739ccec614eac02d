"""Train a DeSTA model, as ``desta train``.

``python examples/speechlm_desta.py --config-name desta25 [key=value ...]``

The same command resumes a killed run; ``check=true`` checks and stops.
"""

from nemo_desta.cli.main import script

if __name__ == "__main__":
    script("train")
