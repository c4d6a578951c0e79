// The clusters of one photo from its features, as picie_nb.use.tree.photo_tree(...).at(k) finds them in Python.
// Maps are flat arrays: features z are h*w rows of D numbers, images 3 planes of H*W.

const LEAVES = 40, ROUNDS = 3, POWER = .5, PRIOR = .05, DILATIONS = [8, 4, 2, 1], SHARPNESS = .1

// (D,h,w) -> (h*w,D)
export function rows(z, D) {
  const n = z.length/D, res = new Float32Array(z.length)
  for (let d = 0; d < D; d++) for (let i = 0; i < n; i++) res[i*D+d] = z[d*n+i]
  return res
}

// n cells of a map, spread evenly: the additive sequence of Roberts
function spread(n, h, w) {
  const at = (i, a) => (.5+a*i) % 1
  return Array.from({length: n}, (_, i) => Math.floor(at(i, .7548776662466927)*h)*w+Math.floor(at(i, .5698402909980532)*w))
}

// the nearest centroid of every row; returns whether any changed
function assign(z, D, mu, y) {
  const n = y.length, k = mu.length/D
  let changed = false
  const bias = Float64Array.from({length: k}, (_, c) => {
    let s = 0
    for (let d = 0; d < D; d++) s += mu[c*D+d]**2
    return s/2
  })
  for (let i = 0; i < n; i++) {
    let best = 0, top = -Infinity
    for (let c = 0; c < k; c++) {
      let s = -bias[c]
      for (let d = 0, a = i*D, b = c*D; d < D; d++) s += z[a+d]*mu[b+d]
      if (s > top) { top = s; best = c }
    }
    if (y[i] !== best) { y[i] = best; changed = true }
  }
  return changed
}

export function kmeans(z, D, h, w, k = LEAVES) {
  const n = h*w, y = new Int32Array(n).fill(-1), mu = new Float32Array(k*D), counts = new Float64Array(k)
  spread(k, h, w).forEach((i, c) => mu.set(z.subarray(i*D, i*D+D), c*D))
  for (let round = 0; ; round++) {
    const changed = assign(z, D, mu, y)
    counts.fill(0)
    for (const c of y) counts[c]++
    if (round === ROUNDS || !changed) return {mu, counts, y}
    const sums = new Float64Array(k*D)
    for (let i = 0; i < n; i++) for (let d = 0, c = y[i]*D; d < D; d++) sums[c+d] += z[i*D+d]
    for (let c = 0; c < k; c++) if (counts[c]) for (let d = 0; d < D; d++) mu[c*D+d] = sums[c*D+d]/counts[c]
  }
}

// Merge the cheapest pair of clusters, by their directions, again and again: [[a, b], ...], the i-th pair becomes node k+i
export function mergeTree(centroids, counts, D) {
  const k = counts.length, mu = Float64Array.from(centroids), n = Float64Array.from(counts), tree = []
  for (let i = 0; i < k; i++) {
    const unit = mu.subarray(i*D, i*D+D), length = Math.hypot(...unit) || 1
    for (let d = 0; d < D; d++) unit[d] /= length
  }
  const ids = Array.from({length: k}, (_, i) => i)
  for (let step = 0; step < k-1; step++) {
    let low = Infinity, pair
    for (let i = 0; i < k; i++) for (let j = i+1; j < k; j++) {
      if (ids[i] < 0 || ids[j] < 0) continue
      let d2 = 0
      for (let d = 0; d < D; d++) d2 += (mu[i*D+d]-mu[j*D+d])**2
      const cost = (n[i]+n[j] ? n[i]*n[j]/(n[i]+n[j]) : 0)**POWER*d2
      if (cost < low) { low = cost; pair = [i, j] }
    }
    const [a, b] = pair.sort((i, j) => ids[i]-ids[j]), sum = n[a]+n[b]
    tree.push([ids[a], ids[b]])
    if (sum) for (let d = 0; d < D; d++) mu[a*D+d] = (n[a]*mu[a*D+d]+n[b]*mu[b*D+d])/sum
    n[a] = sum; ids[a] = k+step; ids[b] = -1
  }
  return tree
}

// A colour for each node: where one divides, the larger part keeps it, the smaller gets the palette's next
export function nodeColors(tree, counts) {
  const n = counts.length, size = [...counts], number = new Array(2*n-1).fill(0)
  for (const [a, b] of tree) size.push(size[a]+size[b])
  for (let i = n-2, used = 1; i >= 0; i--, used++) {
    const [large, small] = [...tree[i]].sort((a, b) => size[b]-size[a])
    number[large] = number[n+i]; number[small] = used
  }
  return number
}

// Centroids, their biases and colours where K groups are left: a frequent group wins where a cell lies between two
export function cut({mu, counts, tree, colors}, D, k) {
  const n = counts.length, node = Array.from({length: n}, (_, i) => i), nodes = []
  tree.slice(0, n-k).forEach((pair, i) => node.forEach((o, j) => { if (pair.includes(o)) node[j] = n+i }))
  for (const o of node) if (!nodes.includes(o)) nodes.push(o)
  const centroids = new Float32Array(k*D), total = nodes.map(o => counts.reduce((s, c, i) => s+(node[i] === o ? c : 0), 0))
  node.forEach((o, i) => {
    const g = nodes.indexOf(o), share = counts[i]/Math.max(1, total[g])
    for (let d = 0; d < D; d++) centroids[g*D+d] += share*mu[i*D+d]
  })
  const all = total.reduce((s, o) => s+o, 0), bias = total.map(o => PRIOR*Math.log(Math.max(1, o)/all))
  return {centroids, bias, colors: nodes.map(o => colors[o])}
}

