"""The page in a browser: Debian's Chromium, headless, driven through chromedriver; skipped where they are missing. With
HADAL_SCREENSHOTS=FOLDER the pictures of docs/ are taken anew."""

import json
import os
import shutil
import struct
import zlib
from pathlib import Path

import pytest
from server_process import ServerProcess, dsml_call, reply

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not CHROMIUM or not DRIVER, reason="there is no chromium or no chromedriver (apt-get install "
                                "chromium chromium-driver)")
DOCS = os.environ.get("HADAL_SCREENSHOTS")

TOOL = [{"type": "function", "function": {"name": "weather", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}}}]
SCRIPT = [
    {"match": "How deep", "reply": "The user asks about the hadal zone. I recall that it begins below the abyssal plains, at about "
     "6,000 m, and ends in the deepest trenches.</think>The **hadal zone** lies below 6,000 metres:\n\n"
     "- it is found in trenches only\n- the deepest point is about 10,935 m down\n\n"
     "As code, `depth > 6000`:\n\n```python\ndef is_hadal(metres):\n    return metres > 6000  # <b>not</b> HTML\n```\n"},
    {"match": "times", "turn": 0, "reply": "I should use calculator.</think>" + dsml_call("calculator", expression="(17 + 4) * 2^3")},
    {"match": "168", "reply": "</think>That makes 168."},
    {"match": "weather", "turn": 0, "reply": "</think>Let me see." + dsml_call("weather", city="Kiel & Köln", days=3)},
    {"match": "fog in Kiel", "reply": "Fog.</think>Take a coat."},
    {"match": "long", "reply": "</think>" + "word " * 4000},
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    script = tmp_path_factory.mktemp("page") / "script.json"
    script.write_text(json.dumps(SCRIPT))
    with ServerProcess(script=script, step_ms=2) as running:
        yield running


def open_browser(tmp, width, height, mobile=False, dark=False):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars",
                     f"user-data-dir={tmp}", f"window-size={width},{height}", "lang=en-GB", "force-device-scale-factor=1"):
        options.add_argument("--" + argument)
    if mobile:
        metrics = {"width": width, "height": height, "pixelRatio": 1.0, "touch": True}
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(DRIVER))
    features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    return browser


@pytest.fixture(scope="module")
def desktop(tmp_path_factory):
    browser = open_browser(tmp_path_factory.mktemp("desktop"), 1000, 960)
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def phone(tmp_path_factory):
    browser = open_browser(tmp_path_factory.mktemp("phone"), 390, 780, mobile=True, dark=True)
    yield browser
    browser.quit()


def wait(browser, condition, seconds=20):
    return WebDriverWait(browser, seconds, 0.02).until(condition)


def text_of(browser, selector):
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText).join('\\n')", selector)


def ready(browser, server):
    browser.get(server.url)
    browser.execute_script("localStorage.clear()")
    browser.get(server.url)
    wait(browser, lambda b: text_of(b, "#model") == "scripted")


def say(browser, text):
    box = browser.find_element(By.ID, "text")
    box.send_keys(text)
    box.send_keys(Keys.ENTER)


def done(browser):
    wait(browser, lambda b: text_of(b, "#send") == "Send" and not b.find_elements(By.CSS_SELECTOR, ".working"))


def shoot(browser, name: str | None):
    """A picture of the page, and what can be told of it without eyes: it is not one colour."""
    data = browser.get_screenshot_as_png()
    width, height = struct.unpack(">II", data[16:24])
    assert width > 300 and height > 500 and len(data) > 8000
    if DOCS and name:
        (Path(DOCS) / name).write_bytes(repacked(data))
    return data


