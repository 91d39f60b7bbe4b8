"""How every script in `pipelines/` ends: exit codes, and one clear line for a user's mistake."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

from post_platform.errors import PostError


def run(main: Callable[[], None]) -> None:
    """Run a script's `main`; a PostError becomes `error: ...` (and its hint) on stderr and exit code 1.

    Wrong usage exits 2 (argparse); Ctrl-C exits 130 and a closed pipe 0, as shells expect. Anything else is a bug and
    keeps its traceback.
    """
    logging.basicConfig(level=os.environ.get("POST_LOG", "INFO"), format="%(message)s")
    try:
        main()
    except PostError as error:
        print(f"error: {error}" + (f"\n  {error.hint}" if error.hint else ""), file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
