"""The web page in a real browser: headless Chromium against `baichuan web` and the demo model."""

import json
import os
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from pathlib import Path

import pytest

from tests.e2e.page import foreigners_are_refused, served, web
from tests.e2e.serving import Server

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: .[dev]")
pytest.importorskip("streamlit", reason="needs streamlit: .[web]")

ROOT = Path(__file__).parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium")

sync_api.expect.set_options(timeout=120_000)

#: Without these it looks for hosts of its own that a closed network refuses.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
K2 = "世界上第二高的山峰是哪座"
ANSWER = "乔戈里峰"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def address(home):
    with served(web(), home) as found:
        yield found


@pytest.fixture(scope="module")
def chromium():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


class Tab:
    """A tab of a browser of its own, and what a person does with it."""

    def __init__(self, browser, address, locale="en-US", **options):
        self.context = browser.new_context(locale=locale, **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(120_000)
        self.trouble, self.foreign = [], []
        self.page.on("pageerror", lambda error: self.trouble.append(error))
        self.page.on("dialog", lambda dialog: self.trouble.append(dialog.message))
        self.page.on("request", self._note)
        self.address = address
        self.open()

    def _note(self, request):
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.foreign.append(request.url)

    def open(self, address=None):
        self.page.goto(address or self.address)
        self.input.wait_for()

    @property
    def input(self):
        return self.page.get_by_test_id("stChatInputTextArea")

    @property
    def messages(self):
        return self.page.get_by_test_id("stChatMessage")

    def button(self, name):
        return self.page.get_by_role("button", name=name, exact=True)

    def click(self, name):
        self.button(name).click()

    def ask(self, text):
        self.input.fill(text)
        self.input.press("Enter")

    def choose_file(self, file):
        """Give a file to the uploader; one of a drawing that is not through is about to go."""
        self.page.locator("[data-test-script-state=notRunning]").wait_for()
        self.page.locator("input[type=file]").last.set_input_files(file)

    def expect(self, locator):
        return sync_api.expect(locator)

    def expect_answer(self, count, text, regenerate="Regenerate"):
        """Wait until the answer is complete and the page shows so many messages."""
        self.expect(self.messages).to_have_count(count)
        self.expect(self.messages.last).to_contain_text(text)
        self.expect(self.button(regenerate)).to_be_enabled()


@pytest.fixture
def tab(chromium, address):
    tab = Tab(chromium, address)
    yield tab
    tab.context.close()
    assert tab.trouble == []
    assert tab.foreign == []


def saved(home):
    """The conversations on the disk, by their file's name."""
    files = (home / "baichuan" / "conversations").glob("*.json")
    return {file.stem: json.loads(file.read_text("utf-8")) for file in files}


def plant(home, name, messages, system=None):
    """Put a conversation on the disk, each letter of it."""
    file = home / "baichuan" / "conversations" / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    turns = zip(cycle(("user", "assistant")), messages, strict=False)
    content = [{"role": role, "content": text} for role, text in turns]
    file.write_text(json.dumps({"system": system, "messages": content}))
    return f"/?c={name}"


def name_of(tab):
    tab.page.wait_for_url(re.compile("[?&]c="))
    return re.search("c=([0-9a-f]+)", tab.page.url)[1]


def test_ask_and_reload(tab, home):
    tab.expect(tab.button("Clear")).to_be_disabled()  # always there
    tab.ask(K2)
    tab.expect_answer(2, ANSWER)
    tab.expect(tab.messages.last).to_contain_text(re.compile(r"[\d.]+ tokens/s"))
    tab.expect(tab.messages.last).to_contain_text(re.compile(r"first token after [\d.]+ s"))
    tab.expect(tab.page.get_by_test_id("stSidebar")).to_contain_text("demo · float32")
    question, answer = saved(home)[name_of(tab)]["messages"]
    assert question == {"role": "user", "content": K2}
    assert ANSWER in answer["content"]
    tab.page.reload()
    tab.expect_answer(2, ANSWER)


def test_regenerate_edit_undo_clear(tab, home):
    tab.ask(K2)
    tab.expect_answer(2, ANSWER)
    name = name_of(tab)
    file = home / "baichuan" / "conversations" / f"{name}.json"
    os.utime(file, (0, 0))
    tab.click("Regenerate")
    for _ in range(600):  # until the new answer is saved
        tab.page.wait_for_timeout(50)
        if file.stat().st_mtime:
            break
    tab.expect_answer(2, ANSWER)

    tab.page.locator(".st-key-edit-0 button").first.click()
    editor = tab.page.get_by_role("textbox", name="Edit")
    tab.expect(editor).to_have_value(K2)
    editor.fill("法国的首都是哪里")
    tab.click("Send")
    tab.expect_answer(2, "巴黎")
    assert saved(home)[name]["messages"][0]["content"] == "法国的首都是哪里"

    tab.click("Undo")
    tab.expect_answer(2, ANSWER)
    tab.click("Clear")
    tab.expect(tab.messages).to_have_count(0)
    assert name not in saved(home)
    tab.click("Undo")
    tab.expect_answer(2, ANSWER)
    assert saved(home)[name]["messages"][0]["content"] == K2


def test_other_names_and_pages_are_refused(address):
    foreigners_are_refused(address)


def test_two_browsers_do_not_mix(tab, chromium, address):
    other = Tab(chromium, address)
    tab.ask(K2)
    other.ask("法国的首都是哪里")
    tab.expect_answer(2, ANSWER)
    other.expect_answer(2, "巴黎")
    assert "巴黎" not in tab.messages.last.inner_text()
    assert name_of(tab) != name_of(other)
    other.context.close()


def test_chinese(chromium, address):
    tab = Tab(chromium, address, locale="zh-CN")
    tab.expect(tab.page.get_by_placeholder("输入消息")).to_be_visible()
    tab.expect(tab.button("清空")).to_be_visible()
    tab.ask(K2)
    tab.expect_answer(2, ANSWER, regenerate="重新回答")
    tab.page.get_by_role("radio", name="English").click()
    tab.expect(tab.button("Clear")).to_be_visible()
    tab.page.reload()
    tab.expect(tab.button("Clear")).to_be_visible()
    tab.context.close()


LONG = ["question\n\n" * 8, "answer\n\n" * 40] * 3

#: Whether the end of the last such element is above the buttons at the bottom, and not scrolled by.
IN_VIEW = """selector => {
    const end = [...document.querySelectorAll(selector)].at(-1).getBoundingClientRect().bottom;
    const bottom = document.querySelector("[data-testid=stBottom]").getBoundingClientRect().top;
    return 0 < end && end <= bottom;
}"""
MESSAGE, ALERT = "[data-testid=stChatMessage]", "[role=alert]"


def wait_in_view(tab, selector):
    tab.page.wait_for_function(IN_VIEW, arg=selector)


def scroll_up(tab):
    """Turn the wheel until something else is shown; give where the page stands then."""
    main = tab.page.locator("#stMain")
    main.hover(position={"x": 300, "y": 200})
    for _ in range(20):  # a busy page notices late, and jumps back once or twice
        for _ in range(10):
            tab.page.mouse.wheel(0, -150)
            tab.page.wait_for_timeout(50)
        tab.page.wait_for_timeout(500)
        if not tab.page.evaluate(IN_VIEW, MESSAGE):
            break
    assert not tab.page.evaluate(IN_VIEW, MESSAGE)
    return main.evaluate("main => main.scrollTop")


def test_the_page_shows_what_is_new(chromium, endless, tmp_path):
    tab = Tab(chromium, endless)
    tab.page.get_by_text("Export and import").click()
    long = tmp_path / "long.json"
    turns = zip(cycle(("user", "assistant")), LONG, strict=False)
    long.write_text(json.dumps({"messages": [{"role": r, "content": c} for r, c in turns]}))
    tab.choose_file(long)
    tab.expect(tab.messages).to_have_count(len(LONG))
    wait_in_view(tab, MESSAGE)

    scroll_up(tab)
    set_most_tokens(tab, 100_000)
    tab.ask("hello")
    tab.expect(tab.messages).to_have_count(len(LONG) + 2)
    for height in (200, 1000, 2000):  # the answer grows beyond the screen
        tab.page.wait_for_function(
            "([s, height]) => [...document.querySelectorAll(s)].at(-1).clientHeight > height",
            arg=[MESSAGE, height],
        )
        wait_in_view(tab, MESSAGE)
    for _ in range(10):  # whoever reads is left alone, once a busy page has noticed
        before = scroll_up(tab)
        tab.page.wait_for_timeout(1000)
        if tab.page.locator("#stMain").evaluate("main => main.scrollTop") == before:
            break
    else:
        pytest.fail("the page goes on moving under a reader")

    tab.click("Stop")
    tab.expect(tab.button("Regenerate")).to_be_enabled()
    set_most_tokens(tab, 1_000_000, opened=True)
    tab.ask("too much")
    tab.expect(tab.page.get_by_role("alert")).to_contain_text("leaves no room")
    wait_in_view(tab, ALERT)
    scroll_up(tab)
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    tab.choose_file(broken)
    tab.expect(tab.page.get_by_role("alert")).to_contain_text("no saved conversation")
    wait_in_view(tab, ALERT)
    tab.context.close()


def test_what_is_suggested_is_answered(tab):
    for locale, words in (("en", ("demo", "K2", "water")), ("zh", ("演示", "乔戈里峰", "水"))):
        tab.open(f"{tab.address}/?lang={locale}")
        for number, word in enumerate(words):
            tab.page.locator(".st-key-suggestions button").nth(number).click()
            tab.expect(tab.messages).to_have_count(2)
            tab.expect(tab.messages.last).to_contain_text(word)
            tab.page.locator(".st-key-new button").click()
            tab.expect(tab.messages).to_have_count(0)


@pytest.mark.parametrize("clipboard", [True, False], ids=["clipboard", "address without one"])
def test_copy(chromium, address, home, clipboard):
    tab = Tab(chromium, address)
    if not clipboard:
        tab.context.add_init_script("Object.defineProperty(navigator, 'clipboard', {value: null})")
    texts = ["</script>\n*one*", 'two "**2**"\\\n<b>']
    tab.open(address + plant(home, "0123456789abcdc0", texts))
    for number in (0, 1, 1):
        tab.page.locator(f".st-key-copy-{number} button").first.click()
        tab.page.locator("[data-test-script-state=notRunning]").wait_for()
        for _ in range(100):  # the page's script runs a moment after the page is drawn
            tab.page.wait_for_timeout(300)
            tab.input.fill("")
            tab.input.press("Control+V")
            if tab.input.input_value() == texts[number]:
                break
        tab.expect(tab.input).to_have_value(texts[number])
    assert tab.trouble == []
    tab.context.close()


def test_delete_and_undo(tab, home):
    one = plant(home, "0123456789abcdd1", ["about kingfishers", "They dive."])
    plant(home, "0123456789abcdd2", ["about wrens", "They hide."])
    tab.open(tab.address + one)
    before = saved(home)["0123456789abcdd2"]
    tab.page.locator(".st-key-delete-0123456789abcdd2 button").first.click()
    tab.expect(tab.button("about wrens")).to_have_count(0)
    assert "0123456789abcdd2" not in saved(home)
    tab.expect(tab.messages.last).to_contain_text("They dive.")  # still shown
    tab.click("Undo: about wrens")
    tab.expect(tab.button("about wrens")).to_be_visible()
    tab.page.locator("[data-test-script-state=notRunning]").wait_for()
    assert saved(home)["0123456789abcdd2"] == before
    tab.page.locator(".st-key-delete-0123456789abcdd1 button").first.click()
    tab.expect(tab.messages).to_have_count(0)
    tab.click("Undo")
    tab.expect(tab.messages.last).to_contain_text("They dive.")


def test_settings_stand_above_a_long_list(tab, home):
    for number in range(40):
        title = f"question {number}" + " of many words" * (number % 2 * 4)
        plant(home, f"0123456789abce{number:02x}", [title, "answer"])
    tab.open()
    deletes = tab.page.locator("[class*=st-key-delete-0123456789abce] button:visible")
    tab.expect(deletes).not_to_have_count(0)
    titles = tab.page.locator("[class*=st-key-open-0123456789abce] p")
    assert len({round(title.bounding_box()["x"]) for title in titles.all()}) == 1
    inside = tab.page.get_by_test_id("stSidebar").bounding_box()["width"]
    for box in (button.bounding_box() for button in deletes.all()):
        assert box["x"] + box["width"] <= inside
    for name in ("Settings", "Export and import", "English"):
        tab.expect(tab.page.get_by_text(name, exact=True).first).to_be_in_viewport()
    tab.page.get_by_test_id("stMainMenuButton").click()
    tab.expect(tab.page.get_by_test_id("stMainMenuPopover")).to_contain_text("Print")
    tab.expect(tab.page.get_by_text("Made with Streamlit")).not_to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_follow_the_system(chromium, address, scheme):
    tab = Tab(chromium, address, color_scheme=scheme)
    colour = "getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor"
    red = int(re.search(r"\d+", tab.page.evaluate(colour))[0])
    assert (red < 64) == (scheme == "dark")
    tab.context.close()


class Listener(BaseHTTPRequestHandler):
    """A stranger's host, which must never hear from the page."""

    def do_GET(self):
        self.server.heard.append(self.path)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def stranger():
    with ThreadingHTTPServer(("127.0.0.1", 0), Listener) as server:
        server.heard = []
        threading.Thread(target=server.serve_forever).start()
        yield server
        server.shutdown()


# Blank lines keep the Markdown out of the HTML blocks, in which it would be text.
ATTACK = """<script>alert(1)</script>

![spy]({host}/markdown) ![ref][r] [click](javascript:alert(4)) <javascript:alert(10)>

<img src="{host}/img" onerror="alert(2)"> <iframe src="{host}/frame"></iframe>

<svg onload="alert(3)"> <style>body{{display:none}}</style> <a href="javascript:alert(6)">x</a>

$\\includegraphics{{{host}/math}}$ $\\href{{javascript:alert(5)}}{{x}}$ `$ ![spy]({host}/code) `

<meta http-equiv="refresh" content="0;{host}">

| a |
|---|
| ![spy]({host}/table) |

[r]: {host}/reference

[a](data:text/html,1) [b](file:///etc) [c](<blob:x>) [d](%6aavascript:e) [f](/g) <data:h> [i][j]

# ` heading
[k](data:l) `

[m](https://n.example/`) [o](data:p) `

[j]: data:q

```html
<script>alert(7)</script><img src="{host}/fence">
```
```mermaid
graph TD; A["<img src='{host}/mermaid' onerror='alert(8)'>"] --> B; click A "javascript:alert(9)"
```
"""


def test_text_cannot_run_or_fetch_anything(tab, home, stranger):
    """In a question, an answer, a title and a system text; imported, so that each is exact."""
    attack = ATTACK.format(host=f"http://127.0.0.1:{stranger.server_address[1]}")
    tab.open(tab.address + plant(home, "0123456789abcdef", [attack, attack], attack))
    tab.expect(tab.messages).to_have_count(2)
    tab.expect(tab.messages.last).to_contain_text("<script>alert(1)</script>")
    tab.page.wait_for_timeout(1500)  # for what is loaded late, or on a timer
    shown = tab.page.locator("[data-testid=stAppViewContainer]")
    for hostile in ("script", "img[src^=http]", "iframe", "[onerror]", "[onload]", "meta"):
        tab.expect(shown.locator(hostile)).to_have_count(0)
    links = [link.get_attribute("href") for link in shown.locator("a").all()]
    own = re.compile("#.+|https?://.+|mailto:.+")  # headings have an anchor
    assert [href for href in links if own.fullmatch(href or "") is None] == []
    assert stranger.heard == []


def test_the_policy_holds_even_where_a_script_runs(chromium, address, stranger):
    """Were there a way past the rest: the browser fetches nothing from elsewhere."""
    tab = Tab(chromium, address)
    host = f"http://127.0.0.1:{stranger.server_address[1]}"
    tab.page.evaluate(
        """host => new Promise(done => {
            const image = new Image();
            image.onload = image.onerror = done;
            image.src = host + "/image";
        })""",
        host,
    )
    assert tab.page.evaluate("host => fetch(host).catch(() => 'refused')", host) == "refused"
    assert stranger.heard == []
    tab.context.close()


def test_formulas_and_code(tab, home):
    content = "\\(a^2\\) costs $5 and $6\n\n\\[ \\sum_i x_i \\]\n\n```python\nprint('![0]')\n```"
    tab.open(tab.address + plant(home, "0123456789abcde0", ["?", content]))
    tab.expect(tab.messages.last.locator(".katex")).to_have_count(2)
    tab.expect(tab.messages.last.locator(".katex-display")).to_have_count(1)
    tab.expect(tab.messages.last).to_contain_text("costs $5 and $6")
    tab.expect(tab.messages.last.locator("code")).to_contain_text("print('![0]')")
    tab.messages.last.locator("pre").hover()
    tab.expect(tab.button("Copy to clipboard")).to_be_visible()


def test_a_huge_message_is_shown_in_part(tab, home):
    lines = "".join(f"- line {number}\n" for number in range(25_000))
    tab.open(tab.address + plant(home, "0123456789abcde3", ["?", lines, ">" * 5_000, "end"]))
    tab.expect(tab.messages).to_have_count(4)
    tab.expect(tab.messages.nth(1)).to_contain_text("line 24999")
    tab.expect(tab.messages.nth(1)).to_contain_text("characters are not shown here")
    tab.expect(tab.messages.nth(1).locator("li")).not_to_have_count(0)
    assert tab.messages.nth(1).locator("li").count() < 1_000
    tab.expect(tab.messages.nth(2)).to_contain_text(">>>>")


def test_conversations_are_found_exported_and_imported(tab, home, tmp_path):
    plant(home, "0123456789abcde1", ["about herons", "They fish."])
    plant(home, "0123456789abcde2", ["about owls", "They hunt."], "be brief")
    tab.page.reload()
    search = tab.page.get_by_placeholder("Search")
    search.fill("HUNT about")
    search.press("Enter")
    tab.expect(tab.button("about herons")).to_have_count(0)
    tab.click("about owls")
    tab.expect(tab.messages).to_have_count(2)

    tab.page.get_by_text("Export and import").click()
    for kind in ("JSON", "Markdown"):
        with tab.page.expect_download() as download:
            tab.click(kind)
        file = tmp_path / download.value.suggested_filename
        download.value.save_as(file)
        shown = name_of(tab)
        tab.choose_file(file)
        tab.page.wait_for_url(lambda url, before=shown: before not in url)
        tab.expect(tab.messages).to_have_count(2)
        assert saved(home)[name_of(tab)] == saved(home)["0123456789abcde2"]
    bad = tmp_path / "notes.json"
    bad.write_text("dear diary")
    tab.choose_file(bad)
    tab.expect(tab.page.get_by_role("alert")).to_contain_text("notes.json is no saved conversation")

    tab.click("New conversation")
    tab.expect(tab.messages).to_have_count(0)


@pytest.fixture(scope="module")
def endless(checkpoint, home):
    """A model that never ends by itself, served to the whole network."""
    with served(web(str(checkpoint), "--host", "0.0.0.0"), home) as found:
        yield found


def set_most_tokens(tab, most, opened=False):
    if not opened:
        tab.page.get_by_text("Settings", exact=True).click()
    field = tab.page.get_by_label("Most tokens")
    field.fill(str(most))
    field.press("Enter")


def test_stop_and_settings(chromium, endless):
    tab = Tab(chromium, endless)
    set_most_tokens(tab, 100_000)
    tab.ask("hello")
    tab.expect(tab.messages.last).to_contain_text("tokens/s")
    tab.page.reload()  # the answer goes on, and is found again
    tab.click("Stop")
    tab.expect(tab.button("Regenerate")).to_be_enabled()
    tab.expect(tab.messages).to_have_count(2)
    kept = tab.messages.last.inner_text()
    tab.page.wait_for_timeout(500)
    assert tab.messages.last.inner_text() == kept

    set_most_tokens(tab, 5)
    tab.click("Regenerate")
    tab.expect_answer(2, "5 tokens")
    tab.expect(tab.messages.last).to_contain_text("The answer was cut")
    assert tab.trouble == []
    tab.context.close()


def test_errors_of_several_files_outlive_an_answer(chromium, endless, tmp_path):
    """The page is drawn anew when the answer ends."""
    bad = [tmp_path / name for name in ("diary.json", "letter.md")]
    for file in bad:
        file.write_text("dear diary")
    tab = Tab(chromium, endless)
    set_most_tokens(tab, 100_000)
    tab.page.get_by_text("Export and import").click()
    tab.ask("hello")
    tab.expect(tab.messages.last).to_contain_text("tokens/s")
    # Nothing but the answer is being drawn, and that all the time.
    tab.page.locator("input[type=file]").last.set_input_files(bad)
    alerts = tab.page.get_by_role("alert")
    tab.expect(alerts).to_have_count(2)
    tab.click("Stop")
    tab.expect(tab.button("Regenerate")).to_be_enabled()
    for number, file in enumerate(bad):
        tab.expect(alerts.nth(number)).to_contain_text(f"{file.name} is no saved conversation")
    tab.context.close()


def test_on_a_network_each_browser_has_its_own_conversations(chromium, endless):
    one, other = Tab(chromium, endless), Tab(chromium, endless)
    set_most_tokens(one, 5)
    one.ask("a secret")
    one.expect_answer(2, "5 tokens")
    one.page.reload()
    one.expect(one.button("a secret")).to_be_visible()
    other.open(one.page.url)  # even who knows the address sees nothing
    other.expect(other.button("a secret")).to_have_count(0)
    other.expect(other.messages).to_have_count(0)
    one.context.close()
    other.context.close()


def test_another_server_answers(chromium, home):
    with Server() as server, served(web("--server", server.url), home) as address:
        tab = Tab(chromium, address)
        tab.expect(tab.page.get_by_test_id("stSidebar")).to_contain_text("baichuan-demo")
        tab.ask(K2)
        tab.expect_answer(2, ANSWER)
        tab.expect(tab.messages.last).to_contain_text(re.compile(r"[\d.]+ tokens/s"))
        set_most_tokens(tab, 3)
        tab.click("Regenerate")
        tab.expect(tab.messages.last).to_contain_text("The answer was cut")
        tab.expect(tab.messages.last).to_contain_text("3 tokens")
        assert tab.trouble == tab.foreign == []
        tab.context.close()


def test_streamlit_run(chromium, home):
    command = ["-m", "streamlit", "run", str(ROOT / "web_demo.py"), "--server.port", "0"]
    with served([*command, "--server.headless", "true"], home) as address:
        tab = Tab(chromium, address)
        tab.ask(K2)
        tab.expect_answer(2, ANSWER)
        assert "content-security-policy" in tab.page.request.get(address).headers
        foreigners_are_refused(address)
        tab.context.close()
