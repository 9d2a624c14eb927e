# walsh quantize --bits 2,3,4: several widths from one calibration, each in a directory of its own.
. "$(dirname "$0")/lib.sh"
quick="--samples 4 --sample-tokens 128 --passes 0"

same_files() { # what a b
    diff -r "$2" "$3" >"$work/diff" 2>&1 || fails "$1: $(cat "$work/diff")"
}

# shellcheck disable=SC2086 # $quick is a list of options
{
    works quantize "$model" "$work/many/" --bits 4,2,3 $quick --dry-run --json
    predicted=$(value outputs.0.bytes_predicted)
    [ ! -e "$work/many-2bpw" ] && [ ! -e "$work/many-2bpw.partial" ] || fails "a dry run leaves files"
    works quantize "$model" "$work/many/" --bits 4,2,3 $quick --json
    has outputs.0.layers.34.proxy outputs.2.bpw outputs.1.seconds
    same "the first is the narrowest" "$(value outputs.0.bits)" 2
    same "its directory" "$(value outputs.0.directory)" "$work/many-2bpw"
    same "predicted and real bytes" "$(cat "$work/many-2bpw"/*.safetensors | wc -c | tr -d ' ')" "$predicted"
    for bits in 2 3 4; do
        [ ! -e "$work/many-${bits}bpw.partial" ] || fails "the working directory of $bits bits stays behind"
        works eval "$work/many-${bits}bpw" --activations f32 --text "$text" --max-tokens 3000 --reference "$model" --json
        eval "kl$bits=$(value kl)"
    done
    true_that "KL of 2, 3, 4 bits: $kl2, $kl3, $kl4" "$kl2 > 2 * $kl3 && $kl3 > 2 * $kl4 && $kl4 < 0.1"

    # three and four stages: each bit more is closer
    works quantize "$model" "$work/wide" --bits 5,6,7,8 --samples 2 --sample-tokens 128 --passes 0
    for bits in 5 6 7 8; do
        works eval "$work/wide-${bits}bpw" --activations f32 --text "$text" --max-tokens 2000 --reference "$model" --json
        eval "kl$bits=$(value kl)"
    done
    true_that "KL of 4 to 8 bits: $kl4, $kl5, $kl6, $kl7, $kl8" \
        "$kl4 > 1.5 * $kl5 && $kl5 > 1.5 * $kl6 && $kl6 > 1.5 * $kl7 && $kl7 > 1.5 * $kl8"

    # the widest is what a job of its own gives
    works quantize "$model" "$work/four" --bits 4 $quick
    same_files "4 bits alone" "$work/many-4bpw" "$work/four"

    # killed with a layer or two done, then resumed: the bytes of an uninterrupted run
    "$CLI_WALSH" quantize "$model" "$work/stopped" --bits 2,4 $quick --threads 1 --quiet >"$work/out" 2>"$work/err" &
    pid=$!
    for _ in $(seq 6000); do
        [ "$(cat "$work/stopped-4bpw.partial/job.json" 2>/dev/null | wc -c)" -ge 700 ] && break
        [ -e "$work/stopped-4bpw" ] && break
        sleep 0.02
    done
    kill -KILL $pid 2>/dev/null
    wait $pid 2>/dev/null
    if [ ! -e "$work/stopped-2bpw" ]; then
        works quantize "$model" "$work/stopped" --bits 2,4 $quick --resume
    fi
    same_files "2 bits, resumed" "$work/many-2bpw" "$work/stopped-2bpw"
    same_files "4 bits, resumed" "$work/many-4bpw" "$work/stopped-4bpw"

    refuses "WORK/many-2bpw exists; quantize writes a new directory" quantize "$model" "$work/many" --bits 2,5 --no-hessian
}

misuse "--bits: '9' is not a list of up to seven numbers of 2 to 8" quantize a b --bits 9
misuse "--bits: '2,' is not a list of up to seven numbers of 2 to 8" quantize a b --bits 2,
misuse "--bits: '44' is not a list of up to seven numbers of 2 to 8" quantize a b --bits 44
walsh quantize "$model" "$work/no" --bits 3,3 --no-hessian
exits 2
walsh quantize "$model" "$work/no" --bits 3,4 --format int8
exits 2

finish
