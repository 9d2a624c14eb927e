"""The official `openai` client, unchanged, against walsh serve. Skips where the package is not there; SERVE_PYTHON names the
Python that has it."""
from serve_client import *

try:
    import openai
except ImportError:
    print("skipped: the openai client: the package is not there")
    sys.exit(0)

server = Server("--adapter", "bard=" + LORA)
client = openai.OpenAI(base_url="http://127.0.0.1:%d/v1" % server.port, api_key="none", max_retries=0)
MESSAGES = [{"role": "user", "content": "Who goes there?"}]
cases = Cases()


def models():
    assert [m.id for m in client.models.list()] == ["bookworm-8m", "bard"]


def completions():
    got = client.completions.create(model="bookworm-8m", prompt="It was late", max_tokens=10, seed=4, temperature=0.9, logprobs=2)
    assert got.choices[0].text == run_alone("It was late", 10, 4, temp=0.9)["text"]
    assert len(got.choices[0].logprobs.tokens) == 10 and got.usage.total_tokens == 13
    pieces = list(client.completions.create(model="bookworm-8m", prompt="It was late", max_tokens=10, seed=4, temperature=0.9,
                                            stream=True, stream_options={"include_usage": True}, extra_body={"top_k": 0}))
    assert "".join(p.choices[0].text for p in pieces if p.choices) == got.choices[0].text
    assert pieces[-1].usage.completion_tokens == 10


def chats():
    ask = dict(model="bard", messages=MESSAGES, max_completion_tokens=10, seed=4, n=2)
    got = client.chat.completions.create(**ask, logprobs=True, top_logprobs=3)
    assert len(got.choices) == 2 and got.choices[0].message.role == "assistant"
    assert len(got.choices[0].logprobs.content[0].top_logprobs) == 3
    said = ["", ""]
    for piece in client.chat.completions.create(**ask, stream=True):
        said[piece.choices[0].index] += piece.choices[0].delta.content or ""
    assert said == [c.message.content for c in got.choices]


def errors():
    for kind, call in ((openai.NotFoundError, lambda: client.completions.create(model="nobody", prompt="x")),
                       (openai.BadRequestError, lambda: client.completions.create(model="bard", prompt="x", temperature=200)),
                       (openai.BadRequestError, lambda: client.chat.completions.create(
                           model="bard", messages=MESSAGES, tools=[{"type": "function", "function": {"name": "f"}}]))):
        try:
            call()
            raise AssertionError("no error")
        except kind as error:
            assert error.body["message"] and error.code, error


cases.run(models, completions, chats, errors)
assert server.stop() == 0
cases.finish()
