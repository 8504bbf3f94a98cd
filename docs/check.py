"""Check the built pages: links lead somewhere, nothing comes from the network, and a browser sets all the mathematics.

    python docs/check.py [FOLDER]
"""
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or "chromium"
OPTIONS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --virtual-time-budget=60000 --dump-dom""".split()
REMOTE = re.compile(r"(\w+:)?//|https?:")


class Page(HTMLParser):
    "What one page offers and asks for."
    def __init__(self, path):
        super().__init__()
        self.anchors, self.links, self.loads, self.math = {"", "top"}, [], [], 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        a = {k: v or "" for k, v in attrs}
        self.anchors |= {a[k] for k in ("id", "name") if k in a}
        self.math += tag in ("span", "div") and "math" in a.get("class", "").split()
        if tag == "a" and "href" in a: self.links.append(a["href"])
        if tag == "link" and a.get("rel") != "canonical": self.loads.append(a["href"])
        if "src" in a: self.loads.append(a["src"])


def links(root, pages):
    "Links that lead nowhere, and what a page or a style sheet would load from the network."
    for path, page in pages.items():
        for url in page.links + page.loads:
            if REMOTE.match(url):
                if url in page.loads: yield f"{path.relative_to(root)}: loads {url}"
            elif not re.match(r"data:|mailto:|javascript:", url):
                file, anchor = unquote(urlsplit(url).path), unquote(urlsplit(url).fragment)
                to = (path.parent / file).resolve() if file else path
                if not to.is_file(): yield f"{path.relative_to(root)}: no file for {url}"
                elif to in pages and anchor not in pages[to].anchors:
                    yield f"{path.relative_to(root)}: no anchor for {url}"
    for path in root.rglob("*.css"):
        for url in re.findall(r"(?:url\(|@import)\s*[\"']?([^\"')\s]+)", path.read_text(encoding="utf-8")):
            if REMOTE.match(url): yield f"{path.relative_to(root)}: loads {url}"


def mathematics(path, expected):
    "What is wrong once a browser has run the page's scripts: formulas with errors, formulas not set."
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        run = [CHROMIUM, *OPTIONS, f"--user-data-dir={profile}", path.as_uri()]
        dom = subprocess.run(run, capture_output=True, text=True, timeout=180, stdin=subprocess.DEVNULL).stdout
    done = len(re.findall(r"<mjx-container\b", dom))
    errors = dict.fromkeys(re.findall(r'data-mjx-error="([^"]*)"', dom))
    counts = [] if done == expected else [f"{done} of {expected} formulas set"]
    return [f"{path.name}: {error}" for error in [*errors, *counts]]


if __name__ == "__main__":
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "_build/html").resolve()
    pages = {path: Page(path) for path in sorted(root.rglob("*.html"))}
    mathematical = {path: page.math for path, page in pages.items() if page.math}
    wrong = list(links(root, pages)) if pages else [f"no page in {root}"]
    with ThreadPoolExecutor(2) as pool:
        wrong += sum(pool.map(mathematics, mathematical, mathematical.values()), [])
    for line in wrong: print(line)
    print(f"{len(pages)} pages, {sum(len(p.links + p.loads) for p in pages.values())} links, "
          f"{sum(mathematical.values())} formulas on {len(mathematical)} pages: {len(wrong)} errors")
    raise SystemExit(bool(wrong))
