# Broken and foreign inputs: each is refused with a message that names the file, what was found and what was expected.
. "$(dirname "$0")/lib.sh"

# A model directory made of links to the embedded one, without the files named.
without() { # directory files...
    mkdir -p "$1"
    ln -s "$model"/* "$1/"
    directory=$1
    shift
    for file; do rm "$directory/$file"; done
}

# A safetensors file: header text, then so many zero bytes.
safetensors() { # file header bytes
    n=${#2}
    # shellcheck disable=SC2059 # the format is the bytes
    printf "$(printf '\\%03o\\%03o\\%03o\\000\\000\\000\\000\\000' $((n % 256)) $((n / 256 % 256)) $((n / 65536)))" >"$1"
    printf %s "$2" >>"$1"
    head -c "$3" /dev/zero >>"$1"
}

header() { # name header bytes message: a model whose tensors are these
    without "$work/$1" model.safetensors
    safetensors "$work/$1/model.safetensors" "$2" "$3"
    refuses "WORK/$1/model.safetensors: $4" inspect "$work/$1"
}

config() { # name sed-script message: a model with an edited config.json
    without "$work/$1" config.json
    sed "$2" "$model/config.json" >"$work/$1/config.json"
    refuses "WORK/$1/config.json: $3" inspect "$work/$1"
}

edited() { # name sed-script message: a model whose safetensors header is edited; the length must stay
    without "$work/$1" model.safetensors
    sed "1$2" "$model/model.safetensors" >"$work/$1/model.safetensors"
    refuses "WORK/$1/model.safetensors: $3" inspect "$work/$1"
}

# --- not a model directory
gguf="GGUF is not read. walsh reads Hugging Face directories (config.json, tokenizer.json, *.safetensors): get the model's \
original repository, or convert the file (transformers: from_pretrained(DIRECTORY, gguf_file=FILE), then save_pretrained)"
printf 'GGUF\003\000\000\000' >"$work/model.gguf"
refuses "WORK/model.gguf: $gguf" run "$work/model.gguf" hello
refuses "none.gguf: $gguf" run none.gguf hello
refuses "WORK/none: no such directory" inspect "$work/none"
mkdir "$work/empty"
refuses "WORK/empty: no config.json, expected a Hugging Face model directory" inspect "$work/empty"
without "$work/no-weights" model.safetensors
refuses "WORK/no-weights: no model.safetensors or model.safetensors.index.json, expected a Hugging Face model directory" \
    inspect "$work/no-weights"
without "$work/no-tokenizer" tokenizer.json
refuses "WORK/no-tokenizer/tokenizer.json: no such file (a model directory needs its tokenizer.json)" \
    run "$work/no-tokenizer" hello

# --- the file as a whole
without "$work/truncated" model.safetensors
head -c 1000000 "$model/model.safetensors" >"$work/truncated/model.safetensors"
refuses "WORK/truncated/model.safetensors: tensor model.embed_tokens.weight: data ends at byte 5242880 of the data, but the file holds 994896 bytes of data: it is truncated" \
    inspect "$work/truncated"
without "$work/short" model.safetensors
printf 'abc' >"$work/short/model.safetensors"
refuses "WORK/short/model.safetensors: 3 bytes, expected at least 8 for the header's length" inspect "$work/short"
without "$work/beyond" model.safetensors
printf '\377\000\000\000\000\000\000\000{}' >"$work/beyond/model.safetensors"
refuses "WORK/beyond/model.safetensors: header of 255 bytes ends beyond the file of 10 bytes: it is truncated" \
    inspect "$work/beyond"
without "$work/huge" model.safetensors
printf '\377\377\377\377\377\377\377\377{}' >"$work/huge/model.safetensors"
refuses "WORK/huge/model.safetensors: header of 18446744073709551615 bytes, expected at most 100000000" inspect "$work/huge"
without "$work/directory" model.safetensors
mkdir "$work/directory/model.safetensors"
refuses "WORK/directory/model.safetensors: is a directory, expected a file" inspect "$work/directory"
# root reads everything: there the program runs as somebody else, where that one can reach it
for file in config.json model.safetensors; do
    without "$work/unreadable" $file
    cp "$model/$file" "$work/unreadable/$file"
    chmod 0 "$work/unreadable/$file"
    last="inspect of an unreadable $file"
    if [ "$(id -u)" -ne 0 ]; then
        walsh inspect "$work/unreadable"
    elif chmod 755 "$work" && setpriv --reuid 65534 --clear-groups "$CLI_WALSH" --version >/dev/null 2>&1; then
        setpriv --reuid 65534 --clear-groups "$CLI_WALSH" inspect "$work/unreadable" >"$work/out" 2>"$work/err"
        code=$?
    else
        echo "skipped: $last (root, and nobody cannot run $CLI_WALSH)"
        continue
    fi
    exits 1
    silent
    says "walsh inspect: WORK/unreadable/$file: cannot open: Permission denied"
    rm -rf "$work/unreadable"
done

# --- the header
header overlap '{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[3,7]}}' 7 \
    "tensors a and b overlap: bytes 3 to 4 of the data"
header hole '{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[5,9]}}' 9 \
    "bytes 4 to 5 of the data belong to no tensor; the next is b"
header tail '{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}' 6 "bytes 4 to 6 of the data belong to no tensor"
header no-range '{"a":{"dtype":"U8","shape":[4]}}' 4 "tensor a: data_offsets are not two integers of 0 or more"
header duplicate '{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}' 4 \
    "invalid JSON at line 1, column 56: duplicate object key near '\"a\"'"
header dtype '{"a":{"dtype":"Q4","shape":[4],"data_offsets":[0,4]}}' 4 \
    'tensor a: unknown dtype "Q4"; known: BOOL, U8, I8, F8_E5M2, F8_E4M3, F8_E8M0, I16, U16, F16, BF16, I32, U32, F32, F64, I64, U64'
header size '{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,4]}}' 4 \
    "tensor a: data_offsets hold 4 bytes, expected 16 for F32 [4]"
header overflow '{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}' 0 \
    "tensor a: the size of shape [4611686018427387904, 4] overflows"

# --- tensors against the configuration
edited shape 's/k_proj.weight":{"dtype":"BF16","shape":\[64,320\]/k_proj.weight":{"dtype":"BF16","shape":[320,64]/' \
    "tensor model.layers.0.self_attn.k_proj.weight: shape [320, 64], expected [64, 320]"
edited type 's/model.norm.weight":{"dtype":"BF16",/model.norm.weight":{"dtype":"I16" ,/' \
    "tensor model.norm.weight: dtype I16, expected F32, F16 or BF16"
without "$work/too-many" config.json
sed 's/"num_hidden_layers": 5/"num_hidden_layers": 4/' "$model/config.json" >"$work/too-many/config.json"
refuses "WORK/too-many/model.safetensors: tensor model.layers.4.input_layernorm.weight (and 8 more) has no place in \
LlamaForCausalLM as config.json describes it" inspect "$work/too-many"
without "$work/too-few" config.json
sed 's/"num_hidden_layers": 5/"num_hidden_layers": 6/' "$model/config.json" >"$work/too-few/config.json"
refuses "WORK/too-few: tensor model.layers.5.input_layernorm.weight is missing" inspect "$work/too-few"

# --- the configuration
known="known: LlamaForCausalLM, MistralForCausalLM, MixtralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Qwen3MoeForCausalLM, GptOssForCausalLM, SmolLM3ForCausalLM, Gemma2ForCausalLM, Gemma3ForCausalLM, Phi3ForCausalLM, Lfm2ForCausalLM"
config architecture 's/LlamaForCausalLM/MambaForCausalLM/' "architecture \"MambaForCausalLM\" is not supported; $known"
config method 's/"use_cache": true/"quantization_config": {"quant_method": "gptq"}/' \
    'quantization method "gptq" is not supported; known: glq, walsh, compressed-tensors, modelopt, mxfp4, fp8'
config version 's/"use_cache": true/"quantization_config": {"quant_method": "walsh", "version": 99}/' \
    'version 99 of quantization method "walsh" is not supported; known: 1'
config codebook 's/"use_cache": true/"quantization_config": {"quant_method": "glq", "codebook": "trellis"}/' \
    'GLQ codebook "trellis" is not supported; known: e8p, e8_shell'
config walsh-codebook 's/"use_cache": true/"quantization_config": {"quant_method": "walsh", "version": 1, "codebook": "trellis"}/' \
    'codebook "trellis" of quantization method "walsh" is not supported; known: e8p, mxfp4, nvfp4, mxfp8, fp8, int8, int4'
config key-twice 's/"use_cache": true/"use_cache": true, "use_cache": true/' \
    "invalid JSON at line 30, column 32: duplicate object key near '\"use_cache\"'"
config activation 's/"silu"/"gelu"/' 'hidden_act "gelu" is not supported; known: silu, gelu_pytorch_tanh'

finish
