"""The chunked head compared with plain logits: values, gradients, precision and memory."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from transformers import Qwen3Config, Qwen3ForCausalLM

from trainer.training.chunked_lm_head import HeadOutput, PolicyModel, token_statistics

N, V, H, MARKER = 13, 101, 8, 42


def operands(dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, H, generator=g, dtype=torch.float64).to(dtype)
    weight = torch.randn(V, H, generator=g, dtype=torch.float64).to(dtype)
    ids = torch.randint(V, (N,), generator=g)
    ids[::4] = MARKER
    return hidden, weight, ids


def naive(hidden: Tensor, weight: Tensor, ids: Tensor, temperature: float = 1.0) -> HeadOutput:
    logits = hidden @ weight.t() / temperature
    log_probs = logits.log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    sampled = log_probs.gather(1, ids[:, None])[:, 0]
    return HeadOutput(sampled, log_probs[:, MARKER], logits[:, MARKER], entropy)


@settings(max_examples=40, deadline=None)
@given(
    tile=st.integers(1, 2 * N * V),
    temperature=st.sampled_from([0.6, 1.0, 1.7]),
    seed=st.integers(0, 2**31),
    used=st.sets(st.sampled_from(HeadOutput._fields), min_size=1),
)
def test_any_tile_size_gives_naive_values_and_gradients(
    tile: int, temperature: float, seed: int, used: set[str]
) -> None:
    hidden, weight, ids = operands(seed=seed)
    hidden.requires_grad_()
    weight.requires_grad_()
    out = token_statistics(hidden, weight, ids, MARKER, temperature=temperature, max_tile_elements=tile)
    expected = naive(hidden, weight, ids, temperature)
    for name in HeadOutput._fields:
        torch.testing.assert_close(getattr(out, name), getattr(expected, name), atol=1e-10, rtol=1e-10)
    upstream = torch.randn(4, N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def gradients(o: HeadOutput) -> tuple[Tensor, ...]:
        total = sum((getattr(o, n) * u).sum() for n, u in zip(o._fields, upstream, strict=True) if n in used)
        return torch.autograd.grad(total, (hidden, weight))

    for ours, theirs in zip(gradients(out), gradients(expected), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


def test_float32_agrees_to_1e_5() -> None:
    hidden, weight, ids = (
        t.requires_grad_() if t.is_floating_point() else t for t in operands(torch.float32)
    )
    out = token_statistics(hidden, weight, ids, MARKER, max_tile_elements=300)
    expected = naive(hidden, weight, ids)
    upstream = torch.linspace(-1, 1, N)
    for ours, theirs in zip(out, expected, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        for a, b in zip(
            torch.autograd.grad(ours, (hidden, weight), upstream, retain_graph=True),
            torch.autograd.grad(theirs, (hidden, weight), upstream, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_gradcheck() -> None:
    hidden, weight, ids = operands()

    def run(h: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        return tuple(token_statistics(h, w, ids[:3], MARKER, temperature=0.8, max_tile_elements=30))

    assert torch.autograd.gradcheck(run, (hidden[:3].requires_grad_(), weight.requires_grad_()))


def test_bfloat16_log_sum_exp_is_within_1e_3_of_float64() -> None:
    g = torch.Generator().manual_seed(0)
    hidden = (4 * torch.randn(64, 256, generator=g)).bfloat16().requires_grad_()
    weight = (torch.randn(5000, 256, generator=g) / 8).bfloat16().requires_grad_()
    ids = torch.randint(5000, (64,), generator=g)
    exact = (hidden.double() @ weight.double().t()).logsumexp(-1)
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = token_statistics(hidden, weight, ids, MARKER, max_tile_elements=64 * 700)
        log_sum_exp = out.execute_logits.double() - out.execute_log_probs.double()
        assert (log_sum_exp - exact).abs().max() < 1e-3
        out.log_probs.sum().backward()
        assert hidden.grad is not None
        assert weight.grad is not None
        assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16
    # Guards against rounding: logits in bfloat16 exceed this bound by far.
    rounded = (hidden @ weight.t()).double().logsumexp(-1)
    assert (rounded - exact).abs().max() > 5e-3


def test_half_weights_with_float32_hidden_states() -> None:
    hidden, weight, ids = operands(torch.float32)
    out = token_statistics(hidden, weight.bfloat16(), ids, MARKER)
    expected = naive(hidden, weight.bfloat16().float(), ids)
    torch.testing.assert_close(out.log_probs, expected.log_probs, atol=1e-5, rtol=1e-5)


class LargestTensor(TorchDispatchMode):
    """Record the size of the largest tensor that an operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_flatten(out)[0]:
            if isinstance(leaf, Tensor):
                self.entries = max(self.entries, leaf.numel())
        return out


