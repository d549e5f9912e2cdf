"""What a model says is shown to the letter, and never becomes HTML."""

from __future__ import annotations

import json
import re
from itertools import pairwise

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from baltoro.chat.messages import ArgumentsDelta, CallBegun, CallEnded, Finished, TextDelta
from tests.server.script import USAGE, Script
from tests.server.web.tab import Tab, say


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
@example(lines=["- word", "", "- word"], cuts=[9])  # two blocks become one
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
