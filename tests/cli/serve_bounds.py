"""walsh serve: what one client may cost the others. Started by test_serve.sh."""
import concurrent.futures
import os
import resource
import shutil
import tempfile
import time

from serve_client import *

WORK = tempfile.mkdtemp(prefix="walsh-serve.")
BASE = {"prompt": "It was late in the evening when", "max_tokens": 12, "seed": 5, "temperature": 0.9}
LONG = {**BASE, "max_tokens": 1000, "ignore_eos": True}
CHAT = "/v1/chat/completions"
cases = Cases()


def refusal(s, body, path="/v1/completions", headers=None):
    status, answer = s.post(path, body, headers)
    return status, answer.get("error", {}).get("code"), answer.get("error", {}).get("param"), answer.get("error", {}).get("message", "")


def resident(s):
    """MiB."""
    with open("/proc/%d/status" % s.process.pid) as f:
        return int(re.search(r"VmRSS:\s+(\d+)", f.read()).group(1)) / 1024


def extreme_sampling():
    """Values at the ends of their ranges; a temperature near nothing is greedy."""
    s = Server()
    try:
        greedy = s.post("/v1/completions", {**BASE, "temperature": 0})[1]["choices"][0]["text"]
        for temperature in (1e-7, 1e-40, 1e-300):
            assert s.post("/v1/completions", {**BASE, "temperature": temperature})[1]["choices"][0]["text"] == greedy
        form = {"type": "json_object"}
        for extreme in ({"temperature": 1e-6}, {"temperature": 100}, {"top_p": 1e-300}, {"min_p": 1}, {"logit_bias": {"5": -100, "6": 100}},
                        {"repetition_penalty": 0.01}, {"repetition_penalty": 100}, {"frequency_penalty": -100}, {"top_k": 2 ** 31 - 1},
                        {"temperature": 1e-38, "response_format": form}, {"temperature": 100, "response_format": form},
                        {"seed": 2 ** 63 - 1}, {"seed": -2 ** 63}):
            assert s.post("/v1/completions", {**BASE, **extreme})[0] == 200, extreme
        # seeds count modulo 2^64: the choices of -1 are those of -1, 0
        text = lambda seed, **more: [c["text"] for c in s.post("/v1/completions", {**BASE, "seed": seed, **more})[1]["choices"]]
        both = text(-1, n=2)
        assert both == [run_alone(BASE["prompt"], 12, -1, temp=0.9)["text"]] + text(0) and both[0] != both[1], both
        assert refusal(s, {**BASE, "seed": 1.5})[:3] == (400, "invalid_type", "seed")
    finally:
        assert s.stop() == 0


def parsed_bodies_are_let_go():
    """What waits keeps of its body what it needs; a body has so many JSON values."""
    s = Server("--max-batch", "1", "--max-queue", "200", "--drain-timeout", "0.1")
    try:
        first = s.begin({**LONG, "n": 60, "stream": True})
        first.recv(100)
        before, waiting = resident(s), []
        for i in range(30):
            waiting.append(s.begin({**BASE, "metadata": {"a": [""] * 250000}}))
        wait_for("a queue", lambda: s.taken() == 60 + 30)
        grown = resident(s) - before
        print("30 waiting requests of 250,000 values: %.0f MiB" % grown)
        assert grown < 400 * SLOWER, grown
        for c in waiting + [first]:
            c.close()
        for metadata in ([{}] * 400000, [0] * 300000, [[]] * 20000):
            status, code, _, says = refusal(s, {**BASE, "metadata": metadata})
            assert (status, code) == (400, "too_many_values"), (status, code, says)
        assert refusal(s, {**BASE, "user": ",[{" * 80})[0] == 200, "brackets in strings are none"
    finally:
        assert s.stop() == 0


