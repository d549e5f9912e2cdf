"""Published results of K2-class models on machines that state enough: what the planner is compared with.

Each says how fast it was, with the machine of the catalogue that comes nearest. K2-Thinking, K2.5 and K2.6 have Kimi
K2's text backbone; DeepSeek-V3 has the same architecture with 256 experts and 128 heads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from baltoro.config import ModelConfig
from baltoro.plan import speed
from baltoro.plan.efficiency import Band
from baltoro.plan.formats import format_of
from baltoro.plan.layout import parse
from baltoro.plan.machine import Machine, catalogue
from baltoro.plan.memory import Wish, memories

K2 = ModelConfig.open("kimi-k2-instruct")
DEEPSEEK_V3 = replace(
    K2, n_routed_experts=256, num_attention_heads=128, first_k_dense_replace=3, n_group=8, topk_group=4
)  # fmt: skip
CATALOGUE = catalogue()


@dataclass(frozen=True, kw_only=True)
class Anchor:
    name: str
    source: str
    tokens_per_s: float  # as reported
    format: str  # bits a weight, where files are others'
    machine: str
    place: str
    config: ModelConfig = K2
    layout: str | None = None
    gpus: int | None = None  # where the row has fewer than the catalogue's machine
    cores: int | None = None
    matrix: str | None = None
    prompt: int | None = None  # tokens: the row is of prefill
    requests: int = 1
    mix: tuple[int, int] | None = None  # prompt, answer: the row is of serving, tokens/s of one request

    @property
    def target(self) -> Machine:
        given = {"gpus": self.gpus, "cores": self.cores, "matrix": self.matrix}
        return replace(
            CATALOGUE.machines[self.machine], **{name: value for name, value in given.items() if value is not None}
        )

    def predicted(self) -> Band:
        format, machine = format_of(self.format), self.target
        depth = self.prompt or (self.mix[0] + self.mix[1] // 2 if self.mix else 1024)
        wish = Wish(
            context=depth, concurrency=self.requests, place=self.place,
            layout=parse(self.layout) if self.layout else None,
        )  # fmt: skip
        memory = next(iter(memories(self.config, format, machine, wish)))
        assert memory.short is None, f"{self.name}: it ran, and is said not to fit by {memory.short}"
        if self.prompt is not None:
            time = speed.prefill(self.config, format, machine, memory, tokens=self.prompt)
            return speed.per_second(self.prompt, time.seconds)
        step = speed.decode(
            self.config, format, machine, memory, wish, context=depth, batch=self.requests
        ).seconds  # fmt: skip
        if self.mix is None:
            return speed.per_second(1, step)
        read = speed.prefill(self.config, format, machine, memory, tokens=self.mix[0]).seconds
        return speed.per_second(1, speed.serving(step, read, batch=self.requests, answer=self.mix[1]))


def _inference_x(machine: str, figures: tuple[float, float, float]) -> list[Anchor]:
    return [
        Anchor(
            name=f"vLLM 0.21, K2.5 int4, {machine}, {requests} users", source="InferenceX by kimi-capacity-report",
            tokens_per_s=rate, format="w4a16", machine=machine, place="gpu", layout="tp8", requests=requests,
            mix=(8000, 1000),
        )
        for requests, rate in zip((4, 16, 64), figures, strict=True)
    ]  # fmt: skip


DECODE = [
    Anchor(
        name="llama.cpp, K2 UD-Q4_K_XL, 2 x EPYC 9355 + RTX PRO 6000", source="llama.cpp#14642", tokens_per_s=22.05,
        format="4.58bit", machine="epyc-9355-x2", place="hybrid",
    ),
    Anchor(
        name="KTransformers, K2 Q4_K_M, one socket", source="kt doc Kimi-K2.md", tokens_per_s=10.0, format="4.84bit",
        machine="xeon-6454s", place="hybrid",
    ),
    Anchor(
        name="KTransformers, K2 Q4_K_M, two sockets", source="kt doc Kimi-K2.md", tokens_per_s=14.0, format="4.84bit",
        machine="xeon-6454s-x2", place="hybrid",
    ),
    Anchor(
        name="KTransformers 0.2, DeepSeek-V3 Q4_K_M, one socket", source="kt R1/V3 tutorial", tokens_per_s=8.7,
        format="4.84bit", machine="xeon-6454s", place="hybrid", config=DEEPSEEK_V3,
    ),
    Anchor(
        name="KTransformers 0.2, DeepSeek-V3 Q4_K_M, two sockets", source="kt R1/V3 tutorial", tokens_per_s=12.2,
        format="4.84bit", machine="xeon-6454s-x2", place="hybrid", config=DEEPSEEK_V3,
    ),
    Anchor(
        name="KT+SGLang, K2.6, 2 x EPYC 9175F + 2 x RTX PRO 6000 (20 to 30)", source="ktransformers#1961",
        tokens_per_s=25.0, format="w4a16", machine="epyc-9175f-x2", place="hybrid",
    ),
    Anchor(
        name="K2-Thinking int4, EPYC 9B45 + 4 x RTX PRO 6000", source="banandre.com", tokens_per_s=31.0,
        format="w4a16", machine="epyc-9b45", place="hybrid",
    ),
    Anchor(
        name="mlx-lm, K2.6 3.3 bit, M3 Ultra", source="spicyneuron HF card", tokens_per_s=21.4, format="3.3bit",
        machine="m3-ultra", place="ram",
    ),
    Anchor(
        name="mlx-lm, K2.6 3.6 bit, M3 Ultra", source="spicyneuron HF card", tokens_per_s=21.1, format="3.6bit",
        machine="m3-ultra", place="ram",
    ),
    Anchor(
        name="MLX by RDMA, K2.6, 4 x M3 Ultra", source="aibase 29050", tokens_per_s=28.0, format="w4a16",
        machine="m3-ultra-x4", place="ram",
    ),
    Anchor(
        name="rustane, K2 524 GB streamed, M4 Max 128 GB", source="themenonlab.blog", tokens_per_s=1.7,
        format="4.08bit", machine="m4-max", place="disk",
    ),
    Anchor(
        name="streamed experts, K2.5, M4 Max 128 GB", source="S. Willison, 2026-03-24", tokens_per_s=1.7,
        format="int4", machine="m4-max", place="disk",
    ),
    Anchor(
        name="llama.cpp, R1 Q8, EPYC 9135", source="Tencent Xuanwu", tokens_per_s=7.17, format="8.5bit",
        machine="epyc-9135", place="ram", config=DEEPSEEK_V3,
    ),
    Anchor(
        name="vLLM recipe, K2 fp8, 16 x H800 TP8+PP2", source="recipes Kimi-K2.md", tokens_per_s=1 / 0.0308,
        format="fp8", machine="h800-x16", place="gpu", layout="tp8+pp2", requests=8, mix=(1000, 512),
    ),
    Anchor(
        name="vLLM recipe, K2 fp8, 16 x H200 TP16", source="recipes Kimi-K2.md", tokens_per_s=1 / 0.058,
        format="fp8", machine="h200-x16", place="gpu", layout="tp16", requests=16, mix=(8000, 1000),
    ),
    *_inference_x("h200-x8", (91.0, 47.0, 17.0)),
    *_inference_x("b200-x8", (104.0, 59.0, 26.0)),
    *_inference_x("mi355x-x8", (42.0, 22.0, 11.0)),
]  # fmt: skip
PREFILL = [
    Anchor(
        name="llama.cpp, K2 UD-Q4_K_XL, 2 x EPYC 9355 + RTX PRO 6000", source="llama.cpp#14642", tokens_per_s=106.1,
        format="4.58bit", machine="epyc-9355-x2", place="hybrid", prompt=4096,
    ),
    Anchor(
        name="mlx-lm, K2.6 3.3 bit, M3 Ultra", source="spicyneuron HF card", tokens_per_s=223.6, format="3.3bit",
        machine="m3-ultra", place="ram", prompt=4096,
    ),
    Anchor(
        name="GGUF, K2.5 2.75 bit, M3 Ultra, 1K", source="spicyneuron K2.5 card", tokens_per_s=149.0, format="2.75bit",
        machine="m3-ultra", place="ram", prompt=1024,
    ),
    Anchor(
        name="GGUF, K2.5 2.75 bit, M3 Ultra, 20K", source="spicyneuron K2.5 card", tokens_per_s=90.0, format="2.75bit",
        machine="m3-ultra", place="ram", prompt=20480,
    ),
    Anchor(
        name="MLX, K2.5 2.75 bit, M3 Ultra, 20K", source="spicyneuron K2.5 card", tokens_per_s=190.0, format="2.75bit",
        machine="m3-ultra", place="ram", prompt=20480,
    ),
    *(
        Anchor(
            name=f"KT+SGLang, K2-Thinking int4, {gpus} x 4090-48G, 2 x Xeon 8488C", source="kt doc Thinking-Native",
            tokens_per_s=rate, format="w4a16", machine="xeon-8488c-x2", place="hybrid", gpus=gpus, prompt=32768,
        )
        for gpus, rate in ((1, 290.0), (2, 529.0), (4, 775.0), (8, 1060.0))
    ),
    *(
        Anchor(
            name=f"KTransformers, DeepSeek-V3 Q4_K_M, {machine}, {matrix}", source="kt R1/V3 tutorial",
            tokens_per_s=rate, format="4.84bit", machine=machine, place="hybrid", config=DEEPSEEK_V3, matrix=matrix,
            prompt=1024,
        )
        for machine, matrix, rate in (
            ("xeon-6454s", "avx512", 54.0),
            ("xeon-6454s-x2", "avx512", 83.0),
            ("xeon-6454s-x2", "amx", 270.0),
        )
    ),
    Anchor(
        name="llama.cpp, R1 Q8, EPYC with 48 cores (50 and more)", source="Tencent Xuanwu", tokens_per_s=50.0,
        format="8.5bit", machine="epyc-9135", place="ram", config=DEEPSEEK_V3, cores=48, prompt=1024,
    ),
]  # fmt: skip
# Its user asked whether 9.5 tokens/s are normal. They are not: the planner's worst is above.
COMPLAINT = Anchor(
    name="KT+SGLang, K2-Thinking int4, Xeon 6960P + RTX PRO 6000", source="ktransformers#1730", tokens_per_s=9.5,
    format="w4a16", machine="xeon-6960p", place="hybrid",
)  # fmt: skip
