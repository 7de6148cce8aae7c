"""Tokenizers: by file and folder, the words of their tokens, and what is wrong with others."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trainers.text import TextError, Tokenizer, load_tokenizer

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (*SPECIAL, "a", "play", "##ing", "##s", "dog", ".")


def written(folder: Path, words: tuple[str, ...] = WORDS) -> Path:
    path = folder / "vocab.txt"
    path.write_text("\n".join(words), encoding="utf-8")
    return path


def byte_pairs(folder: Path) -> Tokenizer:
    """A RoBERTa-like tokenizer of a few merges, in a folder."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    made = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    made.train_from_iterator(["a dog is playing . dogs play ."] * 9, 290, special_tokens=special)
    roles = dict(zip(("cls_token", "pad_token", "sep_token", "unk_token", "mask_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=made._tokenizer, **roles).save_pretrained(str(folder))
    return load_tokenizer(str(folder))


def test_a_vocabulary_file_is_berts(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(written(tmp_path)))
    ids = tokenizer("A dog plays.")
    assert ids == [5, 9, 6, 8, 10]
    assert tokenizer.begins(ids) == [True, True, True, False, True]
    assert (tokenizer.start, tokenizer.end, tokenizer.mask, tokenizer.padding) == (2, 3, 4, 0)
    assert tokenizer.words == len(WORDS) and tokenizer.unmasked == {2, 3}
    assert tokenizer.text([2, *ids, 3, 5, 5]) == "a dog plays."


def test_byte_pairs_are_words_of_their_own_and_their_special_tokens_are_drawn(tmp_path: Path) -> None:
    tokenizer = byte_pairs(tmp_path)
    ids = tokenizer(" doggedly")
    assert len(ids) > 2 and all(tokenizer.begins(ids))
    assert tokenizer.unmasked == frozenset() and {tokenizer.start, tokenizer.padding} <= tokenizer.special


def test_many_threads_may_ask_at_once(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(written(tmp_path)))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(tokenizer, ["a dog plays ."] * 200))
    assert all(each == found[0] for each in found)


def test_what_is_no_tokenizer_is_told(tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"has no \[MASK\]; wanted BERT's vocab.txt"):
        load_tokenizer(str(written(tmp_path, WORDS[:4])))
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TextError, match="is not text"):
        load_tokenizer(str(tmp_path / "x.txt"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(TextError, match=r"cannot be loaded \(.*\); give its folder or vocab.txt"):
        load_tokenizer(str(tmp_path / "empty"))


def test_the_tokens_of_a_text_are_the_callers_own(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(written(tmp_path)))
    tokenizer("a dog").append(0)
    assert tokenizer("a dog") == [5, 9]
