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
def block_experts(
    target: str,
    gate: Packed,
    up: Packed,
    down: Packed,
    block_bytes: int,
    places: int,
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
def within(numbers: int, count: int, end: int) -> bool: ...
def route(
    target: str,
    w: int,
    is_bf16: bool,
    bias: int,
    chosen: int,
    groups: int,
    kept_groups: int,
    normalized: bool,
    factor: float,
    x: int,
    weights: int,
    experts: int,
    T: int,
    D: int,
    E: int,
    threads: int,
) -> None: ...
def rms_norm(
    target: str,
    x: int,
    stride: int,
    added: int,
    weight: int,
    eps: float,
    total: int,
    y: int,
    T: int,
    D: int,
    threads: int,
) -> None: ...
def rotate(x: int, cos: int, sin: int, T: int, H: int, R: int, stride: int, head_stride: int, threads: int) -> None: ...
def write_latents(
    target: str,
    x: int,
    weight: int,
    eps: float,
    cos: int,
    sin: int,
    cache: int,
    is_bf16: bool,
    slots: int,
    T: int,
    C: int,
    R: int,
    threads: int,
) -> None: ...

class AttentionWeights:
    def __init__(
        self,
        q_a: Packed,
        q_b: Packed,
        kv_a: Packed,
        keys: Packed,
        absorbed_keys: Packed,
        values: Packed,
        output: Packed,
        q_norm: int,
        kv_norm: int,
        eps: float,
    ) -> None: ...

class MixtureWeights:
    def __init__(
        self,
        router: int,
        is_bf16: bool,
        bias: int,
        chosen: int,
        groups: int,
        kept_groups: int,
        normalized: bool,
        factor: float,
        experts: int,
        here: int,
        gate: Packed,
        up: Packed,
        down: Packed,
        shared_gate: Packed,
        shared_up: Packed,
        shared_down: Packed,
    ) -> None: ...

class LayerWeights:
    def __init__(
        self, input_norm: int, post_norm: int, attention: AttentionWeights, mixture: MixtureWeights
    ) -> None: ...

class ModelWeights:
    def __init__(
        self,
        embedding: int,
        is_bf16: bool,
        hidden: int,
        layers: list[LayerWeights],
        norm: int,
        head: Packed,
        eps: float,
        scale: float,
        heads: int,
        rotary: int,
    ) -> None: ...

class Rows:
    def __init__(
        self,
        T: int,
        write_slots: int,
        decoding: int,
        slots: int,
        edges: int,
        num_decoding: int,
        chunks: int,
        num_chunks: int,
        chunk_slots: int,
    ) -> None: ...

def attention_step(
    target: str,
    w: AttentionWeights,
    x: int,
    rows: Rows,
    cos: int,
    sin: int,
    cache: int,
    scale: float,
    y: int,
    H: int,
    R: int,
    threads: int,
) -> None: ...
def forward(
    target: str,
    w: ModelWeights,
    ids: int,
    positions: int,
    cos: int,
    sin: int,
    rows: Rows,
    cache: int,
    layer_numbers: int,
    wanted: int,
    count: int,
    logits: int,
    threads: int,
) -> bool: ...
def mixture_step(
    target: str, w: MixtureWeights, h: int, x: int, weights: int, chosen: int, y: int, T: int, threads: int
) -> float | None: ...
def mla_prefill(
    target: str,
    keys: Packed,
    values: Packed,
    q: int,
    cache: int,
    slots: int,
    scale: float,
    out: int,
    T: int,
    S: int,
    H: int,
    R: int,
    threads: int,
) -> None: ...
def mla_step(
    target: str,
    absorbed_keys: Packed,
    values: Packed,
    q: int,
    cache: int,
    slots: int,
    edges: int,
    scale: float,
    out: int,
    B: int,
    H: int,
    R: int,
    threads: int,
) -> None: ...
def dense_mla_step(
    target: str,
    kv_b: int,
    q: int,
    cache: int,
    is_bf16: bool,
    slots: int,
    edges: int,
    scale: float,
    out: int,
    B: int,
    H: int,
    N: int,
    V: int,
    C: int,
    R: int,
    threads: int,
) -> None: ...
def dense_linear(target: str, w: int, x: int, y: int, T: int, I: int, O: int, threads: int) -> None: ...
def dense_experts(
    target: str,
    gate: int,
    up: int,
    down: int,
    x: int,
    experts: int,
    weights: int,
    y: int,
    T: int,
    K: int,
    D: int,
    F: int,
    threads: int,
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
