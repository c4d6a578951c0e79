"""Make README.md from nbs/index.ipynb, without Quarto.

    python tools/readme.py            # write README.md and its figures
    python tools/readme.py --check    # exit 1 if they are not up to date
"""
import base64, json, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FIGURES = Path("nbs/images")


def directives(source):
    "The `#| name: value` lines at the top of a code cell, as a dict, and the code below them"
    found, lines = {}, source.splitlines()
    while lines and lines[0].startswith("#|"):
        name, _, value = lines.pop(0)[2:].strip().partition(":")
        found[name.strip().split(" ")[0]] = value.strip()
    return found, "\n".join(lines).strip()


def prose(source):
    "Markdown as it stands in the README: links and images point into nbs/, the notebook's subtitle becomes a plain quote"
    source = re.sub(r"\]\((?!https?:|#|/)([^)]+\.ipynb)(#[^)]*)?\)", r"](nbs/\1)", source)
    return re.sub(r"\]\((images/[^)]+)\)", r"](nbs/\1)", source)


def output(out, figures, alt):
    "One output of a code cell as Markdown; images are collected in `figures`"
    data = out.get("data", {})
    if kind := next((k for k in data if k in ("image/png", "image/jpeg")), None):
        name = f"readme-{len(figures)+1}.{kind.split('/')[1]}"
        figures[name] = base64.b64decode("".join(data[kind]))
        return f"![{alt or 'figure'}]({FIGURES/name})"
    if "text/markdown" in data: return "".join(data["text/markdown"])
    text = "".join(out.get("text", data.get("text/plain", "")))
    text = re.sub(r"\x1b\[[0-9;]*m", "", text).rstrip()
    return f"```text\n{text}\n```" if text else ""


def convert(nb):
    "README text and {file name: bytes} of its figures"
    parts, figures = ["<!-- Made from nbs/index.ipynb by tools/readme.py. Edit the notebook. -->"], {}
    for cell in nb["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(prose(source))
            continue
        found, code = directives(source)
        if "hide" in found or not code: continue
        if found.get("echo") != "false": parts.append(f"```python\n{code}\n```")
        parts += [t for o in cell.get("outputs", []) if (t := output(o, figures, found.get("fig-alt", "")))]
    return "\n\n".join(parts)+"\n", figures


def main():
    text, figures = convert(json.loads((ROOT/"nbs/index.ipynb").read_text(encoding="utf-8")))
    files = {Path("README.md"): text.encode(), **{FIGURES/n: b for n, b in figures.items()}}
    if "--check" in sys.argv:
        stale = [str(f) for f, b in files.items() if not (ROOT/f).exists() or (ROOT/f).read_bytes() != b]
        sys.exit(f"not up to date, run `make sync`: {', '.join(stale)}" if stale else 0)
    for f, b in files.items():
        (ROOT/f).parent.mkdir(parents=True, exist_ok=True)
        (ROOT/f).write_bytes(b)


if __name__ == "__main__": main()
