"""What config.json may say: which keys exist, of which type, and which values belong together.

Nothing here raises: every function returns all the problems it found, so that the user hears of them at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, cast

# Keys that become fields of ModelConfig, by type.
INTEGERS = (
    *("vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
    *("n_routed_experts", "n_shared_experts", "num_experts_per_tok", "first_k_dense_replace", "moe_layer_freq"),
    *("n_group", "topk_group", "max_position_embeddings"),
)
NULLABLE_INTEGERS = ("q_lora_rank", "bos_token_id", "eos_token_id")
NUMBERS = ("routed_scaling_factor", "rms_norm_eps", "initializer_range", "rope_theta")
YARN_INTEGERS = ("original_max_position_embeddings",)
YARN_NUMBERS = ("factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")

# May be absent: nothing a forward computes depends on a guess (K2 and transformers agree on these defaults).
OPTIONAL = {"moe_layer_freq", "initializer_range", "bos_token_id", "eos_token_id"}

# Keys with one value that we compute; any other names a model we are not.
ONLY: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "num_mtp_layers": 0,  # transformers' name of the next
    "num_nextn_predict_layers": 0,  # multi-token prediction; K2 ships none
    "pretraining_tp": 1,
    "rope_interleave": True,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
}
WRITTEN = set(ONLY) - {"num_mtp_layers", "pretraining_tp", "rope_interleave"}

# Keys that repeat others.
SAME: dict[str, Callable[[Mapping[str, Any]], int]] = {
    "num_key_value_heads": lambda c: c["num_attention_heads"],
    "num_local_experts": lambda c: c["n_routed_experts"],
    "qk_head_dim": lambda c: c["qk_nope_head_dim"] + c["qk_rope_head_dim"],
    "head_dim": lambda c: c["qk_rope_head_dim"],  # transformers 5 calls the rotary part so
}

# Keys that change nothing we do: training hints, bookkeeping of transformers.
HARMLESS = {
    *("_name_or_path", "auto_map", "dtype", "output_attentions", "output_hidden_states", "pad_token_id", "return_dict"),
    *("torch_dtype", "transformers_version", "use_cache"),
    *("aux_loss_alpha", "ep_size", "output_router_logits", "router_aux_loss_coef", "seq_aux"),
}
ROPE = ("rope_scaling", "rope_parameters")
PACKED_FORMATS = ("bf16", "fp8", "int8", "int4")  # of `baltoro quantize`
PACKED_VERSION = 1  # of the order of bytes in its files: kernels/csrc/kernels.h and weights/layout.py
KNOWN = {
    *INTEGERS, *NULLABLE_INTEGERS, *NUMBERS, *ONLY, *SAME, *HARMLESS, *ROPE,
    "model_type", "norm_topk_prob", "quantization_config",
}  # fmt: skip

# What must hold between fields. A rule is its own message; it is skipped where one of its fields could not be read.
RULES: tuple[tuple[str, Callable[[Mapping[str, Any]], bool]], ...] = (
    (
        "qk_rope_head_dim is {qk_rope_head_dim}, must be even: rotary dimensions turn in pairs",
        lambda c: c["qk_rope_head_dim"] % 2 == 0,
    ),
    (
        "n_routed_experts {n_routed_experts} is not divisible by n_group {n_group}",
        lambda c: c["n_routed_experts"] % c["n_group"] == 0,
    ),
    (
        "n_group {n_group} leaves fewer than two of n_routed_experts {n_routed_experts} to a group, "
        "whose score is a sum of two",
        lambda c: c["n_group"] == 1 or c["n_routed_experts"] // c["n_group"] >= 2,
    ),
    ("topk_group {topk_group} is more than n_group {n_group}", lambda c: c["topk_group"] <= c["n_group"]),
    (
        "num_experts_per_tok {num_experts_per_tok} is more than the experts in topk_group {topk_group} of n_group "
        "{n_group} groups of n_routed_experts {n_routed_experts}",
        lambda c: c["num_experts_per_tok"] <= c["n_routed_experts"] // c["n_group"] * c["topk_group"],
    ),
    (
        "first_k_dense_replace {first_k_dense_replace} is more than num_hidden_layers {num_hidden_layers}",
        lambda c: c["first_k_dense_replace"] <= c["num_hidden_layers"],
    ),
    (
        "bos_token_id {bos_token_id} is not below vocab_size {vocab_size}",
        lambda c: c["bos_token_id"] is None or c["bos_token_id"] < c["vocab_size"],
    ),
    (
        "eos_token_id {eos_token_id} is not below vocab_size {vocab_size}",
        lambda c: c["eos_token_id"] is None or c["eos_token_id"] < c["vocab_size"],
    ),
    (
        "weight_block_size {weight_block_size} is not [128, 128], the only block-fp8 that K2 ships and we compute",
        lambda c: c["weight_block_size"] is None or tuple(c["weight_block_size"]) == (128, 128),
    ),
    (
        "packed_format is {packed_format!r}, must be one of bf16, fp8, int8 and int4, without weight_block_size",
        lambda c: (
            c["packed_format"] is None or (c["packed_format"] in PACKED_FORMATS and c["weight_block_size"] is None)
        ),
    ),
    (
        "model_type is {model_type!r}, must be 'kimi_k2' or 'deepseek_v3'",
        lambda c: c["model_type"] in ("kimi_k2", "deepseek_v3"),
    ),
)
MAY_BE_ZERO = ("n_shared_experts", "first_k_dense_replace", "bos_token_id", "eos_token_id")


def contradictions(values: Mapping[str, Any]) -> list[str]:
    """Fields of ModelConfig that are out of range or do not fit each other. Absent fields are passed over."""
    problems: list[str] = []
    values = dict(values)
    for name in (*INTEGERS, *NULLABLE_INTEGERS, *NUMBERS):
        if (value := values.get(name)) is None:
            continue
        least = 0 if name in MAY_BE_ZERO else 1
        if name in NUMBERS and value <= 0:
            problems.append(f"{name} is {value}, must be more than 0")
        elif name not in NUMBERS and value < least:
            problems.append(f"{name} is {value}, must be at least {least}")
        else:
            continue
        del values[name]  # said once; the rules below need not trip over it
    for message, holds in RULES:
        try:
            if not holds(values):
                problems.append(message.format_map(values))
        except KeyError:
            continue
    yarn = values.get("yarn")
    if yarn:
        if yarn["factor"] < 1:
            problems.append(f"rope_scaling.factor is {yarn['factor']}, must be at least 1")
        if yarn["original_max_position_embeddings"] < 1:
            problems.append("rope_scaling.original_max_position_embeddings must be at least 1")
        if not yarn["beta_fast"] >= yarn["beta_slow"] > 0:
            problems.append(
                f"rope_scaling.beta_fast {yarn['beta_fast']} must not be below beta_slow {yarn['beta_slow']}, "
                "and both must be more than 0"
            )
        problems += [f"rope_scaling.{n} is {yarn[n]}, must not be below 0" for n in YARN_NUMBERS[3:] if yarn[n] < 0]
    return problems


def read(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """config.json -> the fields of ModelConfig that could be read (yarn as a dict), and what is wrong with the rest."""
    problems = _unknown(config, KNOWN, "")
    config = dict(config)
    values: dict[str, Any] = {"yarn": _read_rope(config, problems)}
    for name in (*INTEGERS, *NULLABLE_INTEGERS, *NUMBERS, "model_type", "norm_topk_prob"):
        if name not in config:
            if name not in OPTIONAL:
                problems.append(f"{name} is missing")
        elif problem := _mistyped(name, config[name]):
            problems.append(problem)
        else:
            values[name] = float(config[name]) if name in NUMBERS else config[name]
    for name, only in ONLY.items():
        if name in config and (config[name] != only or isinstance(config[name], bool) != isinstance(only, bool)):
            problems.append(f"{name} is {config[name]!r}, only {only!r} is supported")
    for name, expected in SAME.items():
        try:
            if config.get(name) is not None and config[name] != expected(values):
                problems.append(
                    f"{name} is {config[name]!r}, must be {expected(values)} to agree with the other fields"
                )
        except KeyError:
            continue
    values |= _read_quantization(config.get("quantization_config"), problems)
    return values, problems


def _unknown(config: Mapping[str, Any], known: Iterable[str], prefix: str) -> list[str]:
    problems: list[str] = []
    for name in config:
        if name not in known:
            near = get_close_matches(str(name), known, n=1)
            problems.append(f"{prefix}{name} is unknown" + (f" (did you mean {near[0]}?)" if near else ""))
    return problems


def _mistyped(name: str, value: object, label: str = "") -> str:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if name in INTEGERS or name in YARN_INTEGERS:
        fits, expected = whole, "an integer"
    elif name in NULLABLE_INTEGERS:
        fits, expected = whole or value is None, "an integer or null"
    elif name in NUMBERS or name in YARN_NUMBERS:
        fits, expected = whole or (isinstance(value, float) and math.isfinite(value)), "a finite number"
    elif name == "model_type":
        fits, expected = isinstance(value, str), "a string"
    else:
        fits, expected = isinstance(value, bool), "true or false"
    return "" if fits else f"{label or name} is {value!r}, must be {expected}"


def _read_rope(config: dict[str, Any], problems: list[str]) -> dict[str, Any] | None:
    """The stretch, from `rope_scaling` (K2's files) or `rope_parameters` (transformers 5, rope_theta inside)."""
    given = [(key, config[key]) for key in ROPE if config.get(key) is not None]
    if len(given) > 1:
        problems.append("rope_scaling and rope_parameters are both given; one says it all")
    if not given:
        return None
    key, rope = given[0]
    if not isinstance(rope, dict):
        problems.append(f"{key} is {rope!r}, must be an object or null")
        return None
    rope = cast("dict[str, Any]", rope)
    problems += _unknown(
        rope, {"type", "rope_type", "rope_theta", "attention_factor", *YARN_INTEGERS, *YARN_NUMBERS}, f"{key}."
    )
    if "rope_theta" in rope and config.setdefault("rope_theta", rope["rope_theta"]) != rope["rope_theta"]:
        problems.append(f"rope_theta is {config['rope_theta']!r}, but {key}.rope_theta is {rope['rope_theta']!r}")
    if rope.get("attention_factor") is not None:
        problems.append(
            f"{key}.attention_factor is {rope['attention_factor']!r}; give mscale and mscale_all_dim instead"
        )
    kinds = {rope[name] for name in ("type", "rope_type") if isinstance(rope.get(name), str)}
    if kinds == {"default"}:
        return None
    if kinds != {"yarn"}:
        problems.append(f"{key}.type is {' and '.join(sorted(kinds)) or 'missing'}, must be yarn")
        return None
    problems += (bad := [
        p for name in (*YARN_INTEGERS, *YARN_NUMBERS)
        if name in rope and (p := _mistyped(name, rope[name], f"{key}.{name}"))
    ])  # fmt: skip
    problems += (missing := [f"{key}.{name} is missing" for name in (*YARN_INTEGERS, "factor") if name not in rope])
    if bad or missing:
        return None
    defaults = {"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 0.0}
    numbers = {name: float(rope.get(name, defaults.get(name))) for name in YARN_NUMBERS}
    return numbers | {name: rope[name] for name in YARN_INTEGERS}


def _read_quantization(given: object, problems: list[str]) -> dict[str, Any]:
    """Block-fp8 as K2 ships it, what `baltoro quantize` writes, or nothing."""
    if given is None:
        return {"weight_block_size": None}
    if not isinstance(given, dict):
        problems.append(f"quantization_config is {given!r}, must be an object or null")
        return {"weight_block_size": None}
    quantization = cast("dict[str, Any]", given)
    if quantization.get("quant_method") == "baltoro":
        return {"weight_block_size": None, "packed_format": _read_packed(quantization, problems)}
    only = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
    known = {*only, "weight_block_size", "modules_to_not_convert", "dequantize"}
    problems += _unknown(quantization, known, "quantization_config.")
    for name, value in only.items():
        if quantization.get(name, None if name == "quant_method" else value) != value:
            problems.append(f"quantization_config.{name} is {quantization.get(name)!r}, only {value!r} is supported")
    block = quantization.get("weight_block_size")
    if block != [128, 128]:
        problems.append(f"quantization_config.weight_block_size is {block!r}, only [128, 128] is supported")
    return {"weight_block_size": (128, 128)}


def _read_packed(quantization: dict[str, Any], problems: list[str]) -> str | None:
    problems += _unknown(quantization, {"quant_method", "format", "version"}, "quantization_config.")
    if (version := quantization.get("version")) != PACKED_VERSION:
        problems.append(
            f"quantization_config.version is {version!r}, this Baltoro reads {PACKED_VERSION}; quantize the model again"
        )
    format = quantization.get("format")
    if format in PACKED_FORMATS:
        return format
    problems.append(f"quantization_config.format is {format!r}, must be one of {', '.join(PACKED_FORMATS)}")
    return None
