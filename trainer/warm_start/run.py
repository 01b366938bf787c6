"""A warm start from recipe to checkpoint: chat, texts, training, measurements. Can be resumed."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from service.engines.adapters import fingerprint
from service.engines.checkpoint import CheckpointError
from service.engines.model_lookup import locate
from service.engines.settings import TransformersSettings
from service.engines.tokenizer import HFTokenizer
from service.engines.transformers.engine import TransformersEngine
from trainer.training.checkpoints import check_same_base, latest, prune, staged
from trainer.training.chunked_lm_head import PolicyModel
from trainer.training.config import ConfigError
from trainer.training.lora import (
    attach_adapter,
    base_name,
    inspect_marker_row,
    load_adapter,
    parameter_groups,
    save_adapter,
)
from trainer.training.run_files import read_complete_lines, run_lock, write_atomically
from trainer.training.setup import check_device
from trainer.training.supervised import (
    HeldOutMetrics,
    StepResult,
    TextBatch,
    TrainingText,
    evaluate_texts,
    make_text_batch,
    supervised_step,
)
from trainer.warm_start.chat import Exchange, load_chat, ordinary_requests, sample_chat, save_chat
from trainer.warm_start.recipe import MARKER_LR, WarmStartRecipe
from trainer.warm_start.solved import FILE as SOLVED_FILE
from trainer.warm_start.solved import SampledSolution, load_solutions, read_problems, sample_solutions
from trainer.warm_start.texts import TextWriter, held_out_texts, solved_texts, training_texts

STATE_FILE: Final = "warm_start.json"
OPTIMIZER_FILE: Final = "optimizer.pt"
LOG_FILE: Final = "log.jsonl"
_MAY_CHANGE: Final = frozenset(
    {"run_dir", "model", "micro_batch_texts", "measure_every", "save_every", "keep_checkpoints", "device",
     "threads", "held_out_texts"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Texts:
    writer: TextWriter
    chat: list[TrainingText]
    solved: list[TrainingText]
    held_out: list[TextBatch]
    pad_id: int
    marker_id: int


class _Learner:
    """The model in training: whole, or frozen with an adapter."""

    def __init__(self, recipe: WarmStartRecipe, model_dir: Path, marker_id: int, known_tokens: int) -> None:
        is_lora = recipe.weights == "lora"
        self.dtype = torch.bfloat16 if recipe.dtype == "bfloat16" else torch.float32
        self.device = _device(recipe.device)
        frozen_dtype = self.dtype if is_lora else torch.float32
        model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=frozen_dtype)
        model.to(self.device)
        row = inspect_marker_row(model, marker_id, known_tokens)
        rate = recipe.effective_learning_rate
        row_rate: float | None = rate
        if is_lora:
            row_rate = (recipe.lora.marker_lr or MARKER_LR) if recipe.lora.train_marker else None
        self.marker_row = row.describe(recipe.deferral.marker, row_rate)
        self.model: Any = model
        if is_lora:
            self.model = attach_adapter(model, recipe.lora, marker_id, seed=recipe.seed)
            groups = parameter_groups(
                self.model,
                learning_rate=rate,
                marker_lr=row_rate or rate,
                weight_decay=recipe.weight_decay,
            )
        else:
            groups = [{"params": list(model.parameters()), "lr": rate, "weight_decay": recipe.weight_decay}]
        self.head = PolicyModel(model)
        self.head.train()
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
        self._rates = [group["lr"] for group in groups]
        self._is_lora = is_lora

    @property
    def trained_parameters(self) -> int:
        return sum(p.numel() for group in self.optimizer.param_groups for p in group["params"])

    def scale_learning_rates(self, factor: float) -> None:
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor

    def save(self, directory: Path, recipe: WarmStartRecipe, base_fingerprint: str) -> None:
        if self._is_lora:
            name = base_name(recipe.lora, recipe.model)
            save_adapter(self.model, directory, base_name=name, fingerprint=base_fingerprint)
        else:
            self.model.save_pretrained(directory)
        torch.save(self.optimizer.state_dict(), directory / OPTIMIZER_FILE)

    def load(self, directory: Path) -> None:
        if self._is_lora:
            load_adapter(self.model, directory)
        else:
            saved: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
            self.model.load_state_dict(saved.state_dict())
        self.optimizer.load_state_dict(torch.load(directory / OPTIMIZER_FILE, weights_only=True))


def run_warm_start(recipe: WarmStartRecipe, console: Console) -> Path:
    """Train to ``recipe.steps``, from the last checkpoint in ``recipe.run_dir`` if there is one.

    Args:
        recipe: the run.
        console: shows progress.

    Returns:
        The last checkpoint: an adapter or a whole model, with ``deferral.json``.

    Raises:
        ConfigError: the recipe can't be run, or the run in ``run_dir`` was started with another one.
        CheckpointError, DirectoryError, ValueError: the model or the last checkpoint can't be used, or
            another process trains in ``run_dir``.
        EngineError: the checkpoint could not be sampled for chat.
    """
    with run_lock(recipe.run_dir):
        return _run(recipe, console)


def describe_warm_start(recipe: WarmStartRecipe, console: Console) -> None:
    """Print the plan of a run and two of its texts. Reads the tokenizer, but no weights.

    Raises:
        ConfigError, ValueError: the recipe can't be run.
    """
    model_dir = locate(recipe.model, weights=False)
    tokenizer = HFTokenizer(str(model_dir))
    writer, _ = _writer(recipe, tokenizer)
    texts = [text for step in range(4) for text in _drawn(recipe, writer, [], [], step)]
    lengths = [len(text.ids) for text in texts]
    console.print(
        f"{recipe.model}: {recipe.weights} weights, learning rate {recipe.effective_learning_rate:g}\n"
        f"{recipe.steps} steps of {recipe.texts_per_step} texts, {recipe.chat_share:.0%} of them chat\n"
        f"a problem is {sum(lengths) / len(lengths):.0f} tokens, the longest of {len(texts)} is "
        f"{max(lengths)}\noutput: {recipe.run_dir}",
        highlight=False,
        soft_wrap=True,
    )
    for text in texts[:2]:
        console.rule()
        console.print(tokenizer.decode(text.ids), markup=False, highlight=False)


def _run(recipe: WarmStartRecipe, console: Console) -> Path:
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    check_device(recipe.device)
    model_dir = locate(recipe.model)
    checkpoints = recipe.run_dir / "checkpoints"
    checkpoint = latest(checkpoints)
    base_fingerprint = fingerprint(model_dir)
    first = _check_resumable(checkpoint, recipe, base_fingerprint) if checkpoint else 0
    tokenizer = HFTokenizer(str(model_dir))
    texts = _prepare(recipe, model_dir, tokenizer, console, resumed=checkpoint is not None)
    learner = _Learner(recipe, model_dir, texts.marker_id, tokenizer.vocab_size)
    console.print(learner.marker_row, highlight=False, soft_wrap=True)
    console.print(f"{learner.trained_parameters / 1e6:,.2f} M parameters are trained", highlight=False)
    if checkpoint:
        learner.load(checkpoint)
        console.print(f"resumed at step {first} from {checkpoint}", highlight=False, soft_wrap=True)
    log = _Log(recipe.run_dir / LOG_FILE, first)
    fields = "loss {task.fields[loss]:.3f}  {task.fields[speed]:,.0f} tok/s  left"
    with _progress(console, "warm start", fields) as progress:
        bar = progress.add_task("", total=recipe.steps, completed=first, loss=float("nan"), speed=0.0)
        if first == 0:
            _report(progress.console, log, 0, _measure(learner, texts))
        for step in range(first, recipe.steps):
            began = time.perf_counter()
            result = _step(recipe, learner, texts, step)
            seconds = time.perf_counter() - began
            done = step + 1
            log.add({"step": done, **asdict(result), "seconds": round(seconds, 3)})
            progress.update(bar, completed=done, loss=result.loss, speed=result.tokens / seconds)
            is_last = done == recipe.steps
            if done % recipe.measure_every == 0 or is_last:
                _report(progress.console, log, done, _measure(learner, texts))
            if done % recipe.save_every == 0 or is_last:
                _save(recipe, learner, model_dir, checkpoints, done, base_fingerprint)
    final = latest(checkpoints)
    assert final is not None  # noqa: S101 - the last step leaves one
    return final


def _drawn(
    recipe: WarmStartRecipe,
    writer: TextWriter,
    chat: list[TrainingText],
    solved: list[TrainingText],
    step: int,
) -> list[TrainingText]:
    return training_texts(
        writer,
        chat,
        solved,
        seed=recipe.seed,
        mix=recipe.mix,
        word_share=recipe.word_share,
        marker=recipe.deferral.marker,
        chat_share=recipe.chat_share,
        solved_share=recipe.solved.share,
        max_tokens=recipe.max_tokens,
        step=step,
        count=recipe.texts_per_step,
    )


def _step(recipe: WarmStartRecipe, learner: _Learner, texts: _Texts, step: int) -> StepResult:
    drawn = _drawn(recipe, texts.writer, texts.chat, texts.solved, step)
    drawn.sort(key=lambda text: len(text.ids))  # less padding
    size = recipe.micro_batch_texts
    batches = [
        make_text_batch(drawn[start : start + size], texts.pad_id).to(learner.device)
        for start in range(0, len(drawn), size)
    ]
    learner.scale_learning_rates(recipe.learning_rate_factor(step))
    torch.manual_seed(recipe.seed * 1_000_003 + step)  # of dropout: a resumed run draws the same
    return supervised_step(
        learner.head,
        batches,
        learner.optimizer,
        texts.marker_id,
        max_grad_norm=recipe.max_grad_norm,
        dtype=learner.dtype,
    )


def _writer(recipe: WarmStartRecipe, tokenizer: HFTokenizer) -> tuple[TextWriter, int]:
    """Return the writer of texts, and the id of the end-of-turn token."""
    policy = recipe.deferral
    if tokenizer.token_id(policy.marker) is None:
        raise ConfigError(f"model: its tokenizer has no token {policy.marker!r}, so it cannot defer code")
    end_id = tokenizer.eos_token_id
    if end_id is None:
        raise ConfigError("model: its tokenizer has no end-of-turn token (eos_token)")
    return TextWriter(tokenizer, policy, end_id), end_id


def _prepare(
    recipe: WarmStartRecipe, model_dir: Path, tokenizer: HFTokenizer, console: Console, *, resumed: bool
) -> _Texts:
    policy = recipe.deferral
    writer, pad_id = _writer(recipe, tokenizer)
    marker_id = tokenizer.token_id(policy.marker)
    assert marker_id is not None  # noqa: S101 - checked with the writer
    chat: list[TrainingText] = []
    if recipe.chat_share > 0:
        path = recipe.run_dir / "chat.jsonl"
        if not path.is_file():
            console.print(f"sampling {recipe.chat_samples} answers of the untrained model", highlight=False)
            save_chat(path, asyncio.run(_sample(recipe, model_dir, policy.marker)))
        exchanges = load_chat(path)
        if not exchanges:
            raise ConfigError("chat_max_tokens: every answer of the model reached this limit: raise it")
        chat = [writer.chat(exchange) for exchange in exchanges]
        console.print(f"{len(chat)} chats from {path}", highlight=False, soft_wrap=True)
    source = held_out_texts(
        writer,
        seed=recipe.seed,
        mix=recipe.mix,
        word_share=recipe.word_share,
        marker=policy.marker,
        max_tokens=recipe.max_tokens,
    )
    held_out = [next(source) for _ in range(recipe.held_out_texts)]
    size = recipe.micro_batch_texts
    batches = [make_text_batch(held_out[i : i + size], pad_id) for i in range(0, len(held_out), size)]
    solved: list[TrainingText] = []
    if recipe.solved.problems:
        path = recipe.run_dir / SOLVED_FILE
        if not (resumed and path.is_file()):  # the texts of a run stay the same once it trains
            _sample_solved(recipe, model_dir, path, console)
        solved = solved_texts(writer, load_solutions(path), delayed_weight=recipe.solved.delayed_weight)
        if not solved:
            raise ConfigError("solved.problems: no solution was kept: use easier problems or more samples")
    return _Texts(writer, chat, solved, batches, pad_id, marker_id)


def _sample_solved(recipe: WarmStartRecipe, model_dir: Path, path: Path, console: Console) -> None:
    """Sample the solutions that are missing in ``path``."""
    settings = recipe.solved
    problems = read_problems(settings, recipe.seed)
    verdicts = Counter(solution.verdict for solution in load_solutions(path))
    with _progress(console, "rejection sampling", "kept {task.fields[kept]}  left") as progress:
        total = len(problems) * settings.samples
        bar = progress.add_task("", total=total, completed=verdicts.total(), kept=verdicts["kept"])

        def show(solution: SampledSolution) -> None:
            verdicts[solution.verdict] += 1
            progress.update(bar, advance=1, kept=verdicts["kept"])
            if verdicts.total() % 50 == 0 and not console.is_terminal:
                console.print(f"sampled {verdicts.total()} of {total}, kept {verdicts['kept']}")

        without_verdict = asyncio.run(
            sample_solutions(
                settings, problems, model_dir, recipe.deferral, path, seed=recipe.seed, on_solution=show
            )
        )
    counts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
    console.print(f"{verdicts.total()} solutions in {path}: {counts}", highlight=False, soft_wrap=True)
    if without_verdict:
        console.print(
            f"{without_verdict} samples left out: the sandbox or the reward failed",
            highlight=False,
            soft_wrap=True,
        )


async def _sample(recipe: WarmStartRecipe, model_dir: Path, marker: str) -> list[Exchange]:
    requests = (
        ordinary_requests(recipe.seed, recipe.chat_samples)
        if recipe.chat_requests is None
        else _read_requests(recipe.chat_requests)[: recipe.chat_samples]
    )
    engine = TransformersEngine(
        TransformersSettings(
            model=str(model_dir),
            device=recipe.device,
            max_slots=8,
            max_context=recipe.chat_max_tokens + 512,
            threads=recipe.threads,
        )
    )
    await engine.start()
    try:
        return await sample_chat(engine, requests, max_tokens=recipe.chat_max_tokens, marker=marker)
    finally:
        await engine.stop()


def _read_requests(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"chat_requests: {path} can't be read: {error.strerror}") from None
    return [line.strip() for line in lines if line.strip()]


def _measure(learner: _Learner, texts: _Texts) -> HeldOutMetrics:
    batches = [batch.to(learner.device) for batch in texts.held_out]
    return evaluate_texts(learner.head, batches, texts.marker_id, dtype=learner.dtype)


def _report(console: Console, log: _Log, step: int, metrics: HeldOutMetrics) -> None:
    log.add({"step": step, "held_out": asdict(metrics)})
    console.print(f"step {step}  {metrics}", highlight=False, soft_wrap=True)


def _save(
    recipe: WarmStartRecipe,
    learner: _Learner,
    model_dir: Path,
    checkpoints: Path,
    step: int,
    base_fingerprint: str,
) -> None:
    final = checkpoints / f"checkpoint-{step}"
    if final.exists():
        return
    try:
        with staged(final) as staging:
            learner.save(staging, recipe, base_fingerprint)
            AutoTokenizer.from_pretrained(model_dir).save_pretrained(staging)
            recipe.deferral.save(staging)
            state = {"step": step, "base": base_fingerprint, "recipe": recipe.model_dump(mode="json")}
            (staging / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(
            f"{final} can't be written ({error}). Free disk space and rerun the command to resume"
        ) from error
    prune(checkpoints, recipe.keep_checkpoints)


def _check_resumable(checkpoint: Path, recipe: WarmStartRecipe, base_fingerprint: str) -> int:
    """The step that ``checkpoint`` was written at."""
    try:
        state: dict[str, Any] = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
        saved, step = dict(state["recipe"]), int(state["step"])
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(
            f"{checkpoint} is not a checkpoint of a warm start: remove it, or use another run_dir"
        ) from None
    for name, value in recipe.model_dump(mode="json").items():
        if name not in _MAY_CHANGE and saved.get(name) != value:
            raise ConfigError(
                f"{name} is {value!r}, but the run in {recipe.run_dir} was started with {saved.get(name)!r}: "
                f"set it back, or use another run_dir"
            )
    check_same_base(checkpoint, state.get("base"), base_fingerprint, recipe.run_dir)
    return step


class _Log:
    """Appends JSON Lines; lines of steps that are about to be repeated are dropped first."""

    def __init__(self, path: Path, first: int) -> None:
        self._path = path
        if path.is_file():
            kept = [line for line in read_complete_lines(path) if json.loads(line)["step"] <= first]
            write_atomically(path, b"".join(line + b"\n" for line in kept))

    def add(self, values: dict[str, object]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")


def _device(name: str) -> torch.device:
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _progress(console: Console, name: str, fields: str) -> Progress:
    return Progress(
        TextColumn(name),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(fields),
        TimeRemainingColumn(),
        console=console,
    )
