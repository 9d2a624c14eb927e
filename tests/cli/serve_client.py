"""What the scripts that drive a real `walsh serve` share: starting it, asking it, reading its streams. Python's
standard library only."""
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

SOURCE = os.environ["CLI_SOURCE"]
WALSH = os.environ["CLI_WALSH"]
MODEL = SOURCE + "/models/bookworm-8m"
LORA = SOURCE + "/models/shakespeare-lora-8m"
PATIENCE = 300  # seconds: a machine under load, a sanitizer; nothing waits for it that does not fail
with open(WALSH, "rb") as program:
    SLOWER = 10 if re.search(b"__[at]san_init", program.read()) else 1  # times, about


class Server:
    """A server on a free port of loopback; its log lines are kept."""

    def __init__(self, *options, model=MODEL):
        command = [WALSH, "serve", model, "--port", "0", *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
        self.lines, self.listening = [], threading.Event()
        self.port = None
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        if not self.listening.wait(PATIENCE) or self.port is None:
            raise SystemExit("the server did not start: %s\n%s" % (command, "\n".join(self.lines)))

    def _read(self):
        for line in self.process.stderr:
            line = line.decode("utf-8", "replace").rstrip("\n")
            self.lines.append(line)
            if '"event":"listening"' in line:
                self.port = json.loads(line)["port"]
                self.listening.set()
        self.listening.set()

    def log(self, event):
        return [json.loads(l) for l in list(self.lines) if '"event":"%s"' % event in l]

    def connect(self, timeout=PATIENCE):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def ask(self, method, path, body=None, headers=None, timeout=PATIENCE):
        """Status, headers, bytes."""
        connection = self.connect(timeout)
        headers = dict(headers or {})
        if body is not None and not isinstance(body, (bytes, str)):
            body = json.dumps(body)
        if body is not None:
            headers.setdefault("Content-Type", "application/json")
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        data = response.read()
        result = response.status, {k.lower(): v for k, v in response.getheaders()}, data
        connection.close()
        return result

    def post(self, path, body, headers=None):
        status, _, data = self.ask("POST", path, body, headers)
        return status, json.loads(data)

    def stream(self, path, body, headers=None):
        """The events' objects, [DONE] checked."""
        headers = dict(headers or {})
        headers["Content-Type"] = "application/json"
        status, got, data = self.ask("POST", path, dict(body, stream=True), headers)
        if status != 200:
            raise AssertionError("stream: %d %r" % (status, data))
        assert got["content-type"].startswith("text/event-stream"), got
        events = data.decode("utf-8").split("\n\n")  # strict: no half character
        assert events[-1] == "" and events[-2] == "data: [DONE]", events[-3:]
        assert all(e.startswith("data: ") for e in events[:-1])
        return [json.loads(e[6:]) for e in events[:-2]]

    def metric(self, name, text=None):
        text = text or self.ask("GET", "/metrics")[2].decode()
        found = re.search(r"^walsh_%s ([0-9.e+-]+)$" % re.escape(name), text, re.M)
        return float(found.group(1)) if found else None

    def sequences(self, *states):
        """The sum over these states, of one look: between two of them a sequence may pass from one state to the next."""
        text = self.ask("GET", "/metrics")[2].decode()
        return sum(self.metric("sequences_" + state, text) for state in states)

    def taken(self):
        """Sequences that the engine has and has had, without those that failed or whose client left."""
        return self.sequences("waiting", "prefilling", "decoding", "finished_total")

    def raw(self, data, timeout=PATIENCE, half_close=False, first=False):
        """What comes back until the server closes; first: until there is one whole answer, whose connection may stay."""
        def whole():
            head, end, body = out.partition(b"\r\n\r\n")
            length = re.search(rb"\r\ncontent-length: (\d+)", head, re.I)
            return end and length and len(body) >= int(length[1])
        s = socket.create_connection(("127.0.0.1", self.port), timeout)
        out = b""
        try:
            s.sendall(data)
            if half_close:
                s.shutdown(socket.SHUT_WR)
            while piece := s.recv(65536):
                out += piece
                if first and whole():
                    break
        except OSError:
            pass
        s.close()
        return out

    def begin(self, body, path="/v1/completions"):
        """A socket whose request is sent; nothing read."""
        s = socket.create_connection(("127.0.0.1", self.port), PATIENCE)
        data = json.dumps(body).encode()
        s.sendall(b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                  % (path.encode(), len(data)) + data)
        return s

    def stop(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        code = self.process.wait(PATIENCE)
        if self.reader:
            self.reader.join(PATIENCE)
        return code


def wait_for(what, condition, seconds=PATIENCE):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("it never came: " + what)
        time.sleep(0.02)


def within(seconds, attempt, tries=3):
    """attempt() gives less: at once or in more tries, for a machine that stands still is not a server that does."""
    took = []
    while not took or took[-1] >= seconds:
        assert len(took) < tries, took
        took.append(attempt())


def run_alone(prompt, tokens, seed, adapter=False, **sampling):
    """The same by `walsh run`: the JSON object."""
    command = [WALSH, "run", MODEL, "-p", prompt, "-n", str(tokens), "--seed", str(seed), "--json", "--quiet"]
    if adapter:
        command += ["--adapter", LORA]
    for name, value in sampling.items():
        command += ["--" + name.replace("_", "-"), str(value)]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)


class Cases:
    """Named checks; all run, the failures are told."""

    def __init__(self):
        self.failures = 0

    def run(self, *functions):
        for function in functions:
            begun = time.monotonic()
            try:
                function()
            except (AssertionError, OSError, http.client.HTTPException, KeyError, ValueError) as error:
                import traceback
                self.failures += 1
                print("FAILED: %s: %r" % (function.__name__, error))
                traceback.print_exc(limit=-3, file=sys.stdout)
            print("%6.2f s %s" % (time.monotonic() - begun, function.__name__))

    def finish(self):
        if self.failures:
            print("%d failed" % self.failures)
        sys.exit(1 if self.failures else 0)
