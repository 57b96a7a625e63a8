// Lists the rows behind a mark of a figure; sorts and filters tables. Without it the page is complete, and a mark
// leads to its row of the section's table.
(() => {
  "use strict";
  const lists = [...document.querySelectorAll("section.list")].map((section) => ({
    section,
    rows: [...section.querySelectorAll("tbody tr")],
    noun: section.querySelector("h2").textContent,
  }));
  let chosen = null; // the mark whose rows are listed

  const element = (name, attributes = {}, text = "") => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.textContent = text;
    return made;
  };
  const target = (mark) => document.getElementById(mark.getAttribute("href").slice(1));
  const behind = (row, place) => row.dataset.in.split(" ").includes(place);

  function prepare(list) {
    const { section } = list;
    list.filter = element("input", { type: "search", placeholder: "Filter", "aria-label": `Filter: ${list.noun}` });
    list.status = element("p", { role: "status", class: "soft" });
    list.close = element("button", { type: "button", class: "close" }, "Close");
    list.heading = section.querySelector("h2");
    list.heading.tabIndex = -1;
    const tools = element("div", { class: "tools" });
    tools.append(list.filter, list.status, list.close);
    section.querySelector("details").prepend(tools);
    section.querySelector("summary").after(tools);
    list.filter.addEventListener("input", () => show(list));
    list.close.addEventListener("click", dismiss);
    show(list);
  }

  // Shows the rows behind the list's mark, if it has one, that contain the words of the filter.
  function show(list) {
    const words = list.filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const kept = list.rows.filter((row) => !list.place || behind(row, list.place));
    let shown = 0;
    for (const row of list.rows) row.hidden = true;
    for (const row of kept) {
      const text = words.length ? row.textContent.toLowerCase() : "";
      row.hidden = !words.every((word) => text.includes(word));
      shown += row.hidden ? 0 : 1;
    }
    const count = (number) => number.toLocaleString("en");
    const whole = list.place ? Number(document.getElementById(list.place).dataset.behind) : kept.length;
    list.status.textContent =
      `${count(shown)} of ${count(whole)}` +
      (whole > kept.length ? `; the page has a sample of ${count(kept.length)} of these` : "");
  }

  function choose(list, mark, place, title) {
    dismiss();
    chosen = { list, mark };
    mark.setAttribute("aria-current", "true");
    list.place = place;
    list.filter.value = "";
    list.heading.textContent = `${list.noun} – ${title}`;
    list.opened = list.section.querySelector("details").open;
    list.section.querySelector("details").open = true;
    list.section.classList.add("docked");
    document.body.classList.add("split");
    show(list);
    list.section.querySelector(".scroll").scrollTop = 0;
    list.heading.focus({ preventScroll: true });
  }

  function dismiss() {
    if (!chosen) return;
    const { list, mark } = chosen;
    chosen = null;
    mark.removeAttribute("aria-current");
    list.place = "";
    list.filter.value = "";
    list.heading.textContent = list.noun;
    list.section.querySelector("details").open = list.opened;
    list.section.classList.remove("docked");
    document.body.classList.remove("split");
    show(list);
    mark.focus({ preventScroll: true });
  }

  // Opens the table that a mark leads to, and lets the browser focus the row; Escape returns to the mark.
  function lead(mark) {
    dismiss();
    const row = target(mark);
    row.closest("details").open = true;
    row.tabIndex = -1;
    row.addEventListener("keydown", (event) => {
      if (event.key === "Escape") mark.focus();
    }, { once: true });
  }

  // Sorts a table by a column: ascending, then descending. Cells without a value come last.
  function sort(table, column, header) {
    const body = table.tBodies[0];
    const down = header.getAttribute("aria-sort") === "ascending";
    for (const each of table.tHead.rows[0].cells) each.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    const numeric = header.classList.contains("number");
    const value = (row) => {
      const cell = row.cells[column];
      if (cell.textContent === "–") return null;
      return numeric ? Number(cell.dataset.value ?? cell.textContent.replaceAll(",", "")) : cell.textContent;
    };
    const rows = [...body.rows].map((row) => [value(row), row]);
    rows.sort(([first], [second]) => {
      if (first === null || second === null) return (first === null) - (second === null);
      const order = numeric ? first - second : first.localeCompare(second, "en", { numeric: true });
      return down ? -order : order;
    });
    body.append(...rows.map(([, row]) => row));
  }

  function sortable(table) {
    [...table.tHead.rows[0].cells].forEach((header, column) => {
      const button = element("button", { type: "button" }, header.textContent);
      header.replaceChildren(button);
      button.addEventListener("click", () => sort(table, column, header));
    });
  }

  // One stop of the Tab key for each figure; the arrow keys move between its marks.
  function reachable(figure) {
    const marks = [...figure.querySelectorAll("a")];
    marks.forEach((mark, place) => mark.setAttribute("tabindex", place ? "-1" : "0"));
    figure.addEventListener("keydown", (event) => {
      const place = marks.indexOf(document.activeElement);
      const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -place, End: marks.length - 1 - place };
      const next = event.key in steps && place >= 0 ? marks[place + steps[event.key]] : null;
      if (!next) return;
      event.preventDefault();
      marks[place].setAttribute("tabindex", "-1");
      next.setAttribute("tabindex", "0");
      next.focus();
    });
  }

  document.addEventListener("click", (event) => {
    const mark = event.target.closest("figure a");
    const place = mark && mark.getAttribute("href").slice(1);
    const list = place && lists.find(({ rows }) => rows.some((row) => behind(row, place)));
    if (!list) {
      if (mark) lead(mark);
      return;
    }
    event.preventDefault();
    choose(list, mark, place, mark.querySelector("title").textContent);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") dismiss();
  });
  lists.forEach(prepare);
  document.querySelectorAll("table[data-query]").forEach(sortable);
  document.querySelectorAll("figure").forEach(reachable);
})();
