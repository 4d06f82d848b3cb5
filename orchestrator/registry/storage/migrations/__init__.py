"""The schema's history. A shipped migration is never edited; a new one is a new file in versions/ and a new entry here.

The list stands here as plain text so that a command need not import Alembic to see that its registry is up to date;
a test holds it equal to the files.
"""

from __future__ import annotations

#: Every schema there has been, oldest first.
REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007")
HEAD = REVISIONS[-1]
