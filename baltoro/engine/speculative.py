"""What a sequence may say next, guessed without the model: every guess is checked, so that what is said is the same.

    the grammar     keys, braces and names that it forces, spelled as the tokenizer spells them
    the text        what followed the last few tokens where they stood before: edits of code, arguments from a prompt

The guesses run behind the sequence's last token in the same forward. The engine then chooses each token as it would
have done alone, and goes on as long as it is the one that was guessed. A wrong guess costs its rows of one forward;
after some in a row the text is asked more seldom.
"""

from __future__ import annotations

from collections.abc import Sequence

from baltoro.engine.request import Constraint

WINDOW = 4  # tokens that must have stood together before
LONGEST = 16  # guesses of one step
SHORTEST = 2
RAREST = 64  # tokens between two questions to a text that never guesses right


class Drafter:
    """Of one sequence."""

    def __init__(self, constraint: Constraint | None) -> None:
        self._forced = getattr(constraint, "forced", None)
        self._after: dict[tuple[int, ...], int] = {}  # window -> where what followed it stands, the last time
        self._indexed = WINDOW
        self._length = SHORTEST  # of a guess from the text: twice as long after each that was all right
        self._pause = 0  # tokens until the text is asked again
        self._failures = 0  # in a row
        self._from_text = False

    def propose(self, tokens: Sequence[int], most: int) -> tuple[int, ...]:
        """At most `most` tokens that may follow; () without a guess."""
        most = min(most, LONGEST)
        if most <= 0:
            return ()
        if self._forced is not None and (forced := self._forced(most)):
            self._from_text = False
            return tuple(forced[:most])
        if self._pause > 0:
            self._pause -= 1
            return ()
        self._from_text = True
        return tuple(self._seen(tokens, min(most, self._length)))

    def learn(self, proposed: int, right: int) -> None:
        """So many guesses of the last step came true."""
        if not proposed or not self._from_text:
            return
        if right == proposed:
            self._failures, self._length = 0, min(2 * self._length, LONGEST)
        elif right:
            self._failures, self._length = 0, max(SHORTEST, right)
        else:
            self._failures, self._length = self._failures + 1, SHORTEST
            self._pause = min(2**self._failures, RAREST)

    def _seen(self, tokens: Sequence[int], most: int) -> Sequence[int]:
        for end in range(self._indexed, len(tokens)):
            self._after[tuple(tokens[end - WINDOW : end])] = end
        self._indexed = max(self._indexed, len(tokens))
        at = self._after.get(tuple(tokens[-WINDOW:]))
        return () if at is None else tokens[at : at + most]
