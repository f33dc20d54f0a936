"use strict";
// The player: decodes the episodes, draws them through world.js and answers the controls.

const VIEW_COLOURS = ["#6cc0f2", "#f2a65a"]; // figures and curves of the first and second view
const state = { time: 0, playing: false, speed: 10, follow: null, trail: "recent", dirty: true, moved: false };
const element = (id) => document.getElementById(id);
const data = JSON.parse(element("data").textContent);
const views = data.views.map((view, number) => makeView(decode(view), number));
const lastStep = Math.max(...views.map((view) => view.episode.length));

function decode(view) {
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const episode = {
    ...view,
    heights: bytes(view.heights),
    coverable: bytes(view.coverable),
    seenAt: new Int16Array(bytes(view.seenAt).buffer),
    positions: new Int16Array(bytes(view.positions).buffer),
    radii: new Uint16Array(bytes(view.radii).buffer),
    marks: bytes(view.marks),
    coverage: new Float32Array(bytes(view.coverage).buffer),
  };
  episode.counts = Object.fromEntries(
    [["conflicts", CONFLICT], ["buildingHits", BUILDING], ["violations", VIOLATION]].map(
      ([name, bit]) => [name, runningCount(episode, (mark) => mark & bit)],
    ),
  );
  episode.counts.lost = runningCount(episode, (mark) => (mark & 3) === LOST);
  return episode;
}

// How many marks so far, by step.
function runningCount({ marks, drones, length }, counts) {
  const running = new Uint32Array(length + 1);
  marks.forEach((mark, index) => { if (counts(mark)) running[Math.floor(index / drones) + 1] += 1; });
  for (let step = 1; step <= length; step++) running[step] += running[step - 1];
  return running;
}

function makeView(episode, number) {
  const box = document.createElement("section");
  box.className = "view";
  box.style.setProperty("--colour", VIEW_COLOURS[number]);
  box.innerHTML = `
    <div class="card"><h2></h2>
      <div class="coverage"><b data-figure="coverage"></b><span><span class="long">of the city </span>seen</span></div>
      <div class="bar"><i></i></div>
      <dl><dt>Conflicts</dt><dd data-figure="conflicts"></dd>
        <dt>Building hits</dt><dd data-figure="buildingHits"></dd>
        <dt>Violations</dt><dd data-figure="violations"></dd>
        <dt>Lost<span class="long"> commands</span></dt><dd data-figure="lost"></dd></dl>
      <p class="more"></p></div>
    <div class="window"></div><div class="compass"><svg viewBox="-50 -50 100 100" aria-hidden="true">
      <circle r="46" fill="#161c25d6" stroke="#4a5565" stroke-width="2"/>
      <g class="north"><text y="-27" text-anchor="middle" font-size="19" fill="#fff">N</text>
        <path class="arrow" d="M-4 24 L-4 -4 L-12 -4 L0 -24 L12 -4 L4 -4 L4 24 Z" fill="#6cc0f2"/></g>
      </svg><span></span></div>`;
  box.querySelector("h2").textContent = episode.title;
  box.querySelector("h2").hidden = !episode.title;
  box.querySelector(".compass span").textContent = episode.windWords;
  const arrow = box.querySelector(".arrow");
  const [east, south] = episode.wind;
  const heading = (Math.atan2(east, -south) * 180) / Math.PI;
  arrow.setAttribute("transform", `rotate(${heading})`);
  arrow.style.display = Math.hypot(east, south) < 0.05 ? "none" : "";
  element("stage").append(box);
  return { episode, box, window: box.querySelector(".window"), world: null };
}

function figuresAt(view, time) {
  const { episode } = view;
  const step = Math.min(Math.floor(time), episode.length);
  const counts = Object.fromEntries(Object.entries(episode.counts).map(([name, run]) => [name, run[step]]));
  return { step, coverage: episode.coverage[step], ...counts };
}

