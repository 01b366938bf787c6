from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.deferral.policy import DeferralPolicy
from trainer.quickstart.config import WarmStartConfig
from trainer.training.config import (
    _WARM_START_FIELDS,
    ConfigError,
    TrainConfig,
    find_recipe,
    load_config,
    recipe_folder,
)

RECIPES = [
    path
    for path in sorted((Path(__file__).parents[3] / "recipes").glob("*.toml"))
    if "warm-start" not in path.stem  # recipes of another command
]
MINIMAL = 'model = "m"\ndata = ["d.parquet"]\nrun_dir = "runs/x"\n'


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(MINIMAL)
    return path


def test_defaults_are_those_of_the_paper(recipe: Path) -> None:
    config = load_config(recipe)
    assert (config.group_size, config.prompts_per_step, config.draws_per_rollout) == (8, 16, 48)
    assert (config.temperature, config.top_p) == (1.0, 1.0)
    assert (config.min_group_std, config.min_valid_samples) == (1e-3, 4)
    assert (config.clip_low, config.clip_high, config.dual_clip) == (0.2, 0.28, 3.0)
    assert (config.learning_rate, config.max_grad_norm, config.mini_batch) == (1e-6, 1.0, 128)
    assert config.effective_hierarchy_weight == 0.001
    assert config.resolve_policy(Path("m")) == DeferralPolicy()


@pytest.mark.parametrize(("method", "weight", "mode"), [
    ("ih-grpo", 0.001, "deferred"), ("grpo-delayed", 0.0, "deferred"), ("grpo-immediate", 0.0, "immediate"),
])  # fmt: skip
def test_method_is_one_field(recipe: Path, method: str, weight: float, mode: str) -> None:
    config = load_config(recipe, [f"method={method}"])
    assert (config.effective_hierarchy_weight, config.resolve_policy(Path("m")).mode) == (weight, mode)


def test_set_accepts_toml_values_bare_words_and_dotted_keys(recipe: Path) -> None:
    config = load_config(
        recipe,
        ["steps=7", "model=/some/where", 'data=["a.jsonl", "b.jsonl"]', "policy.max_turns=3", "eager=false"],
    )
    assert (config.steps, config.model, config.data) == (7, "/some/where", ("a.jsonl", "b.jsonl"))
    assert config.eager is False
    assert config.resolve_policy(Path("m")).max_turns == 3


def test_policy_starts_from_checkpoint(recipe: Path, tmp_path: Path) -> None:
    DeferralPolicy(prompt="brief-v1", max_turns=4).save(tmp_path)
    policy = load_config(recipe, [f"model={tmp_path}", "policy.max_turns=2"]).resolve_policy(tmp_path)
    assert (policy.prompt, policy.max_turns) == ("brief-v1", 2)


@pytest.mark.parametrize("thinking", ["true", "false"])
def test_policy_records_whether_the_model_thought(recipe: Path, thinking: str) -> None:
    policy = load_config(recipe, [f"thinking={thinking}"]).resolve_policy(Path("m"))
    assert policy.thinking is (thinking == "true")


