"""Begin a notebook in the form of the others: `python tools/new_notebook.py 43_name "Title" "what it does, in a line"`"""
import json, re, sys, uuid
from pathlib import Path

TEMPLATE = [
    ("markdown", "# {title}\n\n> {subtitle}"),
    ("code", "#| default_exp {module}"),
    ("code", "#| hide\n#| eval: false\n"
             "! [ -e /content ] && pip install -q nbdev \"picie_nb[demo] @ git+https://github.com/picie-nb/picie_nb\" # on Colab"),
    ("code", "#| hide\nimport warnings"),
    ("code", "#| hide\nwarnings.filterwarnings(\"ignore\", category=FutureWarning)"),
    ("code", "#| export\nimport torch\nfrom torch import Tensor"),
    ("code", "#| hide\nfrom fastcore.test import test_eq, test_fail"),
    ("markdown", "What came before, what this notebook adds, and what comes next: three sentences.\n\n## The naive way"),
    ("code", "x = torch.tensor([3., 4.])\nx/x.sum() # what should have length 1"),
    ("markdown", "Where that falls short, as its output shows.\n\n## A better way"),
    ("code", "#| exports\ndef unit(\n    x:Tensor, # features, (N,D)\n)->Tensor: # (N,D), unit length\n    \"Scale every row to length 1\"\n"
             "    if x.ndim != 2: raise ValueError(f\"features must be (N,D), not {{tuple(x.shape)}}\")\n    return torch.nn.functional.normalize(x)"),
    ("code", "unit(x[None]).norm(dim=1)"),
    ("code", "#| hide\ntest_eq(unit(x[None]).norm(dim=1), torch.ones(1))\ntest_fail(lambda: unit(x), contains=\"must be (N,D)\")"),
    ("markdown", "## Recap\n\n- \n- \n- "),
    ("markdown", "## Exercises\n\n1. \n2. \n3. "),
    ("code", "#| code-summary: Solution 1\n#| code-fold: true\nx/x.norm()"),
    ("markdown", "<details>\n<summary>Solution 2</summary>\n\nWhere words suffice.\n\n</details>"),
    ("code", "#| code-summary: Solution 3\n#| code-fold: true\n# in one line, what is found; then how\nunit(x[None])"),
]

def notebook(title, subtitle, module):
    cells = []
    for kind, text in TEMPLATE:
        source = text.format(title=title, subtitle=subtitle, module=module).splitlines(keepends=True)
        meta = {"jupyter": {"source_hidden": True, "outputs_hidden": True}} if "code-fold: true" in text else {}
        cells.append({"cell_type": kind, "id": uuid.uuid4().hex[:8], "metadata": meta, "source": source, **({"execution_count": None, "outputs": []} if kind == "code" else {})})
    return {"cells": cells, "metadata": {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}, "nbformat": 4, "nbformat_minor": 5}

def main(name, title, subtitle, folder=Path(__file__).resolve().parents[1]/"nbs"):
    if not re.fullmatch(r"\d\d_[a-z_]+", name): sys.exit(f"{name}: two digits and a name, such as 43_distances")
    path, module = folder/f"{name}.ipynb", name[3:]
    if taken := [p.name for p in folder.glob("*.ipynb") if p.stem[3:] == module]: sys.exit(f"{taken[0]} has that name already")
    path.write_text(json.dumps(notebook(title, subtitle, module), indent=1, ensure_ascii=False)+"\n", encoding="utf-8")
    print(f"wrote {path}\nNext: the page in nbs/_quarto.yml and nbs/index.ipynb, the module in picie_nb/all.py and LAYERS of tests/test_package.py")

if __name__ == "__main__":
    if len(sys.argv) != 4: sys.exit(__doc__)
    main(*sys.argv[1:])
