"The documentation site as `make docs` builds it: every link leads somewhere, and every page shows all that it has, without a network"
import functools, html, http.server, importlib.util, re, shutil, subprocess, sys, threading, time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlparse
import pytest
from conftest import ROOT

pytest.importorskip("smalldocs")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
browser = [pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine: apt-get install chromium"),
           pytest.mark.skipif(not importlib.util.find_spec("playwright"), reason="no playwright: pip install playwright")]
HERE = "https://picie-nb.github.io/picie_nb/"

class Page(HTMLParser):
    "What a page links to, loads, and can be linked to"
    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.ids, self.no_alt = [], [], set(), []
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if a.get("id"): self.ids.add(a["id"])
        if tag == "a" and a.get("name"): self.ids.add(a["name"])
        if tag == "a" and a.get("href"): self.links.append(a["href"])
        if tag in ("img", "script", "iframe") and a.get("src"): self.loads.append(a["src"])
        if tag == "link" and a.get("href") and a.get("rel") in ("stylesheet", "icon", "preload"): self.loads.append(a["href"])
        if tag == "img" and not a.get("alt"): self.no_alt.append(a.get("src", "")[:60])

@pytest.fixture(scope="session")
def site(tmp_path_factory):
    "The site, built once for all processes of this run, from a copy"
    from filelock import FileLock
    root = tmp_path_factory.getbasetemp().parent/"site"
    with FileLock(str(root)+".lock"):
        if not (root/"_docs").exists():
            files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
            for f in files:
                if not (ROOT/f).is_file(): continue
                (root/f).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT/f, root/f)
            subprocess.run(["git", "init", "-q"], cwd=root)
            subprocess.run(["git", "add", "-A"], cwd=root)
            start = time.perf_counter()
            r = subprocess.run([sys.executable, "tools/docs.py"], cwd=root, capture_output=True, text=True)
            assert r.returncode == 0, r.stdout[-2000:]+r.stderr[-2000:]
            print(f"built in {time.perf_counter()-start:.0f} s")
    return root/"_docs"

@pytest.fixture(scope="session")
def pages(site): return {f.relative_to(site).as_posix(): Page(f.read_text(encoding="utf-8")) for f in site.rglob("*.html")}

def test_all_notebooks_have_a_page(pages):
    names = {re.sub(r"^\d+[a-z]?_", "", p.name).replace(".ipynb", ".html") for p in (ROOT/"nbs").rglob("*.ipynb") if "checkpoint" not in str(p.parent)}
    assert {Path(p).name for p in pages} == names | {"404.html", "api.html", "demo.html"}

def test_links(site, pages):
    "Pages, anchors and files of the site; what is elsewhere is not asked for"
    broken = []
    for name, page in pages.items():
        for link in page.links+page.loads:
            url = urlparse(link)
            if link.startswith(("data:", "mailto:", "javascript:")): continue
            if url.scheme and not link.startswith(HERE): continue
            url = urlparse(urljoin(HERE+name, link))
            path = unquote(url.path).removeprefix("/picie_nb/").lstrip("/") or "index.html"
            if not (site/path).is_file(): broken.append((name, link))
            elif url.fragment and path in pages and unquote(url.fragment) not in pages[path].ids: broken.append((name, link))
    assert broken == []

def test_nothing_is_loaded_from_elsewhere(pages):
    assert [(n, o) for n, p in pages.items() for o in p.loads if o.startswith(("http:", "https:", "//"))] == []

def test_alt_texts(pages): assert {n: p.no_alt for n, p in pages.items() if p.no_alt} == {}

def test_equations(site):
    "All are MathML; none is left as TeX"
    count = 0
    for f in site.rglob("*.html"):
        text = re.sub(r"base64,[\w+/=]+", "", f.read_text(encoding="utf-8")) # letters of a picture may spell anything
        count += text.count("<math ")
        assert not re.search(r'class="math (inline|display)">\s*\\|<m[ion]>\\', text) and "katex" not in text, f.name
    assert count > 100

def test_docstrings_lead_to_pages(site):
    "The address in the docstring of every module"
    found = [m for f in (ROOT/"picie_nb").rglob("*.py") for m in re.findall(rf"^Docs: {re.escape(HERE)}(\S+?)\"*$", f.read_text(), re.M)]
    assert len(found) > 20 and [m for m in found if not (site/m).is_file()] == []