def others_go_on_beside_heavy_bodies():
    """/health answers and streams flow while clients send bodies that cost something."""
    s = Server("--max-batch", "2")
    stop = 0
    many = json.dumps({"messages": [{"role": "user", "content": "x"}] * 60000})
    some = json.dumps({"messages": [{"role": "user", "content": "x"}] * 2048})
    text = json.dumps({"prompt": "It was late in the evening. " * 60000})
    def client(path, body, want):
        while time.monotonic() < stop:
            assert s.ask("POST", path, body)[0] == want
    def health():
        worst = 0
        while time.monotonic() < stop:
            begun = time.monotonic()
            assert s.ask("GET", "/health")[0] == 200
            worst = max(worst, time.monotonic() - begun)
        return worst
    def stream():
        c = s.begin({**LONG, "n": 64, "stream": True})
        c.recv(100)
        worst = 0
        while time.monotonic() < stop:
            begun = time.monotonic()
            assert c.recv(65536)
            worst = max(worst, time.monotonic() - begun)
        c.close()
        return worst
    def attempt():
        nonlocal stop
        stop = time.monotonic() + 4
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            heavy = [pool.submit(client, *a) for a in ((CHAT, many, 400), (CHAT, many, 400), ("/tokenize", some, 200), ("/tokenize", text, 200),
                                                      ("/v1/completions", text, 400))]
            watched = pool.submit(health), pool.submit(stream)
            for h in heavy:
                h.result()
            gaps = [w.result() for w in watched]
        print("beside heavy bodies: /health %.2f s, between pieces of a stream %.2f s at most" % tuple(gaps))
        return max(gaps)
    try:
        within(2.5 * SLOWER, attempt)
        assert refusal(s, {"messages": [{"role": "user", "content": "x"}] * 2049}, CHAT)[:3] == (400, "invalid_value", "messages")
        for path, body, param in ((CHAT, {"messages": [{"role": "user", "content": "x" * 100000}]}, "messages"),
                                  ("/v1/completions", {"prompt": "x" * 100000}, "prompt")):
            got = refusal(s, body, path)
            assert got[:3] == (400, "context_length_exceeded", param) and "100000 bytes" in got[3], got
    finally:
        assert s.stop() == 0


