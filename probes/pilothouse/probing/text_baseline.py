"""What the words alone give away: a probe that does no better than this has read nothing that the text does not say."""

from collections.abc import Sequence

import numpy as np

from pilothouse.probing.aggregation import Float64
from pilothouse.probing.statements import LabelledItem


def text_baseline(training: Sequence[LabelledItem], judged: Sequence[LabelledItem]) -> Float64:
    """Log-odds [judged] of label 1 by the text alone, whole chats included.

    Words and pairs of words, and pieces of 3 to 5 characters inside words, weighted by TF-IDF, with logistic
    regression. `training` must hold both labels.
    """
    # Slow to import, and a server never fits.
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline, make_union

    # Anything between white space is a word: the tokens of a vocabulary may be single signs.
    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\S+", sublinear_tf=True)
    pieces = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), max_features=100_000, sublinear_tf=True)
    model = make_pipeline(make_union(words, pieces), LogisticRegression(C=10.0, max_iter=2_000))
    model.fit([item.transcript for item in training], [item.label for item in training])
    return np.asarray(model.decision_function([item.transcript for item in judged]), dtype=np.float64)
