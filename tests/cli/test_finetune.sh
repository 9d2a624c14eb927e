#!/bin/sh
# walsh finetune: its options and messages, what it learns, the adapters that it writes, and going on after a kill.
. "$(dirname "$0")/lib.sh"
quick="--context 64 --batch-size 2 --grad-accumulation 2 --warmup 2"
head -c 30000 "$CLI_SOURCE/data/shakespeare-valid.txt" >"$work/play.txt"
tail -c 8000 "$CLI_SOURCE/data/shakespeare-valid.txt" >"$work/valid.txt"

# --- wrong usage
misuse "--data is missing" finetune "$model" --output "$work/a"
misuse "--output is missing" finetune "$model" --data "$work/play.txt"
misuse "targets: the layers have no linear 'v_porj'; expected all-linear or names such as q_proj" \
    finetune "$model" --data "$work/play.txt" --output "$work/a" --targets q_proj,v_porj
misuse "experts are to be trained, but the model has none" \
    finetune "$model" --data "$work/play.txt" --output "$work/a" --experts
misuse "a context of 4096 tokens, expected 2 to 1024" \
    finetune "$model" --data "$work/play.txt" --output "$work/a" -c 4096
misuse "stopping early needs something to validate on" \
    finetune "$model" --data "$work/play.txt" --output "$work/a" --patience 2
misuse "a validation file and a share of the data to validate on exclude each other" \
    finetune "$model" --data "$work/play.txt" --output "$work/a" --eval "$work/play.txt" --eval-share 0.1
refuses "WORK/absent.txt: no such file" finetune "$model" --data "$work/absent.txt" --output "$work/a" --quiet
[ ! -e "$work/a" ] || fails "a refused job made its output"

# --- memory: refused with the figure before anything is done
walsh finetune "$model" --data "$work/play.txt" --output "$work/a" --batch-size 900000 --quiet
exits 1
message | grep -q '^walsh finetune: .*training (checkpointed layers, a smaller batch size or context take less) needs [0-9.]* MiB' ||
    fails "no figure of the memory that is missing"

# --- twenty steps: the loss falls, the logs say so
works finetune "$model" --data "$work/play.txt" --output "$work/a" --steps 20 --lr 2e-3 $quick --save-every 8 --keep 1 \
    --eval-share 0.1 --eval-every 10 --json --threads 2 --quiet
has steps tokens loss eval_loss best_eval_loss parameters memory_bytes seconds tokens_per_second stopped_early
same "steps" "$(value steps)" 20
same "lines of the log" "$(wc -l <"$work/a/log.csv")" 21
true_that "the loss falls" \
    "$(awk -F, 'NR > 1 { s[NR > 11] += $2 } END { print s[0], "> 1.03 *", s[1] }' "$work/a/log.csv")"
grep -q '<polyline' "$work/a/loss.svg" || fails "no plot"
[ -d "$work/a/checkpoint-16" ] || fails "no checkpoint of step 16"
[ ! -e "$work/a/checkpoint-8" ] || fails "--keep 1 kept two checkpoints"
misuse "WORK/a: it holds an adapter or checkpoints already; resume, or choose another" \
    finetune "$model" --data "$work/play.txt" --output "$work/a" --steps 20 --quiet
works eval "$model" --text "$work/valid.txt" -c 64 --json
before=$(value ppl)
works eval "$model" --text "$work/valid.txt" -c 64 --adapter "$work/a" --json
true_that "the adapter helps" "$(value ppl) < 0.9 * $before"

# --- the validation's loss is what eval measures with the adapter (which leaves the last, shorter piece out)
works finetune "$model" --data "$work/play.txt" --output "$work/v" --steps 2 --lr 2e-3 $quick --activations f32 \
    --eval "$work/valid.txt" --json --quiet
validation=$(value eval_loss)
works eval "$model" --text "$work/valid.txt" -c 64 --adapter "$work/v" --activations f32 --json
true_that "validation and eval agree" "($validation - $(value nll))^2 < 0.01^2"

