"use strict";
// One city as a three.js scene. Lengths in metres; three.js X is east, Y is up, Z is south, and the
// origin is the middle of the city on the ground. Arrays arrive decoded from replay.js. What has
// been seen is coloured by the graphics card: it knows when each cell is seen, and the time.

const LOST = 1,
  DELAYED = 2; // link, the two lowest bits of a mark
const CONFLICT = 4,
  BUILDING = 8,
  VIOLATION = 16;
const FRESH_STEPS = 4; // newly seen ground glows for so many steps
const DRAWN_CEILING = 260; // no-fly cylinders are drawn no higher, so that they hide less
const FIELD_OF_VIEW = 32; // of the camera, degrees
const SUN = [-0.62, 1, 0.34]; // shadows fall to the north-east, away from the first view
const LIT = 1.55; // strength of the sun
const SHADOW_PIXELS = 2048; // longer side of the texture of shadows
const MOST_TREES = 1200;
// What stands or lies in a cell, as bits of its texel.
const STREET_EAST = 1,
  STREET_SOUTH = 2,
  BUILT = 4,
  PARK = 8;

function makeWorld(episode) {
  const width = episode.columns * episode.cell,
    length = episode.rows * episode.cell;
  const extent = Math.max(width, length);
  // Large cities are flat: lift heights so that they can be told apart. The page says so.
  const lift = Math.round(Math.min(Math.max(extent / 2000, 1), 3) * 2) / 2;
  const world = { episode, width, length, extent, lift, labels: [], standing: [] };
  world.scene = new THREE.Scene();
  world.uniforms = {
    now: { value: 0 },
    cells: { value: cellTexture(episode) },
    middle: { value: new THREE.Vector2(width / 2, length / 2) },
    cell: { value: episode.cell },
    lift: { value: lift },
  };
  for (const name of ["unseen", "seen", "fresh", "hidden", "zone"])
    world.uniforms[name] = { value: new THREE.Color() };
  addLights(world);
  addBuildings(world);
  addTrees(world);
  addGround(world);
  addZones(world);
  addFlight(world);
  return world;
}

// Takes the colours of the theme, {name: colour of CSS}.
function paintWorld(world, theme) {
  for (const name of ["unseen", "seen", "fresh", "hidden", "zone"])
    world.uniforms[name].value.set(theme[name]);
  world.slab.material.color.set(theme.slab);
  for (const label of world.labels) label.userData.write(theme);
  paintFlight(world, theme);
}

// A number from 0 to 1 that looks random, the same for the same cell every time.
function chance(index, salt) {
  const value = Math.sin(index * 12.9898 + salt * 78.233) * 43758.5453;
  return value - Math.floor(value);
}

// A row and column to the middle of its cell.
function cellPlace(world, index) {
  const { cell, columns } = world.episode;
  return [
    ((index % columns) + 0.5) * cell - world.width / 2,
    (Math.floor(index / columns) + 0.5) * cell - world.length / 2,
  ];
}

// Per cell: when it is seen (two bytes, 0 is never), whether it can be, and what lies there.
function cellTexture(episode) {
  const { rows, columns, heights, seenAt, coverable } = episode;
  const texels = new Uint8Array(4 * rows * columns);
  const streets = clearStreets(episode),
    wide = wideOpen(episode);
  for (let index = 0; index < rows * columns; index++) {
    const row = Math.floor(index / columns),
      column = index % columns,
      when = seenAt[index] + 1;
    let ground =
      (streets.rows[row] ? STREET_EAST : 0) | (streets.columns[column] ? STREET_SOUTH : 0);
    if (heights[index]) ground = BUILT;
    else if (!ground && around(episode, row, column, 1, (near) => wide[near])) ground = PARK;
    texels.set([when & 255, when >> 8, coverable[index] ? 255 : 0, ground], 4 * index);
  }
  const texture = new THREE.DataTexture(texels, columns, rows, THREE.RGBAFormat);
  texture.needsUpdate = true;
  return texture;
}

