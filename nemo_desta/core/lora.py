"""Trained LoRA in PEFT's format: a folder that ``peft.PeftModel.from_pretrained(llm, folder)`` opens."""

import re
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from nemo_desta.config import LoraConfig
from nemo_desta.perception.tensor_files import save_tensors

LORA_FOLDER = "lora"
WEIGHTS_FILE = "adapter_model.safetensors"
_OURS = re.compile(r"llm\.(?P<module>.+\.lora_[AB])\.default\.weight")
_PEFTS = re.compile(r"base_model\.model\.(?P<module>.+\.lora_[AB])\.weight")


def split_lora(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split trained tensors into the projector's and LoRA's."""
    lora = {name: tensor for name, tensor in tensors.items() if ".lora_" in name}
    return {name: tensor for name, tensor in tensors.items() if name not in lora}, lora


def save_lora(folder: Path, config: LoraConfig, tensors: Mapping[str, Tensor], *, base_model: str) -> None:
    """Write adapter_config.json and adapter_model.safetensors. ``base_model``: the LLM's name in PEFT's config."""
    from peft import LoraConfig as PeftConfig

    folder.mkdir(parents=True, exist_ok=True)
    renamed = {_rename(name, _OURS, "base_model.model.{}.weight"): t.contiguous() for name, t in tensors.items()}
    save_tensors(renamed, folder / WEIGHTS_FILE)
    PeftConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_model,
        inference_mode=True,
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=sorted(config.target_modules),
    ).save_pretrained(str(folder))


def load_lora(folder: Path) -> dict[str, Tensor]:
    """Read `save_lora`'s tensors under the names of this package's model."""
    tensors = load_file(folder / WEIGHTS_FILE)
    return {_rename(name, _PEFTS, "llm.{}.default.weight"): tensor for name, tensor in tensors.items()}


def _rename(name: str, rule: re.Pattern, form: str) -> str:
    if (match := rule.fullmatch(name)) is None:
        raise ValueError(f"'{name}' is not a LoRA tensor: only lora_A and lora_B weights are known")
    return form.format(match["module"])
