"""The first two tables. Databases from before the first migration have them already and stay unchanged."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _deleted_with(column: str) -> sa.ForeignKey:
    return sa.ForeignKey(column, ondelete="CASCADE")


def upgrade() -> None:
    op.create_table(
        "responses",
        sa.Column("id", sa.String(80), primary_key=True),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("background", sa.Boolean, nullable=False),
        sa.Column("previous_id", sa.String(80)),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("input", sa.Text, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("runner", sa.String(200)),
        sa.Column("seen_at", sa.Double),
        if_not_exists=True,
    )
    for column in ("created_at", "expires_at", "status"):
        op.create_index(f"ix_responses_{column}", "responses", [column], if_not_exists=True)
    op.create_table(
        "response_events",
        sa.Column("response_id", sa.String(80), _deleted_with("responses.id"), primary_key=True),
        sa.Column("first", sa.Integer, primary_key=True),
        sa.Column("last", sa.Integer, nullable=False),
        sa.Column("events", sa.LargeBinary, nullable=False),
        if_not_exists=True,
    )
