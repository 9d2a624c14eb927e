# run --chat: a conversation by the model's chat template.
. "$(dirname "$0")/lib.sh"

turn() { # role text
    printf '<|im_start|>%s\n%s<|im_end|>\n' "$1" "$2"
}

# --- one turn is the template's text
works run "$model" --chat -p " Who was it? " -n 12 --temp 0
cp "$work/out" "$work/answer"
works run "$model" -n 12 --temp 0 -p "$(turn user "Who was it?")
<|im_start|>assistant
"
cmp -s "$work/out" "$work/answer" || fails "one turn and the same text"
works run "$model" -n 12 --temp 0 -p " Who was it? "
! cmp -s "$work/out" "$work/answer" || fails "the template changes the prompt"

# --- turns from standard input: each answer sees those before; what the session has is kept
conversation() { # options...
    last="run MODEL --chat $*"
    printf 'Who was it?\n\nAnd then?\n' | "$CLI_WALSH" run "$model" --chat "$@" >"$work/out" 2>"$work/err"
    code=$?
    exits 0
}
conversation --system "You are old." -n 12 --temp 0
first=$(turn system "You are old.")
works_like() { # prompt: what run says to it
    "$CLI_WALSH" run "$model" -n 12 --temp 0 -p "$1" </dev/null 2>/dev/null
}
cp "$work/out" "$work/both"
prompt=$first'
'$(turn user "Who was it?")'
<|im_start|>assistant
'
answer=$(works_like "$prompt")
second=$(works_like "$prompt$(printf '%s' "$answer" | sed '1{/^$/d}')<|im_end|>
$(turn user "And then?")
<|im_start|>assistant
")
printf '%s\n%s\n' "$answer" "$second" >"$work/expected"
cmp -s "$work/both" "$work/expected" || fails "two turns: $(cat "$work/expected")"
grep -q '^prompt [0-9]* tokens, [0-9]* of them kept from before' "$work/err" || fails "the first turn is kept"
[ "$(grep -c '^prompt ' "$work/err")" -eq 2 ] || fails "two turns, an empty line is none"

# --- a full context forgets earlier turns
conversation -n 40 --temp 0 --context 66
grep -q 'The context of 66 tokens is full; earlier turns are forgotten.' "$work/err" || fails "a full context"

# --- JSON, variables, and what is refused
works run "$model" --chat -p hello -n 4 --temp 0 --json --chat-variables '{"add_generation_prompt": false}'
has text tokens prompt_tokens finish
[ "$(value prompt_tokens)" = 9 ] || fails "without the header of an answer: $(value prompt_tokens) tokens"
works run "$model" --chat -p hello -n 4 --temp 0 --json
[ "$(value prompt_tokens)" = 14 ] || fails "with the header of an answer: $(value prompt_tokens) tokens"
misuse "--system needs --chat" run "$model" -p hello --system x
misuse "--chat-variables needs --chat" run "$model" -p hello --chat-variables '{}'
misuse "--plain-text and --chat exclude each other" run "$model" -p hello --chat --plain-text
walsh run "$model" --chat --json
exits 2
has error.message
misuse "--chat-variables '[]': expected a JSON object" run "$model" --chat -p hello --chat-variables '[]'
walsh run "$model" --chat -p hello --chat-variables '{"a": 1, "a": 2}'
exits 2

mkdir "$work/plain"
for file in "$model"/*; do ln -s "$file" "$work/plain/"; done
rm "$work/plain/tokenizer_config.json"
sed 's/"chat_template"/"template_of_another_name"/' "$model/tokenizer_config.json" >"$work/plain/tokenizer_config.json"
refuses "WORK/plain: the model has no chat template: there is no chat_template.jinja and no chat_template in \
tokenizer_config.json" run "$work/plain" --chat -p hello
printf '{%% for m in messages %%}\n{{ m.content.nothing.at_all }}{%% endfor %%}' >"$work/plain/chat_template.jinja"
refuses 'the chat template fails with this conversation: WORK/plain/chat_template.jinja: line 2: "nothing" is undefined' \
    run "$work/plain" --chat -p hello
printf '{{ raise_exception("not so") }}' >"$work/plain/chat_template.jinja"
refuses 'WORK/plain/chat_template.jinja: line 1: not so' run "$work/plain" --chat -p hello
printf '{%% for m in messages %%}{{ m.content|upper }}{%% endfor %%}' >"$work/plain/chat_template.jinja"
works run "$work/plain" --chat -p hello -n 4 --temp 0
cp "$work/out" "$work/answer"
works run "$model" -p HELLO -n 4 --temp 0
cmp -s "$work/out" "$work/answer" || fails "chat_template.jinja goes first"
finish
