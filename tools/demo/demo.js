// The page's part of the demo: fills each <div class="picie-demo">, lets a worker do the work, and paints.
// data-model, if given, is the address of a .onnx file, from the page; without it, model.onnx beside this script.

const SIDE = 1024 // longer photos are made smaller
const LARGEST = 16777216 // pixels that a canvas holds in every browser
const file = name => new URL(name, import.meta.url).href
const percent = o => o < .005 ? "<1 %" : `${Math.round(100*o)} %`

const MARKUP = `
<div class="pd-pick">
  <label class="pd-button"><input type="file" accept="image/*,.onnx" aria-describedby="pd-hint">Choose a photo</label>
  <span id="pd-hint">or drop one anywhere, or paste it, or take an example:</span>
  <div class="pd-examples" role="group" aria-label="Examples"></div>
</div>
<p class="pd-status" role="status" aria-live="polite"></p>
<progress hidden aria-label="Progress"></progress>
<div class="pd-result" hidden>
  <figure>
    <div class="pd-stage"><canvas class="pd-photo" role="img"></canvas><canvas class="pd-over" aria-hidden="true"></canvas></div>
    <figcaption>&nbsp;</figcaption>
  </figure>
  <div class="pd-panel">
    <label class="pd-k">Clusters <input type="range" min="2" max="20" value="6"><output></output></label>
    <label>Strength of the colours<input class="pd-alpha" type="range" min="0" max="100" value="65"></label>
    <fieldset><legend>Shown</legend><ul></ul></fieldset>
    <button type="button" class="pd-button pd-save">Download clusters (PNG)</button>
  </div>
</div>`

class Demo {
  constructor(root) {
    root.innerHTML = MARKUP
    this.root = root
    this.hidden = new Set()
    this.lit = -1
    const lacks = ["WebAssembly", "Worker", "OffscreenCanvas"].find(o => !(o in window))
    if (lacks) return this.fail(`This browser cannot run ${lacks}, which the demo needs. Any current Firefox, Chrome, Edge or Safari can.`)
    this.listen()
    fetch(file("demo.json")).then(r => r.json()).then(o => this.begin(o), () => this.fail("demo.json is missing beside demo.js."))
  }

  $(o) { return this.root.querySelector(o) }

  // the same text again would be read out again
  say(text) {
    this.root.classList.remove("pd-failed")
    if (this.$(".pd-status").textContent !== text) this.$(".pd-status").textContent = text
  }

  fail(text) { this.say(text); this.root.classList.add("pd-failed"); this.$("progress").hidden = true }

  begin({bytes, examples}) {
    this.bytes = bytes
    for (const {file: name, alt, k} of examples) {
      const button = Object.assign(document.createElement("button"), {type: "button"})
      button.append(Object.assign(new Image(), {src: file(name), alt}))
      button.setAttribute("aria-pressed", false)
      button.onclick = () => this.open(fetch(file(name)).then(r => r.ok ? r.blob() : Promise.reject()), name, button, k)
      this.$(".pd-examples").append(button)
    }
    if (!this.worker) this.say(`The photo stays on your machine. Before the first one, ${Math.round(bytes/1e6)} MB are loaded.`)
  }

  listen() {
    const take = files => { if (files?.length) this.open(files[0], files[0].name) }
    this.$("[type=file]").onchange = e => { take(e.target.files); e.target.value = "" }
    document.addEventListener("paste", e => take(e.clipboardData?.files))
    document.addEventListener("dragover", e => { e.preventDefault(); this.root.classList.add("pd-drop") })
    document.addEventListener("dragleave", () => this.root.classList.remove("pd-drop"))
    document.addEventListener("drop", e => { e.preventDefault(); this.root.classList.remove("pd-drop"); take(e.dataTransfer?.files) })
    this.$(".pd-k input").oninput = e => { this.$(".pd-k output").value = e.target.value; this.ask({}) }
    this.$(".pd-alpha").oninput = () => this.paint()
    this.$(".pd-save").onclick = () => this.save()
    const over = this.$(".pd-over")
    over.onpointermove = over.onpointerdown = e => {
      const box = over.getBoundingClientRect(), [H, W] = this.map.full
      const x = Math.floor((e.clientX-box.left)/box.width*W), y = Math.floor((e.clientY-box.top)/box.height*H)
      this.light(this.map.clusters[Math.min(H-1, Math.max(0, y))*W+Math.min(W-1, Math.max(0, x))])
    }
    over.onpointerleave = e => { if (e.pointerType !== "touch") this.light(-1) } // what a finger chose stays lit, until it scrolls or taps elsewhere
    over.onpointercancel = () => this.light(-1)
    document.addEventListener("pointerdown", e => { if (e.pointerType === "touch" && e.target !== over) this.light(-1) })
  }

