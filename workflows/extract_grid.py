"""Cache grid features as a script: `triptych extract grid`, on Ray unless --engine local is given.

ray job submit --working-dir . -- python workflows/extract_grid.py --images DIR --out STORE ...
python workflows/extract_grid.py --images DIR --out STORE ...
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Started as a file, Python looks beside it only; the packages lie one folder up, unless they are installed.
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    from workflows.cli import script

    sys.exit(script("grid"))
