"""What tests of several rooms share."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("suite", deadline=None)  # a busy machine is no failure
if settings.get_current_profile_name() == "default":
    settings.load_profile("suite")

# A shell's background job ignores Ctrl-C, and so would every program that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model directory: K2's architecture in miniature, random block-fp8 weights, a small vocabulary."""
    from baltoro.chat.tokenizer import Tokenizer
    from baltoro.weights.save import write
    from tests import tiny, vocabulary

    directory = tmp_path_factory.mktemp("tiny-k2")
    vocabulary.write_vocabulary(directory)
    tokenizer = Tokenizer.open(directory)
    config = tiny.config(
        vocab_size=tokenizer.vocab_size,
        bos_token_id=tokenizer.num_base,
        eos_token_id=tokenizer.num_base + 1,
        weight_block_size=(128, 128),
    )
    write(directory, tiny.weights(config), config.to_dict())
    return directory
