"""The chat page in a headless Chromium, as a person uses it; skipped where there is none.

After every test the console must be empty but for what the test announced, and no request may have left for another
origin.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

from baltoro.chat.messages import ArgumentsDelta, CallBegun, CallEnded, Finished, TextDelta, ToolChoice, Usage
from baltoro.errors import ContextError, DeadlineError, EngineError, QueueFull
from tests.server.browser import PROGRAM, Browser, Page
from tests.server.conftest import Address
from tests.server.script import USAGE, Script

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no chromium here")

NEVER = 600.0  # seconds; a test stops such an answer
IDLE = "!document.querySelector('#send').hidden"
REFUSED = "Failed to load resource"  # the browser's own line about a status of 400 and more
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TWO_CALLS = [
    TextDelta("I look."),
    CallBegun(0, "functions.get_weather:0", "get_weather"),
    ArgumentsDelta(0, '{"city": '),
    ArgumentsDelta(0, '"Skardu"}'),
    CallEnded(0),
    CallBegun(1, "functions.get_weather:1", "get_weather"),
    ArgumentsDelta(1, '{"city": "Gilgit"}'),
    CallEnded(1),
    Finished("tool_calls", USAGE),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    browser = Browser()
    yield browser
    browser.close()


class Tab(Page):
    """A page that says which of the console's lines its test expects."""

    expected: str | None = None

    def ask(self, text: str) -> None:
        """Send a message and wait for the end of its answer."""
        self.fill("#message", text)
        self.press("Enter")
        self.until(f"{IDLE} && document.querySelector('#message').value === ''")

    def set(self, **fields: str) -> None:
        self.js("document.querySelector('#settings').hidden && document.querySelector('#open-settings').click()")
        for name, value in fields.items():
            self.fill(f"[name={name}]", value)

    def body(self) -> dict[str, Any]:
        """Of the last chat request."""
        posts = [each for each in self.requests() if each["method"] == "POST"]
        return json.loads(posts[-1]["postData"])


@pytest.fixture
def page(browser: Browser, server: Address) -> Iterator[Tab]:
    tab = browser.open(f"{server.url}/", kind=Tab)
    assert isinstance(tab, Tab)
    yield tab
    complaints = [line for line in tab.complaints() if tab.expected is None or tab.expected not in line]
    assert not complaints
    for request in tab.requests():
        assert request["url"].startswith((f"{server.url}/", f"blob:{server.url}/")), request["url"]
    tab.close()


def say(script: Script, text: str, reason: Any = "stop") -> None:
    script.deltas = [TextDelta(text), Finished(reason, USAGE)]


# ------------------------------------------------------------------------------------------------- conversations


def test_an_answer_streams_with_its_counts_and_speed(page: Tab, script: Script) -> None:
    usage = Usage(prompt_tokens=1200, completion_tokens=4, cached_tokens=1024)
    script.deltas = [TextDelta("Hel"), 0.05, TextDelta("lo"), Finished("stop", usage)]
    page.ask("Who are you?")
    assert page.text(".question .text") == "Who are you?"
    assert page.text(".answer .text") == "Hello"
    measured = page.text(".measured")
    assert "1,200 prompt tokens, 1,024 of them cached" in measured
    assert "4 generated" in measured
    assert re.search(r"first after \d+ ms", measured)
    assert re.search(r"[\d.]+ tokens/s", measured)
    assert page.text("#context") == "1,204 of 4,096 tokens"
    page.ask("And who am I?")
    assert [m.content for m in script.requests[-1].messages] == ["Who are you?", "Hello", "And who am I?"]
    assert page.body()["stream"] is True


def test_escape_stops_what_grows_and_continue_goes_on_behind_it(page: Tab, script: Script) -> None:
    script.deltas = [TextDelta("One, two"), NEVER]
    page.fill("#message", "Count")
    page.press("Enter")
    page.until("document.querySelector('.answer .text').innerText === 'One, two'")  # shown before its end
    assert page.js("document.querySelector('#log').ariaBusy") == "true"
    page.press("Escape")
    page.until(IDLE)
    assert script.closed.wait(20)  # the server cancelled it
    assert page.text(".measured").startswith("Stopped")
    say(script, ", three")
    page.click(".answer .actions button:last-child")
    page.until(f"{IDLE} && document.querySelector('.answer .text').innerText === 'One, two, three'")
    assert script.requests[-1].messages[-1].partial
    assert page.count("article") == 2


