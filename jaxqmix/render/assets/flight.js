"use strict";
// What flies in a city: trails, drones, what they see, and their numbers. One draw call per kind.

const MISHAP_STEPS = 6; // a mishap stays marked for so many steps
const RECENT_STEPS = 60; // length of a "recent" trail
const HUES = 7; // colours before a drone needs another mark too
const TILE = 64; // pixels of a number in the atlas
// The marks beside a number, the most serious first: bit, sign, colours of the theme.
const BADGES = [
  [CONFLICT, "✕", "conflict", "on-mark"],
  [BUILDING, "■", "building-hit", "on-mark"],
  [VIOLATION, "▲", "violation", "on-mark"],
  [LOST, "✕", "link", "on-link"],
  [DELAYED, "◐", "link", "on-link"],
];

function addFlight(world) {
  world.flight = {
    places: Array.from({ length: world.episode.drones }, () => new THREE.Vector3()),
  };
  addTrails(world);
  addDrones(world);
  addTags(world);
}

// Where a drone is at a whole step, as a three.js vector.
function placeAt(world, step, drone, target) {
  const { positions, drones, unit } = world.episode;
  const at = 3 * (step * drones + drone);
  return target.set(
    positions[at] * unit,
    positions[at + 2] * unit * world.lift,
    positions[at + 1] * unit,
  );
}

function droneColour(world, drone) {
  return new THREE.Color(`rgb(${world.episode.colours[drone].join(",")})`);
}

// Every step of every drone is a ribbon of a constant width on the screen.
function addTrails(world) {
  const { length, drones } = world.episode;
  const segments = length * drones;
  const starts = new Float32Array(3 * segments),
    ends = new Float32Array(3 * segments);
  const colours = new Float32Array(3 * segments),
    steps = new Float32Array(segments),
    rounds = new Float32Array(segments);
  const paints = Array.from({ length: drones }, (_, drone) => droneColour(world, drone));
  const place = new THREE.Vector3();
  for (let segment = 0; segment < segments; segment++) {
    const drone = segment % drones,
      step = Math.floor(segment / drones);
    placeAt(world, step, drone, place).toArray(starts, 3 * segment);
    placeAt(world, step + 1, drone, place).toArray(ends, 3 * segment);
    paints[drone].toArray(colours, 3 * segment);
    steps[segment] = step;
    rounds[segment] = Math.floor(drone / HUES);
  }
  const geometry = new THREE.InstancedBufferGeometry();
  geometry.setAttribute(
    "position",
    new THREE.BufferAttribute(new Float32Array([0, -1, 0, 0, 1, 0, 1, -1, 0, 1, 1, 0]), 3),
  );
  geometry.setIndex([0, 1, 2, 2, 1, 3]);
  for (const [name, array, size] of [
    ["start", starts, 3],
    ["end", ends, 3],
    ["colour", colours, 3],
    ["moment", steps, 1],
    ["turn", rounds, 1],
  ]) {
    geometry.setAttribute(name, new THREE.InstancedBufferAttribute(array, size));
  }
  geometry.instanceCount = segments;
  const material = new THREE.ShaderMaterial({
    uniforms: {
      first: { value: 0 },
      last: { value: 0 },
      fade: { value: 0 },
      pixels: { value: 2 },
      screen: { value: new THREE.Vector2(1, 1) },
    },
    vertexShader: TRAIL_VERTEX,
    fragmentShader: TRAIL_FRAGMENT,
    transparent: true,
    depthWrite: false,
    side: THREE.DoubleSide,
  });
  const mesh = new THREE.Mesh(geometry, material);
  mesh.frustumCulled = false;
  mesh.renderOrder = 4;
  if (segments) world.scene.add(mesh);
  world.flight.trails = material.uniforms;
}

const TRAIL_VERTEX = `
  attribute vec3 start, end, colour;
  attribute float moment, turn;
  uniform float first, last, fade, pixels;
  uniform vec2 screen;
  varying vec3 vColour;
  varying float vAlong, vSide, vAlpha, vTurn;
  void main() {
    vColour = colour; vSide = position.y; vTurn = turn;
    float share = clamp(last - moment, 0.0, 1.0);
    vAlong = moment + share * position.x;
    vAlpha = fade > 0.0 ? clamp(1.0 - 0.85 * (last - vAlong) / fade, 0.28, 1.0) : 0.9;
    vec4 from = projectionMatrix * modelViewMatrix * vec4(start, 1.0);
    vec4 to = projectionMatrix * modelViewMatrix * vec4(mix(start, end, share), 1.0);
    // What lies behind the camera is cut off.
    const float near = 0.01;
    if (share <= 0.0 || moment + 1.0 <= first || max(from.w, to.w) < near) { gl_Position = vec4(2.0, 2.0, 2.0, 1.0); return; }
    if (from.w < near) from = mix(from, to, (near - from.w) / (to.w - from.w));
    if (to.w < near) to = mix(to, from, (near - to.w) / (from.w - to.w));
    vec2 along = (to.xy / to.w - from.xy / from.w) * screen;
    along = length(along) < 1e-3 ? vec2(1.0, 0.0) : normalize(along);
    vec4 here = position.x < 0.5 ? from : to;
    vec2 shift = vec2(-along.y, along.x) * position.y + along * (position.x - 0.5) * 0.6;
    here.xy += shift * pixels / screen * here.w;
    gl_Position = here;
  }`;

