"use strict";
// What the other scripts stand on: the data, and elements made from text. No text ever becomes markup here: there is no
// innerHTML, and attributes are set one by one.

const DATA = JSON.parse(document.getElementById("data").textContent);

/** An element with its properties and children; a string is a text node, null is nothing. */
function el(name, properties, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(properties || {})) {
    if (value === null || value === undefined || value === false) continue;
    node.setAttribute(key, value === true ? "" : String(value));
  }
  for (const child of children.flat()) {
    if (child !== null && child !== undefined) node.append(child);
  }
  return node;
}

/** A number with four significant digits, and a true minus. */
function shortNumber(value) {
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return value.toLocaleString("en").replaceAll(",", "\u202f").replace("-", "−");
  return String(Number(value.toPrecision(4))).replace("-", "−");
}

function runsOf(num) {
  return `${num} run${num === 1 ? "" : "s"}`;
}

function titleOf(name) {
  return DATA.titles[name] || DATA.curves.titles[name] || name.replaceAll("_", " ");
}
