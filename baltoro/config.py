"""The architecture of a K2 model, read from `config.json`. What follows from it by counting is in `counts.py`.

Shape letters, the same in every file:

    T tokens now     S tokens attended   D hidden_size        V vocab_size or v_head_dim (said where)
    H heads          C kv_lora_rank      N qk_nope_head_dim   R qk_rope_head_dim
    E routed experts K chosen experts    F expert width       I, O inputs and outputs of any product
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

from baltoro import config_rules
from baltoro.errors import ConfigError

PACKAGE = Path(__file__).parent
PRESETS = {
    "kimi-k2-instruct": PACKAGE / "presets" / "kimi-k2-instruct.json",
    "kimi-k2-instruct-0905": PACKAGE / "presets" / "kimi-k2-instruct-0905.json",
    "kimi-k2-base": PACKAGE / "presets" / "kimi-k2-base.json",
    "moonlight-16b-a3b": PACKAGE / "presets" / "moonlight-16b-a3b.json",
    "nano": PACKAGE / "nano",  # the only one with weights
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Yarn:
    """How rotary positions are stretched (config.json: rope_scaling of type yarn)."""

    factor: float  # context length / original context length
    original_max_position_embeddings: int  # tokens, before stretching
    beta_fast: float = 32.0  # turns inside the original context above which a pair is left alone
    beta_slow: float = 1.0  # turns below which a pair is slowed by `factor`
    mscale: float = 1.0
    mscale_all_dim: float = 0.0  # enters the softmax scale squared; 0 switches it off


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Every architectural constant. Field names are the keys of config.json."""

    model_type: str = "deepseek_v3"  # or kimi_k2: the same architecture; transformers knows only this name
    vocab_size: int
    hidden_size: int  # D
    intermediate_size: int  # width of the dense layers
    moe_intermediate_size: int  # F
    num_hidden_layers: int
    num_attention_heads: int  # H
    q_lora_rank: int | None  # None: one q_proj (Moonlight)
    kv_lora_rank: int  # C
    qk_nope_head_dim: int  # N
    qk_rope_head_dim: int  # R
    v_head_dim: int
    n_routed_experts: int  # E
    n_shared_experts: int  # they form one MLP of this many times F
    num_experts_per_tok: int  # K
    first_k_dense_replace: int  # layers below this index are dense
    moe_layer_freq: int = 1
    n_group: int = 1
    topk_group: int = 1
    routed_scaling_factor: float = 1.0
    norm_topk_prob: bool = True
    rms_norm_eps: float = 1e-6  # Moonlight 1e-5; transformers and K2's own code keep 1e-6 for q_a and kv_a_layernorm
    initializer_range: float = 0.02
    max_position_embeddings: int  # tokens
    rope_theta: float
    yarn: Yarn | None = None  # config.json: rope_scaling
    bos_token_id: int | None = None
    eos_token_id: int | None = None  # ends a document; a chat turn ends with <|im_end|>, which this need not be
    weight_block_size: tuple[int, int] | None = None  # config.json: quantization_config of block-fp8
    packed_format: str | None = None  # config.json: quantization_config of `baltoro quantize`; both None: bf16 weights

    def __post_init__(self) -> None:
        _refuse("model configuration", config_rules.contradictions(asdict(self)))

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    def is_moe(self, layer: int) -> bool:
        return layer >= self.first_k_dense_replace and layer % self.moe_layer_freq == 0

    @staticmethod
    def open(model: str | Path) -> ModelConfig:
        """The config of a directory, of a lone config.json, or of a preset."""
        path = resolve(model)
        path = path / "config.json" if path.is_dir() else path
        return ModelConfig.from_dict(_read_json(path), source=str(path))

    @staticmethod
    def from_dict(config: Mapping[str, Any], *, source: str = "config.json") -> ModelConfig:
        """Read config.json's keys; everything unknown, missing, mistyped or contradictory in one ConfigError."""
        values, problems = config_rules.read(config)
        _refuse(source, problems + config_rules.contradictions(values))
        if values["yarn"] is not None:
            values["yarn"] = Yarn(**values["yarn"])
        return ModelConfig(**values)

    def to_dict(self) -> dict[str, Any]:
        """config.json as K2 ships it: transformers, vLLM and SGLang read it, and `from_dict` gives `self` back."""
        values = asdict(self)
        yarn, block, packed = values.pop("yarn"), values.pop("weight_block_size"), values.pop("packed_format")
        values |= {
            "architectures": ["DeepseekV3ForCausalLM"],
            "num_key_value_heads": self.num_attention_heads,
            "rope_scaling": yarn and {"type": "yarn", **yarn},
            "torch_dtype": "bfloat16",
            "use_cache": True,
        }
        values |= {key: value for key, value in config_rules.ONLY.items() if key in config_rules.WRITTEN}
        if block is not None:
            values["quantization_config"] = {
                "quant_method": "fp8",
                "fmt": "e4m3",
                "activation_scheme": "dynamic",
                "weight_block_size": list(block),
            }
        if packed is not None:
            values["quantization_config"] = packed_quantization(packed)
        return values


def packed_quantization(format: str) -> dict[str, Any]:
    """The quantization_config of a checkpoint whose matrices are packed for the kernels in `format`."""
    return {"quant_method": "baltoro", "format": format, "version": config_rules.PACKED_VERSION}


def resolve(model: str | Path) -> Path:
    """Where MODEL lies: a directory with config.json, or a lone JSON file.

    What exists on disk goes before a preset of the same name: whoever downloaded into ./kimi-k2-instruct means that.
    """
    path = Path(model)
    if path.is_file() or (path / "config.json").is_file():
        return path
    preset = PRESETS.get(str(model))
    if preset is None:
        near = get_close_matches(str(model), PRESETS, n=1)
        raise ConfigError(
            f"{model}: {'this directory has no config.json' if path.is_dir() else 'no such file, directory or preset'}",
            hint=f"did you mean {near[0]}?" if near else f"presets are {', '.join(PRESETS)}",
        )
    if not (preset / "config.json" if preset.suffix == "" else preset).is_file():
        raise ConfigError(
            f"{model}: the files of this preset are not installed in {preset}",
            hint="reinstall baltoro, or name a checkpoint directory",
        )
    return preset


def _read_json(path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"given twice: {', '.join(twice)}")
        return dict(pairs)

    try:
        content: object = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a JSON file: {error}", hint="expected the config.json of a model") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds {type(content).__name__}, expected an object with the fields of config.json")
    return cast("dict[str, Any]", content)


def _refuse(source: str, problems: list[str]) -> None:
    if problems:
        raise ConfigError(
            f"{source}: " + "; ".join(problems),
            hint="Kimi K2's own config.json is in baltoro/presets; model_type must be kimi_k2 or deepseek_v3",
        )
