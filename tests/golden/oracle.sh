#!/bin/sh
# Gradients of whole models in several formats (oracle.c): oracle.sh ORACLE FIXTURES
# In bf16 the dense model alone: a mixture's router may choose other experts than in double where two are close.
set -eu
for model in tiny-qwen3-moe tiny-llama3; do
    ${WALSH_EMULATOR-} "$1" "$2/$model"
    for format in mxfp4 e8p; do
        ${WALSH_EMULATOR-} "$1" "$2/$model" $format
        [ $model = tiny-qwen3-moe ] || ${WALSH_EMULATOR-} "$1" --bf16 "$2/$model" $format
    done
done