// Rows and columns without any building, which are streets unless their neighbours are clear too.
function clearStreets({ rows, columns, heights }) {
  const built = { rows: new Array(rows).fill(false), columns: new Array(columns).fill(false) };
  heights.forEach((height, index) => {
    if (height) built.rows[Math.floor(index / columns)] = built.columns[index % columns] = true;
  });
  const alone = (line) =>
    line.map((taken, at) => !taken && (line[at - 1] ?? true) && (line[at + 1] ?? true));
  return { rows: alone(built.rows), columns: alone(built.columns) };
}

// Whether a test holds for any cell at most `reach` rows and columns away.
function around({ rows, columns }, row, column, reach, test) {
  for (let south = Math.max(row - reach, 0); south <= Math.min(row + reach, rows - 1); south++) {
    for (
      let east = Math.max(column - reach, 0);
      east <= Math.min(column + reach, columns - 1);
      east++
    ) {
      if (test(south * columns + east)) return true;
    }
  }
  return false;
}

// Cells with no building near, which become parks together with their neighbours.
function wideOpen(episode) {
  const { heights, columns } = episode;
  return Array.from(
    heights,
    (_, index) =>
      !around(episode, Math.floor(index / columns), index % columns, 2, (near) => heights[near]),
  );
}

function addLights(world) {
  const sun = new THREE.DirectionalLight(0xffffff, LIT);
  sun.position.set(...SUN).setLength(world.extent);
  world.scene.add(sun);
  // Open ground in the sun has exactly the colour of the key: both lights add up to pi there.
  const fall = SUN[1] / Math.hypot(...SUN),
    sky = Math.PI - LIT * fall;
  world.scene.add(new THREE.HemisphereLight(0xffffff, 0x8f97a6, sky));
}

// The colour of what has or has not been seen; `when` counts from 1, 0 is never.
const KIND = `
  uniform float now, cell, lift;
  uniform vec3 unseen, seen, fresh, hidden;
  vec3 kind(float when, float coverable, vec2 place) {
    float wide = fwidth(place.x + place.y) / cell * 2.0;
    float stripe = smoothstep(0.5 - wide, 0.5 + wide, abs(fract((place.x + place.y) / cell * 0.8) - 0.5) * 2.0);
    vec3 before = coverable > 0.5 ? unseen : mix(hidden, hidden * 2.6 + 0.02, mix(stripe, 0.5, clamp(wide * 2.0 - 0.5, 0.0, 1.0)));
    if (when < 0.5) return before;
    float age = now - (when - 1.0);
    vec3 after = when < 1.5 ? seen : mix(fresh, seen, smoothstep(0.5, ${FRESH_STEPS}.0, age));
    return mix(before, after, smoothstep(-0.6, 0.0, age));
  }`;

// A lit material whose colour the fragment code `paint` decides.
function kindMaterial(world, vertex, paint) {
  const material = new THREE.MeshLambertMaterial();
  // Programs are shared by this key.
  material.customProgramCacheKey = () => vertex.body + paint.body;
  material.onBeforeCompile = (shader) => {
    Object.assign(shader.uniforms, world.uniforms);
    shader.vertexShader = shader.vertexShader
      .replace("#include <common>", `#include <common>\n${vertex.head}`)
      .replace("#include <begin_vertex>", `#include <begin_vertex>\n${vertex.body}`);
    shader.fragmentShader = shader.fragmentShader
      .replace("#include <common>", `#include <common>\n${KIND}\n${paint.head}`)
      .replace("#include <color_fragment>", paint.body);
  };
  return material;
}