def test_api(site):
    "Every public name stands in the list, and no signature names the module in which a notebook ran"
    page = (site/"api.html").read_text()
    names = (ROOT/"tests/public_names.txt").read_text().split()
    assert [n for n in names if n[0].isupper() and not n.isupper() and f">{n}<" not in page] == []
    assert [f.name for f in site.rglob("*.html") if re.search("__main__|:NoneType|&gt;factory|\\.<strong>call<", f.read_text())] == []

def test_signatures(site):
    "What `**kwargs` takes stands beside it, also where fastcore puts it behind what is returned"
    page = html.unescape(re.sub("<[^>]+>", "", (site/"learner.html").read_text()))
    assert re.search(r"def picie_learner\(\n    dls, # .*?    \*\*overrides, # any field of `PiCIEConfig` or `PublishedConfig`\n\)->PiCIELearner:\n", page, re.S)
    assert ">Segmenter.<wbr>__call__<" in (site/"segmenter.html").read_text()
    assert [f.name for f in site.rglob("*.html") if "Return repr(self)" in f.read_text()] == []
    assert 'id="clustercallback.stream"' in (site/"callback.html").read_text() # behind a decorator
    loop = re.sub("<[^>]+>", "", (site/"callback.html").read_text())
    assert loop.count("def views(") == 1 and "def ClusterCallback(" in loop # of a method the open source is enough
    page = re.sub("<[^>]+>", "", (site/"metrics.html").read_text())
    assert "@dataclass(eq=False, repr=False)\nclass Score:" in page and "def Score(" not in page # its fields instead
    assert "distributed.html#shares" not in (site/"start.html").read_text() and "nbs/api.qmd" not in (site/"api.html").read_text()

def test_extras(site):
    "For search engines, language models, social sites, and readers who are lost"
    index = (site/"index.html").read_text()
    assert (site/"images/card.jpeg").exists() and "favicon.svg" in index and (site/"images/favicon.svg").exists()
    cards = {m for f in site.rglob("*.html") for m in re.findall(r'<meta [^>]*"(?:og|twitter):image" content="([^"]*)"', f.read_text()) or [f.name]}
    assert cards == {HERE+"images/card.jpeg"}
    assert "callback.llms.md" in (site/"llms.txt").read_text() and (site/"callback.llms.md").exists()
    assert "callback.html" in (site/"sitemap.xml").read_text() and (site/"404.html").exists()
    assert '<head><base href="/picie_nb/">' in (site/"404.html").read_text() # stands in for pages of any folder
    page = (site/"callback.html").read_text()
    assert "colab.research.google.com/github/picie-nb/picie_nb/blob/main/nbs/09_callback.ipynb" in page
    assert "github.com/picie-nb/picie_nb/raw/main/nbs/09_callback.ipynb" in page and "/blob/main/nbs/09_callback.ipynb" in page and "docs.fast.ai" in page

