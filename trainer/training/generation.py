"""Who plays a run's episodes, and how each rollout's weights get there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from pydantic import SecretStr

from service.deferral.policy import DeferralPolicy
from service.engines.base import Engine, Sampling, Tokenizer
from service.engines.settings import LogprobsMode
from service.engines.tokenizer import HFTokenizer
from service.sandbox.base import Sandbox
from trainer.rewards import RewardScorer
from trainer.training.config import ConfigError, TrainConfig
from trainer.training.episodes import LocalRolloutWorker, RolloutSettings, RolloutWorker
from trainer.training.setup import Part, engine_dtype, make_engine, make_sandbox
from trainer.weight_sync.push import (
    BothSinks,
    CheckpointSink,
    EngineSink,
    IHGRPOServer,
    VLLMServer,
    WeightSink,
    WeightTarget,
)

if TYPE_CHECKING:
    from trainer.ray.worker import RayScorer


@dataclass(frozen=True, slots=True)
class Generation:
    """Plays episodes once its parts are started, in their order."""

    tokenizer: Tokenizer
    worker: RolloutWorker
    sink: WeightSink
    parts: tuple[Part, ...]


def rollout_settings(config: TrainConfig, policy: DeferralPolicy) -> RolloutSettings:
    """How the episodes of a run are played."""
    return RolloutSettings(
        policy=policy,
        sampling=Sampling(temperature=config.temperature, top_p=config.top_p),
        group_size=config.group_size,
        eager=config.eager,
        max_concurrent=config.max_concurrent_episodes,
    )


def make_generation(
    config: TrainConfig, model_dir: Path, policy: DeferralPolicy, device: str, sandbox: Sandbox | None = None
) -> Generation:
    """What ``config`` says, nothing of it started.

    Args:
        config: the run.
        model_dir: its model.
        policy: as resolved from checkpoint and recipe.
        device: of an embedded engine of this process.
        sandbox: instead of the recipe's; not with Ray.

    Raises:
        ConfigError: vLLM would not tell the log-probs that the loss needs, or Ray is not installed.
        EngineError: vLLM is not installed.
        ValueError: a key or a secret can't be read.
    """
    if config.ray is not None:
        worker = _cluster().RayRolloutWorker(config, policy)
        own = None if config.generation_urls else worker
        sink = BothSinks(*_sinks(config, model_dir, policy, own))
        return Generation(HFTokenizer(str(model_dir)), worker, sink, (worker,))
    sandbox = sandbox or make_sandbox(config, policy)
    engine, own = make_own(config, model_dir, policy, device)
    worker = LocalRolloutWorker(engine, sandbox, rollout_settings(config, policy))
    sink = BothSinks(*_sinks(config, model_dir, policy, own))
    return Generation(engine.tokenizer, worker, sink, (sandbox, engine))


def make_own(
    config: TrainConfig, model_dir: Path, policy: DeferralPolicy, device: str
) -> tuple[Engine, WeightSink | None]:
    """The engine of a process that plays episodes, and what gives it weights; None where servers sample.

    Raises as `make_generation`.
    """
    if config.generation == "embedded":
        embedded = make_engine(config, model_dir, policy, device)
        return embedded, EngineSink(embedded)
    if config.generation_urls:
        return make_remote(config, model_dir, policy), None
    return _own_vllm(config, model_dir, policy)


def _own_vllm(config: TrainConfig, model_dir: Path, policy: DeferralPolicy) -> tuple[Engine, WeightSink]:
    from service.engines.settings import VLLMSettings
    from service.engines.vllm.engine import VLLMEngine
    from trainer.weight_sync.control import OwnEngine
    from trainer.weight_sync.sink import TransferSink

    backend = config.weight_transfer
    assert backend != "files"  # noqa: S101 - the recipe was checked
    engine = VLLMEngine(
        VLLMSettings(
            model=str(model_dir),
            dtype=engine_dtype(config, config.device),
            max_context=policy.max_episode_tokens,
            args={
                "max_num_seqs": config.engine_slots,
                "logprobs_mode": _logprobs_mode(config),
                "weight_transfer_config": {"backend": backend},
                **config.vllm_args,
            },
        )
    )
    _must_tell_logprobs(config, engine)
    control = OwnEngine(engine)
    return engine, TransferSink(backend, control, model_dir, host="127.0.0.1", shared=False)


def make_remote(config: TrainConfig, model_dir: Path, policy: DeferralPolicy) -> Engine:
    """The vLLM servers that ``config`` samples on, as an engine that is not started.

    Raises:
        ConfigError: they would not tell the log-probs that the loss needs, or a key can't be read.
    """
    from service.engines.remote.engine import RemoteEngine
    from service.engines.settings import RemoteSettings

    key = _key(config.generation_key_file)
    remote = RemoteEngine(
        RemoteSettings(
            urls=config.generation_urls,
            model=str(model_dir),
            max_context=policy.max_episode_tokens,
            api_key=None if key is None else SecretStr(key),
            logprobs_mode=_logprobs_mode(config),
        )
    )
    _must_tell_logprobs(config, remote)
    return remote


def _logprobs_mode(config: TrainConfig) -> LogprobsMode:
    # Raw log-probs know no temperature; processed ones are what is left after top-p.
    return "raw_logprobs" if config.temperature == 1 else "processed_logprobs"


def _must_tell_logprobs(config: TrainConfig, engine: Engine) -> None:
    if not engine.supports_logprobs(Sampling(temperature=config.temperature, top_p=config.top_p)):
        raise ConfigError(
            f"top_p is {config.top_p} at temperature {config.temperature}: vLLM does not tell the log-probs "
            f"that the loss needs; set one of them to 1"
        )


def _sinks(
    config: TrainConfig, model_dir: Path, policy: DeferralPolicy, own: WeightSink | None
) -> Iterator[WeightSink]:
    """To what samples, and to those that follow."""
    if own is not None:
        yield own
    targets: list[WeightTarget] = [
        IHGRPOServer(url, _key(config.follower_key_file)) for url in config.follower_urls
    ]
    key = _key(config.generation_key_file)
    if config.generation_urls and config.weight_transfer != "files":
        from trainer.weight_sync.control import Servers
        from trainer.weight_sync.sink import TransferSink, address_towards

        servers = Servers(config.generation_urls, key)
        yield TransferSink(
            config.weight_transfer,
            servers,
            model_dir,
            host=address_towards(config.generation_urls[0]),
            port=config.weight_transfer_port,
            shared=True,
        )
    else:
        targets += [VLLMServer(url, key) for url in config.generation_urls]
    if targets and config.weights_dir is not None:
        yield CheckpointSink(config.weights_dir, model_dir, policy, targets)


def make_scorer(config: TrainConfig) -> RewardScorer | RayScorer:
    """Who judges; to be entered."""
    if config.ray is None or config.ray.reward_actors == 0:
        return RewardScorer()
    scorer: RayScorer = _cluster().RayScorer(config.ray)
    return scorer


def connection(config: TrainConfig) -> AbstractContextManager[None]:
    """To the Ray cluster, where the run has one.

    Raises:
        ConfigError: Ray is not installed.
        EngineError: there is no such cluster.
    """
    return nullcontext() if config.ray is None else _cluster().connected(config.ray)


def _cluster() -> ModuleType:
    try:
        from trainer.ray import worker as ray_worker
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise ConfigError("the recipe has a section [ray]: pip install 'ih-grpo[ray]'") from None
    return ray_worker


def _key(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"the key file {path} can't be read: {error.strerror}") from None