def test_the_stop_button_stops_too(page: Tab, script: Script) -> None:
    script.deltas = [NEVER]
    page.fill("#message", "Count")
    page.press("Enter")
    page.until("document.querySelector('.status')?.innerText.startsWith('Reading the prompt')")
    page.click("#stop")
    page.until(IDLE)
    assert script.closed.wait(20)
    assert page.js("document.activeElement.id") == "message"


def test_parallel_calls_are_answered_by_hand(page: Tab, script: Script) -> None:
    script.deltas = TWO_CALLS
    page.set(tools=json.dumps([WEATHER]))
    page.ask("Weather?")
    assert page.count(".call") == 2
    assert page.text(".call pre") == '{\n  "city": "Skardu"\n}'
    assert page.text(".pill") == "waiting for a result"
    page.until("document.activeElement.matches('.give textarea')")  # no click is needed
    page.type("clear")
    page.press("Enter")
    assert len(script.requests) == 1  # one result is missing
    assert page.js("document.activeElement.getAttribute('aria-label')") == "Result of get_weather"
    page.type("snow\n<b>and</b> wind")
    say(script, "Clear there, snow here.")
    page.click(".give .primary")
    page.until("document.querySelectorAll('.answer').length === 2 && " + IDLE)
    roles = [(m.role, m.content, m.tool_call_id) for m in script.requests[-1].messages]
    assert roles == [
        ("user", "Weather?", None),
        ("assistant", "I look.", None),
        ("tool", "clear", "functions.get_weather:0"),
        ("tool", "snow\n<b>and</b> wind", "functions.get_weather:1"),
    ]
    assert [c.arguments for c in script.requests[-1].messages[1].tool_calls] == [
        '{"city": "Skardu"}',
        '{"city": "Gilgit"}',
    ]
    assert page.js("[...document.querySelectorAll('.result pre')].map((e) => e.innerText)") == [
        "clear",
        "snow\n<b>and</b> wind",
    ]


def test_a_call_that_was_cut_off_is_shown_and_never_answered(page: Tab, script: Script) -> None:
    script.deltas = [*TWO_CALLS[:6], ArgumentsDelta(1, '{"city": "Gil'), Finished("length", USAGE)]
    page.ask("Weather?")
    assert page.js("[...document.querySelectorAll('.pill')].map((e) => e.innerText)") == [
        "waiting for a result",
        "cut off",
    ]
    say(script, "Clear.")
    page.fill(".give textarea", "clear")
    page.press("Enter")
    page.until("document.querySelectorAll('.answer').length === 2 && " + IDLE)
    assert [call.name for call in script.requests[-1].messages[1].tool_calls] == ["get_weather"]


def test_calls_may_be_left_without_a_result_and_answered_later(page: Tab, script: Script) -> None:
    script.deltas = TWO_CALLS
    page.ask("Weather?")
    say(script, "As you like.")
    page.ask("Never mind")
    assert page.text(".pill") == "not answered"
    page.click(".call .result button")
    page.fill(".give textarea", "clear")
    page.press("Enter")
    page.fill(".give textarea", "snow")
    page.press("Enter")
    page.until(f"{IDLE} && document.querySelectorAll('.answer').length === 2")
    assert [m.role for m in script.requests[-1].messages] == ["user", "assistant", "tool", "tool"]


def test_a_message_is_edited_and_an_answer_written_anew(page: Tab, script: Script) -> None:
    page.ask("Frist")
    page.ask("Second")
    page.click(".question .actions button:last-child")
    page.js("document.activeElement.select()")
    page.type("First")
    say(script, "Better.")
    page.press("Enter")
    page.until(f"{IDLE} && document.querySelectorAll('article').length === 2")
    assert [m.content for m in script.requests[-1].messages] == ["First"]
    say(script, "Best.")
    page.js("[...document.querySelectorAll('.actions button')].find((b) => b.innerText === 'Regenerate').click()")
    page.until(f"{IDLE} && document.querySelector('.answer .text').innerText === 'Best.'")
    assert [m.content for m in script.requests[-1].messages] == ["First"]
    page.click("#notice button")  # undo
    assert page.text(".answer .text") == "Better."
    page.click(".answer .actions button:nth-child(2)")
    page.js("document.activeElement.select()")
    page.type("By hand.")
    page.press("Enter")
    assert page.text(".answer .text") == "By hand."
    page.ask("Go on")
    assert script.requests[-1].messages[1].content == "By hand."