@pytest.fixture(scope="session")
def address(site):
    "The site on loopback, under the path that it has on the web"
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
        def translate_path(self, path): return super().translate_path(path.removeprefix("/picie_nb"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/picie_nb/"
    server.shutdown()

def test_pages_are_light(site, pages):
    "What a visitor downloads for one page, pictures included"
    def size(name, link):
        if link.startswith("data:") or "site_libs" in link: return 0 # counted with the page, or once for all
        return f.stat().st_size if (f := (site/name).parent/unquote(urlparse(link).path)).is_file() else 0
    weight = {n: (site/n).stat().st_size+sum(size(n, o) for o in set(p.loads)) for n, p in pages.items()}
    assert {n: w for n, w in weight.items() if w > 900_000} == {}
    assert sum(weight.values())/len(weight) < 400_000

PALE = r"""() => { // texts whose contrast with what lies behind them is too low (WCAG AA), with their colours
    const parts = c => { const m = c.match(/[\d.]+/g).map(Number); return m.length < 4 ? [...m, 1] : m; };
    const light = c => { const f = v => (v /= 255) <= .03928 ? v/12.92 : ((v+.055)/1.055)**2.4; return .2126*f(c[0])+.7152*f(c[1])+.0722*f(c[2]); };
    const over = (a, b) => [0, 1, 2].map(i => a[i]*a[3]+b[i]*(1-a[3]));
    const behind = e => { const layers = [];
        for (; e; e = e.parentElement) { const c = parts(getComputedStyle(e).backgroundColor); if (c[3]) layers.push(c); if (c[3] === 1) break; }
        return layers.reverse().reduce((b, c) => over(c, b), [255, 255, 255]); };
    const bad = {}, walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
        const t = walk.currentNode.data.trim(), e = walk.currentNode.parentElement;
        if (!t || !e || e.closest('script,style,svg') || !e.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
        const s = getComputedStyle(e), r = e.getBoundingClientRect();
        if (!r.width || !r.height) continue;
        const b = behind(e), f = over(parts(s.color), b), [x, y] = [light(f), light(b)], c = (Math.max(x, y)+.05)/(Math.min(x, y)+.05);
        const px = parseFloat(s.fontSize), large = px >= 24 || px >= 18.66 && s.fontWeight >= 700;
        if (c < (large ? 3 : 4.5)) bad[`${t.slice(0, 30)}: ${f.map(Math.round)} on ${b.map(Math.round)}, ${c.toFixed(1)}`] = 1;
    }
    return Object.keys(bad); }"""

@pytest.mark.parametrize("width", (360, 768, 1024, 1440))
@browser[0]
@browser[1]
def test_in_a_browser(site, address, width):
    "Every page: a title, no error, no failed request, all figures and equations there, texts that stand out, nothing wider than the window, room for the text, at four widths, in light and dark"
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = b.new_page(viewport={"width": width, "height": 900}, color_scheme="dark" if width == 768 else "light")
        wrong = []
        page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: wrong.append(str(e)))
        page.on("requestfailed", lambda r: None if r.url.endswith("favicon.svg") else wrong.append(r.url)) # given up when the next page is opened
        page.on("response", lambda r: wrong.append(f"{r.status} {r.url}") if r.status >= 400 else None)
        bad = {}
        for f in sorted(site.rglob("*.html")):
            name, wrong[:] = f.relative_to(site).as_posix(), []
            page.goto(address+name, wait_until="networkidle" if name == "demo.html" else "load") # its script asks for pictures
            seen = page.evaluate("""() => ({title: document.title, h1: document.querySelectorAll('h1').length, wide: document.documentElement.scrollWidth-innerWidth, main: document.querySelector('main').clientWidth,
                images: [...document.images].filter(i => !(i.complete && i.naturalWidth > 0) && i.loading != 'lazy').length,
                maths: [...document.querySelectorAll('math')].filter(m => m.offsetParent !== null && m.getBoundingClientRect().height < 4).length,
                back: getComputedStyle(document.body).backgroundColor})""")
            pale = page.evaluate(PALE)
            dark = sum(map(int, re.findall(r"\d+", seen["back"])[:3])) < 300
            if wrong or pale or seen["images"] or seen["maths"] or seen["wide"] > 1 or seen["main"] < min(560, width-40) or seen["h1"] != 1 or "picie_nb" not in seen["title"] or dark != (width == 768):
                bad[name] = [seen, *wrong, *pale]
        if width == 1024: # the demo's picture, beside its list
            page.goto(address+"demo.html")
            if (site/"demo").is_dir(): # built with npm
                page.wait_for_selector(".pd-result", state="attached")
                page.evaluate("document.querySelector('.pd-result').hidden = false")
                assert page.locator(".pd-stage").bounding_box()["width"] >= 300
        if width == 1440: # and find something
            page.goto(address+"index.html")
            page.fill("#quarto-search input", "ClusterCallback")
            page.wait_for_selector(".search-result")
            assert any("callback.html" in a.get_attribute("href") for a in page.query_selector_all(".search-result"))
            page.goto(address+"use/tree.html") # and move a slider, without a kernel
            page.locator("figure input[type=range]").first.press("End")
            assert page.locator("figure output").first.inner_text() == "K = 16"
            assert page.evaluate("[...document.querySelectorAll('figure:has(output) img')].map(o => getComputedStyle(o).visibility == 'visible')") == [False]*14+[True]
        b.close()
    assert not bad, "\n".join(f"{k}: {v}" for k, v in bad.items())
