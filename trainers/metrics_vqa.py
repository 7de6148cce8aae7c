"""How right an answer to a VQA question is, as the official evaluation computes it, equal to the last digit.

The official code is GT-Vision-Lab/VQA, PythonEvaluationTools/vqaEvaluation/vqaEval.py; its quirks are kept and named.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

ENOUGH = 3  # people who gave an answer, for it to count as wholly right

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = frozenset({"a", "an", "the"})
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0", **{word: str(at) for at, word in enumerate(_DIGITS)}}
# Capitals can never match, for words are put in lower case first: "Im" stays "im". "somebody'd" is the official slip.
_CONTRACTED = """
    aint=ain't arent=aren't cant=can't couldve=could've couldnt=couldn't couldn'tve=couldn't've
    couldnt've=couldn't've didnt=didn't doesnt=doesn't dont=don't hadnt=hadn't hadnt've=hadn't've
    hadn'tve=hadn't've hasnt=hasn't havent=haven't hed=he'd hed've=he'd've he'dve=he'd've hes=he's howd=how'd
    howll=how'll hows=how's Id've=I'd've I'dve=I'd've Im=I'm Ive=I've isnt=isn't itd=it'd itd've=it'd've
    it'dve=it'd've itll=it'll maam=ma'am mightnt=mightn't mightnt've=mightn't've mightn'tve=mightn't've
    mightve=might've mustnt=mustn't mustve=must've neednt=needn't notve=not've oclock=o'clock oughtnt=oughtn't
    ow's'at='ow's'at 'ows'at='ow's'at 'ow'sat='ow's'at shant=shan't shed've=she'd've she'dve=she'd've
    shouldve=should've shouldnt=shouldn't shouldnt've=shouldn't've shouldn'tve=shouldn't've somebody'd=somebodyd
    somebodyd've=somebody'd've somebody'dve=somebody'd've somebodyll=somebody'll somebodys=somebody's
    someoned=someone'd someoned've=someone'd've someone'dve=someone'd've someonell=someone'll someones=someone's
    somethingd=something'd somethingd've=something'd've something'dve=something'd've somethingll=something'll
    thats=that's thered=there'd thered've=there'd've there'dve=there'd've therere=there're theres=there's
    theyd=they'd theyd've=they'd've they'dve=they'd've theyll=they'll theyre=they're theyve=they've twas='twas
    wasnt=wasn't wed've=we'd've we'dve=we'd've weve=we've werent=weren't whatll=what'll whatre=what're whats=what's
    whatve=what've whens=when's whered=where'd wheres=where's whereve=where've whod=who'd whod've=who'd've
    who'dve=who'd've wholl=who'll whos=who's whove=who've whyll=why'll whyre=why're whys=why's wont=won't
    wouldve=would've wouldnt=wouldn't wouldnt've=wouldn't've wouldn'tve=wouldn't've yall=y'all yall'll=y'all'll
    y'allll=y'all'll yall'd've=y'all'd've y'alld've=y'all'd've y'all'dve=y'all'd've youd=you'd youd've=you'd've
    you'dve=you'd've youll=you'll youre=you're youve=you've
"""
CONTRACTIONS = dict(pair.split("=") for pair in _CONTRACTED.split())
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")  # the official pattern means to spare "3." too, and does not
_MOST_PERIODS = 32  # re.UNICODE, passed where the count belongs


def normalise(answer: str) -> str:
    """An answer in the form in which answers are compared: punctuation, digits, articles, contractions."""
    return _words(_without_punctuation(answer))


def answer_accuracy(answers: Sequence[str], prediction: str) -> float:
    """How right one answer is, from 0 to 1, given what people answered.

    It is the mean, over the people, of min(1, others who gave this answer / 3). Where all people agree, answers are
    compared as they are written: "Yes" is wrong where all ten say "yes".
    """
    given, predicted = [_one_line(answer) for answer in answers], _one_line(prediction)
    if len(set(given)) > 1:
        given, predicted = [normalise(answer) for answer in given], normalise(predicted)
    matching = given.count(predicted)
    shares = [min(1.0, (matching - (answer == predicted)) / ENOUGH) for answer in given]
    return sum(shares) / len(shares)


def _one_line(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def _without_punctuation(text: str) -> str:
    """Each mark becomes nothing if it stands beside a space or the text has 1,000 in it; else a space."""
    found = text
    all_go = _COMMA_IN_NUMBER.search(text) is not None
    for mark in PUNCTUATION:
        goes = all_go or f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if goes else " ")
    return _PERIOD.sub("", found, count=_MOST_PERIODS)


def _words(text: str) -> str:
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
