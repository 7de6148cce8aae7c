"""Captions as lists of words, as COCO's scores split them: the Stanford PTB tokeniser, then punctuation left out.

Written from what that tokeniser (3.4.1, options of pycocoevalcap) gives, and compared with it: see the tests.
"""

from __future__ import annotations

import re

# Whatever pycocoevalcap leaves out (pycocoevalcap/tokenizer/ptbtokenizer.py). It means brackets too, but spells them in
# capitals, and words are in lower case by then: -lrb- stays.
LEFT_OUT = frozenset({"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"})


def words(text: str) -> str:
    """A caption in lower case, words with single spaces between."""
    return " ".join(word for word in _TOKEN.findall(text.lower()) if word not in LEFT_OUT)


_TOKEN = re.compile(r"\S+")
