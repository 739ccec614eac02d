"""Name, version and one-line description of the package; read by setup.py without importing anything else."""

__package_name__ = "nemo_desta"
__version__ = "0.1.0"
__description__ = "A NeMo plugin that gives a frozen text LLM ears: fused audio encoders, one projector, no forgetting."
__license__ = "Apache-2.0"
