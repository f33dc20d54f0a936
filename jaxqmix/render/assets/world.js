"use strict";
// One episode as a three.js scene. Lengths in metres; three.js X is east, Y is up, Z is south, and
// the origin is the middle of the city on the ground. Arrays arrive decoded from replay.js.

const LOST = 1, DELAYED = 2;          // link, the two lowest bits of a mark
const CONFLICT = 4, BUILDING = 8, VIOLATION = 16;
const MISHAP_STEPS = 6;               // a mishap stays marked for so many steps
const FRESH_STEPS = 4;                // newly seen ground glows for so many steps
const DRAWN_CEILING = 260;            // no-fly cylinders are drawn no higher, so that they hide less
const RECENT_STEPS = 60;              // length of a "recent" trail
const FIELD_OF_VIEW = 40;             // of the camera, degrees

function makeWorld(episode, palette) {
  const width = episode.columns * episode.cell, length = episode.rows * episode.cell;
  const extent = Math.max(width, length);
  // Large cities are flat: lift heights so that they can be told apart. The page says so.
  const lift = Math.round(Math.min(Math.max(extent / 2000, 1), 3) * 2) / 2;
  const world = { episode, palette, width, length, extent, lift, step: -1, labels: [] };
  world.scene = new THREE.Scene();
  world.scene.background = new THREE.Color(palette.sky);
  world.scene.add(new THREE.HemisphereLight(0xffffff, 0x8890a0, 2.1));
  const sun = new THREE.DirectionalLight(0xffffff, 1.5);
  sun.position.set(0.5, 1, 0.35);
  world.scene.add(sun);
  addGround(world);
  addBuildings(world);
  addNoFly(world);
  addTrails(world);
  addDrones(world);
  addNorth(world);
  return world;
}

// A row and column to the middle of its cell.
function cellPlace(world, row, column) {
  const cell = world.episode.cell;
  return [(column + 0.5) * cell - world.width / 2, (row + 0.5) * cell - world.length / 2];
}

// Where a drone is at a whole step, as a three.js vector.
function placeAt(world, step, drone, target) {
  const { positions, drones, unit } = world.episode;
  const at = 3 * (step * drones + drone);
  return target.set(positions[at] * unit, positions[at + 2] * unit * world.lift, positions[at + 1] * unit);
}

function addGround(world) {
  const { rows, columns } = world.episode;
  const pixels = new Uint8Array(4 * rows * columns).fill(255);
  const texture = new THREE.DataTexture(pixels, columns, rows, THREE.RGBAFormat);
  texture.colorSpace = THREE.SRGBColorSpace;
  texture.magFilter = THREE.NearestFilter;
  const plane = new THREE.PlaneGeometry(world.width, world.length).rotateX(-Math.PI / 2);
  world.scene.add(new THREE.Mesh(plane, new THREE.MeshBasicMaterial({ map: texture })));
  const base = new THREE.BoxGeometry(world.width * 1.02, world.extent * 0.012, world.length * 1.02);
  const slab = new THREE.Mesh(base, new THREE.MeshBasicMaterial({ color: world.palette.slab }));
  slab.position.y = -world.extent * 0.008;
  world.scene.add(slab);
  world.ground = { pixels, texture };
}

function addBuildings(world) {
  const { heights, rows, columns, cell } = world.episode;
  const built = [];
  heights.forEach((height, index) => height > 0 && built.push(index));
  const box = new THREE.BoxGeometry(cell * 0.88, 1, cell * 0.88).translate(0, 0.5, 0);
  const mesh = new THREE.InstancedMesh(box, new THREE.MeshLambertMaterial(), built.length);
  const matrix = new THREE.Matrix4();
  built.forEach((index, number) => {
    const [x, z] = cellPlace(world, Math.floor(index / columns), index % columns);
    matrix.makeScale(1, heights[index] * world.lift, 1).setPosition(x, 0, z);
    mesh.setMatrixAt(number, matrix);
    mesh.setColorAt(number, new THREE.Color(1, 1, 1));
  });
  mesh.frustumCulled = false;
  if (built.length) world.scene.add(mesh);
  world.buildings = { built, mesh };
}

