"""The pages of runs in a real browser, on a wide and on a narrow screen.

Needs Chromium or Chrome on the PATH; skipped without one.
"""

import json
import re
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml

from vimpac_ext.engine.run_report import write_run_report
from vimpac_ext.visualization import html, save_image

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
WIDTHS = (1280, 400)

# Runs in the page around the one that is measured, which has a frame of its own.
MEASURE = """
const result = [];
for (const frame of document.querySelectorAll("iframe")) {
  const page = frame.contentDocument;
  const pictures = [...page.images];
  // Cells may be broken at spaces and after / . _ -, but not within what stands between them.
  const broken_words = [];
  for (const cell of page.querySelectorAll("th, td")) {
    const nodes = [], walker = page.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) nodes.push(walker.currentNode);
    const place = offset => {
      for (const node of nodes) {
        if (offset <= node.length) return [node, offset];
        offset -= node.length;
      }
    };
    for (const segment of cell.textContent.matchAll(/[^\\s\\/._-]+[\\/._-]*/g)) {
      const range = page.createRange();
      range.setStart(...place(segment.index));
      range.setEnd(...place(segment.index + segment[0].length));
      const lines = new Set([...range.getClientRects()].filter(r => r.width).map(r => r.top));
      if (lines.size > 1) broken_words.push(segment[0]);
    }
  }
  result.push({
    width: frame.clientWidth,
    overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth,
    pictures: pictures.length,
    broken: pictures.filter(p => !p.complete || !p.naturalWidth || !p.clientWidth).length,
    least_picture: Math.min(...pictures.map(p => p.clientWidth)),
    broken_words: broken_words,
    outside: [...page.querySelectorAll("table, img")].filter(
      e => !e.closest(".wide") && e.getBoundingClientRect().right > frame.clientWidth).length,
  });
}
document.body.innerHTML = "<pre></pre>";
document.querySelector("pre").textContent = JSON.stringify(result);
"""


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found:
        pytest.skip(f"no browser found; looked for {', '.join(BROWSERS)}")
    return found


def look_at(browser, folder, page):
    """What a browser makes of a page at each of `WIDTHS`."""
    style = "height: 900px; border: 0; width:"
    frames = "".join(
        f'<iframe style="{style} {width}px" srcdoc="{escape(page)}"></iframe>' for width in WIDTHS
    )
    around = folder / "around.html"
    around.write_text(
        f"<!DOCTYPE html><body>{frames}<script>onload = () => {{ {MEASURE} }}</script></body>",
        encoding="utf-8",
    )
    command = [browser, *OPTIONS, f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    done = subprocess.run(
        [*command, around.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    reader = HTMLParser()
    found = []
    reader.handle_data = found.append
    reader.feed(re.search(r"<pre>.*</pre>", done.stdout, re.DOTALL)[0])
    measured = json.loads("".join(found))
    assert [entry["width"] for entry in measured] == list(WIDTHS)
    return measured


def write_run(folder, seed):
    """An OUTPUT_DIR with much of everything: long names, many classes, a wide picture."""
    (folder / "test").mkdir(parents=True)
    protocol = {"dataset": "SomethingSomethingV2", "tokenizer": "T:" + 4 * "0123456789abcdef"}
    result = {"top1": 12.5, "top5": 50.0, "mean_class_accuracy": 1 / 3, "protocol": protocol}
    (folder / "test/result.json").write_text(json.dumps(result | {"protocol_id": f"a{seed}"}))
    rows = [f"{i},Putting something {i} onto something else,20,20,20,{i % 20},12.5"
            for i in range(174)]  # fmt: skip
    header = "label,name,videos,decoded,scored,correct,accuracy_percent"
    (folder / "test/per_class.csv").write_text("\n".join([header, *rows]) + "\n")
    rng = np.random.default_rng(seed)
    save_image(folder / "test/confusion.png", rng.integers(0, 255, (90, 1400, 3)).astype(np.uint8))
    lines = [
        {"_type": "train_iter", "update": u, "loss": 1 / u, "classification_loss": 2 / u, "lr": u}
        for u in (1, 2, 3)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    deep = "/a_folder_with_a_name" * 12
    config = {"OUTPUT_DIR": f"{deep}/{seed}", "TRAIN": {"CHECKPOINT_FILE_PATH": f"{deep}{seed}"}}
    config["TASK"] = {"unmasked_heads": ["classification", "contrast", "token", str(seed)]}
    config["MODEL"] = {"name": "vit_base_patch16_224.augreg_in21k_ft_in1k"[seed:]}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.parametrize("num_runs", [1, 7])
def test_nothing_hangs_out_and_no_picture_is_missing(browser, tmp_path, num_runs):
    folders = [tmp_path / f"runs/seed_{seed}/finetuning" for seed in range(num_runs)]
    for seed, folder in enumerate(folders):
        write_run(folder, seed)
    write_run_report(folders, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    for entry in look_at(browser, tmp_path, page):
        # A confusion matrix and three curves a run, and three curves of all.
        assert entry["pictures"] == 4 * num_runs + 3 * (num_runs > 1), entry
        assert entry["overflow"] == entry["broken"] == entry["outside"] == 0, entry
        assert entry["broken_words"] == [], entry
        assert entry["least_picture"] > 300, entry


def test_the_look_finds_what_is_wrong(browser, tmp_path):
    page = html.page(
        "wrong",
        [
            '<p style="width: 2000px">wide</p><img alt="broken" src="data:image/png;base64,AAAA">',
            '<table style="width: 2rem; overflow-wrap: anywhere"><tr>',
            '<td style="white-space: normal">WordThatIsCutUp</td>',
            "<td>x</td></tr></table><table style='width: 1500px'><tr><td>y</td></tr></table>",
            '<table style="width: 8rem; table-layout: fixed; overflow-wrap: anywhere"><tr>',
            '<td style="white-space: normal">a/path.of/<wbr>PartsOfWhichOneIsCutUp</td>',
            "</tr></table>",
        ],
    )
    for entry in look_at(browser, tmp_path, page):
        assert entry["overflow"] > 2000 - entry["width"] - 1
        assert (entry["pictures"], entry["broken"], entry["outside"]) == (1, 1, 1)
        assert entry["broken_words"] == ["WordThatIsCutUp", "PartsOfWhichOneIsCutUp"]
