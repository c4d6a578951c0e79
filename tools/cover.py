"""Which lines and branches of the package do the tests and the notebooks run? Writes bench/coverage.json (25 minutes)

A notebook defines what it exports in its own cells, so running it would not count for the module. Here exported
definitions are taken from the module instead, cell by cell, and the lessons and tests around them run on those."""
import ast, json, os, subprocess, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLAGS = {"cuda", "slow"}

def directives(src): return {l[2:].strip().partition(":")[0].split()[0] for l in src.splitlines() if l.startswith("#|") and l[2:].strip()}

def from_module(src, module):
    "Exported definitions become imports; what is patched into a class is there already"
    body = ast.parse(src).body
    if all(isinstance(o, (ast.Import, ast.ImportFrom)) for o in body): return src
    names = []
    for o in body:
        if isinstance(o, (ast.FunctionDef, ast.ClassDef)):
            if not any("patch" in ast.unparse(d) for d in o.decorator_list): names.append(o.name)
        elif isinstance(o, (ast.Assign, ast.AnnAssign)):
            names += [n.id for t in getattr(o, "targets", [getattr(o, "target", None)]) for n in ast.walk(t) if isinstance(n, ast.Name)]
    return f"from picie_nb.{module} import {', '.join(names)}" if names else ""

def run_notebook(path):
    "Run a notebook to its end, whatever fails"
    from execnb.shell import CaptureShell
    from fastcore.nbio import read_nb
    nb, module, failed = read_nb(path), None, 0
    os.chdir(Path(path).parent)
    shell = CaptureShell(path=Path(path).parent)
    for cell in nb.cells:
        if cell.cell_type != "code": continue
        ds = directives(cell.source)
        if "default_exp" in ds: module = cell.source.split("default_exp")[1].split()[0]
        if ds & FLAGS or "eval: false" in cell.source or "default_exp" in ds: continue
        shell.run(from_module(cell.source, module) if ds & {"export", "exports"} and module else cell.source)
        if shell.exc:
            failed += 1
            print(f"{Path(path).name}: {type(shell.exc).__name__} in\n{cell.source[:300]}\n{shell.exc}", file=sys.stderr)
    print(f"{Path(path).name}: {failed} cells failed", file=sys.stderr)

def main():
    with tempfile.TemporaryDirectory() as d:
        cov = [sys.executable, "-m", "coverage"]
        env = {**os.environ, "COVERAGE_FILE": f"{d}/data", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
        for nb in sorted((ROOT/"nbs").rglob("*.ipynb")):
            if ".ipynb_checkpoints" in str(nb): continue
            subprocess.run([*cov, "run", __file__, str(nb)], cwd=ROOT, env=env)
        subprocess.run([*cov, "run", "-m", "pytest", "-p", "no:randomly", "-k", "not test_runs and not browser"], cwd=ROOT, env=env)
        subprocess.run([*cov, "combine", d], cwd=ROOT, env=env, check=True)
        subprocess.run([*cov, "report", "--show-missing"], cwd=ROOT, env=env)
        subprocess.run([*cov, "json", "-q", "-o", f"{d}/c.json"], cwd=ROOT, env=env, check=True)
        full = json.loads(Path(d, "c.json").read_text())
    pick = lambda s: dict(lines=s["num_statements"], lines_run=s["covered_lines"], branches=s["num_branches"], branches_run=s["covered_branches"])
    res = dict(total=pick(full["totals"]), modules={str(Path(k).with_suffix("")).removeprefix("picie_nb/").replace("/", "."): pick(v["summary"]) for k, v in sorted(full["files"].items()) if v["summary"]["num_statements"]})
    (ROOT/"bench"/"coverage.json").write_text(json.dumps(res, indent=1)+"\n")

if __name__ == "__main__": run_notebook(sys.argv[1]) if len(sys.argv) > 1 else main()
