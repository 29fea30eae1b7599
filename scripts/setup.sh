#!/usr/bin/env bash
# Makes the environment in .venv, or reuses the one that is there; does nothing when it is up to date.
# What it does is:  python3.12 -m venv .venv && .venv/bin/pip install -e ".[dev]" -c constraints.txt
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

wanted='import sys; sys.exit(not ((3, 12) <= sys.version_info[:2] < (3, 14)))'
find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3.12 python3.13 python3 python "$HOME"/.pyenv/versions/3.1[23].*/bin/python; do
        if "$candidate" -c "$wanted" >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    if command -v uv >/dev/null 2>&1 && uv python find 3.12 2>/dev/null; then
        return
    fi
    echo "implicitexp needs Python 3.12 or 3.13, and none was found on PATH, in ~/.pyenv or by uv." >&2
    echo "Install one (apt install python3.12 python3.12-venv | brew install python@3.12 | uv python install 3.12)" >&2
    echo "or name it:  PYTHON=/path/to/python3.12 $0" >&2
    exit 1
}

stamp=.venv/.implicitexp
state="$(cat pyproject.toml constraints.txt | cksum)"
if [ -x .venv/bin/python ] && [ "$(cat $stamp 2>/dev/null)" = "$state" ]; then
    exit 0
fi
if ! .venv/bin/python -c "$wanted" >/dev/null 2>&1; then
    python="$(find_python)"
    echo "Making .venv with $("$python" --version) ..." >&2
    rm -rf .venv
    "$python" -m venv .venv
fi
echo "Installing implicitexp into .venv (a minute or two, about 1.5 GB) ..." >&2
.venv/bin/python -m pip install -qq --disable-pip-version-check -e ".[dev]" -c constraints.txt
echo "$state" >$stamp