def repacked(png: bytes) -> bytes:
    """The same picture, compressed as well as zlib can."""
    at, out, pixels = 8, b"", b""
    while at < len(png):
        (size,) = struct.unpack(">I", png[at:at + 4])
        kind, data = png[at + 4:at + 8], png[at + 8:at + 8 + size]
        if kind == b"IDAT":
            pixels += data
        elif kind == b"IEND":
            packed = zlib.compress(zlib.decompress(pixels), 9)
            out += struct.pack(">I", len(packed)) + b"IDAT" + packed + struct.pack(">I", zlib.crc32(b"IDAT" + packed))
            out += png[at:at + 12]
        elif kind in (b"IHDR", b"PLTE"):
            out += png[at:at + 12 + size]
        at += 12 + size
    return png[:8] + out


def complaints(browser):
    return [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def test_chat(desktop, server):
    ready(desktop, server)
    say(desktop, "How deep is the hadal zone?")
    # While it streams: thinking is open, and speed is shown.
    wait(desktop, lambda b: b.find_elements(By.CSS_SELECTOR, "details.thinking[open]"))
    wait(desktop, lambda b: "tokens/s" in text_of(b, "#speed"))
    assert text_of(desktop, "#send") == "Stop"
    done(desktop)
    assert text_of(desktop, "details.thinking summary").startswith("Thought for")
    assert not desktop.find_elements(By.CSS_SELECTOR, "details.thinking[open]")
    assert text_of(desktop, ".answer strong") == "hadal zone"
    assert len(desktop.find_elements(By.CSS_SELECTOR, ".answer li")) == 2
    assert "# <b>not</b> HTML" in text_of(desktop, ".answer pre"), "an answer was taken for HTML"
    desktop.find_element(By.CSS_SELECTOR, "details.thinking summary").click()
    assert "deepest trenches" in text_of(desktop, "details.thinking div")
    assert "tokens at" in text_of(desktop, "#speed") and "from the cache" in text_of(desktop, "#cache")
    state = json.loads(desktop.execute_async_script(
        "fetch('/state').then(r => r.text()).then(arguments[0])"))
    assert f"of {state['context']:,}" in text_of(desktop, "#context")
    used = desktop.find_element(By.ID, "used")
    assert 0 < float(used.get_attribute("value")) < float(used.get_attribute("max"))
    # The second question finds the first in the cache.
    say(desktop, "How deep, again?")
    done(desktop)
    hits = text_of(desktop, "#cache")
    assert int(hits.split(" from")[0].split(", ")[1].replace(",", "")) > 50, hits
    assert complaints(desktop) == []


def test_a_tool_that_the_page_runs(desktop, server):
    ready(desktop, server)
    desktop.find_element(By.ID, "show-settings").click()
    desktop.find_element(By.ID, "page_tools").click()
    desktop.find_element(By.ID, "show-settings").click()
    say(desktop, "21 times 8 is?")
    wait(desktop, lambda b: "That makes 168." in text_of(b, ".answer"))
    assert "expression: (17 + 4) * 2^3" in text_of(desktop, ".call .arguments")
    assert "168" in text_of(desktop, ".call .result")
    done(desktop)
    say(desktop, "How deep is the hadal zone?")
    done(desktop)
    desktop.execute_script("[...document.querySelectorAll('details.thinking')].at(-1).open = true;"
                           "document.getElementById('log').scrollTop = 0")
    shoot(desktop, "chat.png")
    for expression, value in [("2 + 3 * 4", "14"), ("-(1 - 4) ^ 2", "-9"), ("10 % 4", "2"), ("1e3 / 8", "125")]:
        assert desktop.execute_script("return calculate(arguments[0])", expression) == value
    for nonsense in ("alert(1)", "1 +", "(1", "1 2", ""):
        with pytest.raises(Exception, match="expected|not an expression|was not"):
            desktop.execute_script("return calculate(arguments[0])", nonsense)


def test_a_tool_of_the_user(desktop, server):
    ready(desktop, server)
    desktop.find_element(By.ID, "show-settings").click()
    desktop.execute_script("document.getElementById('tools').value = arguments[0]", json.dumps(TOOL))
    desktop.find_element(By.ID, "show-settings").click()
    say(desktop, "What is the weather?")
    field = wait(desktop, lambda b: b.find_elements(By.CSS_SELECTOR, ".call form textarea"))[0]
    assert "city: Kiel & Köln\ndays: 3" in text_of(desktop, ".call .arguments")
    field.send_keys("fog in Kiel")
    desktop.find_element(By.CSS_SELECTOR, ".call form button").click()
    wait(desktop, lambda b: "Take a coat." in text_of(b, ".answer"))
    done(desktop)
    assert complaints(desktop) == []


def test_stop_and_again_and_new(desktop, server):
    ready(desktop, server)
    say(desktop, "Say something long")
    wait(desktop, lambda b: "word" in text_of(b, ".answer"))
    desktop.find_element(By.ID, "send").click()
    done(desktop)
    assert 0 < text_of(desktop, ".answer").count("word") < 4000
    wait(desktop, lambda b: json.loads(b.execute_async_script(
        "fetch('/state').then(r => r.text()).then(arguments[0])"))["running"] == 0)
    desktop.find_element(By.ID, "clear").click()
    assert text_of(desktop, "#log") == ""
    say(desktop, "How deep?")
    done(desktop)
    desktop.find_element(By.XPATH, "//button[.='Again']").click()
    wait(desktop, lambda b: b.find_elements(By.CSS_SELECTOR, ".working"))
    done(desktop)
    assert len(desktop.find_elements(By.CSS_SELECTOR, ".assistant")) == 1


def test_sampling_controls_reach_the_request(desktop, server):
    ready(desktop, server)
    desktop.execute_script("""
      window.bodies = [];
      const fetch_ = fetch;
      window.fetch = (url, given) => { if (given?.body) bodies.push(JSON.parse(given.body)); return fetch_(url, given); };""")
    desktop.find_element(By.ID, "show-settings").click()
    values = {"system": "Terse.", "temperature": "0.5", "top_p": "0.9", "top_k": "40", "min_p": "0.05", "max_tokens": "7",
              "presence_penalty": "0.1", "frequency_penalty": "0.2", "seed": "3", "stop": "zzz"}
    for name, value in values.items():
        field = desktop.find_element(By.ID, name)
        field.clear()
        field.send_keys(value)
    Select(desktop.find_element(By.ID, "effort")).select_by_value("none")
    desktop.find_element(By.ID, "show-settings").click()
    say(desktop, reply("abcdefghijklmnop"))
    done(desktop)
    (body,) = desktop.execute_script("return bodies")
    assert body["messages"][0] == {"role": "system", "content": "Terse."}
    assert body["reasoning_effort"] == "none" and body["stop"] == ["zzz"]
    for name in ("temperature", "top_p", "top_k", "min_p", "max_tokens", "presence_penalty", "frequency_penalty", "seed"):
        assert body[name] == float(values[name])
    assert "Cut off" in text_of(desktop, ".assistant")
    # They are still there when the page comes back.
    desktop.get(server.url)
    assert desktop.find_element(By.ID, "temperature").get_attribute("value") == "0.5"
    desktop.find_element(By.ID, "show-settings").click()
    Select(desktop.find_element(By.ID, "theme")).select_by_visible_text("dark")
    assert desktop.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(13, 20, 27)"


def test_errors_are_said(desktop, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("alpha\n")
    keys.chmod(0o600)
    with ServerProcess(keys=keys, context=300) as locked:
        desktop.get(locked.url)
        wait(desktop, lambda b: "API key" in text_of(b, "#model"))
        say(desktop, "hello")
        done(desktop)
        assert "API key" in text_of(desktop, "#notice")
        desktop.find_element(By.ID, "clear").click()
        desktop.find_element(By.ID, "show-settings").click()
        desktop.find_element(By.ID, "key").send_keys("alpha", Keys.TAB)
        desktop.find_element(By.ID, "show-settings").click()
        wait(desktop, lambda b: text_of(b, "#model") == "scripted")
        say(desktop, "x" * 2000)
        done(desktop)
        assert "maximum context length is 300 tokens" in text_of(desktop, "#notice")
    wait(desktop, lambda b: text_of(b, "#model") == "no server")


def test_server_view(desktop, server):
    ready(desktop, server)
    say(desktop, "How deep?")
    done(desktop)
    desktop.find_element(By.ID, "show-server").click()
    wait(desktop, lambda b: "ANSWERS BEING WRITTEN" in text_of(b, "#cards").upper())
    cards = text_of(desktop, "#cards")
    for title in ("Tokens per second", "Read from the cache", "States and snapshots", "Memory", "Context", "Up for"):
        assert title in cards, cards
    assert server.url + "/v1" in text_of(desktop, "#addresses")
    wait(desktop, lambda b: b.execute_script("return samples.length") > 1)
    shoot(desktop, None)
    desktop.find_element(By.ID, "show-chat").click()
    assert "hadal zone" in text_of(desktop, ".answer")


def test_on_a_phone_in_the_dark(phone, server):
    ready(phone, server)
    say(phone, "How deep is it?")
    done(phone)
    phone.execute_script("document.querySelector('details.thinking').open = true")
    wide = phone.execute_script("""return [...document.querySelectorAll('body, body *')]
      .filter(e => !e.closest('pre') && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName + '.' + e.className)""")
    assert wide == [], "wider than the screen"
    for view in ("show-server", "show-chat", "show-settings"):
        phone.find_element(By.ID, view).click()
        assert phone.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    for button in phone.find_elements(By.CSS_SELECTOR, "nav button, #send"):
        assert button.rect["height"] >= 40, "too small for a finger"
    phone.find_element(By.ID, "show-settings").click()
    shoot(phone, "phone.png")


CONTRAST = """
const parse = (c) => c.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => { const f = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b); };
const ground = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
  if (c.length === 3 || c[3] > 0) return c; } return [255, 255, 255]; };
return [...document.querySelectorAll('body *')].filter((e) => e.checkVisibility() && [...e.childNodes].some(
  (n) => n.nodeType === 3 && n.textContent.trim())).map((e) => {
    const a = light(parse(getComputedStyle(e).color)), b = light(ground(e));
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.tagName + ' ' + e.textContent.slice(0, 30)];
  }).filter(([ratio]) => ratio < 4.5);"""


@pytest.mark.parametrize("which", ["desktop", "phone"])
def test_accessible(request, which, server):
    browser = request.getfixturevalue(which)
    ready(browser, server)
    say(browser, "How deep?")
    done(browser)
    browser.find_element(By.ID, "show-settings").click()
    assert browser.execute_script(CONTRAST) == [], "WCAG's AA wants 4.5 : 1"
    nameless = browser.execute_script("""return [...document.querySelectorAll('button, input, select, textarea, meter')]
      .filter((e) => e.checkVisibility()).filter((e) => !(e.textContent.trim() && e.tagName === 'BUTTON') && !e.labels?.length
      && !e.ariaLabel).map((e) => e.outerHTML)""")
    assert nameless == []
    assert browser.find_element(By.TAG_NAME, "html").get_attribute("lang") == "en"
    # Everything can be reached with the keyboard alone.
    browser.find_element(By.ID, "show-settings").click()
    browser.execute_script("document.activeElement.blur(); document.getElementById('show-chat').focus()")
    reached = set()
    for _ in range(14):
        reached.add(browser.execute_script("return document.activeElement.id || document.activeElement.tagName"))
        browser.switch_to.active_element.send_keys(Keys.TAB)
    assert {"show-server", "show-settings", "clear", "text", "send"} <= reached, reached


def test_headers_of_the_page(server):
    import httpx

    for path, kind in (("/", "text/html"), ("/style.css", "text/css"), ("/page.js", "text/javascript")):
        answer = httpx.get(server.url + path)
        assert answer.status_code == 200 and answer.headers["content-type"].startswith(kind)
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
