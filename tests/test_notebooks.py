"Every notebook runs from top to bottom, each in a process of its own; and all keep the rules of the house."
import ast, collections, json, os, re, subprocess, sys
from pathlib import Path
import pytest
from conftest import ROOT, notebooks

NBS = notebooks()
every = pytest.mark.parametrize("nb", NBS, ids=lambda p: str(p.relative_to(ROOT/"nbs")))

def cells(nb, kind="code"): return [c for c in json.loads(nb.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == kind]
def source(cell): return "".join(cell["source"])
def directives(cell): return {l[2:].strip().partition(":")[0].split()[0] for l in source(cell).splitlines() if l.startswith("#|") and l[2:].strip()}


@every
def test_runs(nb):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    res = subprocess.run([str(Path(sys.executable).parent/"nbdev-test"), str(nb)], cwd=ROOT, env=env, capture_output=True, text=True)
    assert res.returncode == 0, res.stdout[-2000:]+res.stderr[-6000:]


def test_pages_are_unique():
    "nbdev drops the number of a notebook's name: 20_data and 30_data would be the same page"
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


@every
def test_nothing_local(nb):
    "No notebook needs, or shows, a path of the machine that it was made on"
    text = nb.read_text(encoding="utf-8")
    assert not re.search(r"/root/|/work/|/home/\w+/", text)


def test_new_notebook(tmp_path):
    "The template keeps the rules, and runs"
    sys.path.insert(0, str(ROOT/"tools"))
    from new_notebook import main
    main("43_distances", "Distances", "How far is far", tmp_path)
    nb = tmp_path/"43_distances.ipynb"
    test_title_stands_alone(nb); test_imports_stand_alone(nb)
    res = subprocess.run([str(Path(sys.executable).parent/"nbdev-test"), str(nb)], cwd=ROOT, capture_output=True, text=True)
    assert res.returncode == 0, res.stdout[-2000:]+res.stderr[-3000:]
    with pytest.raises(SystemExit, match="has that name already"): main("44_distances", "", "", tmp_path)
    with pytest.raises(SystemExit, match="two digits"): main("distances", "", "", tmp_path)
