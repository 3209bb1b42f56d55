// Browsers load a hidden frame, even with loading="lazy" inside closed details.
for (const details of document.querySelectorAll("details.viewer")) {
  const frame = details.querySelector("iframe");
  details.addEventListener("toggle", () => { frame.src ||= frame.dataset.src; });
}

// Pages on disk cannot look into each other: a viewer posts its height, and is sent positions.
addEventListener("message", ({ source, data }) => {
  for (const frame of document.querySelectorAll("details.viewer iframe")) {
    if (frame.contentWindow === source && data?.viewerHeight > 0) {
      frame.dataset.ready = "yes";
      frame.style.height = `${Math.ceil(data.viewerHeight) + 2}px`;
    }
  }
});

// A link to a position leads to the viewer of its lesion on the page; without a script, to that on a separate page.
for (const link of document.querySelectorAll("a[data-mm]")) {
  link.addEventListener("click", (event) => {
    const details = document.getElementById(link.dataset.viewer);
    if (!details || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    const frame = details.querySelector("iframe");
    if (frame.dataset.ready) frame.contentWindow.postMessage({ mm: link.dataset.mm.split(",").map(Number) }, "*");
    else frame.src = link.href;
    details.open = true;
    // On a small screen the viewer is taller than the window: its slices come first.
    details.scrollIntoView({ block: "start" });
  });
}

for (const button of document.querySelectorAll("button.copy")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const text = document.getElementById(button.dataset.copies);
    const status = button.nextElementSibling;
    try {
      await navigator.clipboard.writeText(text.innerText);
      status.textContent = "Copied.";
    } catch {
      // A page that is served without encryption cannot write to the clipboard.
      getSelection().selectAllChildren(text);
      status.textContent = "Selected: copy it with Ctrl+C or ⌘C.";
    }
  });
}

for (const table of document.querySelectorAll("table.sortable")) {
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const down = header.getAttribute("aria-sort") === "ascending";
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        const order = x - y;
        return Number.isNaN(order) ? x.localeCompare(y, undefined, { numeric: true }) : order;
      });
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", down ? "descending" : "ascending");
      table.tBodies[0].append(...(down ? rows.reverse() : rows));
    });
  });
}

for (const filter of document.querySelectorAll(".filter")) {
  const [input, count] = [filter.querySelector("input"), filter.querySelector("output")];
  const rows = [...document.getElementById(input.dataset.filters).tBodies[0].rows];
  const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  const show = () => {
    const words = input.value.toLowerCase().split(" ");
    rows.forEach((row) => { row.hidden = !words.every((word) => texts.get(row).includes(word)); });
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
  };
  filter.hidden = false;
  input.addEventListener("input", show);
  show();
}
