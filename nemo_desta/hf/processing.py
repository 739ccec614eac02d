"""The processor: conversations, or texts with tags, and clips -> ids, masks and samples for the model.

Prompts are those of `PromptBuilder`, as everywhere in this package; each audio's slot becomes as many audio tokens as
the clip has vectors. Letters: B rows, L positions, A clips of all rows in reading order, S samples.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, PreTrainedTokenizerBase, ProcessorMixin

from nemo_desta.answering.clips import Clip, load_clip
from nemo_desta.answering.loading import load_messages, prompt_of
from nemo_desta.config import ModelConfig, check_keys, parse, to_dict
from nemo_desta.core.build import build_prompts
from nemo_desta.core.folder import CONFIG_FILE, relocate, save_tokenizer
from nemo_desta.core.tokenizers import load_tokenizer, with_audio_token, without_audio_token
from nemo_desta.core.trust import Grant, check_model, code_named
from nemo_desta.errors import ConfigError, RowError
from nemo_desta.hf.inputs import DestaInputs, clips_of
from nemo_desta.hf.loading import PROCESSOR_FILE, model_folder
from nemo_desta.perception.build import audio_rates, token_counter
from nemo_desta.sources import resolve_source
from nemo_desta.types import AUDIO_SLOT, Rates, first_rate


class DestaProcessor(ProcessorMixin):
    """Tokenizer, prompts and clips of one model.

    Args:
        tokenizer: the model folder's, with or without the audio's token.
        settings: the model's config; its encoders' folders are read for the number of vectors of a clip.
        chat_template: the tokenizer's own; prompts have no other.
    """

    attributes = ["tokenizer"]
    tokenizer_class = "AutoTokenizer"

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, settings: ModelConfig, chat_template: str | None = None
    ) -> None:
        tag = settings.prompt.audio_locator_tag
        plain = without_audio_token(tokenizer)
        tokenizer, self.audio_token_id = with_audio_token(plain, tag)
        if self.audio_token_id is None:
            raise ConfigError(f"the tokenizer '{plain.name_or_path}' is not a fast one, so {tag} cannot be a token")
        super().__init__(tokenizer, chat_template=tokenizer.chat_template)
        if chat_template not in (None, tokenizer.chat_template):
            raise ConfigError("prompts are rendered by the tokenizer's own chat template; give no other")
        self.settings = settings
        self.prompts = build_prompts(plain, settings.prompt)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        llm: str | None = None,
        encoders: Mapping[str, str] | None = None,
        trust_remote_code: bool | None = False,
        allow_targets: Sequence[str] = (),
        **options: Any,
    ) -> "DestaProcessor":
        """The processor of a model folder or hub id, or one that `save_pretrained` wrote.

        ``llm``, ``encoders``, ``trust_remote_code``, ``allow_targets``: as of the model's `from_pretrained`.

        Raises:
            FileNotFoundError: no model, or a part that is not there. UntrustedConfig: it needs more permissions.
        """
        folder = model_folder(pretrained_model_name_or_path, options)
        own = folder / PROCESSOR_FILE
        description = json.loads((own if own.is_file() else folder / CONFIG_FILE).read_text(encoding="utf-8"))
        grant = Grant(bool(trust_remote_code), allow_targets)
        settings = parse(ModelConfig, check_model(description.get("model"), folder, grant))
        settings = relocate(settings, folder, llm=llm, encoders=encoders)
        with code_named(str(folder)):
            tokenizer = load_tokenizer(folder, trust_remote_code=settings.llm.trust_remote_code)
        return cls(tokenizer, settings)

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **options: Any) -> list[str]:
        """Write the tokenizer and processor_config.json; returns the paths."""
        if push_to_hub or options:
            raise TypeError(f"save_pretrained only writes a folder; found {sorted({**options, 'push_to_hub': 1})}")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        save_tokenizer(folder, self.tokenizer)
        (folder / PROCESSOR_FILE).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        return [str(folder / PROCESSOR_FILE)]

    def to_dict(self, **_: Any) -> dict[str, Any]:
        """The content of processor_config.json. transformers 4 passes its `repr` an argument without effect."""
        model = to_dict(replace(self.settings, llm=replace(self.settings.llm, tokenizer=None)))
        return {"processor_class": type(self).__name__, "model": model}

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "audio", "audio_lens"]

    @property
    def audio_token(self) -> str:
        """The tag that stands for one clip in a text."""
        return self.prompts.audio_locator_tag

    @cached_property
    def audio_rates(self) -> Rates:
        """Of ``audio`` in the outputs; clips of any rate are resampled to them."""
        return audio_rates(self.settings.perception)

    @property
    def sampling_rate(self) -> int:
        """The rate at which ``audio_lens`` counts, and that of arrays without one."""
        return first_rate(self.audio_rates)

    @cached_property
    def num_audio_tokens(self) -> Any:
        """Samples of a clip at `sampling_rate` -> its vectors. The encoders' configs are read, no weights."""
        llm = self.settings.llm
        with code_named(llm.path):
            config = AutoConfig.from_pretrained(resolve_source(llm.path), trust_remote_code=llm.trust_remote_code)
        return token_counter(self.settings.perception, config.get_text_config().hidden_size)

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        audio: Any = None,
        images: None = None,
        videos: None = None,
        video: None = None,
        *,
        sampling_rate: int | None = None,
        return_tensors: str = "pt",
        padding: bool | str = True,
        padding_side: str = "left",
    ) -> DestaInputs:
        """Prompts as text (what `apply_chat_template` renders; no template is applied here), with a tag per clip.

        Args:
            audio: one clip, the clips of all texts in reading order, or a list of clips per text; each is anything
                that `load_clip` accepts. ``sampling_rate``: of clips that are bare arrays.
            padding: True or False; False needs rows of one length.

        Returns:
            ``input_ids``, ``attention_mask`` (B, L) int64; with clips also ``audio`` (A, S) or (A, S, K) float32,
            ``audio_lens`` (A,) int64.

        Raises:
            RowError: no text, or tags and clips that differ in number. AudioError: a clip that cannot be read.
        """
        if any(given is not None for given in (images, videos, video)):
            raise TypeError("this model has no images and no videos")
        texts = [text] if isinstance(text, str) else list(text or ())
        if not texts:
            raise RowError("schema", f"no text; a prompt is a text with one {self.audio_token} per clip")
        items = clips_of(audio, [one.count(self.audio_token) for one in texts], self.audio_token)
        if sampling_rate is not None:
            items = [
                item
                if isinstance(item, str | bytes | Path | Mapping)
                else {"array": item, "sampling_rate": sampling_rate}
                for item in items
            ]
        clips = [load_clip(item, self.audio_rates, name=f"audio {i}") for i, item in enumerate(items, 1)]
        rows, used = [], 0
        for one in texts:
            first, *others = (self.prompts.tokenize(piece) for piece in one.split(self.audio_token))
            ids = first + [token for piece in others for token in (AUDIO_SLOT, *piece)]
            rows.append((ids, clips[used : used + len(others)]))
            used += len(others)
        return self._batch(rows, return_tensors, padding, padding_side)

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        chat_template: None = None,
        *,
        tokenize: bool = False,
        return_dict: bool = True,
        return_tensors: str = "pt",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        padding: bool | str = True,
        padding_side: str = "left",
        processor_kwargs: Mapping[str, Any] | None = None,
        **template: Any,
    ) -> Any:
        """One conversation or a list of them as the model's inputs, or as text if ``tokenize`` is False.

        Args:
            conversation: messages in any form that `plain_message` accepts: parts such as ``{"type": "audio", "audio":
                clip}``, or texts with tags and ``audios``.
            return_dict: False returns ``input_ids`` alone.
            add_generation_prompt, continue_final_message: only their defaults: a prompt ends where the answer begins.
            processor_kwargs: ``padding``, ``padding_side`` and ``return_tensors`` may also be given here.
            template: variables that the chat template reads, such as ``enable_thinking``.

        Returns:
            As `__call__`.

        Raises:
            RowError: no messages, tags and clips that do not match, or messages that the template refuses. AudioError:
                a faulty clip. ConfigError: an argument or a variable that does not exist.
        """
        if isinstance(conversation, Mapping | str) or not conversation:
            raise RowError("schema", f"a conversation is a list of messages, found {conversation!r:.80}")
        template = {name: value for name, value in template.items() if value is not None}
        for name in template:
            if not re.search(rf"\b{re.escape(name)}\b", str(self.chat_template)):
                raise ConfigError(f"'{name}' is neither an argument here nor a variable of the chat template")
        check_keys(processor_kwargs or (), ("padding", "padding_side", "return_tensors"), "processor_kwargs")
        if chat_template is not None:
            raise ConfigError("prompts are rendered by the tokenizer's own chat template; give no other")
        if not add_generation_prompt or continue_final_message:
            raise ConfigError("a prompt of this model always ends where a new answer begins")
        single = isinstance(conversation[0], Mapping)
        prompts = self.prompts.with_variables(template)
        loaded = [
            load_messages(messages, self.audio_token, self.audio_rates)
            for messages in ([conversation] if single else conversation)
        ]
        if not tokenize:
            texts = [prompts.audio_prompt(messages) for messages in loaded]
            return texts[0] if single else texts
        how = {"return_tensors": return_tensors, "padding": padding, "padding_side": padding_side}
        inputs = self._batch(
            [prompt_of(prompts, messages) for messages in loaded], **how | dict(processor_kwargs or {})
        )
        return inputs if return_dict else inputs["input_ids"]

    def post_process_image_text_to_text(
        self, generated_outputs: Tensor, skip_special_tokens: bool = True, **options: Any
    ) -> list[str]:
        """Generated ids (B, L) as texts; pipelines call it by this name."""
        return self.tokenizer.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens, **options)

    def _batch(
        self,
        rows: Sequence[tuple[list[int], list[Clip]]],
        return_tensors: str,
        padding: bool | str,
        padding_side: str,
    ) -> DestaInputs:
        """Ids with slots, and their clips, as one batch."""
        if return_tensors != "pt":
            raise ConfigError(f"return_tensors is {return_tensors!r}; only 'pt' is known")
        if padding_side not in ("left", "right"):
            raise ConfigError(f"padding_side is {padding_side!r}; it must be left or right")
        if padding not in (True, "longest", False, "do_not_pad"):
            raise ConfigError(f"padding is {padding!r}; it must be True (to the longest row) or False")
        ids = [torch.tensor(self._expanded(*row), dtype=torch.int64) for row in rows]
        if padding not in (True, "longest") and len({len(row) for row in ids}) > 1:
            raise ConfigError(f"padding is {padding!r}, but the rows differ in length; give True")
        pad = self.tokenizer.pad_token_id
        pad = self.prompts.end_of_turn_id if pad is None else pad
        how = {"batch_first": True, "padding_side": padding_side}
        batch = {
            "input_ids": pad_sequence(ids, padding_value=pad, **how),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], **how),
        }
        if clips := [clip for _, found in rows for clip in found]:
            batch["audio"] = pad_sequence([torch.from_numpy(clip.audio) for clip in clips], batch_first=True)
            batch["audio_lens"] = torch.tensor([len(clip.audio) for clip in clips], dtype=torch.int64)
        return DestaInputs(batch)

    def _expanded(self, ids: Sequence[int], clips: Sequence[Clip]) -> list[int]:
        """Every slot becomes as many audio tokens as its clip has vectors."""
        counts = iter([self.num_audio_tokens(len(clip.audio)) for clip in clips])
        return [token for i in ids for token in ([self.audio_token_id] * next(counts) if i == AUDIO_SLOT else [i])]
