from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baltoro.engine.request import FinishReason, Request, SamplingParams, Step
from baltoro.engine.upstream.dialect import Ask, Heard
from baltoro.engine.upstream.draft import MAX_ASKS, Draft
from baltoro.errors import EngineError
from tests.engine.fake import VOCAB, logits_after


class Masks:
    """A mask for every place, drawn beforehand; everything is allowed behind the last one."""

    def __init__(self, masks: list[set[int]]) -> None:
        self.masks, self.place = masks, 0

    def mask(self) -> np.ndarray | None:
        if self.place >= len(self.masks):
            return None
        return np.isin(np.arange(VOCAB), list(self.masks[self.place]))

    def advance(self, token: int) -> None:
        self.place += 1


def greedy(history: list[int], allowed: set[int]) -> int:
    logits = logits_after(history)
    return max(sorted(allowed), key=lambda token: logits[token])


def upstream(ask: Ask, size: int) -> list[int]:
    """What a greedy upstream says that knows nothing of constraints, `size` tokens at most."""
    history = list(ask.prompt)
    for _ in range(min(size, ask.sampling.max_tokens)):
        allowed = set(range(VOCAB)) if ask.allowed is None else set(ask.allowed)
        if ask.sampling.min_tokens > len(history) - len(ask.prompt):
            allowed -= ask.sampling.stop_token_ids
        history.append(greedy(history, allowed))
        if history[-1] in ask.sampling.stop_token_ids:
            break
    return history[len(ask.prompt) :]


IDS = st.integers(0, VOCAB - 1)


@given(
    prompt=st.lists(IDS, min_size=1, max_size=5),
    masks=st.lists(st.sets(IDS, min_size=1), max_size=12) | st.none(),
    max_tokens=st.integers(1, 15),
    stops=st.frozensets(IDS, max_size=4),
    least=st.integers(0, 15),
    cuts=st.lists(st.integers(1, 6), min_size=1),
    missing=st.booleans(),
)
def test_what_is_written_is_the_masked_argmax_wherever_upstreams_stop(
    prompt: list[int],
    masks: list[set[int]] | None,
    max_tokens: int,
    stops: frozenset[int],
    least: int,
    cuts: list[int],
    missing: bool,
) -> None:
    least = min(least, max_tokens)
    sampling = SamplingParams(max_tokens=max_tokens, min_tokens=least, stop_token_ids=stops)
    constraint = None if masks is None else Masks(masks)
    draft = Draft(
        Request(prompt=prompt, sampling=sampling, sink=print, constraint=constraint),  # type: ignore[arg-type]
        vocab_size=VOCAB,
        max_context=1000,
    )
    steps: list[Step] = []
    asks = 0
    while draft.over is None:
        asked = draft.next()
        if isinstance(asked, int):
            step = draft.hear(Heard(asked))
            assert step is not None, "a token that alone is allowed was refused"
            steps.append(step)
            continue
        said = upstream(asked, cuts[asks % len(cuts)])
        asks += 1
        assert asked.prompt == prompt + draft.tokens
        for token in said:
            step = draft.hear(Heard(token))
            if step is None:
                assert asked.allowed is None
                break
            steps.append(step)
            if draft.over is not None:
                break
        if missing:
            draft.missed()
    wanted: list[int] = []
    while True:
        place = len(wanted)
        allowed = set(range(VOCAB)) if masks is None or place >= len(masks) else masks[place]
        if place < least and allowed - stops:
            allowed = allowed - stops
        wanted.append(greedy(prompt + wanted, allowed))
        if wanted[-1] in stops or len(wanted) == max_tokens:
            break
    assert draft.tokens == wanted == [step.token for step in steps]
    assert [step.finish for step in steps[:-1]] == [None] * (len(steps) - 1)
    assert steps[-1].finish is (FinishReason.STOP if wanted[-1] in stops else FinishReason.LENGTH)


def test_an_upstream_that_never_says_what_is_allowed_is_given_up() -> None:
    class Never:
        def mask(self) -> np.ndarray:
            return np.isin(np.arange(VOCAB), [1, 2])

        def advance(self, token: int) -> None: ...

    request = Request(prompt=[1], sampling=SamplingParams(max_tokens=9), sink=print, constraint=Never())
    draft = Draft(request, vocab_size=VOCAB, max_context=1000)
    with pytest.raises(EngineError, match="1000 times"):
        for _ in range(MAX_ASKS + 1):
            draft.next()
            assert draft.hear(Heard(7)) is None


def test_a_token_of_another_vocabulary_is_an_error() -> None:
    draft = Draft(
        Request(prompt=[1], sampling=SamplingParams(max_tokens=9), sink=print), vocab_size=VOCAB, max_context=1000
    )
    with pytest.raises(EngineError, match="token 50, expected 0 to 49"):
        draft.hear(Heard(VOCAB))


def test_what_was_said_still_counts_when_it_is_sent_as_prompt() -> None:
    """Penalties as biases, another place in the seed's stream, fewer tokens to go."""
    sampling = SamplingParams(
        max_tokens=9, presence_penalty=0.5, frequency_penalty=0.25, logit_bias={3: 1.0}, seed=2**64 - 1, min_tokens=4
    )
    draft = Draft(Request(prompt=[1, 3], sampling=sampling, sink=print), vocab_size=VOCAB, max_context=1000)
    first = draft.next()
    assert isinstance(first, Ask)
    assert first.sampling == sampling
    for token in (3, 5, 3):
        draft.hear(Heard(token))
    ask = draft.next()
    assert isinstance(ask, Ask)
    assert ask.prompt == [1, 3, 3, 5, 3]
    assert ask.sampling.logit_bias == {3: 1.0 - 0.5 - 0.5, 5: -0.5 - 0.25}
    assert (ask.sampling.max_tokens, ask.sampling.min_tokens, ask.sampling.seed) == (6, 1, 2)
