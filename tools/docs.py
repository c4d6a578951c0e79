"""Build the documentation site into _docs/, without Quarto: `python tools/docs.py`

nbdev processes the notebooks (links, API tables, hidden cells) into _proc/; smalldocs renders them. Around that:
pages are called as Quarto would call them (09_callback.ipynb becomes callback.html), each offers its notebook,
and equations are turned into MathML, which browsers show without any script or font from elsewhere.
The same nbs/_quarto.yml serves `quarto render _proc` where Quarto is installed.
"""
import html, json, os, re, shutil, subprocess, sys
from pathlib import Path
from urllib.parse import urlparse

ROOT = Path(__file__).resolve().parent.parent
SITE, REPO, BRANCH = "https://picie-nb.github.io/picie_nb/", "picie-nb/picie_nb", "main"


def page_name(nb): return re.sub(r"^\d+[a-z]?_", "", nb)

def rename(proc:Path)->dict:
    "Give processed notebooks the names of their pages, and links the new names. Returns {new path: path of the source}"
    nbs = [p for p in sorted(proc.rglob("*.ipynb")) if ".ipynb_checkpoints" not in str(p)]
    new = {p.name: page_name(p.name) for p in nbs}
    source = {}
    for p in nbs:
        q = p.with_name(new[p.name])
        source[str(q.relative_to(proc))] = str(p.relative_to(proc))
        text = p.read_text(encoding="utf-8")
        for old, name in new.items():
            if old != name: text = re.sub(rf"(?<=[(/\"]){re.escape(old)}(?=[)#\"])", name, text)
        nb = json.loads(text)
        add_links(nb, source[str(q.relative_to(proc))])
        methods(nb)
        p.unlink()
        q.write_text(json.dumps(nb), encoding="utf-8")
    yml = proc/"_quarto.yml"
    yml.write_text(re.sub(r"\b\d+[a-z]?_(\w+\.ipynb)", r"\1", yml.read_text(encoding="utf-8")), encoding="utf-8")
    return source

def add_links(nb, source):
    "Below the table of contents: the notebook itself"
    links = [("Open in Colab", "play-circle", f"https://colab.research.google.com/github/{REPO}/blob/{BRANCH}/nbs/{source}"),
             ("Download notebook", "download", f"https://github.com/{REPO}/raw/{BRANCH}/nbs/{source}")]
    yml = "code-links:\n" + "".join(f"  - text: {t}\n    icon: {i}\n    href: {h}\n" for t, i, h in links)
    first = nb["cells"][0]
    text = "".join(first["source"])
    if first["cell_type"] == "raw" and text.startswith("---\n"): first["source"] = "---\n"+yml+text[4:]
    else: nb["cells"].insert(0, {"cell_type": "raw", "metadata": {}, "source": f"---\n{yml}---\n"})

def methods(nb):
    "Headings of methods with a decorator get their class, which nbdev loses; sections of a `__repr__` without a word of its own go"
    nb["cells"] = [c for c in nb["cells"] if "*Return repr(self).*" not in str(c.get("outputs"))]
    for c in nb["cells"]:
        if not (m := re.search(r"^show_doc\((\w+)\.(\w+)\)", "".join(c["source"]), re.M)): continue
        for o in c.get("outputs", []):
            if md := o.get("data", {}).get("text/markdown"): o["data"]["text/markdown"] = re.sub(rf"^### {m[2]}$", f"### {m[1]}.{m[2]}", "".join(md), flags=re.M)

def mathml(tex:str, display:bool)->str:
    "An equation as MathML"
    from latex2mathml.converter import convert
    return convert(tex, display="block" if display else "inline")

def offline(page:str)->str:
    "A page that loads nothing from elsewhere: equations as MathML"
    def one(m): return f'<span class="math {m[1]}">{mathml(html.unescape(m[2]), m[1] == "display")}</span>'
    page = re.sub(r'<span class="math (inline|display)">\\[\[(](.*?)\\[\])]</span>', one, page, flags=re.S)
    return re.sub(r'<link[^>]*katex[^>]*>|<script[^>]*katex[^>]*></script>|<script>[^<]*renderMathInElement[^<]*</script>', "", page)

