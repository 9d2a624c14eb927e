"""Faults against a real `walsh serve`: clients killed in the middle of streams, slow readers, half-open connections, garbage,
thousands of connection attempts, a full disk under the prefix store, kill -9 and restart. All the while other clients ask, and
every answer is compared with the one that `walsh run` gives; at the end the memory is what it was.

  serve_faults.py BUILD [SECONDS]      default: 20 seconds of load; a run to record: 1200

Prints one JSON object. Exit 1 where an answer was wrong, the server died, or its memory grew. Under ASan (a BUILD of the
preset asan) memory is not compared: freed memory is kept for a while there."""
import os
import random
import sys

BUILD = os.path.abspath(sys.argv[1]) if len(sys.argv) > 1 else sys.exit(__doc__)
SECONDS = float(sys.argv[2]) if len(sys.argv) > 2 else 20
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
os.environ.update(CLI_SOURCE=ROOT, CLI_WALSH=BUILD + "/walsh")
sys.path.insert(0, ROOT + "/tests/cli")
import shutil
import tempfile

from serve_client import *

WORK = tempfile.mkdtemp(prefix="walsh-faults.")
SANITIZED = b"__asan_init" in open(BUILD + "/walsh", "rb").read()
ATTEMPTS = 10000
PROMPTS = ["It was late", "The captain said", "\"Where is she?\" asked the old man.", "A long story. " * 60, "My lord,"]
counts = {"asked": 0, "right": 0, "refused": 0, "killed": 0, "slow": 0, "half_open": 0, "garbage": 0, "attempts": 0, "restarts": 0}
lock = threading.Lock()
wrong = []
stop = threading.Event()


def count(what, n=1):
    with lock:
        counts[what] += n


def plan(i):
    return {"prompt": PROMPTS[i % 5], "max_tokens": 4 + 9 * (i % 4), "seed": 50 + i, "temperature": 0.9}


WANT = [run_alone(plan(i)["prompt"], plan(i)["max_tokens"], plan(i)["seed"], i % 3 == 0, temp=0.9)["text"] for i in range(20)]


def listening(*more):
    """A server whose log goes to a file: --quiet, so that only what is wrong is there."""
    probe = socket.create_server(("127.0.0.1", 0))
    port = probe.getsockname()[1]
    probe.close()
    s = Server.__new__(Server)
    command = [WALSH, "serve", MODEL, "--port", str(port), "--adapter", "bard=" + LORA, "--max-batch", "8", "--max-queue", "64",
               "--read-timeout", "2", "--max-connections", "200", "--quiet", *more]
    s.errors = open(WORK + "/log", "ab")
    s.process = subprocess.Popen(command, stderr=s.errors, stdin=subprocess.DEVNULL)
    s.port, s.lines, s.reader = port, [], None
    def up():
        if s.process.poll() is not None:
            raise SystemExit("the server did not start:\n" + open(WORK + "/log").read())
        try:
            return s.ask("GET", "/ready")[0] == 200
        except OSError:
            return False
    wait_for("the server", up)
    return s


server = None


def ask(rng):
    """One answer, compared; what the server may not answer now is no failure."""
    i = rng.randrange(20)
    body = dict(plan(i), model="bard" if i % 3 == 0 else "bookworm-8m")
    count("asked")
    try:
        if rng.random() < .5:
            text = "".join(p["choices"][0]["text"] for p in server.stream("/v1/completions", body))
        else:
            status, answer = server.post("/v1/completions", body)
            if status in (429, 503):
                return count("refused")
            text = answer["choices"][0]["text"]
    except (OSError, http.client.HTTPException, AssertionError, ValueError, KeyError):
        return count("refused")
    if text == WANT[i]:
        return count("right")
    wrong.append([i, text, WANT[i]])


def kill_client(rng):
    """In the middle of a stream, by a reset."""
    try:
        s = server.begin({**plan(rng.randrange(20)), "max_tokens": 500, "stream": rng.random() < .7, "ignore_eos": True})
        if rng.random() < .7:
            s.settimeout(1)
            s.recv(rng.choice([1, 300, 5000]))
        import struct
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        s.close()
        count("killed")
    except OSError:
        pass


def read_slowly(rng):
    try:
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        s.connect(("127.0.0.1", server.port))
        data = json.dumps({**plan(1), "max_tokens": 900, "n": 4, "stream": True, "ignore_eos": True, "logprobs": 20}).encode()
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                  % len(data) + data)
        s.settimeout(1)
        for _ in range(rng.randrange(20)):
            s.recv(16)
            stop.wait(.05)
        stop.wait(rng.random())
        s.close()
        count("slow")
    except OSError:
        pass


def leave_half_open(rng):
    try:
        s = socket.create_connection(("127.0.0.1", server.port), 5)
        s.sendall(rng.choice([b"", b"GET / HT", b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n",
                              b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                              b"Content-Length: 1000\r\n\r\n{\"prompt\":"]))
        stop.wait(rng.choice([0, 3]))
        s.close()
        count("half_open")
    except OSError:
        pass


