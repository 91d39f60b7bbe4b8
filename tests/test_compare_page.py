"""The comparison page: what it says, that hostile texts stay texts, and how a real browser shows it (`-m browser`)."""

import html.parser
import re

import numpy as np
import pytest
from chromium import BROWSER, Chromium

from post_platform.comparison import Compared, Comparison, Difference, Pair, Row
from post_platform.comparison_page import class_metric, page, plain
from post_platform.comparison_pictures import Panel, shrink
from post_platform.experiment_reader import StoredRun

HOSTILE = "</title><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\u202e\x1b[2J"


def stored(name, **more):
    common = dict(experiment_id="1", status="FINISHED", begin=0.0, end=75.0, tags={}, metrics=frozenset())
    return StoredRun(run_id=f"{ord(name[-1]):032x}", name=name, **{"params": {"seed": "0"}, **common, **more})


def comparison(first="first", second="second", dataset="kitti_mots", setting="lr", note="a note", picture=None):
    history = {
        "val/mean/score": {20: 0.25, 40: 0.5},
        "train/loss/total": {step: 4 / step for step in range(1, 401)},
        f"data/{dataset}/share": {40: 0.75},
        "data/other/share": {40: 0.25},
    }
    runs = tuple(
        Compared(letter, stored(name), 40, {f"val/{dataset}/sMOTSA": 0.5}, history)
        for letter, name in (("A", first), ("B", second))
    )
    better, unknown = Difference(0.25, 0.1, "better"), Difference(-0.125, None, "")
    rows = [
        Row("sMOTSA", "", (0.5, 0.75), (better,)),
        Row("IDS", "", (7.0, 3.0), (Difference(-4.0, 1.0, "better"),)),
        Row("sMOTSA", "pedestrian", (0.5, 0.375), (unknown,)),
        Row("sMOTSA", "car", (None, 0.75), (None,)),
        Row("IDF1", "car", (0.5, 0.75), (better,)),
    ]
    panels = [Panel(dataset, "0002_000008", (picture, None))] if picture else []
    return Comparison(
        runs=runs,
        pairs=(Pair("repeated seeds: A 3, B 2"),),
        mean=Row("score", "", (0.5, 0.75), (better,)),
        datasets={dataset: rows},
        headlines={dataset: "sMOTSA"},
        ledgers=[{"runs": ["A", "B"], "same": False, "parting": 2, "steps": [4, 4], "text": "they part at step 2"}],
        config={setting: ("1", None)},
        same_settings=7,
        pictures=panels,
        timelines=panels,
        notes=[note],
    )


def picture(folder):
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 255, (300, 2400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "p.png")
    return shrink(folder / "p.png", 40)


