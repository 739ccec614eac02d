"""Output at the end of the demo: three conversations, the loss curve, the table and the next commands."""

import json
import os
import random
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_desta.demo.prompts import make_prompt
from nemo_desta.demo.score import Scores
from nemo_desta.recipes.describe import describe


def conversations(model: Any, rows: Sequence[Mapping[str, Any]], corpus: Path, *, seed: int = 0) -> str:
    """Conversations about three test clips; the second turn asks for another format."""
    rng = random.Random(seed)
    lines = ["Three conversations about clips that were never heard in training:"]
    for domain, task in (("speech", "digit"), ("sound", "sound_class"), ("music", "instrument")):
        held = [r for r in rows if r["split"] == "test" and r["domain"] == domain]
        row = rng.choice([r for r in held if task != "digit" or "digit" in r["attributes"]])
        lines.append(f"  clip {row['audio']}, in truth {describe(row)}")
        chat: list[dict[str, Any]] = []
        for question in (make_prompt(task).text, make_prompt(task, format="caps").text):
            content = question if chat else f"{model.audio_locator_tag}\n{question}"
            chat.append({"role": "user", "content": content})
            if len(chat) == 1:
                chat[0]["audios"] = [str(corpus / row["audio"])]
            answer = model.chat(chat, max_new_tokens=48, do_sample=False)
            chat.append({"role": "assistant", "content": answer})
            lines += [f"    you:   {question}", f"    model: {answer}"]
    return "\n".join(lines)


def plot_loss(steps: Path, picture: Path) -> Path:
    """Loss per step, raw and smoothed, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    losses = [json.loads(line)["loss"] for line in steps.read_text().splitlines()]
    smooth, level = [], losses[0]
    for loss in losses:
        level = 0.95 * level + 0.05 * loss
        smooth.append(level)
    figure, axes = plt.subplots(figsize=(7, 4))
    axes.plot(losses, color="0.8", label="per step")
    axes.plot(smooth, color="tab:green", label="smoothed")
    axes.set(xlabel="step", ylabel="loss per target token", yscale="log", title="nemo_desta demo")
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(picture, dpi=120)
    plt.close(figure)
    return picture


def summary(model: Any, scores: Scores, picture: Path, work_dir: Path, *, seconds: float) -> str:
    """The table, its explanation, and the commands to try next."""
    trained = sum(p.numel() for p in model.perception.projector.parameters())
    frozen = sum(p.numel() for p in model.parameters()) - trained
    rows = (work_dir / "rows_train" / "rows" / "*.jsonl").as_posix()
    here = os.path.relpath(Path(sys.executable).with_name("desta"))  # where the environment is not activated
    desta = "desta" if shutil.which("desta") else here
    return f"""{scores}

A mechanism check with a stand-in LLM and encoders, {frozen / 1e6:.1f} M frozen parameters together; {trained:,}
projector parameters were trained. "Shuffled audio" is what the same answers are worth for other clips; the linear
probe hears without any LLM; the text cascade reads the true description. Test speakers and recordings are new.

loss curve  {picture}
answers     {work_dir / "answers.jsonl"}
model       {work_dir / "training" / "model"}
time        {seconds / 60:.1f} minutes

Try next:
  {desta} chat model={work_dir}/training/model audio=YOUR.wav prompt="What do you hear?"
  {desta} chat model={work_dir}/training/model web=true   # a page: upload or record, ask
  {desta} check --config-name demo work_dir={work_dir}
  {desta} check --config-name desta25 check=elsewhere \\
    'data.train_ds.input_cfg.0.rows={rows}'   # names what a real run still needs
"""