def api_index(proc:Path):
    "A page with every public name, where it is explained, and what it does in a line"
    import importlib, inspect
    from picie_nb._modidx import d
    lines = ["---", "title: API", "subtitle: Every public name, module by module", "---", ""]
    for module, names in sorted(d["syms"].items(), key=lambda o: (o[0].count("."), o[0])):
        found, seen = importlib.import_module(module), []
        for name, (page, _) in names.items():
            short = name.removeprefix(module+".")
            if "." in short or short.startswith("_") or not hasattr(found, short): continue
            obj = getattr(found, short)
            what = (inspect.getdoc(obj) or "").splitlines()[:1] if callable(obj) else []
            if what and not what[0].startswith(f"{short}("): seen.append(f"| [`{short}`]({page}) | {what[0].replace('|', chr(92)+'|')} |")
        if seen: lines += [f"## {module.removeprefix('picie_nb.')}", "", "| name | what it does |", "|---|---|", *seen, ""]
    (proc/"api.qmd").write_text("\n".join(lines), encoding="utf-8")

def signatures(page:str)->str:
    "Signatures as the source has them: short names, the comment of `**kwargs`; none of a method whose source stands open below; of a dataclass its fields with their comments, opened, instead"
    page = re.sub(r'__main__(<span class="op">\.</span>|\.)', "", page)
    page = re.sub(r':NoneType(?=<span class="op">=</span>)', "", page)
    page = re.sub(r'<span class="op">&lt;</span>factory<span class="op">&gt;</span>', "...", page)
    page = re.sub(r'(<(?:h3|a)\b[^>]*>\w+\.)<strong>(\w+)</strong>(?=</)', r"\1__\2__", page) # no words in bold
    def plain(o): return html.unescape(re.sub(r"<[^>]+>", "", o)).strip()
    whole = plain(page)
    shown = set(re.findall(r"@dataclass(?:\([^)]*\))?\s+class (\w+)", whole)) # others keep their signature
    told = {(f, name): what for f, body in re.findall(r"def (\w+)\([^\n]*\n((?:[^\n)][^\n]*\n)+)\s*\)", whole) for name, what in re.findall(r"\*(\w+),? # ([^\n]+)\n", body)}
    cells = re.findall(r"<details( open)?[^>]*>((?:(?!</details>).)*)</details>", page, flags=re.S)
    opened, closed = ({n for is_open, c in cells if bool(is_open) == o for n in re.findall(r"^def (\w+)\(self:", plain(c), re.M)} for o in (True, False))
    def block(m):
        name = re.fullmatch(r"def (\w+)\(.*\)(?:->.*)?:.*", plain(m[0].partition("<button")[0]), re.S)
        if name and ("->None:" in plain(m[0]) and name[1] in shown or name[1] in opened-closed): return ""
        return parameters(m[0], name[1], told) if name else m[0]
    page = re.sub(r'<div class="sourceCode"[^>]*>(?:(?!</div>).)*</div>(?:<button[^>]*>.*?</button>)?', block, page, flags=re.S)
    def fold(m): return m[0].replace("<details", "<details open", 1) if plain(m[0].partition("</summary>")[2])[:10] == "@dataclass" else m[0]
    return re.sub(r"<details(?! open)[^>]*>(?:(?!</details>).)*</details>", fold, page, flags=re.S)

def parameters(sig:str, f:str, told:dict)->str:
    "A signature with the comments of `*args` and `**kwargs`, which fastcore leaves out or puts behind what is returned"
    sig = re.sub(r'picie_nb(?:<span class="op">\.</span>\w+)+<span class="op">\.</span>(?=[A-Z])', "", sig)
    for name in re.findall(r'<span class="op">\*</span>(\w+)(?=,?\n)', sig):
        if not (what := told.get((f, name))): continue
        what = html.escape(what)
        sig = re.sub(rf'(\*</span>{name}),?\n', lambda m: f'{m[1]}, <span class="co"># {what}</span>\n', sig)
        sig = re.sub(rf'(\n\)[^\n]*) <span class="co"># {re.escape(what)}</span>', r"\1", sig)
    return sig

