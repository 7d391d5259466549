"""What an attempt might hold and did, beside how many others memory ended it; how busy it was."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_BYTES = ("cap_bytes", "budget_bytes", "peak_bytes")


def upgrade() -> None:
    for name in _BYTES:
        op.add_column("attempts", sa.Column(name, sa.BigInteger()))
    op.add_column("attempts", sa.Column("neighbours", sa.Integer()))
    op.add_column("attempts", sa.Column("busy", sa.Double()))


def downgrade() -> None:
    for name in ("busy", "neighbours", *reversed(_BYTES)):
        op.drop_column("attempts", name)
