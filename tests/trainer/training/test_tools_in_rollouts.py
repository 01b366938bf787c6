"""Rollouts and evaluations whose code calls tools, in real containers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from service.deferral.policy import DeferralPolicy
from service.deferral.prompt import with_instruction
from service.engines.base import Sampling
from service.sandbox.docker.pool import DockerSandbox, DockerSandboxSettings
from tests.support.reply_engine import ReplyEngine
from tests.support.scripted import EOS, PlainScorer
from trainer.data.problems import Problem
from trainer.environments.settings import ToolSettings
from trainer.environments.tools import RolloutTools, prompt_section
from trainer.evaluation.backends import LocalBackend
from trainer.training.episodes import LocalRolloutWorker, RolloutSettings, Sample

pytestmark = pytest.mark.docker

SEARCH = ToolSettings(function="trainer.environments.multi_hop:search", read_only=True)
CHAIN = (
    "\n```python\nfrom tools import search\na = search('boss of Ada')[0].split()[-1]\n```\nthen\n"
    "```python\nb = search('home of ' + a)[0].split()[-1]\nprint(b)\n```<tool_call>"
)
