"use strict";
// The explorer: weights on the corners -> their mix on a canvas, and the classes' probabilities
// there, interpolated on the lattice that lattice.py classified.

function choose(n, k) {
  let found = 1;
  for (let i = 1; i <= k; i++) found = (found * (n - k + i)) / i;
  return Math.round(found);
}

// Kuhn's triangulation of the simplex, in the partial sums of the weights: the lattice points
// around a mix, and each one's share in it.
function cell(weights, steps) {
  const sums = [], rests = [];
  let total = 0;
  for (let j = 0; j < weights.length - 1; j++) {
    total += weights[j];
    const place = Math.min(total * steps, steps);
    sums.push(Math.floor(place));
    rests.push(place - sums[j]);
  }
  const order = [...rests.keys()].sort((a, b) => rests[b] - rests[a] || b - a);
  const found = [];
  for (let k = 0; k <= order.length; k++) {
    if (k > 0) sums[order[k - 1]] += 1;
    const share = (k > 0 ? rests[order[k - 1]] : 1) - (k < order.length ? rests[order[k]] : 0);
    if (share > 0) {
      const rank = sums.reduce((sum, value, j) => sum + choose(value + j, j + 1), 0);
      found.push([rank, share]);
    }
  }
  return found;
}

function interpolated(weights, data) {
  const count = data.classes.length, found = new Array(count).fill(0);
  for (const [rank, share] of cell(weights, data.steps))
    for (let k = 0; k < count; k++)
      found[k] += (share * data.values[rank * count + k]) / data.scale;
  return found;
}

// Wachspress's coordinates of a point in a convex polygon: positive inside, exact at the corners.
function wachspress(point, polygon) {
  const count = polygon.length;
  if (count === 2) {
    const [a, b] = polygon, dx = b[0] - a[0], dy = b[1] - a[1];
    const along = ((point[0] - a[0]) * dx + (point[1] - a[1]) * dy) / (dx * dx + dy * dy);
    const share = Math.min(1, Math.max(0, along));
    return [1 - share, share];
  }
  const areas = polygon.map((a, i) => {
    const b = polygon[(i + 1) % count];
    return Math.max(0, (a[0] - point[0]) * (b[1] - point[1]) - (a[1] - point[1]) * (b[0] - point[0]));
  });
  const largest = Math.max(...areas);
  const weights = polygon.map((_, i) => areas.reduce(
    (product, area, j) => (j === i || j === (i + count - 1) % count ? product : (product * area) / largest), 1));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return weights.map((weight) => weight / total);
}

// The nearest point of a convex polygon.
function into(point, polygon) {
  let inside = polygon.length > 2, best = null, least = Infinity;
  polygon.forEach((a, i) => {
    const b = polygon[(i + 1) % polygon.length], dx = b[0] - a[0], dy = b[1] - a[1];
    if (dx * (point[1] - a[1]) - dy * (point[0] - a[0]) < 0) inside = false;
    const along = ((point[0] - a[0]) * dx + (point[1] - a[1]) * dy) / (dx * dx + dy * dy);
    const t = Math.min(1, Math.max(0, along)), x = a[0] + t * dx, y = a[1] + t * dy;
    const distance = (x - point[0]) ** 2 + (y - point[1]) ** 2;
    if (distance < least) [least, best] = [distance, [x, y]];
  });
  return inside ? point : best;
}

// One corner's weight set, the others' kept in proportion.
function withWeight(weights, index, value) {
  const rest = 1 - weights[index];
  return weights.map((weight, i) => i === index ? value
    : rest > 1e-9 ? (weight * (1 - value)) / rest : (1 - value) / (weights.length - 1));
}

function pixelsOf(image) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