function addNoFly(world) {
  const { palette, lift } = world;
  for (const [x, y, radius, ceiling] of world.episode.noFly) {
    const top = Math.min(ceiling, DRAWN_CEILING) * lift;
    const wall = new THREE.CylinderGeometry(radius, radius, top, 64, 1, true);
    const material = new THREE.MeshBasicMaterial({
      color: palette.noFly, transparent: true, opacity: 0.2, side: THREE.DoubleSide, depthWrite: false,
    });
    const cylinder = new THREE.Mesh(wall, material);
    const [centreX, centreZ] = [x - world.width / 2, y - world.length / 2];
    cylinder.position.set(centreX, top / 2, centreZ);
    world.scene.add(cylinder);
    for (const level of [world.extent * 0.002, top]) {
      const ring = new THREE.RingGeometry(radius * 0.985, radius, 64).rotateX(-Math.PI / 2);
      const edge = new THREE.MeshBasicMaterial({ color: palette.noFly, side: THREE.DoubleSide });
      const mesh = new THREE.Mesh(ring, edge);
      mesh.position.set(centreX, level, centreZ);
      world.scene.add(mesh);
    }
    const label = wordSprite(`no-fly below ${Math.round(ceiling)} m`, palette.noFly);
    label.position.set(centreX, top + world.extent * 0.015, centreZ);
    world.scene.add(label);
    world.labels.push(label);
  }
}

function addNorth(world) {
  const label = wordSprite("N", "#20242b");
  label.position.set(0, world.extent * 0.01, -world.length * 0.54);
  world.scene.add(label);
  world.labels.push(label);
}

// All trails in one ribbon, ordered by time, so that any stretch of time is one run to draw.
function addTrails(world) {
  const { length, drones } = world.episode;
  const segments = length * drones;
  const corners = new Float32Array(12 * segments), colours = new Uint8Array(12 * segments);
  const indices = new Uint32Array(6 * segments);
  const half = Math.max(world.extent * 0.0013, 2.2);
  const from = new THREE.Vector3(), to = new THREE.Vector3(), side = new THREE.Vector3();
  for (let segment = 0; segment < segments; segment++) {
    const drone = segment % drones, step = Math.floor(segment / drones);
    placeAt(world, step, drone, from);
    placeAt(world, step + 1, drone, to);
    side.set(from.z - to.z, 0, to.x - from.x);
    // A climb has no direction in the plane; any will do.
    if (side.lengthSq() < 1) side.set(1, 0, 0);
    side.setLength(half);
    [[from, 1], [from, -1], [to, 1], [to, -1]].forEach(([point, sign], corner) => {
      const at = 12 * segment + 3 * corner;
      corners[at] = point.x + sign * side.x;
      corners[at + 1] = point.y;
      corners[at + 2] = point.z + sign * side.z;
      colours.set(world.episode.colours[drone], at);
    });
    indices.set([0, 1, 2, 2, 1, 3].map((corner) => 4 * segment + corner), 6 * segment);
  }
  const geometry = new THREE.BufferGeometry();
  geometry.setAttribute("position", new THREE.BufferAttribute(corners, 3));
  geometry.setAttribute("color", new THREE.BufferAttribute(srgbToLinear(colours), 3));
  geometry.setIndex(new THREE.BufferAttribute(indices, 1));
  const material = new THREE.MeshBasicMaterial({ vertexColors: true, side: THREE.DoubleSide });
  world.trails = new THREE.Mesh(geometry, material);
  world.trails.frustumCulled = false;
  world.scene.add(world.trails);
}

// three.js takes vertex colours as linear light.
function srgbToLinear(bytes) {
  return Float32Array.from(bytes, (byte) => {
    const value = byte / 255;
    return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  });
}

function instanced(world, geometry, material, count) {
  const mesh = new THREE.InstancedMesh(geometry, material, count);
  mesh.instanceMatrix.setUsage(THREE.DynamicDrawUsage);
  mesh.frustumCulled = false;
  world.scene.add(mesh);
  return mesh;
}

