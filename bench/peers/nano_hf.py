"""Nano (or any checkpoint that we load) as vLLM and llama.cpp read one: plain weights, and a tokenizer of transformers.

    python bench/peers/nano_hf.py DIR [--model nano] [--dtype float32] [--wide]
    vllm serve DIR --dtype float32 --max-model-len 4096                    # DIR made with --wide
    python bench/peers/nano_hf.py DIR --gguf FILE --llama-cpp SOURCE       # DIR is there already
    llama-server -m FILE -ctk f32 -ctv f32 -fa off --yarn-beta-fast 1 --yarn-beta-slow 1

vLLM's CPU build refuses block-fp8, and a block-fp8 weight is exact in float32 only. `tokenizer.json` has the same ids
and bytes as `tiktoken.model`; how it splits text nobody asks, for engines behind `--upstream` get and give token ids.
llama-server takes YaRN's betas from its command line only and has others by default.

vLLM's attention on a CPU knows K2's own cache only, 512 latents and 64 rotary values a token. `--wide` brings nano to
these sizes without changing what it computes: more latents that are zero, and rotary pairs of zeros between its own,
which keep their frequencies. Norms and the softmax's scale count dimensions; weights before or behind make up for it.
"""

from __future__ import annotations

import argparse
import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from baltoro.chat import tokenizer as ours
from baltoro.config import ModelConfig, resolve
from baltoro.model.load import STACKED, load
from baltoro.model.transformer import Transformer
from baltoro.weights.save import write

BYTES = bytes_to_unicode()


def spelled(token: bytes) -> str:
    """As byte-level vocabularies print it."""
    return "".join(BYTES[byte] for byte in token)


def merges(ranks: dict[bytes, int]) -> list[tuple[str, str]]:
    """The two tokens that each one is made of: what byte pair encoding stops at just before it."""
    found: list[tuple[str, str]] = []
    for token, rank in ranks.items():
        parts = [token[place : place + 1] for place in range(len(token))]
        while len(parts) > 2:
            order = [ranks.get(a + b, rank) for a, b in zip(parts, parts[1:], strict=False)]
            best = min(order)
            if best >= rank:
                break
            place = order.index(best)
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        if len(parts) == 2:
            found.append((spelled(parts[0]), spelled(parts[1])))
    return found


def tokenizer(source: Path) -> PreTrainedTokenizerFast:
    ranks = ours.read_ranks(source / "tiktoken.model")
    words = ours.Tokenizer.open(source)
    fast = Tokenizer(models.BPE({spelled(token): rank for token, rank in ranks.items()}, merges(ranks)))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    names = [words.token_bytes(token).decode() for token in range(words.num_base, words.vocab_size)]
    fast.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    made = PreTrainedTokenizerFast(
        tokenizer_object=fast, bos_token="[BOS]", eos_token="<|im_end|>", pad_token="[PAD]", add_bos_token=False
    )
    for token in range(words.vocab_size):
        assert made.convert_ids_to_tokens(token) == (
            spelled(words.token_bytes(token)) if token < words.num_base else names[token - words.num_base]
        )
    return made


def plain_tensors(model: Transformer, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Under the checkpoint's names, experts apart."""
    for name, parameter in model.named_parameters():
        tensor, stacked = parameter.detach(), STACKED.match(name)
        kept = torch.float32 if name.endswith("e_score_correction_bias") else dtype
        if stacked is None:
            yield name, tensor.to(kept).contiguous()
        else:
            for expert, weight in enumerate(tensor):
                yield f"{stacked[1]}.{expert}.{stacked[2]}", weight.to(kept).contiguous()


LATENTS, ROTARY = 512, 64


def widened(tensors: Iterator[tuple[str, torch.Tensor]], config: ModelConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """See above. Doubling the rotary values is what keeps each pair's frequency: it becomes every second pair."""
    latents, nope, rotary = config.kv_lora_rank, config.qk_nope_head_dim, config.qk_rope_head_dim
    assert latents <= LATENTS and 2 * rotary == ROTARY
    assert config.yarn is None or config.yarn.beta_fast == config.yarn.beta_slow
    shrunk = (latents / LATENTS) ** 0.5  # of an RMS norm's result over more, but no larger, dimensions
    sharpened = ((nope + ROTARY) / (nope + rotary)) ** 0.5  # scores are divided by the root of what a head has

    def pairs(rows: torch.Tensor) -> torch.Tensor:
        """(..., R, I) -> (..., 2R, I): each pair of rows, then a pair of zeros."""
        split = rows.unflatten(-2, (-1, 2))
        return torch.cat([split, torch.zeros_like(split)], -2).flatten(-3, -2)

    for name, tensor in tensors:
        if name.endswith("kv_a_proj_with_mqa.weight"):
            zeros = tensor.new_zeros(LATENTS - latents, tensor.shape[1])
            tensor = torch.cat([tensor[:latents], zeros, pairs(tensor[latents:])])
        elif name.endswith("kv_a_layernorm.weight"):
            tensor = torch.cat([tensor * shrunk, tensor.new_zeros(LATENTS - latents)])
        elif name.endswith("kv_b_proj.weight"):
            tensor = torch.cat([tensor, tensor.new_zeros(len(tensor), LATENTS - latents)], 1)
        elif name.endswith("q_b_proj.weight"):
            heads = tensor.unflatten(0, (config.num_attention_heads, nope + rotary)) * sharpened
            tensor = torch.cat([heads[:, :nope], pairs(heads[:, nope:])], 1).flatten(0, 1)
        yield name, tensor.contiguous()


def export(model: str, directory: Path, dtype: torch.dtype, *, wide: bool) -> None:
    source = resolve(model)
    loaded = load(source, dtype=dtype)
    tensors = plain_tensors(loaded, dtype)
    config = json.loads((source / "config.json").read_text())
    config.pop("quantization_config", None)
    words = ours.Tokenizer.open(source)
    config |= {"torch_dtype": str(dtype).removeprefix("torch."), "eos_token_id": words.im_end}
    if wide:
        tensors = widened(tensors, loaded.config)
        config |= {"kv_lora_rank": LATENTS, "qk_rope_head_dim": ROTARY}
    write(directory, tensors, config)
    tokenizer(source).save_pretrained(directory)
    (directory / "tiktoken.model").write_bytes((source / "tiktoken.model").read_bytes())


def gguf(directory: Path, file: Path, llama_cpp: Path) -> None:
    """llama.cpp's own converter, told how this vocabulary splits text."""
    sys.path[:0] = [str(llama_cpp), str(llama_cpp / "gguf-py")]
    from conversion.base import TextModel  # type: ignore[import-not-found]

    TextModel.get_vocab_base_pre = lambda *_: "kimi-k2"
    sys.argv = ["convert", str(directory), "--outfile", str(file), "--outtype", "f32"]
    runpy.run_path(str(llama_cpp / "convert_hf_to_gguf.py"), run_name="__main__")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--wide", action="store_true", help="K2's sizes of the latent cache")
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--llama-cpp", type=Path)
    given = parser.parse_args()
    if given.gguf is not None:
        gguf(given.directory, given.gguf, given.llama_cpp)
    else:
        export(given.model, given.directory, getattr(torch, given.dtype), wide=given.wide)


if __name__ == "__main__":
    main()