def finish(docs:Path, source:dict):
    "Equations, links to sources, and links between pages of the site; nothing is loaded from elsewhere"
    for f in docs.rglob("*.css"): f.write_text(re.sub(r"@import url\(\"?https?:[^)]*\);?", "", f.read_text(encoding="utf-8")), encoding="utf-8")
    for f in docs.rglob("*.llms.md"): shutil.copy(f, f.with_name(f.name.replace(".llms.md", ".html.md"))) # as docstrings call them
    shutil.copytree("nbs/images", docs/"images", dirs_exist_ok=True)
    for f in docs.rglob("*.html"):
        text = signatures(offline(f.read_text(encoding="utf-8")))
        up = "../"*len(f.relative_to(docs).parts[:-1])
        text = re.sub(rf'href="{re.escape(SITE)}([\w/]+\.html)(#[^"]*)?"', lambda m: f'href="{up}{m[1]}{m[2] or ""}"' if (docs/m[1]).exists() else m[0], text)
        if "training" not in f.parts: text = re.sub(r'<a href="[^"]*training/distributed\.html#shares">(<code>shares\(\)</code>)</a>', r"\1", text) # that of a segmentation
        text = re.sub(r'<a href="https://docs.fast.ai/[^"]*">(<code>(?:apply|test|params)</code>)</a>', r"\1", text) # words of ours, not fastai's
        text = re.sub(rf'content="{re.escape(SITE)}[\w/]*(images/card\.jpeg)"', rf'content="{SITE}\1"', text) # smalldocs looks beside the page
        if f.name == "404.html": text = text.replace("<head>", f'<head><base href="{urlparse(SITE).path}">', 1) # shown in place of pages of any folder
        if f.name == "api.html": # made here, not in the repository
            text = re.sub(r'<div class="action-links"><a href="[^"]*/nbs/api\.qmd"[^>]*>.*?</a></div>', "", text).replace('<main class="content"', '<main class="content api"')
        for new, old in source.items(): text = text.replace(f"/blob/{BRANCH}/nbs/{new}", f"/blob/{BRANCH}/nbs/{old}")
        f.write_text(breaks(text), encoding="utf-8")
    ids = {f: set(re.findall(r'\bid="([^"]+)"', f.read_text(encoding="utf-8"))) for f in docs.rglob("*.html")}
    for f in ids: f.write_text(anchors(f, ids), encoding="utf-8")

def breaks(page:str)->str:
    "Headings, and names in lists of them, that may break behind a dot or underscores, not within a word"
    def one(m): return m[1]+re.sub(r"((?<=[^\W\d_])\.(?=\w)|(?<=[^\W_])_+(?=[^\W_]))(?![^<]*>)", r"\1<wbr>", m[2])
    return re.sub(r"(<h[1-4]\b[^>]*>|<td><a [^>]*><code>)(.*?)(?=</h[1-4]>|</code>)", one, page, flags=re.S)

def anchors(f:Path, ids:dict)->str:
    "A page whose links to names lead to headings that are there: that of the class, if a method has none; private names are no links"
    def one(m):
        page, name, text = f if not m[1] else (f.parent/m[1]).resolve(), m[2], m[3]
        known = next((v for k, v in ids.items() if k.resolve() == page.resolve()), None)
        if known is None or name in known: return m[0]
        return f'<a href="{m[1]}#{name.split(".")[0]}">{text}</a>' if name.split(".")[0] in known else text
    return re.sub(r'<a href="([\w./]*\.html|)#([\w.]+)">(<code>[^<]*</code>)</a>', one, f.read_text(encoding="utf-8"))

def demo(docs:Path):
    "The page that segments photos in the browser: its folder, or how to build it"
    sys.path.insert(0, str(ROOT/"tools"))
    from demo import build
    if build(docs/"demo"):
        (docs/"demo/index.html").unlink() # the site has a page of its own around it
        return
    page, note = docs/"demo.html", ("<p><strong>This copy of the site was built without npm</strong>, from which the demo gets the program that "
                                    "runs networks in a browser. Install Node.js, and run <code>make docs</code> again.</p>")
    text = re.sub(r'<link [^>]*href="demo/demo.css">.*?src="demo/demo.js"[^>]*></script>', note, page.read_text(encoding="utf-8"), flags=re.S)
    page.write_text(text, encoding="utf-8")

def spelling():
    "Words that are spelled wrong, in prose, code and comments"
    files = subprocess.run(["git", "ls-files", "*.md", "*.py", "*.ini", "*.yml", "nbs/*.ipynb"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    return subprocess.run([str(Path(sys.executable).parent/"codespell"), "--toml", str(ROOT/"pyproject.toml"), *files], cwd=ROOT).returncode

def main():
    os.chdir(ROOT)
    from nbdev.doclinks import _build_modidx
    from nbdev.serve import proc_nbs
    if spelling(): sys.exit("these words are spelled wrong: mend them, or add them to [tool.codespell] in pyproject.toml")
    _build_modidx()
    for d in ("_proc", "_docs"): shutil.rmtree(d, ignore_errors=True)
    proc_nbs(n_workers=2)
    source = rename(Path("_proc"))
    api_index(Path("_proc"))
    subprocess.run([str(Path(sys.executable).parent/"smalldocs"), "render", "--quiet", "_proc"], check=True)
    shutil.move("_proc/_docs", "_docs")
    finish(Path("_docs"), source)
    demo(Path("_docs"))
    pages = len(list(Path("_docs").rglob("*.html")))
    print(f"{pages} pages in _docs/; look at them with: python -m http.server -d _docs")


if __name__ == "__main__": main()
