"""`python -m pyderp`."""

from __future__ import annotations

from pyderp.cli.main import main

if __name__ == "__main__":
    main()
