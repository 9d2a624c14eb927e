#!/bin/sh
# Bugs planted on purpose, each in a copy of the last commit, each of which a test must catch (docs/adapters.md, docs/architecture.md,
# docs/kv-cache.md). Usage: tests/proof/planted.sh [PATTERN]: only the bugs in whose files' names PATTERN occurs.
# Takes some minutes: it builds the library once and a part of it for every bug.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/walsh-planted.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
mkdir "$work/source"
git -C "$root" archive HEAD | tar -xf - -C "$work/source"
cd "$work/source"
pattern=${1:-}
cmake -S . -B "$work/build" -G Ninja -DWALSH_WERROR=OFF >/dev/null
caught=0 missed=0

build() { ninja -C "$work/build" "$1" >"$work/log" 2>&1 || { tail -n 20 "$work/log" && exit 1; }; }
# The test $1 with the arguments behind it fails: at once, or within `tries` runs where it depends on the threads' luck.
fails() {
    build "$1"
    test=$1
    shift
    for _ in $(seq "$tries"); do "$work/build/tests/$test" "$@" >/dev/null 2>&1 || return 0; done
    return 1
}
# plant WHAT FILE SED-SCRIPT TEST...: a TEST is a target, with its arguments behind colons
plant() {
    what=$1 file=$2 script=$3
    shift 3
    case $file in *"$pattern"*) ;; *) return ;; esac
    cp "$file" "$work/kept"
    sed -i "$script" "$file"
    if cmp -s "$file" "$work/kept"; then
        echo "MISSED  $what: $file has changed, the bug cannot be planted"
        missed=$((missed + 1))
        return
    fi
    for test in "$@"; do
        # shellcheck disable=SC2046 # the words of a test
        if fails $(echo "$test" | tr : ' '); then
            echo "caught  $what: $test"
            caught=$((caught + 1))
        else
            echo "MISSED  $what: $test passes"
            missed=$((missed + 1))
        fi
    done
    cp "$work/kept" "$file"
    touch "$file"
}

golden="golden:--adapter:$root/models/shakespeare-lora-8m:$root/models/bookworm-8m:$root/tests/fixtures/golden/bookworm-8m.safetensors"
checker=walsh_checker:--kernel:low_rank
tries=1
for test in test_model_adapter_linear test_model_adapter_fold test_api_adapter test_api_batch test_runtime_batch test_api_merge test_cache_turbo test_runtime_prompts test_serve_work \
    test_cache_attention test_kernels_turbo test_api_kv "$checker" "$golden"; do
    # shellcheck disable=SC2046
    if fails $(echo "$test" | tr : ' '); then
        echo "MISSED  nothing is planted and $test fails"
        exit 1
    fi
done

plant "h is what the call before left" src/kernels/cpu/low_rank.c \
    's/^    job->queue->kernels->low_rank_down(&part);/    (void)part;/' test_model_adapter_linear "$checker" "$golden"
plant "h of batch row 0 for every row" src/kernels/x86/low_rank.inc 's/vec_set(h\[(size_t)r \* p->ldh + j/vec_set(h[j/' \
    test_model_adapter_linear "$checker"
plant "x of the first row for a later group" src/kernels/cpu/low_rank.c 's/in->x + (d->row_begin + row) \* in->ldx/in->x + row * in->ldx/' \
    test_model_adapter_linear test_api_adapter "$checker"
plant "y of the first row for a later group" src/kernels/cpu/low_rank.c 's/product->y + d->row_begin \* product->ldy/product->y/' \
    test_model_adapter_linear test_api_adapter "$checker"
plant "B' by butterfly, then signs" src/rotation/rotation.c \
    '/^enum walsh_status walsh_fold_columns/,/^}/{s/= (double)r->signs\[i\] \* (double)b\[/= (double)b[/
     s/= (float)y\[i \* width + j\]/= (float)((i < r->size ? (double)r->signs[i] : 1.0) * y[i * width + j])/}' \
    test_model_adapter_fold test_model_adapter_linear
plant "A' by signs, then butterfly" src/rotation/rotation.c \
    '/^enum walsh_status walsh_fold_rows/,/^}/s/walsh_rotate_inverse_f64(r, y, y);/walsh_rotate_forward_f64(r, y, y);/' \
    test_model_adapter_fold
plant "B' without reciprocals of scaled signs" src/model/adapter_linear.c 's/= 1\.0f \/ r\.signs\[i\]/= r.signs[i]/;s/1\.0f \/ r\.signs\[i\]/r.signs[i]/' \
    test_model_adapter_fold
plant "the plan drops one linear of each layer" src/model/adapter_set.c 's/if (!update) continue;/if (!update || linear->index % 7 == 6) continue;/' \
    test_model_adapter_linear test_api_adapter
