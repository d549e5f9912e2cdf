"""From a checkpoint's directory to a running engine and its tokenizer."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from baltoro import counts
from baltoro.chat.messages import Message, Tool, ToolCall
from baltoro.chat.template import render
from baltoro.chat.tokenizer import Tokenizer
from baltoro.config import ModelConfig, resolve
from baltoro.errors import CheckpointError, TokenizerError

if TYPE_CHECKING:
    from baltoro.engine.config import EngineConfig
    from baltoro.engine.engine import Engine
    from baltoro.engine.prefix_files import PrefixFiles
    from baltoro.kernels.formats import Format

SMALL_PARAMETERS = 10**9  # below this float32 weights cost little and are exact
MAX_RUNNING = 32  # requests decoded together
CACHE_BYTES = 2**30  # unless the caller says otherwise, or one sequence of `max_context` needs more
PREFIX_DISK_BYTES = 20 * 2**30  # of prefixes kept on disk, where a directory for them is named
PAGE_SLACK = 64  # tokens: a sequence's last page is partly empty


class Settings(TypedDict, total=False):
    """How a model is to run; what is left out, the model and the machine decide."""

    max_context: int | None  # tokens of prompt and answer
    max_running: int | None  # requests decoded together
    max_waiting: int | None  # requests in the queue, see EngineConfig
    stuck_after_s: float  # a step that lasts longer never ends, see engine/supervisor.py
    cache_bytes: int | None  # of latents; packed models cache in bfloat16, others in `dtype`
    # What the model computes in, float32 or bfloat16. None takes bfloat16 for large models in bfloat16, else float32.
    dtype: str | None
    # What matrices are kept in, see kernels/formats.py. None keeps packed checkpoints and large models in block-fp8 as
    # they are, and all others in bf16 where there are native kernels and no `dtype` is asked for; else in `dtype`.
    format: Format | None
    threads: int | None  # of this whole process, for torch has one number for all. None: as many as it may use
    # Bytes for routed experts of a packed checkpoint; the others are read from disk when they are wanted. None: all,
    # where they fit into what is free, and else what is left beside everything else.
    expert_memory: int | None
    trace: Path | None  # a new file for which experts are chosen, see weights/trace.py
    trace_steps: Path | None  # a new file for steps and requests, see engine/timeline.py
    prefix_cache: bool  # prompts that begin alike are computed once, see engine/prefix.py
    prefix_dir: Path | None  # keeps prefixes that memory has no room for, and beyond the end of this process
    prefix_disk_bytes: int  # the most they may take


def engine(
    model: str | Path,
    *,
    max_context: int | None = None,
    max_running: int | None = None,
    max_waiting: int | None = None,
    stuck_after_s: float = 600.0,
    cache_bytes: int | None = None,
    dtype: str | None = None,
    format: Format | None = None,
    threads: int | None = None,
    expert_memory: int | None = None,
    trace: Path | None = None,
    trace_steps: Path | None = None,
    prefix_cache: bool = True,
    prefix_dir: Path | None = None,
    prefix_disk_bytes: int = PREFIX_DISK_BYTES,
) -> tuple[Engine, Tokenizer]:
    """A checkpoint directory or a preset, loaded and running. `Settings` says what each of these is."""
    directory = resolve(model)
    if directory.is_file():
        raise CheckpointError(
            f"{model} is a config without weights", hint="name a directory with config.json and safetensors shards"
        )
    import torch  # seconds: after what can be refused at once

    from baltoro.engine.config import EngineConfig
    from baltoro.engine.engine import Engine
    from baltoro.engine.timeline import Timeline
    from baltoro.kernels import cpus, targets
    from baltoro.model.load import load
    from baltoro.weights import fit, layout
    from baltoro.weights.trace import Header, Writer

    config = ModelConfig.open(directory)
    tokenizer = Tokenizer.open(directory)
    check_vocabulary(tokenizer, config.vocab_size)
    torch.set_num_threads(min(torch.get_num_threads(), cpus.usable()) if threads is None else threads)
    small = counts.parameters(config) < SMALL_PARAMETERS
    shipped_in_fp8 = config.weight_block_size is not None
    if format is None and not config.packed_format:
        if shipped_in_fp8 and not small:
            format = "fp8"
        elif dtype is None and targets.chosen_target() != "torch" and layout.heads_pack(config):
            format = "bf16"
    if dtype is None:
        dtype = "float32" if small or format or config.packed_format else "bfloat16"
    packed = format or config.packed_format
    cache_dtype = torch.bfloat16 if packed else getattr(torch, dtype)
    running = max_running or MAX_RUNNING
    if cache_bytes is None:
        token_bytes = counts.cache_bytes_per_token(config, value_bytes=cache_dtype.itemsize)
        enough = running * ((max_context or config.max_position_embeddings) + PAGE_SLACK) * token_bytes
        cache_bytes = max(min(enough, CACHE_BYTES), ((max_context or 1) + PAGE_SLACK) * token_bytes)
    if expert_memory is None and config.packed_format and config.n_routed_experts:
        expert_memory = fit.expert_budget(fit.Need.of(config), cache_bytes)
    engine_config = EngineConfig(
        cache_bytes=cache_bytes,
        cache_dtype=cache_dtype,
        max_running=running,
        max_waiting=max_waiting,
        stuck_after_s=stuck_after_s,
        max_context=max_context,
        prefix_cache=prefix_cache,
    )
    files = None
    if prefix_dir is not None:
        files = _prefix_files(prefix_dir, prefix_disk_bytes, directory, tokenizer, engine_config, f"{packed} {dtype}")
    timeline = Timeline(trace_steps) if trace_steps else None
    recorder = Writer(trace, Header.of(config, Path(model).name)) if trace else None
    try:
        running_engine = Engine(
            load(directory, dtype=getattr(torch, dtype), format=format, expert_memory=expert_memory),
            engine_config,
            trace=recorder,
            files=files,
            timeline=timeline,
        )
    except BaseException:
        if files is not None:
            files.close()
        if recorder is not None and trace is not None:  # the same command may be given again
            recorder.close()
            trace.unlink()
        if timeline is not None and trace_steps is not None:
            timeline.close()
            trace_steps.unlink()
        raise
    return running_engine, tokenizer


def _prefix_files(
    folder: Path, budget_bytes: int, directory: Path, tokenizer: Tokenizer, config: EngineConfig, computed_in: str
) -> PrefixFiles:
    """Pages on disk that are true for these weights, this language and this way of computing alone."""
    from baltoro.engine.config import page_bytes
    from baltoro.engine.prefix_files import PageShape, PrefixFiles
    from baltoro.kernels import targets
    from baltoro.weights.identity import identity

    settings = f"{computed_in} {config.cache_dtype} {config.page_tokens} {targets.chosen_target()}"
    shape = PageShape(
        fingerprint=sha256(identity(directory) + language(tokenizer) + settings.encode()).digest(),
        page_tokens=config.page_tokens,
        page_bytes=page_bytes(ModelConfig.open(directory), config),
    )
    return PrefixFiles(folder, shape, budget_bytes=budget_bytes)


def language(tokenizer: Tokenizer) -> bytes:
    """A digest of how a conversation becomes ids: template, tools and tokenizer together."""
    call = ToolCall(id="functions.look:0", name="look", arguments="{}")
    turns = (
        Message(role="system", content="Du bist 北京."),
        Message(role="user", content="Look!"),
        Message(role="assistant", content="Well,", tool_calls=(call,)),
        Message(role="tool", content="1", tool_call_id=call.id),
    )
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    looking = Tool(name="look", parameters={"type": "object"}, declaration=tool)
    return sha256(repr(render(turns, (looking,)).ids(tokenizer)).encode()).digest()


def check_vocabulary(tokenizer: Tokenizer, vocab_size: int) -> None:
    if tokenizer.vocab_size != vocab_size:
        raise TokenizerError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model {vocab_size}",
            hint="tiktoken.model and config.json come from different models",
        )
