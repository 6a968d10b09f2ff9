// The page is whole without this: it adds sorting, filters, CSV and buttons to copy.
const make = (tag, of, text) => Object.assign(document.createElement(tag), of, text == null ? {} : {textContent: text});
const shown = (cell) => {
  const copy = cell.cloneNode(true);
  copy.querySelectorAll(".tip, button").forEach((one) => one.remove());
  return copy.textContent.trim().replace(/\s+/g, " ");
};
const valueOf = (cell) => {
  const data = cell?.querySelector("data");
  return data ? Number(data.value) : shown(cell ?? make("td"));
};
const inOrder = (a, b) =>
  typeof a === typeof b && typeof a === "number" ? a - b : String(a).localeCompare(String(b), undefined, {numeric: true});

function sortable(table) {
  const body = table.tBodies[0], first = [...body.rows];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = make("button", {type: "button", className: "sort"}, "↕");
    button.setAttribute("aria-label", `Sort by ${shown(head)}`);
    button.onclick = () => {
      const now = {none: "ascending", ascending: "descending", descending: "none"}[head.ariaSort ?? "none"];
      for (const one of table.tHead.rows[0].cells) {
        one.removeAttribute("aria-sort");
        one.querySelector(".sort").textContent = "↕";
      }
      const rows = [...first], sign = now === "descending" ? -1 : 1;
      // What has no value is last in either order.
      const missing = (row) => shown(row.cells[column] ?? make("td")) === "–";
      if (now !== "none") {
        head.ariaSort = now;
        button.textContent = sign > 0 ? "↑" : "↓";
        rows.sort((a, b) => missing(a) - missing(b) || sign * inOrder(valueOf(a.cells[column]), valueOf(b.cells[column])));
      }
      body.append(...rows);
    };
    head.append(button);
  });
}

function filter(table, name) {
  const input = make("input", {type: "search", placeholder: "Filter"}), count = make("span", {role: "status"});
  input.setAttribute("aria-label", `Filter: ${name}`);
  input.oninput = () => {
    const wanted = input.value.toLowerCase(), rows = [...table.tBodies[0].rows];
    rows.forEach((row) => { row.hidden = !shown(row).toLowerCase().includes(wanted); });
    count.textContent = wanted ? `${rows.filter((row) => !row.hidden).length} of ${rows.length}` : "";
  };
  return [input, count];
}

function csv(table, name) {
  const button = make("button", {type: "button", className: "csv"}, "CSV");
  button.setAttribute("aria-label", `${name} as CSV`);
  button.onclick = () => {
    const text = [...table.rows].map((row) => [...row.cells].map((cell) => {
      // Several values in a cell, as a median and its ends, stay as they are shown.
      const value = String(cell.querySelectorAll("data").length === 1 ? valueOf(cell) : shown(cell));
      return /[",\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value;
    }).join(",")).join("\r\n");
    const link = make("a", {href: URL.createObjectURL(new Blob([text + "\r\n"], {type: "text/csv"}))});
    link.download = `${name.toLowerCase().replace(/[^a-z0-9]+/g, "-")}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href));
  };
  return button;
}

document.querySelectorAll("main table").forEach((table) => {
  const region = table.closest(".scroll"), name = region.getAttribute("aria-label");
  if (table.tHead && table.tBodies[0].rows.length > 1) sortable(table);
  if (table.tHead && table.tBodies[0].rows.length > 8) {
    const tools = make("div", {className: "tools"});
    tools.append(...filter(table, name));
    region.before(tools);
  }
  table.caption.firstElementChild.append(csv(table, name));
});

document.querySelectorAll("main pre").forEach((pre) => {
  const box = make("div", {className: "copied"}), button = make("button", {type: "button"}, "Copy");
  const text = pre.textContent.trim();
  button.setAttribute("aria-label", `Copy: ${text.slice(0, 40)}`);
  button.onclick = async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch { // where the browser forbids it, the reader copies what is selected
      getSelection().selectAllChildren(pre);
    }
  };
  pre.replaceWith(box);
  box.append(pre, button);
});

// A term is explained beside it; without this at the lower edge of the window.
document.querySelectorAll("dfn").forEach((term) => {
  const tip = term.querySelector(".tip");
  const place = () => {
    const at = term.getBoundingClientRect(), below = at.bottom + 6;
    tip.style.bottom = "auto";
    tip.style.left = `${Math.max(8, Math.min(at.left, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${below + tip.offsetHeight < innerHeight ? below : Math.max(8, at.top - tip.offsetHeight - 6)}px`;
  };
  term.addEventListener("mouseenter", place);
  term.addEventListener("focus", place);
  term.addEventListener("keydown", (event) => { if (event.key === "Escape") term.blur(); });
});

addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
