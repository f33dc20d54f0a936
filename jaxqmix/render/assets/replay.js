"use strict";
// The player: decodes the episodes, draws them through world.js and answers the controls.

const state = {
  time: 0,
  playing: false,
  speed: 10,
  follow: null,
  trail: "recent",
  dirty: true,
  moved: false,
};
const element = (id) => document.getElementById(id);
const data = JSON.parse(element("data").textContent);
const names = nameViews(data.views.map((view) => view.title));
const views = data.views.map((view, number) => makeView(decode(view), number));
const lastStep = Math.max(...views.map((view) => view.episode.length));
let theme = readTheme();

// The colours of the present theme, which the style sheet holds: {name: colour}.
function readTheme() {
  const style = getComputedStyle(document.documentElement);
  return Object.fromEntries(
    data.colours.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]),
  );
}

// What the views are called where they have no titles, or the same.
function nameViews(titles) {
  if (titles.length < 2) return [titles[0] || "Replay"];
  if (!titles[0] && !titles[1]) return ["left", "right"];
  if (titles[0] === titles[1]) return [`${titles[0]} (left)`, `${titles[1]} (right)`];
  return [titles[0] || "left", titles[1] || "right"];
}

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
    [
      ["conflicts", CONFLICT],
      ["buildingHits", BUILDING],
      ["violations", VIOLATION],
    ].map(([name, bit]) => [name, runningCount(episode, (mark) => mark & bit)]),
  );
  episode.counts.lost = runningCount(episode, (mark) => (mark & 3) === LOST);
  return episode;
}

// How many marks so far, by step.
function runningCount({ marks, drones, length }, counts) {
  const running = new Uint32Array(length + 1);
  marks.forEach((mark, index) => {
    if (counts(mark)) running[Math.floor(index / drones) + 1] += 1;
  });
  for (let step = 1; step <= length; step++) running[step] += running[step - 1];
  return running;
}

// An element of a kind with words in it, which never become markup.
function create(kind, words = "", properties = {}) {
  const node = Object.assign(document.createElement(kind), properties);
  node.textContent = words;
  return node;
}

function makeView(episode, number) {
  const box = create("section", "", { className: "view" });
  const colour = ["first", "second"][number];
  box.style.setProperty("--colour", `var(--${colour})`);
  const view = {
    episode,
    box,
    colour,
    name: names[number],
    window: create("div", "", { className: "window" }),
    world: null,
  };
  if (data.views.length > 1) {
    const heading = create("h2");
    view.live = create("b");
    heading.append(create("span", view.name), view.live);
    box.append(heading);
  }
  box.append(view.window);
  element("stage").append(box);
  return view;
}

// --- words and figures ------------------------------------------------------------------------

const FIGURES = [
  ["coverage", "Seen", (now) => percent(now.coverage)],
  ["at90", "90 % at step", (now) => now.at90],
  ["conflicts", "Conflicts", (now) => now.conflicts],
  ["buildingHits", "Building hits", (now) => now.buildingHits],
  ["violations", "No-fly entries", (now) => now.violations],
  ["lost", "Lost commands", (now) => now.lost],
];

function makePanel() {
  const title =
    views.length > 1 ? `${names[0]} and ${names[1]}` : data.views[0].title || "A swarm sees a city";
  element("title").textContent = title;
  element("verdict").textContent = verdictWords();
  element("outcome").textContent = verdictWords();
  const table = element("figures");
  table.classList.toggle("two", views.length > 1);
  if (views.length > 1) {
    const head = table.createTHead().insertRow();
    head.append(create("th"));
    for (const view of views) {
      const cell = create("td", "", { title: view.name });
      const dot = create("i", "", { className: "dot" });
      dot.style.background = `var(--${view.colour})`;
      cell.append(dot, view.name);
      head.append(cell);
    }
  }
  const body = table.createTBody();
  for (const [name, words] of FIGURES) {
    const row = body.insertRow();
    row.className = name;
    row.append(create("th", words));
    views.forEach((_, view) => {
      const cell = create("td");
      Object.assign(cell.dataset, { figure: name, view });
      row.append(cell);
    });
  }
  const [east, south] = data.views[0].wind;
  element("wind-words").textContent = data.views[0].windWords;
  const arrow = element("wind").querySelector(".arrow");
  arrow.setAttribute("transform", `rotate(${(Math.atan2(east, -south) * 180) / Math.PI})`);
  arrow.style.display = Math.hypot(east, south) < 0.05 ? "none" : "";
}

