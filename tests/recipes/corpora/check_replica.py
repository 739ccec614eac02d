"""What the tests of shipped cards ask of a replica of a corpus."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_desta.recipes import describe
from nemo_desta.recipes.corpora import check_audio, load_corpus

Expected = Mapping[str, tuple[str | None, str | None, Mapping[str, Any]]]


def check_replica(card: str, root: Path, expected: Expected) -> None:
    """Id, split (None: any), transcript and attributes of every clip; inaudible attributes are not described."""
    corpus = load_corpus(card, root)
    clips = {clip["id"]: clip for clip in corpus}
    assert set(clips) == set(expected)
    for name, (split, transcript, attributes) in expected.items():
        clip = clips[name]
        assert clip["source"] == card and check_audio(clip, root)[0] is None
        assert clip["split"] == split or (split is None and clip["split"] in ("train", "valid", "test"))
        assert (clip.get("transcript"), clip["attributes"]) == (transcript, attributes)
        text = describe({**clip, "duration": 1.0}, exclude=corpus.not_audible)
        for key in corpus.card.not_audible:
            assert f"{key.replace('_', ' ').capitalize()}:" not in text