# ------------------------------------------------------------------------------------------------------ settings


def test_settings_reach_the_request(page: Tab, script: Script) -> None:
    page.ask("Plain")
    plain = page.body()
    assert set(plain) == {"model", "messages", "stream", "stream_options"}
    page.set(system="Be brief.", tools=json.dumps(WEATHER["function"]))  # a function alone is declared, too
    assert page.text("#tools-state") == "1 tool: get_weather"
    page.set(temperature="0.25", top_p="0.9", max_tokens="33", seed="-7")
    page.js("""(() => {
        const choice = document.querySelector('[name=tool_choice]');
        choice.value = 'function:get_weather';
        choice.dispatchEvent(new Event('input', { bubbles: true }));
    })()""")
    page.click("[name=parallel_tool_calls]")
    page.ask("With all")
    request = script.requests[-1]
    assert (request.messages[0].role, request.messages[0].content) == ("system", "Be brief.")
    assert (request.temperature, request.top_p, request.max_tokens, request.seed) == (0.25, 0.9, 33, -7)
    assert request.tool_choice == ToolChoice(mode="named", name="get_weather")
    assert request.parallel_tool_calls is False
    assert request.tools[0].declaration == WEATHER


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("tools", '[{"type"', "This is not JSON"),
        ("tools", '[{"type": "function", "function": {"name": "a b"}}]', "no good name"),
        ("tools", json.dumps([WEATHER, WEATHER]), "declared twice"),
        ("tools", '[{"type": "builtin_function", "function": {"name": "a"}}]', "builtin_function"),
        ("temperature", "3", None),
        ("seed", "1.5", None),
    ],
)
def test_what_cannot_be_sent_is_told_at_its_field(
    page: Tab, script: Script, field: str, value: str, words: str | None
) -> None:
    page.set(**{field: value})
    page.click("#close-settings")
    page.fill("#message", "Hi")
    page.press("Enter")
    page.until(f"document.activeElement.name === '{field}'")
    if words is not None:
        assert words in page.text("#tools-state")
    assert script.requests == []
    assert page.js("document.querySelector('#message').value") == "Hi"  # nothing is lost


def test_the_second_name_of_the_model_can_be_chosen(page: Tab, script: Script) -> None:
    page.until("document.querySelectorAll('#model option').length === 2")
    page.js("document.querySelector('#model').selectedIndex = 1")
    page.js("document.querySelector('#model').dispatchEvent(new Event('change'))")
    page.ask("Hi")
    assert page.body()["model"] == "moonshotai/Kimi-K2-Instruct"


# ------------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("raised", "title", "words"),
    [
        (QueueFull("1024 wait", retry_after_s=7), "Too many requests at once", "Try again in 7 seconds"),
        (EngineError("it is made anew"), "The model is not available", "The server says: it is made anew"),
        (DeadlineError("60 s are over"), "The answer took longer", "60 s are over"),
        (ContextError("5000 of 4096", code="context_length_exceeded"), "longer than the model's context", "5000"),
        (ZeroDivisionError(), "The server failed", "Its log says why"),
    ],
)
def test_a_refusal_is_told_in_words_and_can_be_tried_again(
    page: Tab, script: Script, raised: Exception, title: str, words: str
) -> None:
    page.expected = REFUSED
    script.refusal = raised
    page.ask("Hi")
    assert title in page.text(".problem strong")
    assert words in page.text(".problem")
    assert page.js("document.querySelector('.problem').role") == "alert"
    script.refusal = None
    page.click(".problem button:last-child")
    page.until(f"{IDLE} && document.querySelector('.answer .text').innerText === 'Hello'")
    assert page.count("article") == 2
    assert [m.content for m in script.requests[-1].messages] == ["Hi"]