// Who was sooner and by how much; for one episode, when it had seen what.
function verdictWords() {
  const ends = views.map(({ name, episode }) => ({
    name,
    at: stepOf(episode, 0.9),
    steps: episode.length,
    coverage: episode.coverage[episode.length],
  }));
  const [one, two] = ends;
  if (!two) {
    const end = `It ends after ${one.steps} steps with ${percent(one.coverage)}.`;
    return one.at === null
      ? `90\u00a0% was never seen. ${end}`
      : `90\u00a0% seen after ${one.at} steps. ${end}`;
  }
  if (one.at === null && two.at === null) {
    const points = 100 * (one.coverage - two.coverage);
    const more = points >= 0 ? one : two;
    return `Neither has seen 90\u00a0%. At the end ${more.name} has seen ${Math.abs(points).toFixed(1)} points more: ${percent(one.coverage)} and ${percent(two.coverage)}.`;
  }
  if (one.at === two.at) return `Both have seen 90\u00a0% after ${one.at} steps.`;
  const [soon, late] =
    two.at === null || (one.at !== null && one.at < two.at) ? [one, two] : [two, one];
  if (late.at === null)
    return `${soon.name} has seen 90\u00a0% after ${soon.at} steps; ${late.name} never, with ${percent(late.coverage)} at the end.`;
  const steps = late.at - soon.at;
  return `${soon.name} is ${steps} ${steps === 1 ? "step" : "steps"} (${Math.round((100 * steps) / late.at)}\u00a0%) sooner: it has seen 90\u00a0% after ${soon.at} steps, ${late.name} after ${late.at}.`;
}

function figuresAt(view, time) {
  const { episode } = view;
  const step = Math.min(Math.floor(time), episode.length),
    reached = stepOf(episode, 0.9);
  const counts = Object.fromEntries(
    Object.entries(episode.counts).map(([name, run]) => [name, run[step]]),
  );
  return {
    step,
    coverage: episode.coverage[step],
    at90: reached !== null && reached <= step ? reached : "–",
    ...counts,
  };
}

function showFigures() {
  const step = Math.floor(state.time);
  views.forEach((view, number) => {
    const now = figuresAt(view, state.time);
    for (const [name, , words] of FIGURES) {
      document.querySelector(`[data-figure="${name}"][data-view="${number}"]`).textContent =
        words(now);
    }
    if (view.live)
      view.live.textContent = `${percent(now.coverage)}${step > now.step ? `, over after ${now.step} steps` : ""}`;
  });
  element("more").textContent = moreWords();
  element("outcome").hidden = !(lastStep && state.time >= lastStep);
  element("clock").textContent = `step ${step} of ${lastStep}`;
  element("slider").value = step;
  element("slider").setAttribute("aria-valuetext", stepWords(views, step).join("; "));
  const share = lastStep ? state.time / lastStep : 0;
  element("playhead").style.left =
    `calc(var(--left) + ${share} * (100% - var(--left) - var(--right)))`;
}

