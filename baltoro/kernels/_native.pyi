# Types of the compiled module, csrc/bind.cpp. Addresses are data_ptr() of contiguous CPU tensors.

# format (index in formats.FORMATS), outputs, inputs, group, address of the data, address of the scales
Packed = tuple[int, int, int, int, int, int]

def targets() -> list[str]: ...
def read_roof(target: str, address: int, nbytes: int, threads: int) -> float: ...
def multiply_roof(target: str, of_bytes: bool, threads: int) -> float: ...
def matmul(target: str, w: Packed, x: int, y: int, T: int, threads: int) -> None: ...
def matmul_each(target: str, w: Packed, x: int, y: int, T: int, H: int, threads: int) -> None: ...
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
def mla_decode(
    target: str,
    q: int,
    cache: int,
    slots: int,
    edges: int,
    scale: float,
    context: int,
    B: int,
    H: int,
    C: int,
    R: int,
    threads: int,
) -> None: ...
def causal_attention(
    target: str, q: int, k: int, v: int, scale: float, out: int, T: int, S: int, H: int, K: int, V: int, threads: int
) -> None: ...

# Of reader.py, csrc/reader.h.

class OpenFile:
    direct: bool
    nbytes: int
    device: int
    def difference(self) -> str: ...

class Read:
    def finished(self) -> bool: ...
    def wait(self) -> None: ...
    def error(self) -> str: ...

class ReadStatistics:
    bytes: int
    reads: int
    failed: int
    busy_s: float
    cpu_s: float

class Reader:
    def backend(self) -> str: ...
    def open(self, path: str, direct: bool) -> OpenFile: ...
    def submit(self, file: OpenFile, offset: int, nbytes: int, to: int) -> Read: ...
    def statistics(self) -> ReadStatistics: ...
    def close(self) -> None: ...

def make_reader(backend: str, piece_bytes: int, depth: int) -> Reader: ...
def reader_backends() -> list[str]: ...