function showFigures() {
  for (const view of views) {
    const now = figuresAt(view, state.time);
    const percent = `${(100 * now.coverage).toFixed(1)} %`;
    for (const place of view.box.querySelectorAll("[data-figure]")) {
      const name = place.dataset.figure;
      place.textContent = name === "coverage" ? percent : now[name];
    }
    view.box.querySelector(".bar i").style.width = percent.replace(" ", "");
    view.box.querySelector(".more").textContent = moreWords(view, now.step);
  }
  const step = Math.floor(state.time);
  element("clock").textContent = `step ${step} of ${lastStep}`;
  element("slider").value = step;
  const share = lastStep ? state.time / lastStep : 0;
  element("playhead").style.left = `calc(8px + ${share} * (100% - 16px))`;
}

function moreWords(view, step) {
  const { episode } = view;
  if (state.follow !== null && state.follow < episode.drones) {
    const at = step * episode.drones + state.follow;
    const altitude = Math.round(episode.positions[3 * at + 2] * episode.unit);
    const link = step ? episode.marks[at - episode.drones] & 3 : 0;
    return `Drone ${state.follow + 1}: ${altitude} m up, command ${["received", "lost", "late"][link]}`;
  }
  if (step === episode.length && step < lastStep) return `over after ${step} steps`;
  const kilometres = [episode.columns, episode.rows].map((cells) => +((cells * episode.cell) / 1000).toFixed(1));
  const lift = view.world && view.world.lift > 1 ? `, heights × ${view.world.lift}` : "";
  return `${episode.drones} drones, ${kilometres.join(" × ")} km${lift}`;
}

function drawChart() {
  const parts = views.flatMap(({ episode }, number) => {
    const across = (step) => (lastStep ? (1000 * step) / lastStep : 0).toFixed(1);
    const points = Array.from(episode.coverage, (share, step) => `${across(step)},${(100 - 100 * share).toFixed(1)}`);
    const ticks = [];
    const kinds = [["violations", data.palette.violation], ["buildingHits", data.palette.buildingHit], ["conflicts", data.palette.conflict]];
    for (const [name, colour] of kinds) {
      const run = episode.counts[name];
      for (let step = 1; step <= episode.length; step++) {
        if (run[step] === run[step - 1]) continue;
        const top = 100 - 12 * (views.length - number);
        ticks.push(`<line x1="${across(step)}" x2="${across(step)}" y1="${top}" y2="${top + 12}" stroke="${colour}" stroke-width="3"/>`);
      }
    }
    return [...ticks, `<polyline points="${points.join(" ")}" stroke="${VIEW_COLOURS[number]}"/>`];
  });
  element("chart").innerHTML = parts.join("");
}

function setStep(step) {
  state.time = Math.min(Math.max(Number(step) || 0, 0), lastStep);
  state.dirty = true;
  showFigures();
}

function setPlaying(playing) {
  if (playing && state.time >= lastStep) state.time = 0;
  state.playing = playing;
  state.before = undefined;
  state.dirty = true;
  element("play").textContent = playing ? "❚❚" : "▶";
  element("play").setAttribute("aria-label", playing ? "Pause" : "Play");
}

// Follows a drone (counted from 0), or shows the whole city for null.
function setFollow(drone) {
  state.follow = drone;
  element("follow").value = drone === null ? "" : String(drone);
  state.dirty = true;
  if (stage) drone === null ? showWholeCity() : approachDrone();
  showFigures();
}

