"""Name, version and requirements of the package. setup.py installs this list and ``doctor`` checks it.

setup.py reads this file before any package is installed, so it must not import anything.
"""

__package_name__ = "nemo_desta"
__version__ = "0.1.0"
__description__ = (
    "A NeMo plugin that gives a frozen text LLM ears: fused audio encoders, one projector, no forgetting."
)
__license__ = "Apache-2.0"
__python_requires__ = ">=3.10,<3.14"
CLASSIFIERS = [
    "Development Status :: 4 - Beta",
    "Intended Audience :: Science/Research",
    "License :: OSI Approved :: Apache Software License",
    "Operating System :: POSIX :: Linux",
    *(f"Programming Language :: Python :: {version}" for version in ("3.10", "3.11", "3.12", "3.13")),
    "Topic :: Multimedia :: Sound/Audio :: Speech",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
]

#: Needed by `ops` and `perception`: enough for a GPU machine without NeMo.
REQUIRES = [
    "huggingface_hub>=0.30",
    "numpy>=1.26",
    "safetensors>=0.4",
    "tokenizers>=0.21",
    "torch>=2.6",
    "tqdm>=4.66",
    "transformers>=4.57,<6",
]

#: One list per task, e.g. `pip install 'nemo_desta[train]'`. constraints/ pins the versions of the tested stacks.
EXTRAS = {
    "train": [
        "nemo_toolkit[core,common-only,asr-only]>=2.7.0,<3.1",
        "hydra-core>=1.3.2",
        "jinja2>=3.1",  # chat templates
        "lhotse>=1.32",
        "lightning>=2.4",
        "omegaconf>=2.3",
        "peft>=0.17",  # NeMo's speechlm2 imports it, with or without LoRA
        "soundfile>=0.12",
        "soxr>=0.4",
        "tensorboard>=2.16",
        "zstandard>=0.22",  # rows in .jsonl.zst
    ],
    "megatron": ["megatron-core>=0.16,<0.20"],
    "recipes": [
        "aiohttp>=3.9",
        "datasets>=3",  # corpora in the Hugging Face form
        "hydra-core>=1.3.2",
        "jinja2>=3.1",
        "omegaconf>=2.3",
        "orjson>=3.9",
        "py3langid>=0.4",  # contains its language models
        "pyarrow>=14",
        "pyyaml>=6",
        "scipy>=1.11",
        "soundfile>=0.12",
        "soxr>=0.4",
        "zstandard>=0.22",
    ],
    "measure": ["praat-parselmouth>=0.4.5", "pyloudnorm>=0.1.1"],  # parselmouth is GPLv3: a separate extra
    "cluster": ["ray[data]>=2.40"],
    "serve": ["fastapi>=0.115", "h11>=0.14", "prometheus_client>=0.20", "pydantic>=2.7", "uvicorn>=0.30"],
    "transcript": ["silero-vad>=6.2"],  # contains its model; torchaudio is not needed
    "web": ["fastapi>=0.115", "gradio>=6.5,<7"],
    "eval": ["jinja2>=3.1", "jiwer>=3.1", "py3langid>=0.4", "whisper_normalizer>=0.1.10"],
    # vLLM pins its own torch: in an environment of its own
    "vllm": ["soundfile>=0.12", "soxr>=0.4", "uvloop>=0.20", "vllm>=0.32,<0.34"],
    "docs": ["ipykernel>=6", "mkdocs-material>=9.5", "mkdocstrings[python]>=0.26", "nbclient>=0.10"],
    "demo": [
        "espeakng-loader>=0.2.4",  # contains the espeak-ng library and its voices
        "matplotlib>=3.8",
        "scikit-learn>=1.4",  # the linear probe of the results table
        "scipy>=1.11",
        "soundfile>=0.12",
        "soxr>=0.4",
    ],
    "dev": [
        "hypothesis>=6.100",
        "import-linter>=2.1",
        "openai>=1.60",  # the official client, for tests of the server
        "playwright>=1.45",  # drives the system's Chromium in tests of the web page; never downloads its own
        "pytest>=8",
        "pytest-xdist>=3.6",
        "ruff>=0.9",
        "triton>=3.2; platform_system == 'Linux'",  # runs the kernels in its interpreter on a CPU
    ],
}
