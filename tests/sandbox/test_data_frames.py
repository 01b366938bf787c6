"""Packages for tables and learning in a real container: formats of files, threads and processes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

import pytest

from service.sandbox.base import SessionLimits
from service.sandbox.docker.sandbox import DockerSandbox
from service.sandbox.files import FileSession

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]

CSV = b"month,revenue\nJanuary,10.5\nFebruary,12\nMarch,7.25\n"


@contextlib.asynccontextmanager
async def opened(sandbox: DockerSandbox) -> AsyncGenerator[FileSession]:
    session = sandbox.file_session(SessionLimits(run_limit_s=60.0))
    try:
        yield session
    finally:
        await session.close()


async def output(session: FileSession, code: str) -> str:
    await session.invoke(code)
    result = await session.flush()
    assert result.status == "ok", result
    return result.stdout.strip()


async def one_chunk(data: bytes) -> AsyncIterator[bytes]:
    await asyncio.sleep(0)
    yield data


async def test_tables_are_read_and_written_across_runs_and_failures(docker_sandbox: DockerSandbox) -> None:
    async with opened(docker_sandbox) as session:
        await session.lease()
        await session.put("sales.csv", len(CSV), one_chunk(CSV))
        first = (
            "import pandas as pd\n"
            "sales = pd.read_csv('/inputs/sales.csv')\n"
            "sales.to_excel('sales.xlsx', index=False)\n"
            "sales.to_parquet('sales.parquet')\n"
            "sales.loc[sales.revenue.idxmax(), 'month']"
        )
        assert await output(session, first) == "'February'"
        # The thread pools of Arrow ended with the first run. Each later run gets new ones.
        read = (
            "print(pd.read_excel('sales.xlsx').equals(sales),\n"
            "      pd.read_parquet('sales.parquet').equals(sales),\n"
            "      pd.read_csv('/inputs/sales.csv', engine='pyarrow').equals(sales))"
        )
        assert await output(session, read) == "True True True"
        await session.invoke("sales = None\n1 / 0")
        assert (await session.flush()).status == "error"
        assert await output(session, read) == "True True True"


async def test_models_are_fitted_without_more_processes(docker_sandbox: DockerSandbox) -> None:
    async with opened(docker_sandbox) as session:
        fit = (
            "import os, numpy as np\n"
            "from sklearn.ensemble import RandomForestClassifier\n"
            "from sklearn.linear_model import LinearRegression, LogisticRegression\n"
            "from sklearn.model_selection import cross_val_score\n"
            "x = np.random.default_rng(0).random((200, 3))\n"
            "y = (x[:, 0] > 0.5).astype(int)\n"
            "forest = RandomForestClassifier(n_estimators=20, n_jobs=-1, random_state=0).fit(x, y)\n"
            "print(forest.score(x, y) > 0.95)\n"
            "print(cross_val_score(LogisticRegression(), x, y, n_jobs=4).mean() > 0.8)\n"
            "print(np.allclose(LinearRegression().fit(x, x @ [1, 2, 3]).coef_, [1, 2, 3]))\n"
            "print(sum(name.isdigit() for name in os.listdir('/proc')) <= 4)"
        )
        assert await output(session, fit) == "True\n" * 3 + "True"
        assert await output(session, "forest.predict(x[:1])[0] == y[0]") == "np.True_"
