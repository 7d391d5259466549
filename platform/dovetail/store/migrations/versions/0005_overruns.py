"""How many times what its plans foresee an attempt held, when it was ended for that."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("attempts", sa.Column("overrun", sa.Double()))


def downgrade() -> None:
    op.drop_column("attempts", "overrun")
