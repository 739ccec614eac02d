"""Parameter names of the released models' connectors -> ours. One table per original; values are untouched.

A released tensor that no rule names is an error: nothing of a checkpoint is dropped in silence.
"""

import re

import torch

_BERT = [
    (r"layer\.(\d+)\.attention\.self\.", r"layers.\1.self_attention."),
    (r"layer\.(\d+)\.attention\.output\.dense\.", r"layers.\1.self_attention.output."),
    (r"layer\.(\d+)\.attention\.output\.LayerNorm\.", r"layers.\1.self_attention.norm."),
    (r"layer\.(\d+)\.crossattention\.self\.", r"layers.\1.cross_attention."),
    (r"layer\.(\d+)\.crossattention\.output\.dense\.", r"layers.\1.cross_attention.output."),
    (r"layer\.(\d+)\.crossattention\.output\.LayerNorm\.", r"layers.\1.cross_attention.norm."),
    (r"layer\.(\d+)\.intermediate(?:_query)?\.dense\.", r"layers.\1.feed_forward.up."),
    (r"layer\.(\d+)\.output(?:_query)?\.dense\.", r"layers.\1.feed_forward.down."),
    (r"layer\.(\d+)\.output(?:_query)?\.LayerNorm\.", r"layers.\1.feed_forward.norm."),
]


def from_desta(state: dict[str, torch.Tensor], encoder: str = "whisper") -> dict[str, torch.Tensor]:
    """DeSTA2's and DeSTA2.5's connector (names without ``perception.connector.``) -> a `QFormerProjector`'s."""
    branch = f"branches.{encoder}."
    rules = [(rf"qformer\.{old}", branch + new) for old, new in _BERT]
    rules += [
        (r"layer_weights$", branch + "layer_logits"),
        (r"proj\.0\.", branch + "norm."),
        (r"proj\.1\.", "output."),
    ]
    prompts = {name: tensor for name, tensor in state.items() if name.startswith("layer_prompts.")}
    renamed = _rename({name: tensor for name, tensor in state.items() if name not in prompts}, rules)
    # one (1, Q, C) tensor per tap -> (N, Q, C)
    renamed[branch + "queries"] = torch.cat([prompts[f"layer_prompts.{tap}"] for tap in range(len(prompts))])
    return renamed


def _rename(state: dict[str, torch.Tensor], rules: list[tuple[str, str]]) -> dict[str, torch.Tensor]:
    renamed = {}
    for name, tensor in state.items():
        for old, new in rules:
            changed, count = re.subn("^" + old, new, name)
            if count:
                renamed[changed] = tensor
                break
        else:
            raise ValueError(f"'{name}' is no tensor of the released connector: no rule names it")
    return renamed