// Drones that share a hue differ by the pattern of their trails too.
const TRAIL_FRAGMENT = `
  varying vec3 vColour;
  varying float vAlong, vSide, vAlpha, vTurn;
  void main() {
    float pattern = mod(vTurn, 3.0);
    if (pattern > 1.5 && fract(vAlong / 1.5) > 0.5) discard;
    if (pattern > 0.5 && pattern < 1.5 && fract(vAlong / 4.0) > 0.7) discard;
    float wide = fwidth(vSide), edge = 1.0 - smoothstep(1.0 - wide, 1.0, abs(vSide));
    gl_FragColor = vec4(vColour, vAlpha * edge);
    #include <colorspace_fragment>
  }`;

function instanced(world, geometry, material, count, order) {
  const mesh = new THREE.InstancedMesh(geometry, material, count);
  mesh.instanceMatrix.setUsage(THREE.DynamicDrawUsage);
  mesh.frustumCulled = false;
  mesh.renderOrder = order;
  world.scene.add(mesh);
  return mesh;
}

function addDrones(world) {
  const { drones } = world.episode;
  const rotor = new THREE.CylinderGeometry(0.5, 0.5, 0.1, 20);
  const quad = new THREE.PlaneGeometry(2, 2).rotateX(-Math.PI / 2);
  const rings = instanced(world, quad, ringsMaterial(), drones, 3);
  // Transparent only in order to be drawn after labels and trails.
  const solid = () => new THREE.MeshLambertMaterial({ transparent: true });
  const bodies = instanced(world, new THREE.SphereGeometry(0.9, 20, 14), solid(), drones, 6);
  const rotors = instanced(world, rotor, solid(), 4 * drones, 6);
  const colours = new Float32Array(6 * drones);
  for (let drone = 0; drone < drones; drone++) {
    const colour = droneColour(world, drone);
    for (const mesh of [bodies, rings]) mesh.setColorAt(drone, colour);
    for (let arm = 0; arm < 4; arm++)
      rotors.setColorAt(4 * drone + arm, colour.clone().lerp(new THREE.Color(1, 1, 1), 0.5));
    colour.toArray(colours, 6 * drone);
    colour.toArray(colours, 6 * drone + 3);
  }
  // A thread from each drone down to the ground.
  const lines = new THREE.BufferGeometry();
  lines.setAttribute("position", new THREE.BufferAttribute(new Float32Array(6 * drones), 3));
  lines.setAttribute("color", new THREE.BufferAttribute(colours, 3));
  const threads = new THREE.LineSegments(
    lines,
    new THREE.LineBasicMaterial({ vertexColors: true, transparent: true }),
  );
  threads.frustumCulled = false;
  threads.renderOrder = 5;
  world.scene.add(threads);
  Object.assign(world.flight, { bodies, rotors, rings, threads });
}

// What a drone sees: a tinted disc on the ground, with an edge of two pixels.
function ringsMaterial() {
  return new THREE.ShaderMaterial({
    vertexShader: `
      varying vec2 vInner;
      varying vec3 vTint;
      void main() {
        vInner = position.xz; vTint = instanceColor;
        gl_Position = projectionMatrix * modelViewMatrix * instanceMatrix * vec4(position, 1.0);
      }`,
    fragmentShader: `
      varying vec2 vInner;
      varying vec3 vTint;
      void main() {
        float reach = length(vInner), pixel = fwidth(reach);
        float edge = smoothstep(1.0 - 3.5 * pixel, 1.0 - 2.5 * pixel, reach);
        gl_FragColor = vec4(vTint, mix(0.22, 0.95, edge) * (1.0 - smoothstep(1.0 - pixel, 1.0, reach)));
        #include <colorspace_fragment>
      }`,
    transparent: true,
    depthWrite: false,
  });
}

