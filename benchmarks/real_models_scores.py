"""What `real_models` measures beside `desta evaluate`: test rows, references without an LLM, free answers, the table.

The references say how much is possible: a linear probe on the very features that the projector reads, and Whisper's
own transcripts.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

#: Task -> corpora and splits whose clips are scored. The training hears none of these recordings.
TASKS = {
    "digit": {"fsdd": ("test",)},
    "sound_class": {"esc10": ("test", "valid")},
    "emotion": {"ravdess": ("test",)},
    "gender": {"ravdess": ("test",), "librispeech_clean": ("test",), "librispeech_other": ("test",)},
}
REPEATED = ("ravdess", "librispeech_other", "ljspeech")
FREE_QUESTIONS = (
    "Describe the audio in one sentence.",
    "What do you hear?",
    "Who is speaking, and how?",
    "What could have happened just before?",
    "ANSWER IN CAPITALS: what is in the recording?",
)
NUM_FREE = 20


def read_manifest(data_root: Path, name: str) -> list[dict[str, Any]]:
    lines = (data_root / "manifests" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def write_tests(data_root: Path, work: Path) -> None:
    """``tests.jsonl``: clips with the attributes that are asked; ``tests_repeat.jsonl``: clips that are repeated."""
    asked: dict[str, dict[str, Any]] = {}
    for task, corpora in TASKS.items():
        for name, splits in corpora.items():
            for row in read_manifest(data_root, name):
                if row["split"] in splits and (value := row["attributes"].get(task)) is not None:
                    others = {key: known for key, known in row["attributes"].items() if key not in TASKS}
                    asked.setdefault(row["id"], {**row, "attributes": others})["attributes"][task] = value
    spoken = [row for name in REPEATED for row in read_manifest(data_root, name) if row["split"] == "test"]
    for file, rows in (("tests.jsonl", asked.values()), ("tests_repeat.jsonl", spoken)):
        (work / file).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def references(model: Path, args: argparse.Namespace, work: Path) -> None:
    """Figures without an LLM: a linear probe per task, Whisper's word error rate per corpus.

    ``model``: any trained model of the work folder; its encoders give the features.
    """
    from nemo_desta.evaluation.asr import error_rates
    from nemo_desta.perception.transcribe import WhisperTranscriber, always_speech

    data_root, found = Path(args.data_root), {"probe": {}, "whisper_wer": {}}
    clips = FeatureReader(model, work / "features", data_root)
    for task, corpora in TASKS.items():
        rows = [row for name in corpora for row in read_manifest(data_root, name)]
        rows = [row for row in rows if row["attributes"].get(task) is not None]
        trained = [row for row in rows if row["split"] == "train"]
        tested = [row for row in rows if row["split"] in corpora[row["source"]]]
        found["probe"][task] = probe_accuracy(clips, trained, tested, task)
    transcriber = WhisperTranscriber.from_pretrained(args.whisper, find_speech=always_speech, language="en")
    for name in REPEATED:
        rows = [row for row in read_manifest(data_root, name) if row["split"] == "test"]
        heard = transcriber([clips.audio(row).numpy() for row in rows])
        found["whisper_wer"][name] = round(error_rates([row["transcript"] for row in rows], heard)["wer"], 3)
    (work / "references.json").write_text(json.dumps(found, indent=1) + "\n")


class FeatureReader:
    """What the projector reads of a clip, from the feature cache where it is there."""

    def __init__(self, model: Path, cache: Path, data_root: Path) -> None:
        from nemo_desta.config import FeatureCacheConfig
        from nemo_desta.models.model_source import ModelSource

        source = ModelSource(model=str(model), device="cpu", feature_cache=FeatureCacheConfig(folder=str(cache)))
        self.perception = source.load().perception
        self.data_root = data_root

    def audio(self, row: Mapping[str, Any]) -> torch.Tensor:
        from nemo_desta.data.audio_io import load_audio

        return torch.from_numpy(load_audio(self.data_root / row["audio"], duration=row["duration"]))

    def statistics(self, row: Mapping[str, Any]) -> torch.Tensor:
        """Mean and standard deviation over a clip's own frames, of every layer of every encoder."""
        audio = self.audio(row)
        with torch.no_grad():
            outputs = self.perception.encode(audio[None], torch.tensor([len(audio)]))
        frames = [layer[0, : int(out.lens[0])].float() for out in outputs.values() for layer in out.layers]
        return torch.cat([moment for f in frames for moment in (f.mean(0), f.std(0, correction=0))])


