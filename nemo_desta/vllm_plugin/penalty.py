"""Repetition penalty over the answer alone, as a logits processor of vLLM; loaded in the processes of vLLM."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from nemo_desta.vllm_plugin.decoder import PENALTY_KEY


class AnswerPenalty(AdapterLogitsProcessor):
    """Applies to requests whose ``extra_args`` hold ``PENALTY_KEY: [penalty, number of the prompt's last ids that
    belong to the answer]``."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: Any) -> Any:
        given = (params.extra_args or {}).get(PENALTY_KEY)
        return given and partial(penalized, *given)


def penalized(
    penalty: float, num_written: int, prompt_ids: list[int], output_ids: list[int], logits: Tensor
) -> Tensor:
    """logits (V,) with those of the answer's ids divided by ``penalty``, or multiplied by it if negative."""
    written = prompt_ids[len(prompt_ids) - num_written :] + output_ids
    ids = torch.tensor(sorted({token for token in written if token >= 0}), dtype=torch.int64, device=logits.device)
    scores = logits[ids]
    logits[ids] = torch.where(scores < 0, scores * penalty, scores / penalty)
    return logits
