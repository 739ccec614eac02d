"""Generates the demo's labelled corpus: speech by espeak-ng, sounds and music by numpy; about 1,500 clips.

    python -m nemo_desta.demo.corpus --out FOLDER [--seed 0] [--clips 1500]

Writes ``audio/*.flac`` (16 kHz) and ``manifest.jsonl``. The same seed gives the same corpus; a second call reuses it.
Splits never share a speaker (a voice variant of espeak-ng) or a recording (a sound or melody with its own random
parameters).
"""

import argparse
import json
import random
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from nemo_desta.demo import speech
from nemo_desta.demo.sounds import INSTRUMENTS, SAMPLING_RATE, SOUNDS, TEMPOS, make_music, make_sound
from nemo_desta.demo.world import COMMANDS, DIGITS, SENTENCES, SOUND_GROUPS, TASKS, load_texts
from nemo_desta.progress import track

MANIFEST = "manifest.jsonl"
#: Shares of the clips; the rest is music.
DIGIT_SHARE, COMMAND_SHARE, SENTENCE_SHARE, SOUND_SHARE = 0.30, 0.10, 0.20, 0.22
SPLITS = ("train", "valid", "test")
SPLIT_WEIGHTS = (7, 1, 2)

#: espeak-ng language -> (language, accent) in descriptions.
LANGUAGES: dict[str, tuple[str, str | None]] = load_texts("world.yaml")["languages"]
WORD_LANGUAGES = ("en-us", "en-us", "en", "en-gb-scotland", "en-us-nyc", "en-029", "en-gb-x-rp")
WORD_RATES, WORD_PITCHES = (110, 290), (10, 90)
RATES = {"slow": (85, 105), "medium": (155, 180), "fast": (270, 330)}
PITCHES = {"low": (5, 20), "medium": (45, 55), "high": (85, 99)}
LEVEL_DBFS = (-38.0, -14.0)


def build_corpus(out: Path, *, seed: int = 0, clips: int = 1500) -> Path:
    """Generate the corpus in ``out`` unless it exists; returns the manifest's path.

    Raises:
        ValueError: ``out`` holds a corpus of another seed or size.
    """
    manifest, recipe = out / MANIFEST, {"seed": seed, "clips": clips}
    stamp = out / "recipe.json"
    if manifest.exists() and stamp.exists():
        found = json.loads(stamp.read_text())
        if found != recipe:
            raise ValueError(f"{out} holds a corpus made with {found}, requested {recipe}; choose another folder")
        return manifest
    (out / "audio").mkdir(parents=True, exist_ok=True)
    rows = []
    for row, audio in track(generate(seed, clips), "corpus", clips, unit="clips"):
        soundfile.write(out / row["audio"], audio, SAMPLING_RATE, subtype="PCM_16")
        rows.append(row)
    manifest.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    stamp.write_text(json.dumps(recipe) + "\n")
    return manifest


