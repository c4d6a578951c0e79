"""Begin a notebook in the form of the others: `python tools/new_notebook.py use/name "Title" "what it does, in a line"`"""
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
    ("markdown", "The question that this page answers, in three sentences.\n\n## The naive way"),
    ("code", "x = torch.tensor([3., 4.])\nx/x.sum() # what should have length 1"),
    ("markdown", "Where that falls short, as its output shows.\n\n## A better way"),
    ("code", "#| exports\ndef unit(\n    x:Tensor, # features, (N,D)\n)->Tensor: # (N,D), unit length\n    \"Scale every row to length 1\"\n"
             "    if x.ndim != 2: raise ValueError(f\"features must be (N,D), not {{tuple(x.shape)}}\")\n    return torch.nn.functional.normalize(x)"),
    ("code", "unit(x[None]).norm(dim=1)"),
    ("code", "#| hide\ntest_eq(unit(x[None]).norm(dim=1), torch.ones(1))\ntest_fail(lambda: unit(x), contains=\"must be (N,D)\")"),
]

def notebook(title, subtitle, module):
    cells = []
    for kind, text in TEMPLATE:
        source = text.format(title=title, subtitle=subtitle, module=module).splitlines(keepends=True)
        cells.append({"cell_type": kind, "id": uuid.uuid4().hex[:8], "metadata": {}, "source": source, **({"execution_count": None, "outputs": []} if kind == "code" else {})})
    return {"cells": cells, "metadata": {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}, "nbformat": 4, "nbformat_minor": 5}

def main(name, title, subtitle, folder=Path(__file__).resolve().parents[1]/"nbs"):
    if not re.fullmatch(r"((data|evaluate|training|use)/)?[a-z_]+", name):
        sys.exit(f"{name}: a name of letters, in a wing (data, evaluate, training, use) or for a step of the method alone, such as use/distances")
    path, module = folder/f"{name}.ipynb", name.replace("/", ".")
    if taken := [p.name for p in folder.rglob("*.ipynb") if re.sub(r"^\d\d_", "", p.stem) == path.stem]: sys.exit(f"{taken[0]} has that name already")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(notebook(title, subtitle, module), indent=1, ensure_ascii=False)+"\n", encoding="utf-8")
    print(f"wrote {path}\nNext: the page in nbs/_quarto.yml and nbs/index.ipynb, the module in picie_nb/all.py and LAYERS of tests/test_package.py")

if __name__ == "__main__":
    if len(sys.argv) != 4: sys.exit(__doc__)
    main(*sys.argv[1:])
