# walsh serve: starts real servers on loopback and asks them (serve_test.py, serve_bounds.py), and a browser that uses the page
# (serve_page.py, where there is a chromedriver), and the openai package (serve_openai.py, where it is).
. "$(dirname "$0")/lib.sh"
if ! command -v python3 >/dev/null; then
    echo "skipped: the clients of this test need python3"
    exit 0
fi
last=serve
: >"$work/err"
export PYTHONDONTWRITEBYTECODE=1
for script in serve_test.py serve_bounds.py serve_page.py serve_openai.py; do
    last="serve ($script)"
    python=python3
    [ $script = serve_openai.py ] && python=${SERVE_PYTHON:-python3}
    "$python" "$(dirname "$0")/$script" >"$work/out" || fails "$script"
    grep '^skipped' "$work/out"
    [ $failures -eq 0 ] || cat "$work/out"
done
finish
