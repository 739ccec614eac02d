"""Rename the parameters of released connectors to ours, with one table per original; values do not change.

A released tensor without a rule is an error, so no tensor is dropped silently.
"""

import re
from collections.abc import Mapping

import torch

#: Prefixes of the frozen parts' names, which an ALARM checkpoint may contain.
ALARM_FROZEN = ("embed_tokens.", "layers.", "norm.", "rotary_emb.", "lm_head.", "audio_encoder")

_LAYER = r"layer\.(?P<i>\d+)\."
_BERT = [
    (_LAYER + r"attention\.self\.", "layers.{i}.self_attention."),
    (_LAYER + r"attention\.output\.dense\.", "layers.{i}.self_attention.output."),
    (_LAYER + r"attention\.output\.LayerNorm\.", "layers.{i}.self_attention.norm."),
    (_LAYER + r"crossattention\.self\.", "layers.{i}.cross_attention."),
    (_LAYER + r"crossattention\.output\.dense\.", "layers.{i}.cross_attention.output."),
    (_LAYER + r"crossattention\.output\.LayerNorm\.", "layers.{i}.cross_attention.norm."),
    (_LAYER + r"intermediate(?:_query)?\.dense\.", "layers.{i}.feed_forward.up."),
    (_LAYER + r"output(?:_query)?\.dense\.", "layers.{i}.feed_forward.down."),
    (_LAYER + r"output(?:_query)?\.LayerNorm\.", "layers.{i}.feed_forward.norm."),
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


def from_alarm(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """All of an ALARM model -> a `ConvProjector`'s, markers included.

    Names may begin with ``model.``. Tensors of the frozen LLM and encoders are skipped and not read.
    """
    audio: dict[str, torch.Tensor] = {}
    adapters: dict[str, dict[str, torch.Tensor]] = {}
    fusion: dict[str, torch.Tensor] = {}
    for full in state:
        name = full.removeprefix("model.")
        if name.startswith(ALARM_FROZEN):
            continue
        tensor = state[full]
        if name in ("audio_start_emb", "audio_end_emb"):
            audio["markers." + name.split("_")[1]] = tensor.reshape(-1)
        elif name.startswith("audio_adapter.adapters."):
            encoder, _, rest = name.removeprefix("audio_adapter.adapters.").partition(".")
            adapters.setdefault(encoder, {})[rest] = tensor
        elif name.startswith("audio_fusion.fusion_model."):
            fusion[name.removeprefix("audio_fusion.fusion_model.")] = tensor
        else:
            raise ValueError(f"'{full}' is no tensor of an ALARM model: no rule names it")
    for encoder, tensors in adapters.items():
        audio |= {f"adapters.{encoder}.{name}": tensor for name, tensor in from_alarm_adapter(tensors).items()}
    if fusion:
        perceiver = any(name.startswith("perceiver.") for name in fusion)
        renamed = from_alarm_perceiver(fusion) if perceiver else from_alarm_fusion(fusion)
        audio |= {f"fusion.{name}": tensor for name, tensor in renamed.items()}
    return audio


def from_alarm_adapter(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One of ALARM's adapters (names without ``adapters.<encoder>.``) -> an `Adapter`'s."""
    body = r"(?:adapter|adapters\.(?P<i>\d+))\."
    rules = [
        (r"layer_fusion\.layer_weights$", "layer_logits"),
        (r"llm_proj\.", "output."),
        (body + r"input_proj\.", "bodies.{i}.input."),
        (body + r"downsampler\.(?P<s>\d+)\.0\.", "bodies.{i}.stages.{s}.conv."),
        (body + r"downsampler\.(?P<s>\d+)\.2\.(?:norm\.)?", "bodies.{i}.stages.{s}.norm."),
        (body + r"model\.", "bodies.{i}."),
    ]
    return _rename(state, rules)


def from_alarm_fusion(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """ALARM-CA's fusion (names without ``fusion_model.``) -> a `CrossAttentionFusion`'s."""
    return _rename(state, [("in_proj.", "inputs."), ("condition_modules.", "readers."), ("out_proj.", "output.")])


def from_alarm_perceiver(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """ALARM-P's fusion (names without ``fusion_model.``) -> a `PerceiverFusion`'s."""
    attention = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "output"}
    norms = {"q_norm": "norm", "norm": "norm", "kv_norm": "context_norm"}
    rules = [(r"out_proj\.", "outputs."), (r"cond_start_emb$", "start"), (r"cond_end_emb$", "end")]
    rules.append((r"perceiver\.(?P<e>\w+)\.latent_provider\._query$", "perceivers.{e}.latents"))
    for which, place in (("1", "first"), ("n", "later")):
        for old, new in (
            (rf"cross_attn_{which}\.", f"read_{place}."),
            (rf"self_attn_{which}\.(?P<i>\d+)\.", f"think_{place}.{{i}}."),
        ):
            old, new = r"perceiver\.(?P<e>\w+)\." + old, "perceivers.{e}." + new
            rules += [
                (rf"{old}0\.module\.attention\.{theirs}\.", f"{new}{ours}.") for theirs, ours in attention.items()
            ]
            rules += [(rf"{old}0\.module\.{theirs}\.", f"{new}{ours}.") for theirs, ours in norms.items()]
            rules.append((rf"{old}1\.module\.", f"{new}mlp."))
    renamed = _rename(state, rules)
    return {name: tensor[0] if name in ("start", "end") else tensor for name, tensor in renamed.items()}


def from_salmonn(
    state: dict[str, torch.Tensor], speech: str = "whisper", audio: str = "beats"
) -> dict[str, torch.Tensor]:
    """SALMONN's connector -> a `WindowQFormerProjector`'s."""
    rules = [(rf"speech_Qformer\.bert\.encoder\.{old}", new) for old, new in _BERT]
    rules += [
        (r"speech_Qformer\.bert\.embeddings\.LayerNorm\.", "query_norm."),
        (r"ln_speech\.", f"norms.{speech}."),
        (r"ln_audio\.", f"norms.{audio}."),
        (r"speech_query_tokens$", "queries"),
        (r"speech_llama_proj\.", "output."),
    ]
    unused = "speech_Qformer.bert.embeddings.position_ids"  # a buffer of counting numbers, for text only
    renamed = _rename({name: tensor for name, tensor in state.items() if name != unused}, rules)
    renamed["queries"] = renamed["queries"][0]  # (1, Q, H) -> (Q, H)
    return renamed


def _rename(state: dict[str, torch.Tensor], rules: list[tuple[str, str]]) -> dict[str, torch.Tensor]:
    """Replace the beginning of each name by the first rule that matches it; {x} is the rule's group x, 0 if unused."""
    renamed = {}
    for name, tensor in state.items():
        matches = ((re.match(old, name), new) for old, new in rules)
        match, new = next(((match, new) for match, new in matches if match), (None, ""))
        if match is None:
            raise ValueError(f"'{name}' is no tensor of the released connector: no rule names it")
        renamed[new.format(**match.groupdict("0")) + name[match.end() :]] = tensor
    return renamed