# --- killed at some moment, gone on with by another number of threads: the same bytes
job="finetune $model --data $work/play.txt --steps 12 --lr 1e-3 $quick --save-every 3 --quiet"
works $job --output "$work/whole" --threads 2
"$CLI_WALSH" $job --output "$work/killed" --threads 2 >/dev/null 2>&1 &
killed=$!
tries=0
while [ ! -d "$work/killed/checkpoint-3" ] && [ $tries -lt 600 ]; do
    sleep 0.05
    tries=$((tries + 1))
done
kill -9 $killed 2>/dev/null
wait $killed 2>/dev/null
[ ! -e "$work/killed/adapter_model.safetensors" ] || echo "note: the job ended before it was killed"
works $job --output "$work/killed" --threads 1 --resume
cmp -s "$work/whole/adapter_model.safetensors" "$work/killed/adapter_model.safetensors" ||
    fails "the resumed adapter differs"
same "losses of a resumed job" "$(cut -d, -f1-5 "$work/whole/log.csv")" "$(cut -d, -f1-5 "$work/killed/log.csv")"
misuse "WORK/killed/checkpoint-12/training_state.safetensors: it was begun with rank 16, now it is rank 8: --resume goes on with \
the same job only" $job --output "$work/killed" --resume --rank 8

# --- checkpointed layers: the same bytes in less memory
works $job --output "$work/plain" --json
plain=$(value memory_bytes)
works $job --output "$work/layers" --checkpoint-layers --json
true_that "checkpointed layers take less memory" "$(value memory_bytes) < 0.9 * $plain"
cmp -s "$work/whole/adapter_model.safetensors" "$work/layers/adapter_model.safetensors" ||
    fails "checkpointed layers change the adapter"

# --- a rate that ruins the model: stopped early, and the best adapter is what stays
works finetune "$model" --data "$work/play.txt" --output "$work/early" --steps 60 --lr 0.03 --schedule constant $quick \
    --activations f32 --eval "$work/valid.txt" --eval-every 2 --patience 2 --json --quiet
same "stopped early" "$(value stopped_early)" true
true_that "steps that were left out" "$(value steps) < 60 && $(value steps) >= 6"
best=$(value best_eval_loss)
true_that "the last one is worse" "$(value eval_loss) > $best + 0.05"
works eval "$model" --text "$work/valid.txt" -c 64 --adapter "$work/early" --activations f32 --json
true_that "the best adapter stays" "($best - $(value nll))^2 < 0.01^2"

# --- what data may look like
cat >"$work/d.jsonl" <<'EOF'
{"text": "It was late in the evening when the coach came to the door."}
{"prompt": "Who is there?", "completion": " It is I, my lord, and the night is cold."}

{"messages": [{"role": "user", "content": "Who is there?"}, {"role": "assistant", "content": "It is I, my lord."}]}
EOF
works finetune "$model" --data "$work/d.jsonl" --output "$work/d" --steps 2 $quick
message | grep -q '3 documents' || fails "not three documents"
mkdir "$work/directory"
cp "$work/d.jsonl" "$work/play.txt" "$work/directory"
works finetune "$model" --data "$work/directory" --output "$work/dd" --steps 1 $quick
message | grep -q '4 documents' || fails "not four documents"
echo '{"text": "a b c"}
{"question": "x"}' >"$work/bad.jsonl"
refuses 'WORK/bad.jsonl:2: expected an object with "text", with "prompt" and "completion", or with "messages"' \
    finetune "$model" --data "$work/bad.jsonl" --output "$work/e" --quiet
echo '{"text": "a b' >"$work/bad.jsonl"
walsh finetune "$model" --data "$work/bad.jsonl" --output "$work/e" --quiet
exits 1
message | grep -q '^walsh finetune: WORK/bad.jsonl:1: ' || fails "a broken line is not named"

