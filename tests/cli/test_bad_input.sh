# Broken and foreign inputs: each is refused with a message that names the file and what to do.
. "$(dirname "$0")/lib.sh"

# A model directory made of links to the embedded one, without the files named.
without() { # directory files...
    mkdir -p "$1"
    for file in "$model"/*; do
        ln -sf "$file" "$1/"
    done
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

# --- files
without "$work/truncated" model.safetensors
head -c 1000000 "$model/model.safetensors" >"$work/truncated/model.safetensors"
refuses "" inspect "$work/truncated"

finish