  // a photo, perhaps of an example's button and with its number of clusters, or somebody's own network; of photos that are opened at once the last counts
  async open(blob, name, button, k) {
    if (/\.onnx$/i.test(name)) return this.ask({own: {file: blob, name}})
    const turn = this.turn = {}
    let bitmap
    try { bitmap = await createImageBitmap(await blob, {imageOrientation: "from-image"}) }
    catch { return turn === this.turn && this.say(button ? `${name} could not be loaded.` : `${name} is not a picture that this browser can read.`) }
    if (turn !== this.turn) return bitmap.close()
    for (const o of this.root.querySelectorAll(".pd-examples button")) o.setAttribute("aria-pressed", o === button)
    if (k) this.$(".pd-k input").value = k
    const {width, height} = bitmap, s = Math.min(1, SIDE/Math.max(width, height))
    const canvas = new OffscreenCanvas(Math.max(1, Math.round(width*s)), Math.max(1, Math.round(height*s)))
    const g = canvas.getContext("2d", {willReadFrequently: true})
    Object.assign(g, {imageSmoothingQuality: "high", fillStyle: "#fff"})
    g.fillRect(0, 0, canvas.width, canvas.height)
    g.drawImage(bitmap, 0, 0, canvas.width, canvas.height)
    bitmap.close()
    const size = s < 1 ? `, made smaller from ${width} × ${height} to ${canvas.width} × ${canvas.height} pixels` : ""
    const whole = width*height <= LARGEST ? [height, width] : [canvas.height, canvas.width]
    this.ask({photo: g.getImageData(0, 0, canvas.width, canvas.height), name: name.replace(/\.\w+$/, ""), size, whole})
  }

  load(own) {
    this.worker ??= this.hire()
    const model = this.root.dataset.model
    this.model = own?.name
    this.busy = true
    this.worker.postMessage(own ?? {url: model ? new URL(model, document.baseURI).href : file("model.onnx")})
  }

  hire() {
    const worker = new Worker(file("worker.js"), {type: "module"})
    worker.onmessage = ({data}) => this.hear(data)
    worker.onerror = e => { e.preventDefault(); this.dismiss(); this.fail("The demo could not be started: there is no connection, its files are not complete, or this browser is too old.") }
    return worker
  }

  // what could not be loaded is asked for again only by a new worker, and the old one still tells of its progress
  dismiss() {
    this.worker.onmessage = this.worker.onerror = null
    this.worker.terminate()
    this.worker = this.waiting = null
    this.busy = this.ready = false
  }

  // one question at a time; the latest replaces those that wait
  ask(what) {
    this.waiting = {...this.waiting, ...what}
    if (this.busy) return
    const {own, ...job} = this.waiting
    this.waiting = own || !this.ready ? job : null
    if (this.waiting) return this.load(own)
    this.job = job
    if (!job.photo && !this.photo) return
    this.busy = true
    this.slow = setTimeout(() => { this.say("Segmenting ..."); this.$("progress").removeAttribute("value"); this.$("progress").hidden = false }, 200)
    this.worker.postMessage({...job, k: +this.$(".pd-k input").value})
  }

  hear(data) {
    if (data.loaded) {
      this.$("progress").hidden = false
      if (!this.bytes) return this.say("Loading, once ...") // demo.json is late
      Object.assign(this.$("progress"), {max: this.bytes, value: data.loaded})
      return this.say(`Loading ${Math.round(this.bytes/1e6)} MB, once ...`)
    }
    clearTimeout(this.slow)
    this.$("progress").hidden = true
    this.busy = false
    if (data.error) {
      this.waiting = null
      this.say(`This did not work: ${data.error}${this.ready || this.model ? "" : ". Choose the photo again to try once more."}`)
      return this.ready || this.dismiss()
    }
    if (data.ready) this.equip(data)
    else this.show(data)
    if (this.waiting) this.ask({})
  }

  equip({own, names, colors}) {
    Object.assign(this, {ready: true, own, names, colors})
    this.$(".pd-k").hidden = !own
    if (this.model) this.say(`${this.model}: ${names.length} clusters.`)
    if (this.photo) this.waiting = {photo: this.photo, name: this.name, size: this.size, whole: this.whole, ...this.waiting} // again, by another network
  }