function moreWords() {
  const { episode, world } = views[0];
  if (state.follow !== null) {
    return views
      .filter((view) => state.follow < view.episode.drones)
      .map((view) => {
        const { episode, name } = view,
          { step } = figuresAt(view, state.time);
        const at = step * episode.drones + state.follow;
        const altitude = Math.round(episode.positions[3 * at + 2] * episode.unit);
        const link = step ? episode.marks[at - episode.drones] & 3 : 0;
        return `Drone ${state.follow + 1}${views.length > 1 ? ` of ${name}` : ""}: ${altitude} m up, command ${["received", "lost", "late"][link]}.`;
      })
      .join(" ");
  }
  const kilometres = [episode.columns, episode.rows].map(
    (cells) => +((cells * episode.cell) / 1000).toFixed(1),
  );
  const lift = world && world.lift > 1 ? `, heights\u00a0×\u00a0${world.lift}` : "";
  return `${episode.drones} drones, ${kilometres.join(" × ")} km${lift}`;
}

// --- the controls -----------------------------------------------------------------------------

function setStep(step) {
  state.time = Math.min(Math.max(Number(step) || 0, 0), lastStep);
  state.dirty = true;
  showFigures();
}

function goTo(step) {
  setPlaying(false);
  setStep(step);
}

function setPlaying(playing) {
  if (playing && state.time >= lastStep) state.time = 0;
  state.playing = playing;
  state.before = undefined;
  state.dirty = true;
  element("play").classList.toggle("playing", playing);
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

function setTrail(trail) {
  state.trail = element("trail").value = trail;
  state.dirty = true;
}

// A line over the picture that goes by itself.
function say(words) {
  const notice = element("notice");
  notice.textContent = words;
  notice.hidden = false;
  clearTimeout(say.timer);
  say.timer = setTimeout(() => {
    notice.hidden = true;
  }, 4000);
}

function toggleFull() {
  if (document.fullscreenElement) document.exitFullscreen();
  else
    document.documentElement
      .requestFullscreen?.()
      .catch(() => say("This page may not fill the screen here."));
}

function toggleHelp() {
  const phone = document.body.classList.contains("phone");
  const open = phone ? document.body.classList.toggle("helping") : !element("keys").open;
  element("legend").open = element("keys").open = open;
  if (!phone) element("legend").open = true;
  if (open) element("keys").scrollIntoView({ block: "nearest" });
}

// A link that opens this page at this step, with the same drone followed.
function copyLink() {
  const parts = [`step=${Math.floor(state.time)}`];
  if (state.follow !== null) parts.push(`follow=${state.follow + 1}`);
  if (state.trail !== "recent") parts.push(`trail=${state.trail}`);
  if (location.protocol === "about:") return say("Links need the replay in a file of its own.");
  history.replaceState(null, "", `#${parts.join("&")}`);
  const done = () => say("The link to this step is in the address bar and copied.");
  const failed = () => say("The link to this step is in the address bar.");
  if (navigator.clipboard) navigator.clipboard.writeText(location.href).then(done, failed);
  else failed();
}

function readLink() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const follow = Number(parts.get("follow"));
  const drones = Math.max(...views.map((view) => view.episode.drones));
  if (["recent", "whole", "none"].includes(parts.get("trail"))) setTrail(parts.get("trail"));
  if (Number.isInteger(follow) && follow >= 1 && follow <= drones) setFollow(follow - 1);
  if (parts.has("step")) goTo(Math.floor(Number(parts.get("step"))));
}