function addGround(world) {
  const vertex = { head: "varying vec2 place;", body: "place = vec2(position.x, position.z);" };
  const paint = {
    head: `
      varying vec2 place;
      uniform sampler2D cells, shadows;
      uniform vec2 middle;
      // 1 inside a band around the middle, with an edge of one pixel.
      float band(float offset, float reach, float pixel) { return 1.0 - smoothstep(reach - pixel, reach + pixel, abs(offset)); }`,
    body: `
      vec2 where = (place + middle) / cell;
      ivec2 size = textureSize(cells, 0);
      vec4 texel = texelFetch(cells, clamp(ivec2(floor(where)), ivec2(0), size - 1), 0) * 255.0;
      vec2 inner = fract(where) - 0.5, pixel = fwidth(where);
      int ground = int(texel.a + 0.5);
      float blur = max(pixel.x, pixel.y), near = 1.0 - smoothstep(0.1, 0.5, blur);
      diffuseColor.rgb = kind(texel.r + 256.0 * texel.g, texel.b / 255.0, place);
      if (ground == ${PARK}) {
        float patches = sin(place.x / cell * 2.1 + sin(place.y / cell * 1.7)) * sin(place.y / cell * 2.3);
        diffuseColor.rgb *= mix(vec3(0.80, 0.93, 0.74), vec3(0.86, 0.97, 0.80), patches * 0.5 + 0.5);
      } else if (ground == 0 || ground == ${BUILT}) {
        float lane = max(1.0 - band(inner.x, 0.45, blur), 1.0 - band(inner.y, 0.45, blur));
        diffuseColor.rgb *= 1.0 - 0.09 * lane * near;
      } else {
        bool east = (ground & ${STREET_EAST}) != 0, south = (ground & ${STREET_SOUTH}) != 0;
        float road = max(east ? band(inner.y, 0.34, blur) : 0.0, south ? band(inner.x, 0.34, blur) : 0.0);
        float line = 0.0;
        if (east && !south) line = band(inner.y, 0.025, blur) * step(0.5, fract(where.x));
        if (south && !east) line = band(inner.x, 0.025, blur) * step(0.5, fract(where.y));
        diffuseColor.rgb *= 1.0 - 0.2 * road;
        diffuseColor.rgb += 0.25 * line * near * diffuseColor.rgb;
      }
      diffuseColor.rgb *= mix(0.55, 1.0, texture2D(shadows, vec2(where.x / float(size.x), 1.0 - where.y / float(size.y))).r);`,
  };
  world.uniforms.shadows = { value: shadowTexture(world) };
  const plane = new THREE.PlaneGeometry(world.width, world.length).rotateX(-Math.PI / 2);
  const ground = new THREE.Mesh(plane, kindMaterial(world, vertex, paint));
  world.scene.add(ground);
  const base = new THREE.BoxGeometry(
    world.width * 1.015,
    world.extent * 0.014,
    world.length * 1.015,
  );
  world.slab = new THREE.Mesh(base, new THREE.MeshLambertMaterial());
  world.slab.position.y = -world.extent * 0.0085;
  world.scene.add(world.slab);
}

// What stands throws its shadow onto the ground once and for all: white is in the sun.
function shadowTexture(world) {
  const canvas = document.createElement("canvas"),
    pen = canvas.getContext("2d");
  const scale = SHADOW_PIXELS / world.extent;
  Object.assign(canvas, {
    width: Math.ceil(world.width * scale),
    height: Math.ceil(world.length * scale),
  });
  pen.fillStyle = "#fff";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.setTransform(scale, 0, 0, scale, canvas.width / 2, canvas.height / 2);
  pen.fillStyle = "#000";
  const fill = (...points) => {
    pen.beginPath();
    for (const [x, z] of points) pen.lineTo(x, z);
    pen.fill();
  };
  for (const { x, z, wide, deep, high } of world.standing) {
    const [east, south] = [(-SUN[0] / SUN[1]) * high, (-SUN[2] / SUN[1]) * high];
    const base = [
      [-1, -1],
      [1, -1],
      [1, 1],
      [-1, 1],
    ].map(([across, along]) => [x + (across * wide) / 2, z + (along * deep) / 2]);
    const top = base.map(([left, up]) => [left + east, up + south]);
    fill(...base);
    fill(...top);
    base.forEach((corner, side) =>
      fill(corner, base[(side + 1) % 4], top[(side + 1) % 4], top[side]),
    );
  }
  const texture = new THREE.CanvasTexture(canvas);
  texture.anisotropy = 4;
  return texture;
}

