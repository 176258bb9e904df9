# Sourced by the other scripts: goes to the repository's root and puts its virtual environment on PATH.
# PYTHON= names another interpreter. Arguments: requirement files to install (only when they have changed).
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-}
for candidate in python3 python3.12 python3.11 python3.13; do
  if [ -z "$python" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python=$candidate
  fi
done
if [ -z "$python" ] || ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "Python 3.11 or newer is needed, but ${python:-python3} is not: name one with PYTHON=/path/to/python3.11" >&2
  exit 2
fi
venv=.venv-$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if [ ! -x "$venv/bin/python" ]; then
  "$python" -m venv "$venv"
fi
PATH="$PWD/$venv/bin:$PATH"
wanted=$(cat "$@" | cksum)
if [ "$(cat "$venv/installed-$#" 2>/dev/null)" != "$wanted" ]; then
  echo "Installing $* into $venv (a few minutes the first time) ..."
  python -m pip install --quiet --disable-pip-version-check $(printf -- '-r %s ' "$@")
  echo "$wanted" > "$venv/installed-$#"
fi
