"""Tokens per second of the embedded engine compared with transformers' ``generate``.

    python benchmarks/engine.py                   # a random model of the quickstart's size
    python benchmarks/engine.py --model DIR --streams 1 8 --prompt 512
    python benchmarks/engine.py --dtypes --shape 20m --streams 1 4 8    # bfloat16 against float32, on a CPU

Both decode the same random prompts to the same length at temperature 1. Every number is the median of
``--repeat`` alternating runs, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch
import transformers
from shapes import SHAPES
from transformers import AutoConfig, AutoModelForCausalLM

from service.engines.base import Sampling
from service.engines.model_config import count_parameters
from service.engines.settings import TransformersSettings
from service.engines.transformers.engine import TransformersEngine
from tests.support.tiny_qwen3 import make_checkpoint

QUICKSTART_SIZE = {
    **SHAPES["2m"],
    "vocab_size": 1536,
    "max_position_embeddings": 4096,
    "initializer_range": 0.02,
}


async def run_engine(engine: TransformersEngine, prompts: list[list[int]], new: int) -> float:
    """Output tokens per second, including the time for the prompts."""

    async def one(ids: list[int]) -> int:
        return sum([len(chunk.ids) async for chunk in engine.generate(ids, Sampling(max_tokens=new))])

    begin = time.perf_counter()
    counts = await asyncio.gather(*(one(ids) for ids in prompts))
    return sum(counts) / (time.perf_counter() - begin)


@torch.inference_mode()
def run_generate(model: transformers.GenerationMixin, prompts: list[list[int]], new: int) -> float:
    ids = torch.tensor(prompts, device=model.device)
    begin = time.perf_counter()
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        min_new_tokens=new,
        max_new_tokens=new,
        pad_token_id=0,
    )
    return output[:, ids.shape[1] :].numel() / (time.perf_counter() - begin)


async def compare(arguments: argparse.Namespace, model: str) -> None:
    settings = TransformersSettings(model=model, max_slots=max(arguments.streams), threads=arguments.threads)
    engine = TransformersEngine(settings)
    await engine.start()
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    if torch.cuda.is_available():
        reference = reference.cuda()
    size = sum(parameter.numel() for parameter in reference.parameters()) / 1e6
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, "
        f"GPU {torch.cuda.is_available()}; Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )
    print(
        f"model of {size:.1f}M parameters; prompts of {arguments.prompt} tokens, {arguments.new} new tokens\n"
    )
    print("| streams | engine tok/s | generate tok/s | ratio |\n| ---: | ---: | ---: | ---: |")
    rng = random.Random(0)
    for streams in arguments.streams:
        ours, theirs = [], []
        for _ in range(arguments.repeat + 1):  # the first round warms up
            prompts = [rng.choices(range(300), k=arguments.prompt) for _ in range(streams)]
            ours.append(await run_engine(engine, prompts, arguments.new))
            theirs.append(await asyncio.to_thread(run_generate, reference, prompts, arguments.new))
        a, b = statistics.median(ours[1:]), statistics.median(theirs[1:])
        print(f"| {streams} | {a:,.0f} | {b:,.0f} | {a / b:.2f} |", flush=True)
    await engine.stop()


async def compare_dtypes(arguments: argparse.Namespace, model: str) -> None:
    """Compare the engine in bfloat16 with the engine in float32."""
    engines = {}
    for dtype in ("float32", "bfloat16"):
        engines[dtype] = TransformersEngine(
            TransformersSettings(
                model=model,
                device="cpu",
                dtype=dtype,
                max_slots=max(arguments.streams),
                threads=arguments.threads,
            )
        )
        await engines[dtype].start()
    parameters = count_parameters(AutoConfig.from_pretrained(model))
    print(f"model of {parameters / 1e6:.1f}M parameters, {arguments.threads} threads\n")
    print("| streams | float32 tok/s | bfloat16 tok/s | ratio |\n| ---: | ---: | ---: | ---: |")
    rng = random.Random(0)
    for streams in arguments.streams:
        speeds: dict[str, list[float]] = {dtype: [] for dtype in engines}
        for _ in range(arguments.repeat + 1):  # the first round warms up
            prompts = [rng.choices(range(300), k=arguments.prompt) for _ in range(streams)]
            for dtype, engine in engines.items():
                speeds[dtype].append(await run_engine(engine, prompts, arguments.new))
        a, b = (statistics.median(speeds[dtype][1:]) for dtype in ("float32", "bfloat16"))
        print(f"| {streams} | {a:,.0f} | {b:,.0f} | {b / a:.2f} |", flush=True)
    for engine in engines.values():
        await engine.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="checkpoint directory; default: random weights")
    parser.add_argument("--shape", choices=SHAPES, help="random weights of another size")
    parser.add_argument("--dtypes", action="store_true", help="compare bfloat16 with float32 instead")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 16, 32])
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        size = {**QUICKSTART_SIZE, **SHAPES.get(arguments.shape, {})}
        model = arguments.model or str(make_checkpoint(Path(directory), **size))
        asyncio.run((compare_dtypes if arguments.dtypes else compare)(arguments, model))


if __name__ == "__main__":
    main()
