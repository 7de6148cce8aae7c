"""Cache patch features as a script: `triptych extract patches`, on Ray unless --engine local is given.

ray submit workflows/cluster.yaml workflows/extract_patches.py -- --images DIR --out STORE ...
ray job submit --working-dir . -- python workflows/extract_patches.py --images DIR --out STORE ...
python workflows/extract_patches.py --images DIR --out STORE ...
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Started as a file, Python looks beside it only. The packages lie one folder up; or where file_mounts put them, as
    # `ray submit` copies this file alone into the home folder; or they are installed.
    for root in (Path(__file__).resolve().parents[1], Path.home() / "triptych"):
        if (root / "workflows" / "cli.py").is_file():
            sys.path.insert(0, str(root))
            break
    from workflows.cli import script

    sys.exit(script("patches"))