plant "a call drops its last linear" src/model/adapter_products.c 's/for (size_t s = 0; s < sets->count; s++) add_terms/for (size_t s = 0; s < sets->count \&\& i + 1 < count + (count == 1); s++) add_terms/' \
    test_model_adapter_linear test_api_adapter
plant "k reads the h of q" src/model/adapter_products.c 's/update->shared_a \&\& i < in->count/i < in->count/;s/in->down\[i\]\.a == update->a \&\& /in->down[i].rank == update->rank \&\& /' \
    test_model_adapter_linear "$golden"
plant "the caller's scale is ignored" src/model/adapter_products.c 's/\.scale = term->scale/.scale = 1/' test_model_adapter_linear test_api_adapter
plant "a fork loses its adapters" src/runtime/session.c 's/return set ? walsh_runtime_set_adapters(.*) : WALSH_OK;/(void)set; return WALSH_OK;/' test_api_adapter
plant "a piece of the head's rows has the sets of all" src/runtime/session.c 's/WALSH_DECODE, &part, logits/WALSH_DECODE, \&sets, logits/' test_api_adapter
plant "the workspace does not grow for a larger set" src/model/adapter_products.c 's/if (updates == ws->updates .*) return WALSH_OK;/if (ws->downs) return WALSH_OK;/' test_api_adapter
plant "a step gives a row another's token" src/runtime/session.c 's/r->ids\[i\] = ids\[r->order\[i\]\]/r->ids[i] = ids[i]/' test_api_adapter
plant "a row stands where another does" src/runtime/session.c 's/r->positions\[i\] = s->kv->length;/r->positions[i] = sessions[i]->kv->length;/' test_api_batch
plant "a row reads the cache of another" src/runtime/session.c \
    '/^static void step_rows/,/^}/s/r->kv\[i\] = s->kv->views;/r->kv[i] = sessions[i]->kv->views;/' test_api_batch
plant "a row gets the logits of another" src/runtime/session.c 's/memcpy(sessions\[r->order\[i + j\]\]->logits/memcpy(sessions[i + j]->logits/' \
    test_api_batch
plant "a row is drawn from the logits of the first" src/runtime/batch_step.c \
    's/entry->session->logits, &entry->token/b->rows[0]->session->logits, \&entry->token/' test_api_batch
plant "a step puts the token of its first row into all" src/runtime/batch_step.c 's/b->ids\[n++\] = entry->token;/b->ids[n++] = b->rows[0]->token;/' \
    test_api_batch
plant "a request loses its adapters" src/runtime/batch.c 's/e->session->adapters = e->set;/e->session->adapters = NULL;/' test_api_batch
plant "every piece of a prompt is its first" src/runtime/batch_step.c 's/entry->ids + at, n/entry->ids, n/' test_api_batch
plant "a small request overtakes" src/runtime/batch.c \
    's/if (b->first->kv_tokens > b->limits.kv_tokens - b->kv_tokens) return;/if (b->first->kv_tokens > b->limits.kv_tokens - b->kv_tokens + 256) return;/' \
    test_api_batch
plant "a cancelled request keeps its share" src/runtime/batch.c 's/if (entry->state != WALSH_BATCH_ENDED) b->kv_tokens -=/if (entry->state == WALSH_BATCH_ENDED) b->kv_tokens -=/' \
    test_api_batch
plant "one slot reads its prompt before all others" src/runtime/batch_step.c 's/b->turn = (slot + 1) % b->limits.rows;/b->turn = 0;/' \
    test_runtime_batch
plant "chunks of packed caches are cut" src/runtime/batch_step.c \
    's/return first ? (uint32_t)chunk : 0;/return left;/' test_runtime_batch
plant "merge without the inverse rotation of B'" src/quantize/merge.c 's/walsh_rotate_inverse_f64(&l->out_rotation, column, original);/memcpy(original, column, l->out * sizeof *original);/' \
    test_api_merge
plant "the rotation is undone by the forward matrix" src/kernels/cpu/turbo.c \
    's/^    k->rotate_inverse_f32(x, x, r->signs, block, block);/    float y[1024]; k->rotate_forward_f32(y, x, r->signs, block, block); memcpy(x, y, block * sizeof *x);/' \
    test_cache_attention test_kernels_turbo
plant "keys behind the row's own are not masked" src/kernels/cpu/turbo.c '/memset(score + (c->end - first), 0/d' test_cache_attention test_kernels_turbo
plant "keys before the window are not masked" src/kernels/cpu/turbo.c '/memset(score, 0, (c->begin - first)/d' test_kernels_turbo
plant "every row of a batch reads the cache of the first" src/kernels/cpu/decode_attention.c 's/\.row = t->rows + row,/.row = t->rows,/' \
    test_cache_attention test_kernels_turbo
