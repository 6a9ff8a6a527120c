"use strict";
// Draws the clouds of all vehicles on a canvas: points with a depth buffer, cameras and ids on top.
const scene = JSON.parse(document.getElementById("scene").textContent);
const canvas = document.getElementById("cloud");
const context = canvas.getContext("2d");
const COLOURS = [[66, 133, 244], [219, 68, 55], [244, 180, 0], [15, 157, 88], [171, 71, 188],
  [0, 172, 193], [255, 112, 67]];
const state = {pose: scene.poses[0], colour: "image", hidden: new Set(),
  yaw: -0.5, pitch: 0.75, distance: 55, target: [0, 0, 8]};

function bytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}
for (const view of scene.views) {
  view.points = new Int16Array(bytes(view.points).buffer);
  view.colours = bytes(view.colours);
}

function apply(pose, x, y, z) {
  return [0, 1, 2].map((i) => pose[i][0] * x + pose[i][1] * y + pose[i][2] * z + pose[i][3]);
}

function eye() {
  // Rows of the matrix from the scene (x right, y down, z forward) to the eye.
  const cy = Math.cos(state.yaw), sy = Math.sin(state.yaw);
  const cp = Math.cos(state.pitch), sp = Math.sin(state.pitch);
  const [tx, ty, tz] = state.target;
  const rows = [[cy, 0, -sy], [-sy * sp, cp, -cy * sp], [sy * cp, sp, cy * cp]];
  return rows.map((r, i) => [...r, -(r[0] * tx + r[1] * ty + r[2] * tz)
    + (i === 2 ? state.distance : 0)]);
}

function combined(first, second) {
  return first.map((row) => [0, 1, 2, 3].map((j) => row[0] * second[0][j] + row[1] * second[1][j]
    + row[2] * second[2][j] + (j === 3 ? row[3] : 0)));
}

function draw() {
  const ratio = window.devicePixelRatio || 1;
  const width = canvas.width = Math.round(canvas.clientWidth * ratio);
  const height = canvas.height = Math.round(canvas.clientHeight * ratio);
  const focal = 0.9 * height, eyePose = eye();
  const picture = context.createImageData(width, height);
  const nearest = new Float32Array(width * height).fill(Infinity);
  const pixels = picture.data;
  for (let i = 0; i < pixels.length; i += 4) {
    pixels[i] = 17; pixels[i + 1] = 20; pixels[i + 2] = 26; pixels[i + 3] = 255;
  }
  let drawn = 0;
  scene.views.forEach((view, number) => {
    if (state.hidden.has(number)) return;
    const m = combined(eyePose, view.poses[state.pose]);
    const own = COLOURS[number % COLOURS.length];
    const {points, colours} = view;
    for (let k = 0; k < points.length; k += 3) {
      const x = points[k] / 100, y = points[k + 1] / 100, z = points[k + 2] / 100;
      const depth = m[2][0] * x + m[2][1] * y + m[2][2] * z + m[2][3];
      if (depth < 0.5) continue;
      const u = Math.round(width / 2 + focal * (m[0][0] * x + m[0][1] * y + m[0][2] * z + m[0][3]) / depth);
      const v = Math.round(height / 2 + focal * (m[1][0] * x + m[1][1] * y + m[1][2] * z + m[1][3]) / depth);
      const wide = view.pixel * Math.hypot(x, y, z);
      const size = Math.max(1, Math.min(7, Math.round(wide * focal / depth)));
      if (u < 0 || v < 0 || u + size > width || v + size > height) continue;
      drawn += 1;
      for (let row = v; row < v + size; row++) {
        for (let column = u; column < u + size; column++) {
          const place = row * width + column;
          if (depth >= nearest[place]) continue;
          nearest[place] = depth;
          for (let c = 0; c < 3; c++) {
            pixels[4 * place + c] = state.colour === "image" ? colours[k + c]
              : 0.35 * colours[k + c] + 0.65 * own[c];
          }
        }
      }
    }
  });
  context.putImageData(picture, 0, 0);
  scene.views.forEach((view, number) => {
    if (!state.hidden.has(number)) vehicle(view, number, eyePose, focal, width, height, ratio);
  });
  canvas.dataset.drawn = drawn;
  canvas.dataset.pose = state.pose;
}

