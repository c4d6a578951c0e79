// Runs the network and the clustering beside the page, so that the page stays responsive.
// In: {url, bytes} to load, {photo: ImageData, k} or {k} to segment. Out: {loaded}, {ready}, {clusters, ...} or {error}.
import * as C from "./cluster.js"

let session, about, state

onmessage = async ({data}) => {
  try {
    if (data.url || data.file) return await load(data)
    const start = performance.now()
    if (data.photo) await look(data.photo)
    postMessage({...answer(data.k), ms: performance.now()-start, network: data.photo ? state.network : 0})
  } catch (e) { postMessage({error: String(e.message ?? e).split("\n")[0]}) }
}

// The runtime, once, and a network: from a URL, or a file of the visitor
async function load({url, file}) {
  let seen = 0
  async function get(url) {
    const parts = []
    try {
      const r = await fetch(url)
      if (!r.ok) throw new Error(r.status)
      for (let reader = r.body.getReader(), o; !(o = await reader.read()).done;) {
        parts.push(o.value)
        postMessage({loaded: seen += o.value.length})
      }
    } catch (e) { throw new Error(`${url.split("/").pop()} could not be loaded (${e.message})`) }
    return new Uint8Array(await new Blob(parts).arrayBuffer())
  }
  const ort = await import("./ort.mjs")
  const [wasm, model] = await Promise.all([ort.env.wasm.wasmBinary ?? get(new URL("ort.wasm", import.meta.url).href),
                                           file ? file.arrayBuffer().then(o => new Uint8Array(o)) : get(url)])
  Object.assign(ort.env.wasm, {wasmBinary: wasm, numThreads: 1})
  const described = metadata(model)
  if (!described) throw new Error("this file was not written by picie-export or to_onnx")
  const next = await ort.InferenceSession.create(model, {executionProviders: ["wasm"]})
  await session?.release()
  session = next; about = described; state = null
  self.Tensor = ort.Tensor
  const own = session.outputNames.includes("features") // clusters of each photo, or of the network
  postMessage({ready: true, own, names: about.names, colors: own ? about.palette : about.colors})
}

// What the file says of itself, from the field metadata_props (14) of its protocol buffer
function metadata(bytes) {
  let i = 0
  const text = (a, b) => new TextDecoder().decode(bytes.subarray(a, b))
  const number = () => { let n = 0, f = 1, b; do { b = bytes[i++]; n += (b & 127)*f; f *= 128 } while (b > 127); return n }
  const field = () => {
    const tag = number(), kind = tag % 8
    if (kind === 0) { number(); return {} }
    if (kind !== 2) throw new Error("this file is not an ONNX model")
    const n = number(), start = i
    return {id: tag >> 3, start, end: i = start+n}
  }
  while (i < bytes.length) {
    const {id, start, end} = field()
    if (id !== 14) continue
    i = start
    const key = field(), value = field()
    if (text(key.start, key.end) === "picie_nb") return JSON.parse(text(value.start, value.end))
    i = end
  }
}

// Run the network on a photo, and keep what any number of clusters needs
async function look(photo) {
  const {width: W, height: H, data} = photo, x = new Float32Array(3*W*H), start = performance.now()
  for (let i = 0; i < W*H; i++) for (let c = 0; c < 3; c++) x[c*W*H+i] = data[4*i+c]/255
  const out = await session.run({images: new self.Tensor("float32", x, [1, 3, H, W])})
  state = {full: [H, W], network: performance.now()-start}
  if (out.clusters) return state.clusters = Uint8Array.from(out.clusters.data, Number)
  const [, D, h, w] = out.features.dims, z = C.rows(out.features.data, D), found = C.kmeans(z, D, h, w)
  found.tree = C.mergeTree(found.mu, found.counts, D)
  found.colors = C.nodeColors(found.tree, found.counts)
  const listen = C.listening(out.resized.data, ...out.resized.dims.slice(2))
  Object.assign(state, {z, D, size: [h, w], listen, found, tau: about.tau, rounds: about.refine})
}

function answer(k) {
  if (state.clusters) return {clusters: state.clusters, full: state.full, colors: about.colors.map((_, i) => i)}
  const {centroids, bias, colors} = C.cut(state.found, state.D, k)
  return {clusters: C.segment(state, centroids, bias, state.full), full: state.full, colors}
}
