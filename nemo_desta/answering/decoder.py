"""The one decode loop: a batch whose rows may be added and removed between any two tokens.

Chat, files of rows, the server, thinking budgets and the recipes' local engine use it. Rows of different length are
right-aligned: the cache of each layer is (B, heads, T, width), ``mask`` says which of the T columns a row has filled.
When a row is added, the shorter of the two caches is left-padded. When rows are removed, their cache entries and any
column that no remaining row uses are dropped. Positions are counted per row, so a row's tokens do not depend on the
other rows. Letters: B rows, Z prompt length, T cached columns, D LLM width, V vocabulary.
"""

import inspect
import itertools
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel

from nemo_desta.answering.sampling import Drawer, Sampling, draw


@dataclass
class Running:
    """One row in generation. ``forced``: ids that come next, whatever the LLM would generate."""

    key: int
    drawer: Drawer
    written: list[int] = field(default_factory=list)
    forced: deque[int] = field(default_factory=deque)


class Decoder:
    """Generates with a causal LLM, one token per row and `step`."""

    def __init__(self, llm: PreTrainedModel) -> None:
        if getattr(llm, "_is_stateful", False):
            raise ValueError(
                f"{type(llm).__name__} keeps a recurrent state instead of keys and values; rows cannot be added to "
                "and removed from a running batch of such an LLM, so it is not supported here"
            )
        self.llm = llm
        self.rows: list[Running] = []
        self._keys = itertools.count()
        self._cache = DynamicCache()  # per layer: keys and values (B, heads, T, width)
        self._mask = torch.zeros(0, 0, dtype=torch.bool, device=llm.device)  # (B, T)
        self._logits = torch.zeros(0, 0, device=llm.device)  # (B or fewer, V): of the rows that were fed
        self._unfed: list[int] = []  # the last token of every row, not yet read by the LLM
        accepted = inspect.signature(llm.forward).parameters
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}

    def __len__(self) -> int:
        return len(self.rows)

    @torch.no_grad()
    def add(self, prompts: Tensor, attention_mask: Tensor, samplings: Sequence[Sampling]) -> list[int]:
        """Add rows in one forward pass; returns their keys.

        ``prompts``: embeddings (B, Z, D) or ids (B, Z), left-padded with mask (B, Z) bool.
        """
        self._feed()
        cache = DynamicCache()
        positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        inputs = {"inputs_embeds" if prompts.ndim == 3 else "input_ids": prompts}
        logits = self._run(cache, attention_mask, positions, **inputs)
        if self.rows:
            width = max(self._mask.shape[1], attention_mask.shape[1])
            for old, new in zip(self._cache.layers, cache.layers, strict=True):
                new.keys = torch.cat([_widen(old.keys, width), _widen(new.keys, width)])
                new.values = torch.cat([_widen(old.values, width), _widen(new.values, width)])
            logits = torch.cat([self._logits, logits])
            masks = (pad(mask, (width - mask.shape[1], 0)) for mask in (self._mask, attention_mask))
            attention_mask = torch.cat(list(masks))
        self._cache, self._mask, self._logits = cache, attention_mask, logits
        new = [Running(next(self._keys), Drawer(sampling)) for sampling in samplings]
        self.rows += new
        return [row.key for row in new]

    @torch.no_grad()
    def step(self) -> list[tuple[int, int]]:
        """The next token of every row as (key, id), in the order of adding. Forced tokens count."""
        if not self.rows:
            return []
        self._feed()
        ids = draw(self._logits, [row.drawer for row in self.rows], [row.written for row in self.rows])
        for i, row in enumerate(self.rows):
            if row.forced:
                ids[i] = row.forced.popleft()
            row.written.append(ids[i])
        self._unfed = ids
        return [(row.key, token) for row, token in zip(self.rows, ids, strict=True)]

    def force(self, key: int, ids: Iterable[int]) -> None:
        """Make ``ids`` the next tokens of a row."""
        next(row for row in self.rows if row.key == key).forced.extend(ids)

    def remove(self, keys: Collection[int]) -> None:
        """Drop rows, and free the part of the cache that only they needed."""
        kept = [i for i, row in enumerate(self.rows) if row.key not in keys]
        if len(kept) == len(self.rows):
            return
        self.rows = [self.rows[i] for i in kept]
        if self._unfed:
            self._unfed = [self._unfed[i] for i in kept]
        if not kept:
            self._cache, self._mask, self._logits = DynamicCache(), self._mask[:0, :0], self._logits[:0]
            return
        index = torch.tensor(kept, device=self._mask.device)
        mask = self._mask[index]
        first = int(mask.any(dim=0).int().argmax())  # columns before it are padding for every row
        self._mask = mask[:, first:]
        for layer in self._cache.layers:
            layer.keys, layer.values = layer.keys[index][:, :, first:], layer.values[index][:, :, first:]
        self._logits = self._logits[index]

    def _feed(self) -> None:
        """Let the LLM read each row's last token; gives the logits of the next ones."""
        if not self._unfed:
            return
        self._mask = pad(self._mask, (0, 1), value=True)
        positions = self._mask.sum(-1, keepdim=True) - 1
        ids = torch.tensor(self._unfed, device=self._mask.device)[:, None]
        self._logits = self._run(self._cache, self._mask, positions, input_ids=ids)
        self._unfed = []

    def _run(self, cache: DynamicCache, mask: Tensor, position_ids: Tensor, **inputs: Tensor) -> Tensor:
        """Logits (B, V) after the last position."""
        out = self.llm(
            **inputs,
            attention_mask=mask.long(),
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            **self._last_only,
        )
        return out.logits[:, -1]


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout and batch statistics off. A model in eval mode already is not walked through: that costs time."""
    was_training = model.training
    if was_training:
        model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()


def _widen(cached: Tensor, width: int) -> Tensor:
    """(B, heads, T, width of a head) -> T = ``width``, zeros on the left."""
    return pad(cached, (0, 0, width - cached.shape[2], 0))