class Tags(html.parser.HTMLParser):
    """All tags, their attributes and the texts outside them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "input", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_scores_differences_and_what_is_known_of_their_noise_are_shown():
    shown = " ".join(Tags(page(comparison())).texts)
    for expected in (
        "noise of B − A: repeated seeds: A 3, B 2",
        "0.7500 ▲ +0.2500  ±0.1000",
        "3 ▲ -4  ±1.0",
        "0.3750 -0.1250",
        "they part at step 2",
        "7 settings are the same in all runs.",
        "1 min 15 s",
        "75.0%",
        "a note",
        "None stored.",
    ):
        assert expected in shown
    assert "1 more: IDF1" in shown


def test_a_hostile_text_makes_no_tag_and_no_attribute():
    harmless, hostile = page(comparison()), page(comparison(*[HOSTILE] * 5))
    assert [(tag, attrs.keys()) for tag, attrs in Tags(hostile).tags] == [
        (tag, attrs.keys()) for tag, attrs in Tags(harmless).tags
    ]
    assert Tags(hostile).open == []
    assert "\x1b" not in hostile
    assert "\u202e" not in hostile
    assert plain("a\nb\u202e") == "a\ufffdb\ufffd"


def test_nothing_is_loaded_and_only_our_script_may_run(tmp_path):
    tags = Tags(page(comparison(picture=picture(tmp_path)))).tags
    sources = [attrs[name] for _, attrs in tags for name in ("src", "href") if name in attrs]
    assert len([source for source in sources if source.startswith("data:image/webp;base64,")]) == 2
    assert all(source.startswith(("data:", "#")) for source in sources)
    policy = next(attrs["content"] for tag, attrs in tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert "unsafe" not in policy
    assert not [attrs for _, attrs in tags if "style" in attrs or any(name.startswith("on") for name in attrs)]


def test_pictures_are_small_and_keep_their_shape(tmp_path):
    small = picture(tmp_path)
    assert small.size == (1100, 138)
    (tmp_path / "p.png").write_bytes((tmp_path / "p.png").read_bytes()[:500])
    assert shrink(tmp_path / "p.png", 40) is None
    assert shrink(tmp_path / "none.png", 40) is None


def test_a_long_curve_is_thinned_and_that_is_said():
    found = page(comparison())
    longest = max(len(points.split()) for points in re.findall(r'points="([^"]+)"', found))
    assert longest == 150
    assert "means over 150 equal parts" in found


def test_the_class_metric_is_the_headline_where_it_is_known_by_class():
    rows = comparison().datasets["kitti_mots"][2:]
    assert class_metric(rows, "sMOTSA") == "sMOTSA"
    assert class_metric(rows, "STQ") == "sMOTSA"
    assert class_metric(rows[-1:], "STQ") == "IDF1"
    assert class_metric([], "STQ") == ""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    assert BROWSER, "apt-get install chromium"
    with Chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


OVERFLOW = "document.documentElement.scrollWidth - window.innerWidth"
BACK = "getComputedStyle(document.body).backgroundColor"


@pytest.mark.browser
@pytest.mark.parametrize("name", ["second", HOSTILE, "a_name_without_any_place_to_break_" * 6])
@pytest.mark.parametrize("width", [320, 768, 1440])
def test_a_browser_shows_it_without_errors_requests_or_overflow(browser, tmp_path, width, name):
    file = tmp_path / "page.html"
    file.write_text(page(comparison("first", *[name] * 4, picture=picture(tmp_path))), encoding="utf-8")
    colors = []
    for dark in (False, True):
        browser.show(file.as_uri(), width, dark=dark)
        assert browser.value("Promise.all([...document.images].map(i => i.decode())).then(() => 2)") == 2
        assert browser.value("document.title") != "owned"
        assert browser.value(OVERFLOW) <= 0
        colors.append(browser.value(BACK))
        assert browser.messages == []
        assert [url for url in browser.requests if not url.startswith("data:")] == [file.as_uri()]
    assert colors == ["rgb(255, 255, 255)", "rgb(20, 23, 28)"]


@pytest.mark.browser
def test_classes_are_filtered_and_a_click_sorts(browser, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(page(comparison()), encoding="utf-8")
    browser.show(file.as_uri(), 768)
    rows = "[...document.querySelectorAll('#classes tbody tr')].filter(r => !r.hidden).map(r => r.cells[0].textContent)"
    assert browser.value(rows) == ["sMOTSA pedestrian", "sMOTSA car", "IDF1 car"]
    browser.value("(f => {f.value = 'CAR'; f.dispatchEvent(new Event('input'))})(document.getElementById('filter'))")
    assert browser.value(rows) == ["sMOTSA car", "IDF1 car"]
    browser.value("(f => {f.value = ''; f.dispatchEvent(new Event('input'))})(document.getElementById('filter'))")
    head = "document.querySelector('#classes thead').rows[0].cells"
    first = "[...document.querySelector('#classes table').tBodies[0].rows].map(r => r.cells[0].textContent)"
    orders = [browser.value(f"({head}[{column}].click(), {first})") for column in (2, 2, 1)]
    down = ["sMOTSA pedestrian", "sMOTSA car"]  # by -0.125, and no difference: a car's 0.75 is none
    assert orders == [down, down[::-1], down]
    names = "[...document.querySelectorAll('#scores .tables tbody tr')].map(r => r.cells[0].textContent)"
    head = "document.querySelector('#scores .tables thead').rows[0].cells"
    orders = [browser.value(f"({head}[{column}].click(), {names})") for column in (2, 2, 0)]
    assert orders == [["sMOTSA", "IDS"], ["IDS", "sMOTSA"], ["IDS", "sMOTSA"]]
    assert browser.messages == []


@pytest.mark.browser
def test_the_browser_s_checks_can_fail(browser, tmp_path):
    file = tmp_path / "bad.html"
    file.write_text("<p style='width:900px'>wide<img src='http://127.0.0.1:1/x.png'><script>throw 1</script>")
    browser.show(file.as_uri(), 320)
    assert browser.value(OVERFLOW) > 0
    assert any("Uncaught" in message for message in browser.messages)
    assert "http://127.0.0.1:1/x.png" in browser.requests