def test_no_tensor_is_larger_than_tile_or_operand() -> None:
    n, v, h, tile = 50, 400, 4, 2000
    hidden, weight = torch.randn(n, h).requires_grad_(), torch.randn(v, h).requires_grad_()
    with LargestTensor() as largest:
        out = token_statistics(
            hidden, weight, torch.randint(v, (n,)), MARKER, temperature=0.5, max_tile_elements=tile
        )
        sum(o.sum() for o in out).backward()  # type: ignore[union-attr]
        assert v * h <= largest.entries <= max(tile, v * h)
        naive(hidden, weight, torch.randint(v, (n,)))
    assert largest.entries == n * v


def test_frozen_head_has_no_gradient() -> None:
    hidden, weight, ids = operands()
    hidden.requires_grad_()
    token_statistics(hidden, weight, ids, MARKER).log_probs.sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_accepts_zero_tokens() -> None:
    hidden, weight, ids = operands()
    weight.requires_grad_()
    out = token_statistics(hidden[:0].requires_grad_(), weight, ids[:0], MARKER)
    out.log_probs.sum().backward()
    assert out.entropy.shape == (0,)
    assert weight.grad is not None
    assert weight.grad.abs().max() == 0


def test_extreme_logits_stay_finite() -> None:
    hidden, weight, ids = operands(torch.float32)
    hidden = (hidden * 1e3).requires_grad_()
    out = token_statistics(hidden, weight, ids, MARKER, max_tile_elements=100)
    sum(o.sum() for o in out).backward()  # type: ignore[union-attr]
    assert all(o.isfinite().all() for o in out)
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(N, H + 1)}, "must share H"),
        ({"ids": torch.zeros(N + 1, dtype=torch.int64)}, "ids must be int64"),
        ({"ids": torch.zeros(N)}, "ids must be int64"),
        ({"marker_id": V}, "marker_id must lie in the vocabulary"),
        ({"temperature": 0.0}, "temperature must be above 0"),
    ],
)
def test_rejects_invalid_arguments(change: dict[str, Any], message: str) -> None:
    hidden, weight, ids = operands(torch.float32)
    with pytest.raises(ValueError, match=message):
        token_statistics(**{"hidden": hidden, "weight": weight, "ids": ids, "marker_id": MARKER, **change})


def tiny_model(*, tied: bool) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=V,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            tie_word_embeddings=tied,
        )
    )


def tiny_batch(rows: int = 4) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    targets = torch.rand(rows, 9, generator=g) > 0.4
    targets[:, 0] = False
    return {
        "input_ids": torch.randint(V, (rows, 9), generator=g),
        "attention_mask": torch.ones(rows, 9, dtype=torch.int64),
        "targets": targets,
    }


@pytest.mark.parametrize("tied", [False, True])
def test_model_gradients_match_plain_head(tied: bool) -> None:
    model, plain, batch = tiny_model(tied=tied), tiny_model(tied=tied), tiny_batch()
    out = PolicyModel(model)(**batch, marker_id=MARKER, temperature=0.7)
    (out.log_probs.sum() + out.execute_logits.square().sum()).backward()

    logits = plain(batch["input_ids"]).logits[:, :-1] / 0.7
    ids = batch["input_ids"][:, 1:, None]
    log_probs = logits.log_softmax(-1).gather(-1, ids)[..., 0][batch["targets"][:, 1:]]
    torch.testing.assert_close(out.log_probs, log_probs, atol=1e-5, rtol=1e-5)
    (log_probs.sum() + logits[..., MARKER][batch["targets"][:, 1:]].square().sum()).backward()
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_rejects_head_with_bias() -> None:
    model = tiny_model(tied=False)
    model.lm_head = torch.nn.Linear(16, V)
    with pytest.raises(ValueError, match="bias"):
        PolicyModel(model)