# --- conversations by the model's own chat template: the same adapter as from the texts that it makes of them
mkdir "$work/own"
ln -s "$model"/* "$work/own"
cat >"$work/own/chat_template.jinja" <<'EOF'
{%- for m in messages %}{{ 'Q: ' + m.content + '\nA:' if m.role == 'user' else ' ' + m.content|trim + '<|endoftext|>' }}{% endfor %}
EOF
cat >"$work/turns.jsonl" <<'EOF'
{"messages": [{"role": "user", "content": "Who is there?"}, {"role": "assistant", "content": "It is I, my lord, and the night is cold. "}]}
{"messages": [{"role": "user", "content": "And who are you?"}, {"role": "assistant", "content": "Nobody, my lord; a traveller from the sea."}]}
EOF
cat >"$work/texts.jsonl" <<'EOF'
{"prompt": "Q: Who is there?\nA:", "completion": " It is I, my lord, and the night is cold."}
{"prompt": "Q: And who are you?\nA:", "completion": " Nobody, my lord; a traveller from the sea."}
EOF
works finetune "$work/own" --data "$work/turns.jsonl" --output "$work/turns" --steps 2 $quick --quiet
works finetune "$work/own" --data "$work/texts.jsonl" --output "$work/texts" --steps 2 $quick --quiet
cmp -s "$work/turns/adapter_model.safetensors" "$work/texts/adapter_model.safetensors" ||
    fails "turns and their texts teach different things"
works finetune "$model" --data "$work/turns.jsonl" --output "$work/chatml" --steps 2 $quick --quiet
! cmp -s "$work/turns/adapter_model.safetensors" "$work/chatml/adapter_model.safetensors" ||
    fails "the template changes what is learned"
rm "$work/own/chat_template.jinja"
echo "{{ raise_exception('not so') }}" >"$work/own/chat_template.jinja"
refuses "WORK/turns.jsonl:1: the first 1 messages: WORK/own/chat_template.jinja: line 1: not so" \
    finetune "$work/own" --data "$work/turns.jsonl" --output "$work/e" --quiet
echo "{{ messages[-1].content }}{{ 'A:' if add_generation_prompt }}" >"$work/own/chat_template.jinja"
refuses "WORK/turns.jsonl:1: message 2: the chat template in WORK/own/chat_template.jinja does not write this answer behind \
its generation prompt, so that nobody can tell what is to be learned; write the conversation out as \"prompt\" and \"completion\"" \
    finetune "$work/own" --data "$work/turns.jsonl" --output "$work/e" --quiet

# --- gpt-oss with its experts: what is learned is what eval loads
tiny=$CLI_SOURCE/tests/fixtures/golden/tiny-gpt-oss
head -c 2000 "$work/play.txt" >"$work/short.txt"
works finetune "$tiny" --data "$work/short.txt" --output "$work/oss" --experts --rank 4 --steps 10 --lr 1e-2 --context 32 \
    --activations f32 --eval "$work/short.txt" --json --quiet
validation=$(value eval_loss)
works eval "$tiny" --text "$work/short.txt" -c 32 --activations f32 --json
true_that "gpt-oss learns" "$validation < $(value nll) - 0.1"
works eval "$tiny" --text "$work/short.txt" -c 32 --adapter "$work/oss" --activations f32 --json
true_that "validation and eval of gpt-oss agree" "($validation - $(value nll))^2 < 0.01^2"

# --- a quantized base: the same job on E8P and on MXFP4
for format in "e8p --bits 4 --no-hessian" "mxfp4"; do
    name=$work/q-${format%% *}
    # shellcheck disable=SC2086 # the format and its options
    works quantize "$model" "$name" --format $format --quiet
    works finetune "$name" --data "$work/play.txt" --output "$name-lora" --steps 12 --lr 2e-3 $quick --json --quiet
    true_that "the loss falls on ${format%% *}" \
        "$(awk -F, 'NR > 1 { s[NR > 7] += $2 } END { print s[0], "> 1.01 *", s[1] }' "$name-lora/log.csv")"
done
finish