  show({clusters, full, colors, ms, network}) {
    if (this.job.photo) {
      Object.assign(this, this.job) // the photo, its name and sizes
      this.hidden.clear()
      const canvas = this.$(".pd-photo")
      Object.assign(canvas, {width: full[1], height: full[0]})
      canvas.getContext("2d").putImageData(this.photo, 0, 0)
      Object.assign(this.$(".pd-over"), {width: full[1], height: full[0]})
    }
    const counts = new Array(colors.length).fill(0)
    for (const c of clusters) counts[c]++
    const order = [...counts.keys()].filter(c => counts[c]).sort((a, b) => counts[b]-counts[a]) // those that occur, largest first
    this.map = {clusters, full, keys: colors, order, shares: counts.map(o => o/clusters.length), rgb: colors.map(o => this.colors[o]),
                labels: colors.map((_, c) => this.own ? `cluster ${order.indexOf(c)}` : this.names[c])} // its own by size
    this.lit = -1
    this.$("figcaption").textContent = "\u00a0"
    this.$(".pd-result").hidden = false
    this.$(".pd-k output").value = this.$(".pd-k input").value
    const n = order.length === 1 ? "1 cluster" : `${order.length} clusters`, time = `${(ms/1000).toFixed(1)} s`
    this.$(".pd-photo").setAttribute("aria-label", `The photo with ${n} painted over it`)
    this.say(`${n} in ${time}${network ? `, of which the network took ${(network/1000).toFixed(1)} s` : ""}${this.job.photo ? this.size : ""}.`)
    this.list()
    this.paint()
  }

  // a row for each cluster that occurs
  list() {
    const {shares, keys, order, rgb, labels} = this.map
    this.$("ul").replaceChildren(...order.map(c => {
      const row = document.createElement("li"), label = document.createElement("label"), box = document.createElement("input")
      Object.assign(box, {type: "checkbox", checked: !this.hidden.has(keys[c])})
      box.onchange = () => { this.hidden[box.checked ? "delete" : "add"](keys[c]); this.light(box.checked ? c : -1); this.paint() }
      box.onfocus = row.onpointerenter = () => this.light(c)
      box.onblur = row.onpointerleave = () => this.light(-1)
      const chip = Object.assign(document.createElement("span"), {className: "pd-chip"})
      chip.style.background = `rgb(${rgb[c]})`
      label.append(box, chip, `${labels[c]} `, Object.assign(document.createElement("b"), {textContent: percent(shares[c])}))
      row.dataset.cluster = c
      row.append(label)
      return row
    }))
  }

  light(c) {
    if (c === this.lit) return
    this.lit = c
    this.$("figcaption").textContent = c < 0 ? "\u00a0" : `${this.map.labels[c]}, ${percent(this.map.shares[c])}`
    for (const row of this.root.querySelectorAll("li")) row.classList.toggle("pd-lit", row.dataset.cluster == c)
    this.paint()
  }

  // RGBA of the clusters that are shown, and of the one that is lit; alpha(cluster) from 0 to 1
  image(alpha, lit = -1) {
    const {clusters, full: [H, W], keys, rgb} = this.map, res = new ImageData(W, H), out = new Uint32Array(res.data.buffer)
    const rgba = keys.map((key, c) => {
      const [r, g, b] = rgb[c], a = this.hidden.has(key) && c !== lit ? 0 : Math.round(255*alpha(c))
      return new Uint32Array(Uint8Array.of(r, g, b, a).buffer)[0]
    })
    for (let i = 0; i < out.length; i++) out[i] = rgba[clusters[i]]
    return res
  }

  paint() {
    if (!this.map) return
    const alpha = this.$(".pd-alpha").value/100, lit = this.lit
    const image = this.image(c => lit < 0 ? alpha : c === lit ? Math.max(.6, alpha) : .15*alpha, lit)
    this.$(".pd-over").getContext("2d").putImageData(image, 0, 0)
  }

  // flat colours at the photo's own size; what is not shown is transparent
  async save() {
    const {full: [h, w]} = this.map, [H, W] = this.whole
    const small = new OffscreenCanvas(w, h), canvas = new OffscreenCanvas(W, H), g = canvas.getContext("2d")
    small.getContext("2d").putImageData(this.image(() => 1), 0, 0)
    g.imageSmoothingEnabled = false
    g.drawImage(small, 0, 0, W, H)
    const href = URL.createObjectURL(await canvas.convertToBlob())
    Object.assign(document.createElement("a"), {href, download: `${this.name}-clusters.png`}).click()
    setTimeout(() => URL.revokeObjectURL(href), 1e4)
    this.say(`Saved as ${this.name}-clusters.png.`)
  }
}

for (const root of document.querySelectorAll(".picie-demo")) root.demo = new Demo(root)