def sharded_step(rank: int, port: int, tied: bool, directory: str) -> None:
    """Run one of two FSDP2 processes on the CPU, each with half of the batch; gradients are averaged."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    mesh = dist.init_device_mesh("cpu", (2,))
    policy = PolicyModel(tiny_model(tied=tied))
    for layer in policy.model.model.layers:  # type: ignore[union-attr]
        fully_shard(layer, mesh=mesh)  # type: ignore[arg-type]
    fully_shard(policy, mesh=mesh)
    half = {name: tensor[rank * 2 : rank * 2 + 2] for name, tensor in tiny_batch().items()}
    policy(**half, marker_id=MARKER).log_probs.sum().backward()
    gradients = {}
    for name, parameter in policy.named_parameters():
        assert isinstance(parameter.grad, DTensor)
        gradients[name] = parameter.grad.full_tensor()
    if rank == 0:
        torch.save(gradients, Path(directory) / "gradients.pt")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # the result is saved; on a normal exit torch sometimes aborts in its threads


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_two_fsdp_processes_match_one_process(tied: bool, tmp_path: Path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    torch.multiprocessing.spawn(sharded_step, (port, tied, str(tmp_path)), nprocs=2)
    gradients = torch.load(tmp_path / "gradients.pt", weights_only=True)
    policy = PolicyModel(tiny_model(tied=tied))
    (policy(**tiny_batch(), marker_id=MARKER).log_probs.sum() / 2).backward()
    assert set(gradients) == {name for name, _ in policy.named_parameters()}
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_bfloat16_on_cuda() -> None:
    g = torch.Generator().manual_seed(0)
    hidden = (4 * torch.randn(64, 256, generator=g)).bfloat16().cuda().requires_grad_()
    weight = (torch.randn(5000, 256, generator=g) / 8).bfloat16().cuda().requires_grad_()
    ids = torch.randint(5000, (64,), generator=g).cuda()
    out = token_statistics(hidden, weight, ids, MARKER, max_tile_elements=64 * 700)
    exact = (hidden.double() @ weight.double().t()).logsumexp(-1)
    assert (out.execute_logits.double() - out.execute_log_probs.double() - exact).abs().max() < 1e-3
    out.log_probs.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


@settings(max_examples=25, deadline=None)
@given(
    tile=st.integers(1, 2 * N * V),
    row_ids=st.lists(st.integers(0, V - 1), min_size=1, max_size=4, unique=True),
    seed=st.integers(0, 2**31),
)
def test_replaced_rows_have_the_values_and_gradients_of_a_changed_weight(
    tile: int, row_ids: list[int], seed: int
) -> None:
    hidden, weight, ids = operands(seed=seed)
    rows = torch.randn(
        len(row_ids), H, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1)
    )
    hidden.requires_grad_()
    rows.requires_grad_()
    out = token_statistics(
        hidden, weight, ids, MARKER, max_tile_elements=tile, temperature=0.7, row_ids=row_ids, rows=rows
    )
    changed = weight.index_copy(0, torch.tensor(row_ids), rows)
    expected = naive(hidden, changed, ids, 0.7)
    upstream = torch.linspace(-1, 1, N, dtype=torch.float64)
    for ours, theirs in zip(out, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)
        for a, b in zip(
            torch.autograd.grad(ours, (hidden, rows), upstream, retain_graph=True),
            torch.autograd.grad(theirs, (hidden, rows), upstream, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


def test_a_replaced_row_of_a_trained_weight_gets_no_gradient_there() -> None:
    hidden, weight, ids = operands()
    weight.requires_grad_()
    rows = torch.ones(1, H, dtype=torch.float64, requires_grad=True)
    out = token_statistics(hidden, weight, ids, MARKER, row_ids=[MARKER], rows=rows)
    weight_grad, rows_grad = torch.autograd.grad(out.log_probs.sum(), (weight, rows))
    assert weight_grad[MARKER].abs().max() == 0
    assert weight_grad.abs().max() > 0
    assert rows_grad.abs().max() > 0


def test_rejects_rows_without_ids() -> None:
    hidden, weight, ids = operands()
    with pytest.raises(ValueError, match="row_ids"):
        token_statistics(hidden, weight, ids, MARKER, row_ids=[1, 2], rows=weight[:1])