def test_a_server_with_keys_is_given_one_for_this_tab_alone(page: Tab, script: Script) -> None:
    page.expected = REFUSED
    script.refusal = HTTPException(401, "no key")
    page.ask("Hi")
    assert page.text(".problem strong") == "This server wants an API key"
    page.click(".problem button")
    assert page.js("document.activeElement.name") == "key"
    page.type("sk-secret")
    page.click("#close-settings")
    page.ask("Hi again")
    assert page.text("article:last-child .problem strong") == "The server does not know this API key"
    script.refusal = None
    page.click("article:last-child .problem button:last-child")
    page.until(IDLE + " && document.querySelectorAll('.problem').length === 1")
    posts = [each for each in page.requests() if each["method"] == "POST"]
    keys = [{name.lower(): value for name, value in each["headers"].items()}.get("authorization") for each in posts]
    assert keys == [None, "Bearer sk-secret", "Bearer sk-secret"]
    assert "sk-secret" not in page.js("JSON.stringify(localStorage)")
    page.reload()
    assert page.js("document.querySelector('[name=key]').value") == "sk-secret"


def test_an_error_in_the_middle_keeps_what_came(page: Tab, script: Script) -> None:
    script.deltas = [TextDelta("So far"), EngineError("the engine stopped")]
    page.ask("Hi")
    assert page.text(".answer .text") == "So far"
    assert page.text(".problem strong") == "The answer broke off"
    assert "the engine stopped" in page.text(".problem")
    page.reload()
    assert "the engine stopped" in page.text(".problem")
    say(script, " so good")
    page.click(".answer .actions button:last-child")
    page.until(f"{IDLE} && document.querySelector('.answer .text').innerText === 'So far so good'")
    assert page.count(".problem") == 0


def test_a_server_that_is_gone_is_told(page: Tab, script: Script) -> None:
    page.expected = "net::ERR"
    page.send("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    page.ask("Hi")
    assert page.text(".problem strong") == "The server does not answer"


# --------------------------------------------------------------------------------------------- what outlives a page


def test_a_reload_keeps_conversation_settings_and_drafts(page: Tab, script: Script) -> None:
    script.deltas = TWO_CALLS
    page.set(system="Be brief.", tools=json.dumps([WEATHER]), seed="5")
    page.ask("Weather?")
    page.fill(".give textarea", "half a res")
    shown = page.text("#log")
    page.reload()
    assert page.text("#log") == shown
    assert page.js("document.querySelector('.give textarea').value") == "half a res"
    assert page.js("document.querySelector('[name=system]').value") == "Be brief."
    page.fill("#message", "Go on")
    say(script, "Well.")
    page.press("Enter")
    page.until(f"{IDLE} && document.querySelectorAll('.answer').length === 2")
    assert script.requests[-1].seed == 5


def test_a_reload_in_the_middle_of_an_answer_keeps_what_came(page: Tab, script: Script) -> None:
    script.deltas = [TextDelta("One, two"), NEVER]
    page.fill("#message", "Count")
    page.press("Enter")
    page.until("document.querySelector('.answer .text')?.innerText === 'One, two'")
    page.reload()
    assert script.closed.wait(20)
    assert page.text(".answer .text") == "One, two"
    assert page.text(".measured").startswith("Stopped")


def test_what_another_program_left_in_the_storage_does_no_harm(page: Tab) -> None:
    for value in ("{", "null", "7", '{"turns": 7}', '{"turns": []}'):
        page.js(f"localStorage.setItem('baltoro.chat.1', {json.dumps(value)})")
        page.js("onpagehide = (event) => event.stopImmediatePropagation()")
        page.reload()
        page.ask("Hi")
        assert page.text(".answer .text") == "Hello"


def test_a_new_chat_keeps_the_settings_and_can_be_undone(page: Tab, script: Script) -> None:
    page.set(system="Be brief.")
    page.ask("Hi")
    page.click("#new")
    assert page.count("article") == 0
    page.click("#notice button")
    assert page.text(".answer .text") == "Hello"
    page.click("#new")
    page.ask("Anew")
    assert [m.content for m in script.requests[-1].messages] == ["Be brief.", "Anew"]


def test_an_export_is_a_request_and_comes_back_the_same(
    page: Tab, script: Script, server: Address, tmp_path: Path
) -> None:
    script.deltas = TWO_CALLS
    page.set(system="Be brief.", tools=json.dumps([WEATHER]), temperature="0.5", seed="9")
    page.ask("Weather?")
    page.fill(".give textarea", "clear")
    page.press("Enter")
    path = page.download("#export", tmp_path)
    exported = json.loads(path.read_text())
    assert server.http.post("/v1/chat/completions", json=exported).status_code == 200  # nothing in it is ours alone
    request = script.requests[-1]
    shown = page.text("#log").replace(page.text(".measured"), "")
    page.click("#new")
    page.set(system="", tools="", temperature="", seed="")
    page.choose_file("#file", path)
    page.until("document.querySelectorAll('article').length === 2")
    assert re.sub(r"\s+", " ", page.text("#log")) == re.sub(r"\s+", " ", shown)
    assert json.loads(page.download("#export", tmp_path / "again").read_text()) == exported
    say(script, "Done.")
    page.fill(".give textarea", "snow")
    page.press("Enter")
    page.until(f"{IDLE} && document.querySelectorAll('.answer').length === 2")
    last = script.requests[-1]
    assert last.messages[:-1] == request.messages
    assert (last.tools, last.temperature, last.seed) == (request.tools, 0.5, 9)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "no “messages”"),
        ('{"messages": [{"role": "tool", "content": "x", "tool_call_id": "a"}]}', "without a call"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "robot"),
        ('{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "other than text"),
    ],
)
def test_a_file_that_is_no_conversation_changes_nothing(page: Tab, tmp_path: Path, text: str, words: str) -> None:
    page.ask("Hi")
    path = tmp_path / "bad.json"
    path.write_text(text)
    page.choose_file("#file", path)
    page.until("document.querySelector('#notice').innerText.includes('Nothing was imported')")
    assert words in page.text("#notice")
    assert page.count("article") == 2


