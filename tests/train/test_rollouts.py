"""What the engine says of the tokens it drew is what the trainer says of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from baltoro.chat.template import render
from baltoro.chat.tokenizer import Tokenizer
from baltoro.errors import EngineError
from baltoro.model.load import load
from baltoro.train import objective
from baltoro.train.actor import Actor
from baltoro.train.objective import Episode
from baltoro.train.rl_recipe import TaskSource
from baltoro.train.rollouts import Group, Rollout
from tests.train import tiny_rl

SESSIONS = (TaskSource(kind="session", answer_tokens=150, unavailable=0.2),)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def drawn(groups: list[Group]) -> list[tuple[list[int], list[float]]]:
    return [(rollout.ids, rollout.logprobs) for group in groups for rollout in group.rollouts]


def differences(model: torch.nn.Module, groups: list[Group]) -> torch.Tensor:
    """|log pi of the trainer - log pi of the engine| of every drawn token."""
    packed = objective.pack([Episode.of(r, 0.0) for group in groups for r in group.rollouts])
    with torch.no_grad():
        every = objective.token_logprobs(model(packed.batch), packed)
    return (every.gather(1, packed.drawn[:, None]).squeeze(1) - packed.logprobs).abs()


@pytest.mark.parametrize(
    ("rollout_format", "dtype", "mean", "largest"),
    [
        # expanded against absorbed attention, other orders of sums: measured 6e-7 and 9e-6
        ("float32", torch.float32, 5e-6, 1e-4),
        # weights, activations and cache of 8 bits: measured 9e-4 and 0.13, the latter where a token was unlikely
        ("bf16", torch.float32, 1e-2, 1.0),
        # both sides rounded: measured 1.5e-3 and 0.18
        ("bf16", torch.bfloat16, 1e-2, 1.0),
    ],
)
def test_the_trainers_log_probs_are_the_engines(
    tmp_path: Path, rollout_format: str, dtype: torch.dtype, mean: float, largest: float
) -> None:
    tasks = (TaskSource(kind="single", answer_tokens=60), *SESSIONS)
    recipe = tiny_rl.recipe(tmp_path, tasks=tasks, rollout_format=rollout_format)
    model, groups = load(tiny_rl.NANO), tiny_rl.groups(recipe, 4)
    with Actor(model, recipe) as actor:
        actor.draw(groups[:2], temperature=1.3, allowance=20)  # put aside in the middle
        actor.draw(groups, temperature=0.7, allowance=0)
    assert all(group.ended for group in groups)
    assert {task.task.kind for task in groups} == {"single", "session"}
    temperatures = {each for group in groups for rollout in group.rollouts for each in rollout.temperatures}
    assert temperatures == {1.3, 0.7}
    model.dtype = dtype
    found = differences(model, groups)
    assert len(found) > 200
    assert float(found.mean()) < mean
    assert float(found.max()) < largest


def test_a_conversation_is_what_the_template_prints_of_it(tmp_path: Path) -> None:
    """Turns are appended as ids; the whole, rendered at once from the messages, is the same."""
    recipe = tiny_rl.recipe(tmp_path, tasks=SESSIONS, samples=4)
    tokenizer, groups = Tokenizer.open(tiny_rl.NANO), tiny_rl.groups(recipe, 8)
    with Actor(load(tiny_rl.NANO), recipe) as actor:
        actor.draw(groups, temperature=0.3, allowance=0)
    several = 0
    for rollout in (rollout for group in groups for rollout in group.rollouts if not rollout.cut):
        messages = [*rollout.prompt.messages, *rollout.transcript]
        whole = render(messages, rollout.prompt.tools, add_generation_prompt=False)
        assert tokenizer.decode(whole.ids(tokenizer)) == tokenizer.decode(rollout.ids)
        learned = [position for position, each in enumerate(whole.ids_and_loss_mask(tokenizer)[1]) if each]
        if whole.ids(tokenizer) == rollout.ids:  # nano need not cut words as the tokenizer does
            assert learned == rollout.positions
            several += len(rollout.turns) > 2
    assert several > 2


def test_a_saved_rollout_goes_on_with_the_bits_of_one_that_was_not(tmp_path: Path) -> None:
    recipe = tiny_rl.recipe(tmp_path, tasks=SESSIONS)
    tokenizer, model = Tokenizer.open(tiny_rl.NANO), load(tiny_rl.NANO)
    kept, whole = tiny_rl.groups(recipe, 3), tiny_rl.groups(recipe, 3)
    for groups in (kept, whole):
        with Actor(model, recipe) as actor:
            actor.draw(groups, temperature=1.0, allowance=25)
    assert drawn(kept) == drawn(whole)
    assert not all(group.ended for group in kept)
    taken_up: list[Group] = []
    for group in kept:
        rollouts = [Rollout(group.number, r.sample, group.task, tokenizer) for r in group.rollouts]
        for rollout, old in zip(rollouts, group.rollouts, strict=True):
            rollout.replay(json.loads(json.dumps(old.saved())))
        taken_up.append(Group(group.number, group.task, tuple(rollouts)))
    for groups in (taken_up, whole):
        with Actor(model, recipe) as actor:
            actor.draw(groups, temperature=1.0, allowance=0)
    assert drawn(taken_up) == drawn(whole)
    rewards = [[rollout.reward for rollout in group.rollouts] for group in whole]
    assert [[rollout.reward for rollout in group.rollouts] for group in taken_up] == rewards


def test_a_rollout_is_cut_at_its_budget_and_no_token_later(tmp_path: Path) -> None:
    recipe = tiny_rl.recipe(tmp_path, tasks=(TaskSource(kind="single", answer_tokens=7),))
    groups = tiny_rl.groups(recipe, 2)
    with Actor(load(tiny_rl.NANO), recipe) as actor:
        actor.draw(groups, temperature=1.0, allowance=3)
        assert [r.num_drawn for group in groups for r in group.rollouts] == [3] * 6
        actor.draw(groups, temperature=1.0, allowance=3)
        actor.draw(groups, temperature=1.0, allowance=3)
    for rollout in (rollout for group in groups for rollout in group.rollouts):
        assert rollout.cut
        assert rollout.reward is None
        assert rollout.num_drawn == 7


def test_new_weights_draw_other_tokens_and_an_old_prefix_is_not_used_again(tmp_path: Path) -> None:
    """An engine that was refreshed says what a new one says."""
    for rollout_format in ("float32", "bf16"):
        recipe = tiny_rl.recipe(tmp_path, rollout_format=rollout_format)
        model = load(tiny_rl.NANO)
        before, refreshed, fresh = (tiny_rl.groups(recipe, 2) for _ in range(3))
        with Actor(model, recipe) as actor:
            actor.draw(before, temperature=1.0, allowance=20)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1.02)
            actor.refresh()
            assert actor.engine.statistics().prefix_pages == 0
            actor.draw(refreshed, temperature=1.0, allowance=20)
        with Actor(model, recipe) as actor:
            actor.draw(fresh, temperature=1.0, allowance=20)
        assert drawn(refreshed) == drawn(fresh)
        assert drawn(before) != drawn(fresh)


def test_an_engine_that_fails_ends_the_iteration_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_rl.recipe(tmp_path)
    with Actor(load(tiny_rl.NANO), recipe) as actor:

        def broken(*_: object, **__: object) -> None:
            raise ValueError("no forward today")

        monkeypatch.setattr(type(actor.engine.model), "forward", broken)
        with pytest.raises(EngineError, match="no forward today"):
            actor.draw(tiny_rl.groups(recipe, 1), temperature=1.0, allowance=0)