// The boxes that a building of a height is drawn as: [x, z, width, depth] in cells, share of height.
function boxes(index, height) {
  const pick = chance(index, 1),
    turned = chance(index, 2) < 0.5;
  const turn = ([x, z, wide, deep, tall]) =>
    turned ? [z, x, deep, wide, tall] : [x, z, wide, deep, tall];
  if (height > 90)
    return [
      [0, 0, 0.88, 0.88, 0.3],
      [0, 0, 0.68, 0.68, 0.82],
      [0, 0, 0.5, 0.5, 1],
    ];
  if (height > 35)
    return [
      [0, 0, 0.88, 0.88, 0.55],
      [0.06, 0, 0.6, 0.74, 1],
    ].map(turn);
  if (pick < 0.3)
    return [
      [-0.22, 0, 0.4, 0.86, 1],
      [0.24, 0, 0.36, 0.86, 0.85],
    ].map(turn);
  if (pick < 0.55)
    return [
      [-0.23, 0, 0.4, 0.86, 1],
      [0.21, -0.23, 0.44, 0.4, 0.8],
    ].map(turn);
  if (pick < 0.75)
    return [
      [-0.22, -0.22, 0.38, 0.38, 1],
      [0.22, -0.22, 0.38, 0.38, 0.8],
      [-0.22, 0.22, 0.38, 0.38, 0.7],
      [0.22, 0.22, 0.38, 0.38, 0.9],
    ];
  return [[0, 0, 0.86, 0.86, 1]];
}

const STANDING = {
  head: `
    attribute float when, coverable, shade;
    varying float vWhen, vCoverable, vShade, vUp;
    varying vec3 vPlace, vInner;`,
  body: `
    vWhen = when; vCoverable = coverable; vShade = shade; vUp = normal.y;
    vInner = position;
    vPlace = (instanceMatrix * vec4(position, 1.0)).xyz;`,
};
const STANDING_HEAD = `
  varying float vWhen, vCoverable, vShade, vUp;
  varying vec3 vPlace, vInner;`;

// Many boxes or trees in one draw call: [{index, matrix, shade}].
function standing(world, geometry, paint, items) {
  const { seenAt, coverable } = world.episode;
  const mesh = new THREE.InstancedMesh(
    geometry,
    kindMaterial(world, STANDING, { head: STANDING_HEAD, body: paint }),
    items.length,
  );
  const attribute = (name, value) =>
    geometry.setAttribute(
      name,
      new THREE.InstancedBufferAttribute(Float32Array.from(items, value), 1),
    );
  attribute("when", ({ index }) => seenAt[index] + 1);
  attribute("coverable", ({ index }) => (coverable[index] ? 1 : 0));
  attribute("shade", ({ shade }) => shade);
  items.forEach(({ matrix }, number) => mesh.setMatrixAt(number, matrix));
  mesh.frustumCulled = false;
  if (items.length) world.scene.add(mesh);
}

