"""Summed cross-entropy at supervised positions only; the division by the token count happens at the optimiser step.

Hidden states are gathered before lm_head, so the (positions x vocabulary) logits exist for targets alone.
Letters: N supervised tokens, D LLM width, V vocabulary.
"""

import importlib.util

import torch
import torch.nn.functional as F
from torch import nn


def liger_available() -> bool:
    """Whether liger-kernel's fused linear cross-entropy can run on this machine."""
    return torch.cuda.is_available() and importlib.util.find_spec("liger_kernel") is not None


def choose_cross_entropy(setting: str) -> str:
    """Resolve ``auto | liger | torch``; "liger" where it cannot run is an error, not a fallback."""
    if setting not in ("auto", "liger", "torch"):
        raise ValueError(f"model.cross_entropy must be auto, liger or torch, found '{setting}'")
    if setting == "liger" and not liger_available():
        raise RuntimeError("model.cross_entropy=liger needs a GPU and liger-kernel: pip install liger-kernel")
    return "liger" if setting == "liger" or (setting == "auto" and liger_available()) else "torch"


def summed_cross_entropy(
    hidden: torch.Tensor, lm_head: nn.Module, target_ids: torch.Tensor, *, implementation: str = "torch"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss summed over tokens, and how many of them the argmax gets right.

    Args:
        hidden: (N, D), hidden states that predict ``target_ids`` (N,).
        lm_head: maps (N, D) to (N, V).
        implementation: "torch", or "liger" (fused, no logits in memory, no count of correct tokens: -1).

    Returns:
        (loss, num_correct): scalars, the loss in float32.
    """
    if implementation == "liger":
        from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

        fused = LigerFusedLinearCrossEntropyLoss(reduction="sum")
        loss = fused(lm_head.weight, hidden.to(lm_head.weight.dtype), target_ids, lm_head.bias)
        return loss.float(), hidden.new_tensor(-1)
    logits = lm_head(hidden)
    num_correct = (logits.detach().argmax(-1) == target_ids).sum()
    return F.cross_entropy(logits.float(), target_ids, reduction="sum"), num_correct


def decoder_of(llm: nn.Module) -> nn.Module:
    """A causal LLM without its head. In transformers 4 only text-only classes name it in ``base_model``."""
    return llm.base_model if llm.base_model is not llm else llm.model


@torch.no_grad()
def has_plain_head(llm: nn.Module) -> bool:
    """Whether the LLM's logits are ``lm_head(last hidden state)`` and nothing more.

    The LLM is probed with a few tokens, because its config does not tell: settings that change logits (soft caps,
    scales) have many names and may be nested.
    """
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        decoder_of(llm).register_forward_hook(lambda _, args, out: seen.update(decoded=out.last_hidden_state)),
        llm.get_output_embeddings().register_forward_hook(lambda _, args, out: seen.update(read=args[0], made=out)),
    ]
    try:
        logits = llm(input_ids=torch.arange(8, device=llm.device)[None], use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    if len(seen) < 3:
        return False
    return torch.equal(seen["decoded"], seen["read"]) and torch.equal(seen["made"].float(), logits.float())
