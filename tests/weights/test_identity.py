from __future__ import annotations

import os
import shutil

import pytest
import torch

from baltoro.model.load import save
from baltoro.weights.identity import SAMPLE, SAMPLES, identity
from tests import tiny, vocabulary
from tests.model.random_models import random_model


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "model").mkdir()
    vocabulary.write_vocabulary(tmp_path / "model")
    save(random_model(tiny.config(hidden_size=512, vocab_size=4096)), tmp_path / "model")
    return tmp_path / "model"


def change(path, place, *, keep_time):
    before = path.stat().st_mtime_ns
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)
    if keep_time:
        os.utime(path, ns=(before, before))


def test_the_same_files_have_the_same_identity_elsewhere_too(directory, tmp_path):
    assert identity(directory) == identity(directory)
    shutil.copytree(directory, tmp_path / "copy")  # keeps times
    assert identity(tmp_path / "copy") == identity(directory)


@pytest.mark.parametrize("name", ["config.json", "tiktoken.model"])
def test_what_describes_the_weights_counts_to_the_last_byte(directory, name):
    before = identity(directory)
    change(directory / name, -2, keep_time=True)
    assert identity(directory) != before


def test_weights_trained_further_are_others_although_name_size_and_time_are_the_same(directory):
    before, shard = identity(directory), next(directory.glob("*.safetensors"))
    assert shard.stat().st_size > 2 * SAMPLE * SAMPLES, "all of it would be sampled"
    stamp, size = shard.stat().st_mtime_ns, shard.stat().st_size
    model = random_model(tiny.config(hidden_size=512, vocab_size=4096))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    shutil.rmtree(directory)
    save(model, directory)
    vocabulary.write_vocabulary(directory)
    os.utime(shard, ns=(stamp, stamp))
    assert shard.stat().st_size == size
    assert identity(directory) != before


def test_one_changed_byte_is_seen_by_the_time_or_at_the_ends(directory):
    before, shard = identity(directory), next(directory.glob("*.safetensors"))
    change(shard, SAMPLE + 10, keep_time=False)
    assert identity(directory) != before
    before = identity(directory)
    change(shard, -1, keep_time=True)
    assert identity(directory) != before