// Numbers and marks: squares that face the camera, all from one texture and in one draw call.
function addTags(world) {
  const { drones } = world.episode;
  const across = Math.ceil(Math.sqrt(drones + BADGES.length));
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = across * TILE;
  const atlas = new THREE.CanvasTexture(canvas);
  atlas.colorSpace = THREE.SRGBColorSpace;
  const geometry = new THREE.InstancedBufferGeometry();
  geometry.setAttribute(
    "position",
    new THREE.BufferAttribute(
      new Float32Array([-0.5, -0.5, 0, 0.5, -0.5, 0, -0.5, 0.5, 0, 0.5, 0.5, 0]),
      3,
    ),
  );
  geometry.setIndex([0, 1, 2, 2, 1, 3]);
  const attribute = (name, size) => {
    const buffer = new THREE.InstancedBufferAttribute(new Float32Array(2 * drones * size), size);
    buffer.setUsage(THREE.DynamicDrawUsage);
    geometry.setAttribute(name, buffer);
    return buffer;
  };
  const places = attribute("place", 3),
    tiles = attribute("tile", 1);
  for (let drone = 0; drone < drones; drone++) tiles.setX(drone, drone);
  geometry.instanceCount = 2 * drones;
  const material = new THREE.ShaderMaterial({
    uniforms: {
      atlas: { value: atlas },
      across: { value: across },
      drones: { value: drones },
      pixels: { value: 20 },
      screen: { value: new THREE.Vector2(1, 1) },
    },
    vertexShader: TAG_VERTEX,
    fragmentShader: TAG_FRAGMENT,
    transparent: true,
    depthTest: false,
    depthWrite: false,
  });
  const mesh = new THREE.Mesh(geometry, material);
  mesh.frustumCulled = false;
  mesh.renderOrder = 10;
  world.scene.add(mesh);
  Object.assign(world.flight, { atlas, across, anchors: places, tiles, tags: material.uniforms });
}

// The number stands above its drone; the mark stands at the number's right.
const TAG_VERTEX = `
  attribute vec3 place;
  attribute float tile;
  uniform float across, drones, pixels;
  uniform vec2 screen;
  varying vec2 vTile;
  void main() {
    if (tile < 0.0) { gl_Position = vec4(2.0, 2.0, 2.0, 1.0); return; }
    vec2 corner = vec2(mod(tile, across), floor(tile / across)) + vec2(position.x + 0.5, 0.5 - position.y);
    vTile = vec2(corner.x, across - corner.y) / across;
    gl_Position = projectionMatrix * modelViewMatrix * vec4(place, 1.0);
    vec2 shift = position.xy + vec2(tile < drones ? 0.0 : 0.85, tile < drones ? 0.95 : 1.25);
    gl_Position.xy += shift * 2.0 * pixels / screen * gl_Position.w;
  }`;
const TAG_FRAGMENT = `
  uniform sampler2D atlas;
  varying vec2 vTile;
  void main() {
    gl_FragColor = texture2D(atlas, vTile);
    #include <colorspace_fragment>
  }`;

// Writes numbers and marks into the atlas, in the colours of the theme.
function paintFlight(world, theme) {
  const { atlas, across } = world.flight;
  const pen = atlas.image.getContext("2d");
  pen.clearRect(0, 0, atlas.image.width, atlas.image.height);
  const corner = (tile) => [
    (tile % across) * TILE + TILE / 2,
    Math.floor(tile / across) * TILE + TILE / 2,
  ];
  world.episode.colours.forEach((bytes, drone) => {
    const light = 0.3 * bytes[0] + 0.6 * bytes[1] + 0.1 * bytes[2] > 150;
    drawTag(
      pen,
      ...corner(drone),
      Math.floor(drone / HUES),
      `rgb(${bytes.join(",")})`,
      light ? "#14181f" : "#fff",
      String(drone + 1),
    );
  });
  BADGES.forEach(([, sign, fill, ink], number) =>
    drawTag(pen, ...corner(world.episode.drones + number), 0, theme[fill], theme[ink], sign),
  );
  atlas.needsUpdate = true;
}

