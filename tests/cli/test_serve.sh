# walsh serve: starts real servers on loopback and asks them (serve_test.py), and a browser that uses the page
# (serve_page.py, where there is a chromedriver), and the openai package (serve_openai.py, where it is).
. "$(dirname "$0")/lib.sh"
if ! command -v python3 >/dev/null; then
    echo "skipped: the clients of this test need python3"
    exit 0
fi
last=serve
# The man page has every option of the help.
works help serve
for option in $(sed -n 's/^  .*--\([a-z-]*\)\( .*\|$\)/\1/p' "$work/out"); do
    sed 's/\\-/-/g' "$CLI_SOURCE/docs/walsh-serve.1" | grep -q -- "^\.B.*--$option" || fails "docs/walsh-serve.1 lacks --$option"
done
: >"$work/err"
export PYTHONDONTWRITEBYTECODE=1
for script in serve_test.py serve_page.py serve_openai.py; do
    last="serve ($script)"
    python=python3
    [ $script = serve_openai.py ] && python=${SERVE_PYTHON:-python3}
    "$python" "$(dirname "$0")/$script" >"$work/out" || fails "$script"
    grep '^skipped' "$work/out"
    [ $failures -eq 0 ] || cat "$work/out"
done
finish