@pytest.mark.parametrize(("override", "message"), [
    ("xyzzy=1", "xyzzy: unknown field$"),
    ("stepz=3", "stepz: unknown field. Did you mean steps"),
    ("ray.adress=x", "ray.adress: unknown field. Did you mean address"),
    ("device=tpu", "device: unknown device 'tpu': use auto, cpu, cuda"),
    ("steps=0", "steps: .* got 0"),
    ("method=ppo", "method: .* got 'ppo'"),
    ("policy.max_turns=0", "policy: max_turns: .* got 0"),
    ("policy.turns=1", "policy: turns: unknown field. Did you mean max_turns"),
    ("max_staleness=-1", "max_staleness: .* got -1"),
    ("policy.mode=immediate", "policy: mode is set by execution"),
    ("min_valid_samples=9", "min_valid_samples is 9, more than group_size 8"),
    ("mini_batch_samples=48", "mini_batch_samples is 48: it must divide the 128"),
    ("micro_batch_samples=3", "micro_batch_samples is 3: it must divide the 128"),
    ("sandbox=runner", "runner_token_file is missing"),
    ("warmup_steps=3", "warmup_steps needs lr_schedule"),
    ("steps", "not of the form KEY=VALUE"),
    ("rewards=[]", "rewards: at least one reward needs a weight other than 0$"),
    ('rewards=[{name="maths"}]', r"rewards\.0: name: unknown reward 'maths'\. Did you mean 'math'"),
    ('rewards=[{name="m:f",wieght=2}]', r"rewards\.0\.wieght: unknown field\. Did you mean weight"),
    ('rewards=[{name="length",options={limit=3}}]', r"rewards\.0: options: 'length': .* options are soft"),
    ('rewards=[{name="math",weight=0}]', "rewards: at least one reward needs a weight"),
    ("min_group_std=0.6", r"min_group_std is 0\.6, but .* deviation of at most 0\.577: every group would"),
    ("decontaminate_ngram=2", "decontaminate_ngram: .* got 2"),
    ("validation.every=10", "validation.data: is missing"),
    ('validation={data="v",evry=3}', r"validation\.evry: unknown field\. Did you mean every"),
    ('validation={data="v",every=15}', "validation.every is 15 and save_every is 10: one must be a multiple"),
    ("push_to=name", "push_to: 'name' is not a repository: use a name such as org/name"),
    ("seed.x=1", "seed: .* got"),
])  # fmt: skip
def test_error_names_field(recipe: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(recipe, [override])


def test_recognizes_warm_start_recipe() -> None:
    warm_start = Path(__file__).parents[3] / "recipes" / "quickstart-warm-start.toml"
    with pytest.raises(ConfigError, match="looks like a recipe for `ih-grpo train warm-start`"):
        load_config(warm_start)


def test_rewards_are_tables(recipe: Path) -> None:
    assert [(spec.name, spec.weight) for spec in load_config(recipe).rewards] == [("math", 1.0)]
    second = 'name = "length"\nweight = 0.1\noptions = {soft_limit = 9}\n'
    recipe.write_text(f'{MINIMAL}\n[[rewards]]\nname = "math"\n\n[[rewards]]\n{second}')
    assert [(spec.name, spec.weight, spec.options) for spec in load_config(recipe).rewards] == [
        ("math", 1.0, {}),
        ("length", 0.1, {"soft_limit": 9}),
    ]


@pytest.mark.parametrize(
    "overrides",
    [
        ["min_group_std=0.57"],
        ["min_group_std=0.7", "min_valid_samples=2"],
        ["min_group_std=9", 'rewards=[{name="math",weight=20.0}]'],
        ["min_group_std=9", 'rewards=[{name="math"},{name="own:reward"}]'],
    ],
)
def test_filters_that_a_group_can_pass(recipe: Path, overrides: list[str]) -> None:
    load_config(recipe, overrides)


def test_accepts_single_source_without_list(recipe: Path) -> None:
    assert load_config(recipe, ["data=quickstart:5"]).data == ("quickstart:5",)


def test_checkpoints_are_between_rollouts(recipe: Path) -> None:
    with pytest.raises(ConfigError, match="save_every is 3: it must be a multiple of the 2"):
        load_config(recipe, ["mini_batch_samples=64", "save_every=3"])


def test_validation_is_between_rollouts(recipe: Path) -> None:
    overrides = ["mini_batch_samples=64", 'validation={data="v",every=5}']
    with pytest.raises(ConfigError, match=r"validation\.every is 5: it must be a multiple of the 2"):
        load_config(recipe, overrides)


def test_validation_accepts_single_source(recipe: Path) -> None:
    settings = load_config(
        recipe, ["validation.data=quickstart-held-out:20", "validation.every=5"]
    ).validation
    assert settings is not None
    assert (settings.data, settings.every, settings.samples) == (("quickstart-held-out:20",), 5, 1)


def test_names_missing_and_invalid_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read recipe .*nowhere\.toml"):
        load_config(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match=r"Did you mean recipes/quickstart\.toml\?"):
        load_config(Path("quickstart"))
    broken = tmp_path / "broken.toml"
    broken.write_text("steps = = 3")
    with pytest.raises(ConfigError, match=r"broken\.toml is not TOML"):
        load_config(broken)
    broken.write_text('data = ["d"]')
    with pytest.raises(ConfigError, match="model: is missing"):
        load_config(broken)


@pytest.mark.parametrize(("changes", "message"), [
    ({"generation": "vllm", "weight_transfer": "gloo"}, "max_staleness is 2: it needs generation 'embedded'"),
    ({"ray": {}}, r"max_staleness is 2: it needs generation 'embedded' and no \[ray\]"),
    ({"steps": 2}, "max_staleness is 2, but the run has only 2 rollouts"),
    ({"steps": 4, "save_every": 4, "mini_batch_samples": 64}, "the run has only 2 rollouts"),
])  # fmt: skip
def test_rejects_impossible_staleness(changes: dict[str, object], message: str) -> None:
    values: dict[str, object] = {"model": "m", "data": ["d"], "run_dir": "r", "max_staleness": 2}
    with pytest.raises(ValidationError, match=message):
        TrainConfig.model_validate({**values, **changes})


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_short_and_loads(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 40
    assert isinstance(load_config(path), TrainConfig)


def test_recipes_exist() -> None:
    assert {path.stem for path in RECIPES} >= {"qwen3-1.7b", "qwen3-4b", "qwen3-8b", "quickstart"}


def test_every_field_is_documented() -> None:
    assert [name for name, field in TrainConfig.model_fields.items() if not field.description] == []


@pytest.mark.parametrize("name", ["recipes/quickstart-warm-start.toml", "quickstart-warm-start.toml"])
def test_finds_recipe_outside_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe(Path(name)) == recipe_folder() / "quickstart-warm-start.toml"


def test_existing_file_has_priority_and_unknown_path_is_unchanged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    own = Path("recipes/quickstart.toml")
    own.parent.mkdir()
    own.write_text("")
    assert find_recipe(own) == own
    assert find_recipe(Path("recipes/none.toml")) == Path("recipes/none.toml")
    assert find_recipe(tmp_path / "quickstart.toml") == tmp_path / "quickstart.toml"


def test_warm_start_hint_uses_existing_fields() -> None:
    fields = WarmStartConfig.model_fields.keys() - TrainConfig.model_fields.keys()
    assert fields >= _WARM_START_FIELDS


@pytest.mark.parametrize(("method", "expected"), [
    ("ih-grpo", (0.001, 0.28, 3.0, "token-mean", True, True, "deferred")),
    ("eh-grpo", (0.0, 0.28, 3.0, "token-mean", True, True, "deferred")),
    ("grpo", (0.0, 0.2, 0.0, "sample-mean", True, False, "deferred")),
    ("dapo", (0.0, 0.28, 0.0, "token-mean", True, False, "deferred")),
    ("dr-grpo", (0.0, 0.2, 0.0, "constant", False, False, "deferred")),
    ("simpletir", (0.0, 0.28, 0.0, "token-mean", True, True, "deferred")),
    ("grpo-delayed", (0.0, 0.28, 3.0, "token-mean", True, True, "deferred")),
    ("grpo-immediate", (0.0, 0.28, 3.0, "token-mean", True, True, "immediate")),
])  # fmt: skip
def test_a_method_sets_what_the_recipe_leaves_out(
    recipe: Path, tmp_path: Path, method: str, expected: tuple[object, ...]
) -> None:
    found = load_config(recipe, [f"method={method}"])
    mode = found.resolve_policy(tmp_path).mode
    assert (
        found.effective_hierarchy_weight, found.clip_high, found.dual_clip, found.aggregation,
        found.scale_advantages, found.mask_void, mode,
    ) == expected  # fmt: skip
    assert load_config(recipe, [f"method={method}", "clip_high=0.3"]).clip_high == 0.3


def test_methods_are_immediate_or_delayed(recipe: Path, tmp_path: Path) -> None:
    for method in ("ih-grpo", "grpo", "dapo", "dr-grpo", "simpletir"):
        found = load_config(recipe, [f"method={method}", "execution=immediate"])
        assert found.resolve_policy(tmp_path).mode == "immediate"
    message = "needs 'delayed'. Did you mean method 'grpo-immediate'?"
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(recipe, ["method=grpo-delayed", "execution=immediate"])
    with pytest.raises(ConfigError, match=r"needs 'delayed'$"):
        load_config(recipe, ["method=grpo-delayed", "execution=soon"])


def test_tables_of_a_recipe_are_checked(recipe: Path) -> None:
    found = load_config(recipe, ["lora.rank=8", "off_policy.weights=token_mask"])
    assert found.lora is not None
    assert (found.lora.rank, found.lora.effective_alpha) == (8, 16)
    assert found.off_policy.bounds == (0.5, 5.0)
    for override in ("lora.rank=0", "off_policy.weights=all", "off_policy.veto_below=2", "dual_clip=0.5"):
        with pytest.raises(ConfigError, match=override.split("=")[0].split(".")[0]):
            load_config(recipe, [override])


def test_an_adapter_that_is_continued_has_its_own_policy(recipe: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    assert load_config(recipe, [f"lora.adapter={adapter}"]).resolve_policy(tmp_path).answer == "boxed"
    DeferralPolicy(answer="any", max_turns=9, mode="immediate").save(adapter)
    policy = load_config(recipe, [f"lora.adapter={adapter}", "policy.max_turns=4"]).resolve_policy(tmp_path)
    assert (policy.answer, policy.max_turns, policy.mode) == ("any", 4, "deferred")


def rate_factors(schedule: str, *, steps: int, warmup: int = 0) -> list[float]:
    values = {"model": "m", "data": ["d"], "run_dir": "r", "steps": steps, "lr_schedule": schedule}
    config = TrainConfig.model_validate({**values, "warmup_steps": warmup})
    return [config.rate_factor(step) for step in range(steps)]


def test_known_schedules() -> None:
    assert rate_factors("constant", steps=3) == [1, 1, 1]
    assert rate_factors("constant_with_warmup", steps=3, warmup=1) == [0.5, 1, 1]
    assert rate_factors("linear", steps=4) == [1, 0.75, 0.5, 0.25]
    assert rate_factors("linear", steps=5, warmup=1) == [0.5, 1, 0.75, 0.5, 0.25]
    assert rate_factors("cosine", steps=2) == pytest.approx([1, 0.5])


@given(
    schedule=st.sampled_from(["constant_with_warmup", "linear", "cosine"]),
    steps=st.integers(1, 50),
    warmup=st.integers(0, 60),
)
def test_no_step_has_rate_0_and_rate_rises_then_falls(schedule: str, steps: int, warmup: int) -> None:
    found = rate_factors(schedule, steps=steps, warmup=warmup)
    assert all(0 < factor <= 1 for factor in found)
    top = min(warmup, steps - 1)
    assert found[: top + 1] == sorted(found[: top + 1])
    assert found[top:] == sorted(found[top:], reverse=True)
