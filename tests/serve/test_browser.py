"""The page in Chromium: it streams, stops, counts, refuses in words, and fits phones and the dark.

Needs Chromium with its driver (Debian's chromium and chromium-driver) and the extra `browser`.
"""

import itertools
import json
import re
import shutil
import time

import pytest

from dsjax.infer.engine.device import Device, Setting
from dsjax.infer.engine.engine import Engine
from tests.serve.conftest import serving

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
                None)
DRIVER = shutil.which("chromedriver")
SAID = "To be, or not"
LONG = "that is the question " * 400 + "x" * 300

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None,
                       reason="there is no chromium with chromedriver here"),
]


class Slow(Engine):
    """The engine at a pace at which a person could press a button."""

    def step(self):
        time.sleep(0.03)
        return super().step()


@pytest.fixture(scope="module")
def drafting(model):
    return Device(model, Setting(slots=2, chunk=16, max_len=400, draft=True))


@pytest.fixture(scope="module")
def chromium():
    webdriver = pytest.importorskip("selenium.webdriver", reason="the extra `browser` is missing")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


class Page:
    """The page of a server as a person meets it."""

    def __init__(self, driver, url):
        self.driver = driver
        driver.get(url)
        driver.get_log("browser")

    def __getitem__(self, name):
        return self.driver.find_element("id", name)

    def told(self, kind):
        return [line.get_property("textContent")
                for line in self.driver.find_elements("class name", kind)]

    def put(self, name, value):
        self[name].clear()
        self[name].send_keys(value)

    def say(self, text):
        self.put("text", text + "\n")  # Enter sends

    def rest(self):
        wait(lambda: self["send"].is_enabled())

    def run(self, script, *args):
        return self.driver.execute_script(script, *args)

    def log(self):
        return [(one["source"], one["message"]) for one in self.driver.get_log("browser")]


def wait(what, seconds=30):
    until = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.01)
    return found


@pytest.fixture
def there(drafting, model, chat_template):
    with serving(Slow(drafting), model, template=chat_template) as there:
        yield there


@pytest.fixture
def page(chromium, there):
    page = Page(chromium, there.url)
    wait(lambda: page["model"].text == "short")
    page.put("temperature", "0")
    return page


WATCH = """
window.lengths = [];
new MutationObserver(() => {
  const line = document.querySelector(".assistant");
  if (line) window.lengths.push(line.textContent.length);
}).observe(document.getElementById("talk"), {childList: true, subtree: true});
"""


def test_text_streams_in_and_numbers_are_shown(page, there):
    page.run(WATCH)
    page.put("most", "24")
    page.say(SAID)
    page.rest()
    whole = there.client().chat.completions.create(
        model="short", messages=[{"role": "user", "content": SAID}], temperature=0, max_tokens=24)
    assert page.told("user") == [SAID]
    assert page.told("assistant") == [whole.choices[0].message.content]
    lengths = page.run("return window.lengths")
    grown = [now for before, now in itertools.pairwise([0, *lengths]) if now > before]
    assert len(grown) > 5  # pieces came one by one, and nothing was taken back
    assert lengths == sorted(lengths)
    assert re.fullmatch(r"24 tokens; [\d.]+ tokens/s; drafts accepted \d+%", page["numbers"].text)
    assert page.log() == []


def test_stop_cancels_on_the_server_and_the_talk_goes_on(page, there):
    page.say(SAID)
    wait(lambda: page.told("assistant"))
    assert there.engine.stats().pages_owned
    page["stop"].click()
    page.rest()
    assert page["numbers"].text == "stopped"
    wait(lambda: not there.engine.stats().pages_owned)
    stats = there.engine.stats()
    assert (stats.running, stats.waiting) == (0, 0)
    assert "dsjax_requests_left_total 1.0" in there.door.metrics.text().decode()
    time.sleep(0.3)
    assert there.engine.stats().generated_tokens == stats.generated_tokens < 300
    page.put("most", "3")
    page.say("mind")
    page.rest()
    assert [m["role"] for m in page.run("return messages")] == ["user", "assistant"] * 2
    assert page.run("return messages.map((m) => m.content)")[1] == page.told("assistant")[0]
    page["reset"].click()
    assert page["talk"].text == ""
    assert page.run("return messages") == []
    assert page.log() == []


def test_reset_in_mid_answer_forgets_it(page, there):
    page.say(SAID)
    wait(lambda: page.told("assistant"))
    page["reset"].click()
    page.rest()
    assert (page["talk"].text, page["numbers"].text) == ("", "")
    assert page.run("return messages") == []
    wait(lambda: not there.engine.stats().pages_owned)


