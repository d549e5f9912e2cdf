# Types of the compiled module, csrc/bind.cpp. Addresses are data_ptr() of contiguous CPU tensors.

# format (index in formats.FORMATS), outputs, inputs, group, address of the data, address of the scales
Packed = tuple[int, int, int, int, int, int]

def targets() -> list[str]: ...
def matmul(target: str, w: Packed, x: int, y: int, T: int, threads: int) -> None: ...
def experts(
    target: str,
    gate: Packed,
    up: Packed,
    down: Packed,
    x: int,
    experts: int,
    weights: int,
    y: int,
    T: int,
    K: int,
    E: int,
    threads: int,
) -> None: ...