function addBuildings(world) {
  const { heights, cell } = world.episode;
  const items = [];
  heights.forEach((height, index) => {
    if (!height) return;
    const [x, z] = cellPlace(world, index);
    const shade = 0.8 + 0.2 * chance(index, 3);
    for (const [east, south, wide, deep, tall] of boxes(index, height)) {
      const matrix = new THREE.Matrix4().makeScale(
        wide * cell,
        height * tall * world.lift,
        deep * cell,
      );
      matrix.setPosition(x + east * cell, 0, z + south * cell);
      world.standing.push({
        x: x + east * cell,
        z: z + south * cell,
        wide: wide * cell,
        deep: deep * cell,
        high: height * tall * world.lift,
      });
      items.push({ index, matrix, shade: shade * (0.94 + 0.06 * tall) });
    }
  });
  const paint = `
    diffuseColor.rgb = kind(vWhen, vCoverable, vPlace.xz) * vShade;
    if (vUp > 0.5) {
      // A parapet around the roof.
      vec2 edge = abs(vInner.xz), pixel = fwidth(vInner.xz) * 0.7;
      float rim = max(smoothstep(0.46 - pixel.x, 0.46 + pixel.x, edge.x), smoothstep(0.46 - pixel.y, 0.46 + pixel.y, edge.y));
      diffuseColor.rgb *= 0.93 + 0.17 * rim;
    } else {
      // Windows, which melt into the wall from far away.
      float along = (abs(vInner.x) > 0.499 ? vPlace.z : vPlace.x) / 6.0, floors = vPlace.y / (5.0 * lift);
      float far = smoothstep(0.15, 0.6, max(fwidth(along), fwidth(floors)));
      float window = step(0.3, fract(along)) * step(0.35, fract(floors));
      diffuseColor.rgb *= mix(0.66, 0.84, smoothstep(0.0, 14.0 * lift, vPlace.y)) * (1.0 - 0.38 * mix(window, 0.45, far));
    }`;
  standing(world, new THREE.BoxGeometry(1, 1, 1).translate(0, 0.5, 0), paint, items);
}

function addTrees(world) {
  const { cell, columns, rows } = world.episode;
  const texels = world.uniforms.cells.value.image.data;
  const items = [],
    parks = [];
  for (let index = 0; index < rows * columns; index++)
    if (texels[4 * index + 3] === PARK) parks.push(index);
  const size = Math.min(cell * 0.17, 9),
    perPark = Math.min(1.4, MOST_TREES / parks.length);
  for (const index of parks) {
    const [x, z] = cellPlace(world, index);
    const count = Math.floor(perPark + chance(index, 4));
    for (let tree = 0; tree < count; tree++) {
      const large = size * (0.7 + 0.6 * chance(index, 10 + tree)),
        high = large * 1.25 * Math.sqrt(world.lift);
      const east = x + (chance(index, 20 + tree) - 0.5) * cell * 0.8,
        south = z + (chance(index, 30 + tree) - 0.5) * cell * 0.8;
      items.push({
        index,
        matrix: new THREE.Matrix4()
          .makeScale(large, high, large)
          .setPosition(east, high * 0.8, south),
        shade: 0.75 + 0.25 * chance(index, 40 + tree),
      });
      world.standing.push({ x: east, z: south, wide: large, deep: large, high: 1.6 * high });
    }
  }
  const paint =
    "diffuseColor.rgb = kind(vWhen, vCoverable, vPlace.xz) * vShade * vec3(0.26, 0.46, 0.20);";
  standing(world, new THREE.IcosahedronGeometry(1, 0), paint, items);
}

// No-fly cylinders: striped walls, rings below and above, and a lid that tells the ceiling.
function addZones(world) {
  const zones = world.episode.noFly;
  if (!zones.length) return;
  const { lift } = world;
  const wall = new THREE.CylinderGeometry(1, 1, 1, 64, 1, true).translate(0, 0.5, 0);
  const walls = new THREE.InstancedMesh(wall, zoneMaterial(world), zones.length);
  const ring = new THREE.RingGeometry(0.965, 1, 64).rotateX(-Math.PI / 2);
  const rings = new THREE.InstancedMesh(ring, ringMaterial(world), 2 * zones.length);
  const matrix = new THREE.Matrix4();
  zones.forEach(([x, y, radius, ceiling], zone) => {
    const top = Math.min(ceiling, DRAWN_CEILING) * lift;
    const [east, south] = [x - world.width / 2, y - world.length / 2];
    walls.setMatrixAt(zone, matrix.makeScale(radius, top, radius).setPosition(east, 0, south));
    rings.setMatrixAt(
      2 * zone,
      matrix.makeScale(radius, 1, radius).setPosition(east, world.extent * 0.0015, south),
    );
    rings.setMatrixAt(2 * zone + 1, matrix.setPosition(east, top, south));
    const label = wordLabel(["no-fly", `below ${Math.round(ceiling)} m`]);
    label.position.set(east, top, south);
    label.userData.radius = radius;
    world.labels.push(label);
    world.scene.add(label);
  });
  for (const mesh of [walls, rings]) {
    mesh.frustumCulled = false;
    mesh.renderOrder = 1;
    world.scene.add(mesh);
  }
}

