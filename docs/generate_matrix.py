"""Writes docs/reference/methods.md: which method works on which model (tests/matrix.py).

python docs/generate_matrix.py
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reference" / "methods.md"


def main() -> int:
    sys.path.insert(0, str(ROOT / "tests"))
    from matrix import page

    text = page()
    if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        PAGE.write_text(text, encoding="utf-8")
        print("docs/reference/methods.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
