"""A mixture of Kimi K2's experts in kt-kernel, which is run by the lines it reads.

    python bench/peers/kt_experts.py RAWINT4|FP8 EXPERTS THREADS

Prints `ready`, then for each line `TOKENS SECONDS` of its input a line `BEST TOUCHED`: seconds of the best forward, and
how many distinct experts that one chose. Random weights, made once and the same for all experts. Needs kt-kernel.
"""

from __future__ import annotations

import os
import sys
import time

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # else its threads spin beside those that are measured

import torch
from kt_kernel import kt_kernel_ext  # pyright: ignore[reportMissingImports]

D, F, K = 7168, 2048, 8


def main() -> None:
    method, experts, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pool = kt_kernel_ext.WorkerPoolConfig()
    pool.subpool_count, pool.subpool_numa_map, pool.subpool_thread_count = 1, [0], [threads]
    cpu = kt_kernel_ext.CPUInfer(pool)
    config = kt_kernel_ext.moe.MOEConfig(experts, K, D, F, 0)
    config.max_len, config.pool = 4096, cpu.backend_
    config.quant_config.zero_point = False
    kept: list[torch.Tensor] = []

    def of_all(one: torch.Tensor) -> int:
        kept.append(one.unsqueeze(0).repeat(experts, 1, 1).contiguous())
        return kept[-1].data_ptr()

    if method == "FP8":
        config.quant_config.bits, config.quant_config.group_size = 8, 128
        kind = kt_kernel_ext.moe.AMXFP8_MOE

        def weights(outputs: int, inputs: int) -> int:
            numbers = torch.randint(0, 256, (outputs, inputs), dtype=torch.uint8)
            numbers[(numbers & 127) > 96] = 32  # no NaN, nothing that overflows
            return of_all(numbers)

        def scales(outputs: int, inputs: int) -> int:
            return of_all(torch.full((outputs // 128, inputs // 128), 0.01))
    else:
        config.quant_config.bits, config.quant_config.group_size = 4, 32
        kind = kt_kernel_ext.moe.AMXInt4_KGroup_MOE

        def weights(outputs: int, inputs: int) -> int:
            return of_all(torch.randint(-(2**31), 2**31 - 1, (outputs, inputs // 8), dtype=torch.int32))

        def scales(outputs: int, inputs: int) -> int:
            return of_all(torch.full((outputs, inputs // 32), 0.002, dtype=torch.bfloat16))

    config.gate_proj, config.up_proj, config.down_proj = weights(F, D), weights(F, D), weights(D, F)
    config.gate_scale, config.up_scale, config.down_scale = scales(F, D), scales(F, D), scales(D, F)
    mixture = kind(config)
    numbers = torch.arange(experts, dtype=torch.int64)
    cpu.submit(mixture.load_weights_task(numbers.data_ptr()))
    cpu.sync()
    kept.clear()
    print("ready", flush=True)
    for line in sys.stdin:
        tokens, seconds = int(line.split()[0]), float(line.split()[1])
        x = torch.randn(tokens, D).bfloat16()
        y, weight = torch.empty_like(x), torch.full((tokens, K), 1 / K)
        count = torch.tensor([tokens], dtype=torch.int32)
        best, touched, end = float("inf"), 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            chosen = torch.rand(tokens, experts).argsort(-1)[:, :K].contiguous()
            began = time.perf_counter()
            cpu.submit(
                mixture.forward_task(
                    count.data_ptr(), K, chosen.data_ptr(), weight.data_ptr(), x.data_ptr(), y.data_ptr(), False
                )
            )
            cpu.sync()
            taken = time.perf_counter() - began
            if taken < best:
                best, touched = taken, int(chosen.unique().numel())
        assert y.float().isfinite().all()
        print(best, touched, flush=True)


if __name__ == "__main__":
    main()