// The picture as a PNG, with title, figures and verdict above it.
function savePicture() {
  if (!stage) return;
  draw();
  const source = stage.renderer.domElement,
    scale = source.width / source.clientWidth;
  const canvas = document.createElement("canvas"),
    pen = canvas.getContext("2d"),
    head = 58 * scale;
  Object.assign(canvas, { width: source.width, height: source.height + head });
  const { sky, ink, soft, panel } = theme;
  pen.fillStyle = sky;
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(source, 0, head);
  pen.fillStyle = panel;
  pen.fillRect(0, 0, canvas.width, head);
  const line = (words, y, size, colour) => {
    Object.assign(pen, { font: `${size * scale}px system-ui, sans-serif`, fillStyle: colour });
    pen.fillText(words, 14 * scale, y * scale, canvas.width - 28 * scale);
  };
  const step = Math.floor(state.time);
  line(`${element("title").textContent}, step ${step} of ${lastStep}`, 24, 17, ink);
  line(stepWords(views, step).slice(1).join("   ") + `   ${data.views[0].windWords}`, 46, 13, soft);
  views.forEach((view) => {
    if (views.length < 2) return;
    const { left, top } = viewport(view);
    pen.fillStyle = theme[view.colour];
    pen.font = `600 ${14 * scale}px system-ui, sans-serif`;
    pen.fillText(view.name, (left + 14) * scale, head + (top - 8) * scale);
  });
  canvas.toBlob((blob) => {
    const link = create("a", "", {
      href: URL.createObjectURL(blob),
      download: `replay-step-${step}.png`,
    });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }, "image/png");
}

const ACTIONS = {
  first: () => goTo(0),
  back10: () => goTo(Math.ceil(state.time) - 10),
  back: () => goTo(Math.ceil(state.time) - 1),
  play: () => setPlaying(!state.playing),
  forward: () => goTo(Math.floor(state.time) + 1),
  forward10: () => goTo(Math.floor(state.time) + 10),
  last: () => goTo(lastStep),
  reset: () => setFollow(null),
  full: toggleFull,
  picture: savePicture,
  link: copyLink,
  help: toggleHelp,
};
const KEYS = {
  Home: "first",
  End: "last",
  PageUp: "back10",
  PageDown: "forward10",
  ArrowLeft: "back",
  ArrowRight: "forward",
  " ": "play",
  r: "reset",
  f: "full",
  s: "picture",
  l: "link",
  "?": "help",
};

