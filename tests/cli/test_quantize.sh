# walsh quantize on the embedded model: predicted bytes, resuming after kill -9 and Ctrl-C, threads, full disks.
. "$(dirname "$0")/lib.sh"
quick="--bits 2 --samples 4 --sample-tokens 128 --passes 0"

# All files of two directories, byte for byte.
same_files() { # what a b
    diff -r "$2" "$3" >"$work/diff" 2>&1 || fails "$1: $(cat "$work/diff")"
}

tensor_bytes() { cat "$1"/*.safetensors | wc -c | tr -d ' '; }

# shellcheck disable=SC2086 # $quick is a list of options
{
    # --- the prediction is exact
    works quantize "$model" "$work/whole" $quick --dry-run --json
    has bytes_predicted bytes_written bpw seconds layers
    predicted=$(value bytes_predicted)
    same "nothing written" "$(value bytes_written)" 0
    [ ! -e "$work/whole" ] && [ ! -e "$work/whole.partial" ] || fails "a dry run leaves files"
    works quantize "$model" "$work/whole" $quick --json
    same "predicted and reported bytes" "$(value bytes_written)" "$predicted"
    same "predicted and real bytes" "$(tensor_bytes "$work/whole")" "$predicted"
    same linears "$(value layers)" 35
    has layers.0.name layers.0.proxy layers.0.bpw layers.0.seconds
    [ ! -e "$work/whole.partial" ] || fails "the working directory stays behind"
    grep -q "^walsh quantize: calibrating with the text that ships with walsh (.*/data/calibration.txt)\$" "$work/err" ||
        fails "it says which text calibrates"
    works run "$work/whole" "It was late" -n 4 --json
    works inspect "$work/whole" --json
    same format "$(value format)" e8p
    true_that "two bits" "$(value bits_per_weight) == 2"

    # --- threads change nothing
    for threads in 1 3; do
        works quantize "$model" "$work/threads-$threads" $quick --threads $threads
        same_files "$threads threads" "$work/whole" "$work/threads-$threads"
        rm -r "$work/threads-$threads"
    done

    # --- stopped at different places, then resumed: the bytes of an uninterrupted run
    stopped=0
    for signal in KILL INT TERM; do
        for progress in 1 700 1900; do # bytes of job.json: no, one, three layers are done
            "$CLI_WALSH" quantize "$model" "$work/stopped" $quick --threads 1 --quiet >"$work/out" 2>"$work/err" &
            pid=$!
            last="quantize, SIG$signal when job.json has $progress bytes"
            for _ in $(seq 6000); do
                # Before the kept tensors are copied there is nothing to go on with: such a job starts anew.
                grep -q '"copied": *true' "$work/stopped.partial/job.json" 2>/dev/null &&
                    [ "$(wc -c <"$work/stopped.partial/job.json")" -ge $progress ] && break
                [ -e "$work/stopped" ] && break
                sleep 0.02
            done
            kill -$signal $pid 2>/dev/null
            wait $pid 2>/dev/null
            code=$?
            if [ ! -e "$work/stopped" ]; then # else it was done before the signal came
                stopped=$((stopped + 1))
                case $signal in
                KILL) exits 137 ;;
                *)
                    exits 1
                    says "walsh quantize: stopped; finished layers are kept in WORK/stopped.partial: the same command with --resume goes on"
                    ;;
                esac
                refuses "WORK/stopped.partial holds an unfinished job; --resume goes on with it, removing it starts again" \
                    quantize "$model" "$work/stopped" $quick --quiet
                walsh quantize "$model" "$work/stopped" $quick --quiet --resume --seed 1
                exits 2
                grep -q '^walsh quantize: .*/stopped.partial was begun as another job (.* seed 42, .*, this one is (.* seed 1, ' \
                    "$work/err" || fails "the options of both jobs"
                works quantize "$model" "$work/stopped" $quick --resume --threads 2
            fi
            same_files "resumed after SIG$signal, $progress bytes" "$work/whole" "$work/stopped"
            rm -rf "$work/stopped" "$work/stopped.partial"
        done
    done
    [ $stopped -ge 5 ] || fails "only $stopped of 9 jobs were stopped in time"

    # --- what it refuses
    refuses "WORK/whole exists; quantize writes a new directory" quantize "$model" "$work/whole" $quick --quiet
    refuses "'no/model' is neither a directory nor in the Hugging Face cache (WORK/no-cache/hub); walsh does not download" \
        quantize no/model "$work/new" $quick
    refuses "WORK/missing: no such file" quantize "$model" "$work/new" $quick --calibration "$work/missing"
    refuses "WORK/none/new.partial: cannot make the directory: No such file or directory" \
        quantize "$model" "$work/none/new" $quick --quiet
    echo "too short" >"$work/short"
    misuse "WORK/short: 4 tokens are too few to calibrate: one sequence takes 128" \
        quantize "$model" "$work/new" $quick --calibration "$work/short"
    misuse "WORK/whole: model.layers.0.self_attn.q_proj is quantized already; quantize the original checkpoint" \
        quantize "$work/whole" "$work/new" $quick --quiet
    [ ! -e "$work/new" ] || fails "a refused job leaves a directory"
    [ ! -e "$work/new.partial" ] || fails "a refused job leaves a working directory"

    # --- a quantized checkpoint that is broken
    cp -r "$work/whole" "$work/broken"
    tensor=model.layers.0.self_attn.q_proj.Wscale
    length=$(od -An -tu4 -N4 "$work/whole/model.safetensors" | tr -d ' ')
    offset=$(head -c $((8 + length)) "$work/whole/model.safetensors" | tail -c "$length" | tr '{' '\n' | grep -A 1 "$tensor" |
        tail -n 1 | sed -n 's/.*"data_offsets":\[\([0-9]*\),.*/\1/p')
    printf '\000\000\300\177' |
        dd of="$work/broken/model.safetensors" bs=1 seek=$((8 + length + offset)) conv=notrunc 2>/dev/null
    refuses "WORK/broken/model.safetensors: tensor $tensor: is nan, expected a finite number" inspect "$work/broken"

    # --- a full disk: a message, no directory that looks whole, and the job can go on where there is room
    last="quantize under a limit of the file size"
    (
        ulimit -f 1000 # blocks of 512 bytes, or of 1024
        exec "$CLI_WALSH" quantize "$model" "$work/full" $quick --quiet >"$work/out" 2>"$work/err"
    )
    code=$?
    exits 1
    says "walsh quantize: WORK/full.partial/model.safetensors: cannot reserve $predicted bytes: File too large"
    [ ! -e "$work/full" ] || fails "a directory that looks whole"
    works quantize "$model" "$work/full" $quick --resume
    same_files "after a full disk" "$work/whole" "$work/full"
    if [ "$(id -u)" -eq 0 ] && mkdir "$work/small" && mount -t tmpfs -o size=4m tmpfs "$work/small" 2>/dev/null; then
        refuses "WORK/small/out.partial/model.safetensors: cannot reserve $predicted bytes: No space left on device" \
            quantize "$model" "$work/small/out" $quick --quiet
        [ ! -e "$work/small/out" ] || fails "a directory that looks whole"
        umount "$work/small"
    fi
}

finish
