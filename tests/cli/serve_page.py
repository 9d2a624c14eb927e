"""The chat page in a headless Chromium, by keyboard where a person can: type, stream, stop, regenerate, switch the adapter, a
narrow window, dark and light. WebDriver over HTTP, with the standard library alone. Skips where there is no chromedriver.
serve_page.py --screenshot FILE writes a picture of the page instead."""
import base64
import shutil
import tempfile
import urllib.request

from serve_client import *

driver_path = shutil.which("chromedriver")
if not driver_path:
    print("skipped: the chat page: there is no chromedriver")
    sys.exit(0)


class Browser:
    def __init__(self, width, height, dark=False):
        self.home = tempfile.mkdtemp(prefix="walsh-page.")
        self.process = subprocess.Popen([driver_path, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                        env=dict(os.environ, HOME=self.home))
        self.port = None
        for line in self.process.stdout:  # it says which port it took
            started = re.search(rb"started successfully on port (\d+)", line)
            if started:
                self.port = int(started[1])
                break
        assert self.port, "chromedriver did not start"
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--user-data-dir=" + self.home,
                     "--window-size=%d,%d" % (width, height)] + (["--force-dark-mode"] if dark else [])
        def ready():
            try:
                return self.call("GET", "/status", base="")["ready"]
            except OSError:
                return False
        wait_for("chromedriver", ready)
        self.base = "/session/" + self.call("POST", "/session", {"capabilities": {"alwaysMatch": {
            "browserName": "chrome", "goog:chromeOptions": {"args": arguments}}}}, base="")["sessionId"]

    def call(self, method, path, body=None, base=None):
        data = None if body is None and method == "GET" else json.dumps(body or {}).encode()
        url = "http://127.0.0.1:%d%s%s" % (self.port, self.base if base is None else base, path)
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            return json.loads(response.read())["value"]

    def run(self, script, *arguments):
        return self.call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def type(self, keys):
        """To whatever has the focus."""
        actions = []
        for key in keys:
            actions += [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        self.call("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def picture(self, path):
        with open(path, "wb") as f:
            f.write(base64.b64decode(self.call("GET", "/screenshot")))

    def close(self):
        try:
            self.call("DELETE", "")
        finally:
            self.process.terminate()
            self.process.wait()
            shutil.rmtree(self.home, ignore_errors=True)


ENTER, ESCAPE, TAB = "\ue007", "\ue00c", "\ue004"
server = Server("--adapter", "bard=" + LORA, "--max-batch", "4")
URL = "http://127.0.0.1:%d/" % server.port


def answers(b):
    return b.run("return [...document.querySelectorAll('#turns li.assistant .text')].map(e => e.textContent)")


def idle(b):
    return b.run("return !document.querySelector('#send').disabled")


def open_page(width=1000, height=800, dark=False):
    b = Browser(width, height, dark)
    b.call("POST", "/url", {"url": URL})
    wait_for("the list of models", lambda: b.run("return document.querySelectorAll('#model option').length") == 2)
    return b


def prepare(b, **values):
    for name, value in values.items():
        b.run("document.getElementById(arguments[0]).value = arguments[1]", name, value)


def a_person_can_chat():
    b = open_page()
    try:
        prepare(b, mode="text", seed="5", temperature="0.9", max_tokens="12")
        assert b.run("return document.activeElement.id") == "input", "one can type at once"
        b.type("It was late in the evening when" + ENTER)
        wait_for("an answer", lambda: idle(b) and answers(b))
        want = run_alone("It was late in the evening when", 12, 5, temp=0.9)["text"]
        assert answers(b) == [want], (answers(b), want)
        note = b.run("return document.querySelector('#turns li.assistant small').textContent")
        assert re.match(r"12 tokens, [0-9.]+ tokens/s, first after [0-9.]+ s$", note), note
        # another answer to the same, by the keyboard: input, Send, Regenerate (Stop cannot be used)
        prepare(b, seed="6")
        b.type(TAB + TAB + ENTER)
        wait_for("another answer", lambda: idle(b) and answers(b) != [want])
        assert answers(b) == [run_alone("It was late in the evening when", 12, 6, temp=0.9)["text"]], answers(b)
        # the adapter
        prepare(b, model="bard")
        b.run("document.querySelector('#again').click()")
        bard = run_alone("It was late in the evening when", 12, 6, True, temp=0.9)["text"]
        wait_for("the adapter's answer", lambda: idle(b) and answers(b) == [bard])
    finally:
        b.close()


def an_answer_can_be_stopped():
    b = open_page()
    try:
        prepare(b, mode="text", temperature="1", max_tokens="950", seed="11")
        b.type("Once upon a time" + ENTER)
        grown = []
        def growing():
            grown.append(len("".join(answers(b))))
            return len(set(grown)) > 2 or idle(b)
        wait_for("a stream that grows", growing)
        if not idle(b):
            b.type(ESCAPE)
        wait_for("the end", lambda: idle(b))
        wait_for("the server at rest", lambda: server.metric("sequences_decoding") == 0)
        b.run("document.querySelector('#fresh').click()")
        assert answers(b) == [] and b.run("return document.activeElement.id") == "input"
    finally:
        b.close()


def it_fits_a_phone_and_the_night():
    b = open_page(360, 640)
    try:
        assert b.run("return document.documentElement.scrollWidth <= window.innerWidth"), "no sideways scrolling"
        light = b.run("return getComputedStyle(document.body).backgroundColor")
        b.run("document.querySelector('#theme').click()")
        other = b.run("return getComputedStyle(document.body).backgroundColor")
        b.run("document.querySelector('#theme').click()")
        assert light != other and b.run("return getComputedStyle(document.body).backgroundColor") == light
        b.run("document.querySelector('#more').open = true")
        assert b.run("return document.documentElement.scrollWidth <= window.innerWidth"), "with the settings open"
        nameless = b.run("return [...document.querySelectorAll('button, input, select, textarea')].filter("
                         "e => !(e.textContent.trim() || e.ariaLabel || e.labels && e.labels.length)).map(e => e.id)")
        assert nameless == [], nameless
    finally:
        b.close()


def screenshot(path):
    b = open_page(1000, 860)
    try:
        prepare(b, mode="text", seed="5", temperature="0.8", max_tokens="90", model="bookworm-8m")
        b.type("It was late in the evening when" + ENTER)
        wait_for("an answer", lambda: idle(b) and answers(b))
        prepare(b, seed="8", model="bard")
        b.type("\n\nKING. Who goes there?\n\n".replace("\n", "\ue008" + ENTER + "\ue000") + ENTER)
        wait_for("another answer", lambda: idle(b) and len(answers(b)) == 2)
        b.picture(path)
    finally:
        b.close()


if len(sys.argv) == 3 and sys.argv[1] == "--screenshot":
    screenshot(sys.argv[2])
    server.stop()
    sys.exit(0)
cases = Cases()
cases.run(a_person_can_chat, an_answer_can_be_stopped, it_fits_a_phone_and_the_night)
server.stop()
cases.finish()
