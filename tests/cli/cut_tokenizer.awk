# A tokenizer.json (BPE, indented by two) without the tokens from id `keep` on and the merges that make them; `first` is the id of
# the first merged token.
/^    "vocab"/ { vocabulary = 1 }
/^    }/ { vocabulary = 0 }
/^    "merges"/ { merges = 1 }
/^    ]/ { merges = 0 }
vocabulary && match($0, /[0-9]+,?$/) {
    id = substr($0, RSTART) + 0
    if (id >= keep) next
    if (id == keep - 1) sub(/,$/, "")
}
merges && /^      \[/ { merge++ }
merges && merge > keep - first { next }
merges && merge == keep - first && /^      ],/ { sub(/,/, "") }
{ print }