plant "the oldest recent token is read as packed" src/kernels/cpu/decode_attention.c \
    's/s\.end - kv->recent_tokens : 0;/s.end - kv->recent_tokens + 1 : 0;/' test_cache_attention
plant "recent tokens that a trim forgot are read" src/kernels/cpu/decode_attention.c 's/walsh_max(recent, kv->recent_begin)/recent/' \
    test_cache_attention
plant "recent tokens meet the query unrotated" src/kernels/cpu/decode_attention.c 's/recent ? queries->rotated : u->query/u->query/' \
    test_cache_attention
plant "recent tokens are kept unrotated" src/kernels/cpu/turbo.c 's/^    rotate_forward(t->q->kernels, rotation, x, y);/    memcpy(y, x, rotation->size * sizeof *y);/' \
    test_cache_turbo
plant "the signs of Prod keys are left out" src/kernels/cpu/turbo.c 's/^    if (!c->kv->turbo->prod) return;/    return;/' test_cache_attention
plant "a prompt's chunk reads its own tokens packed" src/model/layer.c '/shape\.own = &ws->own;/d' test_api_kv
plant "words that tokens share keep stale bits" src/formats/turbo_pages.c \
    '/^void walsh_turbo_clear/,/^}/s/^    for (; slot < page_tokens \&\& .*/    for (; slot % (key ? LANES : GROUP) != 0; slot++) continue;/;/^void walsh_turbo_clear/,/^}/{/^        walsh_turbo_store/d}' \
    test_cache_turbo
plant "a fork writes into the page that it shares" src/cache/kv.c 's/return atomic_load(&page->references) > 1;/(void)page; return false;/' test_cache_turbo
plant "a fork has no recent tokens" src/cache/kv.c '/memcpy(fork->ring, kv->ring/d' test_cache_turbo
plant "stale tokens are exported" src/cache/kv_export.c '/^        walsh_kv_clear_tail/s/.*/        (void)out;/' test_cache_turbo
plant "recent tokens do not travel" src/cache/kv_export.c '/^    copy_recent(kv, end - recent, recent, out, true);/d' test_api_kv
plant "evaluation runs prefill on packed caches" src/runtime/session.c 's/outputs->decode ? WALSH_DECODE : WALSH_PREFILL/outputs->decode ? WALSH_PREFILL : WALSH_PREFILL/' \
    test_api_kv
plant "rows of a joined prompt have the position of its first" src/runtime/session.c \
    's/r->positions\[row\] = s->kv->length + j;/r->positions[row] = s->kv->length;/' test_runtime_prompts
plant "rows of a joined prompt have another length's angles" src/runtime/session.c \
    's/r->rope_rows\[row\] = s->rope_offset + s->kv->length + j/r->rope_rows[row] = s->kv->length + j/' test_runtime_prompts
plant "only one row of joined prompts has the adapter" src/runtime/session.c 's/set->end = (size_t)end->row + end->count;/set->end = (size_t)end->row + 1;/' \
    test_runtime_prompts
plant "adapters of joined prompts begin a session, not a row, later" src/runtime/session.c \
    's/set->begin = pieces\[r->order\[set->begin\]\].row;/(void)set->begin;/' test_runtime_prompts
plant "a joined prompt ends with its first row" src/runtime/session.c 's/(piece->row + piece->count - 1) \* hidden, hidden/piece->row * hidden, hidden/' \
    test_runtime_prompts
plant "the head's adapter of another prompt" src/runtime/session.c 's/if (set && before && walsh_adapter_set_equal(before->set, set))/if (set \&\& before)/' \
    test_runtime_prompts
plant "joined prompts attend to the cache of the first" src/kernels/cpu/prefill_attention.c 's/first\[count\]\.kv == first->kv &&/true \&\&/' \
    test_runtime_prompts walsh_checker:--kernel:op_attention
plant "equal prompts do not wait for the store" src/runtime/batch_step.c 's/if (comes_to_store(b, entry, count)) break;/(void)comes_to_store;/' test_runtime_prompts
plant "a client's turn is never over" app/serve/work.c '/work->turn = item->turn;/d' test_serve_work
plant "a client's items wait for no turn" app/serve/work.c 's/if (i->tenant == item->tenant) item->turn = i->turn + 1;/(void)i;/' test_serve_work
tries=40
plant "a piece does not wait for h" src/kernels/cpu/low_rank.c 's/^    wait_for_downs(job);/    (void)wait_for_downs;/' "$checker"

echo "$caught caught, $missed missed"
[ "$missed" -eq 0 ]
