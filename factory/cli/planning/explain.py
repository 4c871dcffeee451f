"""`kvtier explain`: what a tier-config document is worth for one model, before anything is bought."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ....tiers import ConfigError
from ..output import AsJson, emit, one_line, print_pairs

if TYPE_CHECKING:
    from ...sizing.answer import Answer, TierAnswer
    from ...sizing.held import Held
    from .shapes import Explain, ExplainedTier

GB = 1000**3  # as drives and links are sold


def explain(
    file: Annotated[
        Path, typer.Argument(help="The tier-config document; - is standard input.", show_default=False)
    ],
    model: Annotated[
        str,
        typer.Option(
            help="The folder of the model, or its config.json; - reads that from standard input.",
            show_default=False,
        ),
    ],
    tensor_parallel_size: Annotated[
        int, typer.Option("--tensor-parallel-size", "--tp", min=1, help="As for vLLM.")
    ] = 1,
    pipeline_parallel_size: Annotated[
        int, typer.Option("--pipeline-parallel-size", "--pp", min=1, help="As for vLLM.")
    ] = 1,
    kv_cache_dtype: Annotated[str, typer.Option(help="As for vLLM.")] = "auto",
    block_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="As for vLLM; by default 16, and 64 for latent attention.", show_default=False
        ),
    ] = None,
    blocks_per_chunk: Annotated[
        int | None,
        typer.Option(
            min=1, help="As in the connector's options; by default what is best.", show_default=False
        ),
    ] = None,
    one_group: Annotated[
        bool,
        typer.Option(
            "--disable-hybrid-kv-cache-manager", help="As for vLLM; matters to models with sliding windows."
        ),
    ] = False,
    gpu_memory: Annotated[
        str | None, typer.Option(help="Memory of one GPU, such as 80GiB.", show_default=False)
    ] = None,
    gpu_memory_utilization: Annotated[float, typer.Option(min=0.01, max=1.0, help="As for vLLM.")] = 0.9,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Size of the weights, such as 15GiB; by default that of the files.", show_default=False
        ),
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a typical prompt.")] = 8_000,
    prefix_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of the prefix whose load time is shown.")
    ] = 32_768,
    load: Annotated[
        str | None,
        typer.Option(
            help="Bytes a second that the drives load, such as 6GB; by default what `kvtier bench` measured.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Work out what a document holds for a model, and how fast.

    Bytes a token, the size of a chunk, tokens and prompts by tier, and how long a prefix takes to load.

    Needs neither a server nor a GPU nor the model's weights. It says what it assumes, what this machine lacks
    for the document, and what will disappoint. A model whose config.json does not describe its cache is
    refused, with what to do instead.
    """
    from ...config import load_config
    from ...sizing.answer import Question, answer
    from ...sizing.layout import Parallel, layout_of
    from ...sizing.model import model_of
    from ...text.units import parse_option
    from ..input import read_json

    def size(name: str, text: str | None) -> int | None:
        return None if text is None else parse_option(name, text)

    if str(file) == model == "-":
        raise ConfigError("--model", "standard input has the document; name a file for one of them")
    config = load_config(read_json(file))
    document, weights_found = _model(model)
    seen = model_of(document, kv_dtype=kv_cache_dtype)
    parallel = Parallel(tensor_parallel_size, pipeline_parallel_size, one_group)
    question = Question(
        blocks_per_chunk=blocks_per_chunk,
        gpu_bytes=size("--gpu-memory", gpu_memory),
        gpu_utilization=gpu_memory_utilization,
        weights_bytes=size("--weights", weights) or weights_found,
        prompt_tokens=prompt_tokens,
        prefix_tokens=prefix_tokens,
        load_bytes_per_s=size("--load", load),
    )
    found = answer(config, seen, parallel, layout_of(seen, parallel, block_tokens=block_size), question)
    if as_json:
        emit("explain", _shape(found))
        return
    typer.echo(f"{one_line(seen.summary())}: {_size(found.layout.token_bytes)} a token")
    print_pairs(*_lines(found))
    for name in ("assumed", "missing", "warnings"):
        for text in getattr(found, name):
            typer.echo(
                f"{'not on this machine' if name == 'missing' else name.rstrip('s')}: {one_line(text)}"
            )


def _model(place: str) -> tuple[Mapping[str, Any], int | None]:
    """The `config.json`, and the size of the weights beside it where they can be seen."""
    from ...config import parse_json, read_document
    from ...sizing.weights import weights_bytes

    if place == "-":
        document, found = parse_json(sys.stdin.buffer.read(), "standard input"), None
    else:
        path = Path(place)
        file = path / "config.json" if path.is_dir() else path
        document, found = read_document(file), weights_bytes(file.parent)
    if not isinstance(document, dict):
        raise ConfigError("--model", "it should be an object, as the config.json of a model is")
    return document, found


