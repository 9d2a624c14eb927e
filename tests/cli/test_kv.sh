# The options of the key-value cache on the embedded model: what they refuse, and that packing is on.
. "$(dirname "$0")/lib.sh"
prompt="It was late in the evening when"
head -c 12000 "$text" >"$work/text"

# --- wrong values and combinations
for verb in "run $model hi" "eval $model --text $work/text" "bench $model"; do
    # shellcheck disable=SC2086 # the words of a command
    set -- $verb
    misuse "--kv-bits is 3.3, expected a multiple of 0.5 from 1 to 8" "$@" --kv turbo --kv-bits 3.3
    misuse "--kv-bits: 9 is out of range: 1 to 8" "$@" --kv turbo --kv-bits 9
    misuse "--kv-key-bits: 0 is out of range: 1 to 8" "$@" --kv turbo --kv-key-bits 0
    misuse "--kv-bits and --kv-key-bits exclude each other" "$@" --kv turbo --kv-bits 4 --kv-key-bits 4
    misuse "--kv-bits and --kv-value-bits exclude each other" "$@" --kv turbo --kv-bits 4 --kv-value-bits 4
    misuse "--kv: 'q4' is not supported; supported: auto|f16|f32|turbo" "$@" --kv q4
    misuse "--kv-bits needs --kv turbo" "$@" --kv-bits 4
    misuse "--kv-skip needs --kv turbo" "$@" --kv f16 --kv-skip 1
    misuse "--kv-recent needs --kv turbo" "$@" --kv-recent 64
    misuse "--kv-recent: 65537 is out of range: 0 to 65536" "$@" --kv turbo --kv-recent 65537
    [ "$1" = bench ] || misuse "KV cache: no layer of 5 is left to pack when the first and last 3 stay f16" "$@" --kv turbo --kv-skip 3
done
misuse "--kv-no-rotation needs --kv turbo" eval "$model" --text "$work/text" --kv-no-rotation
misuse "--kv-key-codec: 'x' is not supported; supported: mse|prod" eval "$model" --text "$work/text" --kv turbo --kv-key-codec x
misuse "KV cache: 1 bits per element of a Prod key, expected 2 to 8" eval "$model" --text "$work/text" --kv turbo \
    --kv-key-codec prod --kv-bits 1
misuse "KV cache: the Prod codec of keys always rotates" eval "$model" --text "$work/text" --kv turbo --kv-key-codec prod --kv-no-rotation

# --- run: the bytes drop as computed: one page of 256 tokens, 5 layers, K and V, one head of 64 elements
page=$((256 * 5))
for row in "f16 256" "f32 512" "turbo 68" "turbo:--kv-bits:3.5 60" "turbo:--kv-key-bits:2:--kv-value-bits:3 44" "turbo:--kv-bits:8 132"; do
    # shellcheck disable=SC2046
    works run "$model" "$prompt" -n 20 --temp 0 --json --kv $(echo "${row% *}" | tr : ' ')
    same "cache_bytes of ${row% *}" "$(value cache_bytes)" $((page * ${row#* }))
done
works run "$model" "$prompt" -n 20 --temp 0 --json --kv turbo --kv-skip 1
same "cache_bytes with two layers in f16" "$(value cache_bytes)" $((256 * (3 * 68 + 2 * 256)))
works run "$model" "$prompt" -n 20 --temp 0 --json --kv turbo --kv-recent 64
same "cache_bytes with two ring pages of 64 tokens" "$(value cache_bytes)" $((page * 68 + 5 * 128 * 256))

# --- 8 bits write the text of f16, one bit does not; threads change nothing
works run "$model" "$prompt" -n 60 --temp 0
cp "$work/out" "$work/f16"
works run "$model" "$prompt" -n 60 --temp 0 --kv turbo --kv-bits 8 --kv-recent 16
cmp -s "$work/out" "$work/f16" || fails "8 bits write what f16 writes"
works run "$model" "$prompt" -n 60 --temp 0 --kv turbo --kv-bits 1
! cmp -s "$work/out" "$work/f16" || fails "one bit writes something else"
cp "$work/out" "$work/one"
works run "$model" "$prompt" -n 60 --temp 0 --kv turbo --kv-bits 1 --threads 3
cmp -s "$work/out" "$work/one" || fails "one bit on three threads"

# --- eval: every bit shows, recent tokens help, and the measurement options do something
ppl_of() {
    works eval "$model" --text "$work/text" -c 512 --json "$@"
    value ppl
}
f16=$(ppl_of --kv f16)
eight=$(ppl_of --kv turbo --kv-bits 8)
four=$(ppl_of --kv turbo)
two=$(ppl_of --kv turbo --kv-bits 2)
recent=$(ppl_of --kv turbo --kv-bits 2 --kv-recent 64)
skip=$(ppl_of --kv turbo --kv-bits 2 --kv-skip 1)
plain=$(ppl_of --kv turbo --kv-bits 2 --kv-no-rotation)
uncorrected=$(ppl_of --kv turbo --kv-bits 2 --kv-no-correction)
prod=$(ppl_of --kv turbo --kv-key-codec prod)
seed=$(ppl_of --kv turbo --kv-seed 7)
true_that "8 bits cost almost nothing" "($eight / $f16 - 1) ^ 2 < 1e-6"
true_that "2 bits cost more than 4" "$two > 1.03 * $f16 && $four < 1.03 * $f16"
true_that "recent tokens and f16 layers help" "$recent < $two && $skip < $two"
true_that "the rotation helps" "$plain > $two"
true_that "the other switches are on" "$uncorrected != $two && $prod > $four && $seed != $four"
works eval "$model" --text "$work/text" -c 512 --json --kv turbo --reference "$model"
true_that "the distance from the f16 cache" "$(value kl) > 1e-4 && $(value kl) < 0.2"
ppl=$(ppl_of --kv turbo --kv-bits 2.5 --kv-recent 5 --threads 1)
same "ppl on three threads" "$(ppl_of --kv turbo --kv-bits 2.5 --kv-recent 5 --threads 3)" "$ppl"

# --- bench
works bench "$model" --prompt 8 --generate 4 --repeat 1 --depth 300 --batch 2 --json --kv turbo --kv-bits 3.5
same "cache_bytes of two sessions" "$(value results.1.cache_bytes)" $((2 * 2 * page * 60))

finish
