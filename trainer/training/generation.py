"""Construction of the rollout workers, weight sinks and reward function of a training run."""

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
from trainer.environments.tools import make_tools
from trainer.rewards.registry import RewardSet
from trainer.training.config import ConfigError, TrainConfig
from trainer.training.episodes import LocalRolloutWorker, RolloutSettings, RolloutWorker
from trainer.training.setup import Startable, engine_dtype, make_engine, make_sandbox
from trainer.weight_sync.servers import IHGRPOReload, ReloadTarget, VLLMReload
from trainer.weight_sync.sinks import CheckpointSink, EngineSink, SinkChain, WeightSink

if TYPE_CHECKING:
    from trainer.ray.worker import RayRewardScorer


@dataclass(frozen=True, slots=True)
class Generation:
    """A rollout worker with its tokenizer and weight sink. Start ``parts`` in order before use."""

    tokenizer: Tokenizer
    worker: RolloutWorker
    sink: WeightSink
    parts: tuple[Startable, ...]


def rollout_settings(config: TrainConfig, policy: DeferralPolicy) -> RolloutSettings:
    """Return the settings of the run's episodes."""
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
    """Return the rollout worker and its parts for ``config``, not started.

    Args:
        config: the run.
        model_dir: directory of its model.
        policy: resolved from checkpoint and recipe.
        device: device of an embedded engine in this process.
        sandbox: replaces the recipe's sandbox; unused with Ray.

    Raises:
        ConfigError: vLLM cannot return the log-probs that the loss needs, or Ray is not installed.
        EngineError: vLLM is not installed.
        ValueError: a key or secret file is unreadable.
    """
    if config.ray is not None:
        worker = _ray_worker_module().RayRolloutWorker(config, policy)
        local = None if config.generation_urls else worker
        sink = SinkChain(*_sinks(config, model_dir, policy, local))
        return Generation(HFTokenizer(str(model_dir)), worker, sink, (worker,))
    sandbox = sandbox or make_sandbox(config, policy)
    engine, local = make_engine_and_sink(config, model_dir, policy, device)
    tools = make_tools(config.tools)
    worker = LocalRolloutWorker(engine, sandbox, rollout_settings(config, policy), tools)
    sink = SinkChain(*_sinks(config, model_dir, policy, local))
    parts: tuple[Startable, ...] = (sandbox, engine) if tools is None else (sandbox, engine, tools)
    return Generation(engine.tokenizer, worker, sink, parts)


def make_engine_and_sink(
    config: TrainConfig, model_dir: Path, policy: DeferralPolicy, device: str
) -> tuple[Engine, WeightSink | None]:
    """Return the engine of a rollout process and its weight sink, which is None for remote servers.

    Raises:
        ConfigError, EngineError, ValueError: as `make_generation`.
    """
    if config.generation == "embedded":
        embedded = make_engine(config, model_dir, policy, device)
        return embedded, EngineSink(embedded)
    if config.generation_urls:
        return make_remote(config, model_dir, policy), None
    return _in_process_vllm(config, model_dir, policy)


def _in_process_vllm(
    config: TrainConfig, model_dir: Path, policy: DeferralPolicy
) -> tuple[Engine, WeightSink]:
    from service.engines.settings import VLLMSettings
    from service.engines.vllm.engine import VLLMEngine
    from trainer.weight_sync.servers import InProcessVLLM
    from trainer.weight_sync.sinks import TransferSink

    backend = config.weight_transfer
    assert backend != "files"  # noqa: S101 - TrainConfig rejects it
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
    _require_logprobs(config, engine)
    control = InProcessVLLM(engine)
    return engine, TransferSink(backend, control, model_dir, host="127.0.0.1", shared=False)


def make_remote(config: TrainConfig, model_dir: Path, policy: DeferralPolicy) -> Engine:
    """Return an engine that samples on the vLLM servers of ``config``, not started.

    Raises:
        ConfigError: vLLM cannot return the log-probs that the loss needs, or a key file is unreadable.
    """
    from service.engines.remote.engine import RemoteEngine
    from service.engines.settings import RemoteSettings

    key = _read_key(config.generation_key_file)
    remote = RemoteEngine(
        RemoteSettings(
            urls=config.generation_urls,
            model=str(model_dir),
            max_context=policy.max_episode_tokens,
            api_key=None if key is None else SecretStr(key),
            logprobs_mode=_logprobs_mode(config),
        )
    )
    _require_logprobs(config, remote)
    return remote


def _logprobs_mode(config: TrainConfig) -> LogprobsMode:
    # Raw log-probs ignore the temperature; processed ones are renormalised after top-p.
    return "raw_logprobs" if config.temperature == 1 else "processed_logprobs"


def _require_logprobs(config: TrainConfig, engine: Engine) -> None:
    if not engine.supports_logprobs(Sampling(temperature=config.temperature, top_p=config.top_p)):
        raise ConfigError(
            f"top_p is {config.top_p} at temperature {config.temperature}: vLLM cannot return the log-probs "
            f"that the loss needs; set one of them to 1"
        )


def _sinks(
    config: TrainConfig, model_dir: Path, policy: DeferralPolicy, local: WeightSink | None
) -> Iterator[WeightSink]:
    """Yield the sinks for the engines that sample, then for the servers that follow the training."""
    if local is not None:
        yield local
    targets: list[ReloadTarget] = [
        IHGRPOReload(url, _read_key(config.follower_key_file)) for url in config.follower_urls
    ]
    key = _read_key(config.generation_key_file)
    if config.generation_urls and config.weight_transfer != "files":
        from trainer.weight_sync.servers import VLLMServers
        from trainer.weight_sync.sinks import TransferSink, address_towards

        servers = VLLMServers(config.generation_urls, key)
        yield TransferSink(
            config.weight_transfer,
            servers,
            model_dir,
            host=address_towards(config.generation_urls[0]),
            port=config.weight_transfer_port,
            shared=True,
        )
    else:
        targets += [VLLMReload(url, key) for url in config.generation_urls]
    if targets and config.weights_dir is not None:
        yield CheckpointSink(config.weights_dir, model_dir, policy, targets)


def make_rewards(config: TrainConfig) -> RewardSet:
    """Return the rewards of the run, an async context manager.

    Raises:
        RewardConfigError: a reward cannot be loaded.
    """
    scorer: RayRewardScorer | None = None
    if config.ray is not None and config.ray.reward_actors:
        scorer = _ray_worker_module().RayRewardScorer(config.ray)
    return RewardSet(config.rewards, scorer=scorer)


def ray_connection(config: TrainConfig) -> AbstractContextManager[None]:
    """Return a connection to the run's Ray cluster; does nothing for a run without one.

    Raises:
        ConfigError: Ray is not installed.
        EngineError: the cluster is not reachable.
    """
    return nullcontext() if config.ray is None else _ray_worker_module().connected(config.ray)


def _ray_worker_module() -> ModuleType:
    try:
        from trainer.ray import worker as ray_worker
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise ConfigError("section [ray] needs Ray: pip install 'ih-grpo[ray]'") from None
    return ray_worker


def _read_key(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"cannot read the key file {path}: {error.strerror}") from None
