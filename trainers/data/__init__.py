"""Data sets in their official files: examples to learn from, and checks of what is there."""

from trainers.data.answers import AnswerVocabulary
from trainers.data.base import Example, Split
from trainers.data.files import DataError
from trainers.data.sets import DATASETS, DataSet, load

__all__ = ["DATASETS", "AnswerVocabulary", "DataError", "DataSet", "Example", "Split", "load"]
