# Wrong usage, help, version, the environment, and how a MODEL is found. Needs no working model.
. "$(dirname "$0")/lib.sh"

# --- help and version
walsh
exits 2
silent
works help
grep -q '^  quantize ' "$work/out" || fails "the overview lists the verbs"
for verb in quantize run eval bench inspect merge serve devices version; do
    works help "$verb"
    grep -q "^Usage: walsh $verb" "$work/out" || fails "usage line"
    grep -q -- '--json  ' "$work/out" || fails "the options of every verb"
    cp "$work/out" "$work/help"
    works "$verb" -h
    cmp -s "$work/out" "$work/help" || fails "$verb -h differs from help $verb"
    [ "$(awk 'length > 100' "$work/out" | wc -l)" -eq 0 ] || fails "a help line is longer than 100 columns"
done
works --version
same version "$(cat "$work/out")" "walsh $(sed -n 's/^#define WALSH_VERSION_STRING "\(.*\)"/\1/p' "$CLI_SOURCE/include/walsh_version.h")"
works version --json
has version

# --- verbs and options
walsh evla
exits 2
says "walsh: unknown verb 'evla'; did you mean 'eval'?
See 'walsh help'."
walsh help zzzzzz
exits 2
says "walsh: unknown verb 'zzzzzz'
See 'walsh help'."
misuse "MODEL is missing" run
misuse "SRC is missing" quantize
misuse "DST is missing" quantize a
misuse "unexpected argument 'c'" quantize a b c
misuse "unknown option '--tmep'; did you mean '--temp'?" run m --tmep 1
misuse "unknown option '--temperatur'; did you mean '--temp'?" run m --temperatur 1
misuse "unknown option '--zzzzzzzz'" run m --zzzzzzzz
misuse "unknown option '--flavour'" quantize a b --flavour 32
misuse "unknown option '-z'" run m -z
misuse "--temp needs an argument: T" run m --temp
misuse "-n needs an argument: N" run m -n
misuse "-n: '12x' is not a whole number" run m -n 12x
misuse "-n: 0 is out of range: at least 1" run m -n 0
misuse "-n: 99999999999 is out of range: 1 to 2147483647" run m -n 99999999999
misuse "--top_p: 1.5 is out of range: 0 to 1" run m --top_p 1.5
misuse "--temperature: 'hot' is not a number" run m --temperature=hot
misuse "--temp: 'nan' is not a number" run m --temp nan
misuse "--presence-penalty: 101 is out of range: -100 to 100" run m --presence-penalty 101
misuse "--frequency-penalty: 'much' is not a number" run m --frequency-penalty much
misuse "--json takes no argument" run m --json=yes
walsh run m --josn --json
exits 2
has error.status error.message
same status "$(value error.status)" argument
misuse "--bits: '9' is not a list of up to seven numbers of 2 to 8" quantize a b --bits 9
misuse "--bits: '1' is not a list of up to seven numbers of 2 to 8" quantize a b --bits 1
misuse "--format: 'q4_k' is not supported; supported: e8p|mxfp4|nvfp4|mxfp8|fp8|int8|int4" quantize a b --format q4_k
misuse "--head: 'int4' is not supported; supported: bf16|int8" quantize a b --head int4
misuse "--rotation: 'dct' is not supported; supported: block|pow2|overlap|none" quantize a b --rotation dct
misuse "--calibration and --no-hessian exclude each other" quantize a b --no-hessian --calibration c
misuse 'device is "tpu", expected cpu, cuda or cuda:N' devices --device tpu
misuse "--activations: 'int4' is not supported; supported: auto|f32|bf16|int8" run m --activations int4
misuse "--batch: 'x' is not a whole number" bench m --batch 1,x
misuse "--batch: '' is not a whole number" bench m --batch 1,
misuse "MODEL is missing (or --shape, or --kernels)" bench
misuse "give MODEL or --shape, not both" bench m --shape llama-1b
misuse "--text FILE is missing" eval m
misuse "give one prompt: PROMPT, --prompt or --file" run m hello -p hello
misuse "give one prompt: PROMPT, --prompt or --file" run m - -f x
misuse "-t: 0 is out of range: 1 to 1024" devices -t 0
misuse "MODEL is missing" serve
misuse "--port: 65536 is out of range: 0 to 65535" serve m --port 65536
misuse "--max-batch: 0 is out of range: 1 to 512" serve m --max-batch 0
misuse "--max-queue: 'many' is not a whole number" serve m --max-queue many
misuse "--read-timeout: 0 is out of range: 0.1 to 86400" serve m --read-timeout 0
misuse "--tls-cert and --tls-key belong together" serve m --tls-cert c.pem
misuse "--prefix-store-limit needs --prefix-store DIR" serve m --prefix-store-limit 1G
misuse "--kv-bits needs --kv turbo" serve "$model" --port 0 --kv-bits 4
refuses "--adapter-directory WORK/none: No such file or directory" serve m --adapter-directory "$work/none"
refuses "cannot open 'WORK/none': No such file or directory" serve m --api-key-file "$work/none"
printf '# nothing\n\n' >"$work/keys"
refuses "WORK/keys: there is no key in it" serve m --api-key-file "$work/keys"
echo short >"$work/keys"
refuses "WORK/keys: line 1: a key of 5 characters, expected 8 to 255" serve m --api-key-file "$work/keys"
echo 'with a space' >"$work/keys"
refuses "WORK/keys: line 1: a key is made of visible ASCII characters" serve m --api-key-file "$work/keys"
export WALSH_PORT=http
misuse "WALSH_PORT: 'http' is not a whole number" serve m
unset WALSH_PORT

