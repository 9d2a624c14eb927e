#!/bin/sh
# The layer rule: who may include whom. Prints each offending line; exit 1 where there is one.
# app -> public headers; api -> runtime, quantize -> model -> cache, text; cache -> checkpoint, kernels -> formats ->
# rotation -> base. src/kernels/x86 and src/kernels/cuda see of the kernels only kernels.h, table.h, the contracts that
# table.h includes, device.h, experts.h, train.h and quantize.h, and their own folder.
# Below app nothing prints, exits, aborts or reads the environment.
set -eu
cd "$(dirname "$0")/.."

files() { find "$@" -name '*.[ch]' -o -name '*.def' -o -name '*.cu' -o -name '*.cuh' | sort; }

contracts=$(sed -n 's/^#include "\(kernels\/[a-z_]*\.h\)".*/\1/p' src/kernels/table.h | tr '\n' ' ')
includes=$(files src include app examples 2>/dev/null | xargs grep -HnE '^[[:space:]]*#[[:space:]]*include[[:space:]]*[<"]' |
    awk -v contracts="$contracts kernels/table.h kernels/device.h kernels/experts.h kernels/train.h kernels/quantize.h" '
    BEGIN {
        below["base"] = "base"
        below["rotation"] = "rotation " below["base"]
        below["formats"] = "formats " below["rotation"]
        below["kernels"] = "kernels " below["formats"]
        below["text"] = "text " below["base"]
        below["checkpoint"] = "checkpoint " below["formats"]
        below["cache"] = "cache kernels checkpoint " below["formats"]
        below["model"] = "model text " below["cache"]
        below["runtime"] = "runtime " below["model"]
        below["quantize"] = "quantize " below["model"]
        below["train"] = "train " below["model"]
        below["api"] = "api runtime quantize train " below["model"]
    }
    function offend(why) { print file ":" line ": includes " name ": " why }
    {
        split($0, part, ":"); file = part[1]; line = part[2]
        name = $0; sub(/^[^<"]*[<"]/, "", name); sub(/[>"].*$/, "", name)
        system_header = $0 ~ /include[[:space:]]*</
        if (system_header) {
            if (name ~ /^(cuda|cublas|nccl|mma\.h)/ && file !~ /^src\/kernels\/cuda\//)
                offend("CUDA headers belong to src/kernels/cuda")
            next
        }
        public = name ~ /^walsh(_[a-z]+)?\.h$/
        n = split(file, at, "/")
        if (at[1] == "app" || at[1] == "examples") {
            if (!public && name ~ /\// && name !~ /^serve\//) offend(at[1] " sees the public headers only")
            next
        }
        if (at[1] == "include") { if (!public) offend("a public header needs public headers only"); next }
        layer = at[2]
        if (public) {
            if (layer != "api" && name != "walsh_status.h" && name != "walsh_hooks.h")
                offend("of the public headers, only api sees this one")
            next
        }
        if (name !~ /\//) next # its own folder
        target = name; sub(/\/.*/, "", target)
        if (index(" " below[layer] " ", " " target " ") == 0) offend(layer " may not use " target)
        else if (file ~ /^src\/kernels\/(x86|cuda)\// && target == "kernels" &&
                 index(" " contracts " ", " " name " ") == 0 &&
                 name !~ /^kernels\/(x86|cuda)\//)
            offend("a backend sees kernels.h, table.h and the contracts that it includes only")
    }')

calls=$(files src | xargs grep -HnP \
    '^(?!\s*(\*|//|/\*)).*(?<![\w>.])(getenv|secure_getenv|exit|_exit|abort|printf|vprintf|fprintf|vfprintf|puts|fputs|putchar|perror|system)\s*\(' ||
    true)

[ -z "$includes" ] || echo "$includes"
[ -z "$calls" ] || echo "$calls" | sed 's/$/    <- nothing below app prints, exits or reads the environment/'
[ -z "$includes$calls" ]
