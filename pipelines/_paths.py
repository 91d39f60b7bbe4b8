"""Make this checkout's two source roots importable, and nothing else of `pipelines/`; import it first.

Python puts the script's own folder first on `sys.path`; there `evaluate.py` would answer a library's optional
`import evaluate`. That entry is replaced by `platform/` and `model/`.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0:1] = [str(ROOT / "platform"), str(ROOT / "model")]