def _lines(found: Answer) -> Iterator[tuple[str, str]]:
    layout, question = found.layout, found.question
    groups = f" of each of {layout.groups_count} groups of layers" if layout.groups_count > 1 else ""
    yield "block", f"{_size(layout.block_bytes)}: {layout.block_tokens} tokens{groups}"
    ranks = f", {found.parallel.ranks} ranks" if found.parallel.ranks > 1 else ""
    yield (
        "chunk",
        f"{_size(found.chunk_bytes)}: blocks_per_chunk {found.blocks_per_chunk}, "
        f"{found.chunk_tokens:.4g} tokens{ranks}",
    )
    yield "GPU", _gpu(found)
    for tier in found.tiers:
        yield tier.name, _tier(tier, question.prompt_tokens)
    prefix_bytes = question.prefix_tokens * layout.token_bytes
    loads = [_load(tier) for tier in found.tiers if tier.speed is not None]
    yield f"load {question.prefix_tokens:,}", f"{_size(prefix_bytes)}: {'; '.join(loads)}"


def _gpu(found: Answer) -> str:
    question = found.question
    if question.gpu_bytes is None:
        return "unknown; pass --gpu-memory to see what it holds itself"
    if question.weights_bytes is None:
        return "unknown, as there are no weights to be seen; pass --weights"
    ranks = found.parallel.ranks
    each = "" if ranks == 1 else f"{ranks} GPUs, each "
    return (
        f"{each}{question.gpu_utilization:.0%} of {_size(question.gpu_bytes)} less "
        f"{_size(question.weights_bytes / ranks)} of weights: at most {found.gpu_tokens:,} tokens"
    )


def _tier(tier: TierAnswer, prompt_tokens: int) -> str:
    if tier.wanted is None:
        return "unknown: this machine cannot tell its capacity"
    wanted = tier.wanted
    prompts = f"{wanted.prompts:,.0f}" if wanted.prompts >= 10 else f"{wanted.prompts:.1f}"
    text = f"{_size(wanted.capacity_bytes)}: {wanted.tokens:,} tokens, {prompts} prompts of {prompt_tokens:,}"
    if tier.here is None or tier.bound_by == "capacity":
        return text
    return f"{text}; here {_size(tier.here.capacity_bytes)} ({tier.bound_by}): {tier.here.tokens:,} tokens"


def _load(tier: TierAnswer) -> str:
    assert tier.speed is not None, "the caller leaves others out"
    return f"{tier.name} {tier.load_s:.2g} s ({tier.speed.bytes_per_s / GB:.3g}GB/s, {tier.speed.origin})"


def _size(size_bytes: float) -> str:
    from ...text.units import format_size

    return format_size(round(size_bytes))


def _shape(found: Answer) -> Explain:
    from .shapes import Explain, ModelLayers

    return Explain(
        model_type=found.model.name,
        is_known=found.model.is_known,
        kv_cache_dtype=found.model.kv_dtype,
        layers=tuple(
            ModelLayers(one.kind, one.count, one.heads, one.head_elements, one.window_tokens)
            for one in found.model.layers
        ),
        token_bytes=found.layout.token_bytes,
        block_bytes=found.layout.block_bytes,
        block_tokens=found.layout.block_tokens,
        groups_count=found.layout.groups_count,
        blocks_per_chunk=found.blocks_per_chunk,
        chunk_bytes=found.chunk_bytes,
        chunk_tokens=found.chunk_tokens,
        gpu_tokens=found.gpu_tokens,
        prompt_tokens=found.question.prompt_tokens,
        prefix_tokens=found.question.prefix_tokens,
        tiers=tuple(map(_tier_shape, found.tiers)),
        assumed=found.assumed,
        missing=found.missing,
        warnings=found.warnings,
    )


def _tier_shape(tier: TierAnswer) -> ExplainedTier:
    from .shapes import ExplainedTier, Holding

    def holding(held: Held | None) -> Holding | None:
        return None if held is None else Holding(held.capacity_bytes, held.chunks, held.tokens, held.prompts)

    return ExplainedTier(
        tier=tier.name,
        wanted=holding(tier.wanted),
        here=holding(tier.here),
        bound_by=tier.bound_by,
        load_s=tier.load_s,
        load_bytes_per_s=None if tier.speed is None else tier.speed.bytes_per_s,
        load_origin=None if tier.speed is None else tier.speed.origin,
    )
