"""The page's own script, in node with a few words of a browser: it streams, stops and counts."""

import json
import re
import shutil
import subprocess

import pytest

from dsjax.serve.app import PAGE
from tests.serve import stand_in
from tests.serve.conftest import serving

NODE = shutil.which("node")

# Elements are plain objects; addresses are the server's own.
BROWSER = """
const made = {}, base = process.argv[2];
function element(id) {
  return made[id] = made[id] || {id, value: "", textContent: "", children: [], on: {},
    append(child) {
      if (typeof child === "string") this.textContent += child; else this.children.push(child);
    },
    replaceChildren() { this.children = []; },
    addEventListener(name, call) { this.on[name] = call; }, focus() {}};
}
globalThis.document = {getElementById: element, createElement: () => element(Math.random())};
const theirs = fetch;
globalThis.fetch = (path, options) => theirs(base + path, options);
const told = () => element("talk").children.map((line) => [line.className, line.textContent]);
"""
TALK = """
(async () => {
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  element("temperature").value = "0";
  element("most").value = "12";
  element("text").value = "To be";
  await send();
  const numbers = element("numbers").textContent;
  element("most").value = "";
  element("text").value = "mind";
  const slow = send();
  while (told().length < 4) await wait(5);
  element("stop").on.click();
  await slow;
  const before = [told(), numbers, messages.map((m) => m.role)];
  element("reset").on.click();
  element("text").value = "x".repeat(500);
  await send();
  const left = [messages, element("text").value, element("numbers").textContent];
  console.log(JSON.stringify([...before, told(), ...left]));
})();
"""


@pytest.mark.skipif(NODE is None, reason="there is no node here")
def test_the_page_talks(model, chat_template, tmp_path):
    (script,) = re.findall(r"<script>(.*?)</script>", PAGE, re.DOTALL)
    (tmp_path / "page.js").write_text(BROWSER + script.replace('"use strict";', "", 1) + TALK)
    engine = stand_in.Engine(model, delay=0.02)
    with serving(engine, model, template=chat_template) as there:
        done = subprocess.run([NODE, str(tmp_path / "page.js"), there.url], capture_output=True,
                              text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        said, numbers, roles, refused, left, text, now = json.loads(done.stdout)
        whole = there.client().chat.completions.create(
            model="short", messages=[{"role": "user", "content": "To be"}], temperature=0,
            max_tokens=12)
    assert [kind for kind, _ in said] == ["user", "assistant", "user", "assistant"]
    assert said[1][1] == whole.choices[0].message.content
    assert re.fullmatch(r"12 tokens; [\d.]+ tokens/s", numbers)
    assert roles == ["user", "assistant"] * 2
    assert refused[1][0] == "error"
    assert "maximum context length" in refused[1][1]
    assert (left, text, now) == ([], "x" * 500, "")  # what was refused can be mended
