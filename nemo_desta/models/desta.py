"""The NeMo model: SALM's place in the NeMo stack, with fused perception, our own labels, loss and checkpoints.

SALM moves the embedding table out of the LLM, builds a NeMo ASR encoder and finds labels by comparing ids with pad;
none of that holds here, so its constructor, steps and generation are replaced (design decisions 1, 5, 8).
Letters: B rows, L text positions, A clips, S samples, W vectors per clip, D LLM width, Z spliced length.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from nemo.collections.speechlm2.models.salm import SALM
from nemo.collections.speechlm2.parts.optim_setup import configure_optimizers
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from nemo_desta.config import ModelConfig, parse, to_dict
from nemo_desta.data.prompting import PromptBuilder
from nemo_desta.models import builder, chat, checkpoint
from nemo_desta.models.loss import choose_cross_entropy, has_plain_head, summed_cross_entropy
from nemo_desta.models.parallel import shard_llm
from nemo_desta.models.splice import Spliced, splice
from nemo_desta.models.window import LossWindow
from nemo_desta.sources import local_folder
from nemo_desta.types import AUDIO_SLOT


class DestaModel(SALM):
    """A frozen LLM with ears. Only the projector (and LoRA, when asked for) learns.

    Args:
        cfg: NeMo's ``model`` section, as mapping, DictConfig or `ModelConfig`; unknown keys are refused.
    """

    def __init__(self, cfg: Mapping[str, Any] | DictConfig | ModelConfig) -> None:
        super(SALM, self).__init__()
        if isinstance(cfg, DictConfig):
            cfg = OmegaConf.to_container(cfg, resolve=True)
        self.config = cfg if isinstance(cfg, ModelConfig) else parse(ModelConfig, cfg)
        self.cfg = OmegaConf.create(to_dict(self.config))  # what NeMo's helpers read
        self.strict_loading = False  # checkpoints hold what was trained; load_state_dict checks exactly that part
        self.tokenizer = builder.build_tokenizer(self.config.llm)
        self.llm = builder.build_llm(self.config.llm)
        self.perception = builder.build_perception(
            self.config.perception, self.llm.config.get_text_config().hidden_size, builder.embedding_rms(self.llm)
        )
        builder.freeze_by_pattern(dict(self.trained_parameters()), self.config.freeze)
        prompt = self.config.prompt
        self.prompts = PromptBuilder(
            self.tokenizer,
            audio_locator_tag=prompt.audio_locator_tag,
            chat_template_kwargs=prompt.chat_template_kwargs,
            transcript=prompt.transcript,
        )
        self.audio_locator_tag = prompt.audio_locator_tag
        self.cross_entropy = choose_cross_entropy(self.config.cross_entropy)
        self.window = LossWindow()
        self.validation_names: list[str] = []
        self.read_positions = (0, 0)  # of the last batch: tokens, tokens and padding
        self._ddp_params_and_buffers_to_ignore = [
            name for name, parameter in self.named_parameters() if not parameter.requires_grad
        ]
        if self.config.activation_checkpointing:
            _enable_activation_checkpointing(self.llm)

    # ---- what the model is made of

    @property
    def embed_tokens(self) -> nn.Module:
        """The LLM's own embedding table; it stays inside the LLM."""
        return self.llm.get_input_embeddings()

    @property
    def sampling_rate(self) -> int:
        return self.perception.sampling_rate

    @property
    def text_bos_id(self) -> int | None:
        return self.tokenizer.bos_token_id

    @property
    def text_eos_id(self) -> int:
        return self.prompts.end_of_turn_id

    @property
    def text_pad_id(self) -> int:
        """An id for padding of ids; masks never depend on it."""
        return self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.text_eos_id

    @property
    def audio_locator_tag_id(self) -> int:
        return AUDIO_SLOT

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters that belong into a checkpoint, frozen by pattern or not."""
        return ((name, p) for name, p in self.named_parameters() if checkpoint.is_trained_name(name))

    def num_audio_tokens(self, num_samples: int) -> int:
        """Vectors that a clip of ``num_samples`` at ``sampling_rate`` becomes."""
        return self.perception.num_tokens(num_samples)

    def train(self, mode: bool = True) -> "DestaModel":
        """The frozen LLM stays in eval mode, unless LoRA trains or activations are recomputed (without dropout)."""
        super().train(mode)
        if self.config.llm.lora is None and not self.config.activation_checkpointing:
            self.llm.eval()
        return self

    # ---- forward

    def perceive(self, audio: Tensor, audio_lens: Tensor) -> tuple[Tensor, Tensor]:
        """(A, S) float32, (A,) -> vectors (A, W, D), lens (A,); half precision follows the LLM (decision 9)."""
        dtype = self.llm.dtype
        with torch.autocast(audio.device.type, dtype=dtype, enabled=dtype in (torch.bfloat16, torch.float16)):
            return self.perception(audio, audio_lens)

    def embed(self, batch: Mapping[str, Any], *, padding_side: str = "right") -> Spliced:
        """A batch of the data layer as the LLM reads it."""
        ids = batch["input_ids"]
        text = self.embed_tokens(ids.clamp(min=0))
        if batch["audio_lens"].numel():
            vectors, lens = self.perceive(batch["audio"], batch["audio_lens"])
        else:
            vectors, lens = text.new_zeros(0, 0, text.shape[-1]), batch["audio_lens"]
        spliced = splice(
            text,
            ids,
            batch["input_lens"],
            batch["prompt_lens"],
            vectors=vectors,
            vector_lens=lens,
            padding_side=padding_side,
        )
        self.read_positions = (int(spliced.attention_mask.sum()), spliced.attention_mask.numel())
        return spliced

    def forward(self, input_embeds: Tensor, attention_mask: Tensor | None = None, cache: Any = None) -> dict[str, Any]:
        """(B, Z, D) -> {"logits": (B, Z, V)}: the bare LLM on embeddings, bit for bit."""
        out = self.llm(
            inputs_embeds=input_embeds,
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return {"logits": out.logits} if cache is None else {"logits": out.logits, "cache": out.past_key_values}

    def loss(self, batch: Mapping[str, Any], *, padding_side: str = "right") -> tuple[Tensor, int, Tensor]:
        """Summed cross-entropy of a batch's targets, how many there are, and how many the argmax gets right.

        A causal LLM's targets never see padding on their right: no mask is given then, which leaves attention its
        fastest kernels.
        """
        inputs = self.embed(batch, padding_side=padding_side)
        kwargs: dict[str, Any] = {"inputs_embeds": inputs.inputs_embeds, "use_cache": False}
        if padding_side == "left":
            kwargs |= {"attention_mask": inputs.attention_mask.long(), "position_ids": inputs.position_ids}
        before = inputs.target_positions - 1
        if has_plain_head(self.llm.config):
            hidden = self.llm.base_model(**kwargs).last_hidden_state[inputs.target_rows, before]
            head, implementation = self.llm.get_output_embeddings(), self.cross_entropy
        else:
            hidden = self.llm(**kwargs).logits[inputs.target_rows, before]
            head, implementation = nn.Identity(), "torch"
        loss, num_correct = summed_cross_entropy(hidden, head, inputs.target_ids, implementation=implementation)
        return loss, inputs.target_ids.numel(), num_correct

    # ---- training

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Summed loss of one micro-batch; `on_before_optimizer_step` divides by the window's tokens."""
        loss, num_tokens, _ = self.loss(batch)
        if not batch["audio_lens"].numel():  # text only: keep every trained parameter in the graph (DDP)
            loss = loss + sum(p.sum() for _, p in self.trained_parameters() if p.requires_grad) * 0.0
        self.window.add(num_tokens, batch["row_ids"])
        self.log("loss", loss.detach() / max(1, num_tokens), prog_bar=True, batch_size=max(1, num_tokens))
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.window.close(
            (p for _, p in self.trained_parameters()),
            averaged_over=self.trainer.accumulate_grad_batches * self.trainer.world_size,
            device=self.device,
        )

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        LightningModule.backward(self, loss, *args, **kwargs)  # SALM's expects tensor-parallel logits

    def configure_optimizers(self) -> dict[str, Any]:
        return configure_optimizers(self)

    def configure_model(self) -> None:
        """FSDP2 for the LLM when the strategy has a device mesh."""
        if self.device_mesh is not None:
            shard_llm(self.llm, self.device_mesh["data_parallel"])

    # ---- validation

    def on_validation_epoch_start(self) -> None:
        self._totals: dict[str, Tensor] = {}

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        name = self.validation_names[dataloader_idx] if self.validation_names else str(dataloader_idx)
        loss, num_tokens, num_correct = self.loss(batch)
        totals = torch.stack([loss.double(), loss.new_tensor(num_tokens).double(), num_correct.double()])
        self._totals[name] = self._totals.get(name, torch.zeros_like(totals)) + totals

    def on_validation_epoch_end(self) -> None:
        names = self.validation_names or sorted(self._totals)
        zeros = torch.zeros(3, dtype=torch.float64, device=self.device)
        totals = torch.stack([self._totals.get(name, zeros) for name in names])
        if self.trainer.world_size > 1:
            totals = self.trainer.strategy.reduce(totals, reduce_op="sum")
        for name, (loss, num_tokens, num_correct) in zip(names, totals.tolist(), strict=True):
            if num_tokens:
                self.log(f"val_loss_{name}", loss / num_tokens)
                if num_correct >= 0:
                    self.log(f"val_acc_{name}", num_correct / num_tokens)
        loss, num_tokens, _ = totals.sum(0).tolist()
        self.log("val_loss", loss / max(1.0, num_tokens), prog_bar=True)

    # ---- answers

    def generate(self, prompts: Any, audios: Any = None, audio_lens: Any = None, **generation: Any) -> Tensor:
        """New token ids (B, at most max_new_tokens) for a batch of conversations; see `nemo_desta.models.chat`."""
        return chat.generate(self, prompts, audio=audios, audio_lens=audio_lens, **generation)

    def chat(self, messages: list[Any], **generation: Any) -> str | list[str]:
        """Answer one conversation (list of messages) or a batch of them (list of lists)."""
        return chat.answer(self, messages, **generation)

    # ---- on disk

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The trained part alone: the projector with its buffers, and LoRA."""
        full = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", "")
        return {name: t for name, t in full.items() if checkpoint.is_trained_name(name.removeprefix(prefix))}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load the trained part; always exact: a missing or surplus tensor is an error."""
        own = self.state_dict()
        if set(own) != set(state_dict):
            missing, surplus = sorted(set(own) - set(state_dict)), sorted(set(state_dict) - set(own))
            raise ValueError(f"checkpoint does not fit this model: missing {missing[:5]}, surplus {surplus[:5]}")
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def on_save_checkpoint(self, saved: dict[str, Any]) -> None:
        saved["nemo_desta"] = {"model": to_dict(self.config), "frozen": checkpoint.identify(self.config)}

    def on_load_checkpoint(self, saved: dict[str, Any]) -> None:
        checkpoint.check_identity(saved["nemo_desta"]["frozen"], self.config)

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> Path:
        """Write a model folder: trained tensors, config, tokenizer, fingerprints of the frozen parts."""
        return checkpoint.save_folder(save_directory, self.config, self.state_dict(), self.tokenizer)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        llm: str | None = None,
        encoders: Mapping[str, str] | None = None,
        device: str | torch.device | None = None,
    ) -> "DestaModel":
        """Open a model folder or hub id.

        Args:
            llm: where the frozen LLM is on this machine, if not where the config says. encoders: likewise, by name.
            device: where to put the model; a GPU when there is one.
        """
        source = str(pretrained_model_name_or_path)
        folder = local_folder(source)
        if folder is None:
            from huggingface_hub import snapshot_download

            folder = Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model"]))
        config, tensors, frozen = checkpoint.load_folder(folder)
        config = checkpoint.relocate(config, folder, llm=llm, encoders=encoders)
        checkpoint.check_identity(frozen, config)
        model = cls(config)
        model.load_state_dict(tensors)
        return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()


def _enable_activation_checkpointing(llm: nn.Module) -> None:
    for module in llm.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    llm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
