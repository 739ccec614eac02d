"""Corpora as data: a card (YAML) describes a corpus' files and labels; `load_corpus` reads the corpus.

``card.py`` what a card may say, ``template.py`` its ``{field|filter}`` texts, ``readers.py`` and its neighbours how
metadata is read row by row, ``corpus.py`` from rows to clips, ``cut.py`` clips that are parts of recordings,
``join.py`` one clip of several rows, ``audio.py``
whether a clip can be used, ``cards/`` the corpora that ship with the package.
"""

from nemo_desta.recipes.corpora.audio import check_audio, relative_audio, with_duration
from nemo_desta.recipes.corpora.card import shipped_cards
from nemo_desta.recipes.corpora.card_keys import Card
from nemo_desta.recipes.corpora.corpus import Corpus, load_corpus
from nemo_desta.recipes.corpora.errors import CorpusError

__all__ = [
    "Card",
    "Corpus",
    "CorpusError",
    "check_audio",
    "load_corpus",
    "relative_audio",
    "shipped_cards",
    "with_duration",
]
