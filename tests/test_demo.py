"The demo of the site in headless Chromium: a photo is segmented in the page as Python segments it, and nothing leaves this machine"
import base64, functools, http.server, importlib.util, io, re, shutil, sys, threading
from contextlib import contextmanager
import numpy as np, pytest, torch
from PIL import Image
from conftest import ROOT
from scipy.optimize import linear_sum_assignment
from picie_nb.backbone import create_backbone
from picie_nb.clustering import kmeans, sample_pixels
from picie_nb.data.scenes import ToyScenes
from picie_nb.fpn import PiCIENet, pca_init_
from picie_nb.segmenter import Segmenter
from picie_nb.use.tree import photo_tree
import picie_nb.use.deploy

onnxruntime = pytest.importorskip("onnxruntime")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine: apt-get install chromium"),
              pytest.mark.skipif(not importlib.util.find_spec("playwright"), reason="no playwright: pip install playwright")]
SLOW = 120 # seconds that a busy machine may take
SAME, SAME_32 = .995, .97 # share of pixels with the cluster that Python gives them; if its weights have 32 bits, where the page's have 16

@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("demo_tool", ROOT/"tools/demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

@pytest.fixture(scope="module")
def folder(tool, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    if not tool.build(folder): pytest.skip("no npm on this machine, from which onnxruntime-web comes: install Node.js")
    return folder

@contextmanager
def served(folder):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args): pass
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()

@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield b
        b.close()

@pytest.fixture
def page(browser, folder):
    "The page, that must end without an error and without a request to another machine"
    with served(folder) as address:
        page, wrong = browser.new_page(viewport=dict(width=1000, height=900)), []
        page.set_default_timeout(1000*SLOW)
        page.on("pageerror", lambda e: wrong.append(str(e)))
        page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
        page.on("request", lambda r: None if r.url.startswith((address, "blob:", "data:")) else wrong.append(r.url))
        page.on("request", lambda r: wrong.append("an upload") if r.method != "GET" else None)
        page.goto(address)
        page.wait_for_selector(".pd-examples img" if (folder/"china.jpg").exists() else ".pd-status:not(:empty)")
        yield page
        page.close()
        assert wrong == [], wrong

def status(page): return page.locator(".pd-status").inner_text()
def done(page): page.wait_for_function("!document.querySelector('.picie-demo').demo.busy && /clusters? in|did not|cannot|not a/.test(document.querySelector('.pd-status').textContent)")
def give(page, name, data, mime="image/png"):
    page.evaluate("document.querySelector('.pd-status').textContent = ''")
    page.set_input_files("[type=file]", dict(name=name, mimeType=mime, buffer=data))
    done(page)
def set_k(page, k):
    page.locator(".pd-k input").evaluate("(o, k) => { o.value = k; o.dispatchEvent(new Event('input')) }", k)
    page.wait_for_function("k => document.querySelector('.picie-demo').demo.map?.keys.length == k", arg=k)
    done(page)

def result(page):
    "Pixels, clusters and colours as the page has them"
    got = page.evaluate("""() => { const {photo, map, colors} = document.querySelector('.picie-demo').demo
        const text = a => { let s = ''; for (let i = 0; i < a.length; i += 9999) s += String.fromCharCode(...a.subarray(i, i+9999)); return btoa(s) }
        return {photo: text(new Uint8Array(photo.data.buffer)), clusters: text(map.clusters), full: map.full, palette: map.keys.map(o => colors[o])} }""")
    h, w = got["full"]
    photo = np.frombuffer(base64.b64decode(got["photo"]), np.uint8).reshape(h, w, 4)[..., :3]
    return photo, np.frombuffer(base64.b64decode(got["clusters"]), np.uint8).reshape(h, w), np.array(got["palette"])

def png(im):
    buf = io.BytesIO()
    Image.fromarray(np.asarray(im)).save(buf, "PNG")
    return buf.getvalue()

def matched(a, b, k):
    "Share of pixels with the same cluster, if clusters are numbered alike as far as possible"
    n = np.zeros((k, k))
    np.add.at(n, (a.ravel(), b.ravel()), 1)
    return n[linear_sum_assignment(-n)].sum()/n.sum()

class Exported(torch.nn.Module):
    "The network of the file as a network of this library"
    def __init__(self, net, path):
        super().__init__()
        self.net, self.backbone, self.session = net, net.backbone, onnxruntime.InferenceSession(str(path))
    def see(self, photo): self.z = torch.from_numpy(self.session.run(["features"], {"images": photo.transpose(2, 0, 1)[None].astype(np.float32)/255})[0])
    def forward(self, x): return self.z

def test_as_python(page, folder, tool):
    """The clusters of `photo_tree`, for photos that the features were not reduced on, too, and for several numbers of clusters: with the weights of the file
    the same numbers and colours; with the network that was exported, whose weights have 32 bits, the same parts of the photo"""
    net = tool.segmenter().net
    exported, shares = Exported(net, folder/"model.onnx"), {}
    photos = {n: np.asarray(Image.open(f).convert("RGB")) for n, f in tool.photos().items() if n in ("china.jpg", "chelsea.png")}
    photos["scene"] = ToyScenes(n=1, size=192, seed=0)[0][0]
    for name, photo in photos.items():
        give(page, "photo.png", png(photo))
        exported.see(photo)
        alike, whole = photo_tree(exported, photo), photo_tree(net, photo)
        for k in (3, 6, 12):
            set_k(page, k)
            seen, clusters, palette = result(page)
            want = alike.at(k)(photo)
            assert (seen == photo).all() and (palette == want.labels.palette).all()
            assert (clusters == want.clusters).mean() > SAME, (name, k)
            if k < 12: shares[name, k] = matched(clusters, whole.at(k)(photo).clusters, k)
    assert min(shares.values()) > SAME_32, shares

def test_own_network(page, tmp_path):
    "A file of `to_onnx` takes the place of the demo's, with its own names, which are text, and colours"
    torch.manual_seed(0)
    scenes, hostile = ToyScenes(n=4, size=128, seed=0), "<img src=x onerror=alert(1)>"
    x = scenes.batch(range(4))[0]
    net = pca_init_(PiCIENet(create_backbone("tf_efficientnet_lite0"), 16), x).eval()
    with torch.no_grad(): z = torch.nn.functional.normalize(net(x), dim=1)
    seg = Segmenter(net, kmeans(sample_pixels(z, 200), 5, generator=torch.Generator().manual_seed(0)).centroids, size=128, names={0: hostile, 1: "road"}, refine=4)
    give(page, "photo.png", png(scenes[0][0]))
    set_k(page, 12)
    page.evaluate("setInterval(() => document.querySelector('.picie-demo').demo.paint(), 5)") # between the two networks, too
    page.set_input_files("[type=file]", seg.to_onnx(tmp_path/"own.onnx"))
    page.wait_for_function("document.querySelector('.picie-demo').demo.own === false && !document.querySelector('.picie-demo').demo.busy")
    _, clusters, palette = result(page)
    want = seg(scenes[0][0])
    assert (clusters == want.clusters).mean() > SAME and (palette == seg.labels.palette).all()
    assert page.locator(".pd-k").is_hidden() and page.locator(".pd-panel li").count() == len(want.shares())
    assert [t.rsplit(" ", 2)[0].strip() for t in page.locator(".pd-panel li label").all_text_contents()] == list(want.shares())
    give(page, "nothing.onnx", b"\x08\x01", "")
    assert "not written by picie-export" in status(page)
    give(page, "nonsense.onnx", b"no model at all", "")
    assert "did not work" in status(page)
    give(page, "photo.png", png(scenes[1][0]))
    assert (result(page)[1] == seg(scenes[1][0]).clusters).mean() > SAME

def test_controls(page, tmp_path):
    "Example, toggles, highlight, slider, download; all of it with the keyboard"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.type") == "file"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    done(page)
    assert page.evaluate("[...document.querySelectorAll('.pd-examples button')].map(o => o.ariaPressed)") == ["true", *["false"]*3]
    assert re.search(r"5 clusters in [\d.]+ s, of which the network took", status(page)) and page.locator("[aria-live=polite]").count() == 1
    for o in page.locator("input, button").all(): # each has a name for screen readers
        assert o.evaluate("o => (o.labels?.[0]?.textContent || o.textContent || o.querySelector('img')?.alt || '').trim()")
    k = page.locator(".pd-k input")
    k.focus()
    assert k.evaluate("o => getComputedStyle(o).outlineStyle") == "solid"
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("document.querySelector('.picie-demo').demo.map.keys.length == 4")
    done(page)
    boxes, over = page.locator(".pd-panel li input"), "() => { const o = document.querySelector('.pd-over'); return [...o.getContext('2d').getImageData(0, 0, o.width, o.height).data].filter((_, i) => i % 4 == 3) }"
    assert boxes.count() == 4
    clusters, row = result(page)[1].ravel(), int(page.locator(".pd-panel li").first.get_attribute("data-cluster"))
    boxes.first.focus()
    alpha = np.array(page.evaluate(over))
    assert (alpha[clusters == row] > 150).all() and (alpha[clusters != row] < 40).all() and page.locator("figcaption").inner_text().startswith("cluster 0, ")
    page.keyboard.press("Space") # it goes at once
    alpha = np.array(page.evaluate(over))
    assert (alpha[clusters == row] == 0).all() and (alpha[clusters != row] > 150).all()
    page.locator(".pd-panel li").first.hover() # what is hidden is shown while it is lit
    assert (np.array(page.evaluate(over))[clusters == row] > 150).all()
    page.locator(".pd-panel li").nth(1).hover()
    assert re.match("cluster 1, ", page.locator("figcaption").inner_text()) and (np.array(page.evaluate(over))[clusters == row] == 0).all()
    page.mouse.move(1, 1)
    page.evaluate("c => document.querySelector('.picie-demo').demo.light(c)", row)
    k.press("ArrowRight")
    page.wait_for_function("document.querySelector('.picie-demo').demo.map.keys.length == 5")
    assert not page.locator("figcaption").inner_text().strip() # no longer true
    k.press("ArrowLeft")
    page.wait_for_function("document.querySelector('.picie-demo').demo.map.keys.length == 4")
    done(page)
    page.locator(".pd-save").focus()
    alpha = np.array(page.evaluate(over))
    assert (alpha[clusters == row] == 0).all() and (alpha[clusters != row] > 150).all()
    with page.expect_download() as saved: page.keyboard.press("Enter")
    assert saved.value.suggested_filename == "china-clusters.png"
    saved.value.save_as(tmp_path/"clusters.png")
    rgba, (_, clusters, palette) = np.asarray(Image.open(tmp_path/"clusters.png")), result(page)
    on = clusters != row
    assert (rgba[..., 3] == 255*on).all() and (rgba[on][:, :3] == palette[clusters[on]]).all()
    box = page.locator(".pd-over").bounding_box()
    page.mouse.move(box["x"]+box["width"]/2, box["y"]+box["height"]-5)
    h, w = clusters.shape
    at = clusters[int(h*(1-5/box["height"])), w//2]
    assert page.locator(".pd-lit").get_attribute("data-cluster") == str(at)
    page.locator(".pd-alpha").fill("0")
    page.mouse.move(1, 1)
    assert not np.any(page.evaluate(over))

def test_photos(page, tmp_path):
    "What is no picture is told; large ones become smaller, and their download is large; the camera's orientation counts; paste and drop"
    give(page, "letter.txt", b"hello", "text/plain")
    assert status(page) == "letter.txt is not a picture that this browser can read."
    large = Image.new("RGB", (3000, 1500), "navy")
    large.paste((240, 200, 40), (0, 0, 1500, 1500))
    exif, buf = large.getexif(), io.BytesIO()
    exif[0x112] = 6 # turn right
    large.save(buf, "JPEG", exif=exif, quality=90)
    give(page, "large.jpg", buf.getvalue(), "image/jpeg")
    assert "smaller from 1500 × 3000 to 512 × 1024 pixels" in status(page)
    photo, clusters, _ = result(page)
    assert photo.shape == (1024, 512, 3) and photo[100, 256, 0] > 200 and photo[900, 256, 0] < 40 # left becomes top
    with page.expect_download() as saved: page.click(".pd-save")
    saved.value.save_as(tmp_path/"large.png")
    rgba, (_, clusters, palette) = np.asarray(Image.open(tmp_path/"large.png")), result(page)
    assert rgba.shape == (3000, 1500, 4) # the photo's own size
    i, j = (np.arange(n)*m//n for n, m in zip(rgba.shape, clusters.shape))
    assert (rgba[..., :3] == palette[clusters[i[:, None], j]]).all(2).mean() > .999 and set(map(tuple, rgba.reshape(-1, 4)[::97, :3])) <= set(map(tuple, palette))
    data = base64.b64encode(png(ToyScenes(n=1, size=64, seed=1)[0][0])).decode()
    for event, field in (("paste", "clipboardData"), ("drop", "dataTransfer")):
        page.evaluate("""([data, event, field]) => {
            const o = new DataTransfer(), bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0))
            o.items.add(new File([bytes], event+'.png', {type: 'image/png'}))
            document.dispatchEvent(Object.assign(new Event(event, {cancelable: true}), {[field]: o})) }""", [data, event, field])
        page.wait_for_function("o => { const d = document.querySelector('.picie-demo').demo; return d.name == o && !d.busy && d.photo?.width == 64 }", arg=event)
        done(page)
        if event == "paste": give(page, "large.jpg", buf.getvalue(), "image/jpeg")

def test_last_photo_counts(page):
    "Of photos that are chosen one after the other the last is shown, however long the others take; a download has the name of what is shown"
    small, large = png(Image.new("RGB", (64, 48), "navy")), png(Image.new("RGB", (6000, 4000), "navy"))
    give(page, "good.png", small)
    give(page, "letter.txt", b"hello", "text/plain")
    with page.expect_download() as saved: page.click(".pd-save")
    assert saved.value.suggested_filename == "good-clusters.png"
    page.evaluate("window.maps = []; const make = createImageBitmap; window.createImageBitmap = async (...o) => { const m = await make(...o); maps.push(m); return m }; 0")
    page.set_input_files("[type=file]", dict(name="large.png", mimeType="image/png", buffer=large))
    page.set_input_files("[type=file]", dict(name="small.png", mimeType="image/png", buffer=small))
    page.wait_for_function("maps.length == 2")
    page.wait_for_function("document.querySelector('.picie-demo').demo.name == 'small'")
    done(page)
    assert result(page)[0].shape == (48, 64, 3) and "smaller" not in status(page)
    assert page.evaluate("maps.map(o => o.width)") == [0, 0] # their memory is given back at once
    page.evaluate("document.querySelector('.pd-status').textContent = ''")
    page.set_input_files("[type=file]", dict(name="large.png", mimeType="image/png", buffer=large))
    page.wait_for_function("document.querySelector('.picie-demo').demo.busy")
    assert page.evaluate("(o => o.photo.width == 64 ? o.name : 'small')(document.querySelector('.picie-demo').demo)") == "small"
    done(page)
    assert page.evaluate("document.querySelector('.picie-demo').demo.name") == "large"

@pytest.mark.parametrize("name", ("model.onnx", "ort.wasm", "ort.mjs", "worker.js", "demo.json", "demo.js"))
def test_not_loaded(browser, folder, tmp_path, name):
    "A file that does not arrive is told, and stays told while others arrive; the next photo tries again"
    for f in folder.iterdir():
        if f.name != name: (tmp_path/f.name).symlink_to(f)
    with served(tmp_path) as address:
        page, wrong = browser.new_page(), []
        page.set_default_timeout(1000*SLOW)
        page.on("pageerror", lambda e: wrong.append(str(e)))
        page.goto(address)
        if name == "demo.js": page.wait_for_selector("text=The demo could not be loaded")
        else:
            page.wait_for_selector(".pd-status:not(:empty)")
            photo = dict(name="photo.png", mimeType="image/png", buffer=png(ToyScenes(n=1, size=64, seed=1)[0][0]))
            page.set_input_files("[type=file]", photo)
            if name != "demo.json":
                page.wait_for_function("/did not work|could not/.test(document.querySelector('.pd-status').textContent)")
                page.wait_for_timeout(1000)
                assert ("could not be started" if name == "worker.js" else "try once more") in status(page) and page.locator("progress").is_hidden()
                (tmp_path/name).symlink_to(folder/name)
                page.set_input_files("[type=file]", photo)
            page.wait_for_selector(".pd-result")
            done(page)
            assert "clusters in" in status(page) and page.locator(".pd-failed").count() == 0
            if page.locator(".pd-examples button").count():
                page.route("**/*.jpg", lambda r: r.abort())
                page.locator(".pd-examples button").first.click()
                page.wait_for_function("/china.jpg could not be loaded/.test(document.querySelector('.pd-status').textContent)")
        page.close()
        assert wrong == [], wrong

def test_readers(browser, folder):
    "A screen reader hears each text once, a finger lights a cluster until it taps elsewhere, and the system's own colours leave those of the clusters"
    with served(folder) as address:
        page = browser.new_page(has_touch=True, forced_colors="active")
        page.set_default_timeout(1000*SLOW)
        page.goto(address)
        page.wait_for_selector(".pd-status:not(:empty)")
        page.evaluate("window.said = []; new MutationObserver(() => said.push(document.querySelector('.pd-status').textContent)).observe(document.querySelector('.pd-status'), {childList: true})")
        give(page, "photo.png", png(ToyScenes(n=1, size=64, seed=1)[0][0]))
        said = page.evaluate("said")
        assert "MB, once" in "".join(said) and all(a != b for a, b in zip(said, said[1:]))
        assert len(set(page.evaluate("[...document.querySelectorAll('.pd-chip')].map(o => getComputedStyle(o).backgroundColor)"))) == page.locator(".pd-chip").count() > 1
        page.locator(".pd-over").tap()
        assert page.locator(".pd-lit").count() == 1 and re.match("cluster ", page.locator("figcaption").inner_text())
        page.locator(".pd-status").tap()
        assert page.locator(".pd-lit").count() == 0
        give(page, "dot.png", png(Image.new("RGB", (1, 1), "red")))
        assert status(page).startswith("1 cluster in ")
        page.close()

@pytest.mark.parametrize("width", (360, 768, 1440))
def test_widths(browser, folder, width):
    "Nothing is wider than the window, and what is pressed is large enough for a finger"
    with served(folder) as address:
        page = browser.new_page(viewport=dict(width=width, height=800), color_scheme="dark" if width == 768 else "light")
        page.set_default_timeout(1000*SLOW)
        page.goto(address)
        page.locator(".pd-examples button").first.click()
        done(page)
        set_k(page, 20)
        assert page.evaluate("document.documentElement.scrollWidth-innerWidth") <= 0
        assert all(o.bounding_box()["height"] >= 24 for o in page.locator("button, .pd-button, li label").all())
        page.close()

@pytest.mark.parametrize("name", ("WebAssembly", "Worker", "OffscreenCanvas"))
def test_old_browser(browser, folder, name):
    "What the page itself needs is asked for before a photo is chosen"
    with served(folder) as address:
        page = browser.new_page()
        page.add_init_script(f"delete window.{name}")
        page.goto(address)
        page.wait_for_selector(".pd-failed")
        assert f"cannot run {name}" in status(page)
        page.close()

def test_without_npm(tool, monkeypatch, tmp_path):
    "Without npm, nothing is built, and the site says how to"
    monkeypatch.setattr(tool, "CACHE", tmp_path/"cache")
    monkeypatch.setattr(tool.shutil, "which", lambda _: None)
    assert tool.build(tmp_path/"out") is False and not (tmp_path/"out").exists()
    spec = importlib.util.spec_from_file_location("docs_tool", ROOT/"tools/docs.py")
    docs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(docs)
    text = (ROOT/"nbs/demo.qmd").read_text()
    (tmp_path/"demo.html").write_text(text)
    monkeypatch.setitem(sys.modules, "demo", tool)
    docs.demo(tmp_path)
    text = (tmp_path/"demo.html").read_text()
    assert "demo.js" not in text and "Install Node.js" in text and "The network is EfficientNet-Lite0" in text