def probe_accuracy(
    clips: FeatureReader, trained: Sequence[Mapping[str, Any]], tested: Sequence[Mapping[str, Any]], task: str
) -> float:
    """Logistic regression on the encoder's statistics."""
    from tqdm import tqdm

    from nemo_desta.evaluation.probe import linear_probe

    bar = tqdm([*trained, *tested], desc=f"probe, {task}")
    features = torch.stack([clips.statistics(row) for row in bar])
    truth = [str(row["attributes"][task]) for row in (*trained, *tested)]
    size = len(trained)
    predicted = linear_probe(features[:size], truth[:size], features[size:], strength=0.01)
    return round(sum(p == t for p, t in zip(predicted, truth[size:], strict=True)) / len(tested), 4)


def free_answers(model: Path, folder: Path, args: argparse.Namespace) -> None:
    """`NUM_FREE` answers to open questions about test clips, into ``free_answers.jsonl``, all of them kept."""
    from nemo_desta.evaluation.ask_model import ask_about_clips
    from nemo_desta.models.desta import DestaModel

    rows = [json.loads(line) for line in (folder.parent / "tests.jsonl").read_text().splitlines()]
    chosen = rows[:: max(1, len(rows) // NUM_FREE)][:NUM_FREE]
    questions = [FREE_QUESTIONS[i % len(FREE_QUESTIONS)] for i in range(len(chosen))]
    heard = DestaModel.from_pretrained(model, device="cpu")
    answers = ask_about_clips(heard, [Path(args.data_root) / row["audio"] for row in chosen], questions)
    lines = [
        {"id": row["id"], "true": row["attributes"] | {"transcript": row["transcript"]}, "question": q, "answer": a}
        for row, q, a in zip(chosen, questions, answers, strict=True)
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "free_answers.jsonl").write_text(text, encoding="utf-8")


def summary(args: argparse.Namespace, work: Path, seconds: Mapping[str, float]) -> str:
    """The table of all seeds; also written as ``results.json`` and ``results.md``."""
    from nemo_desta.evaluation.attributes import render_table

    found = {seed: _scores(work / f"seed_{seed}") for seed in args.seeds}
    beside = json.loads((work / "references.json").read_text())
    lines = []
    for task in TASKS:
        runs = [found[seed]["attributes"][task] for seed in args.seeds if task in found[seed]["attributes"]]
        if not runs:
            continue
        mean = sum(run["accuracy"] for run in runs) / len(runs)
        cascade = runs[0].get("text_cascade")
        controls = {c["name"]: c["accuracy"] for c in runs[0].get("controls", ())}
        lines.append(
            [task, str(runs[0]["num_rows"]), f"{mean:.3f}", " ".join(f"{run['accuracy']:.3f}" for run in runs)]
            + [_share(cascade), _share(mean / cascade if cascade else None), _share(runs[0].get("transcript_cascade"))]
            + [_share(controls.get(name)) for name in ("silence", "shuffled")]
            + [_share(beside["probe"][task])]
        )
    header = [
        "task",
        "n",
        "mean",
        "seeds",
        "text cascade",
        "of it",
        "Whisper's text",
        "silence",
        "shuffled",
        "linear probe",
    ]
    said = [found[seed]["recognition"] for seed in args.seeds]
    own = ", ".join(f"{name} {value:.3f}" for name, value in beside["whisper_wer"].items())
    text = "\n".join(
        [render_table(header, lines), "", _repeated(said), f"Whisper's own decoder: {own}"]
        + [f"text kept: {all(run['text_kept'] for run in found.values())}"]
        + [f"wall time: {sum(seconds.values()) / 60:.0f} min in all", ""]
        + [f"- {name}: {secs / 60:.1f} min" for name, secs in seconds.items()]
    )
    (work / "results.json").write_text(json.dumps({"runs": found, "references": beside, "seconds": seconds}, indent=1))
    (work / "results.md").write_text(text + "\n")
    return text


def _scores(folder: Path) -> dict[str, Any]:
    attributes, repeated = (json.loads((folder / n / "scores.json").read_text()) for n in ("attributes", "repeat"))
    return {
        "attributes": attributes["rows"]["attributes"],
        "recognition": repeated["rows"]["recognition"],
        "text_kept": attributes["text_kept"]["untouched"],
    }


def _repeated(said: Sequence[Mapping[str, Any]]) -> str:
    """Word error rates of the answers to the request to repeat."""

    def listed(runs: Sequence[Mapping[str, Any]]) -> str:
        quoted = [run["quoted"]["wer"] if run["quoted"] else run["wer"] for run in runs]
        return f"{_rates(quoted)} ({_rates([run['wer'] for run in runs])})"

    parts = {"all": said, **{name: [run["by_corpus"][name] for run in said] for name in said[0]["by_corpus"]}}
    if said[0]["text_cascade"]:
        parts["text cascade"] = [said[0]["text_cascade"]]
    each = "; ".join(f"{name} {listed(runs)}" for name, runs in parts.items())
    return f"repeat what is said, WER of what is quoted (of the whole answer): {each}"


def _rates(values: Sequence[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
