"""What a model is, and whether its files agree with its config: the answer of `baltoro info`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from baltoro import counts
from baltoro.config import ModelConfig, resolve
from baltoro.errors import CheckpointError


def describe(model: str | Path) -> dict[str, Any]:
    """Counts from config.json alone; `checkpoint` is None where there are no weights. JSON types only.

    A damaged checkpoint is described, not refused: `checkpoint.mismatches` says what is wrong with it.
    """
    path = resolve(model)
    config = ModelConfig.open(path)
    return {
        "model": str(model),
        "path": str(path),
        "model_type": config.model_type,
        "parameters": counts.parameters(config),
        "active_parameters": counts.active_parameters(config),
        "tensor_bytes": _tensor_bytes(config),
        "cache_bytes_per_token": counts.cache_bytes_per_token(config),
        "decode_flops_per_token": counts.decode_flops(config, context=1),
        "format": _format(config),
        "context_tokens": config.max_position_embeddings,
        "vocab_size": config.vocab_size,
        "layers": config.num_hidden_layers,
        "moe_layers": sum(config.is_moe(layer) for layer in range(config.num_hidden_layers)),
        "hidden_size": config.hidden_size,
        "heads": config.num_attention_heads,
        "experts": config.n_routed_experts,
        "experts_per_token": config.num_experts_per_tok,
        "shared_experts": config.n_shared_experts,
        "has_tokenizer": (path / "tiktoken.model").is_file(),
        "checkpoint": _describe_files(config, path) if any(path.glob("*.safetensors*")) else None,
    }


def _format(config: ModelConfig) -> str:
    if config.packed_format is not None:
        return f"packed {config.packed_format}"
    return "bf16" if config.weight_block_size is None else "block-fp8"


def _tensor_bytes(config: ModelConfig) -> int:
    if config.packed_format is None:
        return counts.tensor_bytes(config)
    # Presets and lone configs are described without torch, which takes a second to import.
    from baltoro.weights import layout

    return sum(spec.nbytes for spec in layout.tensors(config))


def _describe_files(config: ModelConfig, directory: Path) -> dict[str, Any]:
    from baltoro.weights.checkpoint import Checkpoint, mismatches

    try:
        checkpoint = Checkpoint.open(directory)
    except CheckpointError as error:
        files = sorted(directory.glob("*.safetensors"))
        problems, tensors, tensor_bytes = [error.message], None, None
    else:
        files, problems = checkpoint.files, mismatches(config, checkpoint)
        tensors, tensor_bytes = len(checkpoint.entries), checkpoint.nbytes
    return {
        "files": len(files),
        "file_bytes": sum(file.stat().st_size for file in files),
        "tensors": tensors,
        "tensor_bytes": tensor_bytes,
        "mismatches": problems,
    }