const ZONE_VERTEX = `
  varying vec2 vUv;
  void main() { vUv = uv; gl_Position = projectionMatrix * modelViewMatrix * instanceMatrix * vec4(position, 1.0); }`;

function zoneMaterial(world) {
  return new THREE.ShaderMaterial({
    uniforms: { zone: world.uniforms.zone },
    vertexShader: ZONE_VERTEX,
    fragmentShader: `
      uniform vec3 zone;
      varying vec2 vUv;
      void main() {
        float slant = vUv.x * 28.0 + vUv.y * 2.0, wide = fwidth(slant);
        float stripe = smoothstep(0.5 - wide, 0.5 + wide, abs(fract(slant) - 0.5) * 2.0);
        gl_FragColor = vec4(zone, 0.08 + 0.2 * stripe);
        #include <colorspace_fragment>
      }`,
    transparent: true,
    side: THREE.DoubleSide,
    depthWrite: false,
  });
}

function ringMaterial(world) {
  return new THREE.ShaderMaterial({
    uniforms: { zone: world.uniforms.zone },
    vertexShader: ZONE_VERTEX,
    fragmentShader: `
      uniform vec3 zone;
      void main() { gl_FragColor = vec4(zone, 0.95); \n#include <colorspace_fragment>\n }`,
    transparent: true,
    side: THREE.DoubleSide,
    depthWrite: false,
  });
}

// Words that lie flat and turn to the camera; everything that flies is drawn over them.
function wordLabel(lines) {
  const canvas = document.createElement("canvas"),
    pen = canvas.getContext("2d");
  const font = "600 40px system-ui, sans-serif";
  pen.font = font;
  canvas.width = Math.ceil(Math.max(...lines.map((line) => pen.measureText(line).width))) + 32;
  canvas.height = 48 * lines.length + 16;
  const map = new THREE.CanvasTexture(canvas);
  map.colorSpace = THREE.SRGBColorSpace;
  const material = new THREE.MeshBasicMaterial({
    map,
    transparent: true,
    depthTest: false,
    depthWrite: false,
  });
  const label = new THREE.Mesh(new THREE.PlaneGeometry(1, 1).rotateX(-Math.PI / 2), material);
  label.renderOrder = 2;
  label.userData.aspect = canvas.width / canvas.height;
  label.userData.write = (theme) => {
    pen.clearRect(0, 0, canvas.width, canvas.height);
    Object.assign(pen, {
      font,
      textAlign: "center",
      textBaseline: "middle",
      fillStyle: theme.plate,
    });
    pen.beginPath();
    pen.roundRect(0, 0, canvas.width, canvas.height, 18);
    pen.fill();
    pen.fillStyle = theme["zone-ink"];
    lines.forEach((line, number) => pen.fillText(line, canvas.width / 2, 34 + 48 * number));
    map.needsUpdate = true;
  };
  return label;
}

// Sizes and turns the labels for a camera, so that they stay legible and inside their circles.
function faceLabels(world, camera, perPixel, small) {
  const turn = Math.atan2(camera.position.x - world.gaze.x, camera.position.z - world.gaze.z);
  for (const label of world.labels) {
    const distance = label.position.distanceTo(camera.position);
    const high = (small ? 26 : 34) * perPixel * distance * 1.2,
      widest = 1.7 * label.userData.radius;
    const wide = Math.min(high * label.userData.aspect, widest);
    // Where a circle is small on the screen, its words would be a smudge.
    label.visible = wide / (perPixel * distance) > 52;
    label.scale.set(wide, 1, wide / label.userData.aspect);
    label.rotation.y = turn;
  }
}