# --- the environment
export WALSH_THREADS=many
misuse "WALSH_THREADS: 'many' is not a whole number" devices
export WALSH_THREADS=2 WALSH_JSON=maybe
misuse "WALSH_JSON: 'maybe' is neither 1 nor 0" devices
export WALSH_JSON=1
works devices
same threads "$(value devices.0.threads)" 2
works devices --threads 1
same threads "$(value devices.0.threads)" 1
unset WALSH_THREADS WALSH_JSON
works devices --context 5
says "walsh devices: --context has no effect here"

# --- output that does not arrive
last="--version >/dev/full"
"$CLI_WALSH" --version >/dev/full 2>"$work/err"
code=$?
exits 1
says "walsh: cannot write to standard output"

# --- devices
works devices
grep -q '^hadamard_f32 ' "$work/out" || fails "devices lists the kernels"
grep -q '^device    cuda' "$work/out" || fails "devices says what there is of CUDA, or why it is not used"
works devices --json --cpu reference
has devices.0.features devices.0.kernels.hadamard_f32
same kernel "$(value devices.0.kernels.hadamard_f32)" reference

# --- MODEL as a Hugging Face id, offline
refuses "'org/name' is neither a directory nor in the Hugging Face cache (WORK/no-cache/hub); walsh does not download" \
    inspect org/name
# --- and as the name of one that ships with walsh
mkdir "$work/shipped"
export WALSH_DATA="$work/shipped"
refuses "'bookworm-8m' is neither a directory nor in the Hugging Face cache (WORK/no-cache/hub); walsh does not download" \
    inspect bookworm-8m
mkdir -p "$work/shipped/models"
ln -s "$CLI_SOURCE/models/bookworm-8m" "$work/shipped/models/bookworm-8m"
works inspect bookworm-8m --json
same architecture "$(value architecture)" LlamaForCausalLM
unset WALSH_DATA
works inspect bookworm-8m --json
refuses "'no-such-model' is neither a directory nor in the Hugging Face cache (WORK/no-cache/hub); walsh does not download" \
    inspect no-such-model

mkdir -p "$work/cache/hub/models--org--name/refs" "$work/cache/hub/models--org--name/snapshots"
export HF_HOME="$work/cache"
refuses "cannot open 'WORK/cache/hub/models--org--name/refs/main': No such file or directory" inspect org/name
echo abc123 >"$work/cache/hub/models--org--name/refs/main"
refuses "org/name: WORK/cache/hub/models--org--name/snapshots/abc123, which refs/main names, is missing" inspect org/name
ln -s "$model" "$work/cache/hub/models--org--name/snapshots/abc123"
works inspect org/name --json
same architecture "$(value architecture)" LlamaForCausalLM

finish