def test_stop_before_the_first_word_leaves_no_question_without_an_answer(page, there):
    blocked = there.engine.device.read

    def slowly(*args):
        time.sleep(1)
        blocked(*args)

    there.engine.device.read = slowly
    try:
        page.say(SAID)
        wait(lambda: page["numbers"].text == "waiting")
        wait(lambda: page["stop"].is_enabled())
        page["stop"].click()
        page.rest()
    finally:
        del there.engine.device.read
    roles = [m["role"] for m in page.run("return messages")]
    assert roles == ["user", "assistant"][: len(roles)]
    assert len(roles) in (0, 2)
    wait(lambda: not there.engine.stats().pages_owned)


def test_what_the_server_refuses_is_said_and_the_text_is_kept(chromium, drafting, model,
                                                            chat_template):
    with serving(Slow(drafting), model, template=chat_template, keys=("secret",)) as there:
        page = Page(chromium, there.url)
        wait(lambda: page.told("error"))
        page.say(SAID)
        page.rest()
        assert all("Incorrect API key" in line for line in page.told("error"))
        assert page["text"].get_property("value") == SAID
        page.put("key", "secret")
        page.put("temperature", "7")
        page["send"].click()
        page.rest()
        assert "temperature is 7; give a number from 0 to 2" in page.told("error")[-1]
        page["temperature"].clear()  # the server's own
        page.run("window.sent = []; const theirs = fetch; window.fetch = (path, options) => {"
                 " sent.push(options && options.body); return theirs(path, options); };")
        page.put("most", "3")
        page["send"].click()
        page.rest()
        assert page["numbers"].text.startswith("3 tokens")
        (body,) = filter(None, page.run("return sent"))
        assert set(json.loads(body)) == {"model", "max_tokens", "stream", "stream_options",
                                         "messages"}
        assert page["text"].get_property("value") == ""
        assert [m["role"] for m in page.run("return messages")] == ["user", "assistant"]
        assert {source for source, _ in page.log()} == {"network"}  # the statuses, no script
        there.stop()
        page.say("mind")
        page.rest()
        assert "the server does not answer" in page.told("error")[-1]
        assert page["text"].get_property("value") == "mind"


def test_without_a_template_texts_are_continued(chromium, drafting, model):
    with serving(Slow(drafting), model) as there:
        page = Page(chromium, there.url)
        wait(lambda: page["model"].text == "short (continues texts)")
        page.put("temperature", "0")
        page.put("most", "5")
        page.say(SAID)
        page.rest()
        made = there.client().completions.create(model="short", prompt=SAID, temperature=0,
                                                 max_tokens=5)
        assert page.told("assistant") == [SAID + made.choices[0].text]


CONTRAST = """
const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
document.body.style.background = "Canvas";
const base = getComputedStyle(document.body).backgroundColor;
function pixel(...layers) {
  for (const [color, alpha] of layers) {
    canvas.globalAlpha = alpha; canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
  }
  return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
}
function light(rgb) {
  const [r, g, b] = rgb.map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b;
}
function contrast(element, pseudo) {
  const style = getComputedStyle(element), ink = getComputedStyle(element, pseudo);
  const back = [[base, 1], [style.backgroundColor, 1]];
  const [a, b] = [pixel(...back), pixel(...back, [ink.color, Number(ink.opacity)])].map(light);
  return (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
}
const found = Object.fromEntries([".user", ".assistant", ".thought", ".error", "#numbers", "#send",
  "#model", "label"].map((name) => [name, contrast(document.querySelector(name), null)]));
found.placeholder = contrast(document.getElementById("text"), "::placeholder");
return found;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1000, 720), (360, 640), (320, 480)])
def test_it_fits_and_can_be_read(chromium, page, scheme, width, height):
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500})
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {
        "features": [{"name": "prefers-color-scheme", "value": scheme}]})
    try:
        page.run("for (const kind of ['user', 'thought', 'assistant', 'error'])"
                 " show(kind, arguments[0]); $('numbers').textContent = arguments[1];",
                 LONG, "128 tokens; 1234.5 tokens/s; drafts accepted 100%")
        sizes = page.run("const all = document.scrollingElement; return [all.scrollWidth,"
                         " innerWidth, all.scrollHeight, innerHeight]")
        assert sizes == [width, width, height, height]  # only the talk scrolls
        for name in ("model", "reset", "temperature", "most", "key", "text", "send", "stop",
                     "numbers"):
            at = page[name].rect
            assert at["x"] >= 0, name
            assert at["y"] >= 0, name
            assert at["x"] + at["width"] <= width, name
            assert at["y"] + at["height"] <= height, name
        poor = {name: ratio for name, ratio in page.run(CONTRAST).items() if ratio < 4.5}
        assert poor == {}  # WCAG 2.2, 1.4.3
    finally:
        chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_end_is_followed_unless_one_reads_above(page):
    at = "return [$('talk').scrollTop, $('talk').scrollHeight - $('talk').clientHeight]"
    page.run("show('assistant', arguments[0])", LONG)
    top, end = page.run(at)
    assert abs(top - end) <= 1
    page.run("$('talk').scrollTop = 10; show('assistant', arguments[0])", LONG)
    top, further = page.run(at)
    assert top == 10
    assert further > end
