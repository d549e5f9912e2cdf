"""Conversations with invented tools, made by rule: what the nano model learns to call tools from."""

from baltoro.train.synthesis.dialogues import KINDS, WEIGHTS, Dialogue, generate

__all__ = ["KINDS", "WEIGHTS", "Dialogue", "generate"]