# ---------------------------------------------------------------------------------------------------- text is text


def test_html_of_a_model_stays_text(page: Tab, script: Script) -> None:
    evil = '<script>window.hit = 1</script><img src="http://evil.example/x" onerror="hit = 2"> [x](javascript:hit=3)'
    script.deltas = [
        TextDelta(f"{evil}\n\n- {evil}\n\n```<b>\n{evil}\n```\n"),
        CallBegun(0, "functions.f:0", f"f{evil}"),
        ArgumentsDelta(0, json.dumps({evil: evil})),
        CallEnded(0),
        Finished("tool_calls", USAGE),
    ]
    page.set(system=evil)
    page.ask(evil)
    assert page.text(".question .text") == evil
    assert page.js("document.querySelector('.answer p').textContent") == evil
    assert page.text(".answer pre") == evil
    assert evil in page.text(".call .name")
    assert page.count("#log :is(script, img, a, b)") == 0
    assert page.js("window.hit ?? null") is None


def test_the_policy_would_stop_what_the_code_does_not_do(page: Tab) -> None:
    page.expected = "Content Security Policy"
    assert page.js("try { document.body.innerHTML = '<p>x'; 'made' } catch { 'refused' }") == "refused"
    assert page.js("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')") == "refused"
    assert page.js("new Promise((done) => { const i = new Image(); i.onerror = () => done('refused'); "
                   "i.onload = () => done('shown'); i.src = 'http://127.0.0.1:9/x.png'; })") == "refused"  # fmt: skip
    page.browser.events.clear()  # the requests above were stopped, and are no offence


MARKDOWN = """(async (pieces) => {
    const { Markdown } = await import("/web/markdown.js");
    const [grown, whole] = [document.createElement("div"), document.createElement("div")];
    const growing = new Markdown(grown);
    for (let count = 1; count <= pieces.length; count++) growing.show(pieces.slice(0, count).join(""));
    new Markdown(whole).show(pieces.join(""));
    const tags = [...new Set([...whole.querySelectorAll("*")].map((each) => each.tagName))];
    const same = grown.isEqualNode(whole);
    whole.querySelectorAll(".bar").forEach((bar) => bar.remove());
    return { same, tags, text: whole.textContent };
})"""
TAGS = set(
    re.findall(
        r"\w+", "P STRONG EM CODE PRE UL OL LI H3 H4 H5 H6 BLOCKQUOTE HR TABLE THEAD TBODY TR TH TD DIV SPAN BUTTON"
    )
)
WORDS = st.sampled_from(
    ["word", "**", "*", "`", "``", "**bold**", "*it*", "`co de`", "a*b*", "***", "_", "|", "<b>", "&amp;", "\\", "x|y"]
)
PREFIXES = st.sampled_from(["", "", "", "# ", "- ", "  - ", "    - ", "1. ", "7) ", "> ", "> - ", "   ", "| ", "\t"])
LINES = st.one_of(
    st.tuples(PREFIXES, st.lists(WORDS, max_size=5)).map(lambda line: line[0] + " ".join(line[1])),
    st.sampled_from(["```", "~~~~", "---", "|-|-|", "--|--", "", "", ">"]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(LINES, max_size=12), cuts=st.lists(st.integers(0, 200), max_size=6))
def test_every_letter_is_shown_whatever_the_marks_and_however_it_comes(
    page: Tab, lines: list[str], cuts: list[int]
) -> None:
    text = "\n".join(lines)
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[a:b] for a, b in pairwise(edges)]
    found = page.js(f"{MARKDOWN}({json.dumps(pieces)})")
    assert found["same"], "streamed and whole differ"
    assert set(found["tags"]) <= TAGS
    letters = re.compile(r"[^a-z<>&;\\]")  # of words, with what HTML would take away
    quoted = "\n".join(line for line in lines)
    assert letters.sub("", found["text"]).replace(">", "") == letters.sub("", quoted).replace(">", "")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(
        st.text(st.sampled_from("ab <>&*_`~|#->1.)\n\t\r\\é😀") | st.characters(exclude_categories=["Cs"])), max_size=5
    )
)
def test_any_text_at_all_becomes_known_tags_only(page: Tab, pieces: list[str]) -> None:
    found = page.js(f"{MARKDOWN}({json.dumps(pieces)})")
    assert found["same"]
    assert set(found["tags"]) <= TAGS


