# walsh serve: starts real servers on loopback and asks them (serve_test.py).
. "$(dirname "$0")/lib.sh"
if ! command -v python3 >/dev/null; then
    echo "skipped: the clients of this test need python3"
    exit 0
fi
last=serve
: >"$work/err"
PYTHONDONTWRITEBYTECODE=1 python3 "$(dirname "$0")/serve_test.py" >"$work/out" || fails "serve_test.py"
grep '^skipped' "$work/out"
[ $failures -eq 0 ] || cat "$work/out"
finish
