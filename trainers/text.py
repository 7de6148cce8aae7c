"""Texts as token ids: the tokenizers that models were trained with, and which of their tokens make a word.

A tokenizer is named as in transformers (a name on the hub, a folder), or by a `vocab.txt` with one WordPiece a line.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from storage.errors import TriptychError

PART = "##"  # how WordPiece marks a token that goes on with a word
KNOWN = 2**16  # texts whose tokens are kept: questions and false texts come again and again


class TextError(TriptychError):
    """A tokenizer that cannot be had, or lacks what models need."""


class Tokenizer:
    """Texts to ids, and back. May be called from many threads.

    words    size of the vocabulary
    start    [CLS] or <s>
    end      [SEP] or </s>
    mask     [MASK] or <mask>
    padding  [PAD] or <pad>
    special  all of these, and the unknown one
    unmasked  special tokens that whole-word masking passes over: BERT's brackets, which the official collator looks
              for by name, so that RoBERTa's are drawn as words are
    """

    def __init__(self, tokenizer: Any) -> None:
        self._inner = tokenizer.backend_tokenizer
        self.words = len(tokenizer)
        names = ("cls_token_id", "sep_token_id", "mask_token_id", "pad_token_id")
        ids = [getattr(tokenizer, name) for name in names]
        for name, each in zip(names, ids, strict=True):
            if each is None:
                raise TextError(f"{tokenizer.name_or_path} has no {name.removesuffix('_id')}; use BERT's or RoBERTa's.")
        self.start, self.end, self.mask, self.padding = ids
        self.special = frozenset(tokenizer.all_special_ids)
        vocabulary = tokenizer.get_vocab()
        self.unmasked = frozenset(vocabulary[name] for name in ("[CLS]", "[SEP]") if name in vocabulary)
        self._goes_on = np.zeros(self.words, bool)
        self._goes_on[[each for token, each in vocabulary.items() if token.startswith(PART)]] = True
        self.vocabulary: dict[str, int] = vocabulary
        self._ids = lru_cache(KNOWN)(self._encoded)

    def __call__(self, text: str) -> list[int]:
        """The text's tokens, no special ones added."""
        return list(self._ids(text))

    def _encoded(self, text: str) -> tuple[int, ...]:
        return tuple(self._inner.encode(text, add_special_tokens=False).ids)

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where each token of a text stands in it: its first letter, and the one behind its last."""
        found: list[tuple[int, int]] = self._inner.encode(text, add_special_tokens=False).offsets
        return found

    def begins(self, ids: Sequence[int]) -> list[bool]:
        """Of each token, whether a word begins there. Byte-pair tokens are words of their own, as in METER's code."""
        found: list[bool] = (~self._goes_on[np.asarray(ids, np.int64)]).tolist()
        return found

    def text(self, ids: Sequence[int]) -> str:
        """The words of ids up to the end token, special ones left out."""
        ids = list(ids)
        if self.end in ids[1:]:
            ids = ids[: ids.index(self.end, 1)]
        found: str = self._inner.decode(ids, skip_special_tokens=True)
        return found.strip()


def load_tokenizer(name: str) -> Tokenizer:
    """A tokenizer by name, folder or vocabulary file.

    Raises:
        TextError: it is not there and cannot be fetched, or is no tokenizer.
    """
    from transformers import AutoTokenizer, BertTokenizerFast

    path = Path(name).expanduser()
    if path.is_file():
        return Tokenizer(BertTokenizerFast(vocab=_read_vocabulary(path)))
    try:
        return Tokenizer(AutoTokenizer.from_pretrained(str(path) if path.is_dir() else name))
    except (OSError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise TextError(f"tokenizer {name!r} cannot be loaded ({first}); give its folder or vocab.txt.") from error


def _read_vocabulary(path: Path) -> dict[str, int]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise TextError(f"{path} is not text ({error}); wanted a vocab.txt with one token a line.") from error
    vocabulary = {token: number for number, token in enumerate(lines)}
    for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"):
        if token not in vocabulary:
            raise TextError(f"{path} has no {token}; wanted BERT's vocab.txt with one token a line.")
    return vocabulary