// A shape with words in it. Every round of the hues has a shape of its own: circle, square, ...
function drawTag(pen, x, y, round, fill, ink, words) {
  const corners = [0, 4, 6, 8][round % 4],
    turn = corners === 6 ? 0 : Math.PI / 4;
  const radius = corners === 4 ? 36 : 27;
  pen.beginPath();
  if (corners === 0) pen.arc(x, y, radius, 0, 2 * Math.PI);
  else if (corners === 8) pen.roundRect(x - 29, y - 18, 58, 36, 4);
  else
    for (let corner = 0; corner < corners; corner++) {
      const angle = turn + (2 * Math.PI * corner) / corners;
      pen.lineTo(x + radius * Math.cos(angle), y + radius * Math.sin(angle));
    }
  pen.closePath();
  Object.assign(pen, { fillStyle: fill, strokeStyle: ink, lineWidth: 4, lineJoin: "round" });
  pen.fill();
  pen.stroke();
  Object.assign(pen, { fillStyle: ink, textAlign: "center", textBaseline: "middle" });
  pen.font = `bold ${words.length > 2 ? 24 : 32}px system-ui, sans-serif`;
  pen.fillText(words, x, y + 2);
}

// What is marked at a drone while it flies the step that ends at `step`.
function badgeBits(episode, step, drone) {
  if (step < 1) return 0;
  let bits = episode.marks[(step - 1) * episode.drones + drone];
  for (let back = 2; back <= MISHAP_STEPS && step - back >= 0; back++) {
    bits |=
      episode.marks[(step - back) * episode.drones + drone] & (CONFLICT | BUILDING | VIOLATION);
  }
  return bits;
}

// Moves everything to a time in steps (not necessarily whole); `trail` is none, recent or whole.
function updateWorld(world, time, trail) {
  const { episode, flight } = world;
  const now = Math.min(Math.max(time, 0), episode.length);
  const step = Math.floor(now),
    next = Math.min(step + 1, episode.length);
  world.uniforms.now.value = now;
  flight.step = step;
  flight.trails.last.value = trail === "none" ? 0 : now;
  flight.trails.first.value = trail === "recent" ? now - RECENT_STEPS : 0;
  flight.trails.fade.value = trail === "recent" ? RECENT_STEPS : 0;
  const last = new THREE.Vector3(),
    target = new THREE.Vector3();
  const ends = flight.threads.geometry.attributes.position;
  flight.places.forEach((place, drone) => {
    placeAt(world, step, drone, last);
    place.copy(last).lerp(placeAt(world, next, drone, target), now - step);
    ends.setXYZ(2 * drone, place.x, place.y, place.z);
    ends.setXYZ(2 * drone + 1, place.x, 0, place.z);
    const bits = badgeBits(episode, Math.ceil(now), drone);
    const shown = BADGES.findIndex(([bit]) => (bit < CONFLICT ? (bits & 3) === bit : bits & bit));
    flight.tiles.setX(episode.drones + drone, shown < 0 ? -1 : episode.drones + shown);
    flight.anchors.setXYZ(drone, place.x, place.y, place.z);
    flight.anchors.setXYZ(episode.drones + drone, place.x, place.y, place.z);
  });
  ends.needsUpdate = flight.tiles.needsUpdate = flight.anchors.needsUpdate = true;
}

// Sizes drones, trails and labels for a camera, so that they stay legible from any distance.
function faceCamera(world, camera, pixelsWide, pixelsHigh) {
  const small = Math.min(pixelsWide, pixelsHigh) < 420,
    many = world.episode.drones > 30;
  const { bodies, rotors, rings, places, trails, tags, step } = world.flight;
  const perPixel = (2 * Math.tan((FIELD_OF_VIEW * Math.PI) / 360)) / pixelsHigh;
  const { radii, drones, unit } = world.episode;
  const matrix = new THREE.Matrix4();
  places.forEach((place, drone) => {
    const least = Math.max(3, world.extent * 0.002);
    const size = Math.max(
      least,
      place.distanceTo(camera.position) * perPixel * (small || many ? 4 : 6),
    );
    bodies.setMatrixAt(drone, matrix.makeScale(size, size * 0.6, size).setPosition(place));
    for (let arm = 0; arm < 4; arm++) {
      const east = arm % 2 ? size : -size,
        south = arm < 2 ? size : -size;
      matrix
        .makeScale(size, size, size)
        .setPosition(place.x + east, place.y + size * 0.35, place.z + south);
      rotors.setMatrixAt(4 * drone + arm, matrix);
    }
    const radius = radii[step * drones + drone] * unit;
    matrix.makeScale(radius, 1, radius).setPosition(place.x, world.extent * 0.0012, place.z);
    rings.setMatrixAt(drone, matrix);
  });
  for (const mesh of [bodies, rotors, rings]) mesh.instanceMatrix.needsUpdate = true;
  for (const uniforms of [trails, tags]) uniforms.screen.value.set(pixelsWide, pixelsHigh);
  trails.pixels.value = small || many ? 1.6 : 2.4;
  tags.pixels.value = small ? 15 : many ? 17 : 20;
  faceLabels(world, camera, perPixel, small);
}