function addDrones(world) {
  const { drones } = world.episode;
  const flat = { transparent: true, depthWrite: false };
  const disc = new THREE.CircleGeometry(1, 48).rotateX(-Math.PI / 2);
  const ring = new THREE.RingGeometry(0.94, 1, 64).rotateX(-Math.PI / 2);
  const rotor = new THREE.CylinderGeometry(0.46, 0.46, 0.12, 20);
  const bodies = instanced(world, new THREE.SphereGeometry(0.92, 20, 14), new THREE.MeshLambertMaterial(), drones);
  const rotors = instanced(world, rotor, new THREE.MeshLambertMaterial(), 4 * drones);
  const discs = instanced(world, disc, new THREE.MeshBasicMaterial({ opacity: 0.22, ...flat }), drones);
  const rings = instanced(world, ring, new THREE.MeshBasicMaterial({ opacity: 0.95, ...flat }), drones);
  const lines = new THREE.BufferGeometry();
  const colours = new Uint8Array(12 * drones);
  for (let drone = 0; drone < drones; drone++) {
    const bytes = world.episode.colours[drone];
    const colour = new THREE.Color(`rgb(${bytes.join(",")})`);
    for (const mesh of [bodies, discs, rings]) mesh.setColorAt(drone, colour);
    for (let arm = 0; arm < 4; arm++) rotors.setColorAt(4 * drone + arm, colour.clone().lerp(new THREE.Color(1, 1, 1), 0.55));
    for (let corner = 0; corner < 4; corner++) colours.set(bytes, 12 * drone + 3 * corner);
  }
  // Two lines per drone: down to the ground, and back to the last whole step of its trail.
  lines.setAttribute("position", new THREE.BufferAttribute(new Float32Array(12 * drones), 3));
  lines.setAttribute("color", new THREE.BufferAttribute(srgbToLinear(colours), 3));
  const stems = new THREE.LineSegments(lines, new THREE.LineBasicMaterial({ vertexColors: true }));
  stems.frustumCulled = false;
  world.scene.add(stems);
  const badges = badgeMaterials(world.palette);
  const sprites = Array.from({ length: drones }, () => {
    const sprite = new THREE.Sprite(badges[0][1]);
    sprite.renderOrder = 10;
    world.scene.add(sprite);
    return sprite;
  });
  world.drones = { bodies, rotors, discs, rings, stems, badges, sprites, places: [] };
  for (let drone = 0; drone < drones; drone++) world.drones.places.push(new THREE.Vector3());
}

// Which badge a drone wears, the most serious first: [bit, material].
function badgeMaterials(palette) {
  return [
    [CONFLICT, badge("✕", palette.conflict, "#fff")],
    [BUILDING, badge("■", palette.buildingHit, "#fff")],
    [VIOLATION, badge("▲", palette.violation, "#fff")],
    [LOST, badge("✕", "#fff", "#20242b")],
    [DELAYED, badge("◐", "#fff", "#20242b")],
  ];
}

function badge(sign, fill, ink) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 64;
  const pen = canvas.getContext("2d");
  pen.beginPath();
  pen.arc(32, 32, 28, 0, 2 * Math.PI);
  pen.fillStyle = fill;
  pen.fill();
  pen.lineWidth = 4;
  pen.strokeStyle = ink;
  pen.stroke();
  pen.fillStyle = ink;
  pen.font = "bold 36px sans-serif";
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.fillText(sign, 32, 34);
  return spriteMaterial(canvas);
}

function spriteMaterial(canvas) {
  const map = new THREE.CanvasTexture(canvas);
  map.colorSpace = THREE.SRGBColorSpace;
  return new THREE.SpriteMaterial({ map, depthTest: false, sizeAttenuation: false });
}

function wordSprite(words, colour) {
  const canvas = document.createElement("canvas");
  const pen = canvas.getContext("2d");
  const font = "600 34px system-ui, sans-serif";
  pen.font = font;
  canvas.width = Math.ceil(pen.measureText(words).width) + 28;
  canvas.height = 52;
  pen.font = font;
  pen.fillStyle = "rgba(255, 255, 255, 0.88)";
  pen.beginPath();
  pen.roundRect(0, 0, canvas.width, canvas.height, 14);
  pen.fill();
  pen.fillStyle = colour;
  pen.textBaseline = "middle";
  pen.fillText(words, 14, 28);
  const sprite = new THREE.Sprite(spriteMaterial(canvas));
  sprite.userData.aspect = canvas.width / canvas.height;
  sprite.renderOrder = 9;
  return sprite;
}

// Paints ground and buildings as they are after a whole number of steps.
function paintGround(world, step) {
  const { rows, columns, seenAt, coverable } = world.episode;
  const { pixels, texture } = world.ground;
  const { unseen, seen, fresh, hidden } = world.palette.ground;
  const kind = (index) => {
    const when = seenAt[index];
    if (when < 0 || when > step) return coverable[index] ? unseen : hidden;
    return step - when < FRESH_STEPS && step > 0 ? fresh : seen;
  };
  for (let row = 0; row < rows; row++) {
    // The first row of a texture is its southern edge.
    const flipped = (rows - 1 - row) * columns;
    for (let column = 0; column < columns; column++) {
      pixels.set(kind(row * columns + column), 4 * (flipped + column));
    }
  }
  texture.needsUpdate = true;
  const { built, mesh } = world.buildings;
  const colour = new THREE.Color();
  built.forEach((index, number) => {
    const [red, green, blue] = kind(index);
    colour.setRGB(red / 255, green / 255, blue / 255, THREE.SRGBColorSpace).multiplyScalar(0.82);
    mesh.setColorAt(number, colour);
  });
  if (built.length) mesh.instanceColor.needsUpdate = true;
}