function start(data, images) {
  const section = document.getElementById("explorer"), find = (name) => section.querySelector(name);
  const make = (name, attributes, parent, svg) => {
    const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    return parent.appendChild(element);
  };
  const count = images.length, planes = images.map((image) => pixelsOf(image));
  const canvas = find("canvas"), context = canvas.getContext("2d");
  const [width, height] = [planes[0].width, planes[0].height];
  [canvas.width, canvas.height] = [width, height];
  const picture = context.createImageData(width, height), sum = new Float32Array(width * height * 4);

  // The polygon, clockwise on the screen from the top; two corners make a segment.
  const svg = find("svg"), radius = 112, thumb = count <= 8 ? 54 : count <= 16 ? 34 : 0;
  const angle = (i) => count === 2 ? Math.PI * (1 - i) : (2 * Math.PI * i) / count - Math.PI / 2;
  const at = (i, r) => [r * Math.cos(angle(i)), r * Math.sin(angle(i))];
  const polygon = images.map((_, i) => at(i, radius));
  make("polygon", { class: "inside", points: polygon.map((p) => p.join()).join(" ") }, svg, true);
  const spokes = polygon.map((p) => make("line", { class: "spoke", x2: p[0], y2: p[1] }, svg, true));
  polygon.forEach((_, i) => {
    const [x, y] = at(i, radius + thumb / 2 + 14);
    if (thumb) {
      const box = { x: x - thumb / 2, y: y - thumb / 2, width: thumb, height: thumb, href: images[i].src };
      make("image", { ...box, preserveAspectRatio: "xMidYMid meet" }, svg, true);
    }
    if (thumb !== 34)
      make("text", { x, y: y + (thumb ? thumb / 2 + 12 : 4) }, svg, true).textContent =
        thumb ? data.corners[i] : data.corners[i].replace("corner ", "");
  });
  const handle = make("circle", { class: "handle", r: 10, tabindex: 0, role: "slider",
    "aria-label": "mix of the corners; arrow keys move it", "aria-valuenow": 0 }, svg, true);

  const sliders = data.corners.map((name) => {
    const label = make("label", {}, find(".sliders"));
    make("span", {}, label).textContent = name;
    const range = make("input", { type: "range", min: 0, max: 1, step: 0.001 }, label);
    return { range, shown: make("output", {}, label) };
  });
  const bars = data.classes.slice(0, 5).map((name) => {
    const bar = make("div", { class: "bar" }, find(".bars"));
    const label = make("span", { title: name }, bar);
    label.textContent = name;
    return { shown: make("span", {}, bar), filled: make("b", {}, make("i", {}, bar)) };
  });

  let weights = [], place = [0, 0], due = false;
  const percent = (share) => (100 * share).toFixed(1) + " %";
  function draw() {
    due = false;
    sum.fill(0);
    planes.forEach((plane, i) => {
      const weight = weights[i], pixels = plane.data;
      if (weight > 0) for (let k = 0; k < sum.length; k++) sum[k] += weight * pixels[k];
    });
    picture.data.set(sum);
    context.putImageData(picture, 0, 0);
    const found = interpolated(weights, data), top = found.indexOf(Math.max(...found));
    const named = find(".class");
    if (named) named.textContent = data.classes[top];
    find(".probability").textContent = found[0].toFixed(4);
    bars.forEach((bar, k) => {
      bar.shown.textContent = percent(found[k]);
      bar.filled.style.transform = `scaleX(${Math.min(1, found[k])})`;
    });
    sliders.forEach((slider, i) => {
      slider.range.value = weights[i];
      slider.shown.textContent = percent(weights[i]);
      spokes[i].setAttribute("x1", place[0]);
      spokes[i].setAttribute("y1", place[1]);
      spokes[i].style.strokeWidth = 7 * weights[i];
      spokes[i].style.opacity = 0.12 + 0.5 * weights[i];
    });
    handle.setAttribute("cx", place[0]);
    handle.setAttribute("cy", place[1]);
    handle.setAttribute("aria-valuetext", `${data.classes[top]}, ${percent(found[top])}`);
  }
  const show = () => { if (!due) { due = true; requestAnimationFrame(draw); } };
  function toWeights(next) {
    weights = next;
    place = [0, 1].map((axis) => polygon.reduce((sum, p, i) => sum + next[i] * p[axis], 0));
    show();
  }
  function toPlace(next) {
    place = into(next, polygon);
    weights = wachspress(place, polygon);
    show();
  }
  function pointed(event) {
    const p = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    toPlace([p.x, p.y]);
  }
  svg.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    svg.setPointerCapture(event.pointerId);
    handle.focus({ preventScroll: true });
    pointed(event);
  });
  svg.addEventListener("pointermove", (event) => {
    if (svg.hasPointerCapture(event.pointerId)) pointed(event);
  });
  handle.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!move) return;
    event.preventDefault();
    toPlace([place[0] + 4 * move[0], place[1] + 4 * move[1]]);
  });
  sliders.forEach((slider, i) => slider.range.addEventListener("input", () => {
    toWeights(withWeight(weights, i, Number(slider.range.value)));
  }));
  const centre = new Array(count).fill(1 / count);
  const actions = {
    centre: () => toWeights(centre),
    random: () => {
      const draws = centre.map(() => -Math.log(1 - Math.random())), total = draws.reduce((a, b) => a + b);
      toWeights(draws.map((value) => value / total));
    },
    worst: () => toWeights(data.worst),
    worst_features: () => toWeights(data.worst_features),
  };
  for (const button of section.querySelectorAll("button")) button.addEventListener("click", actions[button.name]);
  toWeights(centre);
  section.hidden = false;
}

{
  const data = JSON.parse(document.getElementById("explorer-data").textContent);
  const images = [...document.querySelectorAll("img.corner")];
  Promise.all(images.map((image) => image.decode())).then(() => start(data, images));
}
