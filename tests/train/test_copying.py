"""Every position that a copying document marks as known follows from what stands before it."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from baltoro.train.copying import ALPHABET, copying_document


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([32, 48, 64, 96, 256, 1024]),
    st.integers(4, 5000),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_what_carries_loss_is_a_continuation_seen_in_the_segment(
    seed: int, length: int, vocabulary: int, whole: float
) -> None:
    document = copying_document(
        np.random.default_rng(seed), length=length, vocabulary=vocabulary, whole_vocabulary=whole
    )
    ids, known = document.ids.tolist(), document.learned.tolist()
    assert len(ids) == len(known) == length
    assert all(0 <= token < vocabulary for token in ids)
    first = known.index(True) if True in known else length
    segment = ids[: first - 2]  # a piece's first two tokens carry no loss
    assert not any(known[:first]) and len(segment) < length
    continuations: dict[tuple[int, int], set[int]] = {}
    for one, two, three in zip(segment, segment[1:], segment[2:], strict=False):
        continuations.setdefault((one, two), set()).add(three)
    for at in range(first, length):
        if known[at]:
            assert ids[at] in continuations.get((ids[at - 2], ids[at - 1]), set()), at


def test_documents_are_mostly_known_and_pieces_start_unknown() -> None:
    rng = np.random.default_rng(0)
    documents = [copying_document(rng, length=256, vocabulary=2048, whole_vocabulary=0.3) for _ in range(200)]
    share = np.mean([document.learned.mean() for document in documents])
    assert 0.4 < share < 0.9  # a segment takes 8 to 127 of 256 tokens, each piece two more


def test_alphabets_are_small_unless_the_whole_vocabulary_is_asked_for() -> None:
    rng = np.random.default_rng(0)
    few = [copying_document(rng, length=1024, vocabulary=100_000, whole_vocabulary=0.0) for _ in range(50)]
    assert all(len(np.unique(document.ids)) <= ALPHABET[1] for document in few)
    many = [copying_document(rng, length=1024, vocabulary=100_000, whole_vocabulary=1.0) for _ in range(50)]
    assert max(len(np.unique(document.ids)) for document in many) > ALPHABET[1]
    assert not np.array_equal(np.unique(few[0].ids), np.unique(few[1].ids))  # chosen anew for every document