// Bilinear interpolation of one axis: for each of m places the two of n that it lies between, and how far
function between(n, m) {
  const lo = new Int32Array(m), hi = new Int32Array(m), t = new Float32Array(m)
  for (let i = 0; i < m; i++) {
    const x = Math.max(0, (i+.5)*n/m-.5)
    lo[i] = x; hi[i] = Math.min(n-1, lo[i]+1); t[i] = x-lo[i]
  }
  return [lo, hi, t]
}

// Calls f(place, scores) for every pixel of a map (h,w,K) that is enlarged to (H,W)
function enlarge(s, K, [h, w], [H, W], f) {
  const [y0, y1, ty] = between(h, H), [x0, x1, tx] = between(w, W), res = new Float32Array(K)
  for (let y = 0; y < H; y++) for (let x = 0; x < W; x++) {
    const a = (y0[y]*w+x0[x])*K, b = (y0[y]*w+x1[x])*K, c = (y1[y]*w+x0[x])*K, d = (y1[y]*w+x1[x])*K, u = tx[x], v = ty[y]
    for (let k = 0; k < K; k++) res[k] = (1-v)*((1-u)*s[a+k]+u*s[b+k])+v*((1-u)*s[c+k]+u*s[d+k])
    f(y*W+x, res)
  }
}

// Positions of the eight neighbours of every pixel at distance d, and beyond the border the border's
function neighbours(h, w, d) {
  const res = new Int32Array(8*h*w)
  let j = 0
  const at = (o, n) => Math.min(n-1, Math.max(0, o))
  for (let y = 0; y < h; y++) for (let x = 0; x < w; x++)
    for (const dy of [-d, 0, d]) for (const dx of [-d, 0, d]) if (dy || dx) res[j++] = at(y+dy, h)*w+at(x+dx, w)
  return res
}

// What the refinement needs to know of a photo (3,H,W) at the network's size: for each distance the
// neighbours of the pixels at half that size, and how much each pixel listens to them
export function listening(image, H, W) {
  const h = H/2, w = W/2, n = h*w, x = new Float32Array(3*n)
  for (let c = 0; c < 3; c++) for (let i = 0; i < h; i++) for (let j = 0; j < w; j++) {
    const a = c*H*W+2*i*W+2*j
    x[c*n+i*w+j] = (image[a]+image[a+1]+image[a+W]+image[a+W+1])/4
  }
  const near = DILATIONS.map(d => neighbours(h, w, d)), contrast = new Float32Array(3*n), many = 8*near.length
  for (let c = 0; c < 3; c++) for (let i = 0; i < n; i++) {
    let sum = 0, squares = 0
    for (const o of near) for (let j = 8*i; j < 8*i+8; j++) sum += x[c*n+o[j]]
    for (const o of near) for (let j = 8*i; j < 8*i+8; j++) squares += (x[c*n+o[j]]-sum/many)**2
    contrast[c*n+i] = SHARPNESS*Math.sqrt(squares/many)+1e-6
  }
  const weights = near.map(o => {
    const res = new Float32Array(8*n)
    for (let i = 0; i < n; i++) {
      let total = 0, top = -Infinity
      for (let j = 8*i; j < 8*i+8; j++) {
        for (let c = 0; c < 3; c++) res[j] -= Math.abs(x[c*n+o[j]]-x[c*n+i])/contrast[c*n+i]/3
        top = Math.max(top, res[j])
      }
      for (let j = 8*i; j < 8*i+8; j++) total += res[j] = Math.exp(res[j]-top)
      for (let j = 8*i; j < 8*i+8; j++) res[j] /= total
    }
    return res
  })
  return {near, weights, size: [h, w]}
}

// Let every pixel take the mean of its neighbours, above all of those of its colour
function refine(p, K, {near, weights}, rounds) {
  for (let r = 0; r < rounds; r++) {
    const o = near[r % near.length], w = weights[r % near.length], next = new Float32Array(p.length)
    for (let j = 0; j < o.length; j++) {
      const to = (j >> 3)*K, from = o[j]*K, wj = w[j]
      for (let k = 0; k < K; k++) next[to+k] += wj*p[from+k]
    }
    p = next
  }
  return p
}

// The cluster of every pixel of the photo, (H,W) uint8, from features z (h*w,D) and K centroids with biases
export function segment({z, D, size, listen, tau, rounds}, centroids, bias, full) {
  const K = centroids.length/D, n = size[0]*size[1], s = new Float32Array(n*K)
  for (let i = 0; i < n; i++) for (let k = 0; k < K; k++) {
    let dot = bias[k]
    for (let d = 0; d < D; d++) dot += z[i*D+d]*centroids[k*D+d]
    s[i*K+k] = dot/tau
  }
  let p = new Float32Array(listen.size[0]*listen.size[1]*K)
  enlarge(s, K, size, listen.size, (i, at) => {
    let top = at[0], total = 0
    for (let k = 1; k < K; k++) if (at[k] > top) top = at[k]
    for (let k = 0; k < K; k++) total += p[i*K+k] = Math.exp(at[k]-top)
    for (let k = 0; k < K; k++) p[i*K+k] /= total
  })
  p = refine(p, K, listen, rounds).map(o => Math.log(Math.max(o, 1e-6)))
  const clusters = new Uint8Array(full[0]*full[1])
  enlarge(p, K, listen.size, full, (i, at) => {
    let best = 0
    for (let k = 1; k < K; k++) if (at[k] > at[best]) best = k
    clusters[i] = best
  })
  return clusters
}
