"The widgets of nbs/use/widgets.ipynb in JupyterLab and headless Chromium: move, click, type, and see what changes."
import importlib.util, json, os, re, secrets, shutil, socket, subprocess, sys, time, urllib.error, urllib.request
from contextlib import contextmanager
from pathlib import Path
import pytest
from conftest import ROOT

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine: apt-get install chromium"),
              pytest.mark.skipif(not importlib.util.find_spec("playwright"), reason="no playwright: pip install playwright"),
              pytest.mark.skipif(not importlib.util.find_spec("jupyterlab"), reason="no JupyterLab: pip install jupyterlab")]
SLOW = 180  # seconds that a busy machine may take to start a kernel and run the notebook
HOSTILE = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>"


@contextmanager
def jupyter_lab(folder):
    "JupyterLab on loopback, with settings of its own; stopped at the end, with its kernels"
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    token, dirs = secrets.token_hex(16), {k: folder/k.lower() for k in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR", "TMPDIR")}
    for d in dirs.values(): d.mkdir()
    settings = {"notebook-extension/tracker": {"windowingMode": "none"}, "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False}}
    for name, values in settings.items():
        file = dirs["JUPYTERLAB_SETTINGS_DIR"]/"@jupyterlab"/f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    env = {**os.environ, **{k: str(d) for k, d in dirs.items()}, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    env.pop("MPLBACKEND", None) # the tests' own, see conftest.py; figures belong into the notebook
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0",
               f"--ServerApp.root_dir={folder}", f"--IdentityProvider.token={token}", "--LabApp.expose_app_in_browser=True"]
    with open(folder/"lab.log", "w") as log: server = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)
    try:
        until(lambda: answers(f"http://127.0.0.1:{port}/api?token={token}") or server.poll() is not None, "JupyterLab answers")
        assert server.poll() is None, (folder/"lab.log").read_text()[-3000:]
        yield f"http://127.0.0.1:{port}/lab/tree/widgets.ipynb?token={token}"
    finally:
        server.terminate()
        try: server.wait(30)
        except subprocess.TimeoutExpired: server.kill()


def answers(url):
    try: return urllib.request.urlopen(url, timeout=5).status == 200
    except (urllib.error.URLError, OSError): return False


def until(done, what, seconds=SLOW):
    "Wait until `done()` gives something true, and return that"
    end = time.monotonic()+seconds
    while time.monotonic() < end:
        if res := done(): return res
        time.sleep(.05)
    pytest.fail(f"waited {seconds} s in vain: {what}")


def notebook(folder):
    "A copy of the notebook with one more cell: a widget on a file that somebody else made"
    nb = json.loads((ROOT/"nbs/use/widgets.ipynb").read_text())
    for c in nb["cells"]: c.update({"outputs": []} if c["cell_type"] == "code" else {})
    nb["cells"].append(dict(cell_type="code", id="hostile", metadata={}, execution_count=None, outputs=[], source=[
        f"segmenter.named({{0: {HOSTILE!r}}}).save(folder/'loaded.safetensors')\n",
        "name_clusters(Segmenter.load(folder/'loaded.safetensors'), files[:4], folder/'hostile.safetensors', n=2)"]))
    (folder/"widgets.ipynb").write_text(json.dumps(nb))


def run_all(page):
    "Run all cells, and wait for the widget of the last"
    kernel = "window.jupyterapp?.shell?.currentWidget?.context?.sessionContext?.session?.kernel?.status"
    until(lambda: page.evaluate(kernel) == "idle", "a kernel")
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells'), null")
    widgets, error = page.locator(".picie-name-clusters"), page.locator("[data-mime-type='application/vnd.jupyter.stderr'] >> text=Traceback")
    until(lambda: widgets.count() == 2 or error.count(), "the last widget")
    assert error.count() == 0, error.first.inner_text()


def src(image): return image.get_attribute("src")
def handle(panel, i=0): return panel.locator(".noUi-handle").nth(i)


def check_views(page, shoot):
    "A strength changes P and what follows, not the image; the button draws anew"
    panel = page.locator(".picie-explore-views")
    images = panel.locator("img")
    assert images.count() == 8
    first, before = handle(panel), [src(o) for o in images.all()]
    for _ in range(4): first.press("ArrowRight")
    until(lambda: src(images.nth(2)) != before[2] and src(images.nth(1)) != before[1], "views change")
    assert src(images.nth(0)) == before[0]
    panel.get_by_role("button", name="another draw").click()
    until(lambda: panel.locator("input[type=number]").last.input_value() == "1", "the next draw")
    shoot(panel, "explore_views")


def check_k(page, shoot):
    "The picture, the text and the legend follow the slider"
    panel = page.locator(".picie-choose-k")
    picture, before = panel.locator("img"), src(panel.locator("img"))
    assert panel.get_by_text("K = 8: ").count() == 1
    handle(panel).press("ArrowRight")
    until(lambda: panel.get_by_text("K = 9: ").count(), "K = 9")
    handle(panel).press("End")
    until(lambda: panel.get_by_text("K = 30: ").count() and src(picture) != before, "K = 30")
    box = picture.bounding_box()
    assert abs(box["width"]-box["height"]) < 8, "the legend does not stretch the picture, which is a square"
    n = int(re.search(r"K = 30: (\d+) clusters", panel.inner_text())[1])
    until(lambda: panel.get_by_text(re.compile(r"^cluster \d+ <?\d+%$")).count() == n, "the legend")
    shoot(panel, "choose_k")


def check_similar(page, shoot):
    "A click sets the point to the pixel that was clicked; so do the sliders"
    panel = page.locator(".picie-pick-similar")
    picture, heat = panel.locator("img").nth(0), panel.locator("img").nth(1)
    before, box = [src(picture), src(heat)], picture.bounding_box()
    picture.click(position=dict(x=.75*box["width"], y=.25*box["height"]))
    def point(): return [int(o) for o in re.search(r"pixel x=(\d+), y=(\d+)", panel.inner_text()).groups()]
    until(lambda: abs(point()[0]-192) < 2 and abs(point()[1]-64) < 2, "the point is where the click was")
    until(lambda: src(picture) != before[0] and src(heat) != before[1], "the pictures change")
    x, y = point()
    assert [panel.locator(".widget-readout").nth(i).inner_text() for i in (0, 1)] == [str(x), str(y)]
    handle(panel).press("ArrowRight")
    until(lambda: point() == [x+1, y], "the slider moves the point")
    shoot(panel, "pick_similar")


def check_names(page, shoot, folder):
    "What is typed is saved; equal names are one class; a name is text"
    from picie_nb.segmenter import Segmenter
    panel = page.locator(".picie-name-clusters").first
    def field(k): return panel.get_by_role("textbox", name=f"cluster {k}", exact=True)
    for k, name in ((3, "road"), (8, "road"), (0, HOSTILE)): field(k).fill(name); field(k).press("Tab")
    until(lambda: panel.get_by_text("10 clusters, 9 classes: 3 and 8 are one").count(), "the summary")
    shoot(panel, "name_clusters")
    panel.get_by_role("button", name="save").click()
    until(lambda: panel.get_by_text(re.compile(r"^Saved 9 classes to .*named\.safetensors$")).count(), "the file is saved")
    (file,) = folder.rglob("named.safetensors")
    saved = Segmenter.load(file)
    assert len(saved.labels) == 9 and saved.labels.names[3] == "road" and saved.groups[3] == saved.groups[8] and saved.labels.names[0] == HOSTILE


def check_hostile(page, shoot):
    "A name from a file stands in its field as it is, and runs nothing"
    panel = page.locator(".picie-name-clusters").last
    field = panel.get_by_role("textbox", name="cluster 0", exact=True)
    assert field.input_value() == HOSTILE
    shoot(panel, "hostile")
    panel.get_by_role("button", name="save").click()
    until(lambda: panel.get_by_text(re.compile("^Saved 10 classes")).count(), "the file is saved")
    assert page.locator("img[src=x]").count() == 0 and page.evaluate("window.hacked === undefined")


def test_widgets(tmp_path):
    from playwright.sync_api import sync_playwright
    shots = Path(os.environ.get("PICIE_SCREENSHOTS", tmp_path/"screenshots"))
    shots.mkdir(parents=True, exist_ok=True)
    def shoot(panel, name): panel.screenshot(path=shots/f"{name}.png")
    notebook(tmp_path)
    with jupyter_lab(tmp_path) as url, sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            page, errors = browser.new_page(viewport=dict(width=1400, height=1000)), []
            page.set_default_timeout(1000*SLOW)
            page.on("pageerror", lambda e: errors.append(str(e)))
            page.goto(url)
            try:
                run_all(page)
                check_views(page, shoot); check_k(page, shoot); check_similar(page, shoot)
                check_names(page, shoot, tmp_path); check_hostile(page, shoot)
            except BaseException: page.screenshot(path=shots/"failure.png"); raise
            assert errors == [] and page.get_by_text("javascript error").count() == 0
        finally: browser.close()
