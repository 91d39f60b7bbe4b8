#!/usr/bin/env bash
# Makes $VENV hold exactly requirements.lock; a second call finds the stamp and does nothing. Run by `make env`.
set -euo pipefail
cd "$(dirname "$0")"

fail() { echo "error: $1" >&2; echo "  $2" >&2; exit 1; }

stamp="$VENV/requirements.lock.hash"
wanted=$(git hash-object --no-filters requirements.lock)
if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && "$VENV/bin/python" -c "" 2>/dev/null; then exit 0; fi

# A name on the PATH may be a version manager's stand-in that runs nothing: ask each one.
python=""
for name in python3.11 python3.12 python3.13 python3 python; do
    if "$name" -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null; then python=$name; break; fi
done
[ -n "$python" ] || fail "no Python 3.11 or later on the PATH" "install one, for instance from python.org"
"$python" -c "import venv, ensurepip" 2>/dev/null ||
    fail "$($python --version) comes without its venv module" "Debian and Ubuntu: apt install python3-venv"

clear=""
if [ -e "$stamp" ]; then
    clear="--clear" # ours, of another lock
elif [ -n "$(ls -A "$VENV" 2>/dev/null)" ] && [ ! -e "$VENV/pyvenv.cfg" ]; then
    fail "$VENV holds other files and is no Python environment" "name another folder: make env POST_VENV=DIR"
fi

echo "setting up $VENV with $($python --version): PyTorch, Ray and MLflow take some minutes the first time"
rm -f "$stamp"
"$python" -m venv $clear "$VENV"
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
echo "$wanted" >"$stamp"