// What is marked at a drone while it flies the step that ends at `step`.
function badgeBits(episode, step, drone) {
  if (step < 1) return 0;
  let bits = episode.marks[(step - 1) * episode.drones + drone];
  for (let back = 2; back <= MISHAP_STEPS && step - back >= 0; back++) {
    bits |= episode.marks[(step - back) * episode.drones + drone] & (CONFLICT | BUILDING | VIOLATION);
  }
  return bits;
}

// Moves everything to a time in steps (not necessarily whole); `trail` is none, recent or whole.
function updateWorld(world, time, trail) {
  const { episode } = world;
  const now = Math.min(Math.max(time, 0), episode.length);
  const step = Math.floor(now);
  if (step !== world.step) paintGround(world, step);
  world.step = step;
  const first = trail === "whole" ? 0 : Math.max(0, step - RECENT_STEPS);
  const steps = trail === "none" ? 0 : step - first;
  world.trails.geometry.setDrawRange(6 * first * episode.drones, 6 * steps * episode.drones);
  const next = Math.min(step + 1, episode.length);
  const last = new THREE.Vector3(), target = new THREE.Vector3();
  const ends = world.drones.stems.geometry.attributes.position;
  world.drones.places.forEach((place, drone) => {
    placeAt(world, step, drone, last);
    place.copy(last).lerp(placeAt(world, next, drone, target), now - step);
    ends.setXYZ(4 * drone, place.x, place.y, place.z);
    ends.setXYZ(4 * drone + 1, place.x, 0, place.z);
    ends.setXYZ(4 * drone + 2, last.x, last.y, last.z);
    ends.setXYZ(4 * drone + 3, place.x, place.y, place.z);
    const bits = badgeBits(episode, Math.ceil(now), drone);
    const shown = world.drones.badges.find(([bit]) => (bit < CONFLICT ? (bits & 3) === bit : bits & bit));
    world.drones.sprites[drone].visible = Boolean(shown);
    if (shown) world.drones.sprites[drone].material = shown[1];
  });
  ends.needsUpdate = true;
  world.time = now;
}

// Sizes drones and labels for a camera, so that they stay legible from any distance.
function faceCamera(world, camera, pixelsWide, pixelsHigh) {
  const small = Math.min(pixelsWide, pixelsHigh) < 500;
  const { bodies, rotors, discs, rings, sprites, places } = world.drones;
  const perPixel = (2 * Math.tan((FIELD_OF_VIEW * Math.PI) / 360)) / pixelsHigh;
  const matrix = new THREE.Matrix4();
  const radii = world.episode.radii, { drones, unit } = world.episode;
  places.forEach((place, drone) => {
    // Near by, a drone is still larger than its trail is wide.
    const least = Math.max(4, world.extent * 0.003);
    const size = Math.max(least, place.distanceTo(camera.position) * perPixel * (small ? 5 : 7));
    bodies.setMatrixAt(drone, matrix.makeScale(size, size * 0.7, size).setPosition(place));
    for (let arm = 0; arm < 4; arm++) {
      const east = arm % 2 ? size : -size, south = arm < 2 ? size : -size;
      matrix.makeScale(size, size, size).setPosition(place.x + east, place.y + size * 0.35, place.z + south);
      rotors.setMatrixAt(4 * drone + arm, matrix);
    }
    const radius = radii[world.step * drones + drone] * unit;
    matrix.makeScale(radius, 1, radius).setPosition(place.x, world.extent * 0.0012, place.z);
    discs.setMatrixAt(drone, matrix);
    matrix.elements[13] *= 1.4;
    rings.setMatrixAt(drone, matrix);
    sprites[drone].position.set(place.x, place.y + 3.2 * size, place.z);
    sprites[drone].scale.setScalar((small ? 15 : 18) * perPixel);
  });
  for (const mesh of [bodies, rotors, discs, rings]) mesh.instanceMatrix.needsUpdate = true;
  const high = (small ? 12 : 17) * perPixel;
  for (const label of world.labels) {
    label.scale.set(high * label.userData.aspect, high, 1);
  }
}