function connectControls() {
  const slider = element("slider");
  slider.max = lastStep;
  slider.addEventListener("input", () => { setPlaying(false); setStep(slider.value); });
  element("play").addEventListener("click", () => setPlaying(!state.playing));
  element("back").addEventListener("click", () => { setPlaying(false); setStep(Math.ceil(state.time) - 1); });
  element("forward").addEventListener("click", () => { setPlaying(false); setStep(Math.floor(state.time) + 1); });
  element("speed").addEventListener("change", (event) => { state.speed = Number(event.target.value); });
  element("trail").addEventListener("change", (event) => { state.trail = event.target.value; state.dirty = true; });
  const drones = Math.max(...views.map((view) => view.episode.drones));
  for (let drone = 0; drone < drones; drone++) element("follow").append(new Option(`drone ${drone + 1}`, drone));
  element("follow").addEventListener("change", (event) => {
    setFollow(event.target.value === "" ? null : Number(event.target.value));
  });
  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select, button, summary")) return;
    const jump = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (jump) { setPlaying(false); setStep(Math.floor(state.time) + jump); }
    if (event.key === " ") { event.preventDefault(); setPlaying(!state.playing); }
  });
  // A quick run lasts about half a minute.
  const wished = lastStep / 30;
  state.speed = [2, 5, 10, 20, 40].find((speed) => speed >= wished) ?? 40;
  element("speed").value = state.speed;
  element("legend").open = views.length === 1 && window.innerWidth > 1000 && window.innerHeight > 640;
}

// --- the picture ------------------------------------------------------------------------------

const stage = makeStage();

function makeStage() {
  try {
    const renderer = new THREE.WebGLRenderer({ canvas: element("canvas"), antialias: true });
    renderer.setScissorTest(true);
    for (const view of views) view.world = makeWorld(view.episode, data.palette);
    const extent = Math.max(...views.map((view) => view.world.extent));
    const camera = new THREE.PerspectiveCamera(FIELD_OF_VIEW, 1, extent / 500, extent * 20);
    const controls = new THREE.OrbitControls(camera, renderer.domElement);
    Object.assign(controls, { enableDamping: true, dampingFactor: 0.12, maxPolarAngle: 1.5 });
    Object.assign(controls, { minDistance: extent / 60, maxDistance: extent * 5 });
    controls.addEventListener("change", () => { state.dirty = true; });
    controls.addEventListener("start", () => { state.moved = true; });
    return { renderer, camera, controls, extent };
  } catch (error) {
    const notice = element("notice");
    notice.textContent = "This browser cannot draw in 3-D (WebGL is missing). The figures below still run.";
    notice.hidden = false;
    return null;
  }
}

// The part of the canvas that belongs to a view, in CSS pixels from the top left.
function viewport(view) {
  const outer = element("stage").getBoundingClientRect(), box = view.window.getBoundingClientRect();
  return { left: box.left - outer.left, top: box.top - outer.top, width: box.width, height: box.height };
}

// Puts the camera where the whole city fits into the first view, seen from the south.
function showWholeCity() {
  const { camera, controls } = stage;
  const { width, height } = viewport(views[0]);
  const { width: wide, length: long } = views[0].world;
  // Figures and key cover the sides of a large picture.
  const free = document.body.classList.contains("compact") ? width : Math.max(width - 420, 0.6 * width);
  const up = Math.tan((FIELD_OF_VIEW * Math.PI) / 360), across = (up * free) / height;
  const tilt = ((width < height ? 66 : 55) * Math.PI) / 180;
  // The near edge looks larger than the far one, so the middle of the picture lies a little south.
  const south = 0.07 * long, near = long / 2 - south;
  const high = (near * Math.sin(tilt)) / up + near * Math.cos(tilt);
  const distance = 1.06 * Math.max(high, wide / 2 / across + near * Math.cos(tilt));
  controls.target.set(0, 0, south);
  camera.position.set(0, distance * Math.sin(tilt), south + distance * Math.cos(tilt));
  state.moved = false;
  controls.update();
}

function approachDrone() {
  const { camera, controls, extent } = stage;
  const place = followed(views[0]);
  if (!place) return;
  const turn = controls.getAzimuthalAngle(), tilt = 0.75;
  const away = new THREE.Vector3(Math.sin(turn), Math.tan(tilt), Math.cos(turn));
  away.setLength(Math.max(extent * 0.16, 400));
  controls.target.copy(place);
  camera.position.copy(place).add(away);
  state.moved = true;
}