def generate(seed: int, clips: int) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Manifest rows with their audio, float32 (S,) at 16 kHz and a random level, in a fixed order."""
    shares = (DIGIT_SHARE, COMMAND_SHARE, SENTENCE_SHARE, SOUND_SHARE)
    counts = [round(clips * share) for share in shares]
    rng = random.Random(f"{seed}/corpus")
    spoken = [_word(rng, DIGITS, i) for i in range(counts[0])] + [_word(rng, COMMANDS, i) for i in range(counts[1])]
    spoken += [_sentence(rng) for _ in range(counts[2])]
    made = zip((row for row, _ in spoken), speech.synth_all([u for _, u in spoken]), strict=True)
    made = chain(made, _sounds(seed, counts[3]), _music(seed, clips - sum(counts)))
    levels = np.random.default_rng([seed, 1])
    for number, (row, audio) in enumerate(made):
        # a random level with a little noise: the level carries no information
        noise = levels.standard_normal(len(audio)) * 10 ** (-levels.uniform(30, 60) / 20)
        audio = audio / np.sqrt(np.mean(audio**2)) + noise
        audio = audio * 10 ** (levels.uniform(*LEVEL_DBFS) / 20)
        audio = (audio / max(1.0, np.abs(audio).max())).astype(np.float32)
        row = {"id": f"demo_{number:05d}", "audio": f"audio/demo_{number:05d}.flac"} | row
        row |= {"duration": round(len(audio) / SAMPLING_RATE, 3), "sampling_rate": SAMPLING_RATE, "source": "demo"}
        yield row | {"licence": "made on the spot"}, audio


def split_of(group: str) -> str:
    """The split of a group, derived from its name: train, valid and test in the ratio 7/1/2."""
    return random.Random(f"split/{group}").choices(SPLITS, SPLIT_WEIGHTS)[0]


def speakers(gender: str) -> dict[str, str]:
    """Voice variant -> split: of ten speakers seven train, one valid, two test."""
    variants = speech.MALE_VARIANTS if gender == "male" else speech.FEMALE_VARIANTS
    pattern = ("train",) * 3 + ("test",) + ("train",) * 2 + ("valid", "test") + ("train",) * 2
    return {variant: pattern[i % len(pattern)] for i, variant in enumerate(variants)}


def _word(rng: random.Random, words: tuple[str, ...], number: int) -> tuple[dict[str, Any], speech.Utterance]:
    word = words[number % len(words)]
    row, voice = _speaker(rng, rng.choice(WORD_LANGUAGES))
    language, accent = LANGUAGES[voice.split("+")[0]]
    row |= {"transcript": word, "language": language}
    row["attributes"] |= {"accent": accent} | ({"digit": DIGITS.index(word)} if words is DIGITS else {})
    return row, speech.Utterance(word, voice, rng.randint(*WORD_RATES), rng.randint(*WORD_PITCHES))


def _sentence(rng: random.Random) -> tuple[dict[str, Any], speech.Utterance]:
    row, voice = _speaker(rng, rng.choice(("en-us", "en", "de", "fr", "es", "it")))
    language = LANGUAGES[voice.split("+")[0]][0]
    speed, pitch = rng.choice(TASKS["speaking_speed"].values), rng.choice(TASKS["pitch"].values)
    row |= {"transcript": rng.choice(SENTENCES[language]), "language": language}
    row["attributes"] |= {"language": language, "speaking_speed": speed, "pitch": pitch}
    utterance = speech.Utterance(row["transcript"], voice, rng.randint(*RATES[speed]), rng.randint(*PITCHES[pitch]))
    return row, utterance


def _speaker(rng: random.Random, language: str) -> tuple[dict[str, Any], str]:
    gender = rng.choice(("male", "female"))
    splits = speakers(gender)
    variant = rng.choice(list(splits))
    group = f"espeak_{variant}"
    row = {"domain": "speech", "attributes": {"gender": gender}, "speaker_id": group, "group": group}
    return row | {"split": splits[variant]}, f"{language}+{variant}"


def _sounds(seed: int, count: int) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    for number in range(count):
        name = list(SOUNDS)[number % len(SOUNDS)]
        rng = np.random.default_rng([seed, 2, number])
        row = _row("sound", {"sound_class": name, "sound_group": SOUND_GROUPS[name]}, f"{name}_{number}")
        yield row, make_sound(name, rng, rng.uniform(2.0, 4.0))


def _music(seed: int, count: int) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    for number in range(count):
        name = list(INSTRUMENTS)[number % len(INSTRUMENTS)]
        rng = np.random.default_rng([seed, 3, number])
        tempo, melody = str(rng.choice(list(TEMPOS))), str(rng.choice(TASKS["melody"].values))
        row = _row("music", {"instrument": name, "tempo": tempo, "melody": melody}, f"{name}_{number}")
        yield row, make_music(name, tempo, melody, rng, rng.uniform(2.5, 4.0))


def _row(domain: str, attributes: dict[str, Any], group: str) -> dict[str, Any]:
    row = {"domain": domain, "transcript": None, "language": None, "attributes": attributes, "speaker_id": None}
    return row | {"group": group, "split": split_of(group)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the corpus")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clips", type=int, default=1500)
    args = parser.parse_args()
    print(build_corpus(args.out, seed=args.seed, clips=args.clips))


if __name__ == "__main__":
    main()
