"Every notebook runs from top to bottom, each in a process of its own; and all keep the rules of the house."
import ast, collections, json, re, sys
import pytest
from conftest import ROOT, notebooks
from forked import notebook

NBS = notebooks()
every = pytest.mark.parametrize("nb", NBS, ids=lambda p: str(p.relative_to(ROOT/"nbs")))

def cells(nb, kind="code"): return [c for c in json.loads(nb.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == kind]
def source(cell): return "".join(cell["source"])
def directives(cell): return {l[2:].strip().partition(":")[0].split()[0] for l in source(cell).splitlines() if l.startswith("#|") and l[2:].strip()}


@every
def test_runs(nb):
    res = notebook(nb, ROOT)
    assert res.returncode == 0, res.stdout[-2000:]+res.stderr[-6000:]


def test_pages_are_unique():
    "nbdev drops the number of a notebook's name: 03_start and 04_start would be the same page"
    pages = collections.Counter((p.parent, re.sub(r"^\d+[a-z]?_", "", p.stem)) for p in NBS)
    assert [s for s, n in pages.items() if n > 1] == []


@every
def test_title_stands_alone(nb):
    first = cells(nb, "markdown")[0]
    assert re.fullmatch(r"# .+\n\n> .+", source(first).strip()), "the first cell is `# Title`, an empty line, `> subtitle`"


@every
def test_no_conflict_markers(nb):
    assert not re.search(r"^\s*\"?(<{7} |>{7} |={7}$)", nb.read_text(encoding="utf-8"), re.M)


@every
def test_imports_stand_alone(nb):
    "The docs build executes each cell that imports: it must not need the cells before it"
    mixed = []
    for c in cells(nb):
        try: body = ast.parse(source(c)).body
        except SyntaxError: continue  # shell magic
        body = [n.body[0] if isinstance(n, ast.Try) else n for n in body]
        imports = [isinstance(n, (ast.Import, ast.ImportFrom)) for n in body]
        if any(imports) and not all(imports): mixed.append(source(c)[:80])
    assert mixed == []


@every
def test_outputs_are_real(nb):
    "The notebook was run: no error outputs, most cells that end in a value show it; figures have alt text; the file stays small"
    for c in cells(nb):
        assert not any(o["output_type"] == "error" for o in c["outputs"]), source(c)[:80]
        if any(k.startswith("image/") for o in c["outputs"] for k in o.get("data", {})): assert "fig-alt" in directives(c), f"no alt text: {source(c)[:80]}"
    ends = [c for c in cells(nb) if not directives(c) & {"hide", "cuda", "slow", "eval"} and re.match(r"[\w.\[\]'\"]+$", source(c).splitlines()[-1])]
    assert sum(not c["outputs"] for c in ends) <= len(ends)/4, "run it with `make notebooks`"
    assert nb.stat().st_size < 400*1024


@every
def test_directives_are_yaml(nb):
    "A colon in an alt text would spoil all directives of its cell on the site"
    for c in cells(nb):
        for l in source(c).splitlines():
            if l.startswith("#| fig-alt"): assert ": " not in l.partition(": ")[2], l


LESSONS = [p for p in NBS if re.match(r"\d\d_", p.stem)] # the course; other pages are for reference
lesson = pytest.mark.parametrize("nb", LESSONS, ids=lambda p: str(p.relative_to(ROOT/"nbs")))

@lesson
def test_ends_in_exercises(nb):
    "A recap, three exercises, and for each of them a solution that is folded, in Jupyter and on the site"
    text = "\n\n".join(map(source, cells(nb, "markdown")))
    assert "## Recap" in text
    exercises = text.partition("## Exercises")[2]
    assert re.findall(r"^(\d)\. \S", exercises.partition("<details>")[0], re.M) == ["1", "2", "3"]
    folds = [c for c in cells(nb) if "code-fold" in directives(c)]
    for c in folds: assert c["metadata"]["jupyter"] == {"source_hidden": True, "outputs_hidden": True}
    told = re.findall(r"<summary>Solution (\d)</summary>\n\n.+?\n\n</details>", exercises, re.S)+[re.search(r"code-summary: Solution (\d)$", source(c), re.M)[1] for c in folds]
    assert sorted(set(told)) == ["1", "2", "3"]


def test_the_course():
    "Numbered from 1, at most thirteen lessons, and nothing else is numbered"
    names = sorted(p.stem for p in LESSONS)
    assert [int(n[:2]) for n in names] == list(range(1, len(names)+1)) and len(names) <= 13
    assert {p.parent for p in LESSONS} == {ROOT/"nbs"}


def words(nb): return sum(len(source(c).split()) for c in cells(nb, "markdown"))

@lesson
def test_lessons_are_short(nb): assert words(nb) < 2000

def test_the_library_is_short(): assert sum(map(words, NBS)) < 45_000 and len(NBS) < 43

def hidden(cell): return bool(directives(cell) & {"hide"}) or re.match(r"#\|\s*export\s*$", source(cell).split("\n")[0]) is not None

@every
def test_code_fits_the_page(nb):
    "No line that a reader sees is longer than a page is wide; of those in exported cells none is longer than a screen"
    wide = [l for c in cells(nb) for l in source(c).splitlines() if len(l) > (110 if hidden(c) else 88) and not l.startswith(("#|", "! ["))]
    assert wide == []

def reading_order(): return re.findall(r"([\w/]+)\.ipynb", (ROOT/"nbs/_quarto.yml").read_text(encoding="utf-8").partition("sidebar:")[2])

def test_sidebar_is_complete():
    "Each page once; lessons in their order"
    order = reading_order()
    assert sorted(order) == sorted(str(p.relative_to(ROOT/"nbs").with_suffix("")) for p in NBS)
    assert (course := [o for o in order if re.match(r"\d\d_", o)]) == sorted(course)

@lesson
def test_says_what_comes_next(nb):
    names = sorted(p.name for p in LESSONS)
    if (i := names.index(nb.name)+1) == len(names): return
    assert f"({names[i]})" in "\n".join(map(source, cells(nb, "markdown"))), f"no link to {names[i]}"

@every
def test_pages_are_mentioned_by_links(nb):
    "No page is mentioned by the name of its file alone, and links lead to pages"
    text = "\n".join(map(source, cells(nb, "markdown")))
    assert re.findall(r"`\d\d_\w+`", text) == []
    for target in re.findall(r"\]\((?!https?:)([\w./-]+\.ipynb)", text): assert (nb.parent/target).is_file(), target


@every
def test_begins_on_colab_with_pip(nb):
    install = [c for c in cells(nb) if "[ -e /content ]" in source(c)]
    assert len(install) == 1 and directives(install[0]) == {"hide", "eval"}


def test_colours_of_lines_are_apart():
    "Lines and arrows of all figures, as they look to usual eyes, and to those without red, green or blue cones"
    import numpy as np
    from matplotlib import style
    from matplotlib.colors import to_rgb
    from picie_nb.data.labels import _looks
    style.use("default")
    with style.context("picie_nb.figures"):
        from matplotlib import rcParams
        colours = 255*np.array([to_rgb(o) for o in rcParams["axes.prop_cycle"].by_key()["color"]])
    seen = _looks(np.concatenate([colours, [[255]*3]]))
    far = np.linalg.norm(seen[:,:,None]-seen[:,None], axis=-1)
    assert far[:, ~np.eye(len(colours)+1, dtype=bool)].min() > .1

@every
def test_figures_have_one_style(nb):
    "Clusters and classes have the colours of `palette`, lines those of `picie_nb.figures`"
    code = "\n".join(map(source, cells(nb)))
    if "plt." in code: assert 'plt.style.use("picie_nb.figures")' in code
    found = re.findall(r"(?:color|c|colors?)=[\"'](?:tab:\w+|[rgbcmy]|red|green|blue|orange|purple|#\w{6})[\"']|cmap=[\"'](?:tab\w+|jet|hsv|rainbow|Set\d)[\"']", code)
    assert found == []


@every
def test_nothing_local(nb):
    "No notebook needs, or shows, a path of the machine that it was made on"
    text = nb.read_text(encoding="utf-8")
    assert not re.search(r"/root/|/work/|/home/\w+/", text)


def test_new_notebook(tmp_path):
    "The template keeps the rules, and runs"
    sys.path.insert(0, str(ROOT/"tools"))
    from new_notebook import main
    main("use/distances", "Distances", "How far is far", tmp_path)
    nb = tmp_path/"use/distances.ipynb"
    test_title_stands_alone(nb); test_imports_stand_alone(nb)
    res = notebook(nb, ROOT)
    assert res.returncode == 0, res.stdout[-2000:]+res.stderr[-3000:]
    with pytest.raises(SystemExit, match="has that name already"): main("data/distances", "", "", tmp_path)
    with pytest.raises(SystemExit, match="in a wing"): main("43_distances", "", "", tmp_path)