def send_garbage(rng):
    valid = (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 40\r\n\r\n"
             b"{\"prompt\": \"It was late\", \"max_tokens\": 2}")
    data = bytearray(rng.choice([os.urandom(rng.randrange(1, 3000)), valid, b"GET /metrics HTTP/1.1\r\n" + b"A: b\r\n" * 3000]))
    for _ in range(rng.randrange(5)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    try:
        server.raw(bytes(data), timeout=3, half_close=rng.random() < .5)
        count("garbage")
    except OSError:
        pass


def attempt(rng):
    for _ in range(50):
        try:
            s = socket.create_connection(("127.0.0.1", server.port), 2)
            if rng.random() < .1:
                s.sendall(b"G")
            s.close()
        except OSError:
            pass
    count("attempts", 50)


def load(seconds):
    rng = random.Random(1)
    print("seed 1", file=sys.stderr)
    deeds = [ask] * 10 + [kill_client] * 3 + [read_slowly, leave_half_open, send_garbage, attempt]
    def worker(seed):
        own = random.Random(seed)
        while not stop.is_set():
            own.choice(deeds)(own)
    stop.clear()
    threads = [threading.Thread(target=worker, args=(rng.random(),)) for _ in range(24)]
    for t in threads:
        t.start()
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.process.poll() is None:
        time.sleep(.2)
    stop.set()
    for t in threads:
        t.join()


def at_rest():
    def quiet():
        return server.sequences("waiting", "prefilling", "decoding") == 0
    wait_for("a server at rest", quiet)
    assert server.metric("kv_tokens_used") == 0
    time.sleep(2.5)  # idle connections are closed
    return int(re.search(r"VmRSS:\s+(\d+)", open("/proc/%d/status" % server.process.pid).read()).group(1)) / 1024


def leave_the_queue():
    """Seconds from when the clients of requests that wait close their sockets until the queue is without them; the median of 5."""
    seconds = []
    for _ in range(5):
        busy = [server.begin({**plan(0), "max_tokens": 950, "stream": True, "ignore_eos": True}) for _ in range(8)]
        wait_for("a full batch", lambda: server.sequences("decoding", "prefilling") == 8)
        waiting = [server.begin({**plan(1), "max_tokens": 9}) for _ in range(4)]
        wait_for("a queue", lambda: server.metric("sequences_waiting") == 4)
        begin = time.monotonic()
        for s in waiting:
            s.close()
        wait_for("an empty queue", lambda: server.metric("sequences_waiting") == 0)
        seconds.append(time.monotonic() - begin)
        for s in busy:
            s.close()
        wait_for("a server at rest", lambda: server.metric("sequences_decoding") == 0)
    return sorted(seconds)[2]


problems = []
started = time.monotonic()
server = listening("--prefix-store", WORK + "/prefixes", "--prefix-store-limit", "64M")
load(min(10, SECONDS / 3))  # what is made once is there
memory = [at_rest()]
for _ in range(8):
    load(SECONDS / 8)
    memory.append(at_rest())
while counts["attempts"] < ATTEMPTS:
    attempt(random.Random(2))
if server.ask("GET", "/health")[0] != 200:
    problems.append("no answer after %d connection attempts" % counts["attempts"])
left = leave_the_queue()
if left > 1:
    problems.append("requests whose clients had left waited %.2f s" % left)
if not SANITIZED and (memory[-1] > memory[0] * 1.1 + 16 or memory[-1] > memory[4] * 1.1 + 4):
    problems.append("memory grew: %r MiB" % memory)

# killed in the middle of work, and again: what it left in the prefix store harms nobody
for _ in range(3):
    busy = [server.begin({**plan(3), "max_tokens": 500, "stream": True, "ignore_eos": True}) for _ in range(6)]
    time.sleep(.2)
    server.process.kill()
    server.process.wait()
    for s in busy:
        s.close()
    server = listening("--prefix-store", WORK + "/prefixes", "--prefix-store-limit", "64M")
    counts["restarts"] += 1
    before = counts["right"]
    for seed in range(6):
        ask(random.Random(seed))
    if counts["right"] - before != 6:
        problems.append("after a restart %d of 6 answers were right" % (counts["right"] - before))
code = server.stop()
if code != 0:
    problems.append("exit %d" % code)

# a full disk under the store: a warning, and answers as ever
small = WORK + "/small"
os.mkdir(small)
if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], capture_output=True).returncode == 0:
    try:
        server = listening("--prefix-store", small + "/store", "--prefix-store-limit", "1G")
        for i in range(12):
            body = {**plan(3), "prompt": "Story %d. " % i + "A long story. " * 200}
            if server.post("/v1/completions", body)[0] != 200:
                problems.append("no answer with a full disk")
        before = counts["right"]
        for seed in range(6):
            ask(random.Random(seed))
        if counts["right"] - before != 6:
            problems.append("wrong answers with a full disk")
        full = shutil.disk_usage(small).free
        if server.stop() != 0:
            problems.append("exit with a full disk")
        disk = "full, %d bytes free" % full
    finally:
        subprocess.run(["umount", small])
else:
    disk = "skipped: a small file system cannot be mounted here"

log = open(WORK + "/log", errors="replace").read()
for word in ("AddressSanitizer", "LeakSanitizer", "runtime error", "ThreadSanitizer", '"level":"error"'):
    if word in log:
        problems.append("the log has %s: %s" % (word, log[log.index(word):][:2000]))
if wrong:
    problems.append("%d wrong answers, the first: %r" % (len(wrong), wrong[0]))
print(json.dumps({"seconds": round(time.monotonic() - started), "sanitizer": SANITIZED, "seconds_to_leave_the_queue": round(left, 3), "memory_mib": [round(m, 1) for m in memory],
                  "disk": disk, **counts, "problems": problems}))
shutil.rmtree(WORK, ignore_errors=True)
sys.exit(1 if problems else 0)