function answerKey(event) {
  const action = KEYS[event.key.length > 1 ? event.key : event.key.toLowerCase()];
  if (!action || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select"))
    return;
  // What has the focus answers its own keys.
  if (event.target.matches("button, summary") && event.key === " ") return;
  if (event.target.matches("input") && event.key.length > 1) return;
  event.preventDefault();
  ACTIONS[action]();
}

function connectControls() {
  const slider = element("slider");
  slider.max = lastStep;
  slider.addEventListener("input", () => goTo(slider.value));
  for (const [name, action] of Object.entries(ACTIONS)) {
    element(name).addEventListener("click", action);
    element(name).setAttribute("aria-label", element(name).title);
  }
  element("speed").addEventListener("change", (event) => {
    state.speed = Number(event.target.value);
  });
  element("trail").addEventListener("change", (event) => setTrail(event.target.value));
  const drones = Math.max(...views.map((view) => view.episode.drones));
  for (let drone = 0; drone < drones; drone++)
    element("follow").append(new Option(`drone ${drone + 1}`, drone));
  element("follow").addEventListener("change", (event) => {
    setFollow(event.target.value === "" ? null : Number(event.target.value));
  });
  document.addEventListener("keydown", answerKey);
  // A quick run lasts about half a minute.
  const wished = lastStep / 30;
  state.speed = [2, 5, 10, 20, 40].find((speed) => speed >= wished) ?? 40;
  element("speed").value = state.speed;
  element("keys").open = window.innerHeight > 900;
}

// What is known of the step under the pointer.
function connectTip() {
  const slider = element("slider"),
    tip = element("tip");
  slider.addEventListener("pointermove", (event) => {
    const box = slider.getBoundingClientRect(),
      outer = element("timeline").getBoundingClientRect();
    const share = Math.min(Math.max((event.clientX - box.left - 8) / (box.width - 16), 0), 1);
    tip.replaceChildren(
      ...stepWords(views, Math.round(share * lastStep)).map((words) => create("p", words)),
    );
    tip.hidden = false;
    const left = event.clientX - outer.left - tip.offsetWidth / 2;
    tip.style.left = `${Math.min(Math.max(left, 0), outer.width - tip.offsetWidth)}px`;
  });
  for (const name of ["pointerleave", "pointercancel"])
    slider.addEventListener(name, () => {
      tip.hidden = true;
    });
}

// --- the picture ------------------------------------------------------------------------------

const stage = makeStage();

function makeStage() {
  try {
    const renderer = new THREE.WebGLRenderer({
      canvas: element("canvas"),
      antialias: true,
      alpha: true,
    });
    renderer.setClearColor(0, 0);
    renderer.setScissorTest(true);
    for (const view of views) {
      view.world = makeWorld(view.episode);
      paintWorld(view.world, theme);
    }
    const extent = Math.max(...views.map((view) => view.world.extent));
    const camera = new THREE.PerspectiveCamera(FIELD_OF_VIEW, 1, extent / 500, extent * 20);
    const controls = new THREE.OrbitControls(camera, renderer.domElement);
    Object.assign(controls, { enableDamping: true, dampingFactor: 0.12, maxPolarAngle: 1.5 });
    Object.assign(controls, { minDistance: extent / 60, maxDistance: extent * 5 });
    controls.addEventListener("change", () => {
      state.dirty = true;
    });
    controls.addEventListener("start", () => {
      state.moved = true;
    });
    return { renderer, camera, controls, extent };
  } catch (error) {
    const notice = element("notice");
    notice.textContent =
      "This browser cannot draw in 3-D (WebGL is missing). The figures still run.";
    notice.hidden = false;
    return null;
  }
}

// The part of the canvas that belongs to a view, in CSS pixels from the top left.
function viewport(view) {
  const outer = element("stage").getBoundingClientRect(),
    box = view.window.getBoundingClientRect();
  return {
    left: box.left - outer.left,
    top: box.top - outer.top,
    width: box.width,
    height: box.height,
  };
}

// Puts the camera where the whole city fills the first view, seen from the south.
function showWholeCity() {
  const { camera, controls } = stage;
  const { width, height } = viewport(views[0]);
  if (!width || !height) return;
  const { width: wide, length: long, extent } = views[0].world;
  // The taller the view, the steeper the look, so that the city fills it.
  const tilt = Math.asin(Math.min(Math.max((height * wide) / (width * long), 0.76), 0.97));
  camera.aspect = width / height;
  camera.updateProjectionMatrix();
  const high = Math.max(...views.map(({ world }) => highest(world)));
  const corners = [-1, 1].flatMap((east) =>
    [
      [-1, high],
      [-1, 0],
      [1, 0],
    ].map(([south, up]) => new THREE.Vector3((east * wide) / 2, up, (south * long) / 2)),
  );
  for (const { position, userData } of views[0].world.labels) {
    corners.push(new THREE.Vector3(position.x, position.y, position.z - userData.radius));
  }
  let distance = 2 * extent,
    middle = 0;
  for (let round = 0; round < 12; round++) {
    controls.target.set(0, 0, middle);
    camera.position.set(0, distance * Math.sin(tilt), middle + distance * Math.cos(tilt));
    camera.lookAt(controls.target);
    camera.updateMatrixWorld();
    const seen = corners.map((corner) => corner.clone().project(camera));
    const top = Math.max(...seen.map(({ y }) => y)),
      bottom = Math.min(...seen.map(({ y }) => y));
    const side = Math.max(...seen.map(({ x }) => Math.abs(x)));
    // Numbers stand above their drones.
    middle -= ((top + bottom + 0.03) / 2) * distance * 0.3;
    distance *= Math.max((top - bottom) / 2 / 0.93, side / 0.94);
  }
  state.moved = false;
  controls.update();
}

// How high drones fly, as drawn.
function highest({ episode, lift }) {
  let top = 0;
  for (let at = 2; at < episode.positions.length; at += 3)
    top = Math.max(top, episode.positions[at]);
  return top * episode.unit * lift;
}

function approachDrone() {
  const { camera, controls, extent } = stage;
  for (const view of views) updateWorld(view.world, state.time, state.trail);
  const place = followed(views[0]) ?? followed(views[views.length - 1]);
  if (!place) return;
  const turn = controls.getAzimuthalAngle(),
    tilt = 0.75;
  const away = new THREE.Vector3(Math.sin(turn), Math.tan(tilt), Math.cos(turn));
  away.setLength(Math.max(extent * 0.16, 400));
  controls.target.copy(place);
  camera.position.copy(place).add(away);
  state.moved = true;
}

function followed(view) {
  return state.follow === null ? null : (view.world.flight.places[state.follow] ?? null);
}

function resize() {
  document.body.classList.toggle("phone", window.innerWidth <= 700 || window.innerHeight <= 480);
  drawTimeline(views, lastStep, theme);
  if (!stage) return;
  const { width, height } = element("stage").getBoundingClientRect();
  stage.renderer.setPixelRatio(Math.min(window.devicePixelRatio || 1, 2));
  stage.renderer.setSize(width, height, false);
  if (!state.moved) showWholeCity();
  state.dirty = true;
}

function changeTheme() {
  theme = readTheme();
  if (stage) for (const view of views) paintWorld(view.world, theme);
  resize();
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
    const shift =
      leader && followed(view) ? followed(view).clone().sub(leader) : new THREE.Vector3();
    camera.position.add(shift);
    camera.aspect = width / height;
    camera.updateProjectionMatrix();
    camera.updateMatrixWorld();
    view.world.gaze = controls.target.clone().add(shift);
    faceCamera(view.world, camera, width, height);
    renderer.setViewport(left, full - top - height, width, height);
    renderer.setScissor(left, full - top - height, width, height);
    renderer.render(view.world.scene, camera);
    camera.position.sub(shift);
  }
  element("wind")
    .querySelector(".north")
    .setAttribute("transform", `rotate(${(controls.getAzimuthalAngle() * 180) / Math.PI})`);
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
  canvas.addEventListener("pointerdown", (event) => {
    down = [event.clientX, event.clientY];
  });
  canvas.addEventListener("pointerup", (event) => {
    if (!down || Math.hypot(event.clientX - down[0], event.clientY - down[1]) > 6) return;
    const hit = droneAt(event.clientX, event.clientY);
    if (hit !== null) setFollow(hit);
  });
}

