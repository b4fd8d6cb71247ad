"use strict";
const el = (id) => document.getElementById(id);
const KINDS = ["queue", "decode", "model", "network"];
const MEANS = { queue: "waiting", decode: "decoding", model: "model", network: "network and browser" };
let models = [];
let key = "";
let shown = null; // the object URL of the photo on show
let latest = 0; // answers to earlier photos are dropped
let last = null; // the photo to send again once the key is there

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

function bar(parts, label) {
  const ns = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(ns, "svg");
  svg.setAttribute("viewBox", "0 0 100 1");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  let x = 0;
  for (const [kind, share] of parts) {
    const rect = document.createElementNS(ns, "rect");
    rect.setAttribute("x", x);
    rect.setAttribute("width", Math.max(0, 100 * share));
    rect.setAttribute("height", 1);
    if (kind) rect.setAttribute("class", kind);
    svg.append(rect);
    x += 100 * share;
  }
  const holder = make("span", { className: "bar" }, svg);
  if (label) holder.title = label;
  return holder;
}

const headers = (more = {}) => (key ? { ...more, Authorization: "Bearer " + key } : more);
const say = (text) => { el("status").textContent = text; };
const complain = (text) => { el("error").textContent = text; };

async function greet() {
  try {
    const response = await fetch("info", { headers: headers() });
    if (response.status === 401) return askForKey();
    const info = await response.json();
    models = info.models.map((model) => model.name);
    el("models").textContent = info.models
      .map((model) => model.architecture ? `${model.name}: ${model.architecture}, ${model.format}, ${model.classes} classes` : model.name)
      .join(" · ");
    if (!info.ready) {
      el("models").textContent += " (loading …)";
      setTimeout(greet, 1000);
    }
  } catch {
    el("models").textContent = "The server does not answer.";
    setTimeout(greet, 3000);
  }
}

function askForKey() {
  el("models").textContent = "This server needs an API key.";
  el("key").hidden = false;
  el("key-text").focus();
}

async function offerSamples() {
  const samples = await (await fetch("samples")).json();
  for (const sample of samples) {
    const button = make("button", { type: "button" }, make("img", { src: sample.url, alt: "" }), sample.name);
    button.addEventListener("click", async () => show(await (await fetch(sample.url)).blob(), sample.name));
    el("samples").querySelector("ul").append(make("li", {}, button));
  }
  el("samples").hidden = samples.length === 0;
}

async function classify(photo, name) {
  const started = performance.now();
  const response = await fetch("predict?top_k=5&model=" + encodeURIComponent(name), {
    method: "POST", body: photo, headers: headers({ "Content-Type": photo.type || "application/octet-stream" }),
  });
  const answer = await response.json();
  const total = performance.now() - started;
  if (response.status === 401) askForKey();
  if (!response.ok) throw new Error(answer.error);
  const times = Object.fromEntries([...(response.headers.get("Server-Timing") || "").matchAll(/(\w+);dur=([\d.]+)/g)].map((m) => [m[1], Number(m[2])]));
  times.network = Math.max(0, total - (times.queue || 0) - (times.decode || 0) - (times.model || 0));
  return { name, answer, times, total };
}

const ms = (value) => (value < 10 ? value.toFixed(1) : value.toFixed(0)) + " ms";
const percent = (score) => (score >= 0.9995 || score < 0.0005 ? (100 * score).toFixed(0) : (100 * score).toFixed(1)) + " %";

function card({ name, answer, times, total }) {
  const list = make("ol", {}, ...answer.map(({ label, score }) => make("li", {},
    make("p", {}, make("span", { textContent: label }), make("span", { textContent: percent(score) })), bar([["", score]]))));
  const parts = make("dl");
  for (const kind of KINDS) {
    parts.append(make("span", { className: "dot " + kind }), make("dt", { textContent: MEANS[kind] }), make("dd", { textContent: ms(times[kind] || 0) }));
  }
  return make("article", { className: "answer" }, make("h3", { textContent: name }), list,
    make("div", { className: "times" }, make("p", { textContent: `Answered in ${ms(total)}` }),
      bar(KINDS.map((kind) => [kind, (times[kind] || 0) / total])), parts));
}

function verdict(found) {
  if (found.length < 2) return [];
  const first = found.map((one) => one.answer[0].label);
  const same = first.every((label) => label === first[0]);
  const text = same ? `${found.length === 2 ? "Both" : "All"} say ${first[0]}.` : "They differ: " + found.map((one, i) => `${one.name} says ${first[i]}`).join(", ") + ".";
  return [make("p", { className: "verdict", textContent: text })];
}

async function show(photo, name) {
  const turn = ++latest;
  last = [photo, name];
  complain("");
  if (shown) URL.revokeObjectURL(shown);
  shown = URL.createObjectURL(photo);
  el("photo").src = shown;
  el("photo-name").textContent = name || "your photo";
  el("outcome").hidden = false;
  el("answers").classList.add("busy");
  say("Classifying …");
  try {
    const found = [];
    for (const model of models) { // one after the other, so that neither slows the other down
      found.push(await classify(photo, model));
      if (turn !== latest) return;
    }
    el("answers").replaceChildren(...verdict(found), ...found.map(card));
    el("answers").classList.remove("busy");
    say(found.map((one) => `${one.name}: ${one.answer[0].label}, ${percent(one.answer[0].score)}`).join("; "));
    el("outcome").scrollIntoView({ block: "nearest" });
  } catch (error) {
    if (turn !== latest) return;
    el("answers").replaceChildren();
    el("answers").classList.remove("busy");
    say("");
    complain(error.message);
  }
}

function accept(files) {
  const file = [...files].find((one) => one.type.startsWith("image/")) || files[0];
  if (file) show(file, file.name);
}

for (const [button, input] of [["choose", "file"], ["photograph", "camera"]]) {
  el(button).addEventListener("click", () => el(input).click());
  el(input).addEventListener("change", () => { accept(el(input).files); el(input).value = ""; });
}
el("key").addEventListener("submit", (event) => {
  event.preventDefault();
  key = el("key-text").value;
  el("key").hidden = true;
  greet().then(() => { if (last) show(...last); });
});
addEventListener("dragover", (event) => { event.preventDefault(); el("drop").classList.add("over"); });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) el("drop").classList.remove("over"); });
addEventListener("drop", (event) => { event.preventDefault(); el("drop").classList.remove("over"); accept(event.dataTransfer.files); });
addEventListener("paste", (event) => { if (event.clipboardData.files.length) { event.preventDefault(); accept(event.clipboardData.files); } });
el("photo").addEventListener("error", () => { el("photo-name").textContent += " (this browser cannot show it)"; });
greet();
offerSamples().catch(() => {});
