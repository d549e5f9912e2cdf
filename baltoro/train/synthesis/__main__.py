"""python -m baltoro.train.synthesis OUTDIR --vocabulary DIR [--seed 0 --dialogues N --split train | --text FILE | --toolsets FILE]

python -m baltoro.train.synthesis baltoro/eval/tasks/nano_schemas.jsonl.gz --examples 200
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from baltoro.chat.tokenizer import Tokenizer
from baltoro.train.synthesis import toolsets
from baltoro.train.synthesis.heldout import write_heldout
from baltoro.train.synthesis.tokens import dialogue_documents, generated_documents, text_documents, write_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description="Write dialogues with invented tools, or a text file, as token files.")
    parser.add_argument("outdir", type=Path)
    parser.add_argument("--vocabulary", type=Path, help="directory with tiktoken.model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dialogues", type=int, default=150_000)
    parser.add_argument("--split", choices=("train", "heldout"), default="train")
    parser.add_argument("--text", type=Path, help="JSON lines (.jsonl.gz) of running text instead of dialogues")
    parser.add_argument("--toolsets", type=Path, help="conversations of toolsets.py instead of dialogues")
    parser.add_argument("--examples", type=int, help="write that many held-out examples a kind, as text, to OUTDIR")
    args = parser.parse_args()
    if args.examples:
        write_heldout(args.outdir, args.examples)
        return
    if args.vocabulary is None:
        parser.error("token files need --vocabulary")
    tokenizer = Tokenizer.open(args.vocabulary)
    if args.toolsets:
        meta = write_tokens(args.outdir, dialogue_documents(toolsets.read(args.toolsets), tokenizer), tokenizer)
    elif args.text:
        meta = write_tokens(args.outdir, text_documents(args.text, tokenizer), tokenizer)
    else:
        documents = generated_documents(args.seed, args.split, args.dialogues, args.vocabulary)
        meta = write_tokens(args.outdir, documents, tokenizer, total=args.dialogues)
    print(json.dumps(meta))


if __name__ == "__main__":
    main()