function droneAt(x, y) {
  let nearest = 26,
    hit = null;
  for (const view of views) {
    const box = view.window.getBoundingClientRect();
    if (x < box.left || x > box.right || y < box.top || y > box.bottom) continue;
    stage.camera.aspect = box.width / box.height;
    stage.camera.updateProjectionMatrix();
    view.world.flight.places.forEach((place, drone) => {
      const seen = place.clone().project(stage.camera);
      const left = box.left + ((seen.x + 1) / 2) * box.width,
        top = box.top + ((1 - seen.y) / 2) * box.height;
      // The number above the drone counts as the drone.
      const distance = Math.min(Math.hypot(left - x, top - y), Math.hypot(left - x, top - 18 - y));
      if (distance < nearest) [nearest, hit] = [distance, drone];
    });
  }
  return hit;
}

makePanel();
connectControls();
connectTip();
if (stage) connectTaps();
window.addEventListener("hashchange", readLink);
window.matchMedia("(prefers-color-scheme: light)").addEventListener("change", changeTheme);
new ResizeObserver(resize).observe(element("stage"));
resize();
setStep(0);
readLink();
requestAnimationFrame(tick);

window.replay = {
  setStep,
  play: () => setPlaying(true),
  pause: () => setPlaying(false),
  follow: setFollow,
  figures: (view = 0) => figuresAt(views[view], state.time),
  get step() {
    return Math.floor(state.time);
  },
  get playing() {
    return state.playing;
  },
  get length() {
    return lastStep;
  },
  get views() {
    return views.length;
  },
  get ready() {
    return stage !== null;
  },
  get calls() {
    return stage.renderer.info.render.calls;
  },
};