function vehicle(view, number, eyePose, focal, width, height, ratio) {
  const m = combined(eyePose, view.poses[state.pose]);
  const onScreen = (p) => {
    const [x, y, z] = apply(m, ...p);
    return z < 0.5 ? null : [width / 2 + focal * x / z, height / 2 + focal * y / z];
  };
  context.strokeStyle = context.fillStyle = `rgb(${COLOURS[number % COLOURS.length]})`;
  context.lineWidth = 1.5 * ratio;
  for (const camera of view.cameras) {
    const tip = onScreen(camera.origin), ring = camera.corners.map(onScreen);
    if (!tip || ring.includes(null)) continue;
    context.beginPath();
    ring.forEach((corner, i) => {
      context.moveTo(...tip); context.lineTo(...corner); context.lineTo(...ring[(i + 1) % 4]);
    });
    context.stroke();
  }
  const label = onScreen([0, -1.5, 0]);
  if (!label) return;
  context.font = `${14 * ratio}px sans-serif`;
  context.strokeStyle = "#11141a";
  context.lineWidth = 4 * ratio;
  context.strokeText(view.agent, label[0] + 4, label[1] - 4);
  context.fillText(view.agent, label[0] + 4, label[1] - 4);
}

function buttons(id, key, options) {
  const box = document.getElementById(id);
  for (const [value, text] of options) {
    const button = document.createElement("button");
    button.textContent = text;
    button.dataset.value = value;
    button.onclick = () => { state[key] = value; mark(); draw(); };
    box.append(button);
  }
  const mark = () => box.querySelectorAll("button").forEach((button) => {
    button.setAttribute("aria-pressed", String(button.dataset.value === state[key]));
  });
  mark();
}
buttons("pose", "pose", scene.poses.map((name) => [name, {pred: "predicted pose", gt: "true pose"}[name]]));
buttons("colour", "colour", [["image", "colour"], ["vehicle", "by vehicle"]]);
scene.views.forEach((view, number) => {
  const label = document.createElement("label"), box = document.createElement("input");
  box.type = "checkbox";
  box.checked = true;
  box.onchange = () => { state.hidden[box.checked ? "delete" : "add"](number); draw(); };
  label.style.color = `rgb(${COLOURS[number % COLOURS.length]})`;
  label.append(box, ` ${view.agent}`);
  document.getElementById("vehicles").append(label);
});
for (const picture of document.querySelectorAll(".rows img")) {
  picture.onclick = () => picture.classList.toggle("whole");
}
let held = null;
canvas.onpointerdown = (event) => {
  held = [event.clientX, event.clientY];
  canvas.setPointerCapture(event.pointerId);
};
canvas.onpointerup = () => { held = null; };
canvas.onpointermove = (event) => {
  if (!held) return;
  const dx = event.clientX - held[0], dy = event.clientY - held[1];
  held = [event.clientX, event.clientY];
  if (event.shiftKey || event.buttons === 2) {
    const step = state.distance / canvas.clientHeight;
    state.target[0] -= step * (Math.cos(state.yaw) * dx - Math.sin(state.yaw) * dy);
    state.target[2] -= step * (-Math.sin(state.yaw) * dx - Math.cos(state.yaw) * dy);
  } else {
    state.yaw += dx / 200;
    state.pitch = Math.max(-0.2, Math.min(1.57, state.pitch + dy / 200));
  }
  requestAnimationFrame(draw);
};
canvas.oncontextmenu = (event) => event.preventDefault();
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  state.distance = Math.max(4, Math.min(300, state.distance * Math.exp(event.deltaY / 800)));
  requestAnimationFrame(draw);
}, {passive: false});
window.onresize = draw;
draw();
