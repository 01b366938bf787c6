"""Use per key and hour instead of seconds of code per day, and an index for the bytes of a key."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    hours = op.create_table(
        "usage_hours",
        sa.Column("owner", sa.String(64), primary_key=True),
        sa.Column("hour", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("model", sa.String(200), primary_key=True),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("input_tokens", sa.BigInteger, nullable=False),
        sa.Column("output_tokens", sa.BigInteger, nullable=False),
        sa.Column("sandbox_seconds", sa.Double, nullable=False),
    )
    op.create_index("ix_usage_hours_hour", "usage_hours", ["hour"])
    op.create_index("ix_responses_owner", "responses", ["owner"], if_not_exists=True)
    days = sa.table("sandbox_usage", sa.column("owner"), sa.column("day"), sa.column("seconds"))
    counts = {"model": "", "requests": 0, "input_tokens": 0, "output_tokens": 0}
    rows = [
        {"owner": owner, "hour": _midnight(day), "sandbox_seconds": seconds, **counts}
        for owner, day, seconds in op.get_bind().execute(sa.select(days)).all()
    ]
    if rows:
        op.bulk_insert(hours, rows)
    op.drop_table("sandbox_usage")


def _midnight(day: str) -> int:
    return int(datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC).timestamp())