def adapters_stay_below_their_directory():
    root = WORK + "/adapters"
    os.makedirs(root + "/links")
    shutil.copytree(LORA, root + "/own")
    os.makedirs(root + "/within")
    for name in os.listdir(LORA):
        os.symlink(LORA + "/" + name, root + "/links/" + name)
        os.symlink("../own/" + name, root + "/within/" + name)
    s = Server("--adapter", "bard=" + LORA, "--adapter-directory", root)
    load = lambda name, path: refusal_of(s, "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})
    unload = lambda name: refusal_of(s, "/v1/unload_lora_adapter", {"lora_name": name})
    try:
        assert load("x", "links") == (404, "adapter_not_found"), "its files lie elsewhere"
        os.remove(root + "/links/adapter_config.json")
        shutil.copy(LORA + "/adapter_config.json", root + "/links")
        assert load("x", "links") == (404, "adapter_not_found"), "one of its files lies elsewhere"
        assert load("x", "within") == (200, None), "links that stay below are fine"
        for name in ("a\nb", "a\x7f", "<b>", "a\"b", "a&b"):
            assert load(name, "own") == (400, "invalid_value"), name
        assert unload("bard") == (403, "adapter_is_fixed")
        assert s.post("/v1/completions", {**BASE, "model": "bard"})[0] == 200
        assert unload("x") == (200, None) and unload("x") == (404, "model_not_found")
    finally:
        assert s.stop() == 0


def refusal_of(s, path, body):
    status, _, data = s.ask("POST", path, body)
    return status, None if status == 200 else json.loads(data)["error"]["code"]


def who_leaves_is_seen_within_a_second():
    """One client, and many more at once than were once looked at."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    many = 2400
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    if min(hard, 8192) < 2 * many:
        print("skipped: %d clients at once: the limit of files is %d" % (many, hard))
        many = 100
    s = Server("--max-batch", "1", "--max-queue", "5000", "--max-connections", "4000", "--drain-timeout", "0.1")
    try:
        first = s.begin({**LONG, "n": 64, "stream": True})
        first.recv(100)
        def leave(count):
            before = s.metric("disconnects_total")
            waiting = [s.begin(BASE) for _ in range(count)]
            wait_for("a queue", lambda: s.taken() == 64 + count)
            begun = time.monotonic()
            for c in waiting:
                c.close()
            closed = time.monotonic()
            wait_for("gone", lambda: s.metric("disconnects_total") == before + count)
            took = time.monotonic() - closed
            print("%d clients closed in %.2f s, seen %.2f s later" % (count, closed - begun, took))
            wait_for("the first one alone", lambda: s.taken() == 64)
            assert s.sequences("finished_total") < 64, "it still runs"
            return took
        for count in (1, many):
            within(3 * SLOWER, lambda: leave(count))
        first.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert s.stop() == 0


def requests_that_trickle_are_cut():
    """A byte now and then keeps no connection: the whole request has --read-timeout."""
    s = Server("--read-timeout", "1")
    try:
        for beginning in (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
                          b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"):
            c = socket.create_connection(("127.0.0.1", s.port), PATIENCE)
            c.sendall(beginning)
            c.settimeout(0.2)
            for sent in range(100):
                try:
                    c.sendall(b"y")
                    if c.recv(100) == b"":
                        break
                except socket.timeout:
                    continue
                except OSError:
                    break
            assert sent < 90, "a byte every 0.2 seconds is still there after %d" % sent
            c.close()
        wait_for("in the log", lambda: [l for l in s.log("request") if l["status"] == 499])
    finally:
        assert s.stop() == 0


def bodies_have_a_total():
    s = Server("--max-body", str(64 << 20), "--read-timeout", "600")
    head = (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n" % (60 << 20))
    block = b" " * (1 << 20)
    def send(blocks):
        c = socket.create_connection(("127.0.0.1", s.port), PATIENCE)
        c.sendall(head)
        for _ in range(blocks):
            c.sendall(block)
        return c
    def answer(c):
        data = b""
        while piece := c.recv(65536):
            data += piece
        return data
    try:
        held = [send(59) for _ in range(5)]
        data = answer(send(60))
        assert data.startswith(b"HTTP/1.1 503") and b'"busy"' in data and b"Retry-After: 1" in data, data[:300]
        for c in held:
            c.close()
        wait_for("room again", lambda: b'"invalid_json"' in answer(send(60)))
    finally:
        assert s.stop() == 0


def unknown_members_are_named():
    s = Server()
    chat = lambda message, **more: refusal(s, {"messages": [{"role": "user", "content": "x", **message}], "max_tokens": 2, **more}, CHAT)
    form = lambda **f: chat({}, response_format=f)
    try:
        for name in ("function_call", "audio", "tool_calls", "tool_call_id", "refusal", "annotations", "colour"):
            status, code, param, says = chat({name: [1]})
            assert (status, code, param) == (400, "unknown_parameter", "messages") and "'%s'" % name in says, says
        assert chat({"name": 5})[:2] == (400, "invalid_type")
        part = {"type": "text", "text": "x"}
        status, code, _, says = chat({"content": [{**part, "cache_control": {}}]})
        assert (status, code) == (400, "unknown_parameter") and "'cache_control'" in says, says
        given = {k: None for k in ("tool_calls", "refusal", "audio", "function_call", "name")}
        for fine in (given, {**given, "annotations": None}, {**given, "annotations": []}, {"name": "Ann"}, {"content": [{**part, "x": None}]}):
            assert chat(fine)[0] == 200, fine
        assert chat({}, logprobs=False, top_logprobs=0)[0] == 200
        for wrong, name in (({"type": "json_object", "schema": {}}, "schema"), ({"type": "json_object", "json_schema": {}}, "json_schema"),
                            ({"type": "text", "strict": True}, "strict"),
                            ({"type": "json_schema", "json_schema": {"schema": {}}, "strict": True}, "strict")):
            status, code, param, says = form(**wrong)
            assert (status, code, param) == (400, "unknown_parameter", "response_format") and name in says, (wrong, says)
        for schema in ({"name": 5}, {"strict": "yes"}, {"description": []}):
            got = form(type="json_schema", json_schema={"schema": {"type": "object"}, **schema})
            assert got[:3] == (400, "invalid_type", "response_format") and list(schema)[0] in got[3], got
        assert form(type="json_schema", json_schema={"name": "x", "strict": None, "description": None, "schema": {"type": "object"}})[0] == 200
        for schema, says in (({"type": "array", "minItems": -1}, "found -1, expected a whole number"), ({"enum": []}, "the array is empty")):
            got = form(type="json_schema", json_schema={"schema": schema})
            assert got[0] == 400 and says in got[3], got
        for name in ("messages", "tools", "documents", "add_generation_prompt", "bos_token"):
            got = chat({}, chat_template_kwargs={name: []})
            assert got[:3] == (400, "unsupported_value", "chat_template_kwargs") and name in got[3], got
        assert chat({}, chat_template_kwargs={"enable_thinking": False})[0] == 200
        two = b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
        got = s.raw(two)
        assert got.startswith(b"HTTP/1.1 400") and (b'"invalid_host"' in got or b"application/json" not in got), got[:200]
        # two lengths, or a length and chunks: refused, and nothing behind is taken for a request
        head, body = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n", b'{"prompt": "a"}'
        behind = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        length = b"Content-Length: %d\r\n" % len(body)
        for fields, sent in ((length + b"Content-Length: 3\r\n", body), (length + length, body),
                             (length + b"Transfer-Encoding: chunked\r\n", chunk)):
            got = s.raw(head + fields + b"\r\n" + sent + behind)
            assert got.count(b"HTTP/1.1 ") == 1 and got.startswith(b"HTTP/1.1 400") and b'"invalid_length"' in got, got[:400]
        # a coding or a length that another reader of the same bytes may see, and the next request begin elsewhere for it
        for fields in (b"Transfer-Encoding : chunked\r\n", b"transfer-encoding\t: chunked\r\n", b"Transfer-Encoding:\r\n chunked\r\n",
                       b"Content-Length:\r\n 4\r\n", b"Content-Length : 4\r\n", b"X-A: b\r\n Transfer-Encoding: chunked\r\n",
                       b"X-A: b\rTransfer-Encoding: chunked\r\n"):
            for own in (b"", length):
                got = s.raw(head + fields + own + b"\r\n" + body + behind)
                assert got.count(b"HTTP/1.1 ") == 1 and got.startswith(b"HTTP/1.1 400") and b'"invalid_header"' in got, (fields, got[:400])
        # a coding that nobody knows: told before any of the body, not when the time to read it is over
        for coding in (b"gzip", b"gzip, chunked", b"identity", b"chunkedx", b""):
            for fields in (b"", length):
                got = s.raw(head + b"Transfer-Encoding: " + coding + b"\r\n" + fields + b"\r\n")
                assert got.startswith(b"HTTP/1.1 501") and b'"unknown_transfer_coding"' in got and b'\\"%s\\"' % coding in got, (coding, got[:400])
        for fields, sent in ((length, body), (b"Transfer-Encoding: chunked\r\n", chunk), (b"transfer-encoding: Chunked\r\n", chunk)):
            got = s.raw(head + fields + b"\r\n" + sent + behind)
            assert got.count(b"HTTP/1.1 200") == 2, got[:400]
    finally:
        assert s.stop() == 0


def refuses_connections(s):
    try:
        socket.create_connection(("127.0.0.1", s.port), PATIENCE).close()
    except ConnectionRefusedError:
        return True
    return False


def errors_have_their_codes():
    """Those that no other test provokes."""
    s = Server("--max-queue", "8", "--drain-timeout", "300", "--max-batch", "1")  # one row: what runs at the end runs long
    code = lambda method, path, body=None, headers=None: (lambda r: (r[0], json.loads(r[2])["error"]["code"]))(s.ask(method, path, body, headers))
    try:
        assert code("POST", "/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "y"}) == (403, "not_enabled")
        assert code("POST", "/v1/unload_lora_adapter", {"lora_name": "x"}) == (403, "not_enabled")
        assert code("GET", "/v1/completions") == (405, "method_not_allowed")
        assert code("GET", "/nothing") == (404, "not_found")
        assert code("GET", "/" + "x" * 600) == (414, "uri_too_long")
        assert code("GET", "/health", headers={"X-Long": "y" * 20000, "X-Longer": "y" * 20000}) == (431, "headers_too_large")
        assert code("GET", "/health", b"{}") == (400, "unexpected_body")
        got = refusal(s, {**BASE, "n": 9})
        assert got[:3] == (400, "invalid_value", "n") and "more than 8" in got[3], got
        assert not any(l.get("disconnected") for l in s.log("request"))
        # a connection that was there before the end begins is told of it
        running, kept = s.begin({**LONG, "n": 8, "stream": True}), s.connect()
        running.recv(100)
        kept.request("GET", "/ready")
        assert kept.getresponse().read() == b"ready\n"
        s.process.send_signal(signal.SIGTERM)
        wait_for("the end to begin", lambda: s.log("draining"))
        wait_for("no new connection", lambda: refuses_connections(s))
        kept.request("POST", "/v1/completions", json.dumps(BASE), {"Content-Type": "application/json"})
        late = kept.getresponse()
        assert (late.status, json.loads(late.read())["error"]["code"]) == (503, "shutting_down")
        running.close()
        assert s.process.wait(PATIENCE) == 0
    finally:
        if s.process.poll() is None:
            s.process.kill()


def templates_that_fail():
    chat = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    for template, want, says in ((None, (400, "no_chat_template", "messages"), "no chat template"),
                           ("{{ raise_exception('No such turn') }}", (400, "invalid_messages", "messages"), "line 1: No such turn"),
                           ("{{ messages[7].content }}", (400, "invalid_messages", "messages"), "fails with this conversation: "),
                           ("{{ messages | nothing }}", (500, "template_error", None), 'the filter "nothing" is not known'),
                           ("x\n{% for %}", (500, "template_error", None), "template cannot be used: ")):
        model = tempfile.mkdtemp(dir=WORK)
        for name in os.listdir(MODEL):
            if name not in ("chat_template.jinja", "tokenizer_config.json"):
                os.symlink(MODEL + "/" + name, model + "/" + name)
        with open(MODEL + "/tokenizer_config.json") as f, open(model + "/tokenizer_config.json", "w") as to:
            json.dump({k: v for k, v in json.load(f).items() if k != "chat_template"}, to)
        if template:
            with open(model + "/chat_template.jinja", "w") as f:
                f.write(template)
        s = Server(model=model)
        try:
            got = refusal(s, chat, CHAT)
            assert got[:3] == want and says in got[3], (template, got)
            assert template is None or "chat_template.jinja: line %d: " % (1 + template.count("\n")) in got[3], got
        finally:
            assert s.stop() == 0


def histograms_are_what_the_client_saw():
    s = Server("--max-batch", "1")
    names = ("time_to_first_token_seconds", "time_between_tokens_seconds", "request_duration_seconds", "queue_seconds")
    def read():
        text = s.ask("GET", "/metrics")[2].decode()
        return {n: ([(float(le), float(v)) for le, v in re.findall(r'^walsh_%s_bucket\{le="(.*)"\} (.*)$' % n, text, re.M)],
                    float(re.search(r"^walsh_%s_sum (.*)$" % n, text, re.M).group(1)),
                    float(re.search(r"^walsh_%s_count (.*)$" % n, text, re.M).group(1))) for n in names}
    try:
        before = read()
        begun = time.monotonic()
        c = s.begin({**LONG, "max_tokens": 900, "stream": True})
        data, first = b"", None
        while not data.endswith(b"0\r\n\r\n"):
            data += c.recv(65536)
            if first is None and b"data: " in data:
                first = time.monotonic() - begun
        c.close()
        wait_for("its end", lambda: read()["request_duration_seconds"][2] == 1)
        after = read()
        seen = {n: after[n][1] - before[n][1] for n in names}
        counts = [after[n][2] - before[n][2] for n in names]
        assert counts == [1, 899, 1, 1], counts
        assert seen["queue_seconds"] <= seen["time_to_first_token_seconds"] <= first, (seen, first)
        # what is not before the first token is between tokens, but for the client's own time
        rest = seen["request_duration_seconds"] - seen["time_to_first_token_seconds"]
        assert 0.3 * rest <= seen["time_between_tokens_seconds"] <= rest + 1e-6, (seen, rest)
        for n in names:
            buckets, total, count = after[n]
            assert buckets[-1] == (float("inf"), count)
            low = high = below = last = 0
            for bound, cumulated in buckets:
                low, high, below, last = low + (cumulated - below) * last, high + (cumulated - below) * bound if cumulated > below else high, cumulated, bound
            assert low - 1e-6 <= total <= high + 1e-6, (n, low, total, high)
    finally:
        assert s.stop() == 0


cases.run(extreme_sampling, parsed_bodies_are_let_go, others_go_on_beside_heavy_bodies, adapters_stay_below_their_directory,
          who_leaves_is_seen_within_a_second, requests_that_trickle_are_cut, bodies_have_a_total, unknown_members_are_named,
          errors_have_their_codes, templates_that_fail, histograms_are_what_the_client_saw)
shutil.rmtree(WORK, ignore_errors=True)
cases.finish()
