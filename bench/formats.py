"""What a format costs in error, and whether another group or another rounding would cost less.

    python bench/formats.py                   weights of Kimi K2's shapes, then nano
    python bench/formats.py --only weights    [--outputs 512 --tokens 32]
    python bench/formats.py --only nano       [--examples 20]

Prints one JSON line a row. `weights`: 7,168 inputs (of an expert's gate), drawn in three ways, each as it is and after
the block-fp8 that K2 is shipped in; errors are Frobenius norms relative to the source, of the weights and of a
product's outputs: by the weights alone, by the rounding of the inputs alone, and by both as the kernels run.
`ggml`: Q4_0's rounding (fp16 scale, largest / -8); `absmax`: largest / 7 in bf16. Both at our groups, weights only.
`nano`: the embedded model's next-token distributions on held-out conversations beside those of its unpacked float32
self; `float32`: the packed projections in float32 products, `kernels`: as they run, `loaded`: as `--format` has it,
with the head.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from baltoro.chat.messages import Message, ToolCall
from baltoro.chat.template import render
from baltoro.chat.tokenizer import Tokenizer
from baltoro.config import resolve
from baltoro.counts import is_quantized
from baltoro.eval.score import Example
from baltoro.eval.tasks import nano
from baltoro.kernels import formats, ops
from baltoro.kernels.formats import Format, Packed
from baltoro.model.batch import Batch
from baltoro.model.heads import Heads, PackedHeads
from baltoro.model.linear import Linear
from baltoro.model.load import load
from baltoro.model.moe import StackedLinear
from baltoro.model.transformer import Transformer
from baltoro.weights import fp8

INPUTS = 7168
KEPT: list[tuple[Format, int]] = [
    ("bf16", 0), ("fp8", 128), *(("int8", group) for group in (32, 64, 128, 256)),
    *(("int4", group) for group in (16, 32, 64, 128)),
]  # fmt: skip


def pack(w: Tensor, format: Format, group: int) -> Packed:
    if format == "fp8":
        return formats.pack_fp8(*fp8.quantize(w))
    return formats.pack(w, format, group=math.gcd(group, w.shape[-1]))


def relative(found: Tensor, truth: Tensor) -> float:
    return float(f"{float((found.double() - truth.double()).norm() / truth.double().norm()):.3e}")


# --- weights of K2's shapes -----------------------------------------------------------------------------------------


def sources(outputs: int) -> Iterator[tuple[str, Tensor]]:
    """Weights of standard deviation 1 / sqrt(I). A trained matrix lies between the first and the last."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(outputs, INPUTS, generator=generator) * INPUTS**-0.5
    yield "gaussian", normal
    # Student's t: a normal number over the root of a chi-squared one, 5 degrees of freedom, variance 5 / 3
    chi = sum(torch.randn(outputs, INPUTS, generator=generator).square() for _ in range(5))
    yield "student_t5", normal * (3 / chi).sqrt()
    channels = torch.randperm(INPUTS, generator=generator)[: INPUTS // 100]
    outliers = normal.clone()
    outliers[:, channels] *= 10
    yield "outliers", outliers  # 1 % of the inputs have weights 10 times as large


def activations(tokens: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(tokens, INPUTS, generator=generator)
    massive = x.clone()
    massive[:, torch.randperm(INPUTS, generator=generator)[: INPUTS // 256]] *= 30
    return {"x": x, "x_outliers": massive}  # normal; one channel in 256 is 30 times as large


def weight_rows(outputs: int, tokens: int) -> Iterator[dict[str, object]]:
    xs = activations(tokens)
    for drawn, original in sources(outputs):
        shipped = fp8.dequantize(*fp8.quantize(original), torch.float32)
        for source, w in ((drawn, original), (f"{drawn}, from fp8", shipped)):
            for format, group in KEPT:
                packed = pack(w, format, group)
                kept = formats.unpack(packed)
                row: dict[str, object] = {
                    "part": "weights", "source": source, "format": format, "group": group,
                    "bits": round(packed.nbytes * 8 / w.numel(), 3), "weight_error": relative(kept, w),
                    "weight_error_to_drawn": relative(kept, original),
                }  # fmt: skip
                for name, x in xs.items():
                    exact, by_weights = x.double() @ w.double().T, x.double() @ kept.double().T
                    found = ops.matmul(x, packed)
                    row |= {
                        f"{name}_error_by_weights": relative(by_weights, exact),
                        f"{name}_error_by_inputs": relative(found, by_weights),
                        f"{name}_error": relative(found, exact),
                    }
                yield row
            for group in (16, 32, 64, 128):
                for how, rounded in (("ggml", ggml_q4_0), ("absmax", absmax)):
                    yield {
                        "part": "weights", "source": source, "format": f"int4 {how}", "group": group,
                        "bits": 4 + 16 / group, "weight_error": relative(grouped(w, group, rounded), w),
                    }  # fmt: skip


def grouped(w: Tensor, group: int, rounded: Callable[[Tensor], Tensor]) -> Tensor:
    return rounded(w.view(-1, group)).view(w.shape)


def ggml_q4_0(w: Tensor) -> Tensor:
    """quantize_row_q4_0_ref of ggml-quants.c: the scale lets -8 reach the largest; divided in float32, kept in fp16."""
    scale = w.gather(1, w.abs().argmax(1, keepdim=True)) / -8
    inverse = torch.where(scale == 0, 0.0, 1 / scale)
    return ((w * inverse + 8.5).floor().clamp(0, 15) - 8) * scale.half().float()


def absmax(w: Tensor) -> Tensor:
    scale = (w.abs().amax(1, keepdim=True) / 7).bfloat16().float()
    scale = scale.masked_fill(scale == 0, 1.0)
    return (w / scale).round().clamp(-8, 7) * scale


# --- nano -----------------------------------------------------------------------------------------------------------


def conversation(example: Example, tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """Ids with the right answer where the example knows it, and which of them the assistant says."""
    messages = list(example.request.messages)
    truth = example.truth
    if truth.calls or truth.text is not None:
        first = nano.num_calls(example)
        calls = tuple(
            ToolCall(id=f"functions.{call.name}:{first + n}", name=call.name, arguments=call.arguments)
            for n, call in enumerate(truth.calls)
        )
        messages.append(Message(role="assistant", content=truth.text, tool_calls=calls))
    return render(messages, example.request.tools, add_generation_prompt=False).ids_and_loss_mask(tokenizer)


def repack(model: Transformer, format: Format, group: int, *, kernels: bool) -> None:
    """Every projection in the format: for the kernels, or as the same numbers in float32."""
    for name, module in model.named_modules():
        if isinstance(module, Heads) and kernels:
            keys, values = (
                module.weight.detach().view(-1, sum(module.split), module.weight.shape[1]).split(module.split, dim=1)
            )
            module.pack(PackedHeads(*(pack(w.contiguous(), format, group) for w in (keys, values, keys.mT))))
        elif isinstance(module, (Linear, StackedLinear, Heads)) and is_quantized(f"{name}.weight"):
            packed = pack(module.weight.detach(), format, group)
            if kernels and not isinstance(module, Heads):
                module.pack(packed)
            else:
                module.weight.data = formats.unpack(packed)


def log_probabilities(model: Transformer, sequences: list[list[int]]) -> Tensor:
    with torch.inference_mode():
        return torch.cat([model(Batch.of([ids]))[:-1].log_softmax(-1) for ids in sequences])


def nano_rows(examples: int) -> Iterator[dict[str, object]]:
    directory = resolve("nano")
    tokenizer = Tokenizer.open(directory)
    told = [conversation(example, tokenizer) for example in nano.examples(examples)]
    sequences = [ids for ids, _ in told]
    answers = torch.tensor([said for _, mask in told for said in mask[1:]])  # positions before what is said
    truth = log_probabilities(load(directory), sequences)
    for format, group in KEPT:
        if group > 128:  # nano's inputs
            continue
        for how in ("float32", "kernels", "loaded"):
            if how == "loaded" and group != formats.group_for(format, 128):
                continue
            model = load(directory, format=format if how == "loaded" else None)
            if how != "loaded":
                repack(model, format, group, kernels=how == "kernels")
            found = log_probabilities(model, sequences)
            kl = (truth.exp() * (truth - found)).sum(-1).double()
            same = (truth.argmax(-1) == found.argmax(-1)).double()
            yield {
                "part": "nano", "format": format, "group": group, "products": how, "positions": len(kl),
                "kl": float(f"{kl.mean():.3e}"), "kl_99": float(f"{kl.quantile(0.99):.3e}"),
                "top1": round(float(same.mean()), 4), "answer_positions": int(answers.sum()),
                "answer_kl": float(f"{kl[answers].mean():.3e}"), "answer_top1": round(float(same[answers].mean()), 4),
            }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=["weights", "nano"])
    parser.add_argument("--outputs", type=int, default=512, help="rows of the weights")
    parser.add_argument("--tokens", type=int, default=32, help="of the product")
    parser.add_argument("--examples", type=int, default=20, help="conversations of each kind")
    args = parser.parse_args()
    rows: list[Callable[[], Iterator[dict[str, object]]]] = []
    if args.only != "nano":
        rows.append(lambda: weight_rows(args.outputs, args.tokens))
    if args.only != "weights":
        rows.append(lambda: nano_rows(args.examples))
    for each in rows:
        for row in each():
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