function followed(view) {
  return state.follow === null ? null : view.world.drones.places[state.follow] ?? null;
}

function resize() {
  const small = window.innerWidth <= 700 || window.innerHeight <= 480;
  document.body.classList.toggle("compact", small || views.length > 1);
  if (!stage) return;
  const { width, height } = element("stage").getBoundingClientRect();
  stage.renderer.setPixelRatio(Math.min(window.devicePixelRatio || 1, 2));
  stage.renderer.setSize(width, height, false);
  if (!state.moved) showWholeCity();
  state.dirty = true;
}

function draw() {
  const { renderer, camera, controls } = stage;
  for (const view of views) updateWorld(view.world, state.time, state.trail);
  const leader = followed(views[0]);
  if (leader) {
    camera.position.add(leader).sub(controls.target);
    controls.target.copy(leader);
  }
  controls.update();
  const full = element("stage").getBoundingClientRect().height;
  for (const view of views) {
    const { left, top, width, height } = viewport(view);
    // Each view looks at its own drone, from the same side.
    const shift = leader && followed(view) ? followed(view).clone().sub(leader) : new THREE.Vector3();
    camera.position.add(shift);
    camera.aspect = width / height;
    camera.updateProjectionMatrix();
    camera.updateMatrixWorld();
    faceCamera(view.world, camera, width, height);
    renderer.setViewport(left, full - top - height, width, height);
    renderer.setScissor(left, full - top - height, width, height);
    renderer.render(view.world.scene, camera);
    camera.position.sub(shift);
  }
  const turn = (controls.getAzimuthalAngle() * 180) / Math.PI;
  for (const view of views) view.box.querySelector(".north").setAttribute("transform", `rotate(${turn})`);
}

function tick(now) {
  requestAnimationFrame(tick);
  if (state.playing) {
    const seconds = Math.min((now - (state.before ?? now)) / 1000, 0.25);
    state.before = now;
    setStep(state.time + seconds * state.speed);
    if (state.time >= lastStep) setPlaying(false);
  }
  if (!stage) return;
  if (stage.controls.enabled) stage.controls.update();
  if (state.dirty) {
    state.dirty = false;
    draw();
  }
}

// A tap near a drone follows it; a drag does not.
function connectTaps() {
  const canvas = element("canvas");
  let down = null;
  canvas.addEventListener("pointerdown", (event) => { down = [event.clientX, event.clientY]; });
  canvas.addEventListener("pointerup", (event) => {
    if (!down || Math.hypot(event.clientX - down[0], event.clientY - down[1]) > 6) return;
    const hit = droneAt(event.clientX, event.clientY);
    if (hit !== null) setFollow(hit);
  });
}

function droneAt(x, y) {
  let nearest = 26, hit = null;
  for (const view of views) {
    const box = view.window.getBoundingClientRect();
    if (x < box.left || x > box.right || y < box.top || y > box.bottom) continue;
    stage.camera.aspect = box.width / box.height;
    stage.camera.updateProjectionMatrix();
    view.world.drones.places.forEach((place, drone) => {
      const seen = place.clone().project(stage.camera);
      const left = box.left + ((seen.x + 1) / 2) * box.width, top = box.top + ((1 - seen.y) / 2) * box.height;
      const distance = Math.hypot(left - x, top - y);
      if (distance < nearest) [nearest, hit] = [distance, drone];
    });
  }
  return hit;
}

connectControls();
drawChart();
if (stage) connectTaps();
window.addEventListener("resize", resize);
new ResizeObserver(resize).observe(element("stage"));
resize();
setStep(0);
requestAnimationFrame(tick);

window.replay = {
  setStep,
  play: () => setPlaying(true),
  pause: () => setPlaying(false),
  follow: setFollow,
  figures: (view = 0) => figuresAt(views[view], state.time),
  get step() { return Math.floor(state.time); },
  get playing() { return state.playing; },
  get length() { return lastStep; },
  get views() { return views.length; },
  get ready() { return stage !== null; },
};
