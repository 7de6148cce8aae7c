"""Captions as words, as COCO's scores split them: the Stanford PTB tokeniser, then punctuation left out.

The rules were found by comparing with what that tokeniser (CoreNLP 3.4.1, as pycocoevalcap calls it) makes of captions;
it is Java, and has many more for text that captions do not hold.
"""

from __future__ import annotations

import re

# Marks that the tokeniser respells. Brackets stay as words: what pycocoevalcap leaves out is spelt -LRB-, in capitals.
_RESPELT = {
    "‘": "`",
    "’": "'",
    **dict.fromkeys("“”«»", '"'),
    **dict.fromkeys("–—", "--"),
    "…": "...",
    "€": "$",
    "£": "#",
    "¢": " cents",
    "½": "1/2",
    "¼": "1/4",
    "¾": "3/4",
}
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_LEFT_OUT = re.compile(r"""[.,:;`'"]|''|``|\.+|-+|[?!]""")
_ABBREVIATIONS = (
    "mr|mrs|ms|dr|prof|gen|col|lt|capt|gov|sen|rep|hon|rev|sgt|jr|sr|bros|corp|ltd|inc|co|dept|univ|est|tel|assn|st|"
    "ave|blvd|rd|mt|ft|vs|etc|ph\\.d|jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec|mon|tue|wed|thu|fri"
)
_TOKEN = re.compile(
    rf"""
      (?:https?://|www\.)\S*\w                                # addresses, of mail, of people
    | [\w.+-]+@\w+(?:[.-]\w+)*
    | [#@][a-z]\w*
    | [?!]+ | \.{{2,}} | -{{2,}}
    | n't\b | 'n' | '(?:s|m|d|re|ve|ll|em|til|cause|n)(?!\w) | '\d{{2}}s?\b | \bol'
    | \bcan(?=not\b) | \b(?:gon|wan)(?=na\b) | \bgot(?=ta\b) | \b(?:lem|gim)(?=me\b) | '?\bt(?=(?:is|was)\b)
    | y'(?=all\b)
    | \b(?:{_ABBREVIATIONS})\.(?!\w) | \b(?:no|fig)\.(?=\s*\d)
    | (?-i:[A-Z]+(?:&[A-Z]+)+)
    | \b(?:[a-z]\.)+(?![a-z]{{2}})(?:[a-z]\b\.?)?
    | \b(?:[odl]'[a-z]{{2,}}|ma'am|cap'n|ne'er|e'er)\b
    | [^\W_]+?(?=n't\b)
    | (?<!\S)[-+]?\.?\d+(?:[.,:/]\d+)*(?:-[^\W_]+)+
    | (?<!\S)[-+]?\.?\d++(?:[.,:/]\d+)*+(?!/?[^\W_]) | \d+(?:[.,:/]\d+)+
    | [^\W_]+(?:[-_/][^\W_]+|(?<=[a-z])\.(?=[a-z])[^\W_]+)*
    | \S
    """,
    re.IGNORECASE | re.VERBOSE,
)


def words(text: str) -> str:
    """A caption in lower case, words with single spaces between."""
    for mark, other in _RESPELT.items():
        text = text.replace(mark, other)
    found = (_BRACKETS.get(token, token) for token in _TOKEN.findall(text))
    return " ".join(token for token in found if not _LEFT_OUT.fullmatch(token)).lower()
