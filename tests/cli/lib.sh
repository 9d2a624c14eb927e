# What the scripts of this folder share. Each sources this file and ends with `finish`.
# A case is a call of walsh followed by checks of $code, $work/out and $work/err; the work directory's path reads as WORK,
# the source tree's as SOURCE in messages.
set -u
export LC_ALL=C
for name in $(env | sed -n 's/^\(WALSH_[A-Z_]*\)=.*/\1/p'); do unset "$name"; done
: "${CLI_WALSH:?}" "${CLI_JSON_CHECK:?}" "${CLI_EXAMPLE:?}" "${CLI_EXAMPLE_BATCH:?}" "${CLI_SOURCE:?}"
[ -x "$CLI_WALSH" ] || { echo "no program at $CLI_WALSH" && exit 1; }
work=$(mktemp -d "${TMPDIR:-/tmp}/walsh-cli.XXXXXX")
export HF_HOME="$work/no-cache"
unset HF_HUB_CACHE
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
model=$CLI_SOURCE/models/bookworm-8m
text=$CLI_SOURCE/data/valid.txt
failures=0
code=0

fails() { # message
    failures=$((failures + 1))
    echo "FAILED: $1"
    echo "  command: walsh $last"
    echo "  exit $code, stdout:"
    head -c 2000 "$work/out" | sed 's/^/    /'
    echo "  stderr:"
    head -c 2000 "$work/err" | sed 's/^/    /'
    if [ $failures -ge 20 ]; then
        echo "20 failed; the rest is left out"
        exit 1
    fi
}

walsh() { # arguments: run it, standard input empty
    last=$*
    "$CLI_WALSH" "$@" </dev/null >"$work/out" 2>"$work/err"
    code=$?
}

message() { sed -e "s|$work|WORK|g" -e "s|$CLI_SOURCE|SOURCE|g" "$work/err"; }

exits() { [ "$code" -eq "$1" ] || fails "exit $code, expected $1"; }

says() { # exact standard error
    [ "$(message)" = "$1" ] || fails "stderr differs, expected: $1"
}

prints() { # exact standard output
    [ "$(cat "$work/out")" = "$1" ] || fails "stdout differs, expected: $1"
}

silent() { [ ! -s "$work/out" ] || fails "something on stdout"; }

# Wrong usage: exit 2, the message and a pointer to the help, nothing on stdout.
misuse() { # message arguments...
    expected=$1
    shift
    walsh "$@"
    exits 2
    says "walsh $1: $expected
See 'walsh help $1'."
    silent
}

# A failure: exit 1, the message, nothing on stdout.
refuses() { # message arguments...
    expected=$1
    shift
    walsh "$@"
    exits 1
    says "walsh $1: $expected"
    silent
}

works() { # arguments...
    walsh "$@"
    exits 0
}

# The value at a path of the JSON object on stdout; a failure where stdout is not one object or lacks the path.
value() { # path
    "$CLI_JSON_CHECK" "$1" <"$work/out" || echo "no value at $1"
}

has() { # paths...: stdout is one JSON object with all of them
    "$CLI_JSON_CHECK" "$@" <"$work/out" >/dev/null 2>"$work/json" || fails "JSON: $(cat "$work/json")"
}

same() { # what a b
    [ "$2" = "$3" ] || fails "$1: '$2' and '$3' differ"
}

true_that() { # what, awk expression
    awk "BEGIN { exit !($2) }" || fails "$1: $2"
}

finish() {
    [ "$failures" -eq 0 ] || echo "$failures failed"
    [ "$failures" -eq 0 ]
    exit $?
}