def test_code_is_shown_and_copied_to_the_letter(page: Tab, script: Script) -> None:
    code = 'def f(x):\n\n    return "<b>*not bold*</b>"  # ``\n'
    say(script, f"Here:\n\n```python\n{code}```\n\nand **more**.")
    page.ask("Code?")
    assert page.js("document.querySelector('.code pre').textContent") == code.removesuffix("\n")
    assert page.text(".code .bar span") == "python"
    page.click(".code button")
    page.until("document.querySelector('.code button').innerText === 'Copied'")
    assert page.clipboard() == code.removesuffix("\n")
    page.click(".answer .actions button")
    page.until("document.querySelector('.answer .actions button').innerText === 'Copied'")
    assert page.clipboard().startswith("Here:\n\n```python\n")


# --------------------------------------------------------------------------------------------- eyes, hands, phones


CONTRAST = """(() => {
    const light = (rgb) => {
      const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const parse = (color) => color.match(/[\\d.]+/g).map(Number);
    const ground = (element) => {
      for (let each = element; each; each = each.parentElement) {
        const color = parse(getComputedStyle(each).backgroundColor);
        if (color.length === 3 || color[3] === 1) return color;
      }
    };
    const poor = [];
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    let seen = 0;
    while (texts.nextNode()) {
      const element = texts.currentNode.parentElement;
      if (!texts.currentNode.data.trim() || !element.checkVisibility()) continue;
      seen++;
      const [a, b] = [light(parse(getComputedStyle(element).color)), light(ground(element))].sort((x, y) => y - x);
      if ((a + 0.05) / (b + 0.05) < 4.5) poor.push(texts.currentNode.data);
    }
    return { seen, poor };
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_enough_contrast_in_both_themes(page: Tab, script: Script, scheme: str) -> None:
    page.expected = REFUSED
    page.emulate(scheme=scheme, width=1100, height=800)
    script.deltas = [*TWO_CALLS[:6], Finished("length", USAGE)]
    page.ask("Weather?")
    say(script, "# Title\n\nText with `code`\n\n> quoted\n\n```py\nx = 1\n```\n\na|b\n-|-\n1|2", "length")
    page.ask("More")
    script.refusal = QueueFull("1024 wait", retry_after_s=7)
    page.ask("Again")
    page.set(tools="[")
    found = page.js(CONTRAST)
    assert found["seen"] > 40
    assert not found["poor"]
    background = page.js("getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", background)[0]) < 60) == (scheme == "dark")


def test_a_phone_shows_everything_in_its_width(page: Tab, script: Script) -> None:
    page.emulate(scheme="light", width=360, height=640)
    say(script, f"{'long' * 60}\n\n```\n{'code ' * 60}\n```\n\n{'a|' * 30}\n{'-|' * 30}\n{'1|' * 30}")
    page.ask("word" * 60)
    script.deltas = TWO_CALLS
    page.ask("Weather?")
    for _ in range(2):
        assert page.js("document.documentElement.scrollWidth") <= 360
        assert page.js("document.querySelector('#scroll').scrollWidth <= document.querySelector('#scroll').clientWidth")
        page.js("document.querySelector('#open-settings').click()")
        assert page.js("document.querySelector('#settings').getBoundingClientRect().width") >= 340
        assert page.js("document.querySelector('#settings').scrollWidth") <= 360
        page.click("#close-settings")


def test_the_keyboard_is_enough(page: Tab, script: Script) -> None:
    assert page.js("document.activeElement.id") == "message"
    page.type("One")
    page.press("Enter", shift=True)
    page.type("two")
    page.press("Enter")
    page.until(f"{IDLE} && document.querySelector('.answer')")
    assert script.requests[-1].messages[0].content == "One\ntwo"
    page.press("Tab")
    assert page.js("document.activeElement.id") == "send"
    page.js("document.querySelector('#open-settings').focus()")
    page.press("Enter")
    assert page.js("document.activeElement.name") == "system"
    page.press("Escape")
    assert page.js("document.querySelector('#settings').hidden") is True
    assert page.js("document.activeElement.id") == "open-settings"
    page.press("Tab")
    assert "Conversation" not in page.js("document.activeElement.ariaLabel ?? ''")
    assert page.js("document.activeElement.closest('.question') !== null")  # the head, then the conversation


def test_everything_that_can_be_operated_has_a_name(page: Tab, script: Script) -> None:
    script.deltas = TWO_CALLS
    page.set(tools=json.dumps([WEATHER]))
    page.ask("Weather?")
    names = page.names()
    assert ("textbox", "Message") in names and ("textbox", "Result of get_weather") in names
    assert len(names) > 20
    assert not [role for role, name in names if not name.strip()]


def test_the_page_follows_an_answer_only_while_its_reader_does(page: Tab, script: Script) -> None:
    at_end = "document.querySelector('#scroll').scrollTop + document.querySelector('#scroll').clientHeight > " \
             "document.querySelector('#scroll').scrollHeight - 20"  # fmt: skip
    say(script, "line\n\n" * 60)
    page.ask("Long")
    page.until(at_end)
    script.deltas = [TextDelta("begun"), 0.3, TextDelta("\n\nline" * 40), Finished("stop", USAGE)]
    page.fill("#message", "More")
    page.press("Enter")
    page.until("document.querySelector('#log').innerText.includes('begun')")
    page.js("document.querySelector('#scroll').scrollTop = 0")
    page.until(IDLE)
    assert page.js("document.querySelector('#scroll').scrollTop") == 0


# ----------------------------------------------------------------------------------------------------------- nano


@pytest.fixture(scope="module")
def nano() -> Iterator[str]:
    command = [sys.executable, "-m", "baltoro", "serve", "--port", "0", "--threads", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        url = next(line for line in process.stderr if line.startswith("serving")).split(" on ")[1].split()[0]
        url = url.removesuffix("v1")
        with httpx.Client(transport=httpx.HTTPTransport(retries=20), timeout=60) as client:
            assert client.get(f"{url}health").status_code == 200
        yield url
        process.send_signal(signal.SIGTERM)


def test_nano_answers_and_calls_a_tool(browser: Browser, nano: str) -> None:
    page = browser.open(nano, kind=Tab)
    assert isinstance(page, Tab)
    page.ask("Who are you?")
    assert page.text(".answer .text")
    assert re.search(r"\d+ prompt tokens.* \d+ generated · first after .* tokens/s", page.text(".measured"))
    page.click("#new")
    page.click(".welcome button")
    page.js("""(() => {
        const choice = document.querySelector('[name=tool_choice]');
        choice.value = 'required';
        choice.dispatchEvent(new Event('input', { bubbles: true }));
    })()""")
    page.press("Enter")
    page.until("document.querySelector('.pill')?.innerText === 'waiting for a result'")
    assert page.text(".call .name") == "get_weather"
    assert json.loads(page.text(".call pre")).keys() == {"city"}
    page.set(seed="1")
    page.js("""(() => {
        const choice = document.querySelector('[name=tool_choice]');
        choice.value = 'none';
        choice.dispatchEvent(new Event('input', { bubbles: true }));
    })()""")
    page.fill(".give textarea", '{"temperature": 12}')
    page.press("Enter")
    page.until(f"{IDLE} && document.querySelectorAll('.answer').length === 2")
    assert page.text("article:last-child .text")
    assert "cached" in page.text("article:last-child .measured") or page.text("article:last-child .measured")
    assert page.complaints() == []
    page.close()
